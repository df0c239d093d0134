"""A gateway's captures, limits and impairments, while it runs, and the API and the command that change them."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import dpkt
import httpx
import pytest
import trio
import trio.testing
from click.testing import CliRunner
from fastapi import FastAPI
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from guest_iface.frame_filter import FilterError
from guest_iface.pcapng import OUTBOUND
from guest_iface.shaping import Limit
from netstack import recorded_settings
from netstack.cli_impair import impair as impair_command
from netstack.config import CaptureOptions, Shaping
from netstack.debug.capture_reader import CaptureReader
from netstack.gateway.api import impair as impair_api
from netstack.gateway.api import wires as wires_api
from netstack.gateway.attachments import Attachments
from netstack.gateway.captures import MAX_CAPTURES, CaptureError
from netstack.gateway.name_table import MAX_NAMES, NameTable
from netstack.gateway.run_command import Gateway
from netstack.gateway.wires import NO_LIMITS, Limits, limits_of
from netstack.impairments import parse_impairments
from tests.gateway.test_driver import MemoryLink
from tests.gateway.test_run_command import ARP_REQUEST, configuration

ROOT = Path(__file__).parents[2]
MAC = "02:00:00:00:00:01"
"""Given, because scapy would ask for a missing one by ARP, on the real network."""


def frames_of(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        return [frame for _, frame in dpkt.pcapng.Reader(file)]


class Rig:
    """A gateway whose guests are the test."""

    def __init__(self, gateway: Gateway, links: list[MemoryLink]) -> None:
        self.gateway, self.links = gateway, links

    async def asks(self, link: MemoryLink | None = None) -> None:
        """Who has the gateway's address; the answer is under way."""
        (link or self.links[0]).put(ARP_REQUEST)
        await trio.testing.wait_all_tasks_blocked(0.001)

    def heard(self) -> int:
        return len(self.links[0].to_guest)


@asynccontextmanager
async def running(*names: str, **options: Any) -> AsyncIterator[Rig]:
    links = [MemoryLink(name) for name in names or ("memory",)]
    gateway = Gateway(configuration(**options), Attachments(links=list(links)))
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.run)
        await trio.testing.wait_all_tasks_blocked()
        yield Rig(gateway, links)
        gateway.stop()


# -- captures ------------------------------------------------------------------------------------------------------


async def test_captures_begin_and_end_while_it_runs(tmp_path: Path) -> None:
    first, second = tmp_path / "first.pcapng", tmp_path / "second.pcapng"
    async with running() as rig:
        captures = rig.gateway.captures
        await rig.asks()
        one = captures.start(first)
        await rig.asks()
        two = captures.start(second, CaptureOptions(filter="arp and host 192.168.127.9", snaplen=20))
        await rig.asks()
        with pytest.raises(CaptureError, match=r"first.pcapng: another capture is being written there"):
            captures.start(first)
        assert [(each.id, each.path, each.frames, each.lost, each.failure) for each in captures.states()] == [
            (one, first, 4, 0, ""),
            (two, second, 0, 0, ""),
        ]
        assert captures.stop(one)
        assert not captures.stop(one)
        assert len(frames_of(first)) == 4, "closed: all of it is there"
        await rig.asks()
        assert len(frames_of(first)) == 4
    assert frames_of(second) == []
    assert len(captures) == 0


@pytest.mark.parametrize(
    ("options", "faithful"),
    [
        ({}, True),
        ({"impair": ("dns pypi.org servfail", "stream reset after 10k")}, True),
        ({"impair": ("loss 5%",)}, False),
        ({"shaping": Shaping(rx_kbps=100)}, False),
    ],
)
async def test_a_capture_says_whether_the_gateway_had_the_same_frames(
    tmp_path: Path, options: dict[str, Any], faithful: bool
) -> None:
    async with running(capture=tmp_path / "a.pcapng", **options):
        pass
    with closing(CaptureReader(tmp_path / "a.pcapng")) as reader:
        settings = recorded_settings.read(reader.comment)
    assert settings is not None
    assert settings.faithful is faithful


async def test_a_capture_is_written_out_while_it_is_quiet(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "a.pcapng"
    async with running(capture=path) as rig:
        await rig.asks()
        await trio.sleep(1)
        assert len(frames_of(path)) >= 1
        later = rig.gateway.captures.start(tmp_path / "b.pcapng")
        await rig.asks()
        await trio.sleep(1)
        assert len(frames_of(tmp_path / "b.pcapng")) >= 1
        assert later == 2


async def test_frames_between_guests_are_seen_once_on_each_link(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    async with running("one", "two", capture=path) as rig:
        macs = [bytes([2, 0, 0, 0, 0, number]) for number in (1, 2)]
        for link, mac in zip(rig.links, macs, strict=True):
            await rig.asks(link) if mac is None else link.put(ARP_REQUEST.replace(bytes.fromhex("5a94efe40cee"), mac))
            await trio.testing.wait_all_tasks_blocked(0.001)
        between = macs[1] + macs[0] + b"\x88\xb5" + b"hello" * 10
        rig.links[0].put(between)
        await trio.testing.wait_all_tasks_blocked(0.001)
        assert rig.links[1].to_guest[-1] == between
    found = []
    data = path.read_bytes()
    names: list[str] = []
    while data:
        kind, length = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little")
        if kind == 1:
            names.append(data[20 : 20 + int.from_bytes(data[18:20], "little")].decode())
        if kind == 6 and data[28 : 28 + len(between)] == between:
            found.append((names[int.from_bytes(data[8:12], "little")], data[length - 12]))
        data = data[length:]
    assert found == [("one", 1), ("two", 2)]


async def test_a_reader_gets_what_passes_until_it_leaves() -> None:
    async with running() as rig:
        captures = rig.gateway.captures
        async with captures.stream(CaptureOptions(filter="arp")) as pieces:
            assert (await anext(pieces))[:4] == b"\n\r\r\n"
            await rig.asks()
            assert ARP_REQUEST in await anext(pieces)
            (state,) = captures.states()
            assert state.path is None
            captures.stop(state.id)
            left = [piece async for piece in pieces]
            assert left, "the statistics at its end"
        assert captures.states() == []
        async with captures.stream():
            assert len(captures) == 1
        assert len(captures) == 0


async def test_captures_that_cannot_begin(tmp_path: Path) -> None:
    async with running() as rig:
        captures = rig.gateway.captures
        for options, said in (
            (CaptureOptions(filter="hst 1"), "instead of 'hst'"),
            (CaptureOptions(filter="flow 17"), "expected the number of a flow that is open"),
        ):
            with pytest.raises(CaptureError, match=said):
                captures.start(tmp_path / "a.pcapng", options)
        with pytest.raises(CaptureError, match="cannot write the capture there"):
            captures.start(tmp_path / "missing" / "a.pcapng")
        assert captures.states() == []
        for number in range(MAX_CAPTURES):
            captures.start(tmp_path / f"{number}.pcapng")
        with pytest.raises(CaptureError, match="16 captures are running"):
            captures.start(tmp_path / "more.pcapng")


# -- names ---------------------------------------------------------------------------------------------------------


async def test_names_are_learnt_from_answers_to_guests() -> None:
    import dns.message
    import dns.rrset

    def answer(name: str, address: str, qtype: str = "A", port: int = 53) -> bytes:
        message = dns.message.make_response(dns.message.make_query(name, qtype))
        message.answer.append(dns.rrset.from_text(f"{name}.", 60, "IN", "CNAME", "other.example."))
        message.answer.append(dns.rrset.from_text("other.example.", 60, "IN", qtype, address))
        return bytes(
            Ether(src=MAC, dst=MAC)
            / IP(src="192.168.127.1", dst="192.168.127.2")
            / UDP(sport=port, dport=9)
            / message.to_wire()
        )

    async with running() as rig:
        table: NameTable = rig.gateway.wires.names
        assert list(table.addresses("host.containers.internal")) == [bytes([192, 168, 127, 254])], "a name of ours"
        assert list(table.addresses("a.example")) == list(table.addresses("*.example")) == []
        table.write(0, [answer("A.example", "192.0.2.7"), answer("b.a.example", "192.0.2.8")], OUTBOUND)
        table.write(0, [answer("a.example", "2001:db8::7", "AAAA")], OUTBOUND)
        table.write(0, [answer("a.example", "192.0.2.99", port=54), b"\0" * 20, answer("c.org", "192.0.2.9")], OUTBOUND)
        table.write(0, [answer("a.example", "192.0.2.66")], 1)
        assert [len(each) for each in table.addresses("a.example")] == [4, 16]
        assert bytes([192, 0, 2, 7]) in table.addresses("a.example")
        assert list(table.addresses("*.example"))[:2] == [bytes([192, 0, 2, 7]), bytes([192, 0, 2, 8])]
        for number in range(MAX_NAMES):
            table.addresses(f"{number}.example")
        assert list(table.addresses("a.example")) == [], "the oldest has made room"


# -- limits and impairments ----------------------------------------------------------------------------------------


async def test_limits_are_each_links_own_and_change_while_it_runs(autojump_clock: trio.testing.MockClock) -> None:
    shaping = Shaping(rx_kbps=8, burst=100, links=(("fast*", Shaping(rx_kbps=800_000)),))
    async with running("slow", "fast", shaping=shaping) as rig:
        for link in rig.links:
            link.put(*[ARP_REQUEST] * 40)
        await trio.sleep(0.1)
        slow, fast = (len(link.to_guest) for link in rig.links)
        assert fast == 40
        assert slow < 10
        rig.gateway.wires.limit(NO_LIMITS)
        await trio.sleep(0.1)
        assert len(rig.links[0].to_guest) >= 35, "what waits goes at once; the queue holds 24 KB"
        assert rig.gateway.wires.limits == {"fast*": Limits(rx=Limit(800_000))}
    assert limits_of(Shaping(tx_kbps=100, burst=5)) == Limits(tx=Limit(100, 5))


@pytest.mark.parametrize("verified", [True, None])
async def test_damage_from_a_guest_is_found_by_whoever_looks_at_checksums(*, verified: bool | None) -> None:
    """By us, if we verify them; else the impairment drops what a checksum would have shown."""
    datagram = bytes(
        Ether(src="5a:94:ef:e4:0c:ee", dst="5a:94:ef:e4:0c:dd")
        / IP(src="192.168.127.2", dst="192.168.127.1")
        / UDP(sport=5000, dport=53)
        / bytes(1400)
    )
    async with running(impair=("dir=from-guest corrupt 100% seed 1",), verify_checksums=verified) as rig:
        for _ in range(20):
            rig.links[0].put(datagram)
        await trio.testing.wait_all_tasks_blocked(0.001)
        (counts,) = rig.gateway.wires.counts()
        dropped = rig.gateway.driver.stack.dropped
        found = dropped.get("udp-checksum", 0) + dropped.get("ip-checksum", 0)
        assert counts["corrupted"] == 20
        assert (found > 15, counts["unreadable"] > 15) == (bool(verified), not verified)


async def test_impairments_of_the_configuration_and_others_in_their_place(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running(impair=("dir=to-guest delay 2s seed 1", "stream reset")) as rig:
        wires = rig.gateway.wires
        await rig.asks()
        assert rig.heard() == 0
        await trio.sleep(2.1)
        assert rig.heard() == 1
        link_wide, fault = wires.impairments
        assert str(link_wide) == "dir=to-guest delay 2s seed 1"
        assert fault.seed is not None, "one was drawn, so that it can be had again"
        assert wires.counts()[0]["passed"] == 1
        with pytest.raises(FilterError):
            wires.impair(parse_impairments("match flow 9 loss 1%", "x"))
        assert wires.impairments == (link_wide, fault), "all of it, or none"
        wires.impair(parse_impairments("link=other loss 100%", "x"))
        await rig.asks()
        assert rig.heard() == 2
        wires.impair(parse_impairments("link=mem* dir=from-guest loss 100%", "x"))
        await rig.asks()
        assert rig.heard() == 2
        wires.impair(())
        await rig.asks()
        assert rig.heard() == 3
        assert wires.impairments == ()


async def test_a_gateway_that_cannot_do_what_it_is_told_closes_its_links() -> None:
    from netstack.gateway import RunFailed

    link = MemoryLink()
    with pytest.raises(RunFailed, match="flow 9"):
        Gateway(configuration(impair=("match flow 9 loss 1%",)), Attachments(links=[link]))
    assert link.closed


# -- the API -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def api(**options: Any) -> AsyncIterator[tuple[Rig, httpx.AsyncClient]]:
    async with running(**options) as rig:
        app = FastAPI()
        app.include_router(impair_api.router(rig.gateway))
        app.include_router(wires_api.router(rig.gateway))
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://netstack") as client:
            yield rig, client


async def test_impairments_by_the_api() -> None:
    async with api() as (rig, client):
        assert (await client.get("/v1/impair")).json() == {"impairments": []}
        wanted = ["dir=to-guest loss 100% seed 1", {"dns": "a.example", "servfail": None, "seed": 2}]
        done = await client.put("/v1/impair", json={"impairments": wanted})
        texts = ["dir=to-guest loss 100% seed 1", "dns a.example servfail seed 2"]
        assert [each["spec"] for each in done.json()["impairments"]] == texts
        await rig.asks()
        assert rig.heard() == 0
        shown = (await client.get("/v1/impair")).json()["impairments"]
        assert [each["counts"].get("lost") for each in shown] == [1, None]
        for wrong, said in (
            (["lose 1%"], "impairments: 'lose': expected one of"),
            (["match flow 5 loss 1%"], "flow 5"),
        ):
            refused = await client.put("/v1/impair", json={"impairments": wrong})
            assert refused.status_code == 400
            assert said in refused.json()["detail"]
        assert [str(each) for each in rig.gateway.wires.impairments] == texts
        assert (await client.delete("/v1/impair")).json() == {"impairments": []}
        await rig.asks()
        assert rig.heard() == 1


async def test_captures_and_limits_by_the_api(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    async with api() as (rig, client):
        begun = await client.post("/v1/capture", json={"file": str(path), "filter": "arp", "snaplen": 30})
        assert (begun.status_code, begun.json()) == (201, {"id": 1})
        await rig.asks()
        (shown,) = (await client.get("/v1/capture")).json()
        assert shown == {
            "id": 1, "file": str(path), "filter": "arp", "snaplen": 30, "frames": 2, "lost": 0, "failure": "",
        }  # fmt: skip
        for body, status, said in (
            ({"file": "a.pcapng"}, 400, "expected an absolute path"),
            ({"file": str(path)}, 409, "another capture"),
            ({"file": str(path), "filter": "x"}, 400, "filter 'x': expected a filter"),
            ({"file": str(path), "rotate_count": 2}, 400, "rotate_count '2': expected rotate_size with it"),
        ):
            refused = await client.post("/v1/capture", json=body)
            assert refused.status_code == status
            assert said in refused.json()["detail"]
        assert (await client.delete("/v1/capture/1")).status_code == 204
        assert (await client.delete("/v1/capture/1")).status_code == 404
        assert [len(frame) for frame in frames_of(path)] == [30, 30]

        limits = {"tx": {"kbps": 100, "burst": 0}, "rx": None}
        assert (await client.put("/v1/shaping", json=limits)).json() == {"*": limits}
        assert (await client.put("/v1/shaping", params={"link": "tap*"}, json={"rx": {"kbps": 1}})).status_code == 400
        assert (await client.get("/v1/shaping")).json() == {"*": limits}
        assert (await client.delete("/v1/shaping")).json() == {}


async def test_a_stream_ends_with_its_capture_and_with_its_client() -> None:
    async with api() as (rig, client):
        async with trio.open_nursery() as nursery:
            bodies: list[bytes] = []

            async def read() -> None:
                bodies.append((await client.get("/v1/capture/stream", params={"filter": "arp"})).content)

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked(0.01)
            (state,) = rig.gateway.captures.states()
            await rig.asks()
            rig.gateway.captures.stop(state.id)
        assert ARP_REQUEST in bodies[0]
        assert (await client.get("/v1/capture/stream", params={"filter": "x"})).status_code == 400

        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            await rig.asks()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            await trio.lowlevel.checkpoint()

        response = wires_api._CaptureResponse(rig.gateway.captures, CaptureOptions())
        with trio.fail_after(10):
            await response({}, receive, send)
        assert sent[0]["status"] == 200
        assert len(rig.gateway.captures) == 0


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Callable[[int, object], tuple[str, list[bytes]]]]:
    """An API that answers one request, by a thread; its socket, and the requests it got."""
    import threading

    threads = []

    def start(status: int, body: object) -> tuple[str, list[bytes]]:
        path = f"{tmp_path}/api-{len(threads)}.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(1)
        listener.settimeout(30)
        got: list[bytes] = []

        def answer() -> None:
            with listener:
                peer, _ = listener.accept()
                with peer:
                    request = peer.recv(65536)
                    while b"\r\n\r\n" not in request:
                        request += peer.recv(65536)
                    got.append(request)
                    text = json.dumps(body).encode()
                    peer.sendall(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(text), text))

        threads.append(threading.Thread(target=answer))
        threads[-1].start()
        return path, got

    yield start
    for each in threads:
        each.join(30)


def invoke(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(impair_command, arguments)
    return done.exit_code, done.output


def test_the_command_shows_what_can_be_set_again(answering: Callable[[int, object], tuple[str, list[bytes]]]) -> None:
    state = {"impairments": [{"spec": "loss 1% seed 7", "counts": {"seen": 5, "lost": 0, "passed": 5}}]}
    path, got = answering(200, state)
    assert invoke(path) == (0, "loss 1% seed 7    # seen 5, passed 5\n")
    assert got[0].startswith(b"GET /v1/impair ")
    path, got = answering(200, state)
    assert invoke(f"unix://{path}", "set", "loss 1% seed 7; delay 5ms")[0] == 0
    assert got[0].startswith(b"PUT /v1/impair ")
    path, got = answering(200, state)
    assert json.loads(invoke("--json", path, "clear")[1]) == state
    assert got[0].startswith(b"DELETE /v1/impair ")


def test_the_command_says_what_went_wrong(
    answering: Callable[[int, object], tuple[str, list[bytes]]], tmp_path: Path
) -> None:
    assert invoke(str(tmp_path / "none"))[0] == 1
    assert "no API there" in invoke(str(tmp_path / "none"))[1]
    assert invoke("x", "set")[0] == invoke("x", "show", "loss 1%")[0] == invoke("x", "set", "lose 1%")[0] == 2
    assert "'lose': expected one of dir=" in invoke("x", "set", "lose 1%")[1]
    path, _ = answering(400, {"detail": "flow 5: expected"})
    assert f"{path}: flow 5: expected (status 400)" in invoke(path, "set", "match flow 5 loss 1%")[1]
    (tmp_path / "token").write_text("secret\n")
    path, got = answering(401, {})
    assert "(status 401)" in invoke("--token-file", str(tmp_path / "token"), path)[1]
    assert b"authorization: bearer secret" in got[0].lower()
    assert "No such file" in invoke("--token-file", str(tmp_path / "missing"), path)[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--impair", "lose 1%"], "--impair: 'lose': expected one of dir="),
        (["--capture", "x", "--capture-filter", "hst"], "--capture-filter 'hst': expected a filter such as"),
        (["--capture-snaplen", "80"], "--capture 'none': expected a file"),
        (["--capture", "x", "--capture-snaplen", "5"], "--capture-snaplen '5': expected bytes from 14 to 65562"),
        (["--capture", "x", "--capture-size", "1k"], "--capture-size '1024': expected 65536 bytes or more"),
        (["--capture", "x", "--capture-count", "5"], "--capture-count '5': expected --capture-size with it"),
        (
            ["--capture", "x", "--capture-size", "1M", "--capture-count", "0"],
            "--capture-count '0': expected a number of",
        ),
        (["--shape-tx-kbps", "fast"], "--shape-tx-kbps 'fast': expected kilobits per second"),
        (["--shape-rx-kbps", "tap0=1"], "--shape-rx-kbps tap0= '1.0': expected a rate from 8 to"),
    ],
)
def test_options_that_make_no_sense(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    from netstack import cli

    with pytest.raises(SystemExit) as ended:
        cli.main(["guest", *options, "--", "true"])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
