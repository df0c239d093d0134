"""A guest on a virtual wire: speaks scapy to a whole Stack in virtual time, and plays the driver's side by hand.

Tests written with it read as dialogues: the guest `send`s, the engine's frames are taken by `hear`, what it asks of the
host by `asked`, and the host's answers are the Stack's own methods. Every frame the engine sends is checked on the way:
its lengths, its checksums (computed here), its size against the MTU, its addresses.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import count
from typing import TypeVar

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, TCP, UDP, defragment
from scapy.layers.l2 import ARP, Ether
from scapy.packet import NoPayload, Packet, Raw

from netstack.engine.effects import CloseStream, Effect, OpenStream, Report, SendStream, ShutdownStream
from netstack.engine.events import Event, FlowRefused
from netstack.engine.policy import FULL_ACCESS, PolicySettings
from netstack.engine.settings import LinkTraits, NetworkSettings
from netstack.engine.stack import Stack
from netstack.engine.verdict import REFUSE

GUEST_MAC, OTHER_MAC = "02:00:00:00:00:02", "02:00:00:00:00:99"
GATEWAY_MAC, BROADCAST_MAC = "5a:94:ef:e4:0c:dd", "ff:ff:ff:ff:ff:ff"
GUEST, GATEWAY, HOST_ALIAS, UNUSED = "192.168.127.2", "192.168.127.1", "192.168.127.254", "192.168.127.77"
SERVER, OTHER_SERVER = "203.0.113.5", "198.51.100.9"
LOOPBACK = "127.0.0.1"

ENGINE_ISN = 7_000
"""Every connection of the engine begins here, unless it takes the place of another one."""
GUEST_ISN = 1_000
START = 50_000.0

E = TypeVar("E")


def ip(text: str) -> bytes:
    """A packed address."""
    return bytes(map(int, text.split(".")))


def mac(text: str) -> bytes:
    """A packed MAC."""
    return bytes.fromhex(text.replace(":", ""))


def network(*, verify: bool = True, mtu: int = 1500, queue_frames: int = 1000, **changes: object) -> NetworkSettings:
    """gvproxy's network with some of its settings changed."""
    link = LinkTraits(mtu=mtu, queue_frames=queue_frames, verify_checksums=verify)
    return replace(NetworkSettings(link=link), **changes)  # type: ignore[arg-type]  # by name, as the tests write them


def internet_sum(data: bytes) -> int:
    """RFC 1071, word by word, as the textbook has it: 0xFFFF where the checksum in `data` is right."""
    data += bytes(len(data) % 2)
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def check_frame(raw: bytes, mtu: int) -> None:
    """What must hold for every frame of the engine, whatever it is about."""
    frame = Ether(raw)
    assert frame.src == GATEWAY_MAC, "the gateway speaks for itself only"
    assert frame.dst != GATEWAY_MAC
    assert len(raw) <= mtu + 14, f"a frame of {len(raw)} bytes on a link of MTU {mtu}"
    if frame.type == 0x0806:
        assert len(raw) == 42
        return
    assert frame.type == 0x0800
    packet = raw[14:]
    total, header = int.from_bytes(packet[2:4], "big"), (packet[0] & 15) * 4
    assert total == len(packet), "the IP length is the frame's"
    assert internet_sum(packet[:header]) == 0xFFFF, "IP checksum"
    flags_offset = int.from_bytes(packet[6:8], "big")
    if flags_offset & 0x3FFF:
        return  # the transport's checksum is over the whole datagram
    protocol, body = packet[9], packet[header:]
    pseudo = packet[12:20] + bytes((0, protocol)) + len(body).to_bytes(2, "big")
    if protocol == 17:
        assert int.from_bytes(body[4:6], "big") == len(body), "the UDP length is the packet's"
    assert internet_sum(body if protocol == 1 else pseudo + body) == 0xFFFF, f"checksum of protocol {protocol}"


class VirtualWire:
    """One Stack, one guest, one clock."""

    def __init__(
        self,
        settings: NetworkSettings | None = None,
        *,
        initial_sequence: Callable[[bytes, float], int] = lambda _key, _now: ENGINE_ISN,
        policy: PolicySettings = FULL_ACCESS,
        **changes: object,
    ) -> None:
        self.settings = settings or network(**changes)
        self.stack = Stack(self.settings, initial_sequence=initial_sequence, policy=policy)
        self.now = START
        self.events: list[Event] = []
        self._frames: list[bytes] = []
        self._effects: list[Effect] = []
        self._ports = count(40_000)

    # -- the guest's side --------------------------------------------------------------------------------------------

    def send(self, *packets: Packet | bytes, source: str = GUEST_MAC, destination: str = GATEWAY_MAC) -> None:
        """The guest sends packets (framed here), whole frames, or bytes, all of them in one batch."""
        for packet in packets:
            if isinstance(packet, bytes):
                frame = packet
            else:
                frame = bytes(packet if isinstance(packet, Ether) else Ether(src=source, dst=destination) / packet)
            self.stack.receive_frame(frame, self.now)
        self.flush()

    def hear(self) -> list[Ether]:
        """The frames that came since the last look, checked and decoded by scapy."""
        self.flush()
        raw, self._frames = self._frames, []
        for frame in raw:
            check_frame(frame, self.settings.link.mtu)
        return [Ether(frame) for frame in raw]

    def hear_one(self) -> Ether:
        """The one frame that came since the last look."""
        frames = self.hear()
        assert len(frames) == 1, [frame.summary() for frame in frames]
        return frames[0]

    def hear_raw(self) -> list[bytes]:
        """The same as bytes, unchecked."""
        self.flush()
        raw, self._frames = self._frames, []
        return raw

    def hears_nothing(self) -> bool:
        """Whether no frame came; says which did otherwise."""
        frames = self.hear()
        assert not frames, [frame.summary() for frame in frames]
        return True

    def reassembled(self) -> Packet:
        """The one packet whose fragments (or which as a whole) came since the last look, put together here."""
        packets = defragment([frame[IP] for frame in self.hear()])
        assert len(packets) == 1, packets
        return IP(bytes(packets[0]))

    # -- the host's side ---------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """The end of a batch, as the driver has it: effects until there are none, then frames."""
        while asked := self.stack.take_effects(self.now):
            for effect in asked:
                if isinstance(effect, Report):
                    self.events.append(effect.event)
                else:
                    self._effects.append(effect)
        self._frames += self.stack.take_frames(self.now)

    def asked(self) -> list[Effect]:
        """What was asked of the host since the last look, reports left out."""
        self.flush()
        effects, self._effects = self._effects, []
        return effects

    def asked_one(self, kind: type[E]) -> E:
        """The one thing asked of the host since the last look."""
        effects = self.asked()
        assert len(effects) == 1, effects
        assert isinstance(effects[0], kind), effects
        return effects[0]

    def asks_nothing(self) -> bool:
        """Whether nothing is asked of the host; says what is otherwise."""
        effects = self.asked()
        assert not effects, effects
        return True

    def told(self, kind: type[E]) -> list[E]:
        """All events of a kind so far."""
        self.flush()
        return [event for event in self.events if isinstance(event, kind)]

    def refused(self) -> list[tuple[str, tuple[bytes, int], str, str, str]]:
        """Every refusal so far as (protocol, destination, step, reason, told): one event each, and counted."""
        events = self.told(FlowRefused)
        assert all(event.total == 1 and event.verdict.action == REFUSE for event in events)
        assert self.stack.judge.refusals == Counter(event.verdict.reason for event in events)
        return [
            (event.protocol, event.destination, event.verdict.step, event.verdict.reason, event.told)
            for event in events
        ]

    @property
    def dropped(self) -> dict[str, int]:
        """Drops so far, by reason."""
        return self.stack.dropped

    # -- time --------------------------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        """Let time pass, waking the engine whenever it wants to be."""
        end = self.now + seconds
        self.flush()
        wakes = 0
        while (deadline := self.stack.next_deadline()) <= end:
            self.now = max(self.now, deadline)
            self.stack.advance(self.now)
            self.flush()
            wakes += 1
            assert wakes < 100_000, "the engine wants to be woken again and again"
        self.now = end
        self.flush()

    def rests(self, within: float = 0.0) -> bool:
        """Whether the engine wants no more wake-ups after some seconds. What is over may still have one coming."""
        self.wait(within)
        return self.stack.next_deadline() == math.inf

    # -- conversations -----------------------------------------------------------------------------------------------

    def arp(self, address: str, source: str = GUEST_MAC, sender: str = GUEST) -> str | None:
        """Ask who has an address; the MAC that answers, None when nobody does."""
        self.send(ARP(op="who-has", hwsrc=source, psrc=sender, pdst=address), source=source, destination=BROADCAST_MAC)
        answers = [frame[ARP] for frame in self.hear() if frame.haslayer(ARP)]
        assert all((answer.op, answer.psrc, answer.pdst) == (2, address, sender) for answer in answers)
        return answers[0].hwsrc if answers else None

    def dhcp(self, source: str = GUEST_MAC) -> str:
        """DISCOVER, OFFER, REQUEST, ACK; the address leased."""

        def ask(*options: object) -> Packet:
            bootp = BOOTP(chaddr=mac(source), xid=0x1234) / DHCP(options=[*options, "end"])
            packet = IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / bootp
            self.send(packet, source=source, destination=BROADCAST_MAC)
            return self.hear_one()

        offer = ask(("message-type", "discover"))
        assert ("message-type", 2) in offer[DHCP].options
        address = offer[BOOTP].yiaddr
        acknowledged = ask(("message-type", "request"), ("server_id", GATEWAY), ("requested_addr", address))
        assert ("message-type", 5) in acknowledged[DHCP].options
        assert acknowledged[BOOTP].yiaddr == address
        return str(address)

    def connection(self, destination: str = SERVER, port: int = 443, **options: object) -> GuestTcp:
        """A connection the guest has not begun yet."""
        return GuestTcp(self, destination, port, **options)  # type: ignore[arg-type]  # by name, as the tests write them

    def open_tcp(self, destination: str = SERVER, port: int = 443, **options: object) -> GuestTcp:
        """A connection with its dial and its handshake behind it."""
        connection = self.connection(destination, port, **options)
        connection.syn()
        connection.flow = self.asked_one(OpenStream).flow
        assert self.hears_nothing(), "no SYN-ACK before the host has connected"
        self.stack.stream_opened(connection.flow, self.now)
        connection.finish_handshake()
        return connection

    def next_port(self) -> int:
        """A source port no connection had yet."""
        return next(self._ports)

    def quoted(self, frame: Ether, kind: int, code: int, source: str = GATEWAY) -> Packet:
        """Assert that a frame is this ICMP error for the guest; the packet it quotes."""
        assert frame.dst == GUEST_MAC
        assert (frame[IP].src, frame[IP].dst, frame[ICMP].type, frame[ICMP].code) == (source, GUEST, kind, code)
        return IP(bytes(frame[ICMP].payload))


class GuestTcp:
    """The guest's side of one connection: numbers kept, segments made by scapy. Sends no timestamps, no SACK."""

    def __init__(
        self,
        wire: VirtualWire,
        destination: str,
        port: int,
        *,
        source_port: int | None = None,
        isn: int = GUEST_ISN,
        window: int = 65_535,
        source: str = GUEST,
        source_mac: str = GUEST_MAC,
    ) -> None:
        self.wire = wire
        self.destination, self.port = destination, port
        self.source, self.source_mac = source, source_mac
        self.source_port = wire.next_port() if source_port is None else source_port
        self.isn = isn
        self.sent = isn
        """The next number of ours."""
        self.heard = 0
        """The next number of the engine's."""
        self.window = window
        self.flow = 0

    def segment(self, flags: str, data: bytes = b"", **fields: object) -> Packet:
        """A packet of this connection; numbers and options as given, else as they are due."""
        values: dict[str, object] = {"seq": self.sent, "ack": self.heard if "A" in flags else 0, "window": self.window}
        header = TCP(sport=self.source_port, dport=self.port, flags=flags, **(values | fields))
        return (
            IP(src=self.source, dst=self.destination, id=1) / header / Raw(data)
            if data
            else (IP(src=self.source, dst=self.destination, id=1) / header)
        )

    def put(self, flags: str, data: bytes = b"", **fields: object) -> None:
        """Send a segment, in a batch of its own."""
        self.wire.send(self.segment(flags, data, **fields), source=self.source_mac)

    def syn(self, **fields: object) -> None:
        """SYN, with the MSS of Ethernet and no other option."""
        self.put("S", seq=self.isn, **({"options": [("MSS", 1460)]} | fields))
        self.sent = self.isn + 1

    def finish_handshake(self) -> TCP:
        """Take the SYN-ACK, acknowledge it."""
        answer = self.hear_one("SA")
        assert answer.ack == self.sent
        self.heard = answer.seq + 1
        self.ack()
        assert self.wire.hears_nothing()
        return answer

    def ack(self, **fields: object) -> None:
        """Acknowledge everything heard."""
        self.put("A", **fields)

    def say(self, data: bytes, flags: str = "PA") -> None:
        """Send bytes in order."""
        self.put(flags, data)
        self.sent += len(data)

    def fin(self) -> None:
        """End our side."""
        self.put("FA")
        self.sent += 1

    def rst(self) -> None:
        """Reset."""
        self.put("R")

    def hear(self) -> list[TCP]:
        """The segments that came for this connection; other frames are an error. Numbers are kept."""
        segments = []
        for frame in self.wire.hear():
            packet = frame[IP]
            assert frame.dst == self.source_mac
            assert (packet.src, packet.dst, packet.sport, packet.dport) == (
                self.destination, self.source, self.port, self.source_port,
            ), frame.summary()  # fmt: skip
            assert (packet.ttl, packet.flags, packet.frag) == (64, "DF", 0)
            segment = packet[TCP]
            if segment.seq == self.heard and "R" not in segment.flags:
                self.heard += len(payload_of(segment)) + ("F" in segment.flags)
            segments.append(segment)
        return segments

    def hear_one(self, flags: str) -> TCP:
        """The one segment that came; its flags."""
        segments = self.hear()
        assert [str(segment.flags) for segment in segments] == [flags]
        return segments[0]

    def hear_bytes(self) -> bytes:
        """The bytes that came in order, acknowledged."""
        data = b"".join(payload_of(segment) for segment in self.hear())
        self.ack()
        return data

    def close_both(self) -> None:
        """The host ends its side, then the guest; what must be asked of the host comes in this order."""
        self.wire.stack.stream_ended(self.flow)
        self.hear_one("FA")
        self.ack()
        self.fin()
        self.hear_one("A")
        assert self.wire.asked() == [ShutdownStream(self.flow), CloseStream(self.flow)]


def payload_of(segment: Packet) -> bytes:
    """The bytes a segment or datagram carries."""
    return b"" if isinstance(segment.payload, NoPayload) else bytes(segment.payload)


def sent_bytes(effects: Iterable[Effect]) -> bytes:
    """What SendStream effects hand to the host, joined; other effects are an error."""
    data = b""
    for effect in effects:
        assert isinstance(effect, SendStream), effect
        data += b"".join(map(bytes, effect.chunks))
    return data


def udp(destination: str, port: int, data: bytes = b"", source_port: int = 5000, **fields: object) -> Packet:
    """A datagram of the guest."""
    return IP(**({"src": GUEST, "dst": destination, "id": 2} | fields)) / UDP(sport=source_port, dport=port) / Raw(data)


def ping(destination: str, data: bytes = b"abc", sequence: int = 1, identifier: int = 77, **fields: object) -> Packet:
    """An echo request of the guest."""
    return (
        IP(**({"src": GUEST, "dst": destination, "id": 3} | fields))
        / ICMP(type=8, id=identifier, seq=sequence)
        / Raw(data)
    )
