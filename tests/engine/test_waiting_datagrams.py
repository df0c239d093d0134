"""UDP flows that wait for their name, a hook or an address: what is held, for how long, and how each wait ends."""

from __future__ import annotations

import pytest
from scapy.layers.inet import UDP, fragment
from wire import quic_packets as quic

from netstack.engine import waiting_datagrams as waiting
from netstack.engine.effects import ConsultFlow, OpenDatagrams, ResolveName, SendDatagram
from netstack.engine.events import FlowOpened, FlowRefused
from netstack.engine.verdict import ALLOW, REFUSE
from netstack.network_spec import NetworkSpec

from .wire_guest import GUEST, OTHER_SERVER, VirtualWire, ip, udp

SITE, TRUE_SITE = "93.184.216.34", "104.16.132.229"
NAME = "example.com"
PORT_UNREACHABLE = (3, 3)


def listed(*rules: str, consults: bool = False, loosens: bool = False, **options: object) -> VirtualWire:
    """A guest under a list, and a hook if it is to be asked."""
    wire = VirtualWire(policy=NetworkSpec.enabled(rules, **options).policy())
    wire.stack.judge.consults = consults
    wire.stack.judge.loosens = loosens
    return wire


def hello(wire: VirtualWire, name: str = NAME, *, source_port: int = 5000, **options: object) -> list[bytes]:
    """The guest sends a QUIC client's first flight; its datagrams."""
    datagrams = quic.client(name, **options)
    for datagram in datagrams:
        wire.send(udp(SITE, 443, datagram, source_port=source_port))
    return datagrams


def refused(wire: VirtualWire, source_port: int = 5000) -> tuple[str, str, str, str]:
    """(G) Port unreachable under the destination's name, (D) nothing more, (E) one refusal: its step, reason, name."""
    assert wire.asks_nothing()
    quoted = wire.quoted(wire.hear_one(), *PORT_UNREACHABLE, source=SITE)
    assert quoted[UDP].sport == source_port
    (event,) = wire.told(FlowRefused)
    wire.events.clear()
    assert (event.protocol, event.guest, event.told) == ("udp", (ip(GUEST), source_port), "unreachable")
    assert event.destination[0] == ip(SITE)
    return event.verdict.step, event.verdict.reason, event.verdict.name, event.verdict.source


def sent(wire: VirtualWire, address: str = TRUE_SITE) -> list[bytes]:
    """What goes out from a new mapping, all to one address."""
    opened, *datagrams = wire.asked()
    assert isinstance(opened, OpenDatagrams)
    assert all(isinstance(each, SendDatagram) for each in datagrams)
    assert {(each.flow, each.address, each.port) for each in datagrams} == {(opened.flow, ip(address), 443)}
    return [each.payload for each in datagrams]


# -- waiting for the name --------------------------------------------------------------------------------------------


def test_e2_an_allowed_name_is_dialled_by_the_name_with_all_that_was_said() -> None:
    wire = listed(NAME)
    datagrams = hello(wire)
    asked = wire.asked_one(ResolveName)
    assert (asked.name, asked.port) == (NAME, 443)
    assert wire.hears_nothing()
    wire.send(udp(SITE, 443, b"0-RTT"))
    assert wire.asks_nothing()
    wire.stack.name_resolved(asked.flow, ip(TRUE_SITE), wire.now)
    assert sent(wire) == [*datagrams, b"0-RTT"]
    (event,) = wire.told(FlowOpened)
    assert (event.destination, event.dialled) == ((ip(SITE), 443), (ip(TRUE_SITE), 443))
    assert event.verdict[:6] == (ALLOW, "quic", "name-rule", NAME, NAME, "quic")
    assert not wire.told(FlowRefused)


def test_a_hello_over_several_datagrams() -> None:
    wire = listed(NAME)
    datagrams = quic.client(NAME, large=True)
    assert len(datagrams) > 1
    wire.send(udp(SITE, 443, datagrams[0]))
    assert wire.asks_nothing()
    assert wire.hears_nothing()
    for datagram in datagrams[1:]:
        wire.send(udp(SITE, 443, datagram))
    asked = wire.asked_one(ResolveName)
    wire.stack.name_resolved(asked.flow, ip(TRUE_SITE), wire.now)
    assert sent(wire) == datagrams


@pytest.mark.parametrize(
    "data", [b"", b"hello", bytes(1200), b"\x40" + bytes(1199)], ids=["empty", "text", "zeros", "short"]
)
def test_e2_what_is_no_hello_is_refused_at_once(data: bytes) -> None:
    wire = listed(NAME)
    wire.send(udp(SITE, 443, data))
    assert refused(wire) == ("quic", "not-quic", "", "quic")


def test_e3_a_name_that_is_not_listed() -> None:
    wire = listed(NAME)
    hello(wire, "evil.example.net")
    assert refused(wire) == ("quic", "name-not-allowed", "evil.example.net", "quic")


def test_a_name_that_is_not_said_in_time() -> None:
    wire = listed(NAME)
    wire.send(udp(SITE, 443, quic.client(NAME, large=True)[0]))
    wire.wait(waiting.NAME_DEADLINE - 0.01)
    assert wire.hears_nothing()
    wire.wait(0.02)
    assert refused(wire) == ("quic", "no-name-in-time", "", "")
    assert wire.rests()


def test_every_flow_that_waits_has_its_own_deadline() -> None:
    wire = listed(NAME)
    first = quic.client(NAME, large=True)[0]
    wire.send(udp(SITE, 443, first, source_port=6001))
    wire.wait(2)
    wire.send(udp(SITE, 443, first, source_port=6002))
    wire.wait(3.01)
    assert refused(wire, 6001)[1] == "no-name-in-time"
    wire.wait(2)
    assert wire.quoted(wire.hear_one(), *PORT_UNREACHABLE, source=SITE)[UDP].sport == 6002
    assert not wire.told(FlowRefused), "of one place the 10th is told next"
    assert wire.stack.judge.refusals == {"no-name-in-time": 2}


# -- waiting for the address -----------------------------------------------------------------------------------------


def test_a_name_without_an_address_that_may_be_used() -> None:
    wire = listed(NAME)
    hello(wire)
    asked = wire.asked_one(ResolveName)
    wire.stack.name_resolved(asked.flow, None, wire.now)
    assert refused(wire) == ("dial", "name-has-no-usable-address", NAME, "quic")


def test_an_address_that_does_not_come_in_time_and_then_all_the_same() -> None:
    wire = listed(NAME)
    hello(wire)
    asked = wire.asked_one(ResolveName)
    wire.wait(waiting.ANSWER_DEADLINE + 0.01)
    assert refused(wire) == ("dial", "no-address-in-time", NAME, "quic")
    wire.stack.name_resolved(asked.flow, ip(TRUE_SITE), wire.now)
    assert wire.asks_nothing()
    assert wire.rests()


def test_addresses_of_flows_nobody_knows() -> None:
    wire = listed(NAME)
    wire.stack.name_resolved(999, ip(TRUE_SITE), wire.now)
    assert wire.asks_nothing()


# -- what is held ----------------------------------------------------------------------------------------------------


def test_of_many_datagrams_the_first_are_kept() -> None:
    """The hello is among them."""
    wire = listed(NAME)
    datagrams = hello(wire)
    asked = wire.asked_one(ResolveName)
    more = [f"datagram {number}".encode() for number in range(30)]
    wire.send(*(udp(SITE, 443, data) for data in more))
    wire.stack.name_resolved(asked.flow, ip(TRUE_SITE), wire.now)
    kept = waiting.MAX_HELD - len(datagrams)
    assert sent(wire) == [*datagrams, *more[:kept]]
    assert wire.dropped == {"udp-waits-too-long": len(more) - kept}


def test_large_datagrams_do_not_pile_up() -> None:
    """Each may have 64 KiB; 256 flows of 16 of them would be 256 MiB."""
    wire = listed(NAME)
    datagrams = hello(wire)
    asked = wire.asked_one(ResolveName)
    large = bytes(20_000)
    wire.send(*fragment(udp(SITE, 443, large), fragsize=1480), *fragment(udp(SITE, 443, large), fragsize=1480))
    wire.send(udp(SITE, 443, b"small"))
    wire.stack.name_resolved(asked.flow, ip(TRUE_SITE), wire.now)
    assert sent(wire) == [*datagrams, large, b"small"]
    assert wire.dropped == {"udp-waits-too-long": 1}


def test_the_number_of_flows_that_wait_is_bounded_and_recovers() -> None:
    wire = listed(NAME)
    first = quic.client(NAME, large=True)[0]
    for number in range(waiting.MAX_WAITING):
        wire.send(udp(SITE, 443, first, source_port=10_000 + number))
    assert wire.asks_nothing()
    assert wire.hears_nothing()
    wire.send(udp(SITE, 443, first, source_port=5000))
    assert refused(wire)[:2] == ("datagram", "too-many-waiting-flows")
    wire.wait(waiting.NAME_DEADLINE + 0.01)
    wire.hear()
    wire.events.clear()
    hello(wire)
    assert wire.asked_one(ResolveName).name == NAME


# -- waiting for the hook --------------------------------------------------------------------------------------------


def asked_hook(wire: VirtualWire) -> ConsultFlow:
    return wire.asked_one(ConsultFlow)


@pytest.mark.parametrize("rules", [[SITE], []], ids=["listed", "no list"])
def test_f14_a_flow_by_address_waits_for_the_hook(rules: list[str]) -> None:
    wire = listed(*rules, consults=True)
    wire.send(udp(SITE, 443, b"one"), udp(SITE, 443, b"two"))
    effect = asked_hook(wire)
    assert effect.verdict.allowed
    assert wire.hears_nothing()
    wire.stack.flow_consulted(effect.question, effect.verdict, wire.now)
    assert sent(wire, SITE) == [b"one", b"two"]
    wire.send(udp(SITE, 443, b"three"))
    assert isinstance(wire.asked_one(SendDatagram), SendDatagram), "asked once a flow"


def test_f14_a_hook_refuses() -> None:
    wire = listed(SITE, consults=True)
    wire.send(udp(SITE, 443, b"one"))
    effect = asked_hook(wire)
    verdict = effect.verdict._replace(action=REFUSE, step="hook", reason="closed", rule="")
    wire.stack.flow_consulted(effect.question, verdict, wire.now)
    assert refused(wire) == ("hook", "closed", "", "")


def test_f14_a_hook_is_asked_about_a_name_and_then_the_name_is_looked_up() -> None:
    wire = listed(NAME, consults=True)
    datagrams = hello(wire)
    effect = asked_hook(wire)
    assert (effect.verdict.name, effect.verdict.allowed) == (NAME, True)
    wire.stack.flow_consulted(effect.question, effect.verdict, wire.now)
    asked = wire.asked_one(ResolveName)
    wire.stack.name_resolved(asked.flow, ip(TRUE_SITE), wire.now)
    assert sent(wire) == datagrams


def test_f14_a_driver_that_never_answers_for_its_hook() -> None:
    wire = listed(NAME, consults=True)
    hello(wire)
    effect = asked_hook(wire)
    wire.wait(waiting.ANSWER_DEADLINE + 0.01)
    assert refused(wire) == ("hook", "hook-silent", NAME, "quic")
    wire.stack.flow_consulted(effect.question, effect.verdict, wire.now)
    assert wire.asks_nothing()


def test_f14_a_hook_that_may_allow_is_asked_about_refusals_too() -> None:
    wire = listed(NAME, consults=True, loosens=True)
    wire.send(udp(SITE, 5000, b"x"))
    effect = asked_hook(wire)
    assert effect.verdict[:3] == (REFUSE, "datagram", "no-rule")
    allowed = effect.verdict._replace(action=ALLOW, step="hook", reason="hook-allows")
    wire.stack.flow_consulted(effect.question, allowed, wire.now)
    opened, datagram = wire.asked()
    assert isinstance(opened, OpenDatagrams)
    assert (datagram.address, datagram.port) == (ip(SITE), 5000)
    hello(wire, "other.example.net")
    effect = asked_hook(wire)
    allowed = effect.verdict._replace(action=ALLOW, step="hook", reason="hook-allows")
    wire.stack.flow_consulted(effect.question, allowed, wire.now)
    assert wire.asked_one(ResolveName).name == "other.example.net", "by name, as any"


def test_f14_metadata_is_not_put_before_a_hook() -> None:
    wire = listed(NAME, consults=True, loosens=True)
    wire.send(udp("168.63.129.16", 53, b"x"))
    assert wire.asks_nothing()
    (event,) = wire.told(FlowRefused)
    assert event.verdict.reason == "metadata"


# -- synthetic addresses ---------------------------------------------------------------------------------------------


def test_a_flow_to_a_synthetic_address_waits_for_the_names_address() -> None:
    wire = listed("example.com:5000", answers="synthetic")
    address = ".".join(map(str, wire.stack.judge.synthetic.address_for(NAME) or b""))
    wire.send(udp(address, 5000, b"x"))
    asked = wire.asked_one(ResolveName)
    assert (asked.name, asked.port) == (NAME, 5000)
    wire.stack.name_resolved(asked.flow, ip(TRUE_SITE), wire.now)
    _, datagram = wire.asked()
    assert (datagram.address, datagram.port, datagram.payload) == (ip(TRUE_SITE), 5000, b"x")


def test_quic_to_a_synthetic_address_has_to_say_the_same_name() -> None:
    wire = listed(NAME, "example.org", answers="synthetic")
    address = ".".join(map(str, wire.stack.judge.synthetic.address_for(NAME) or b""))
    wire.send(udp(address, 443, quic.client("example.org")[0]))
    (event,) = wire.told(FlowRefused)
    assert (event.verdict.reason, event.verdict.name) == ("name-disagrees-with-address", "example.org")
    assert wire.asks_nothing()
    for datagram in quic.client(NAME):
        wire.send(udp(address, 443, datagram, source_port=5001))
    assert wire.asked_one(ResolveName).name == NAME


# -- another policy --------------------------------------------------------------------------------------------------


def replace(wire: VirtualWire, *rules: str, **options: object) -> None:
    wire.stack.replace_policy(NetworkSpec.enabled(rules, **options).policy(), "reload", wire.now)


def test_i5_a_flow_that_the_new_policy_allows_goes_on_waiting() -> None:
    wire = listed(NAME)
    datagrams = hello(wire)
    asked = wire.asked_one(ResolveName)
    replace(wire, NAME, "other.example")
    assert wire.hears_nothing()
    wire.stack.name_resolved(asked.flow, ip(TRUE_SITE), wire.now)
    assert sent(wire) == datagrams


def test_i5_a_flow_whose_name_the_new_policy_refuses() -> None:
    wire = listed(NAME)
    hello(wire)
    asked = wire.asked_one(ResolveName)
    replace(wire, "other.example")
    assert refused(wire) == ("replaced", "name-not-allowed", NAME, "quic")
    wire.stack.name_resolved(asked.flow, ip(TRUE_SITE), wire.now)
    assert wire.asks_nothing()


def test_i5_a_flow_that_has_not_said_its_name() -> None:
    wire = listed(NAME)
    first, *rest = quic.client("other.example", large=True)
    wire.send(udp(SITE, 443, first))
    replace(wire, "other.example")
    for datagram in rest:
        wire.send(udp(SITE, 443, datagram))
    assert wire.asked_one(ResolveName).name == "other.example", "judged by the policy in force when it is said"
    wire.send(udp(SITE, 443, first, source_port=5001))
    replace(wire, OTHER_SERVER)
    wire.asked()
    assert {event.verdict.step for event in wire.told(FlowRefused)} == {"replaced", "datagram"}
