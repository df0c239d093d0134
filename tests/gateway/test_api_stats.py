"""/stats has gvproxy's structure, key for key, and its numbers are those of what happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from api_client import served
from callee import ADDRESS, CLOSED, ECHO, until

# Every leaf of gvproxy's, `A.B` for the key B of the object A. Written down from what it says, not from ours.
_ICMP4 = """DstUnreachable EchoReply EchoRequest InfoReply InfoRequest ParamProblem Redirect SrcQuench TimeExceeded
    Timestamp TimestampReply"""
_ICMP6 = """DstUnreachable EchoReply EchoRequest MulticastListenerDone MulticastListenerQuery MulticastListenerReport
    MulticastListenerReportV2 NeighborAdvert NeighborSolicit PacketTooBig ParamProblem RedirectMsg RouterAdvert
    RouterSolicit TimeExceeded"""
_IGMP = "LeaveGroup MembershipQuery V1MembershipReport V2MembershipReport V3MembershipReport"
_LEAVES = {
    "": "BytesReceived BytesSent DroppedPackets",
    "ARP.": (
        "DisabledPacketsReceived MalformedPacketsReceived OutgoingRepliesDropped OutgoingRepliesSent "
        "OutgoingRequestBadLocalAddressErrors OutgoingRequestInterfaceHasNoLocalAddressErrors OutgoingRequestsDropped "
        "OutgoingRequestsSent PacketsReceived RepliesReceived RequestsReceived RequestsReceivedUnknownTargetAddress"
    ),
    "ICMP.V4.PacketsReceived.": "Invalid",
    "ICMP.V4.PacketsReceived.ICMPv4PacketStats.": _ICMP4,
    "ICMP.V4.PacketsSent.": "Dropped RateLimited",
    "ICMP.V4.PacketsSent.ICMPv4PacketStats.": _ICMP4,
    "ICMP.V6.PacketsReceived.": "Invalid RouterOnlyPacketsDroppedByHost Unrecognized",
    "ICMP.V6.PacketsReceived.ICMPv6PacketStats.": _ICMP6,
    "ICMP.V6.PacketsSent.": "Dropped RateLimited",
    "ICMP.V6.PacketsSent.ICMPv6PacketStats.": _ICMP6,
    "IGMP.PacketsReceived.": "ChecksumErrors Invalid Unrecognized",
    "IGMP.PacketsReceived.IGMPPacketStats.": _IGMP,
    "IGMP.PacketsSent.": "Dropped",
    "IGMP.PacketsSent.IGMPPacketStats.": _IGMP,
    "IP.": (
        "DisabledPacketsReceived IPTablesForwardDropped IPTablesInputDropped IPTablesOutputDropped "
        "IPTablesPostroutingDropped IPTablesPreroutingDropped InvalidDestinationAddressesReceived "
        "InvalidSourceAddressesReceived MalformedFragmentsReceived MalformedPacketsReceived OptionRecordRouteReceived "
        "OptionRouterAlertReceived OptionTimestampReceived OptionUnknownReceived OutgoingPacketErrors PacketsDelivered "
        "PacketsReceived PacketsSent ValidPacketsReceived"
    ),
    "IP.Forwarding.": (
        "Errors ExhaustedTTL ExtensionHeaderProblem HostUnreachable InitializingSource LinkLocalDestination "
        "LinkLocalSource NoMulticastPendingQueueBufferSpace OutgoingDeviceClosedForSend OutgoingDeviceNoBufferSpace "
        "PacketTooBig UnexpectedMulticastInputInterface UnknownOutputEndpoint Unrouteable"
    ),
    "NICs.": (
        "MalformedL4RcvdPackets TxPacketsDroppedNoBufferSpace Rx.Bytes Rx.Packets Tx.Bytes Tx.Packets DisabledRx.Bytes "
        "DisabledRx.Packets Neighbor.DroppedConfirmationForNoninitiatedNeighbor "
        "Neighbor.DroppedInvalidLinkAddressConfirmations Neighbor.UnreachableEntryLookups"
    ),
    "TCP.": (
        "ActiveConnectionOpenings ChecksumErrors CurrentConnected CurrentEstablished EstablishedClosed "
        "EstablishedResets EstablishedTimedout FailedConnectionAttempts FailedPortReservations FastRecovery "
        "FastRetransmit ForwardMaxInFlightDrop InvalidSegmentsReceived ListenOverflowAckDrop "
        "ListenOverflowInvalidSynCookieRcvd ListenOverflowSynCookieRcvd ListenOverflowSynCookieSent "
        "ListenOverflowSynDrop PassiveConnectionOpenings ResetsReceived ResetsSent Retransmits SACKRecovery "
        "SegmentSendErrors SegmentsAckedWithDSACK SegmentsSent SlowStartRetransmits SpuriousRTORecovery "
        "SpuriousRecovery TLPRecovery Timeouts ValidSegmentsReceived"
    ),
    "UDP.": (
        "ChecksumErrors MalformedPacketsReceived PacketSendErrors PacketsReceived PacketsSent ReceiveBufferErrors "
        "UnknownPortErrors"
    ),
}
LEAVES = sorted(place + leaf for place, leaves in _LEAVES.items() for leaf in leaves.split())


def flattened(value: dict[str, Any], place: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, inner in value.items():
        found |= flattened(inner, f"{place}{key}.") if isinstance(inner, dict) else {place + key: inner}
    return found


async def test_every_key_is_there_and_every_leaf_a_number(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        stats = json.loads((await api.ask("GET", "/stats")).body)
        (link,) = stats["Links"].values()
        flat = flattened({key: value for key, value in stats.items() if key != "Links"})
        assert sorted(flat) == LEAVES, "and one key of ours"
        flat |= flattened(link)
        assert all(type(value) is int for value in flat.values())
        assert list(stats) == sorted(stats)


async def test_the_numbers_are_real(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        stream = await api.gateway.dial_guest(ADDRESS, ECHO)
        await stream.send_all(b"x" * 500)
        assert await stream.receive_some() == b"x" * 500
        for _ in range(2):
            try:
                await api.gateway.dial_guest(ADDRESS, CLOSED)
            except ConnectionRefusedError:
                continue
        counters = api.gateway.driver.links[0].counters
        before = counters.rx_frames, counters.rx_bytes, counters.tx_frames, counters.tx_bytes
        flat = flattened(json.loads((await api.ask("GET", "/stats")).body))
        after = counters.rx_frames, counters.rx_bytes, counters.tx_frames, counters.tx_bytes
        said = flat["NICs.Rx.Packets"], flat["BytesReceived"], flat["NICs.Tx.Packets"], flat["BytesSent"]
        # A late acknowledgement of the guest's may pass while the question is answered.
        assert all(least <= each <= most for least, each, most in zip(before, said, after, strict=True))
        assert (flat["TCP.ActiveConnectionOpenings"], flat["TCP.PassiveConnectionOpenings"]) == (1, 0)
        assert (flat["TCP.CurrentEstablished"], flat["TCP.CurrentConnected"]) == (1, 1)
        assert (flat["TCP.FailedConnectionAttempts"], flat["TCP.ResetsReceived"]) == (2, 2)
        assert flat["TCP.ValidSegmentsReceived"] == flat["IP.PacketsReceived"] == flat["IP.ValidPacketsReceived"]
        await until(lambda: flat["TCP.SegmentsSent"] <= len(api.net.guest.heard))
        assert flat["ARP.OutgoingRequestsSent"] >= flat["ARP.RepliesReceived"] >= 1
        await stream.aclose()
        await until(lambda: not api.gateway.driver.stack.tcp.tables.streams)
        flat = flattened(json.loads((await api.ask("GET", "/stats")).body))
        assert (flat["TCP.CurrentEstablished"], flat["TCP.EstablishedClosed"]) == (0, 1)
