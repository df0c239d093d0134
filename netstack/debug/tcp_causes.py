"""Names the cause of what a TCP connection did: refused, unanswered, reset, stuck, slow and by whose doing, or fine.

The order matters: what ended a flow comes before what slowed it, and what we decided before what packets hint at.
"""

from __future__ import annotations

from typing import Final

from netstack.debug import tcp_timeline as tl
from netstack.debug.cause import Cause, count_text, seconds_text, size_text
from netstack.debug.refusal_words import refusal
from netstack.debug.seen_flows import SeenFlow
from netstack.debug.seen_packets import Packet, endpoint_text
from netstack.debug.tcp_timeline import CLIENT, SERVER, Half, Timeline, median
from netstack.debug.verdict_comments import FlowVerdict
from netstack.engine.verdict import REFUSE, Verdict
from netstack.wire import icmp

SLOW_SHARE: Final = 0.3
"""The share of a flow's time from which one thing counts as what made it slow."""
SLOW_SECONDS: Final = 0.25
"""And the least time it has to have taken."""
HALF_OPEN_SILENCE: Final = 10.0
"""Seconds a side was silent before its reset says that it had forgotten the connection."""
QUICK_RTT: Final = 0.005
"""A window that is full for shorter than that limits nobody on a machine's own link."""
_SHRUNK: Final = 0.25
"""A window that fell below this part of its largest is one that the application did not empty."""

_ALERT: Final = 21
_ALERTS: Final = {
    40: "handshake_failure", 42: "bad_certificate", 45: "certificate_expired", 46: "certificate_unknown",
    48: "unknown_ca", 70: "protocol_version", 80: "internal_error", 112: "unrecognized_name",
    116: "certificate_required", 120: "no_application_protocol",
}  # fmt: skip

_UNREACHABLE: Final = {
    icmp.NET_UNREACHABLE: "there is no route to its network",
    icmp.HOST_UNREACHABLE: "the host did not answer, or has no route",
    icmp.PROTOCOL_UNREACHABLE: "the host does not know the protocol",
    icmp.PORT_UNREACHABLE: "nobody listens on the port",
    icmp.NET_PROHIBITED: "somebody on the way prohibits it",
    icmp.HOST_PROHIBITED: "somebody on the way prohibits it",
    icmp.ADMINISTRATIVELY_PROHIBITED: "somebody on the way prohibits it",
}


def tcp_cause(flow: SeenFlow) -> Cause:
    """What became of a TCP conversation."""
    timeline = flow.timeline or Timeline()
    return (
        policy_refusal(flow)
        or _never_opened(flow, timeline)
        or _turned_away(flow, timeline)
        or _stuck(flow, timeline)
        or _reset(flow, timeline)
        or _slow(flow, timeline)
    )


def policy_refusal(flow: SeenFlow) -> Cause | None:
    """The verdict beside the packets, if it is a refusal."""
    refused = next((said for _, said in reversed(flow.verdicts) if said.action == "refused"), None)
    if refused is None:
        return None
    verdict = as_verdict(refused)
    address, port = flow.server
    words = refusal(verdict, flow.kind, endpoint_text((address, 0)), port)
    return Cause(f"refused-{refused.reason}", words.says, words.advice)


def as_verdict(said: FlowVerdict) -> Verdict:
    """A refusal as the engine has it."""
    return Verdict(REFUSE, said.step, said.reason, said.rule, said.name, said.source)


def unreachable_words(error: icmp.IcmpError) -> str:
    """What an ICMP error means."""
    if error.type == icmp.TIME_EXCEEDED and error.code == icmp.REASSEMBLY_EXPIRED:
        return "some of a packet's fragments never arrived"
    if error.type == icmp.TIME_EXCEEDED:
        return "its packets go in a circle or too far (TTL exceeded)"
    return _UNREACHABLE.get(error.code, f"ICMP unreachable, code {error.code}")


def _icmp_errors(flow: SeenFlow) -> list[tuple[Packet, icmp.IcmpError]]:
    return [(packet, packet.icmp) for packet in flow.errors if isinstance(packet.icmp, icmp.IcmpError)]


def _never_opened(flow: SeenFlow, timeline: Timeline) -> Cause | None:
    if not timeline.saw_syn or timeline.established_at:
        return None
    where = endpoint_text(flow.server)
    if timeline.refused_at:
        took = seconds_text(timeline.refused_at - timeline.syn_at)
        return Cause(
            "port-refused",
            f"{where} refused the connection with a reset after {took}: nobody listens there",
            "start the server, or correct the port",
        )
    for _, error in _icmp_errors(flow):
        if error.type == icmp.UNREACHABLE and error.code != icmp.FRAGMENTATION_NEEDED:
            return Cause(
                "unreachable", f"{where} cannot be reached: {unreachable_words(error)}", "check route and host"
            )
    if timeline.syn_ack_at:
        return Cause(
            "handshake-not-completed",
            f"the server answered the SYN ({timeline.syn_acks} times), the client never acknowledged: "
            "its answers do not arrive, or it is a port scan",
            "look for what drops the answers on their way to the client",
        )
    waited = seconds_text(flow.end - flow.begin)
    return Cause(
        "no-answer",
        f"{where} did not answer: {timeline.syns} SYN in {waited} and nothing came back",
        "the host is down, a firewall drops the packets, or the address is wrong",
    )


def tls_alert(head: bytes | bytearray) -> int | None:
    """The description of the TLS alert a stream begins with; None for another one. RFC 8446 section 6."""
    if len(head) >= 7 and head[0] == _ALERT and head[1] == 3 and int.from_bytes(head[3:5], "big") == 2:
        return head[6]
    return None


def _turned_away(flow: SeenFlow, timeline: Timeline) -> Cause | None:
    """The server's first bytes say no."""
    head = flow.heads[SERVER]
    alert = tls_alert(head)
    if alert is not None:
        word = _ALERTS.get(alert, f"alert {alert}")
        if alert == 112:
            return Cause(
                "wrong-sni",
                f"the server does not know the name that the TLS hello asks for (alert {word})",
                "ask for a name that this server has: check the name, and /etc/hosts",
            )
        return Cause("tls-refused", f"the server ended the TLS handshake with alert {word}", "look at the TLS settings")
    if head.startswith(b"HTTP/1.1 403 ") and b"\r\n\r\nnetstack: " in head:
        line = bytes(head).partition(b"\r\n\r\n")[2].decode("ascii", "replace").strip()
        return Cause("refused-http", f"netstack answered 403: {line}", "add the host to allow_net")
    empty = not timeline.server.data_bytes and timeline.client.data_bytes
    client, server = timeline.client, timeline.server
    if empty and server.fin_at > client.last_data and (not client.fin_at or client.fin_at > server.fin_at):
        return Cause(
            "closed-without-answer",
            f"the server took {size_text(timeline.client.data_bytes)} and closed without an answer",
            "look at the server's log",
        )
    return None


def _stuck(flow: SeenFlow, timeline: Timeline) -> Cause | None:
    """Bytes that never arrived, or a window that never opened."""
    for side, half in enumerate(timeline.halves):
        who, whom = _names(side)
        needed = [error for _, error in _icmp_errors(flow) if error.code == icmp.FRAGMENTATION_NEEDED]
        length, times = half.stuck
        lost = times >= 2 and half.outstanding > 0
        bigger = length > max(half.largest_acknowledged, 1) * 1.1 and length > 500
        if lost and (needed or (bigger and not half.shut)):
            mtu = f" (ICMP says {needed[0].next_hop_mtu} bytes fit)" if needed else ""
            return Cause(
                "mtu-black-hole",
                f"segments of {length} bytes from {who} never arrive, shorter ones do: "
                f"an MTU on the way is smaller{mtu}",
                "lower the MTU (--mtu), clamp the MSS, or let ICMP 'fragmentation needed' through",
            )
        if half.shut and (half.probes or half.outstanding or half.keepalives) and not timeline.closed:
            since = half.zero_windows[-1][0] if half.zero_windows else flow.begin
            return Cause(
                "zero-window",
                f"{whom} shut its window {seconds_text(since - flow.begin)} in and did not open it again for "
                f"{seconds_text(flow.end - since)}: its application does not read",
                f"look at what the application of {whom} waits for",
            )
        if lost and times >= 3 and timeline.reset_by != 1 - side:
            return Cause(
                "peer-silent",
                f"{whom} fell silent: {times} retransmissions of the same {length} bytes went unanswered",
                f"{whom} is gone or cut off: look whether its host and the way to it live",
            )
    return None


def _names(side: int) -> tuple[str, str]:
    """A side, and the other one."""
    words = ("the client", "the server")
    return words[side], words[1 - side]


def _reset(flow: SeenFlow, timeline: Timeline) -> Cause | None:
    side = timeline.reset_by
    if side < 0:
        return None
    own, other = timeline.halves[side], timeline.halves[1 - side]
    who, whom = _names(side)
    if timeline.stray_reset and (not timeline.saw_syn or timeline.idle_before_reset >= HALF_OPEN_SILENCE):
        silence = f" after {seconds_text(timeline.idle_before_reset)} of silence" if timeline.idle_before_reset else ""
        return Cause(
            "half-open",
            f"{who} no longer knew the connection: it answered {whom}'s segment{silence} with a reset",
            f"{who} restarted, or something on the way forgot the flow: use keepalives, and connect again on a reset",
        )
    if other.fin_at and (own.fin_at or other.acknowledged >= other.fin_end - 1):
        return None  # nothing was to come any more: many clients close like that
    moved = f"{size_text(timeline.client.data_bytes)} sent, {size_text(timeline.server.data_bytes)} received"
    if not timeline.client.data_bytes and not timeline.server.data_bytes:
        return Cause(
            f"reset-by-{'client' if side == CLIENT else 'server'}",
            f"{who} reset the connection {seconds_text(own.reset_at - flow.begin)} in, before a byte was said",
            f"look at {who}'s application"
            if side == CLIENT
            else "look at the server's log, and at what limits connections",
        )
    after_fin = " after its end of stream" if own.fin_at else ""
    return Cause(
        f"reset-by-{'client' if side == CLIENT else 'server'}",
        f"{who} reset the connection{after_fin} {seconds_text(own.reset_at - flow.begin)} in, with {moved}",
        f"look at {who}'s log: an application that ends or fails with bytes unread resets",
    )


def _slow(flow: SeenFlow, timeline: Timeline) -> Cause:
    total = sum(timeline.shares.values())
    shares = timeline.shares
    candidates = (tl.RECEIVER, tl.LOSS, tl.UPSTREAM, tl.SENDER, tl.CONNECTING)
    worst = max(candidates, key=lambda word: shares[word])
    share = shares[worst] / total if total else 0.0
    lossy = _is_lossy(timeline, total)
    if share < SLOW_SHARE or shares[worst] < SLOW_SECONDS:
        worst = tl.LOSS if lossy else ""
    if not worst:
        return _fine(flow, timeline, total)
    share = shares[worst] / total
    took, percent = seconds_text(shares[worst]), f"{share:.0%}"
    down = timeline.server.data_bytes >= timeline.client.data_bytes
    half = timeline.server if down else timeline.client
    receiver = "the client" if down else "the server"
    if worst == tl.RECEIVER:
        return _receiver_limited(half, receiver, took, percent) or _fine(flow, timeline, total)
    if worst == tl.LOSS:
        lost = timeline.client.retransmissions + timeline.server.retransmissions
        segments = timeline.client.segments + timeline.server.segments
        return Cause(
            "loss",
            f"{percent} of the time ({took}) went to repairing losses: {lost} retransmissions in {segments} segments"
            + (", and each slows down what is sent after it" if shares[tl.NETWORK] > shares[tl.LOSS] else ""),
            "look for a lossy link or a full queue on the way",
        )
    if worst == tl.UPSTREAM:
        return Cause(
            "slow-upstream",
            f"{percent} of the time ({took}) the server had nothing to send while the client waited for it",
            "look at the server, or at the way from the gateway to it",
        )
    if worst == tl.SENDER:
        return Cause(
            "slow-sender",
            f"{percent} of the time ({took}) the client's application had nothing to send",
            "look at what the client's application waits for",
        )
    return Cause(
        "slow-connect",
        f"{percent} of the time ({took}) went to the connection's opening ({timeline.syns} SYN)",
        "look at the way to the server: the dial took that long, or SYNs were lost",
    )


def _is_lossy(timeline: Timeline, total: float) -> bool:
    """Whether losses slowed it beyond the time of their repair: each also halves what is sent after it."""
    lost = timeline.client.retransmissions + timeline.server.retransmissions
    segments = timeline.client.segments + timeline.server.segments
    repaired = timeline.shares[tl.LOSS]
    return lost >= 3 and lost * 100 >= segments and repaired >= max(0.1 * total, SLOW_SECONDS)


def _receiver_limited(half: Half, receiver: str, took: str, percent: str) -> Cause | None:
    shut = sum(end - begin for begin, end in half.zero_windows)
    if shut or 0 <= half.least_window < half.most_window * _SHRUNK:
        times = f", shut {count_text(len(half.zero_windows), 'time')} for {seconds_text(shut)}" if shut else ""
        return Cause(
            "slow-receiver",
            f"{percent} of the time ({took}) {receiver} had no room: its application reads too slowly{times}",
            f"look at what {receiver}'s application does with the data",
        )
    rtt = median(half.rtts)
    if rtt < QUICK_RTT:
        return None
    return Cause(
        "small-window",
        f"{receiver}'s window of {size_text(half.most_window)} was full {percent} of the time ({took}): "
        f"at a round trip of {seconds_text(rtt)} no more than {size_text(half.most_window / rtt)}/s fit through it",
        f"raise the receive buffer of {receiver}",
    )


def _fine(flow: SeenFlow, timeline: Timeline, total: float) -> Cause:
    moved = f"{size_text(timeline.client.data_bytes)} sent, {size_text(timeline.server.data_bytes)} received"
    took = seconds_text(flow.end - flow.begin)
    if total and timeline.shares[tl.IDLE] / total >= 0.5 and timeline.shares[tl.IDLE] >= SLOW_SECONDS:
        idle = seconds_text(timeline.shares[tl.IDLE])
        return Cause("idle", f"nothing wrong: {moved} in {took}, of which it was idle for {idle}", fine=True)
    end = "" if timeline.closed else ", still open at the end of the capture"
    status = _http_status(flow)
    if status >= 400:
        what = "the server failed" if status >= 500 else "the server refused the request"
        return Cause(
            f"http-{status}", f"{what} (HTTP {status}); the connection is fine: {moved} in {took}", "ask the server"
        )
    lost = timeline.client.retransmissions + timeline.server.retransmissions
    repaired = f", {count_text(lost, 'retransmission')}" if lost else ""
    return Cause("fine", f"nothing wrong: {moved} in {took}{repaired}{end}", fine=True)


def _http_status(flow: SeenFlow) -> int:
    """The status of the first answer, 0 where it is no HTTP/1."""
    head = bytes(flow.heads[SERVER][:13])
    return int(head[9:12]) if head.startswith(b"HTTP/1.") and head[9:12].isdigit() else 0
