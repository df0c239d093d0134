"""Hooks: your own code asked about every flow and every DNS question before it goes anywhere.

    class OfficeHours(Hooks):
        async def on_flow(self, flow):
            if flow.name == "registry.example.com" and not office_is_open():
                return refuse("closed")

A hook can refuse what the policy allows. It can allow what the policy refuses only where the configuration lets it
(`may_allow`), and never a metadata service or a disabled network. One that raises, or takes longer than its deadline,
refuses that flow and nothing else. It runs in the event loop that carries the frames: what blocks belongs in
`trio.to_thread.run_sync`.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

import trio

from netstack.engine.refusals import is_told
from netstack.engine.verdict import ALLOW, REFUSE, Question, Verdict
from netstack.wire.ipv4 import format_address

log = logging.getLogger(__name__)

DEADLINE: Final = 5.0
"""Seconds a hook has to answer, unless told otherwise."""
MAX_DEADLINE: Final = 10.0
"""The most it may be given: what waits for it gives up a little later."""
MAX_ASKING: Final = 1024
"""Questions a hook is asked at a time; further ones are refused. Flows of a flood are forgotten before it answers."""

_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp"}


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow in question. Addresses are dotted; `name` is empty where no name is known."""

    number: int
    protocol: str
    guest: str
    guest_port: int
    destination: str
    port: int
    name: str
    name_source: str
    policy_allows: bool
    reason: str
    rule: str


@dataclass(frozen=True, slots=True)
class DnsQuestion:
    """A DNS question in question. `name` without its final dot; `qtype` in words (A, AAAA, ...)."""

    guest: str
    name: str
    qtype: str
    policy_allows: bool
    reason: str
    rule: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What a hook says: made by `allow` and `refuse`."""

    allowed: bool
    reason: str


def allow(reason: str = "hook-allows") -> Decision:
    """Let it go, also where the policy says no and the configuration lets a hook overrule it."""
    return Decision(True, reason)


def refuse(reason: str = "hook-refuses") -> Decision:
    """Do not let it go."""
    return Decision(False, reason)


class Hooks:
    """Override what you want to be asked about. None means no opinion: what the policy says stands."""

    async def on_flow(self, flow: Flow) -> Decision | None:
        """A TCP, UDP or ICMP echo flow is about to be opened."""

    async def on_dns(self, question: DnsQuestion) -> Decision | None:
        """A guest asks for a name that is not answered by a local zone."""


class HookRunner:
    """Asks a hook, with a deadline, and turns what comes of it into a verdict."""

    def __init__(self, hooks: Hooks, *, may_allow: bool = False, deadline: float = DEADLINE) -> None:
        """`may_allow`: it may allow what the policy refuses. `deadline` in seconds, above 0."""
        self.may_allow = may_allow
        self._hooks = hooks
        self._deadline = deadline
        self._asking = 0
        self._failures: dict[str, int] = {}

    async def flow(self, question: Question, verdict: Verdict) -> Verdict:
        """The verdict on a flow, with the hook's opinion in it. Raises nothing the hook does."""
        flow = Flow(
            question.flow,
            _PROTOCOLS.get(question.protocol, str(question.protocol)),
            format_address(question.guest[0]),
            question.guest[1],
            format_address(question.destination[0]),
            question.destination[1],
            verdict.name,
            verdict.source,
            verdict.allowed,
            verdict.reason,
            verdict.rule,
        )
        return await self._ask(verdict, f"flow to {verdict.name or flow.destination}:{flow.port}", on_flow=flow)

    async def dns(self, guest: bytes, name: str, qtype: str, verdict: Verdict) -> Verdict:
        """The verdict on a DNS question, with the hook's opinion in it. Raises nothing the hook does."""
        question = DnsQuestion(format_address(guest), name, qtype, verdict.allowed, verdict.reason, verdict.rule)
        return await self._ask(verdict, f"question {name!r} {qtype}", on_dns=question)

    async def _ask(
        self, verdict: Verdict, what: str, *, on_flow: Flow | None = None, on_dns: DnsQuestion | None = None
    ) -> Verdict:
        if self._asking >= MAX_ASKING:
            return self._failed(verdict, "hook-busy", f"has {MAX_ASKING} questions before it", what)
        decision: object = None
        self._asking += 1
        try:
            with trio.move_on_after(self._deadline) as scope:
                if on_flow is not None:
                    decision = await self._hooks.on_flow(on_flow)
                elif on_dns is not None:
                    decision = await self._hooks.on_dns(on_dns)
        except (Exception, SystemExit) as error:  # foreign code: whatever it raises refuses this flow and nothing else
            return self._failed(verdict, "hook-failed", "failed", what, error)
        except BaseExceptionGroup as several:  # of its own nursery, when a task of it exits
            if several.split((Exception, SystemExit))[1] is not None:
                raise  # this program is to end, or the gateway
            return self._failed(verdict, "hook-failed", "failed", what, several)
        finally:
            self._asking -= 1
        if scope.cancel_called:  # also of one that caught its cancellation and answers all the same
            return self._failed(verdict, "hook-timeout", f"did not answer within {self._deadline:g} s", what)
        if decision is None:
            return verdict
        if not isinstance(decision, Decision) or not isinstance(decision.reason, str):
            return self._failed(
                verdict, "hook-failed", f"returned a {type(decision).__name__}, not what allow() gives", what
            )
        if not decision.allowed:
            return _refused(verdict, decision.reason)
        if verdict.allowed or not self.may_allow:
            return verdict
        return verdict._replace(action=ALLOW, step="hook", reason=decision.reason)

    def _failed(
        self, verdict: Verdict, reason: str, did: str, what: str, error: BaseException | None = None
    ) -> Verdict:
        """Refuse. The 1st, 10th, 100th, ... failure of a kind is logged: a guest must not fill the log with them."""
        count = self._failures[reason] = self._failures.get(reason, 0) + 1
        if is_told(count):
            log.error("the hook %s: %s is refused (%d of these so far)", did, what, count, exc_info=error)
        return _refused(verdict, reason)


def _refused(verdict: Verdict, reason: str) -> Verdict:
    return verdict._replace(action=REFUSE, step="hook", reason=reason, rule="")


class HookError(ValueError):
    """A hook that cannot be loaded; the message says why."""


def load_hooks(where: str) -> Hooks:
    """The hook at `FILE.py`, `FILE.py:CLASS` or `MODULE:CLASS`; without a class, the only subclass of Hooks there.

    Raises HookError. Its file is run: it has the rights of this process. A file is found by other code as the module
    `netstack_hook`.
    """
    source, _, wanted = where.partition(":")
    try:
        module = _load_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except (Exception, SystemExit) as error:  # foreign code: it may raise anything while it is read
        raise HookError(f"{source}: {type(error).__name__}: {error}") from error
    found = {name: each for name, each in vars(module).items() if isinstance(each, type) and issubclass(each, Hooks)}
    found.pop("Hooks", None)
    if wanted:
        found = {name: each for name, each in found.items() if name == wanted}
    if len(found) != 1:
        raise HookError(f"expected one subclass of netstack.hooks.Hooks, found {', '.join(sorted(found)) or 'none'}")
    name, kind = next(iter(found.items()))
    try:
        made: Hooks = kind()
    except (Exception, SystemExit) as error:  # foreign code again
        raise HookError(f"{source}: {name}(): {type(error).__name__}: {error}") from error
    return made


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("netstack_hook", path)
    if spec is None or spec.loader is None:
        raise ImportError("no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses, pickle and the like look a class's module up by its name
    spec.loader.exec_module(module)
    return module
