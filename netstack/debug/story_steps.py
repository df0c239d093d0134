"""What happened in a conversation, step by step with times: how its name was learned, what was decided, how it was
opened, what was lost, which windows were shut, who ended it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from netstack.debug.cause import seconds_text, size_text
from netstack.debug.refusal_words import STEP_WORDS
from netstack.debug.seen_flows import DnsMessage, SeenFlow
from netstack.debug.seen_packets import address_text, endpoint_text
from netstack.debug.tcp_causes import tls_alert, unreachable_words
from netstack.debug.tcp_timeline import CLIENT, SERVER, Half, Timeline
from netstack.debug.verdict_comments import FlowVerdict
from netstack.wire import dhcp, http_head, icmp, tls_hello
from netstack.wire.quic_initial import InitialReader

MAX_PHASES: Final = 8
"""Losses and shut windows told one by one; the rest is counted."""
_DHCP_WORDS: Final = {
    dhcp.DISCOVER: "DISCOVER", dhcp.OFFER: "OFFER", dhcp.REQUEST: "REQUEST", dhcp.DECLINE: "DECLINE", dhcp.ACK: "ACK",
    dhcp.NAK: "NAK", dhcp.RELEASE: "RELEASE", dhcp.INFORM: "INFORM",
}  # fmt: skip
_SOURCES: Final = {"sni": "TLS SNI", "host": "HTTP Host", "quic": "QUIC SNI", "dns": "DNS"}


class Step(NamedTuple):
    """At `time`, seconds since 1970, this happened."""

    time: float
    text: str


def steps(flow: SeenFlow) -> list[Step]:
    """The story of a conversation, in order."""
    # Within one moment the order below counts: sorting keeps it.
    found = list(_learned(flow)) if flow.learned is not None else []
    if flow.timeline is not None:
        found += _tcp_opening(flow, flow.timeline)
        found += _verdicts(flow)
        found += _tcp_course(flow, flow.timeline)
    elif flow.kind == "dns":
        found += _dns(flow)
    elif flow.kind == "dhcp":
        found += _dhcp(flow)
    else:
        found += _datagrams(flow)
    if flow.timeline is None:
        found += _verdicts(flow)
    for packet in flow.errors:
        if isinstance(packet.icmp, icmp.IcmpError):
            found.append(Step(packet.time, f"ICMP error from {address_text(packet.source[0])}: {_error(packet.icmp)}"))
    return sorted(found, key=lambda step: step.time)


def name_of(flow: SeenFlow) -> tuple[str, str]:
    """What a flow is for, and where that was read: the verdict's name, the first bytes', or the DNS answer's."""
    if flow.kind in ("dns", "dhcp"):
        return flow.name, ""
    for _, said in reversed(flow.verdicts):
        if said.name:
            return said.name, said.source
    said_name, source, _ = first_words(flow)
    if said_name and said_name != address_text(flow.server[0]):
        return said_name, source
    return (flow.name, "dns") if flow.name else ("", "")


def first_words(flow: SeenFlow) -> tuple[str, str, str]:
    """What the client's first bytes say: the name, its source, and a few words."""
    head = bytes(flow.heads[CLIENT])
    if not head:
        return "", "", ""
    if flow.kind == "udp":
        if flow.server[1] != 443:
            return "", "", ""
        hello = InitialReader().feed(head)
        if isinstance(hello, tls_hello.ClientHello):
            return *_sni(hello, "quic"), f"QUIC hello {_hello_words(hello)}"
        return "", "", ""
    if flow.kind != "tcp":
        return "", "", ""
    if head[0] == tls_hello.HANDSHAKE:
        hello = tls_hello.HelloReader().feed(head)
        if isinstance(hello, tls_hello.ClientHello):
            return *_sni(hello, "sni"), f"TLS hello {_hello_words(hello)}"
        return "", "", f"a TLS hello that cannot be read ({hello})" if hello else "a TLS hello that is not complete"
    request = http_head.HeadReader().feed(head)
    if isinstance(request, http_head.RequestHead):
        host = _text(request.host)
        target = _text(request.target[:80])
        return host, "host" if host else "", f"HTTP {request.method} {target}" + (f", Host {host}" if host else "")
    return "", "", ""


def _sni(hello: tls_hello.ClientHello, source: str) -> tuple[str, str]:
    return (_text(hello.server_name), source) if hello.server_name else ("", "")


def _hello_words(hello: tls_hello.ClientHello) -> str:
    said = f"for {_text(hello.server_name)}" if hello.server_name else "without a name (no SNI)"
    if hello.alpn:
        said += f", ALPN {', '.join(_text(each) for each in hello.alpn[:4])}"
    return said + (", with ECH" if hello.has_ech else "")


def _text(data: bytes) -> str:
    return data.decode("ascii", "backslashreplace")


def _learned(flow: SeenFlow) -> Iterator[Step]:
    question = flow.learned
    if question is None:
        return
    asked = f"{question.name} {question.qtype}"
    yield Step(question.begin, f"the client asked {endpoint_text(question.server)} for {asked}")
    answer = next((packet for side, packet, _ in question.messages if side == SERVER), None)
    if answer is not None:
        took = seconds_text(answer.time - question.begin)
        yield Step(answer.time, f"DNS said {question.name} is {address_text(flow.server[0])}, after {took}")


def _verdicts(flow: SeenFlow) -> Iterator[Step]:
    for packet, said in flow.verdicts:
        yield Step(packet.time, verdict_sentence(said))
    for packet, asked in flow.questions:
        verdict = f"{asked.action} at {asked.step}: {asked.reason}" + (f" '{asked.rule}'" if asked.rule else "")
        lead = f"the policy: {verdict}; " if asked.action else ""
        yield Step(packet.time, f"{lead}{asked.who} says {asked.rcode}, {asked.answers} answers")


def verdict_sentence(said: FlowVerdict) -> str:
    """A verdict as a step of a story."""
    where = STEP_WORDS.get(said.step, f"at {said.step}")
    rule = f", rule '{said.rule}'" if said.rule else ""
    name = f" for {said.name} ({_SOURCES.get(said.source, said.source)})" if said.name else ""
    if said.action == "refused":
        return f"the policy refused it {where}{name}: {said.reason}{rule}; the guest was told: {said.told}"
    return f"the policy allowed it {where}{name}: {said.reason}{rule}; dialled {said.dialled}"


def _error(error: icmp.IcmpError) -> str:
    if error.type == icmp.UNREACHABLE and error.code == icmp.FRAGMENTATION_NEEDED:
        return f"fragmentation needed, {error.next_hop_mtu} bytes fit"
    return unreachable_words(error)


def _tcp_opening(flow: SeenFlow, timeline: Timeline) -> Iterator[Step]:
    """Up to the client's first bytes: what a verdict can rest on."""
    if timeline.syn_at:
        again = f" ({timeline.syns} times)" if timeline.syns > 1 else ""
        yield Step(timeline.syn_at, f"SYN from {endpoint_text(flow.client)} to {endpoint_text(flow.server)}{again}")
    elif flow.begin:
        yield Step(flow.begin, "the capture begins in the middle of the connection")
    if timeline.syn_ack_at:
        peeked = any(said.step in ("tls", "http") for _, said in flow.verdicts)
        by = " by the gateway itself: the first bytes have to say a name" if peeked else ""
        yield Step(timeline.syn_ack_at, f"SYN-ACK after {seconds_text(timeline.syn_ack_at - timeline.syn_at)}{by}")
    if timeline.syn_ack_at and timeline.established_at:
        took = seconds_text(timeline.established_at - timeline.syn_ack_at)
        yield Step(timeline.established_at, f"established, the client's answer took {took}")
    _, _, said = first_words(flow)
    if timeline.client.first_data:
        yield Step(timeline.client.first_data, f"the client said: {said}" if said else "first bytes from the client")


def _tcp_course(flow: SeenFlow, timeline: Timeline) -> Iterator[Step]:
    client, server = timeline.client, timeline.server
    if server.first_data:
        after = f" after {seconds_text(server.first_data - client.first_data)}" if client.first_data else ""
        yield Step(server.first_data, f"first bytes from the server{after}{_server_words(flow)}")
    for side, half in enumerate(timeline.halves):
        yield from _phases(half, ("client", "server")[side], ("client", "server")[1 - side])
        yield from _end(half, ("client", "server")[side], flow.begin)


def _server_words(flow: SeenFlow) -> str:
    head = bytes(flow.heads[SERVER][:200])
    alert = tls_alert(head)
    if alert is not None:
        return f": TLS alert {alert}"
    if head.startswith(b"HTTP/"):
        return f": {_text(head.splitlines()[0])[:80]}"
    if head.startswith(b"SSH-"):
        return f": {_text(head.splitlines()[0])[:80]}"
    return ""


def _phases(half: Half, sender: str, receiver: str) -> Iterator[Step]:
    for index, (start, end) in enumerate(half.loss_phases):
        if index == MAX_PHASES:
            yield Step(start, f"... and {len(half.loss_phases) - index} more losses of the {sender}'s segments")
            break
        took = f", repaired in {seconds_text(end - start)}" if end > start else ""
        yield Step(start, f"the {sender} repeated a segment: lost on the way{took}")
    for index, (start, end) in enumerate(half.zero_windows):
        if index == MAX_PHASES:
            yield Step(start, f"... and {len(half.zero_windows) - index} more times")
            break
        yield Step(start, f"the {receiver} shut its window for {seconds_text(end - start)}")


def _end(half: Half, who: str, begin: float) -> Iterator[Step]:
    sent = size_text(half.data_bytes)
    if half.fin_at:
        yield Step(half.fin_at, f"the {who} finished (FIN) {seconds_text(half.fin_at - begin)} in, having sent {sent}")
    if half.reset_at:
        yield Step(half.reset_at, f"the {who} reset (RST) {seconds_text(half.reset_at - begin)} in, having sent {sent}")


def _dns(flow: SeenFlow) -> Iterator[Step]:
    asked_at = 0.0
    for side, packet, message in flow.messages:
        if not isinstance(message, DnsMessage):
            continue
        if side == CLIENT:
            again = "again " if asked_at else ""
            asked_at = packet.time
            yield Step(packet.time, f"asked {endpoint_text(flow.server)} {again}for {message.name} {message.qtype}")
        else:
            found = ", ".join(map(address_text, message.addresses[:4]))
            cut = ", truncated" if message.truncated else ""
            shown = f"{message.rcode}, {found}" if found else f"{message.rcode}, {message.answers} records"
            yield Step(packet.time, f"answered {shown}{cut}, after {seconds_text(packet.time - asked_at)}")


def _dhcp(flow: SeenFlow) -> Iterator[Step]:
    for side, packet, message in flow.messages:
        if not isinstance(message, dhcp.DhcpMessage):
            continue
        kind = (message.options.get(dhcp.MESSAGE_TYPE) or b"\0")[0]
        word = _DHCP_WORDS.get(kind, f"message {kind}")
        wanted = message.options.get(dhcp.REQUESTED_ADDRESS)
        if side == CLIENT:
            yield Step(packet.time, f"client: {word}" + (f" for {address_text(wanted)}" if wanted else ""))
        else:
            given = f" {address_text(message.yiaddr)}" if any(message.yiaddr) else ""
            yield Step(packet.time, f"server: {word}{given}")


def _datagrams(flow: SeenFlow) -> Iterator[Step]:
    told = set()
    _, _, said = first_words(flow)
    for side, packet in flow.packets:
        if side in told:
            continue
        told.add(side)
        what = {"icmp": ("echo request", "echo reply"), "arp": ("ARP question", "ARP answer")}.get(
            flow.kind, ("datagram from the client", "datagram from the server")
        )[side]
        after = f", after {seconds_text(packet.time - flow.begin)}" if side == SERVER else ""
        words = f": {said}" if side == CLIENT and said else ""
        yield Step(packet.time, f"first {what}{after}{words}")
