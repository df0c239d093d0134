"""Prepared frames as capture files, written by dpkt: what commands read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dpkt import pcap, pcapng

from netstack.debug.seen_packets import Recorded

_EPB_FLAGS = 2


def write_pcap(path: Path, frames: Iterable[Recorded]) -> Path:
    """Without directions and comments, as tcpdump would."""
    with path.open("wb") as file:
        writer = pcap.Writer(file, nano=True)
        for each in frames:
            writer.writepkt(each.data, ts=each.time)
    return path


def write_pcapng(path: Path, frames: Iterable[Recorded]) -> Path:
    """With directions and comments, as a gateway of ours does."""
    with path.open("wb") as file:
        file.write(bytes(pcapng.SectionHeaderBlockLE()))
        file.write(bytes(pcapng.InterfaceDescriptionBlockLE(linktype=pcapng.DLT_EN10MB, snaplen=1 << 16)))
        for each in frames:
            stamp = int(each.time * 1e6)
            options = [pcapng.PcapngOptionLE(code=_EPB_FLAGS, data=each.direction.to_bytes(4, "little"))]
            if each.comment:
                options.append(pcapng.PcapngOptionLE(code=pcapng.PCAPNG_OPT_COMMENT, data=each.comment.encode()))
            options.append(pcapng.PcapngOptionLE(code=pcapng.PCAPNG_OPT_ENDOFOPT))
            block = pcapng.EnhancedPacketBlockLE(
                ts_high=stamp >> 32,
                ts_low=stamp & 0xFFFFFFFF,
                caplen=len(each.data),
                pkt_len=each.size,
                pkt_data=each.data,
                opts=options,
            )
            file.write(bytes(block))
    return path
