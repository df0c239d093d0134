"""Verdicts as comments: which frame of a flow has one, how many wait, and what they say (J5 has the files)."""

from __future__ import annotations

import dns.message
import pytest
from engine.wire_guest import GATEWAY, GUEST, GUEST_MAC, VirtualWire, ip, ping, udp
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from guest_iface.pcapng import INBOUND, OUTBOUND
from netstack.engine.dns_server import DnsServer
from netstack.engine.events import DnsEvent, Event, FlowClosed, FlowOpened, FlowRefused
from netstack.engine.judge import Judge
from netstack.engine.outbox import Outbox
from netstack.engine.policy import Policy, PolicySettings
from netstack.engine.settings import NetworkSettings
from netstack.engine.verdict import ALLOW, REFUSE, Verdict
from netstack.engine.zones import Zones
from netstack.gateway.capture_comments import MAX_MESSAGES, MAX_WAITING, CaptureComments, _dns_messages
from netstack.network_spec import NetworkSpec

SITE = "93.184.216.34"
NO_RULE = Verdict(REFUSE, "syn", "no-rule")
BY_RULE = Verdict(ALLOW, "syn", "address-rule", "93.184.0.0/16")
NAMED = Verdict(ALLOW, "tls", "name-rule", "*.example.com", "a.example.com", "sni")


def refused(port: int, verdict: Verdict = NO_RULE, number: int = 7) -> FlowRefused:
    return FlowRefused(number, "tcp", (ip(GUEST), port), (ip(SITE), 443), verdict, "reset", 1, 1)


def opened(port: int, verdict: Verdict = BY_RULE, number: int = 8) -> FlowOpened:
    return FlowOpened(number, "tcp", (ip(GUEST), port), (ip(SITE), 443), (ip(SITE), 443), verdict)


def frame(packet: Packet) -> bytes:
    return bytes(Ether() / packet)


def out(port: int) -> bytes:
    """A segment of the guest's."""
    return frame(IP(src=GUEST, dst=SITE) / TCP(sport=port, dport=443))


def back(port: int) -> bytes:
    """A segment for the guest."""
    return frame(IP(src=SITE, dst=GUEST) / TCP(sport=443, dport=port))


@pytest.mark.parametrize("policy", ["list"])
def test_a_comment_is_given_once_to_the_first_frame(policy: str) -> None:
    wire = VirtualWire(policy=NetworkSpec.enabled(["example.com"]).policy())
    comments = CaptureComments()
    for packet in (udp(SITE, 9), ping(SITE), IP(src=GUEST, dst=SITE, proto=47) / Raw(bytes(8))):
        wire.send(packet)
        for event in wire.events:
            comments.note(event)
        wire.events.clear()
        answer = wire.hear_raw()[-1]
        own = bytes(Ether(src=GUEST_MAC, dst="5a:94:ef:e4:0c:dd") / packet)
        assert comments.take(own, OUTBOUND) == "", "not its direction"
        assert " refused at " in comments.take(answer, OUTBOUND)
        assert comments.take(own, INBOUND) == comments.take(answer, OUTBOUND) == ""


def test_words() -> None:
    comments = CaptureComments()
    for event, words in (
        (refused(1), "flow 7 refused at syn: no-rule; told reset"),
        (opened(1), f"flow 8 allowed at syn: address-rule '93.184.0.0/16'; dialled {SITE}:443"),
        (
            opened(1, NAMED),
            f"flow 8 allowed at tls: name-rule '*.example.com', a.example.com by sni; dialled {SITE}:443",
        ),
        (
            opened(1, Verdict(ALLOW, "forward", "port-forward"))._replace(direction="in"),
            f"flow 8 allowed at forward: port-forward; opened by {SITE}:443",
        ),
    ):
        for direction, seen in ((INBOUND, out(1)), (OUTBOUND, back(1))):
            comments.note(event)
            assert comments.take(seen, direction) == f"netstack: {words}"


@given(st.text(max_size=40))
def test_a_hook_may_say_anything(text: str) -> None:
    """Its reason, and names of any kind: one line of printable ASCII."""
    comments = CaptureComments()
    comments.note(refused(1, Verdict(REFUSE, "hook", text, "", text, "sni")))
    said = comments.take(out(1), INBOUND)
    assert said.isascii()
    assert said.isprintable()


def test_flows_are_told_apart() -> None:
    comments = CaptureComments()
    comments.note(refused(1))
    for packet in (
        IP(src=GUEST, dst=SITE) / TCP(sport=2, dport=443),
        IP(src=GUEST, dst=SITE) / TCP(sport=443, dport=1),
        IP(src=GUEST, dst=SITE) / UDP(sport=1, dport=443),
        IP(src="192.168.127.3", dst=SITE) / TCP(sport=1, dport=443),
        IP(src=GUEST, dst=SITE, frag=1) / TCP(sport=1, dport=443),
        IP(src=GUEST, dst=SITE) / ICMP(id=1),
        ARP(),
        Raw(b""),
    ):
        assert comments.take(frame(packet), INBOUND) == ""
    assert comments.take(frame(IP(src=GUEST, dst=SITE, options=[b"\x01"] * 4) / TCP(sport=1, dport=443)), INBOUND)


def test_an_error_is_about_the_packet_it_quotes() -> None:
    comments = CaptureComments()
    comments.note(refused(1))
    quoted = IP(src=GUEST, dst=SITE) / TCP(sport=1, dport=443)
    error = frame(IP(src=GATEWAY, dst=GUEST) / ICMP(type=3, code=1) / bytes(quoted)[:28])
    assert comments.take(error, INBOUND) == "", "one of the guest's is about nothing"
    assert comments.take(error, OUTBOUND) == "netstack: flow 7 refused at syn: no-rule; told reset"


def test_the_last_word_counts_and_an_end_takes_it_back() -> None:
    comments = CaptureComments()
    comments.note(refused(1))
    comments.note(opened(1))
    assert comments.take(out(1), INBOUND).startswith("netstack: flow 8 allowed")
    comments.note(opened(1))
    ends = (ip(GUEST), 1), (ip(SITE), 443), (ip(SITE), 443)
    comments.note(FlowClosed(8, "tcp", *ends, "finished", 0, 0, 1.0, BY_RULE))
    assert comments.take(out(1), INBOUND) == ""


def test_what_waits_is_bounded() -> None:
    comments = CaptureComments()
    for port in range(1, MAX_WAITING + 11):
        comments.note(refused(port))
        comments.note(DnsEvent(ip(GUEST), f"n{port}.example", "A", "udp", "policy", "NOERROR", 0, 0.0))
    assert len(comments._flows) == len(comments._questions) == MAX_WAITING
    assert comments.take(out(10), INBOUND) == ""
    assert comments.take(out(11), INBOUND) != ""


def test_questions_over_tcp_may_share_a_segment() -> None:
    comments = CaptureComments()
    names = ["a.example", "B.example", "c\\.d\\010.example", "example", "."]
    for name in names:
        comments.note(DnsEvent(ip(GUEST), name, "TXT", "tcp", "policy", "NOERROR", 0, 0.0))
    comments.note(DnsEvent(ip(GUEST), "", "", "tcp", "refused", "FORMERR", 0, 0.0))
    messages = [dns.message.make_query(name, "TXT", use_edns=False).to_wire() for name in names[:3]]
    stream = b"".join(len(message).to_bytes(2, "big") + message for message in messages)
    said = comments.take(frame(IP(src=GATEWAY, dst=GUEST) / TCP(sport=53, dport=9) / stream), OUTBOUND)
    assert said.count("netstack: question ") == 3
    assert said.isprintable()
    assert len(comments._questions) == 2, "a name is not the end of another"


@pytest.mark.parametrize("direction", [INBOUND, OUTBOUND])
def test_questions_are_told_apart(direction: int) -> None:
    comments = CaptureComments()
    comments.note(DnsEvent(ip(GUEST), "Example.COM", "A", "udp", "policy", "NOERROR", 1, 0.0))

    def seen(name: str, kind: str = "A", guest: str = GUEST, port: int = 53) -> str:
        message = dns.message.make_query(name, kind).to_wire()
        if direction == INBOUND:
            return comments.take(frame(IP(src=guest, dst=GATEWAY) / UDP(sport=9, dport=port) / message), direction)
        return comments.take(frame(IP(src=GATEWAY, dst=guest) / UDP(sport=port, dport=9) / message), direction)

    assert seen("a.Example.COM") == seen("example.com") == seen("Example.COM", "AAAA") == ""
    assert seen("Example.COM", guest="192.168.127.3") == seen("Example.COM", port=54) == ""
    assert seen("Example.COM") == "netstack: question Example.COM A; policy says NOERROR, 1 answers"
    assert seen("Example.COM") == ""


@given(st.lists(st.binary(min_size=1, max_size=63), max_size=3), st.integers(0, 65_535))
def test_any_question_of_a_guest_is_found_again(labels: list[bytes], qtype: int) -> None:
    """As the name server tells of it, whatever bytes its name has: nothing raises, and it is found in the message."""
    told: list[Event] = []
    policy = Policy(PolicySettings(rules=()), NetworkSettings())
    judge = Judge(policy, NetworkSettings(), Outbox())
    server = DnsServer(Zones(()), told.append, judge=judge, mtu=1500)
    name = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    message = b"\0\1\1\0\0\1" + bytes(6) + name + qtype.to_bytes(2, "big") + b"\0\1"
    server.ask(message, ip(GUEST), "udp", None, 0.0)
    comments = CaptureComments()
    for event in told:
        comments.note(event)
    said = comments.take(frame(IP(src=GUEST, dst=GATEWAY) / UDP(sport=9, dport=53) / message), INBOUND)
    assert said.isprintable()
    assert [event.qtype != "" for event in told if isinstance(event, DnsEvent)] == [said != ""]


def test_a_segment_of_nothing_is_soon_read() -> None:
    comments = CaptureComments()
    comments.note(DnsEvent(ip(GUEST), "a.example", "A", "tcp", "policy", "NOERROR", 0, 0.0))
    head = bytes(IP(src=GUEST, dst=GATEWAY) / TCP(sport=9, dport=53))
    assert len(_dns_messages(head + bytes(60_000))) == MAX_MESSAGES
    assert comments.take(bytes(12) + b"\x08\x00" + head + bytes(60_000), INBOUND) == ""


@given(st.binary(max_size=120), st.sampled_from([INBOUND, OUTBOUND]))
def test_no_frame_raises(data: bytes, direction: int) -> None:
    comments = CaptureComments()
    comments.note(refused(1))
    comments.note(DnsEvent(ip(GUEST), "a.example", "A", "udp", "policy", "NOERROR", 0, 0.0))
    comments.take(data, direction)
    comments.take(bytes(12) + b"\x08\x00" + data, direction)
    comments.take(bytes(12) + b"\x08\x00\x45\x00" + data, direction)
