"""The buffers and the scoreboard against models that keep every byte by its position."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from netstack.engine.tcp_buffers import (
    MAX_GATHERED,
    MAX_PIECES,
    MAX_SACKED_RANGES,
    ReceiveBuffer,
    Scoreboard,
    SendBuffer,
)

START = (1 << 32) - 40
"""Positions cross 2**32 in every example; they are Python ints and should not care."""

spans = st.tuples(st.integers(0, 120), st.integers(1, 40))


def ranges_of(positions: set[int]) -> list[tuple[int, int]]:
    """Maximal ranges [start, end) of a set of positions."""
    ranges: list[tuple[int, int]] = []
    for position in sorted(positions):
        if ranges and ranges[-1][1] == position:
            ranges[-1] = (ranges[-1][0], position + 1)
        else:
            ranges.append((position, position + 1))
    return ranges


# -- what comes -------------------------------------------------------------------------------------------------------


@settings(max_examples=400)
@given(st.lists(spans, max_size=40))
def test_what_is_inserted_in_any_order_comes_out_in_order_and_the_first_bytes_win(
    inserts: list[tuple[int, int]],
) -> None:
    buffer = ReceiveBuffer(START, 1000, 1000, 0, 100)
    held: dict[int, int] = {}
    expected = bytearray()
    reached = START
    for number, (offset, length) in enumerate(inserts):
        position = START + offset
        data = bytes([number]) * length
        before = reached
        if position + length <= reached:
            continue  # the receiver does not hand over what has come already
        for index in range(length):
            if position + index >= reached:
                held.setdefault(position + index, number)
        while reached in held:
            expected.append(held.pop(reached))
            reached += 1
        cut = max(0, before - position)
        assert buffer.insert(max(position, before), data[cut:]) is (reached > before)
        assert buffer.next == reached
        ranges = ranges_of(set(held))
        assert list(zip(buffer.gaps, buffer._ends, strict=True)) == ranges
        assert buffer._pieces == sum(map(len, buffer._runs))
        assert buffer.highest == (ranges[-1][1] if ranges else reached)
        blocks = buffer.sack_blocks(4)
        assert set(blocks) <= set(ranges)
        assert len(set(blocks)) == len(blocks) == min(4, len(ranges))
        if position > reached:
            assert blocks[0][0] <= position < blocks[0][1]
        for start, end in ranges:
            assert buffer.holds(start, end)
            assert buffer.holds(end - 1, end)
            assert not buffer.holds(start, end + 1)
            assert not buffer.holds(start - 1, end)
    assert b"".join(buffer.ready) == expected


def test_the_number_of_pieces_is_bounded_and_the_gap_can_still_be_filled() -> None:
    buffer = ReceiveBuffer(0, 1 << 20, 1 << 20, 0, 1460)
    for number in range(3 * MAX_PIECES):
        buffer.insert(2 + 2 * number, b"x")
    assert len(buffer.gaps) == MAX_PIECES
    assert buffer.insert(0, bytes(4 * MAX_PIECES))
    assert buffer.next == 4 * MAX_PIECES
    assert not buffer.gaps
    assert buffer._pieces == 0
    assert b"".join(buffer.ready).count(b"x") == MAX_PIECES


def test_a_mark_keeps_its_place_beyond_a_gap() -> None:
    buffer = ReceiveBuffer(0, 1000, 1000, 0, 100)
    buffer.mark(10)
    assert buffer.gaps
    assert buffer.insert(0, b"0123456789")
    assert buffer.next == 10
    assert not buffer.gaps
    assert buffer.ready == [b"0123456789"]


@settings(max_examples=300)
@given(
    shift=st.integers(0, 14),
    limit=st.integers(200, 70_000),
    growth=st.integers(0, 3),
    mss=st.integers(48, 9000),
    steps=st.lists(
        st.tuples(st.sampled_from(["bytes", "sliver", "taken", "all"]), st.integers(0, 1 << 16)), max_size=80
    ),
)
def test_the_edge_never_moves_back_and_what_waits_is_bounded(
    shift: int, limit: int, growth: int, mss: int, steps: list[tuple[str, int]]
) -> None:
    """A guest that sends up to the last byte offered, to a host that takes what it likes."""
    limit_max = limit << growth
    buffer = ReceiveBuffer(START, limit, limit_max, shift, mss)
    edge = START
    for what, amount in [("all", 0), *steps]:
        if what in ("bytes", "sliver"):
            count = min(amount if what == "bytes" else 1, buffer.edge - buffer.next)
            if count:
                buffer.insert(buffer.next, bytes(count))
            buffer.unsent += sum(map(len, buffer.ready))
            buffer.ready = []
        elif what == "taken":
            buffer.unsent -= min(amount, buffer.unsent)
        else:
            buffer.unsent = 0
        opened = buffer.window_opened()
        offered_before = buffer.edge
        window = buffer.advertise()
        assert 0 <= window <= 0xFFFF
        assert buffer.edge >= edge
        edge = buffer.edge
        assert buffer.next + (window << shift) <= edge
        assert edge - buffer.next <= max(limit_max, 1 << shift) + (1 << shift)
        assert buffer.unsent <= limit_max + limit_max // 4 + (1 << shift)
        if opened:
            assert edge - offered_before >= min(buffer.limit // 2, mss) - (1 << shift)


def test_a_guest_that_sends_byte_by_byte_does_not_fill_the_memory() -> None:
    buffer = ReceiveBuffer(0, 65536, 65536, 7, 1460)
    buffer.advertise()
    for _ in range(200_000):
        if buffer.edge == buffer.next:
            break
        buffer.next += 1
        buffer.unsent += 1
        buffer.advertise()
    assert buffer.edge == buffer.next
    assert buffer.unsent <= 65536 * 5 // 4 + 128


# -- what goes --------------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.sampled_from(["append", "acknowledge", "slice"]), st.integers(0, 5000), st.integers(0, 5000)))
)
def test_slices_are_the_bytes_that_were_appended(steps: list[tuple[str, int, int]]) -> None:
    buffer = SendBuffer(START)
    model = bytearray()
    for number, (what, first, second) in enumerate(steps):
        if what == "append":
            data = bytes([number % 256]) * (first + 1)
            buffer.append(data)
            model += data
        elif what == "acknowledge" and model:
            buffer.acknowledge(min(buffer.end, buffer.start + first))
        elif buffer.end > buffer.start:
            position = buffer.start + first % (buffer.end - buffer.start)
            length = 1 + second % (buffer.end - position)
            assert buffer.slice(position, length) == model[position - START : position - START + length]
        assert buffer.end - START == len(model)
    buffer.acknowledge(buffer.end)
    assert not buffer._chunks


def test_single_bytes_are_joined() -> None:
    buffer = SendBuffer(0)
    for _ in range(10_000):
        buffer.append(b"x")
    assert len(buffer._chunks) < 10
    assert buffer.slice(1234, 5000) == b"x" * 5000


@given(
    st.lists(st.binary(min_size=1, max_size=3_000), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 1 << 15), st.integers(1, 6_000)), min_size=1, max_size=12),
)
def test_pieces_are_the_slice_and_few(writes: list[bytes], cuts: list[tuple[int, int]]) -> None:
    text = b"".join(writes)
    buffer = SendBuffer(START)
    for each in writes:
        buffer.append(each)
    for offset, length in cuts:
        offset %= len(text)
        length = min(length, len(text) - offset)
        pieces = buffer.pieces(START + offset, length)
        assert b"".join(pieces) == buffer.slice(START + offset, length) == text[offset : offset + length]
        assert len(pieces) <= MAX_GATHERED


def test_pieces_are_what_was_written_itself() -> None:
    first, second = bytes(5_000), bytes(6_000)
    buffer = SendBuffer(START)
    buffer.append(first)
    buffer.append(second)
    whole, part = buffer.pieces(START, 7_000)
    assert whole is first
    assert isinstance(part, memoryview)
    assert part.obj is second


# -- what is known to have arrived ------------------------------------------------------------------------------------


def is_lost(position: int, sacked: set[int], mss: int) -> bool:
    """RFC 6675 section 4: IsLost by its words."""
    above = {other for other in sacked if other > position}
    return len(ranges_of(above)) >= 3 or len(above) > 2 * mss


@settings(max_examples=150)
@given(
    blocks=st.lists(st.tuples(st.integers(0, 100), st.integers(1, 30), st.booleans()), max_size=30),
    mss=st.integers(1, 20),
    probe=st.tuples(st.integers(0, 140), st.integers(0, 140)),
)
def test_the_scoreboard_knows_what_a_set_of_positions_knows(
    blocks: list[tuple[int, int, bool]], mss: int, probe: tuple[int, int]
) -> None:
    board = Scoreboard()
    model: set[int] = set()
    una = START
    for offset, length, acknowledges in blocks:
        if acknowledges:
            una += offset // 4
            board.acknowledge(una)
            model = {position for position in model if position >= una}
        else:
            left = una + offset
            news = set(range(left, left + length)) - model
            assert board.add(left, left + length) == len(news)
            model |= news
        assert board.sacked == len(model)
        assert board.highest == (max(model) + 1 if model else 0)
        left, right = una + probe[0], una + probe[1]
        missing = set(range(left, right)) - model
        assert board.missing(left, right) == len(missing)
        hole = ranges_of(missing)
        assert board.hole_at(left, right) == (hole[0] if hole else None)
        edge = board.loss_edge(mss)
        for position in set(range(una, una + 150)) - model:
            assert (position < edge) == is_lost(position, model, mss)
    board.clear()
    assert (board.sacked, board.highest, board.loss_edge(1)) == (0, 0, 0)


def test_f12_a_guest_cannot_make_the_scoreboard_grow() -> None:
    board = Scoreboard()
    for number in range(10_000):
        board.add(2 * number, 2 * number + 1)
    assert len(board._starts) == MAX_SACKED_RANGES
    assert board.sacked == MAX_SACKED_RANGES
    assert board.add(0, 20_000) == 20_000 - MAX_SACKED_RANGES
    assert len(board._starts) == 1
