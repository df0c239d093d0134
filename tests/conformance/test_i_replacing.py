"""Conformance class I, the engine's part: another policy while flows are open, and a network that is off."""

from __future__ import annotations

from collections.abc import Callable

import dns.message
import pytest
from engine.wire_guest import (
    GATEWAY,
    GUEST,
    GuestTcp,
    ip,
    payload_of,
    ping,
    sent_bytes,
    udp,
)
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether
from wire import hellos
from wire.http_requests import get

from netstack.engine.effects import AbortStream, CloseDatagrams, OpenNamed, OpenStream, SendStream
from netstack.engine.events import FlowClosed, FlowOpened, FlowRefused, PolicyReplaced
from netstack.engine.verdict import Verdict
from netstack.network_spec import NetworkSpec, SpecError

from .policy_wire import (
    ATTACKER,
    CDN,
    NAME,
    OTHER_NAME,
    SITE,
    PolicyWire,
    dialled_as_is,
    is_gone,
    opened_by_name,
    peeked,
    refusal,
    refused_at_syn,
    say,
    turned_away,
)

Guest = Callable[..., PolicyWire]
listed = NetworkSpec.enabled
NOTHING = NetworkSpec.enabled(deny_all=True)
SSH = "github.example.com"


def opened(wire: PolicyWire, address: str, port: int) -> GuestTcp:
    """A flow dialled as it is, whatever the reason."""
    connection = wire.open_tcp(address, port)
    wire.events.clear()
    return connection


def named(wire: PolicyWire, name: str = NAME, port: int = 443) -> GuestTcp:
    """A flow open to a name."""
    connection = peeked(wire, SITE, port)
    data = hellos.python_ssl(name) if port == 443 else get(f"Host: {name}")
    say(connection, data)
    opened_by_name(wire, connection, data, name, source="sni" if port == 443 else "host")
    connection.hear()
    return connection


def lives(wire: PolicyWire, connection: GuestTcp, data: bytes = b"still here") -> bool:
    """Whether bytes still flow in both directions."""
    connection.say(data)
    assert sent_bytes(wire.asked()) == data
    wire.stack.stream_sent(connection.flow, len(data))
    wire.stack.stream_received(connection.flow, data)
    return connection.hear_bytes().endswith(data)


def reset_by_the_new_policy(wire: PolicyWire, connection: GuestTcp, verdict: Verdict) -> None:
    """(G) A reset, (D) a reset for the server too, (E) the refusal with the new generation, and the flow's end."""
    assert wire.asked() == [AbortStream(connection.flow)]
    frames = [frame for frame in connection.hear() if "R" in str(frame.flags)]
    assert len(frames) == 1
    refused, closed = wire.flow_events()
    assert isinstance(refused, FlowRefused)
    assert isinstance(closed, FlowClosed)
    assert refused.verdict == verdict
    assert (refused.flow, refused.told, refused.generation) == (connection.flow, "reset", wire.stack.judge.generation)
    assert (closed.flow, closed.reason) == (connection.flow, "refused")
    assert is_gone(connection)
    wire.events.clear()


# -- I5: a flow of each kind ------------------------------------------------------------------------------------------


def test_I5_flows_to_addresses(guest: Guest) -> None:
    wire = guest("10.0.0.1", "10.0.0.2:22")
    kept, lost = opened(wire, "10.0.0.1", 22), opened(wire, "10.0.0.2", 22)
    wire.replace(listed(["10.0.0.0/24:1-22", "10.0.0.1", "10.0.0.3"]))
    assert lives(wire, kept)
    assert lives(wire, lost), "another rule allows it as well"
    wire.events.clear()
    wire.replace(listed(["10.0.0.1", "10.0.0.2:23"]))
    verdict = refusal("port-not-covered", "replaced", rule="10.0.0.2:23")
    reset_by_the_new_policy(wire, lost, verdict)
    assert lives(wire, kept)
    wire.replace(NOTHING, "kill-switch")
    reset_by_the_new_policy(wire, kept, refusal("private-address", "replaced"))


def test_I5_flows_to_names(guest: Guest) -> None:
    """Judged by their name, wherever that was found, and not by the address the guest had chosen."""
    wire = guest(NAME, OTHER_NAME)
    kept, lost = named(wire), named(wire, OTHER_NAME, 80)
    wire.replace(listed(["*.example.com"]))
    reset_by_the_new_policy(wire, lost, refusal("name-not-allowed", "replaced", name=OTHER_NAME, source="host"))
    assert lives(wire, kept)
    wire.replace(listed([f"{NAME}:80", SITE]))
    verdict = refusal("port-not-covered", "replaced", rule=f"{NAME}:80", name=NAME, source="sni")
    reset_by_the_new_policy(wire, kept, verdict)


def test_I5_from_full_access_to_a_list(guest: Guest) -> None:
    """A flow that nobody had read says no name; what the new list opens by address lives on."""
    wire = guest()
    web, kept, other = opened(wire, SITE, 443), opened(wire, CDN, 443), opened(wire, SITE, 22)
    wire.replace(listed([NAME, f"{CDN}:443"]))
    assert wire.asked() == [AbortStream(web.flow), AbortStream(other.flow)]
    verdicts = [event.verdict for event in wire.told(FlowRefused)]
    assert verdicts == [refusal("no-name", "replaced"), refusal("no-rule", "replaced")]
    wire.hear()
    assert lives(wire, kept)


def test_I5_from_a_list_to_full_access(guest: Guest) -> None:
    wire = guest(NAME)
    kept = named(wire, NAME, 80)
    wire.replace(listed())
    assert lives(wire, kept, get(f"Host: {NAME}"))
    wire.events.clear()
    dialled_as_is(wire, ATTACKER, 443, "no-list")


def test_I5_a_name_that_has_not_been_said(guest: Guest) -> None:
    """Judged by the policy in force when it is said; reset if none could allow it any more."""
    wire = guest(NAME)
    waiting, other = peeked(wire), peeked(wire, CDN, 80)
    say(waiting, hellos.python_ssl(OTHER_NAME)[:100])
    wire.replace(listed([f"{OTHER_NAME}:443"]))
    assert wire.asks_nothing()
    (refused,) = wire.flow_events()
    assert refused.verdict == refusal("no-rule", "syn")
    assert (refused.destination, refused.generation) == ((ip(CDN), 80), 2)
    assert is_gone(other)
    wire.hear()
    wire.events.clear()


@pytest.mark.parametrize("new", [OTHER_NAME, f"{OTHER_NAME}:443"])
def test_I5_said_under_the_new_policy(guest: Guest, new: str) -> None:
    wire = guest(NAME)
    allowed, refused = peeked(wire), peeked(wire)
    hello = hellos.python_ssl(OTHER_NAME)
    say(allowed, hello[:100])
    wire.replace(listed([new]))
    say(allowed, hello[100:])
    opened_by_name(wire, allowed, hello, OTHER_NAME, rule=new)
    say(refused, hellos.python_ssl(NAME))
    verdict = refusal("name-not-allowed", "tls", name=NAME, source="sni")
    turned_away(wire, refused, verdict, generation=2)


def test_I5_while_the_name_is_dialled(guest: Guest) -> None:
    wire = guest(NAME, OTHER_NAME)
    connection = peeked(wire)
    say(connection, hellos.python_ssl(NAME))
    connection.flow = wire.asked_one(OpenNamed).flow
    wire.replace(listed([NAME]))
    assert wire.asks_nothing()
    connection.hear()
    wire.replace(listed([OTHER_NAME]))
    verdict = refusal("name-not-allowed", "replaced", name=NAME, source="sni")
    reset_by_the_new_policy(wire, connection, verdict)
    wire.stack.stream_opened(connection.flow, wire.now, ip(SITE))
    assert wire.asks_nothing(), "a dial that ends too late changes nothing"


def test_I5_while_the_address_is_dialled(guest: Guest) -> None:
    wire = guest("10.0.0.1")
    connection = wire.connection("10.0.0.1", 22)
    connection.syn()
    connection.flow = wire.asked_one(OpenStream).flow
    wire.replace(NOTHING)
    reset_by_the_new_policy(wire, connection, refusal("private-address", "replaced"))


def test_I5_a_pinned_address(guest: Guest) -> None:
    """A live flow keeps the address its name had, as long as the name is allowed there."""
    wire = guest(f"{SSH}:22")
    assert wire.resolve(SSH, SITE, ttl=1) == [SITE]
    connection = dialled_as_is(wire, SITE, 22, "answered-name", f"{SSH}:22", SSH)
    wire.wait(3600)
    wire.replace(listed([f"{SSH}:22", NAME]))
    assert lives(wire, connection), "the pin is gone, the flow is not"
    wire.events.clear()
    wire.replace(listed([f"{SSH}:23"]))
    reset_by_the_new_policy(wire, connection, refusal("no-rule", "replaced", name=SSH, source="dns"))


def test_I5_a_synthetic_address(guest: Guest) -> None:
    wire = guest(spec=listed([f"{SSH}:22"], answers="synthetic"))
    (address,) = wire.resolve(SSH, SITE)
    connection = wire.connection(address, 22)
    connection.syn()
    connection.flow = wire.asked_one(OpenNamed).flow
    wire.stack.stream_opened(connection.flow, wire.now, ip(SITE))
    connection.finish_handshake()
    wire.events.clear()
    wire.replace(listed([f"{SSH}:22"]))
    assert lives(wire, connection)
    assert not wire.flow_events()
    wire.replace(listed([f"{SSH}:2222"]))
    verdict = refusal("port-not-covered", "replaced", rule=f"{SSH}:2222", name=SSH, source="synthetic")
    reset_by_the_new_policy(wire, connection, verdict)


def test_I5_generations_are_told(guest: Guest) -> None:
    wire = guest(NAME)
    refused_at_syn(wire, ATTACKER, 22, "no-rule")
    for generation, (spec, why) in enumerate(
        [(listed([OTHER_NAME, SITE]), "reload"), (NOTHING, "kill-switch"), (listed(), "api")], 2
    ):
        wire.replace(spec, why)
        (event,) = wire.told(PolicyReplaced)
        assert (event.generation, event.why, event.rules) == (generation, why, len(spec.allow_net))
        wire.events.clear()
    wire.replace(listed([NAME]))
    wire.events.clear()
    connection = wire.connection(ATTACKER, 22)
    connection.syn()
    (refused,) = wire.told(FlowRefused)
    assert (refused.generation, refused.total) == (5, 1), "the counting begins again with each policy"


def test_I5_whole_or_not_at_all(guest: Guest) -> None:
    """A list with one bad rule is no list: it raises before anything changes."""
    wire = guest(NAME)
    connection = named(wire)
    for rules in ([OTHER_NAME, "10.0.0.1/8"], ["*.com"], [OTHER_NAME, ""]):
        with pytest.raises(ValueError, match="allow_net"):
            wire.replace(listed(rules))
    with pytest.raises(SpecError):
        wire.replace(NetworkSpec(network="disabled", allow_net=(OTHER_NAME,)))
    assert wire.stack.judge.generation == 1
    assert lives(wire, connection)
    assert not wire.told(PolicyReplaced)


def test_I5_other_protocols(guest: Guest) -> None:
    """UDP and ping flows are judged again as well (their rows are in class E)."""
    wire = guest("10.0.0.1", "10.0.0.2")
    wire.send(udp("10.0.0.1", 53, b"a"), udp("10.0.0.2", 53, b"b", source_port=5001), ping("10.0.0.2"))
    assert len(wire.asked()) == 6
    wire.events.clear()
    wire.replace(listed(["10.0.0.1"]))
    closed = [type(effect).__name__ for effect in wire.asked()]
    assert sorted(closed) == ["CloseDatagrams", "CloseEcho"]
    assert len(wire.told(FlowRefused)) == 2
    wire.send(udp("10.0.0.1", 53, b"again"))
    assert [type(effect).__name__ for effect in wire.asked()] == ["SendDatagram"]


# -- I8 ---------------------------------------------------------------------------------------------------------------


def test_I8_a_storm_of_reloads(guest: Guest) -> None:
    """A thousand policies, one after the other: what all of them allow lives on, nothing is left of the rest."""
    wire = guest(NAME, "10.0.0.1")
    kept = named(wire)
    for turn in range(1000):
        if turn % 100 == 0:
            wire.open_tcp("10.0.0.1", 22)
        wire.replace(listed([NAME, "10.0.0.1"] if turn % 2 else ["*.example.com", f"10.0.0.{turn % 250 + 2}"]))
        wire.asked()
        wire.hear()
    assert wire.stack.judge.generation == 1001
    assert lives(wire, kept)
    assert len(wire.stack.tcp.table) == 1
    assert len(wire.told(FlowRefused)) == 10


def test_I8_replaced_by_the_same(guest: Guest) -> None:
    wire = guest(NAME, f"{SSH}:22", "10.0.0.1")
    assert wire.resolve(SSH, SITE) == [SITE]
    flows = [named(wire), dialled_as_is(wire, SITE, 22, "answered-name", f"{SSH}:22", SSH), opened(wire, "10.0.0.1", 1)]
    for _ in range(20):
        wire.replace(wire.spec)
    assert all(lives(wire, flow) for flow in flows)
    wire.events.clear()
    dialled_as_is(wire, SITE, 22, "answered-name", f"{SSH}:22", SSH)


# -- a network that is off --------------------------------------------------------------------------------------------


def everything(wire: PolicyWire) -> None:
    """One frame of each kind a guest may send to have an answer."""
    question = dns.message.make_query(NAME, "A").to_wire()
    discover = BOOTP(chaddr=b"\x02\0\0\0\0\x02", xid=7) / DHCP(options=[("message-type", "discover"), "end"])
    wire.send(
        Ether(src="02:00:00:00:00:02", dst="ff:ff:ff:ff:ff:ff") / ARP(op="who-has", psrc=GUEST, pdst=GATEWAY),
        Ether(src="02:00:00:00:00:02", dst="ff:ff:ff:ff:ff:ff")
        / IP(src="0.0.0.0", dst="255.255.255.255")
        / UDP(sport=68, dport=67)
        / discover,
        udp(GATEWAY, 53, question),
        udp(SITE, 53, question),
        ping(GATEWAY),
        ping(SITE),
        b"\x00" * 60,
        b"short",
    )
    for address, port in ((GATEWAY, 53), (GATEWAY, 80), (SITE, 443), ("192.168.127.254", 22), ("127.0.0.1", 1)):
        wire.connection(address, port).syn()
    wire.wait(60)


def test_I_disabled_carries_no_frame(guest: Guest) -> None:
    wire = guest(spec=NetworkSpec.disabled())
    everything(wire)
    assert wire.hear_raw() == []
    assert wire.asks_nothing()
    assert not wire.flow_events()
    assert wire.dropped == {"network-disabled": 13}
    assert wire.rests()


@pytest.mark.parametrize("before", [listed(), listed([NAME, "10.0.0.1", "@host"])], ids=["full", "list"])
def test_I_switched_off_and_on(guest: Guest, before: NetworkSpec) -> None:
    """Every flow ends without a word to the guest, also those with the gateway; the network comes back as new."""
    wire = guest(spec=before)
    flow = opened(wire, "10.0.0.1", 22)
    asking = wire.connection(GATEWAY, 53)
    asking.syn()
    asking.finish_handshake()
    wire.send(udp("10.0.0.1", 53, b"x"))
    wire.asked()
    wire.stack.stream_received(flow.flow, b"on its way")
    wire.replace(NetworkSpec.disabled(), "api")
    assert wire.hear_raw() == []
    ended = wire.asked()
    assert AbortStream(flow.flow) in ended
    assert [type(effect) for effect in ended if not isinstance(effect, AbortStream)] == [CloseDatagrams]
    assert not wire.stack.tcp.table
    everything(wire)
    flow.say(b"anybody there?")
    asking.say(b"\x00\x02ab")
    assert wire.hear_raw() == []
    assert wire.asks_nothing()
    wire.replace(before, "api")
    flow.say(b"and now?")
    assert [str(segment.flags) for segment in flow.hear()] == ["R"], "of the old flows nothing is left"
    wire.events.clear()
    again = opened(wire, "10.0.0.1", 22)
    assert lives(wire, again)


def test_I_deny_all_leaves_the_gateway(guest: Guest) -> None:
    """An address, a name server that says no, and nothing else."""
    wire = guest(spec=NOTHING)
    assert wire.dhcp() == GUEST
    assert wire.arp(GATEWAY)
    assert wire.resolve(NAME) == ["0.0.0.0"]
    wire.send(ping(GATEWAY))
    assert wire.hear_one()[IP].src == GATEWAY
    for address, port in ((SITE, 443), (SITE, 80), (SITE, 53)):
        refused_at_syn(wire, address, port, "no-rule")
    refused_at_syn(wire, "192.168.127.254", 22, "private-address")
    assert [event for event in wire.events if isinstance(event, FlowOpened)] == []


def test_I_the_kill_switch(guest: Guest) -> None:
    """Bytes that the guest has sent already do not reach anybody after it."""
    wire = guest(NAME, "10.0.0.1")
    connection = opened(wire, "10.0.0.1", 22)
    wire.stack.receive_frame(
        bytes(Ether(src="02:00:00:00:00:02", dst="5a:94:ef:e4:0c:dd") / connection.segment("PA", b"x")), wire.now
    )
    wire.replace(NOTHING, "kill-switch")
    effects = wire.asked()
    assert effects == [AbortStream(connection.flow)]
    assert not [effect for effect in effects if isinstance(effect, SendStream)]
    assert payload_of(connection.hear()[-1]) == b""
