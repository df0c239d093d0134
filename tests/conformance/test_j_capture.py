"""Conformance J5: the guest's side as a pcapng file, verdicts beside the frames, and the same verdicts out of it."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import dns.message
import pytest
import trio
from engine.wire_guest import GATEWAY, GUEST, HOST_ALIAS, ping, udp
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from wire import hellos
from wire.http_requests import get

from guest_iface.pcapng import INBOUND, OUTBOUND
from netstack.config import network_settings
from netstack.engine.events import DnsEvent, FlowClosed, FlowOpened, FlowRefused
from netstack.gateway.resolver import AnswersDns
from netstack.network_spec import NetworkSpec

from .live import Live, LiveGuest, listener, running, settled
from .policy_wire import ATTACKER, NAME, OTHER_NAME, SITE
from .recorded import Recorded, Replay, answer, comments, read

NAMES = {NAME: SITE, "inside.example.com": "10.0.0.7"}


class Authority(AnswersDns):
    """A resolver that knows NAMES."""

    async def ask(self, message: bytes) -> bytes | None:
        return answer(message, NAMES)


async def shaken(live: Live, guest: LiveGuest, address: str, port: int, source_port: int) -> tuple[dict[str, int], int]:
    """A connection with its handshake behind it; the ports, and the next number of the engine's."""
    guest.hear()
    await guest.syn(address, port, source_port)
    await live.settle_until(lambda: guest.link.heard)
    (reply,) = guest.hear()
    reply = reply[TCP]
    assert str(reply.flags) == "SA"
    ports, heard = {"sport": source_port, "dport": port}, reply.seq + 1
    await guest.send(IP(src=GUEST, dst=address) / TCP(**ports, flags="A", seq=2, ack=heard))
    return ports, heard


async def says(live: Live, guest: LiveGuest, address: str, port: int, source_port: int, data: bytes) -> None:
    ports, heard = await shaken(live, guest, address, port, source_port)
    await guest.send(IP(src=GUEST, dst=address) / TCP(**ports, flags="PA", seq=2, ack=heard) / Raw(data))


async def a_bit_of_everything(live: Live, guest: LiveGuest, port: int) -> None:
    """Something refused and something allowed at every step."""
    await guest.syn(ATTACKER, 22, 40_001)
    await guest.send(udp(ATTACKER, 9, b"x", source_port=40_002))
    await guest.send(ping(ATTACKER, identifier=7))
    await guest.send(udp("224.0.0.251", 5353, b"x", source_port=40_003))
    await guest.send(IP(src=GUEST, dst=ATTACKER, proto=47) / Raw(bytes(8)))
    for name, kind in ((OTHER_NAME, "A"), (NAME, "A"), ("inside.example.com", "A"), (NAME, "HTTPS")):
        await guest.send(udp(GATEWAY, 53, dns.message.make_query(name, kind, id=1).to_wire(), source_port=40_004))
    await says(live, guest, SITE, 443, 40_005, hellos.python_ssl(OTHER_NAME))
    await says(live, guest, SITE, 80, 40_006, get(f"Host: {OTHER_NAME}"))
    await says(live, guest, SITE, 80, 40_007, get("Host: inside.example.com"))
    await live.wait_for(FlowRefused, 8)
    ports, heard = await shaken(live, guest, HOST_ALIAS, port, 40_008)
    reset = TCP(**ports, flags="R", seq=2, ack=heard)
    await guest.send(IP(src=GUEST, dst=HOST_ALIAS) / reset)
    await live.wait_for(FlowClosed, 1)
    await settled()


SPEC = NetworkSpec.enabled([NAME, "inside.example.com", "@host"])


async def recorded(path: Path) -> Live:
    """A capture of all that; what was told meanwhile."""
    with listener() as (_, port):
        async with running(spec=SPEC, resolver=Authority(), capture=path) as live:
            await a_bit_of_everything(live, await live.attach(), port)
    return live


def beside(frames: list[Recorded], source_port: int) -> list[tuple[int, str]]:
    """Direction and comment of the commented frames of a port of the guest's."""
    found = []
    for each in frames:
        packet = Ether(each.frame)
        layer = next((packet[kind] for kind in (TCP, UDP) if packet.haslayer(kind)), None)
        if each.comment and layer is not None and source_port in (layer.sport, layer.dport):
            found.append((each.direction, each.comment))
    return found


async def test_J5_verdicts_stand_beside_frames(tmp_path: Path) -> None:
    """Each flow and question has one comment; what was judged at once has it at the guest's own frame."""
    live = await recorded(tmp_path / "a.pcapng")
    frames = read(tmp_path / "a.pcapng")
    questions = [event for event in live.told(DnsEvent) if event.qtype]
    assert len(comments(frames)) == len(live.told(FlowRefused)) + len(live.told(FlowOpened)) + len(questions)
    flow = {event.guest[1]: event.flow for event in live.events if isinstance(event, FlowRefused | FlowOpened)}

    def at(port: int, words: str) -> list[tuple[int, str]]:
        return [(INBOUND, f"netstack: flow {flow[port]} {words}")]

    assert beside(frames, 40_001) == at(40_001, "refused at syn: no-rule; told reset")
    assert beside(frames, 40_002) == at(40_002, "refused at datagram: no-rule; told unreachable")
    assert beside(frames, 40_003) == at(40_003, "refused at datagram: group-address; told nothing")
    by_sni = f"refused at tls: name-not-allowed, {OTHER_NAME} by sni; told alert"
    assert beside(frames, 40_005) == at(40_005, by_sni)
    by_host = f"refused at http: name-not-allowed, {OTHER_NAME} by host; told forbidden"
    assert beside(frames, 40_006) == at(40_006, by_host)
    assert beside(frames, 40_008) == at(
        40_008, f"allowed at syn: address-rule '@host'; dialled 127.0.0.1:{live.told(FlowOpened)[0].dialled[1]}"
    )
    # The address was looked for after the frame was written: the answer has it.
    ((direction, comment),) = beside(frames, 40_007)
    assert direction == OUTBOUND
    assert "refused at dial: private-address" in comment
    asked = beside(frames, 40_004)
    assert asked[0] == (
        INBOUND,
        f"netstack: question {OTHER_NAME} A refused at dns: name-not-allowed; policy says NOERROR, 1 answers",
    )
    assert asked[1] == (
        OUTBOUND,
        f"netstack: question {NAME} A allowed at dns: name-rule '{NAME}'; upstream says NOERROR, 1 answers",
    )
    assert len(asked) == 4
    kinds = {1: "icmp", 47: "gre"}
    others = [Ether(each.frame)[IP] for each in frames if each.comment]
    assert {kinds[packet.proto] for packet in others if packet.proto in kinds} == {"icmp", "gre"}


async def test_J5_frames_are_in_their_order(tmp_path: Path) -> None:
    """Holding a guest's frames until they were looked at changes neither their order nor their time."""
    await recorded(tmp_path / "a.pcapng")
    frames = read(tmp_path / "a.pcapng")
    assert [each.time for each in frames] == sorted(each.time for each in frames)
    directions = [each.direction for each in frames if beside_port(each, 40_005)]
    assert directions[:5] == [INBOUND, OUTBOUND, INBOUND, INBOUND, OUTBOUND], "SYN, SYN-ACK, ACK, hello, alert"


def beside_port(each: Recorded, port: int) -> bool:
    packet = Ether(each.frame)
    return packet.haslayer(TCP) and port in (packet[TCP].sport, packet[TCP].dport)


async def test_J5_replayed_in_virtual_time(tmp_path: Path) -> None:
    """The frames of the file, fed again to the engine: the same verdicts, and the same beside the frames."""
    live = await recorded(tmp_path / "a.pcapng")
    frames = read(tmp_path / "a.pcapng")
    for copy in ("b", "c"):
        again = Replay(frames, SPEC, network_settings(), NAMES, tmp_path / f"{copy}.pcapng")
        for kind in (FlowRefused, FlowOpened):
            assert [event for event in again.events if isinstance(event, kind)] == live.told(kind)
        told = [event for event in again.events if isinstance(event, DnsEvent)]
        assert [event._replace(seconds=0.0) for event in told] == [
            event._replace(seconds=0.0) for event in live.told(DnsEvent)
        ]
        assert Counter(comments(read(tmp_path / f"{copy}.pcapng"))) == Counter(comments(frames))
    assert [each.frame for each in read(tmp_path / "b.pcapng")] == [each.frame for each in read(tmp_path / "c.pcapng")]


async def test_J5_another_policy_gives_others(tmp_path: Path) -> None:
    """The replay can fail: under another list the same frames have other verdicts."""
    live = await recorded(tmp_path / "a.pcapng")
    spec = NetworkSpec.enabled([NAME, OTHER_NAME, "inside.example.com", "@host"])
    names = NAMES | {OTHER_NAME: SITE}
    again = Replay(read(tmp_path / "a.pcapng"), spec, network_settings(), names, tmp_path / "b.pcapng")
    assert [event for event in again.events if isinstance(event, FlowRefused)] != live.told(FlowRefused)


@pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is missing")
def test_J5_wireshark_shows_the_comments(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    trio.run(recorded, path)
    shown = subprocess.run(
        ["tshark", "-r", path, "-Y", "frame.comment", "-T", "fields", "-e", "frame.comment"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line for line in shown.stderr.splitlines() if "Running as user" not in line] == []
    assert shown.stdout.splitlines() == comments(read(path))
