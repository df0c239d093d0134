"""`/stats`: gvproxy's structure, with what this stack counts. A zero that cannot become anything else says so here.

One key is ours: `Links`, what each link can do. Go leaves out of an object what it does not know.

gVisor's names stay, whatever they are called here. Where its stack does something that ours never does (IPv6, IGMP,
forwarding between networks, cookies against SYN floods), the number is 0 because it is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from netstack.engine import snapshot
from netstack.wire import icmp

if TYPE_CHECKING:
    from netstack.gateway.run_command import Gateway

_ICMP_V4: Final = {
    "DstUnreachable": icmp.UNREACHABLE,
    "EchoReply": icmp.ECHO_REPLY,
    "EchoRequest": icmp.ECHO_REQUEST,
    "InfoReply": 16,
    "InfoRequest": 15,
    "ParamProblem": icmp.PARAMETER_PROBLEM,
    "Redirect": 5,
    "SrcQuench": 4,
    "TimeExceeded": icmp.TIME_EXCEEDED,
    "Timestamp": 13,
    "TimestampReply": 14,
}
_ICMP_V6: Final = (
    "DstUnreachable", "EchoReply", "EchoRequest", "MulticastListenerDone", "MulticastListenerQuery",
    "MulticastListenerReport", "MulticastListenerReportV2", "NeighborAdvert", "NeighborSolicit", "PacketTooBig",
    "ParamProblem", "RedirectMsg", "RouterAdvert", "RouterSolicit", "TimeExceeded",
)  # fmt: skip
_IGMP: Final = (
    "LeaveGroup", "MembershipQuery", "V1MembershipReport", "V2MembershipReport", "V3MembershipReport",
)  # fmt: skip
_FORWARDING: Final = (
    "Errors", "ExhaustedTTL", "ExtensionHeaderProblem", "HostUnreachable", "InitializingSource",
    "LinkLocalDestination", "LinkLocalSource", "NoMulticastPendingQueueBufferSpace", "OutgoingDeviceClosedForSend",
    "OutgoingDeviceNoBufferSpace", "PacketTooBig", "UnexpectedMulticastInputInterface", "UnknownOutputEndpoint",
    "Unrouteable",
)  # fmt: skip
_MALFORMED_ARP: Final = ("truncated", "type", "operation")
_MALFORMED_FRAGMENTS: Final = (
    "beyond-maximum", "duplicate", "empty", "length-changed", "overlap", "too-many", "unaligned",
)  # fmt: skip


def statistics(gateway: Gateway) -> dict[str, Any]:
    """All of it, in the order of gvproxy's keys."""
    stack = gateway.driver.stack
    links = gateway.driver.link_totals()
    drops = stack.dropped
    return {
        "ARP": _arp(gateway),
        "BytesReceived": links.rx_bytes,
        "BytesSent": links.tx_bytes,
        "DroppedPackets": sum(drops.values()) + links.rx_dropped + links.tx_dropped,
        "ICMP": _icmp(gateway),
        "IGMP": {
            "PacketsReceived": {
                "ChecksumErrors": 0, "IGMPPacketStats": dict.fromkeys(_IGMP, 0), "Invalid": 0, "Unrecognized": 0,
            },
            "PacketsSent": {"Dropped": 0, "IGMPPacketStats": dict.fromkeys(_IGMP, 0)},
        },
        "IP": _ip(gateway),
        "Links": _links(gateway),
        "NICs": {
            "DisabledRx": {"Bytes": 0, "Packets": drops.get("network-disabled", 0)},
            "MalformedL4RcvdPackets": _total(drops, "tcp-", _MALFORMED_TCP) + _total(drops, "udp-", _MALFORMED_UDP),
            "Neighbor": {
                "DroppedConfirmationForNoninitiatedNeighbor": 0,
                "DroppedInvalidLinkAddressConfirmations": drops.get("arp-bad-mac", 0),
                "UnreachableEntryLookups": drops.get("guest-does-not-answer-arp", 0),
            },
            "Rx": {"Bytes": links.rx_bytes, "Packets": links.rx_frames},
            "Tx": {"Bytes": links.tx_bytes, "Packets": links.tx_frames},
            "TxPacketsDroppedNoBufferSpace": links.tx_dropped,
        },
        "TCP": _tcp(gateway),
        "UDP": _udp(gateway),
    }  # fmt: skip


_MALFORMED_TCP: Final = ("truncated", "data-offset", "checksum")
_MALFORMED_UDP: Final = ("truncated", "length", "checksum")


def _total(drops: Mapping[str, int], prefix: str, reasons: tuple[str, ...]) -> int:
    return sum(drops.get(prefix + reason, 0) for reason in reasons)


def _arp(gateway: Gateway) -> dict[str, int]:
    stack = gateway.driver.stack
    neighbours, drops = stack.neighbours, stack.dropped
    malformed = _total(drops, "arp-", _MALFORMED_ARP)
    heard = neighbours.requests_received + neighbours.replies_received
    return {
        "DisabledPacketsReceived": 0,
        "MalformedPacketsReceived": malformed,
        "OutgoingRepliesDropped": 0,
        "OutgoingRepliesSent": neighbours.replies_sent,
        "OutgoingRequestBadLocalAddressErrors": 0,
        "OutgoingRequestInterfaceHasNoLocalAddressErrors": 0,
        "OutgoingRequestsDropped": drops.get("arp-too-many-unresolved", 0),
        "OutgoingRequestsSent": neighbours.requests_sent,
        "PacketsReceived": heard + malformed,
        "RepliesReceived": neighbours.replies_received,
        "RequestsReceived": neighbours.requests_received,
        "RequestsReceivedUnknownTargetAddress": neighbours.requests_for_others,
    }


def _icmp(gateway: Gateway) -> dict[str, Any]:
    stack = gateway.driver.stack
    counters, drops = stack.counters, stack.dropped
    nothing = dict.fromkeys(_ICMP_V6, 0)
    return {
        "V4": {
            "PacketsReceived": {
                "ICMPv4PacketStats": {name: counters.icmp_received[kind] for name, kind in _ICMP_V4.items()},
                "Invalid": _total(drops, "icmp-", ("truncated", "checksum", "code", "quote")),
            },
            "PacketsSent": {
                "Dropped": drops.get("icmp-error-not-allowed", 0),
                "ICMPv4PacketStats": {name: counters.icmp_sent[kind] for name, kind in _ICMP_V4.items()},
                "RateLimited": drops.get("icmp-error-rate", 0),
            },
        },
        "V6": {
            "PacketsReceived": {
                "ICMPv6PacketStats": nothing, "Invalid": 0, "RouterOnlyPacketsDroppedByHost": 0, "Unrecognized": 0,
            },
            "PacketsSent": {"Dropped": 0, "ICMPv6PacketStats": nothing, "RateLimited": 0},
        },
    }  # fmt: skip


def _ip(gateway: Gateway) -> dict[str, Any]:
    stack = gateway.driver.stack
    counters, drops = stack.counters, stack.dropped
    received = counters.packets_received
    malformed = _total(drops, "ip-", ("truncated", "version", "header-length", "total-length", "checksum"))
    sources = _total(drops, "ip-source-", ("is-gateway", "off-subnet", "of-another"))
    forwarding = dict.fromkeys(_FORWARDING, 0)
    forwarding["ExhaustedTTL"] = drops.get("ip-ttl-exceeded", 0)
    forwarding["HostUnreachable"] = drops.get("guest-does-not-answer-arp", 0)
    forwarding["Errors"] = forwarding["ExhaustedTTL"] + forwarding["HostUnreachable"]
    delivered = counters.segments_received + counters.datagrams_received + sum(counters.icmp_received.values())
    return {
        "DisabledPacketsReceived": 0,
        "Forwarding": forwarding,
        "IPTablesForwardDropped": 0,
        "IPTablesInputDropped": 0,
        "IPTablesOutputDropped": 0,
        "IPTablesPostroutingDropped": 0,
        "IPTablesPreroutingDropped": 0,
        "InvalidDestinationAddressesReceived": drops.get("ip-unicast-in-group-frame", 0),
        "InvalidSourceAddressesReceived": sources,
        "MalformedFragmentsReceived": _total(drops, "fragment-", _MALFORMED_FRAGMENTS),
        "MalformedPacketsReceived": malformed,
        "OptionRecordRouteReceived": 0,
        "OptionRouterAlertReceived": 0,
        "OptionTimestampReceived": 0,
        "OptionUnknownReceived": 0,
        "OutgoingPacketErrors": 0,
        "PacketsDelivered": delivered,
        "PacketsReceived": received,
        "PacketsSent": counters.packets_sent + counters.segments_sent,
        "ValidPacketsReceived": received - malformed,
    }


def _links(gateway: Gateway) -> dict[str, dict[str, int]]:
    """By name; truths are 0 and 1. Two of one name (fd 3 can come twice, after its end) are one."""
    traits = gateway.driver.stack.settings.link
    return {
        link.name: {
            "BatchCalls": int(link.capabilities.batch_calls),
            "LargestFrame": link.capabilities.largest_frame,
            "MTU": link.capabilities.mtu,
            "QueueFrames": link.capabilities.queue_frames,
            "SegmentBytes": traits.mss,
            "SegmentOffload": link.capabilities.segment_offload,
            "VerifiedChecksums": int(traits.verify_checksums),
            "WindowBytes": traits.window,
        }
        for link in gateway.driver.links.values()
    }


def _tcp(gateway: Gateway) -> dict[str, int]:
    stack = gateway.driver.engine
    counters, drops = stack.counters, stack.dropped
    now = snapshot.gauges(stack)
    losses = now.losses
    closed = counters.connections_opened + counters.connections_called - now.established
    return {
        "ActiveConnectionOpenings": counters.connections_called,
        "ChecksumErrors": drops.get("tcp-checksum", 0),
        "CurrentConnected": now.connected,
        "CurrentEstablished": now.established,
        "EstablishedClosed": max(0, closed),
        "EstablishedResets": counters.connections_reset,
        "EstablishedTimedout": counters.connections_silent,
        "FailedConnectionAttempts": counters.connections_failed,
        "FailedPortReservations": 0,
        "FastRecovery": losses.fast_starts,
        "FastRetransmit": losses.fast_repeats,
        "ForwardMaxInFlightDrop": drops.get("tcp-half-open-evicted", 0),
        "InvalidSegmentsReceived": _total(drops, "tcp-", _MALFORMED_TCP),
        "ListenOverflowAckDrop": 0,
        "ListenOverflowInvalidSynCookieRcvd": 0,
        "ListenOverflowSynCookieRcvd": 0,
        "ListenOverflowSynCookieSent": 0,
        "ListenOverflowSynDrop": 0,
        "PassiveConnectionOpenings": counters.connections_opened,
        "ResetsReceived": counters.resets_received,
        "ResetsSent": counters.resets_sent,
        "Retransmits": losses.repeats,
        "SACKRecovery": losses.sack_starts,
        "SegmentSendErrors": 0,
        "SegmentsAckedWithDSACK": losses.duplicates,
        "SegmentsSent": counters.segments_sent,
        "SlowStartRetransmits": losses.timeout_repeats,
        "SpuriousRTORecovery": 0,
        "SpuriousRecovery": 0,
        "TLPRecovery": losses.tail_probes,
        "Timeouts": losses.timeouts,
        "ValidSegmentsReceived": counters.segments_received,
    }


def _udp(gateway: Gateway) -> dict[str, int]:
    stack = gateway.driver.stack
    counters, drops = stack.counters, stack.dropped
    return {
        "ChecksumErrors": drops.get("udp-checksum", 0),
        "MalformedPacketsReceived": _total(drops, "udp-", ("truncated", "length")),
        "PacketSendErrors": 0,
        "PacketsReceived": counters.datagrams_received,
        "PacketsSent": counters.datagrams_sent,
        "ReceiveBufferErrors": 0,
        "UnknownPortErrors": counters.unserved_datagrams,
    }
