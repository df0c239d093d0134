"""Where our answers differ from the recorded ones.

A capture of our own is compared byte by byte. Of another stack the bytes say little (its identification fields, its way
of cutting a stream into segments): there it is compared what an answer means, message by message, and a TCP connection
as a whole: was it opened, how much of each stream arrived, how did it end.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Final, NamedTuple

import dns.exception
import dns.message

from netstack.debug import packets
from netstack.debug.conversation import Conversation
from netstack.wire import arp, dhcp, ethernet, icmp, tcp

PATIENCE: Final = 0.25
"""Seconds in which our frame and the recorded one have to come, whichever is first. Of other stacks: SLOW_PATIENCE."""
SLOW_PATIENCE: Final = 2.0
MAX_WAITING: Final = 8192
"""Frames that wait for their counterpart; the oldest makes room, and counts as different."""


class Difference(NamedTuple):
    """One place. `number` is the recorded frame's, 0 where there is none; `what` says in words what differs.

    `ours` and `recorded` are frames, empty where that side sent none, or where it is about a whole connection.
    """

    number: int
    time: float
    what: str
    ours: bytes = b""
    recorded: bytes = b""


class _Waiting(NamedTuple):
    number: int
    time: float
    frame: bytes
    subject: Hashable
    meaning: Hashable


class Comparison:
    """Takes both sides' frames as they come; gives differences once it is sure of them."""

    def __init__(self, *, exact: bool) -> None:
        """`exact`: byte by byte."""
        self.exact = exact
        self.compared = 0
        """Recorded frames (exact) or messages that had their like among ours."""
        self._patience = PATIENCE if exact else SLOW_PATIENCE
        self._ours: OrderedDict[int, _Waiting] = OrderedDict()
        self._theirs: OrderedDict[int, _Waiting] = OrderedDict()
        self._ours_by: dict[Hashable, deque[int]] = {}
        self._theirs_by: dict[Hashable, deque[int]] = {}
        self._last = 0

    def sent(self, frame: bytes, time: float) -> None:
        """A frame of ours."""
        subject, meaning = self._subject(frame)
        if subject is not None:
            self._add(self._ours, self._ours_by, _Waiting(0, time, frame, subject, meaning))

    def recorded(self, number: int, time: float, frame: bytes) -> None:
        """A frame of the recorded host side."""
        subject, meaning = self._subject(frame)
        if subject is not None:
            self._add(self._theirs, self._theirs_by, _Waiting(number, time, frame, subject, meaning))

    def matched(self) -> bool:
        """Whether every recorded frame so far has its like. Pairs what has come."""
        for place, theirs in list(self._theirs.items()):
            counterpart = self._like(theirs)
            if counterpart is not None:
                self._take(self._ours, self._ours_by, counterpart)
                self._take(self._theirs, self._theirs_by, place)
                self.compared += 1
        return not self._theirs

    def due(self, now: float, *, over: bool = False) -> list[Difference]:
        """What has waited for too long at `now`; with `over` everything that is left."""
        if not self._ours and not self._theirs:
            return []
        self.matched()
        found = []
        for place, theirs in list(self._theirs.items()):
            if not over and now - theirs.time <= self._patience and len(self._theirs) <= MAX_WAITING:
                break
            self._take(self._theirs, self._theirs_by, place)
            candidates = self._ours_by.get(theirs.subject)
            if candidates:
                ours = self._take(self._ours, self._ours_by, candidates[0])
                what = (
                    differing_fields(ours.frame, theirs.frame)
                    if self.exact
                    else f"the {_kind(theirs)} says something else"
                )
                found.append(Difference(theirs.number, theirs.time, what, ours.frame, theirs.frame))
            else:
                found.append(
                    Difference(theirs.number, theirs.time, "recorded, and not sent by us", recorded=theirs.frame)
                )
        for place, ours in list(self._ours.items()):
            if not over and now - ours.time <= self._patience and len(self._ours) <= MAX_WAITING:
                break
            self._take(self._ours, self._ours_by, place)
            found.append(Difference(0, ours.time, "sent by us, and not recorded", ours.frame))
        return found

    def _add(self, waiting: OrderedDict[int, _Waiting], by: dict[Hashable, deque[int]], entry: _Waiting) -> None:
        self._last += 1
        waiting[self._last] = entry
        by.setdefault(entry.subject, deque()).append(self._last)

    @staticmethod
    def _take(waiting: OrderedDict[int, _Waiting], by: dict[Hashable, deque[int]], place: int) -> _Waiting:
        entry = waiting.pop(place)
        places = by[entry.subject]
        places.remove(place)
        if not places:
            del by[entry.subject]
        return entry

    def _like(self, theirs: _Waiting) -> int | None:
        for place in self._ours_by.get(theirs.subject, ()):
            if self._ours[place].meaning == theirs.meaning:
                return place
        return None

    def _subject(self, frame: bytes) -> tuple[Hashable | None, Hashable]:
        """What a frame is about, and what it says of that. None for frames that are compared otherwise."""
        packet = packets.read(frame)
        if self.exact:
            if packet.kind == "tcp":
                return (packet.key, bool(packet.flags & tcp.RST)), frame
            return (packet.kind, packet.source, packet.destination, packet.source_port, packet.destination_port), frame
        return _meaning(packet)


def _meaning(packet: packets.Packet) -> tuple[Hashable | None, Hashable]:
    if packet.kind == "arp":
        return (("arp", packet.source), "reply") if packet.flags == arp.REPLY else (None, None)
    message = packets.dhcp_message(packet)
    if message is not None:
        kind = (message.options.get(dhcp.MESSAGE_TYPE) or b"\0")[0]
        return ("dhcp", message.xid), (kind, message.yiaddr)
    if packet.kind == "udp" and packet.source_port == 53:
        return ("dns", packet.destination, packet.destination_port, packet.body[:2]), _dns_meaning(packet.body)
    if packet.kind == "udp":
        return ("udp", packet.key), packet.body
    if packet.kind == "icmp" and packet.flags >> 8 == icmp.ECHO_REPLY:
        return ("echo", packet.source, packet.source_port, packet.destination_port), packet.body
    quoted = packets.quoted(packet)
    if quoted is not None and quoted.kind != "tcp":
        return ("error", quoted.key), packet.flags
    return None, None


def _dns_meaning(body: bytes) -> Hashable:
    """The code and the records, without their TTLs and order."""
    try:
        message = dns.message.from_wire(body, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError):
        return body[2:]
    records = sorted(f"{each.name} {item}".lower() for each in message.answer for item in each)
    return (int(message.rcode()), tuple(records))


def _kind(theirs: _Waiting) -> str:
    kind = theirs.subject[0] if isinstance(theirs.subject, tuple) else ""
    return f"{kind} answer"


# -- the bytes -------------------------------------------------------------------------------------------------------


def differing_fields(ours: bytes, recorded: bytes) -> str:
    """In words what is different about two frames that should be the same."""
    one, other = packets.read(ours), packets.read(recorded)
    if one.kind != other.kind:
        return f"we sent {one.kind}, recorded is {other.kind}"
    found = []
    if ours[: ethernet.HEADER] != recorded[: ethernet.HEADER]:
        found.append("Ethernet header")
    if one.header is not None and other.header is not None:
        for name in ("tos", "identification", "ttl", "source", "destination", "options"):
            a, b = getattr(one.header, name), getattr(other.header, name)
            if a != b:
                found.append(f"IP {name} {_shown(a)} for {_shown(b)}")
    if one.kind == "tcp":
        for name in ("sequence", "acknowledgement", "window"):
            a, b = getattr(one, name), getattr(other, name)
            if a != b:
                found.append(f"{name} {a} for {b}")
        if one.flags != other.flags:
            found.append(f"flags {packets.flag_letters(one.flags)} for {packets.flag_letters(other.flags)}")
        if one.options != other.options:
            found.append(_option_difference(one.options, other.options))
    elif one.flags != other.flags:
        found.append("type and code")
    if one.body != other.body:
        if len(one.body) != len(other.body):
            found.append(f"{len(one.body)} bytes for {len(other.body)}")
        else:
            at = next(index for index, pair in enumerate(zip(one.body, other.body, strict=True)) if pair[0] != pair[1])
            found.append(f"payload from byte {at}")
    return ", ".join(found) or "checksum or padding"


def _option_difference(ours: bytes, recorded: bytes) -> str:
    one, other = tcp.parse_options(ours), tcp.parse_options(recorded)
    if one._replace(timestamps=None) == other._replace(timestamps=None) and one.timestamps and other.timestamps:
        return f"time stamps {one.timestamps} for {other.timestamps}"
    return f"TCP options {ours.hex()} for {recorded.hex()}"


def _shown(value: object) -> str:
    return ".".join(map(str, value)) if isinstance(value, bytes) else str(value)


# -- connections -----------------------------------------------------------------------------------------------------


def connection_difference(conversation: Conversation) -> str:
    """How a connection went otherwise than recorded; empty when it went the same way. For captures of other stacks."""
    recorded, ours = conversation.answered, conversation.answered_by_us
    if recorded != ours:
        if not recorded:
            return ""  # the capture ends before an answer, or began after it
        return f"the SYN was answered with {ours or 'nothing'}; recorded is {recorded}"
    if recorded != "SYN-ACK":
        return ""
    found = []
    if conversation.ours_end < conversation.given:
        found.append(f"{conversation.ours_end} of {conversation.given} bytes reached the guest")
    text = conversation.text_recorded
    if conversation.guest_end is not None:
        text = min(text, conversation.guest_end)
    if conversation.took < text:
        found.append(f"{conversation.took} of {text} bytes of the guest's went out")
    if conversation.recorded_finished and not (conversation.ours_finished or conversation.ours_reset):
        found.append("the host's FIN was not passed on")
    if conversation.ours_reset and not conversation.recorded_reset:
        found.append("we reset it; recorded is no reset")
    return "; ".join(found)
