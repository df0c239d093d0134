"""A decision about a flow or a question, and what it rests on."""

from __future__ import annotations

from typing import Final, NamedTuple

REFUSE: Final = 0
ALLOW: Final = 1
PEEK: Final = 2
"""Only the flow's first bytes can tell: they say the name."""

ACTION_WORDS: Final = {REFUSE: "refused", ALLOW: "allowed", PEEK: "peek"}


class Verdict(NamedTuple):
    """What was decided and why.

    `step` is where it fell: syn, datagram, tls, http, quic, echo, dns, dial, hook, replaced, forward (towards the
    guest, which no policy judges). `reason` is one word of many hyphens; `rule` the rule's text, empty when there is
    none; `name` and `source` (sni, host, quic, dns) say for which name, where there was one.
    """

    action: int
    step: str
    reason: str
    rule: str = ""
    name: str = ""
    source: str = ""

    @property
    def allowed(self) -> bool:
        """Whether the flow may go on (PEEK is not yet a yes)."""
        return self.action == ALLOW


class Question(NamedTuple):
    """What is to be judged: who wants to go where. Addresses are the guest's, before NAT."""

    flow: int
    protocol: int
    guest: tuple[bytes, int]
    destination: tuple[bytes, int]
