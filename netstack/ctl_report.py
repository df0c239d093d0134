"""What `netstack ctl` prints of flows, names and counters: tables as wide as the terminal, or plain lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from netstack.api_models import Counters, Flow, Flows, Link, LinkCounts, Question, Verdict

_PIPE_WIDTH: Final = 200
"""Columns where there is no terminal: nothing is cut for a program that reads."""
_HEADERS: Final = 18
"""Bytes of a frame besides its packet: Ethernet's, and a VLAN tag."""
_COLOURS: Final = {"allowed": "green", "refused": "red", "peek": "yellow"}


def console() -> Console:
    """Where it goes."""
    made = Console(highlight=False, markup=False)
    if not made.is_terminal:
        made.width = _PIPE_WIDTH
    return made


def size_words(size: float) -> str:
    """Bytes in a few characters."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def time_words(seconds: float) -> str:
    """A time in a few characters."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def plain(text: str) -> str:
    """A guest's words without what would move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def verdict_text(verdict: Verdict | None) -> Text:
    """A verdict in one line, coloured."""
    if verdict is None:
        return Text("")
    words = f"{verdict.verdict} at {verdict.step}: {verdict.reason}"
    if verdict.rule:
        words += f" {verdict.rule!r}"
    return Text(plain(words), style=_COLOURS.get(verdict.verdict, ""))


def place_words(flow: Flow) -> str:
    """Where a flow leads, by name if there is one."""
    if not flow.verdict.name:
        return flow.destination
    return f"{plain(flow.verdict.name)} ({flow.destination})"


def flow_table(flows: Sequence[Flow], title: str | None = None) -> Table:
    """Flows in a table."""
    table = Table(title=title, box=None, pad_edge=False, title_justify="left", header_style="bold")
    for name in ("flow", "", "guest", "to", "state", "sent", "received", "age", "verdict"):
        table.add_column(name, justify="right" if name in ("flow", "sent", "received", "age") else "left")
    for flow in flows:
        arrow = "->" if flow.direction == "out" else "<-"
        state = f"{flow.state}: {flow.ended}" if flow.ended and flow.ended != flow.state else flow.state
        table.add_row(
            str(flow.id),
            flow.protocol,
            flow.guest,
            f"{arrow} {place_words(flow)}",
            state,
            size_words(flow.sent),
            size_words(flow.received),
            time_words(flow.seconds),
            verdict_text(flow.verdict),
        )
    return table


def question_table(questions: Sequence[Question], title: str | None = None) -> Table:
    """DNS questions in a table."""
    table = Table(title=title, box=None, pad_edge=False, title_justify="left", header_style="bold")
    for name in ("time", "guest", "name", "type", "source", "answer", "took", "verdict"):
        table.add_column(name, justify="right" if name == "took" else "left")
    for each in questions:
        answer = f"{each.rcode}, {each.answers}" if each.rcode == "NOERROR" else each.rcode
        table.add_row(
            each.time[11:23],
            each.guest,
            plain(each.name),
            each.qtype,
            each.source,
            answer,
            time_words(each.seconds),
            verdict_text(each.verdict),
        )
    return table


def show_flows(found: Flows) -> None:
    """Print flows."""
    out = console()
    out.print(flow_table(found.flows))
    out.print(f"{found.open} open, {len(found.flows)} shown")


def show_flow(flow: Flow) -> None:
    """Print everything of one."""
    out = console()
    out.print(f"flow {flow.id}: {flow.protocol}, {flow.direction}, {flow.state}")
    out.print(f"  guest        {flow.guest}")
    out.print(f"  destination  {place_words(flow)}")
    if flow.dialled:
        out.print(f"  {'client' if flow.direction == 'in' else 'dialled'}      {flow.dialled}"[:200])
    out.print(Text("  verdict      ").append_text(verdict_text(flow.verdict)))
    if flow.verdict.name_source:
        out.print(f"  name by      {flow.verdict.name_source}")
    if flow.note:
        out.print(f"  note         {flow.note}")
    if flow.told:
        out.print(f"  told         {flow.told} ({flow.total} times so far)")
    if flow.ended:
        out.print(f"  ended        {flow.ended} at {flow.ended_at}")
    out.print(f"  bytes        {flow.sent} sent, {flow.received} received in {time_words(flow.seconds)}")
    connection = flow.connection
    if connection is None:
        return
    losses = connection.losses
    out.print(f"  TCP          {connection.state}, segments of {connection.segment} bytes")
    out.print(f"  round trip   {time_words(connection.round_trip)}, timeout {time_words(connection.timeout)}")
    out.print(
        f"  windows      guest {size_words(connection.guest_window)}, ours {size_words(connection.own_window)}, "
        f"congestion {size_words(connection.congestion_window)}{' (repairing losses)' if connection.recovering else ''}"
    )
    out.print(
        f"  waiting      {size_words(connection.in_flight)} on their way to the guest, "
        f"{size_words(connection.queued)} behind, {size_words(connection.unread)} for the host"
    )
    out.print(
        f"  losses       {losses.repeats} segments sent again, {losses.timeouts} timeouts, "
        f"{losses.recoveries} recoveries, {losses.duplicates} that came twice"
    )


def show_questions(questions: Sequence[Question]) -> None:
    """Print DNS questions."""
    console().print(question_table(questions))


def link_words(counts: LinkCounts) -> str:
    """What links have carried."""
    return (
        f"{size_words(counts.rx_bytes)} in {counts.rx_frames} frames from guests, "
        f"{size_words(counts.tx_bytes)} in {counts.tx_frames} to them"
    )


def capability_words(link: Link) -> str:
    """What a link can do, and what is done with its frames."""
    if link.segment_offload:
        large = f"offload: frames of {size_words(link.segment_offload)} both ways"
    elif link.largest_frame > link.mtu + _HEADERS:
        large = f"frames of {size_words(link.largest_frame)} from the guest"
    else:
        large = "no frames beyond the MTU"
    sums = "checksums verified" if link.verified_checksums else "checksums not looked at"
    calls = "batch calls" if link.batch_calls else "one call a frame"
    return (
        f"MTU {link.mtu}, segments of {link.segment}, {large}, {sums}, {calls}, "
        f"queue of {link.queue_frames} frames, windows of {size_words(link.window)}"
    )


def show_links(links: Sequence[Link]) -> None:
    """Print links, with their guests and what they have carried."""
    out = console()
    for link in links:
        out.print(f"{plain(link.name)}: {capability_words(link)}")
        out.print(f"  {link_words(link.counters)}; {', '.join(link.macs) or 'no guest heard yet'}")
        for reason, count in sorted(link.counters.drops.items()):
            out.print(f"  dropped: {count} {reason}")


def show_counters(counters: Counters, links: Sequence[Link] = ()) -> None:
    """Print totals, and what the links that are there can do."""
    out = console()
    for link in links:
        out.print(f"{plain(link.name)}: {capability_words(link)}")
    out.print(
        f"links        {link_words(counters.links)}, {counters.links.rx_dropped + counters.links.tx_dropped} lost"
    )
    out.print(
        f"TCP          {counters.connections_opened} opened, {counters.connections_established} established, "
        f"{counters.connections_failed} failed, {counters.connections_reset} reset; "
        f"{counters.segments_received} segments in, {counters.segments_sent} out, {counters.segments_repeated} again"
    )
    polled = counters.busy_poll
    out.print(
        f"busy polling {polled.batches} batches without a wake-up, {polled.patience_us:.0f} us now, "
        f"{polled.limit_us:.0f} at most"
    )
    out.print(f"UDP          {counters.datagrams_received} datagrams in, {counters.datagrams_sent} out")
    out.print("flows        " + ", ".join(f"{count} {name}" for name, count in counters.flows_open.items()))
    for title, counts in (("refused", counters.refused), ("dropped", counters.dropped)):
        for reason, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
            out.print(f"{title:12} {count} {reason}")
