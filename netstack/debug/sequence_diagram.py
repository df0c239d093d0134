"""A conversation as a sequence diagram: as text, and as the rows from which a picture is drawn.

Runs of plain segments of one side are one arrow, so that what is special is seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from netstack.debug.cause import count_text, size_text
from netstack.debug.explain_text import printable
from netstack.debug.seen_flows import DnsMessage, SeenFlow
from netstack.debug.seen_packets import address_text, endpoint_text
from netstack.debug.story_steps import first_words
from netstack.debug.tcp_timeline import CLIENT, SERVER, Mark
from netstack.wire import dhcp, icmp, tcp

MAX_ARROWS: Final = 400
"""Arrows of one diagram; what is between the first and the last of more is counted."""
_WIDTH: Final = 60
"""Characters between the two lines of the text."""
_SPECIAL: Final = frozenset(("retransmission", "out of order", "zero window", "window probe", "duplicate ACK"))


class Arrow(NamedTuple):
    """One row: `side` sent it at `time`. `special`: it is worth a colour. A side of -1 is a remark, not an arrow."""

    time: float
    side: int
    label: str
    special: bool = False


def arrows(flow: SeenFlow) -> list[Arrow]:
    """The rows of a conversation's diagram."""
    placed = list(_tcp_rows(flow))
    if flow.messages:
        placed += [(each.number, Arrow(each.time, side, _message_words(said))) for side, each, said in flow.messages]
    elif flow.timeline is None:
        for side, each in flow.packets:
            placed.append((each.number, Arrow(each.time, side, count_text(len(each.payload), "byte"))))
    for packet, verdict in flow.verdicts:
        placed.append((packet.number, Arrow(packet.time, -1, verdict.words, verdict.action == "refused")))
    for packet in flow.errors:
        if isinstance(packet.icmp, icmp.IcmpError):
            label = f"ICMP type {packet.icmp.type} code {packet.icmp.code} from {address_text(packet.source[0])}"
            placed.append((packet.number, Arrow(packet.time, SERVER, label, special=True)))
    rows = [row for _, row in sorted(placed, key=lambda each: each[0])]
    if len(rows) > MAX_ARROWS:
        half = MAX_ARROWS // 2
        left_out = Arrow(rows[half].time, -1, f"... {len(rows) - 2 * half} rows left out ...")
        rows = [*rows[:half], left_out, *rows[-half:]]
    return rows


def text(flow: SeenFlow) -> Iterator[str]:
    """The diagram as lines of text."""
    left, right = endpoint_text(flow.client), endpoint_text(flow.server)
    yield f"{'':>12}{left:<{_WIDTH - len(right) + 2}}{right}"
    for row in arrows(flow):
        label = printable(row.label)[: _WIDTH - 8]
        when = f"{row.time - flow.begin:>10.6f}"
        if row.side < 0:
            yield f"{when}  |{label:^{_WIDTH}}|"
        elif row.side == CLIENT:
            yield f"{when}  |{f' {label} ':-^{_WIDTH - 1}}>|"
        else:
            yield f"{when}  |<{f' {label} ':-^{_WIDTH - 1}}|"


def _message_words(message: DnsMessage | dhcp.DhcpMessage) -> str:
    if isinstance(message, DnsMessage):
        if not message.response:
            return f"{message.name} {message.qtype}?"
        found = ", ".join(map(address_text, message.addresses[:3]))
        return f"{message.rcode} {found or count_text(message.answers, 'record')}"
    kind = (message.options.get(dhcp.MESSAGE_TYPE) or b"\0")[0]
    words = {1: "DISCOVER", 2: "OFFER", 3: "REQUEST", 4: "DECLINE", 5: "ACK", 6: "NAK", 7: "RELEASE", 8: "INFORM"}
    given = f" {address_text(message.yiaddr)}" if any(message.yiaddr) else ""
    return f"{words.get(kind, f'message {kind}')}{given}"


def _tcp_rows(flow: SeenFlow) -> Iterator[tuple[int, Arrow]]:
    """Rows, with the number of the first packet in each."""
    run: list[Mark] = []
    timeline = flow.timeline
    if timeline is None:
        return
    judged = {packet.number for packet, _ in flow.verdicts}
    for mark in timeline.marks:
        if run and not _go_together(run[-1], mark, judged):
            yield run[0].packet.number, _run_row(flow, run)
            run = []
        run.append(mark)
    if run:
        yield run[0].packet.number, _run_row(flow, run)


def _go_together(last: Mark, mark: Mark, judged: set[int]) -> bool:
    """Whether two segments in a row are one arrow."""
    same = mark.side == last.side and (mark.end > mark.start) == (last.end > last.start)
    return same and _is_plain(mark) and _is_plain(last) and last.packet.number not in judged


def _is_plain(mark: Mark) -> bool:
    segment = mark.packet.segment
    return segment is not None and not segment.flags & (tcp.SYN | tcp.FIN | tcp.RST) and not mark.note


def _run_row(flow: SeenFlow, run: list[Mark]) -> Arrow:
    first = run[0]
    segment = first.packet.segment
    if segment is None:
        return Arrow(first.time, -1, "")
    size = sum(mark.end - mark.start for mark in run)
    if len(run) > 1:
        what = f"{len(run)} segments, {size_text(size)}" if size else f"{len(run)} ACKs to {run[-1].acknowledged:,}"
        return Arrow(first.time, first.side, what)
    parts = [word for bit, word in ((tcp.SYN, "SYN"), (tcp.FIN, "FIN"), (tcp.RST, "RST")) if segment.flags & bit]
    if segment.flags & (tcp.SYN | tcp.ACK) == tcp.SYN | tcp.ACK:
        parts = ["SYN-ACK"]
    if segment.flags & tcp.SYN:
        parts += [f"MSS {segment.options.mss}"] if segment.options.mss else []
        parts += [f"scale {segment.options.window_scale}"] if segment.options.window_scale is not None else []
        parts += ["SACK"] if segment.options.sack_permitted else []
    if segment.length:
        parts.append(f"{size_text(segment.length)} from {first.start:,}")
        if first.side == CLIENT and first.start == 1:
            _, _, said = first_words(flow)
            parts += [said] if said else []
    elif not parts:
        scale = flow.timeline.halves[first.side].scale if flow.timeline is not None else 0
        parts.append(f"ACK {first.acknowledged:,}, window {segment.window << scale:,}")
    if first.note:
        parts.append(first.note)
    if first.sack:
        parts.append("SACK " + " ".join(f"{left:,}-{right:,}" for left, right in first.sack))
    return Arrow(first.time, first.side, ", ".join(parts), first.note in _SPECIAL or bool(segment.flags & tcp.RST))
