"""What tshark's experts say of a capture: an opinion of our frames that is not ours."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

OPTIONS = (
    *("-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE"),
    *("-o", "tcp.analyze_sequence_numbers:TRUE"),
    # A reassembled packet is shown on its last fragment, and is checked there as a whole.
    *("-o", "ip.defragment:TRUE"),
)
# Ours to judge. What is inside a connection is the servers' and curl's, and by its port number random data may look
# like any of a thousand protocols.
PROTOCOLS = {"frame", "eth", "ethertype", "arp", "ip", "ipv6", "icmp", "icmpv6", "udp", "tcp", "dhcp", "dns", "data"}
FIELDS = ("frame.number", "eth.src", "_ws.expert.severity", "_ws.expert.group", "_ws.expert.message")
SEQUENCE = str(0x02000000)
"""tshark's number for the group of remarks about the order of segments."""
SEVERITIES = {0x100000: "comment", 0x200000: "chat", 0x400000: "note", 0x600000: "warning", 0x800000: "error"}
BENIGN = (
    "This frame initiates the connection closing",
    "This frame undergoes the connection closing",
    # Said of any reset, also of one that has to be there (a refused port, a connection that the other side reset).
    "Connection reset (RST)",
    # Said of the packet that an ICMP error quotes.
    '"Time To Live" only',
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
    environment = {**os.environ, "WIRESHARK_CONFIG_DIR": str(_configuration(capture.parent / "wireshark"))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    if done.returncode:
        raise AssertionError(f"tshark failed with {done.returncode}: {done.stderr}")
    return done.stdout


def _configuration(directory: Path) -> Path:
    """A configuration directory with all protocols off but PROTOCOLS."""
    if not directory.exists():
        directory.mkdir()
        listed = subprocess.run(["tshark", "-G", "protocols"], capture_output=True, text=True, timeout=60, check=True)
        names = {line.split("\t")[2] for line in listed.stdout.splitlines()}
        internal = {name for name in names if name.startswith("_ws.")}
        (directory / "disabled_protos").write_text("\n".join(sorted(names - PROTOCOLS - internal)) + "\n")
    return directory


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

    On a link that loses frames, what loss brings about (retransmissions, duplicate ACKs and the like) is none of its
    faults; checksums and malformed packets always are. An ACK with a D-SACK (RFC 2883) answers data that came twice:
    the other side's doing.
    """
    findings = [finding for finding in expert_findings(capture) if finding.source == mac]
    twice = {finding.frame for finding in findings if finding.message.startswith("D-SACK")}
    return [
        finding
        for finding in findings
        if not finding.message.startswith(BENIGN)
        and not (finding.group == SEQUENCE and (not lossless or finding.frame in twice))
    ]


def bad_checksums(capture: Path, mac: str) -> list[str]:
    """Frames of one sender with a wrong IP, TCP, UDP or ICMP checksum."""
    wrong = " || ".join(f'{layer}.checksum.status == "Bad"' for layer in ("ip", "tcp", "udp", "icmp"))
    return _tshark(capture, "-Y", f"eth.src == {mac} && ({wrong})").splitlines()


def kinds(capture: Path, mac: str) -> set[str]:
    """What one sender's frames are: `arp`, `dhcp`, `dns`, `icmp 3`, `tcp reset`: to show that a capture has it all."""
    fields = ["-e", "frame.protocols", "-e", "icmp.type", "-e", "tcp.flags.reset"]
    out = _tshark(capture, "-Y", f"eth.src == {mac}", "-T", "fields", "-E", "separator=/t", *fields)
    found = set()
    for line in out.splitlines():
        protocols, icmp_types, reset = line.split("\t")
        found |= set(protocols.split(":"))
        if icmp_types:
            found.add(f"icmp {icmp_types.split(',')[0]}")
        if reset == "1":
            found.add("tcp reset")
    return found
