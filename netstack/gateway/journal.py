"""Listens to the calls on one engine, and writes them into the captures that want to be replayed exactly.

It puts itself before the methods it wants to hear of, and takes itself away again: without a capture nothing of it is
there. A flush of the driver is a block, written before the frames that the flush sends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Set
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from guest_iface.link import BATCH, Frame
from netstack.journal import (
    BY_HAND,
    BY_NAME,
    CALLS,
    COPIES,
    FIXED,
    FRAMES,
    INJECTED,
    JUDGE,
    NOBODY,
    NOW,
    OFFLOAD,
    SEQUENCE,
    STOPPED,
    TAKE_BATCH,
    Call,
    encode,
)

if TYPE_CHECKING:
    from guest_iface.capture import Capture
    from netstack.gateway.driver import Driver

MAX_BLOCK: Final = 4 << 20
"""Bytes of records that wait for a flush to end; then they are a block of their own."""
MAX_RECORDS: Final = 1 << 16
"""Records that do; most have a few bytes, which nobody counts."""
TOUCHED: Final = "frames were held or damaged on the way from here on"
BEHIND: Final = "the capture could not be written fast enough"
TOO_MANY: Final = "there were more links than a capture describes"
SESSION: Final = "a question came to the name server from outside of the network"
_PACK_NOW: Final = FIXED[NOW].pack
_ALL_PASSED: Final = [encode(FRAMES, (count, b"")) for count in range(BATCH + 1)]
"""The records of batches that the engine was given whole, by their frames."""


class Journal:
    """One gateway's."""

    def __init__(self, driver: Driver, untouched: Callable[[], bool]) -> None:
        """`untouched` says whether the engine gets every frame as the captures see it."""
        self._driver = driver
        self._untouched = untouched
        self._captures: list[Capture] = []
        self._owed: list[tuple[Capture, str]] = []
        """Captures whose journal has ended, and was not told so yet: the reason."""
        self._records: list[bytes] = []
        self._size = 0
        self._now: float | None = None
        self._by_hand = False
        self._replaced: list[tuple[Any, str, Any]] = []
        """Owner, name, and what the owner itself had there: None where it was the class's."""

    @property
    def possible(self) -> bool:
        """Whether a capture that begins now can be replayed: the engine is as it was made, and gets every frame.

        Nobody can put himself before the methods of a compiled engine that is not made to be heard.
        """
        return self._driver.now < 0 and self._untouched() and hasattr(self._driver.stack, "__dict__")

    def begin(self, capture: Capture) -> None:
        """Write into a capture from now on: from before the engine's first flush."""
        if not self._captures:
            self._listen()
            judge = self._driver.stack.judge
            self._record(JUDGE, (judge.consults, judge.loosens))
        self._captures.append(capture)

    def end(self, capture: Capture) -> None:
        """Write into it no more. Does nothing if it had no journal."""
        if capture in self._captures:
            self._write()
            self._captures.remove(capture)
            if not self._captures:
                self._fall_silent()
        self._owed = [each for each in self._owed if each[0] is not capture]

    def touched(self) -> None:
        """From now on frames may be held, changed or lost on their way."""
        if self._captures:
            self._stop(TOUCHED)

    # -- being there -------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        driver, stack = self._driver, self._driver.stack
        for call in CALLS:
            owner = attrgetter(call.place)(stack) if call.place else stack
            self._replace(owner, call.name, self._listener(call, getattr(owner, call.name)))
        self._replace(stack, "dns_session", partial(self._dns_session, stack.dns_session))
        self._replace(driver.switch, "ingress", partial(self._ingress, driver.switch.ingress))
        self._replace(driver.switch, "segment_offload", partial(self._answered, OFFLOAD, driver.switch.segment_offload))
        self._replace(driver, "initial_sequence", partial(self._answered, SEQUENCE, driver.initial_sequence))
        self._replace(driver, "take_frames", partial(self._put_in, driver.take_frames))
        self._replace(driver, "put_frames", partial(self._put_out, driver.put_frames))

    def _replace(self, owner: Any, name: str, listener: Callable[..., Any]) -> None:
        self._replaced.append((owner, name, owner.__dict__.get(name)))
        setattr(owner, name, listener)

    def _fall_silent(self) -> None:
        for owner, name, own in self._replaced:
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)
        self._replaced.clear()
        self._records.clear()
        self._size = 0

    def _listener(self, call: Call, method: Callable[..., Any]) -> Callable[..., Any]:
        """What is called in place of a method of the engine. Those that come with every batch go the shortest way."""
        if call.code == TAKE_BATCH:
            return self._frames_listener(call, method)
        if call.letters == "t":
            return self._time_listener(call, method)
        if call.letters in ("n", "nn"):
            return self._numbers_listener(call, method)
        if call.letters == "nx":
            return self._text_listener(call, method)
        if call is BY_NAME["replace_policy"]:
            return partial(self._replace_policy, self._any_listener(call, method))
        return self._any_listener(call, method)

    def _any_listener(self, call: Call, method: Callable[..., Any]) -> Callable[..., Any]:
        code = call.code
        time = call.letters.find("t")
        text = call.letters.find("x")
        count = len(call.letters) + len(call.keywords)
        defaults = tuple(call.defaults.items())

        def listen(*given: Any, **named: Any) -> Any:
            values = given
            if len(given) < count:
                values += tuple(named.get(name, default) for name, default in defaults[len(given) - count :])
            if time >= 0:
                self._at(values[time])
                values = values[:time] + values[time + 1 :]
            elif text >= 0:
                values = (*values[:text], len(values[text]))
            self._record(code, values)
            return method(*given, **named)

        return listen

    def _time_listener(self, call: Call, method: Callable[[float], Any]) -> Callable[[float], Any]:
        record, add = encode(call.code, ()), self._records.append

        def listen(now: float) -> Any:
            if now != self._now:
                self._at(now)
            add(record)
            return method(now)

        return listen

    def _numbers_listener(self, call: Call, method: Callable[..., Any]) -> Callable[..., Any]:
        code, pack, add = call.code, FIXED[call.code].pack, self._records.append

        def listen(*numbers: int) -> Any:
            add(pack(code, *numbers))
            return method(*numbers)

        return listen

    def _text_listener(self, call: Call, method: Callable[[int, bytes], Any]) -> Callable[[int, bytes], Any]:
        code, pack, add = call.code, FIXED[call.code].pack, self._records.append

        def listen(number: int, text: bytes) -> Any:
            add(pack(code, number, len(text)))
            return method(number, text)

        return listen

    def _frames_listener(self, call: Call, method: Callable[..., Any]) -> Callable[..., Any]:
        code, add = call.code, self._records.append
        last = call.defaults["room"], call.defaults["held"]
        record = encode(code, last)

        def listen(now: float, room: int = last[0], held: Set[bytes] = last[1]) -> Any:
            nonlocal last, record
            if now != self._now:
                self._at(now)
            if (room, held) != last:  # seldom: as much as ever, and no guest is behind
                last = room, held
                record = encode(code, last)
            add(record)
            frames = method(now, room, held)
            self._flushed(frames)
            return frames

        return listen

    # -- what is heard -----------------------------------------------------------------------------------------------

    def _record(self, code: int, values: tuple[Any, ...]) -> None:
        record = encode(code, values)
        self._records.append(record)
        self._size += len(record)

    def _at(self, now: float) -> None:
        if self._size > MAX_BLOCK or len(self._records) > MAX_RECORDS:
            self._write()
        if now != self._now:
            self._now = now
            self._records.append(_PACK_NOW(NOW, now))

    def _ingress(self, method: Callable[..., list[bytes]], port: int, frames: list[bytes], now: float) -> list[bytes]:
        passed = method(port, frames, now)
        self._at(now)
        if self._by_hand:
            for frame in passed:
                self._record(INJECTED, (frame,))
        elif len(passed) == len(frames) <= BATCH:
            self._records.append(_ALL_PASSED[len(frames)])
        else:
            self._record(FRAMES, (len(frames), b"" if len(passed) == len(frames) else _which(frames, passed)))
        return passed

    def _put_in(self, method: Callable[..., None], port: int, frames: list[bytes]) -> None:
        self._by_hand = True
        try:
            method(port, frames)
        finally:
            self._by_hand = False

    def _put_out(self, method: Callable[..., None], port: int, frames: list[bytes]) -> None:
        if port in self._driver.links:
            self._write()
            for frame in frames:
                self._record(BY_HAND, (frame,))
            self._write()
        method(port, frames)

    def _answered(self, code: int, method: Callable[..., int], *given: Any) -> int:
        answer = method(*given)
        self._record(code, (answer,))
        return answer

    def _replace_policy(self, listen: Callable[..., None], *given: Any, **named: Any) -> None:
        judge = self._driver.stack.judge
        self._record(JUDGE, (judge.consults, judge.loosens))
        listen(*given, **named)

    def _dns_session(self, method: Callable[..., Any], *given: Any, **named: Any) -> Any:
        # What it is asked comes by no call on the stack.
        self._stop(SESSION)
        return method(*given, **named)

    def _flushed(self, frames: Collection[Frame]) -> None:
        links = self._driver.link_count
        if frames and not links:
            self._record(NOBODY, ())
        elif links > 1:
            heads = [frame if isinstance(frame, bytes) else frame[0] for frame in frames]
            copies = [self._driver.switch.spread(head[:6]) for head in heads]
            if any(count != 1 for count in copies):
                self._record(COPIES, (b"".join(count.to_bytes(2, "little") for count in copies),))
        self._write()

    # -- what is written ---------------------------------------------------------------------------------------------

    def _write(self) -> None:
        data = b"".join(self._records)
        self._records.clear()
        self._size = 0
        for capture in self._captures.copy():
            if not capture.journal(data):
                self._captures.remove(capture)
                self._owed.append((capture, TOO_MANY if capture.leaves_links_out else BEHIND))
        if self._owed:
            self._owed = [each for each in self._owed if not each[0].journal(encode(STOPPED, (each[1],)), anyhow=True)]
        if not self._captures and not self._owed:
            self._fall_silent()

    def _stop(self, why: str) -> None:
        """No more can be told."""
        self._write()
        self._record(STOPPED, (why,))
        self._write()
        self._captures.clear()
        if not self._owed:
            self._fall_silent()


def _which(frames: list[bytes], passed: list[bytes]) -> bytes:
    """A bit for each frame: 1 for those that passed. Those that did are in order."""
    bits = at = 0
    for number, frame in enumerate(frames):
        if at < len(passed) and passed[at] is frame:
            bits |= 1 << number
            at += 1
    return bits.to_bytes((len(frames) + 7) // 8, "little")
