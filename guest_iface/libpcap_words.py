"""Words of libpcap's filters (pcap-filter(7)) besides those of `frame_filter`: TCP's flags, ports by name, short nets.

What libpcap can say and nothing here can is known too, so that an error says what to do instead.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Final

from guest_iface.frame_fields import ARP, ICMP, ICMP6, IPV4, IPV6, TCP, UDP, Fields

_OPERAND: Final = r"(?:\([^()]*\)|[\w-]+(?:\|[\w-]+)*)"
_SIGN: Final = r"(?:!=|==|<=|>=|=|<|>)"
BYTE_TEST: Final = (
    rf"\(\s*[a-z][a-z0-9]*\[[^\]]*\]\s*&\s*{_OPERAND}\s*\)\s*{_SIGN}\s*{_OPERAND}"
    rf"|[a-z][a-z0-9]*\[[^\]]*\](?:\s*&\s*{_OPERAND})?(?:\s*{_SIGN}\s*{_OPERAND})?"
)
"""A comparison of bytes of a header, as one word: `tcp[tcpflags] & (tcp-syn|tcp-fin) != 0`."""
_FLAG_TEST: Final = re.compile(
    r"\(?\s*tcp\[(?:tcpflags|13)\]"
    rf"(?:\s*&\s*(?P<mask>{_OPERAND}))?\s*\)?\s*(?P<sign>!=|==|=)\s*(?P<value>{_OPERAND})"
)
_FLAGS: Final = ("tcp-fin", "tcp-syn", "tcp-rst", "tcp-push", "tcp-ack", "tcp-urg", "tcp-ece", "tcp-cwr")
"""By their bits, the lowest first (RFC 9293 section 3.1, RFC 3168 section 6.1)."""
_ALL_FLAGS: Final = 0xFF

_PROTOCOL_NUMBERS: Final = {TCP: "tcp", UDP: "udp", ICMP: "icmp", ICMP6: "icmp6"}
_ETHERTYPES: Final = {IPV4: "ip", IPV6: "ip6", ARP: "arp"}
_ELSEWHERE: Final = {
    "broadcast": "write: ether host ff:ff:ff:ff:ff:ff",
    "multicast": "group addresses can be written: net 224.0.0.0/4, net ff00::/8",
    "vlan": "frames with tags are looked into, leave it out",
    "gateway": "write: ether host MAC and not host IP",
    "inbound": "write: dst host and the guest's address",
    "outbound": "write: src host and the guest's address",
    "less": "lengths cannot be chosen",
    "greater": "lengths cannot be chosen",
    "len": "lengths cannot be chosen",
    "sctp": "known are tcp, udp, icmp, icmp6",
    "rarp": "known are ip, ip6, arp",
}


@dataclass(frozen=True, slots=True)
class TcpFlags:
    """TCP's flags, those of `mask`, are `value`; or, not `equal`, are anything else."""

    mask: int
    value: int
    equal: bool

    def __str__(self) -> str:
        masked = "" if self.mask == _ALL_FLAGS else f" & {_flag_words(self.mask)}"
        return f"tcp[tcpflags]{masked} {'=' if self.equal else '!='} {_flag_words(self.value)}"

    def matches(self, fields: Fields) -> bool:
        """Whether they are. Fragments but the first have none."""
        return fields.tcp_flags >= 0 and (fields.tcp_flags & self.mask == self.value) is self.equal


def _flag_words(bits: int) -> str:
    words = [word for place, word in enumerate(_FLAGS) if bits >> place & 1]
    return "0" if not words else words[0] if len(words) == 1 else f"({'|'.join(words)})"


def _flag_bits(text: str) -> int:
    """Raises ValueError."""
    bits = 0
    for word in text.strip("()").split("|"):
        bits |= 1 << _FLAGS.index(word.strip()) if word.strip() in _FLAGS else int(word, 0)
    return bits


def byte_test(word: str) -> TcpFlags | str:
    """What a BYTE_TEST says; or what is wrong with it, or with asking that here."""
    found = _FLAG_TEST.fullmatch(word)
    if not found:
        if word.lstrip("( ").startswith(("tcp[tcpflags]", "tcp[13]")):
            return "expected a test of TCP's flags such as tcp[tcpflags] & (tcp-syn|tcp-fin) != 0"
        return "of the bytes of headers only TCP's flags can be compared here, as in tcp[tcpflags] & tcp-syn != 0"
    try:
        mask = _ALL_FLAGS if found["mask"] is None else _flag_bits(found["mask"])
        value = _flag_bits(found["value"])
    except ValueError:
        return f"expected flags by their names ({', '.join(_FLAGS)}) or numbers"
    if not 0 <= value <= _ALL_FLAGS or not 0 <= mask <= _ALL_FLAGS:
        return f"expected flags from 0 to {_ALL_FLAGS}"
    return TcpFlags(mask, value, found["sign"] != "!=")


def port_named(word: str) -> int | None:
    """The port that this host's list of services has for a name; None for no name of one."""
    try:
        return socket.getservbyname(word)
    except (OSError, UnicodeError):
        return None


def short_network(text: str, mask: str | None) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """`10`, `192.168`, `10.0.0.0/8`; with `mask` an address and its netmask. Raises ValueError."""
    if mask is not None:
        return ipaddress.ip_network(f"{text}/{mask}")
    if re.fullmatch(r"[0-9]{1,3}(?:\.[0-9]{1,3}){0,2}", text, re.ASCII):
        parts = text.split(".")
        return ipaddress.ip_network(f"{'.'.join([*parts, *['0'] * (4 - len(parts))])}/{8 * len(parts)}")
    return ipaddress.ip_network(text)


def protocol_word(kind: str, text: str) -> str | None:
    """The word for `ip proto 6`, `proto \\udp`, `ether proto 0x0806`; None if it has none. `kind` is ether, or IP."""
    known = _ETHERTYPES if kind == "ether" else _PROTOCOL_NUMBERS
    word = text.removeprefix("\\")
    if word in known.values():
        return word
    try:
        return known.get(int(word, 0))
    except ValueError:
        return None


def instead_of(word: str) -> str:
    """What to say here in place of a word of libpcap's; empty for a word that is none of those."""
    return _ELSEWHERE.get(word, "")
