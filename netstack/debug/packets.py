"""One frame, read as far as replaying, comparing and telling it needs. Never raises: what cannot be read has a word."""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from netstack.wire import arp, dhcp, dns, ethernet, icmp, ipv4, tcp
from netstack.wire.checksum import fold, pseudo_header_sum

_PORTS = Struct("!HH")
FLAG_LETTERS: Final = ((tcp.SYN, "S"), (tcp.FIN, "F"), (tcp.RST, "R"), (tcp.PSH, "P"), (tcp.URG, "U"))


class Packet(NamedTuple):
    """What is in a frame. `kind` is arp, tcp, udp, icmp, ip (another protocol), fragment, ipv6, or other; for the ones
    with ports, `source_port` and `destination_port` are set. `body` is what follows the last header that was read.

    For TCP `sequence`, `acknowledgement`, `flags`, `window` and `options` are the header's; for ICMP the ports are
    identifier and sequence number of an echo, and `flags` is type << 8 | code.
    """

    kind: str
    source: bytes = b""
    destination: bytes = b""
    source_port: int = 0
    destination_port: int = 0
    body: bytes = b""
    sequence: int = 0
    acknowledgement: int = 0
    flags: int = 0
    window: int = 0
    options: bytes = b""
    header: ipv4.Ipv4 | None = None
    fault: str = ""
    checksum: int = 0

    @property
    def key(self) -> bytes:
        """Addresses and ports as the sender has them: the key of the engine's tables for a guest's packet."""
        return self.source + self.destination + _PORTS.pack(self.source_port, self.destination_port)

    @property
    def is_unfinished(self) -> bool:
        """Whether a segment's checksum is the pseudo-header's sum: a network card was to add the rest."""
        if self.header is None:
            return False
        length = self.header.total_length - self.header.header_length
        return self.checksum == 0xFFFF - fold(pseudo_header_sum(self.source, self.destination, ipv4.TCP, length))

    @property
    def reversed_key(self) -> bytes:
        """The same as the receiver would write them."""
        return self.destination + self.source + _PORTS.pack(self.destination_port, self.source_port)


def read(frame: bytes) -> Packet:
    """Look into a frame."""
    kind = frame[12:14]
    if kind == ethernet.ARP:
        message = arp.parse(frame[ethernet.HEADER :])
        if isinstance(message, str):
            return Packet("arp", fault=message)
        return Packet("arp", message.sender_ip, message.target_ip, flags=message.operation, body=frame[14:42])
    if kind == ethernet.IPV6:
        return Packet("ipv6", body=frame[ethernet.HEADER :])
    if kind != ethernet.IPV4:
        return Packet("other", body=frame[ethernet.HEADER :], fault="" if len(frame) >= 14 else "frame-truncated")
    return read_ip(frame[ethernet.HEADER :])


def read_ip(packet: bytes) -> Packet:
    """Look into an IPv4 packet."""
    header = ipv4.parse(packet, verify_checksum=False)
    if isinstance(header, str):
        return Packet("ip", body=packet, fault=header)
    body = packet[header.header_length : header.total_length]
    ends = (header.source, header.destination)
    if header.more_fragments or header.fragment_offset:
        return Packet("fragment", *ends, body=body, header=header)
    if header.protocol == ipv4.TCP and len(body) >= tcp.HEADER:
        source, destination, sequence, acknowledgement, flags, window, checksum, _ = tcp.FIELDS.unpack_from(body)
        text = (flags >> 12) * 4
        if tcp.HEADER <= text <= len(body):
            options = body[tcp.HEADER : text]
            return Packet(
                "tcp", *ends, source, destination, body[text:], sequence, acknowledgement, flags & 0x3F, window,
                options, header, "", checksum,
            )  # fmt: skip
        return Packet("tcp", *ends, source, destination, header=header, fault="tcp-data-offset")
    if header.protocol == ipv4.UDP and len(body) >= 8:
        source, destination, length, _ = Struct("!HHHH").unpack_from(body)
        fault = "" if 8 <= length <= len(body) else "udp-length"
        return Packet("udp", *ends, source, destination, body[8 : max(8, length)], header=header, fault=fault)
    if header.protocol == ipv4.ICMP and len(body) >= icmp.HEADER:
        kind, code = body[0], body[1]
        identifier, number = _PORTS.unpack_from(body, 4)
        return Packet("icmp", *ends, identifier, number, body[8:], flags=kind << 8 | code, header=header)
    words = {ipv4.TCP: "tcp", ipv4.UDP: "udp", ipv4.ICMP: "icmp"}
    word = words.get(header.protocol, "ip")
    return Packet(word, *ends, body=body, header=header, fault=f"{word}-truncated" if word != "ip" else "")


def quoted(packet: Packet) -> Packet | None:
    """The packet an ICMP error speaks of; None when this is no error."""
    if packet.kind != "icmp" or packet.flags >> 8 not in icmp.ERROR_TYPES:
        return None
    head = packet.flags.to_bytes(2, "big") + bytes(2) + packet.source_port.to_bytes(2, "big") + bytes(2)
    message = icmp.parse(head + packet.body, verify_checksum=False)
    if not isinstance(message, icmp.IcmpError):
        return None
    quote = message.quote
    words = {ipv4.TCP: "tcp", ipv4.UDP: "udp", ipv4.ICMP: "icmp"}
    ports = quote.ports if quote.protocol in (ipv4.TCP, ipv4.UDP) else quote.echo
    return Packet(words.get(quote.protocol, "ip"), quote.source, quote.destination, *ports)


def dns_messages(stream: bytes) -> list[bytes]:
    """The whole messages at the start of a DNS connection's bytes (RFC 7766 section 8)."""
    found = []
    at = 0
    while at + 2 <= len(stream):
        end = at + 2 + int.from_bytes(stream[at : at + 2], "big")
        if end > len(stream):
            break
        found.append(stream[at + 2 : end])
        at = end
    return found


def dns_question(message: bytes) -> bytes | None:
    """The question of a DNS message, its name in lower case: by which an answer is found. None for what has none."""
    if len(message) < dns.HEADER or message[4:6] != b"\0\1":
        return None
    at = dns.HEADER
    while at < len(message) and message[at]:
        if message[at] > 63:
            return None
        at += 1 + message[at]
    end = at + 5
    # Label lengths are below the letters, so this changes letters only.
    return message[dns.HEADER : at + 1].lower() + message[at + 1 : end] if end <= len(message) else None


def dhcp_message(packet: Packet) -> dhcp.DhcpMessage | None:
    """The DHCP message in a datagram; None for anything else."""
    if packet.kind != "udp" or {packet.source_port, packet.destination_port} - {67, 68}:
        return None
    message = dhcp.parse(packet.body)
    return None if isinstance(message, str) else message


def flag_letters(flags: int) -> str:
    """Flags in tcpdump's letters; `.` is ACK."""
    return "".join(letter for bit, letter in FLAG_LETTERS if flags & bit) + ("." if flags & tcp.ACK else "")


def endpoints(key: bytes) -> str:
    """A four-tuple in words: `10.0.0.2:40000 > 192.0.2.1:80`."""
    source, destination = ipv4.format_address(key[:4]), ipv4.format_address(key[4:8])
    ports = _PORTS.unpack_from(key, 8)
    return f"{source}:{ports[0]} > {destination}:{ports[1]}"
