"""Frames out of capture files, one at a time: pcap and pcapng, both byte orders, any time resolution.

A file is read as a stream; what is held is one block. Ethernet frames come as they are. Raw IPv4 packets come with
`ethernet` False: whoever replays them knows who is the guest, and puts a header before them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import BinaryIO, Final, NamedTuple

from guest_iface.pcapng import CUSTOM, ENTERPRISE, JOURNAL
from netstack.config import ConfigError

UNKNOWN: Final = 0
INBOUND: Final = 1
"""From the guest, as guest_iface.capture has it (epb_flags, draft-ietf-opsawg-pcapng section 4.3.1)."""
OUTBOUND: Final = 2
MAX_BLOCK: Final = 16 << 20
"""Bytes of one block or packet; a length above it is damage."""

_PCAP_MAGIC: Final = {
    b"\xa1\xb2\xc3\xd4": (">", 1_000_000),
    b"\xd4\xc3\xb2\xa1": ("<", 1_000_000),
    b"\xa1\xb2\x3c\x4d": (">", 1_000_000_000),
    b"\x4d\x3c\xb2\xa1": ("<", 1_000_000_000),
}
_SECTION: Final = 0x0A0D0D0A
_INTERFACE: Final = 1
_OLD_PACKET: Final = 2
_SIMPLE_PACKET: Final = 3
_PACKET: Final = 6
_BYTE_ORDER: Final = {b"\x1a\x2b\x3c\x4d": ">", b"\x4d\x3c\x2b\x1a": "<"}

_COMMENT: Final = 1
_EPB_FLAGS: Final = 2
_SHB_USERAPPL: Final = 4
_IF_NAME: Final = 2
_IF_TSRESOL: Final = 9
_IF_TSOFFSET: Final = 14

ETHERNET: Final = 1
_RAW: Final = (12, 14, 101, 228)  # DLT_RAW as BSD numbers it twice, LINKTYPE_RAW, LINKTYPE_IPV4
_OTHER_LINK_TYPES: Final = {
    0: "BSD loopback; capture on an Ethernet interface",
    105: "802.11; capture on an Ethernet interface",
    113: "Linux 'any' interface; capture on one interface, as in tcpdump -i eth0",
    127: "802.11 with radiotap; capture on an Ethernet interface",
    276: "Linux 'any' interface; capture on one interface, as in tcpdump -i eth0",
}


class CaptureError(ConfigError):
    """A file that cannot be read, or not any further. The message names the file, the frame and what was expected."""

    def __init__(self, message: str) -> None:
        ValueError.__init__(self, message)
        self.key, self.value, self.expected = "capture", "", message


class Interface(NamedTuple):
    """Where frames were captured. `resolution`: ticks a second; `offset`: seconds to be added to its times."""

    name: str
    ethernet: bool
    resolution: int
    offset: int
    comment: str


class CapturedFrame(NamedTuple):
    """One frame. `number` counts from 1 as Wireshark does; `time` is nanoseconds since 1970.

    `length` is what it had on the wire; `data` may have less. `direction`: UNKNOWN, INBOUND (from the guest), OUTBOUND.
    """

    number: int
    time: int
    interface: int
    direction: int
    data: bytes
    length: int
    ethernet: bool
    comment: str
    journal: tuple[bytes, ...] = ()
    """What a capture of our own says between the frame before and this one (netstack.journal)."""


class CaptureReader:
    """One file. Iterate over it once; `application`, `comment` and `interfaces` grow as their blocks come by."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the file and read its first header. Raises CaptureError."""
        self.path = Path(path)
        self.interfaces: list[Interface] = []
        self.application = ""
        """The program that wrote the file, where it says so."""
        self.comment = ""
        """The comment of the file's first section."""
        self.size = 0
        """Bytes of the file, 0 where that is not known (a pipe)."""
        self.position = 0
        """Bytes read so far."""
        self.frames = 0
        self.journal: tuple[bytes, ...] = ()
        """Of the journal, what lies behind the frame that was read last."""
        self._order = "<"
        try:
            self._file: BinaryIO = self.path.open("rb")
            self.size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise CaptureError(f"{self.path}: {error.strerror}") from error
        try:
            self._begin()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._file.close()

    def __iter__(self) -> Iterator[CapturedFrame]:
        """The frames in file order. Raises CaptureError at the first that cannot be read."""
        try:
            yield from self._pcap() if self._is_pcap else self._pcapng()
        finally:
            self.close()

    def _fault(self, what: str) -> CaptureError:
        return CaptureError(f"{self.path}: after frame {self.frames}: {what}")

    def _read(self, count: int, what: str) -> bytes:
        try:
            data = self._file.read(count)
        except OSError as error:
            raise self._fault(str(error.strerror)) from error
        self.position += len(data)
        if len(data) < count:
            raise self._fault(f"the file is cut off within {what} ({len(data)} of {count} bytes)")
        return data

    def _begin(self) -> None:
        magic = self._file.read(4)
        self.position = len(magic)
        self._is_pcap = magic in _PCAP_MAGIC
        if self._is_pcap:
            self._order, resolution = _PCAP_MAGIC[magic]
            _, _, _, _, _, network = Struct(self._order + "HHiIII").unpack(self._read(20, "its header"))
            self._add_interface("", network & 0x0FFFFFFF, resolution, 0, "")
        elif magic == b"\x0a\x0d\x0d\x0a":
            self._section()
        elif magic[:2] == b"\x1f\x8b":
            raise CaptureError(f"{self.path}: gzip; expected pcap or pcapng: unpack it first")
        else:
            raise CaptureError(f"{self.path}: expected a pcap or pcapng file, found bytes {magic.hex(' ') or '(none)'}")

    def _add_interface(self, name: str, link_type: int, resolution: int, offset: int, comment: str) -> None:
        if link_type != ETHERNET and link_type not in _RAW:
            known = _OTHER_LINK_TYPES.get(link_type, "no Ethernet or IPv4 in it")
            raise CaptureError(f"{self.path}: link type {link_type} ({known}); expected Ethernet (1) or raw IPv4 (101)")
        self.interfaces.append(Interface(name, link_type == ETHERNET, resolution, offset, comment))

    # -- pcap ----------------------------------------------------------------------------------------------------------

    def _pcap(self) -> Iterator[CapturedFrame]:
        head = Struct(self._order + "IIII")
        interface = self.interfaces[0]
        scale = 1_000_000_000 // interface.resolution
        while lead := self._file.read(16):
            self.position += len(lead)
            if len(lead) < 16:
                raise self._fault(f"the file is cut off within a packet header ({len(lead)} of 16 bytes)")
            seconds, fraction, captured, length = head.unpack(lead)
            if captured > MAX_BLOCK:
                raise self._fault(f"a packet of {captured} bytes cannot be right")
            data = self._read(captured, "a packet")
            self.frames += 1
            time = seconds * 1_000_000_000 + fraction * scale
            yield CapturedFrame(self.frames, time, 0, UNKNOWN, data, length, interface.ethernet, "")

    # -- pcapng --------------------------------------------------------------------------------------------------------

    def _section(self) -> None:
        """A section header, whose type has been read: it says the byte order of what follows."""
        lead = self._read(8, "a section header")
        order = _BYTE_ORDER.get(lead[4:])
        if order is None:
            raise self._fault("a section header without a byte order")
        self._order = order
        (length,) = Struct(order + "I").unpack_from(lead)
        if not 28 <= length <= MAX_BLOCK or length % 4:
            raise self._fault(f"a section header of {length} bytes cannot be right")
        body = self._read(length - 12, "a section header")
        options = self._options(body, 12)
        if not self.frames:
            self.application = _text(options.get(_SHB_USERAPPL, b""))
            self.comment = _text(options.get(_COMMENT, b""))
        self.interfaces.clear()

    def _pcapng(self) -> Iterator[CapturedFrame]:
        while lead := self._file.read(4):
            self.position += len(lead)
            if lead == b"\x0a\x0d\x0d\x0a":
                self._section()
                continue
            head = lead + self._read(8 - len(lead), "a block header")
            kind, length = Struct(self._order + "II").unpack(head)
            if not 12 <= length <= MAX_BLOCK or length % 4:
                raise self._fault(f"a block of {length} bytes cannot be right")
            body = self._read(length - 8, "a block")[:-4]
            if kind == _INTERFACE:
                self._interface(body)
            elif kind == _PACKET:
                frame = self._packet(body)
                if self.journal:
                    frame, self.journal = frame._replace(journal=self.journal), ()
                yield frame
            elif kind == CUSTOM:
                self._custom(body)
            elif kind == _SIMPLE_PACKET:
                yield self._simple_packet(body)
            elif kind == _OLD_PACKET:
                raise self._fault("an obsolete Packet Block; convert the file with: editcap -F pcapng OLD NEW")
            # Others (name resolution, statistics, secrets) hold no frame.

    def _custom(self, body: bytes) -> None:
        """A block of some program's own: ours is the journal."""
        head = Struct(f"{self._order}I{len(JOURNAL)}sI")
        if len(body) < head.size or head.unpack_from(body)[:2] != (ENTERPRISE, JOURNAL):
            return
        length = head.unpack_from(body)[2]
        if head.size + length > len(body):
            raise self._fault("a block of the journal that is shorter than it says")
        self.journal += (body[head.size : head.size + length],)

    def _interface(self, body: bytes) -> None:
        if len(body) < 8:
            raise self._fault("an interface description that is too short")
        (link_type,) = Struct(self._order + "H").unpack_from(body)
        options = self._options(body, 8)
        resolution = 1_000_000
        if tick := options.get(_IF_TSRESOL):
            resolution = 2 ** (tick[0] & 0x7F) if tick[0] & 0x80 else 10 ** min(tick[0], 18)
        offset = 0
        if len(shift := options.get(_IF_TSOFFSET, b"")) == 8:
            (offset,) = Struct(self._order + "q").unpack(shift)
        name, comment = _text(options.get(_IF_NAME, b"")), _text(options.get(_COMMENT, b""))
        self._add_interface(name, link_type, resolution, offset, comment)

    def _packet(self, body: bytes) -> CapturedFrame:
        if len(body) < 20:
            raise self._fault("a packet block that is too short")
        number, high, low, captured, length = Struct(self._order + "IIIII").unpack_from(body)
        if number >= len(self.interfaces) or 20 + captured > len(body):
            raise self._fault("a packet block that names no interface, or is shorter than its packet")
        interface = self.interfaces[number]
        options = self._options(body, 20 + (captured + 3 & ~3))
        direction = UNKNOWN
        if len(flags := options.get(_EPB_FLAGS, b"")) == 4:
            (word,) = Struct(self._order + "I").unpack(flags)
            direction = word & 3 if word & 3 < 3 else UNKNOWN
        time = (high << 32 | low) * 1_000_000_000 // interface.resolution + interface.offset * 1_000_000_000
        self.frames += 1
        comment = _text(options.get(_COMMENT, b""))
        data = body[20 : 20 + captured]
        return CapturedFrame(self.frames, time, number, direction, data, length, interface.ethernet, comment)

    def _simple_packet(self, body: bytes) -> CapturedFrame:
        """Without time or interface number: the first interface, at time 0 (section 4.4)."""
        if len(body) < 4 or not self.interfaces:
            raise self._fault("a simple packet block without an interface")
        (length,) = Struct(self._order + "I").unpack_from(body)
        self.frames += 1
        data = body[4 : 4 + length]
        return CapturedFrame(self.frames, 0, 0, UNKNOWN, data, length, self.interfaces[0].ethernet, "")

    def _options(self, body: bytes, start: int) -> dict[int, bytes]:
        """The first of each option; comments that follow one another are joined. A damaged one ends the reading."""
        found: dict[int, bytes] = {}
        head = Struct(self._order + "HH")
        while start + 4 <= len(body):
            code, length = head.unpack_from(body, start)
            if not code or start + 4 + length > len(body):
                break
            value = body[start + 4 : start + 4 + length]
            if code in found and code == _COMMENT:
                found[code] += b"\n" + value
            else:
                found.setdefault(code, value)
            start += 4 + (length + 3 & ~3)
        return found


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
