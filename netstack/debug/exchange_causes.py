"""Names the cause of what happened to all that is not TCP: DNS questions, DHCP, datagrams, pings, ARP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from netstack.debug.cause import Cause, count_text, seconds_text
from netstack.debug.refusal_words import question
from netstack.debug.seen_flows import DnsMessage, SeenFlow
from netstack.debug.seen_packets import address_text, endpoint_text
from netstack.debug.tcp_causes import policy_refusal, unreachable_words
from netstack.debug.tcp_timeline import CLIENT, SERVER
from netstack.engine.verdict import ALLOW, REFUSE, Verdict
from netstack.wire import dhcp, icmp

SLOW_ANSWER: Final = 0.5
"""Seconds from which an answer to a DNS question or a ping counts as slow."""
_SINKHOLES: Final = frozenset((bytes(4), bytes(16)))


def exchange_cause(flow: SeenFlow) -> Cause:
    """What became of a conversation that is not TCP."""
    return _CAUSES[flow.kind](flow)


def _latency(flow: SeenFlow) -> float:
    """Seconds from the first question to the first answer; below 0 without one."""
    first: dict[int, float] = {}
    for side, packet in flow.packets:
        first.setdefault(side, packet.time)
    return first[SERVER] - first[CLIENT] if len(first) == 2 else -1.0


def _dns(flow: SeenFlow) -> Cause:
    asked = f"{flow.name or '.'} {flow.qtype}" if flow.qtype else "a question that cannot be read"
    policy = _dns_by_policy(flow) or policy_refusal(flow)
    if policy is not None:
        return policy
    answers = [message for side, _, message in flow.messages if side == SERVER and isinstance(message, DnsMessage)]
    if not answers:
        return _dns_unanswered(flow, asked)
    answer, took = answers[0], _latency(flow)
    within = seconds_text(max(took, 0.0))
    if answer.addresses and _SINKHOLES.issuperset(answer.addresses):
        return Cause(
            "sinkholed",
            f"{asked} was answered with {address_text(answer.addresses[0])}: a resolver that blocks the name",
            f"if that is netstack, add '{flow.name}' to allow_net; else ask whoever runs the resolver",
        )
    if answer.rcode == "NXDOMAIN":
        return Cause("no-such-name", f"{asked}: the name does not exist (NXDOMAIN in {within})", "check the spelling")
    if answer.rcode == "SERVFAIL":
        return Cause(
            "dns-failed",
            f"{asked}: the resolver found no answer (SERVFAIL after {within})",
            "its upstream does not answer, or the zone is broken: try --dns-upstream with another resolver",
        )
    if answer.rcode not in ("NOERROR", ""):
        return Cause("dns-refused", f"{asked}: the resolver said {answer.rcode} after {within}", "ask another resolver")
    if took >= SLOW_ANSWER:
        repeated = len([1 for side, _, _ in flow.messages if side == CLIENT])
        again = f", asked {repeated} times" if repeated > 1 else ""
        return Cause(
            "dns-slow", f"{asked} was answered after {within}{again}", "look at the resolver that is asked upstream"
        )
    shown = ", ".join(map(address_text, answer.addresses[:4])) or count_text(answer.answers, "record")
    if not answer.answers:
        return Cause("no-data", f"{asked}: the name exists, without records of this type ({within})", fine=True)
    return Cause("fine", f"{asked} is {shown} ({within})", fine=True)


def _dns_by_policy(flow: SeenFlow) -> Cause | None:
    for _, said in flow.questions:
        if said.who != "policy" or not said.action:
            continue
        action = ALLOW if said.action == "allowed" else REFUSE
        words = question(Verdict(action, said.step, said.reason, said.rule), said.name, said.qtype)
        withheld = said.reason in ("service-binding-withheld", "any-not-forwarded", "synthetic-is-ipv4")
        if action == REFUSE:
            return Cause("sinkholed", words.says, words.advice)
        return Cause(said.reason, words.says, words.advice, fine=withheld)
    return None


def _dns_unanswered(flow: SeenFlow, asked: str) -> Cause:
    where = endpoint_text(flow.server)
    for packet in flow.errors:
        if isinstance(packet.icmp, icmp.IcmpError):
            return Cause(
                "dns-unreachable",
                f"{asked}: {where} cannot be asked: {unreachable_words(packet.icmp)}",
                "use the gateway's resolver, or allow this one",
            )
    times = count_text(flow.counts[CLIENT], "question")
    return Cause(
        "dns-timeout",
        f"{asked}: no answer from {where} to {times} in {seconds_text(flow.end - flow.begin)}",
        "the resolver is down or the way to it is: try --dns-upstream with another one",
    )


def _dhcp(flow: SeenFlow) -> Cause:
    kinds = []
    for side, _, message in flow.messages:
        if isinstance(message, dhcp.DhcpMessage):
            kinds.append((side, (message.options.get(dhcp.MESSAGE_TYPE) or b"\0")[0], message))
    answered = [(kind, message) for side, kind, message in kinds if side == SERVER]
    last = answered[-1] if answered else None
    asked = {kind for side, kind, _ in kinds if side == CLIENT}
    if last is not None and last[0] == dhcp.NAK:
        wanted = next(
            (message.options.get(dhcp.REQUESTED_ADDRESS) or message.ciaddr for _, kind, message in reversed(kinds)
             if kind == dhcp.REQUEST),
            b"",
        )  # fmt: skip
        why = last[1].options.get(dhcp.MESSAGE, b"").decode("utf-8", "replace")
        said = f" ({why})" if why else ""
        return Cause(
            "dhcp-nak",
            f"the server refused {flow.name} the address {address_text(wanted)}{said}",
            "the client remembers a lease of another network, or the address is another guest's: it has to begin anew",
        )
    if not answered and asked & {dhcp.DISCOVER, dhcp.REQUEST, dhcp.INFORM}:
        times = count_text(flow.counts[CLIENT], "message")
        return Cause(
            "dhcp-no-answer",
            f"no DHCP server answered {flow.name}: {times} in {seconds_text(flow.end - flow.begin)}",
            "look whether the server runs, and whether broadcasts reach it",
        )
    if last is not None and last[0] == dhcp.OFFER:
        return Cause(
            "dhcp-not-taken",
            f"{flow.name} was offered {address_text(last[1].yiaddr)} and did not ask for it",
            "the offer does not reach the client, or it took another server's",
        )
    if last is not None and last[0] == dhcp.ACK:
        return Cause("fine", f"{flow.name} has {address_text(last[1].yiaddr)}", fine=True)
    return Cause("fine", f"{flow.name}: {count_text(len(kinds), 'message')}", fine=True)


def _udp(flow: SeenFlow) -> Cause:
    refused = policy_refusal(flow)
    if refused is not None:
        return refused
    where = endpoint_text(flow.server)
    for packet in flow.errors:
        if not isinstance(packet.icmp, icmp.IcmpError):
            continue
        if packet.icmp.type == icmp.UNREACHABLE and packet.icmp.code == icmp.PORT_UNREACHABLE:
            return Cause("port-refused", f"{where}: nobody listens on the UDP port", "start the server, or correct it")
        if packet.icmp.type == icmp.UNREACHABLE and packet.icmp.code == icmp.FRAGMENTATION_NEEDED:
            return Cause(
                "too-big",
                f"datagrams to {where} are too big for the way: {packet.icmp.next_hop_mtu} bytes fit",
                "send smaller datagrams, or lower the MTU",
            )
        if packet.icmp.type == icmp.TIME_EXCEEDED and packet.icmp.code == icmp.REASSEMBLY_EXPIRED:
            return Cause(
                "fragments-lost",
                f"a datagram to {where} was never whole: {unreachable_words(packet.icmp)}",
                "send datagrams that fit the MTU, or look for what drops fragments on the way",
            )
        return Cause(
            "unreachable", f"{where} cannot be reached: {unreachable_words(packet.icmp)}", "check route and host"
        )
    sent, received = flow.counts
    if not received and not _is_group(flow.server[0]):
        return Cause(
            "udp-unanswered",
            f"{where} did not answer {count_text(sent, 'datagram')} in {seconds_text(flow.end - flow.begin)}",
            "nobody is there, a firewall drops them, or the protocol expects no answer",
        )
    return Cause("fine", f"{count_text(sent, 'datagram')} sent, {received:,} received", fine=True)


def _is_group(address: bytes) -> bool:
    return address[:1] >= b"\xe0" if len(address) == 4 else address[:1] == b"\xff"


def _icmp(flow: SeenFlow) -> Cause:
    refused = policy_refusal(flow)
    if refused is not None:
        return refused
    where, (sent, received) = address_text(flow.server[0]), flow.counts
    for packet in flow.errors:
        if isinstance(packet.icmp, icmp.IcmpError):
            return Cause(
                "ping-unreachable",
                f"{where} cannot be pinged: {unreachable_words(packet.icmp)}",
                "check route and host",
            )
    if not received:
        return Cause(
            "ping-unanswered",
            f"{where} answered none of {count_text(sent, 'echo request')}",
            "the host is down, or drops pings",
        )
    if sent - received > max(1, sent // 50):
        return Cause("loss", f"{where}: {sent - received} of {sent} pings were lost", "look for a lossy link")
    took = _latency(flow)
    if took >= SLOW_ANSWER:
        return Cause("ping-slow", f"{where} answered after {seconds_text(took)}", "look at the way to it")
    return Cause(
        "fine", f"{where} answered {received:,} of {sent:,} pings, first in {seconds_text(max(took, 0))}", fine=True
    )


def _arp(flow: SeenFlow) -> Cause:
    wanted = address_text(flow.server[0])
    if not flow.counts[SERVER]:
        return Cause(
            "arp-unanswered",
            f"nobody has {wanted}: {count_text(flow.counts[CLIENT], 'ARP question')} unanswered",
            "the address is unused, or its host is down",
        )
    return Cause("fine", f"{wanted} was found", fine=True)


def _ip(flow: SeenFlow) -> Cause:
    refused = policy_refusal(flow)
    if refused is not None:
        return refused
    protocol = flow.packets[0][1].protocol if flow.packets else 0
    total = count_text(sum(flow.counts), "packet")
    return Cause("fine", f"{total} of IP protocol {protocol}", fine=True)


_CAUSES: Final[dict[str, Callable[[SeenFlow], Cause]]] = {
    "dns": _dns,
    "dhcp": _dhcp,
    "udp": _udp,
    "icmp": _icmp,
    "arp": _arp,
    "ip": _ip,
}
