"""Prepared failures: each makes a capture in memory and says which cause has to be named. Twenty and more of them.

Refusals and answers come from the real Stack with a policy; transfers from the engine's connection on an impaired link;
what other hosts do from frames made by scapy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from conformance.policy_wire import NAME, OTHER_NAME, SITE, TRUE_SITE
from engine.tcp_guest import GuestModel
from engine.tcp_simulation import Link
from engine.wire_guest import GATEWAY, GUEST, SERVER, UNUSED, GuestTcp, ping, udp
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dns import DNS, DNSQR, DNSRR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw
from wire import hellos
from wire.http_requests import get

from netstack.debug.seen_packets import FROM_GUEST, TO_GUEST, Recorded
from netstack.engine import effects
from netstack.engine.effects import OpenNamed, OpenStream, ResolveUpstream
from netstack.network_spec import NetworkSpec

from .recording import RecordingWire, engine_end, numbered, simulated


class Failure(NamedTuple):
    """`flow`: by what the story is found. `says` and `advice`: words that have to be in them."""

    name: str
    capture: Callable[[], list[Recorded]]
    flow: str
    cause: str
    says: str
    advice: str = ""


PREPARED: list[Failure] = []


def failure(flow: str, cause: str, says: str, advice: str = "") -> Callable[[Callable[[], list[Recorded]]], object]:
    """Register what a function captures."""

    def register(capture: Callable[[], list[Recorded]]) -> object:
        name = capture.__name__.replace("_", "-")
        PREPARED.append(Failure(name, capture, flow, cause, says, advice))
        return capture

    return register


# -- what the policy refuses: the classes of conformance ---------------------------------------------------------------


@failure("45.33.32.156:22", "refused-no-rule", "no rule allows this address", "add '45.33.32.156:22' to allow_net")
def a_address_without_a_rule() -> list[Recorded]:
    wire = RecordingWire(NAME)
    wire.connection("45.33.32.156", 22).syn()
    return wire.capture()


@failure("10.1.2.3:443", "refused-private-address", "private address", "add '10.1.2.3:443' to allow_net")
def a_private_address() -> list[Recorded]:
    wire = RecordingWire(NAME)
    wire.connection("10.1.2.3", 443).syn()
    return wire.capture()


@failure("169.254.169.254:80", "refused-metadata", "metadata", "--metadata-access")
def a_metadata_service() -> list[Recorded]:
    wire = RecordingWire(NAME, "169.254.0.0/16")
    wire.connection("169.254.169.254", 80).syn()
    return wire.capture()


@failure("10.0.0.5:8443", "refused-port-not-covered", "for other ports", "add '10.0.0.5:8443' to allow_net")
def a_port_outside_the_rule() -> list[Recorded]:
    wire = RecordingWire("10.0.0.5:443")
    wire.connection("10.0.0.5", 8443).syn()
    return wire.capture()


@failure(OTHER_NAME, "sinkholed", f"no rule allows {OTHER_NAME}", f"add '{OTHER_NAME}' to allow_net")
def b_sinkholed_name() -> list[Recorded]:
    wire = RecordingWire(NAME)
    wire.resolve(OTHER_NAME)
    return wire.capture()


@failure("dns", "refused-no-rule", "no rule allows this address", "udp/8.8.8.8:53")
def b_another_resolver() -> list[Recorded]:
    wire = RecordingWire(NAME)
    question = bytes(DNS(id=7, rd=1, qd=DNSQR(qname=NAME)))
    wire.send(udp("8.8.8.8", 53, question))
    return wire.capture()


def _opened(wire: RecordingWire, port: int) -> GuestTcp:
    """The guest resolves the allowed name and opens a connection to its address."""
    wire.resolve(NAME, SITE)
    wire.wait(0.01)
    connection = wire.connection(SITE, port)
    connection.syn()
    connection.finish_handshake()
    return connection


@failure(OTHER_NAME, "refused-name-not-allowed", "no rule allows this name", f"add '{OTHER_NAME}' to allow_net")
def c_wrong_sni() -> list[Recorded]:
    wire = RecordingWire(NAME)
    connection = _opened(wire, 443)
    connection.say(hellos.python_ssl(OTHER_NAME))
    return wire.capture()


@failure(OTHER_NAME, "refused-name-not-allowed", "at the HTTP request", f"add '{OTHER_NAME}' to allow_net")
def c_wrong_host() -> list[Recorded]:
    wire = RecordingWire(NAME)
    connection = _opened(wire, 80)
    connection.say(get(f"Host: {OTHER_NAME}"))
    return wire.capture()


@failure(NAME, "refused-private-address", "the name leads to a private address", "add its address")
def c_name_that_leads_inside() -> list[Recorded]:
    wire = RecordingWire(NAME)
    connection = _opened(wire, 443)
    connection.say(hellos.python_ssl(NAME))
    wire.stack.stream_objected(wire.asked_one(OpenNamed).flow, "private-address", wire.now)
    return wire.capture()


@failure("tcp", "refused-no-name-in-time", "no name was said in time", "server speaks first")
def d_silent_client() -> list[Recorded]:
    wire = RecordingWire(NAME)
    _opened(wire, 443)
    wire.wait(6)
    return wire.capture()


@failure("tcp", "refused-http-obs-fold", "the HTTP request is not usable", "what the client sends")
def d_smuggled_header() -> list[Recorded]:
    wire = RecordingWire(NAME)
    connection = _opened(wire, 80)
    connection.say(f"GET / HTTP/1.1\r\nHost: {NAME}\r\n folded\r\n\r\n".encode())
    return wire.capture()


@failure("45.33.32.156:9", "refused-no-rule", "at its first datagram", "udp/45.33.32.156:9")
def e_datagram_to_nowhere() -> list[Recorded]:
    wire = RecordingWire(NAME)
    wire.send(udp("45.33.32.156", 9, b"x"))
    return wire.capture()


@failure("45.33.32.156", "refused-no-rule", "at the echo request", "add '45.33.32.156' to allow_net")
def e_ping() -> list[Recorded]:
    wire = RecordingWire(NAME)
    wire.send(ping("45.33.32.156"))
    return wire.capture()


@failure("ip", "refused-ip-protocol", "only TCP, UDP and ICMP", "use TCP or UDP")
def e_tunnel() -> list[Recorded]:
    wire = RecordingWire(NAME)
    wire.send(IP(src=GUEST, dst=SITE, proto=47) / Raw(bytes(8)))
    return wire.capture()


@failure("203.0.113.9:443", "refused-table-full", "no room", "close connections")
def f_table_full() -> list[Recorded]:
    wire = RecordingWire("203.0.113.0/24", max_tcp_flows=1)
    wire.open_tcp(SERVER, 443).say(b"x")
    wire.connection("203.0.113.9", 443).syn()
    return wire.capture()


@failure("10.0.0.5:443", "refused-private-address", "when the policy was replaced", "add '10.0.0.5:443' to allow_net")
def i_policy_replaced() -> list[Recorded]:
    wire = RecordingWire("10.0.0.5")
    wire.open_tcp("10.0.0.5", 443).say(b"hello")
    wire.wait(1)
    wire.replace(NetworkSpec.enabled([NAME]))
    return wire.capture()


@failure(f"{GATEWAY}:22", "refused-unserved-port", "serves nothing", "host IP")
def a_gateway_port() -> list[Recorded]:
    wire = RecordingWire(NAME)
    wire.connection(GATEWAY, 22).syn()
    return wire.capture()


@failure(UNUSED, "refused-unused-address", "nobody has this address", "in use")
def a_unused_address() -> list[Recorded]:
    wire = RecordingWire(NAME)
    wire.connection(UNUSED, 80).syn()
    return wire.capture()


# -- what the host's side does -----------------------------------------------------------------------------------------


def _dialled(destination: str = SERVER, port: int = 443) -> tuple[RecordingWire, GuestTcp]:
    wire = RecordingWire(spec=NetworkSpec.enabled())
    connection = wire.connection(destination, port)
    connection.syn()
    connection.flow = wire.asked_one(OpenStream).flow
    return wire, connection


@failure(f"{SERVER}:443", "port-refused", "nobody listens", "start the server")
def refused_port() -> list[Recorded]:
    wire, connection = _dialled()
    wire.wait(0.02)
    wire.stack.stream_failed(connection.flow, effects.REFUSED, wire.now)
    return wire.capture()


@failure(f"{SERVER}:443", "unreachable", "did not answer, or has no route", "check route")
def unreachable_host() -> list[Recorded]:
    wire, connection = _dialled()
    wire.wait(3)
    wire.stack.stream_failed(connection.flow, effects.HOST_UNREACHABLE, wire.now)
    return wire.capture()


@failure(f"{SERVER}:443", "no-answer", "4 SYN in 7 s", "firewall")
def dead_upstream() -> list[Recorded]:
    wire, connection = _dialled()
    for pause in (1, 2, 4):
        wire.wait(pause)
        connection.put("S", seq=connection.isn, options=[("MSS", 1460)])
    return wire.capture()


@failure(f"{SERVER}:443", "reset-by-server", "with 6 B sent, 3 kB received", "the server's log")
def reset_mid_transfer() -> list[Recorded]:
    wire = RecordingWire(spec=NetworkSpec.enabled())
    connection = wire.open_tcp(SERVER, 443)
    connection.say(b"please")
    wire.stack.stream_received(connection.flow, bytes(3000))
    connection.hear_bytes()
    wire.wait(0.5)
    wire.stack.stream_reset(connection.flow, wire.now)
    return wire.capture()


@failure(f"{SERVER}:80", "closed-without-answer", "closed without an answer", "server's log")
def closed_without_answer() -> list[Recorded]:
    wire = RecordingWire(spec=NetworkSpec.enabled())
    connection = wire.open_tcp(SERVER, 80)
    connection.say(b"please")
    wire.wait(0.5)
    wire.stack.stream_ended(connection.flow)
    connection.hear()
    connection.ack()
    return wire.capture()


@failure(f"{SERVER}:80", "slow-upstream", "the server had nothing to send", "look at the server")
def slow_upstream() -> list[Recorded]:
    wire = RecordingWire(spec=NetworkSpec.enabled())
    connection = wire.open_tcp(SERVER, 80)
    connection.say(b"please")
    for _ in range(5):
        wire.wait(2)
        wire.stack.stream_received(connection.flow, bytes(1000))
        connection.hear_bytes()
    return wire.capture()


@failure(f"{SERVER}:80", "slow-connect", "the connection's opening", "the dial took that long")
def slow_dial() -> list[Recorded]:
    wire, connection = _dialled(port=80)
    wire.wait(2.5)
    wire.stack.stream_opened(connection.flow, wire.now)
    connection.finish_handshake()
    connection.say(b"please")
    wire.stack.stream_received(connection.flow, bytes(1000))
    connection.hear_bytes()
    return wire.capture()


@failure(f"{SERVER}:80", "zero-window", "the client shut its window", "application of the client")
def zero_window_for_good() -> list[Recorded]:
    wire = RecordingWire(spec=NetworkSpec.enabled())
    connection = wire.open_tcp(SERVER, 80, window=4000)
    connection.say(b"please")
    wire.stack.stream_received(connection.flow, bytes(20_000))
    connection.hear()
    connection.window = 0
    connection.ack()
    for _ in range(6):
        wire.wait(5)
        connection.hear()
        connection.ack()
    return wire.capture()


@failure(f"{SERVER}:80", "peer-silent", "the client fell silent", "gone or cut off")
def guest_gone() -> list[Recorded]:
    wire = RecordingWire(spec=NetworkSpec.enabled())
    connection = wire.open_tcp(SERVER, 80)
    connection.say(b"please")
    wire.stack.stream_received(connection.flow, bytes(3000))
    connection.hear_bytes()
    wire.stack.stream_received(connection.flow, bytes(3000))
    wire.wait(20)
    return wire.capture()


@failure("dns", "dns-failed", "SERVFAIL", "--dns-upstream")
def dead_resolver() -> list[Recorded]:
    wire = RecordingWire(spec=NetworkSpec.enabled())
    wire.send(udp(GATEWAY, 53, bytes(DNS(id=9, rd=1, qd=DNSQR(qname="pypi.org")))))
    query = wire.asked_one(ResolveUpstream).query
    wire.wait(6)
    wire.stack.dns_resolved(query, None, wire.now)
    return wire.capture()


@failure("dns", "dns-timeout", "no answer from 192.168.127.1:53 to 3 questions", "--dns-upstream")
def dns_timeout() -> list[Recorded]:
    wire = RecordingWire(spec=NetworkSpec.enabled())
    for _ in range(3):
        wire.send(udp(GATEWAY, 53, bytes(DNS(id=9, rd=1, qd=DNSQR(qname="pypi.org")))))
        wire.wait(5)
    return wire.capture()


@failure(f"{SERVER}:5000", "port-refused", "nobody listens on the UDP port")
def udp_port_unreachable() -> list[Recorded]:
    wire = RecordingWire(spec=NetworkSpec.enabled())
    wire.send(udp(SERVER, 5000, b"hello"))
    opened, _ = wire.asked()
    wire.stack.datagram_failed(opened.flow, bytes([203, 0, 113, 5]), 5000, effects.REFUSED, wire.now)
    return wire.capture()


@failure("dhcp", "dhcp-nak", "refused 02:00:00:00:00:02 the address 10.9.8.7", "begin anew")
def dhcp_nak() -> list[Recorded]:
    wire = RecordingWire(spec=NetworkSpec.enabled())
    bootp = BOOTP(chaddr=bytes.fromhex("020000000002"), xid=0x77)
    options = DHCP(options=[("message-type", "request"), ("requested_addr", "10.9.8.7"), "end"])
    packet = IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / bootp / options
    wire.send(packet, destination="ff:ff:ff:ff:ff:ff")
    return wire.capture()


# -- transfers on bad links --------------------------------------------------------------------------------------------

REQUEST = b"GET /big HTTP/1.1\r\nHost: files.example\r\n\r\n"


@failure("files.example", "loss", "retransmissions in", "lossy link")
def lossy_link() -> list[Recorded]:
    return simulated(engine_end(bytes(400_000)), GuestModel(100, REQUEST), Link(loss=0.05))


@failure("files.example", "slow-receiver", "its application reads too slowly", "the client's application")
def slow_receiver() -> list[Recorded]:
    guest = GuestModel(100, REQUEST, read_rate=50_000.0, window=20_000)
    return simulated(engine_end(bytes(300_000)), guest, Link())


@failure("10.0.0.1:80", "slow-receiver", "the server had no room", "the server's application")
def slow_upload() -> list[Recorded]:
    return simulated(engine_end(take_rate=200_000.0), GuestModel(100, bytes(2_500_000)), Link())


@failure("files.example", "small-window", "was full", "raise the receive buffer")
def small_window() -> list[Recorded]:
    guest = GuestModel(100, REQUEST, window=8000, scale=None)
    return simulated(engine_end(bytes(400_000)), guest, Link(delay=0.05))


@failure("files.example", "mtu-black-hole", "never arrive, shorter ones do", "--mtu")
def mtu_black_hole() -> list[Recorded]:
    def too_big(side: int, frame: bytes, _now: float) -> bool:
        return side == 0 and len(frame) > 1300

    return simulated(engine_end(bytes(200_000)), GuestModel(100, REQUEST), Link(), seconds=20, drop=too_big)


@failure("files.example", "loss", "went to repairing losses", "lossy link")
def lossy_link_captured_where_it_ends() -> list[Recorded]:
    """By whom the data is for: what was lost was never seen there, and the sender seems to pause."""
    return simulated(engine_end(bytes(400_000)), GuestModel(100, REQUEST), Link(delay=0.02, loss=0.04), at_guest=True)


@failure("files.example", "fine", "nothing wrong")
def long_way_captured_where_it_ends() -> list[Recorded]:
    """Nobody keeps anybody waiting: each flight takes its round trip."""
    return simulated(engine_end(bytes(600_000)), GuestModel(100, REQUEST), Link(delay=0.1), at_guest=True)


@failure("tcp", "http-503", "the server failed (HTTP 503)", "ask the server")
def failing_server() -> list[Recorded]:
    answer = b"HTTP/1.1 503 Service Unavailable\r\n\r\n"
    return simulated(engine_end(answer), GuestModel(100, REQUEST), Link())


# -- what other hosts do, in anybody's capture -------------------------------------------------------------------------

CLIENT_END, SERVER_END = "10.7.0.2", "10.7.0.9"


class Script:
    """A conversation between two hosts, captured between them: no direction, no verdicts."""

    def __init__(self) -> None:
        self._said: list[tuple[float, int, bytes, str]] = []
        self.now = 0.0

    def put(self, packet: Packet, after: float = 0.001) -> None:
        self.now += after
        self._said.append((self.now, 0, bytes(Ether(src="02:00:00:00:00:0a", dst="02:00:00:00:00:0b") / packet), ""))

    def up(self, flags: str, seq: int, ack: int, data: bytes = b"", after: float = 0.001, **fields: object) -> None:
        header = TCP(sport=40_000, dport=443, flags=flags, seq=seq, ack=ack, **fields)
        self.put(IP(src=CLIENT_END, dst=SERVER_END) / header / data, after)

    def down(self, flags: str, seq: int, ack: int, data: bytes = b"", after: float = 0.001, **fields: object) -> None:
        header = TCP(sport=443, dport=40_000, flags=flags, seq=seq, ack=ack, **fields)
        self.put(IP(src=SERVER_END, dst=CLIENT_END) / header / data, after)

    def handshake(self) -> None:
        self.up("S", 100, 0, options=[("MSS", 1460)])
        self.down("SA", 900, 101, options=[("MSS", 1460)])
        self.up("A", 101, 901)

    def capture(self) -> list[Recorded]:
        return numbered(self._said)


@failure("tcp", "half-open", "no longer knew the connection", "keepalives")
def half_open() -> list[Recorded]:
    script = Script()
    script.up("PA", 5000, 800, b"are you still there?")
    script.down("R", 800, 0)
    return script.capture()


@failure("tcp", "half-open", "after 3", "connect again")
def half_open_after_silence() -> list[Recorded]:
    script = Script()
    script.handshake()
    script.up("PA", 101, 901, b"hello")
    script.down("A", 901, 106)
    script.up("PA", 106, 901, b"again", after=3600)
    script.down("R", 901, 0)
    return script.capture()


@failure("tcp", "fine", "nothing wrong")
def reset_once_everything_is_there() -> list[Recorded]:
    script = Script()
    script.handshake()
    script.up("PA", 101, 901, b"please")
    script.down("PA", 901, 107, bytes(500))
    script.down("FA", 1401, 107)
    script.up("A", 107, 1401)
    script.up("R", 107, 0)
    return script.capture()


@failure("tcp", "reset-by-client", "the client reset the connection", "the client's log")
def client_that_gives_up() -> list[Recorded]:
    script = Script()
    script.handshake()
    script.up("PA", 101, 901, b"please")
    script.down("PA", 901, 107, bytes(500))
    script.up("RA", 107, 1401, after=0.2)
    return script.capture()


@failure("tcp", "wrong-sni", "does not know the name", "/etc/hosts")
def servers_own_refusal_of_a_name() -> list[Recorded]:
    script = Script()
    script.handshake()
    hello = hellos.python_ssl("typo.example")
    script.up("PA", 101, 901, hello)
    script.down("PA", 901, 101 + len(hello), bytes.fromhex("15030300020270"))
    script.down("FA", 908, 101 + len(hello))
    return script.capture()


@failure("tcp", "slow-sender", "the client's application had nothing to send", "waits for")
def slow_sender() -> list[Recorded]:
    script = Script()
    script.handshake()
    for number in range(10):
        script.up("PA", 101 + 100 * number, 901, bytes(100), after=1.0)
        script.down("A", 901, 201 + 100 * number)
    return script.capture()


@failure("tcp", "mtu-black-hole", "1400 bytes from the server never arrive", "ICMP")
def mtu_black_hole_with_word_from_the_router() -> list[Recorded]:
    script = Script()
    script.handshake()
    script.up("PA", 101, 901, b"please")
    script.down("A", 901, 107)
    for wait in (0.01, 0.3, 0.6, 1.2):
        script.down("A", 901, 107, bytes(1400), after=wait)
    return script.capture()


@failure("udp", "fragments-lost", "fragments never arrived", "fit the MTU")
def fragment_that_never_came() -> list[Recorded]:
    script = Script()
    whole = IP(src=CLIENT_END, dst=SERVER_END, id=5) / UDP(sport=4000, dport=7) / Raw(bytes(3000))
    first = whole.fragment(1400)[0]
    script.put(first)
    script.put(IP(src=SERVER_END, dst=CLIENT_END) / ICMP(type=11, code=1) / bytes(first)[:28], after=30.0)
    return script.capture()


@failure("tcp", "handshake-not-completed", "the client never acknowledged", "drops the answers")
def answers_that_do_not_arrive() -> list[Recorded]:
    script = Script()
    script.up("S", 100, 0)
    for wait in (0.01, 1, 2, 4):
        script.down("SA", 900, 101, after=wait)
    return script.capture()


@failure("typo.example", "no-such-name", "does not exist", "spelling")
def name_that_does_not_exist() -> list[Recorded]:
    script = Script()
    question = DNSQR(qname="typo.example")
    script.put(IP(src=CLIENT_END, dst="10.7.0.1") / UDP(sport=5353, dport=53) / DNS(id=3, rd=1, qd=question))
    answer = DNS(id=3, qr=1, rcode=3, qd=question)
    script.put(IP(src="10.7.0.1", dst=CLIENT_END) / UDP(sport=53, dport=5353) / answer, after=0.02)
    return script.capture()


@failure("ads.example", "sinkholed", "0.0.0.0", "allow_net")
def name_sinkholed_by_somebody() -> list[Recorded]:
    script = Script()
    question = DNSQR(qname="ads.example")
    script.put(IP(src=CLIENT_END, dst="10.7.0.1") / UDP(sport=5353, dport=53) / DNS(id=3, rd=1, qd=question))
    answer = DNS(id=3, qr=1, qd=question, an=DNSRR(rrname="ads.example", rdata="0.0.0.0", ttl=5))
    script.put(IP(src="10.7.0.1", dst=CLIENT_END) / UDP(sport=53, dport=5353) / answer, after=0.02)
    return script.capture()


@failure("dhcp", "dhcp-no-answer", "no DHCP server answered", "broadcasts")
def no_dhcp_server() -> list[Recorded]:
    script = Script()
    for wait in (0.0, 3.0, 6.0):
        bootp = BOOTP(chaddr=bytes.fromhex("02000000000a"), xid=5) / DHCP(options=[("message-type", "discover"), "end"])
        script.put(IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / bootp, after=wait)
    return script.capture()


@failure("10.7.0.77", "arp-unanswered", "nobody has 10.7.0.77", "unused")
def nobody_at_an_address() -> list[Recorded]:
    script = Script()
    for _ in range(3):
        script.put(ARP(op=1, psrc=CLIENT_END, pdst="10.7.0.77", hwsrc="02:00:00:00:00:0a"), after=1.0)
    return script.capture()


@failure("10.7.0.9", "ping-unanswered", "none of 3 echo requests", "drops pings")
def ping_without_an_answer() -> list[Recorded]:
    script = Script()
    for number in range(3):
        script.put(IP(src=CLIENT_END, dst=SERVER_END) / ICMP(type=8, id=4, seq=number) / b"abc", after=1.0)
    return script.capture()


@failure("tcp", "fine", "nothing wrong")
def nothing_wrong() -> list[Recorded]:
    return simulated(engine_end(bytes(300_000)), GuestModel(100, REQUEST), Link(delay=0.001))


__all__ = ["FROM_GUEST", "PREPARED", "TO_GUEST", "TRUE_SITE", "Failure"]
