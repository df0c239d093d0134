"""`netstack ctl` and the client library against a gateway that runs, and against what goes wrong."""

from __future__ import annotations

import gc
import inspect
import json
import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from netstack import cli, cli_ctl
from netstack.api_models import Flow, Verdict
from netstack.client import ApiError, AsyncClient, Client, split_endpoint
from netstack.ctl_report import flow_table, plain, size_words, time_words
from netstack.network_spec import NetworkSpec

sys.path.insert(0, str(Path(__file__).parent / "gateway"))
from api_client import Served, served
from callee import ADDRESS, ECHO


class Terminal:
    """Runs the command in a thread, as a process of its own would: the gateway goes on meanwhile."""

    def __init__(self, where: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.where, self.capsys = where, capsys

    async def __call__(self, *arguments: str, status: int = 0) -> str:
        def run() -> object:
            with pytest.raises(SystemExit) as ended:
                cli.main(["ctl", *options, self.where, *rest])
            return ended.value.code

        options, rest = ([], list(arguments)) if "--token-file" not in arguments else (arguments[:2], arguments[2:])
        code = await trio.to_thread.run_sync(run)
        said = self.capsys.readouterr()
        assert code == status, said.err
        return said.err if status else said.out


@asynccontextmanager
async def terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], **options: object
) -> AsyncIterator[tuple[Served, Terminal]]:
    async with served(tmp_path, **options) as api:
        yield api, Terminal(str(api.path), capsys)


async def test_flows_names_and_counters_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with terminal(tmp_path, capsys) as (api, ctl), await api.gateway.dial_guest(ADDRESS, ECHO) as stream:
        await stream.send_all(b"x" * 300)
        await stream.receive_some()
        shown = await ctl("flows")
        assert "allowed at forward: port-forward" in shown
        assert "300 B" in shown
        listed = json.loads(await ctl("flows", "--state", "open", "--json"))
        (flow,) = listed["flows"]
        told = await ctl("flows", str(flow["id"]))
        assert "ESTABLISHED" in told
        assert "guest 60.0 kB" in told
        assert json.loads(await ctl("flows", str(flow["id"]), "--json"))["id"] == flow["id"]
        assert (await ctl("leases")).startswith(f"{ADDRESS}\t5a:94:ef:e4:0c:ee")
        assert json.loads(await ctl("dns", "--json")) == []
        shown = await ctl("stats")
        assert "1 opened, 1 established" in shown
        assert "MTU 1500, segments of 1460, frames of 65.6 kB from the guest, checksums not looked at" in shown
        assert re.search(r"batch calls, queue of \d+ frames, windows of [\d.]+ MB", shown)
        shown = await ctl("links")
        assert "one call a frame" not in shown
        assert "frames from guests" in shown
        assert "; 5a:94:ef:e4:0c:ee" in shown
        (link,) = json.loads(await ctl("links", "--json"))
        assert (link["mtu"], link["batch_calls"], link["verified_checksums"]) == (1500, True, False)
        assert json.loads(await ctl("stats", "--gvproxy"))["TCP"]["CurrentEstablished"] == 1
        watched = await ctl("watch")
        assert "policy 1: full" in watched
        assert "1 flows open" in watched
        await ctl("kill", str(flow["id"]))
        assert "closed by hand" in await ctl("flows")
        assert "no such flow is open" in await ctl("kill", str(flow["id"]), status=1)


async def test_what_is_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with terminal(tmp_path, capsys) as (api, ctl):
        assert await ctl("policy") == "full access (generation 1: full)\n"
        assert await ctl("policy", "set", "pypi.org,10.0.0.0/8") == "only pypi.org, 10.0.0.0/8 (generation 2: listed)\n"
        assert "expected RULES" in await ctl("policy", "set", status=2)
        assert "two labels" in await ctl("policy", "set", "*.com", status=2)
        assert "the kill switch is on" in await ctl("kill")
        assert api.gateway.killed
        assert "listed" in await ctl("policy", "lift")
        assert "not on (409)" in await ctl("policy", "lift", status=1)
        assert json.loads(await ctl("policy", "--json"))["spec"]["allow_net"] == ["pypi.org", "10.0.0.0/8"]
        made = await ctl("expose", "127.0.0.1:0", f"{ADDRESS}:{ECHO}")
        assert await ctl("forwards") == made
        await ctl("unexpose", made.split()[1])
        assert "proxy not found" in await ctl("unexpose", "127.0.0.1:1", status=1)
        number = (await ctl("capture", "start", str(tmp_path / "frames.pcapng"))).strip()
        assert "frames.pcapng" in await ctl("capture")
        await ctl("capture", "stop", number)
        assert (tmp_path / "frames.pcapng").read_bytes()[:4] == b"\x0a\x0d\x0d\x0a"
        assert "expected" in await ctl("capture", "start", "x", "--filter", "nonsense nonsense", status=1)


# httpcore leaves a socket to the collector that could not connect.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
async def test_what_goes_wrong_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    async with terminal(tmp_path, capsys, api_token="secret") as (_, ctl):
        assert "wants a token" in await ctl("flows", status=1)
        assert "full access" in await ctl("--token-file", str(token), "policy")
        assert "No such file" in await ctl("--token-file", "/nowhere", "policy", status=1)
    nowhere = Terminal(str(tmp_path / "nothing"), capsys)
    said = await nowhere("flows", status=1)
    assert said == f"netstack: {tmp_path}/nothing: No such file or directory; is the gateway running?\n"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    said = await Terminal(str(tmp_path / "dead"), capsys)("dns", status=1)
    assert "Connection refused; is the gateway running?" in said
    gc.collect()


async def test_the_client_of_tasks(tmp_path: Path) -> None:
    async with served(tmp_path) as api, AsyncClient(f"unix://{api.path}") as client:
        assert (await client.info()).gateway == "192.168.127.1"
        assert (await client.replace_policy(NetworkSpec.enabled(["pypi.org"]))).access == "listed"
        assert (await client.policy()).spec.allow_net == ["pypi.org"]
        zone = await client.put_zone("lab.example", {"a": "10.0.0.1"}, "10.0.0.2")
        assert zone in await client.zones()
        await client.remove_zone("lab.example")
        assert zone not in await client.zones()
        with pytest.raises(ApiError, match="flow 7") as raised:
            await client.flow(7)
        assert raised.value.status == 404
        with pytest.raises(ApiError, match="there is none"):
            await client.remove_zone("lab.example")


async def test_events_by_the_blocking_client(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        heard: list[str] = []

        def follow() -> None:
            with Client(str(api.path)) as client:
                for event in client.events("policy_replaced"):
                    heard.append(event["why"])
                    return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, follow)
            assert api.gateway.records is not None
            while not api.gateway.records.subscribers:
                await trio.testing.wait_all_tasks_blocked(0.01)
            api.gateway.kill_network()
        assert heard == ["kill-switch"]


def test_both_clients_offer_the_same() -> None:
    def offered(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in vars(kind).items()
            if not name.startswith("_") and name not in ("close", "aclose")
        }

    assert offered(Client) == offered(AsyncClient)


def test_endpoints() -> None:
    assert split_endpoint("/run/x") == split_endpoint("unix:///run/x") == ("http://netstack", "/run/x")
    assert split_endpoint("tcp://h:1") == split_endpoint("http://h:1") == ("http://h:1", "")


def test_words() -> None:
    assert [size_words(size) for size in (0, 999, 1500, 250_000, 3e12)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "250 kB",
        "3.0 TB",
    ]
    assert [time_words(seconds) for seconds in (0.0015, 5, 600, 9000)] == ["1.5 ms", "5.0 s", "10 min", "2.5 h"]


def test_what_a_guest_says_moves_no_cursor() -> None:
    assert plain("a\x1b[2Jb\r\n") == "a\ufffd[2Jb\ufffd\ufffd"
    verdict = Verdict(verdict="refused", step="tls", reason="name-not-allowed", name="evil\x1b.example")
    flow = Flow(id=1, protocol="tcp", direction="out", state="refused", guest="a:1", destination="b:2", verdict=verdict)
    cells = [cell for column in flow_table([flow]).columns for cell in column.cells]
    assert not any("\x1b" in str(cell) for cell in cells)


def test_only_click_is_imported_by_the_command() -> None:
    source = Path(cli_ctl.__file__).read_text()
    top = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert {line.split()[1] for line in top} == {
        "__future__",
        "json",
        "sys",
        "collections.abc",
        "pathlib",
        "typing",
        "click",
    }
