"""`netstack explain` as people call it: table, story, JSON, pictures, and what it says to nonsense."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from conformance.policy_wire import OTHER_NAME

from netstack.cli_debug import explain

from . import failures
from .files import write_pcap, write_pcapng


def run(*arguments: object) -> Result:
    return CliRunner().invoke(explain, [str(each) for each in arguments], standalone_mode=False)


@pytest.fixture
def wrong_sni(tmp_path: Path) -> Path:
    return write_pcapng(tmp_path / "a.pcapng", failures.c_wrong_sni())


@pytest.fixture
def lossy(tmp_path: Path) -> Path:
    return write_pcap(tmp_path / "a.pcap", failures.lossy_link())


def test_the_table_has_a_line_for_each_flow(wrong_sni: Path) -> None:
    result = run(wrong_sni)
    lines = result.output.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["1", "2"]
    assert "  ok  " in lines[0]
    assert f"> {OTHER_NAME} (93.184.216.34:443)" in lines[1]
    assert "  !!  the policy refused it at the TLS hello" in lines[1]
    assert lines[2] == "7 packets, 2 flows, 1 with something wrong"
    assert result.return_value == 0
    assert run(wrong_sni, "--problems").output.splitlines()[0].split() == lines[1].split()


@pytest.mark.parametrize("flow", ["2", "#2", OTHER_NAME, "93.184.216.34:443", ":443", "93.184.216.34"])
def test_a_story_says_what_to_change(wrong_sni: Path, flow: str) -> None:
    result = run(wrong_sni, flow)
    assert result.return_value == 1, "something is wrong with it"
    told = result.output
    assert f"Change: add '{OTHER_NAME}' to allow_net" in told
    order = [
        "the client asked 192.168.127.1:53 for api.example.com A",
        "DNS said api.example.com is 93.184.216.34, after",
        "SYN from 192.168.127.2:40000 to 93.184.216.34:443",
        "SYN-ACK after 0 us by the gateway itself: the first bytes have to say a name",
        f"the client said: TLS hello for {OTHER_NAME}",
        "the policy refused it at the TLS hello for evil.example.net (TLS SNI): name-not-allowed; the guest was told:",
        "first bytes from the server after 0 us: TLS alert 112",
        "the server finished (FIN)",
    ]
    places = [told.index(words) for words in order]
    assert places == sorted(places)


def test_json_is_for_programs(wrong_sni: Path, lossy: Path) -> None:
    flows = json.loads(run(wrong_sni, "--json").output)
    assert [flow["cause"]["word"] for flow in flows] == ["fine", "refused-name-not-allowed"]
    assert flows[1]["verdict"] == "refused at tls: name-not-allowed"
    assert flows[1]["gateway_flow"] == 1
    one = json.loads(run(lossy, "1", "--json").output)
    assert one["cause"]["word"] == "loss"
    assert one["name"] == "files.example"
    assert sum(one["shares"].values()) == pytest.approx(1, abs=0.001)
    assert one["figures"]["server_retransmissions"] == 19
    assert one["payload_bytes"] == [42, 400_000]


def test_a_diagram_as_text(wrong_sni: Path) -> None:
    lines = run(wrong_sni, "2", "--diagram", "text").output.splitlines()
    assert lines[0].split() == ["192.168.127.2:40000", "93.184.216.34:443"]
    assert [("SYN-ACK, MSS 1460" in line, "|<-" in line) for line in lines].count((True, True)) == 1
    assert any(f"TLS hello for {OTHER_NAME} " in line and line.endswith(">|") for line in lines)
    assert any("refused at tls: name-not-allowed" in line for line in lines)
    assert len({len(line) for line in lines[1:]}) == 1, "as wide as each other"


def test_what_another_policy_would_have_said(wrong_sni: Path) -> None:
    told = json.loads(run(wrong_sni, "--json", "--allow-net", OTHER_NAME).output)
    assert [flow["cause"]["word"] for flow in told] == ["would-refuse-name-not-allowed", "would-allow"]
    assert told[0]["cause"]["advice"] == "add 'api.example.com' to allow_net"
    assert told[1]["verdict"] == f"would be allowed at tls: name-rule '{OTHER_NAME}'"
    by_address = json.loads(run(wrong_sni, "2", "--json", "--allow-net", "93.184.216.0/24:443").output)
    assert by_address["cause"]["fine"], "its address is enough"
    assert "a wildcard needs a domain" in str(run(wrong_sni, "--allow-net", "*.com").exception)


def test_long_runs_are_one_arrow_and_losses_are_not(lossy: Path) -> None:
    lines = run(lossy, "1", "--diagram", "text").output.splitlines()
    assert len(lines) < 400
    assert sum("retransmission" in line for line in lines) == 19
    assert any("10 segments, 14.5 kB" in line or " segments, 14.6 kB" in line for line in lines)


def test_pictures_are_what_their_names_say(lossy: Path, tmp_path: Path) -> None:
    assert run(lossy, "1", "--diagram", tmp_path / "d.svg", "--plot", tmp_path / "p.png").return_value == 1
    assert b"<svg" in (tmp_path / "d.svg").read_bytes()[:600]
    picture = (tmp_path / "p.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "no flow 'nonsense': there are 2"),
        (["--plot", "x.png"], "draw one flow: name a flow"),
        (["1", "--plot", "x.png"], "flow 1 is dns: only TCP"),
        (["2", "--plot", "/tmp/x.bmp"], "expected a name that ends in .svg, .png, .pdf"),
        (["2", "--diagram", "/nowhere/x.svg"], "/nowhere/x.svg: No such file"),
    ],
)
def test_nonsense_is_one_clear_error(wrong_sni: Path, arguments: list[str], message: str) -> None:
    error = run(wrong_sni, *arguments).exception
    assert message in str(error)
    assert isinstance(error, click.ClickException)
    assert error.exit_code == 2, "1 is what a flow with something wrong has"


def test_files_that_cannot_be_read(tmp_path: Path, wrong_sni: Path) -> None:
    (tmp_path / "text").write_text("hello, this is no capture")
    (tmp_path / "cut").write_bytes(wrong_sni.read_bytes()[:-10])
    for source, said in (
        (tmp_path / "none.pcap", "No such file"),
        (tmp_path / "text", "expected a pcap or pcapng file"),
        (tmp_path / "cut", "cut off"),
        (f"unix://{tmp_path}/no.sock", "is the gateway running?"),
    ):
        error = run(source).exception
        assert said in str(error)
        assert isinstance(error, click.ClickException)
        assert error.exit_code == 2


def test_a_file_that_is_cut_off_is_explained_up_to_there(wrong_sni: Path, tmp_path: Path) -> None:
    """As one whose writer was killed: what is in it is told, then what is wrong with it."""
    (tmp_path / "cut").write_bytes(wrong_sni.read_bytes()[:-5])
    result = run(tmp_path / "cut")
    assert "the policy refused it at the TLS hello" in result.output
    assert "after frame 6: the file is cut off" in str(result.exception)
