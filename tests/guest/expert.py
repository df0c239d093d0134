"""What tshark's experts say of a capture: an opinion of our frames that is not ours."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

OPTIONS = (
    *("-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE"),
    *("-o", "tcp.analyze_sequence_numbers:TRUE"),
    # A reassembled packet is shown on its last fragment, and is checked there as a whole.
    *("-o", "ip.defragment:TRUE"),
)
FIELDS = ("frame.number", "eth.src", "_ws.expert.severity", "_ws.expert.group", "_ws.expert.message")
SEVERITIES = {0x100000: "comment", 0x200000: "chat", 0x400000: "note", 0x600000: "warning", 0x800000: "error"}
BENIGN = (
    "This frame initiates the connection closing",
    "This frame undergoes the connection closing",
    # Said of any reset, also of one that has to be there (a refused port, a connection that the other side reset).
    "Connection reset (RST)",
    # Flow control at work: a receiver that is full says so.
    "TCP Zero Window segment",
    "TCP window specified by the receiver is now completely full",
    "TCP Zero Window Probe",
    "ACK to a TCP Zero Window Probe",
)


class Finding(NamedTuple):
    """One remark about one frame."""

    frame: int
    source: str
    severity: str
    group: str
    message: str


def _tshark(capture: Path, *arguments: str) -> str:
    command = ["tshark", "-n", "-r", str(capture), *OPTIONS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise AssertionError(f"tshark failed with {done.returncode}: {done.stderr}")
    return done.stdout


def expert_findings(capture: Path) -> list[Finding]:
    """All remarks of severity note and above, in the order of the frames. AssertionError for a file of no use."""
    wanted = [word for field in FIELDS for word in ("-e", field)]
    out = _tshark(capture, "-Y", "_ws.expert", "-T", "fields", "-E", "separator=/t", "-E", "aggregator=|", *wanted)
    findings = []
    for line in out.splitlines():
        number, source, severities, groups, messages = line.split("\t")
        for severity, group, message in zip(
            severities.split("|"), groups.split("|"), messages.split("|"), strict=False
        ):
            word = SEVERITIES.get(int(severity), severity)
            if word not in ("comment", "chat"):
                findings.append(Finding(int(number), source, word, group, message))
    return findings


def faults(capture: Path, mac: str, *, lossless: bool = True) -> list[Finding]:
    """Remarks about the frames of one sender that it has to answer for.

    On a link that loses frames, what loss brings about (retransmissions, duplicate ACKs and the like: the group
    "Sequence", in tshark's numbers 0x02000000) is none of its faults; checksums and malformed packets always are.
    """
    sequence = str(0x02000000)
    return [
        finding
        for finding in expert_findings(capture)
        if finding.source == mac and not finding.message.startswith(BENIGN) and (lossless or finding.group != sequence)
    ]


def bad_checksums(capture: Path, mac: str) -> list[str]:
    """Frames of one sender with a wrong IP, TCP, UDP or ICMP checksum."""
    wrong = " || ".join(f'{layer}.checksum.status == "Bad"' for layer in ("ip", "tcp", "udp", "icmp"))
    return _tshark(capture, "-Y", f"eth.src == {mac} && ({wrong})").splitlines()


def count(capture: Path, display_filter: str) -> int:
    """How many frames match: to show that the capture has what it should have."""
    return len(_tshark(capture, "-Y", display_filter, "-T", "fields", "-e", "frame.number").splitlines())
