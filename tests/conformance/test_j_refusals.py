"""Conformance J1: every refusal is exactly one event, from one choke point, whatever the reason."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from netstack.engine import addresses, effects
from netstack.engine.effects import Effect
from netstack.engine.events import DnsEvent, FlowRefused
from netstack.engine.verdict import REFUSE, Verdict

from .policy_wire import PolicyWire
from .refusal_rows import ROWS, SAYS_NOTHING

PRODUCT = Path(__file__).parents[2] / "netstack"
WORD = re.compile(r"[a-z][a-z0-9.]*(-[a-z0-9.]+)+")

NO_REFUSALS = frozenset(
    (
        # why something is allowed, or not decided yet
        "address-rule", "answered-name", "any-not-forwarded", "gateway-service", "hook-allows", "name-decides",
        "name-rule", "no-list", "port-forward", "public-rule", "service-binding-withheld", "synthetic-is-ipv4",
        # other words
        "address-not-answered", "latin-1", "link-local", "other-reasons",
    )
)  # fmt: skip
NEVER_HEARD = frozenset(("tls-length", "tls-sslv2"))
"""What readers say of what no flow gives them: a message whose length is another's, a first byte that is no TLS."""
DROPS = re.compile(r"(arp|dhcp|dns|fragment|frame|guest|icmp|ip|network|switch|tcp|udp)-.*")
"""Frames that are dropped before anything is decided of a flow have counters and `frame_dropped` (J8)."""


def refusals(wire: PolicyWire) -> list[Verdict]:
    """The refusing events so far."""
    wire.flush()
    verdicts = [event.verdict for event in wire.events if isinstance(event, FlowRefused | DnsEvent)]
    return [verdict for verdict in verdicts if verdict is not None and not verdict.allowed]


def leaves(effect: Effect) -> bool:
    """Whether something would go out by it."""
    opens = effects.OpenStream | effects.OpenNamed | effects.OpenDatagrams | effects.OpenEcho
    sends = effects.SendStream | effects.SendDatagram | effects.SendEcho | effects.ResolveName | effects.ResolveUpstream
    return isinstance(effect, opens | sends)


@pytest.mark.parametrize("reason", sorted(ROWS))
def test_J1_every_refusal_is_one_event(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """(G) The guest is told at once, or by design nothing; (D) nothing leaves; (E) one event, and one is counted."""
    wire = ROWS[reason](monkeypatch)
    (verdict,) = refusals(wire)
    assert (verdict.action, verdict.reason) == (REFUSE, reason)
    assert wire.stack.judge.refusals == {reason: 1}
    assert [effect for effect in wire.asked() if leaves(effect)] == []
    assert bool(wire.hear_raw()) == (reason not in SAYS_NOTHING)
    for event in wire.told(FlowRefused):
        assert (event.told == "nothing") == (reason == "group-address")
        assert (event.total, event.generation) == (1, wire.stack.judge.generation)


def sources() -> list[Path]:
    """Where reasons are said: engine, hooks, and the readers of first bytes."""
    readers = [PRODUCT / "wire" / f"{name}.py" for name in ("tls_hello", "http_head", "request_stream", "quic_initial")]
    return [*sorted((PRODUCT / "engine").rglob("*.py")), PRODUCT / "hooks.py", *readers]


def test_J1_no_reason_without_a_row() -> None:
    """By inspection: each hyphenated word that the sources hold is in a row, or named above as something else."""
    found: set[str] = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and WORD.fullmatch(node.value):
                found.add(node.value)
    refusing = {
        word for word in found - NO_REFUSALS - NEVER_HEARD if word == "ip-protocol" or DROPS.fullmatch(word) is None
    }
    assert len(refusing) > 100, "the inspection finds them"
    assert refusing - set(ROWS) == set()
    # What is made of other words: a kind of address, and the words without a hyphen.
    made = {f"{kind}-address" for kind in address_kinds()} | {"disabled", "ech", "metadata"}
    assert made | refusing == set(ROWS)
    assert found >= NO_REFUSALS | NEVER_HEARD, "nothing is excused that does not exist"


def address_kinds() -> set[str]:
    """The kinds of addresses that are refused as such; link-local ones are the metadata services'."""
    four = {addresses.kind(bytes((first, second, 0, 1))) for first in range(256) for second in range(256)}
    six = {addresses.kind(bytes.fromhex(f"{first:04x}") + bytes(14)) for first in range(65_536)}
    others = {addresses.kind(bytes(16)), addresses.kind(b"\0\x64\xff\x9b" + bytes(8) + b"\x5d\xb8\xd8\x22")}
    return (four | six | others) - {"public", "metadata", "link-local"}


@pytest.mark.parametrize(
    ("event", "maker"),
    [
        ("FlowRefused", "engine/judge.py:refused"),
        ("FrameDropped", "engine/outbox.py:drop"),
        ("PolicyReplaced", "engine/judge.py:replace"),
    ],
)
def test_J1_one_choke_point(event: str, maker: str) -> None:
    """Each kind of refusal is made at one line of the product."""
    assert makers(event) == [maker]


def test_J1_refused_questions_are_told_with_their_answer() -> None:
    """One place answers questions, and reports each. The others are for messages that hold no question, and for what
    local zones answered before: no policy speaks of those.
    """
    assert makers("DnsEvent") == [f"engine/dns_server.py:{name}" for name in ("ask", "_answer_unread", "_answer")]


def makers(event: str) -> list[str]:
    """The functions in which events of a kind are made."""
    found = []
    for path in sorted(PRODUCT.rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
            if any(isinstance(call, ast.Name) and call.id == event for call in calls):
                found.append(f"{path.relative_to(PRODUCT)}:{function.name}")
    return found
