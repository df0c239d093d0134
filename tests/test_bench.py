"""The benchmark's arithmetic and its command line; what it measures is looked at by people."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from bench.__main__ import main
from bench.peers import DEFAULT_PEERS, PEERS, Netstack, with_checkouts
from bench.report import Round, as_json, notes, number, summarise, table
from bench.rows import ROWS, Needs, Sample

HOST = {
    "cpu": "2 x Test",
    "kernel": "6.1",
    "python": "CPython 3.11",
    "date": "2026-11-23T00:00:00+00:00",
    "load before": "0.1",
}
OPTIONS = {"mtu": 1500, "rounds": 3, "seconds": 1.0}


def rates(*pairs: tuple[float, float]) -> list[Round]:
    return [{"netstack": Sample(ours), "passt": Sample(theirs)} for ours, theirs in pairs]


def test_the_ratio_is_the_median_of_the_rounds_ratios() -> None:
    """A machine that slows down in the middle slows both, and the ratio does not see it."""
    line = summarise(ROWS["tcp-up"], rates((4.0, 2.0), (0.4, 0.2), (4.0, 1.0)), "netstack").lines["value"]
    assert line.peers["passt"].ratio == 0.5
    assert line.peers["passt"].median == 1.0
    assert (line.peers["passt"].low, line.peers["passt"].high) == (0.2, 2.0)
    assert line.peers["netstack"].ratio is None


def test_above_one_means_ahead_also_where_lower_is_better() -> None:
    assert summarise(ROWS["memory"], rates((20.0, 60.0)), "netstack").lines["value"].peers["passt"].ratio == 1 / 3


def test_details_are_lines_of_their_own_and_lower_is_better() -> None:
    turn: Round = {
        "netstack": Sample(100.0, 0, {"p50_us": 50.0, "p99_us": 80.0}),
        "passt": Sample(100.0, 0, {"p50_us": 100.0, "p99_us": 40.0}),
    }
    lines = summarise(ROWS["tcp-rr"], [turn], "netstack").lines
    assert lines["p50_us"].peers["passt"].ratio == 0.5
    assert lines["p99_us"].peers["passt"].ratio == 2.0


def test_failures_and_errors_are_told_and_do_not_count_as_samples() -> None:
    turns: list[Round] = [
        {"netstack": Sample(2.0, 3), "passt": "it died"},
        {"netstack": Sample(2.0, 4), "passt": Sample(1.0)},
        {"netstack": "no answer", "passt": "it died"},
    ]
    result = summarise(ROWS["tcp-up"], turns, "netstack")
    assert result.errors == {"netstack": 7}
    assert result.lines["value"].peers["passt"].samples == [1.0]
    assert result.lines["value"].peers["passt"].ratio == 0.5
    told = notes({"tcp-up": result}, {"netstack": "1.0"})
    assert told == [
        "netstack: 1.0",
        "tcp-up, netstack: 7 operations failed",
        "tcp-up, passt: it died",
        "tcp-up, netstack: no answer",
    ]


def test_a_sample_of_nothing_makes_no_ratio() -> None:
    line = summarise(ROWS["tcp-up"], rates((0.0, 1.0), (1.0, 0.0)), "netstack").lines["value"]
    assert line.peers["passt"].ratio is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (0.234, "0.23"),
        (1.754, "1.75"),
        (23.44, "23.4"),
        (605.4, "605"),
        (5331.0, "5,330"),
        (92440.0, "92,400"),
    ],
)
def test_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_the_table_has_a_line_for_each_figure_and_says_what_failed() -> None:
    peers = [PEERS["netstack"], PEERS["passt"]]
    results = {
        "tcp-up": summarise(ROWS["tcp-up"], rates((4.0, 2.0), (5.0, 2.0)), "netstack"),
        "tcp-rr": summarise(ROWS["tcp-rr"], [{"netstack": Sample(5000.0), "passt": "it died"}], "netstack"),
    }
    written = io.StringIO()
    Console(file=written, width=150).print(table(results, peers, HOST, OPTIONS, "netstack"))
    lines = {line.split("│")[1].strip(): line for line in written.getvalue().splitlines() if line.startswith("│")}
    assert "4.50" in lines["TCP guest -> host, 1 flow"]
    assert "x0.45" in lines["TCP guest -> host, 1 flow"]
    assert "failed" in lines["TCP request/response"]


def test_the_json_holds_every_sample() -> None:
    peers = [PEERS["netstack"], PEERS["passt"]]
    results = {"tcp-up": summarise(ROWS["tcp-up"], rates((4.0, 2.0)), "netstack")}
    versions = {"netstack": "1", "passt": "2"}
    document = json.loads(json.dumps(as_json(results, peers, versions, OPTIONS, HOST, "netstack")))
    assert document["base"] == "netstack"
    assert document["rows"]["tcp-up"]["lines"]["value"]["peers"]["passt"]["samples"] == [2.0]
    assert document["peers"]["passt"] == {"link": "unix stream", "version": "2"}


def test_checkouts_are_peers_on_every_link_and_this_checkout_stays_one(tmp_path: Path) -> None:
    peers = with_checkouts({"after": tmp_path})
    assert list(peers)[:4] == ["after", "after-qemu", "after-tap", "netstack"]
    assert [peers[name].link for name in ("after", "after-qemu", "after-tap")] == [
        peers[name].link for name in ("netstack", "netstack-qemu", "netstack-tap")
    ]
    assert with_checkouts({"netstack": tmp_path})["netstack"] != PEERS["netstack"]
    assert set(with_checkouts({"netstack": tmp_path})) == set(PEERS)


def test_a_checkouts_version_is_of_what_python_imports_there(tmp_path: Path) -> None:
    package = tmp_path / "netstack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text("print('netstack 7')")
    assert Netstack(tmp_path).version() == "netstack 7"


def test_rows_apply_to_the_peers_that_have_what_they_measure() -> None:
    assert ROWS["tcp-up"].applies_to(PEERS["veth"])
    assert not ROWS["memory"].applies_to(PEERS["veth"])
    assert not ROWS["dns-zone"].applies_to(PEERS["passt"])
    assert ROWS["dns-forward"].applies_to(PEERS["passt"])
    assert all(any(row.applies_to(PEERS[name]) for name in DEFAULT_PEERS) for row in ROWS.values())
    assert {row.needs for row in ROWS.values()} == set(Needs)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows", "nonsense"], "'nonsense' is none of: tcp-up"),
        (["--peers", "netstack,nonsense"], "'nonsense' is none of: netstack"),
        (["--peers", "gvproxy"], "GVPROXY=/path/to/gvproxy is not given"),
        (["--mtu", "10"], "Invalid value for '--mtu'"),
        (["--netstack", "/somewhere"], "'/somewhere' is not NAME=PATH"),
        (["--netstack", "passt=/somewhere"], "two peers called 'passt'"),
        (["--netstack", "a=/", "--netstack", "a=/"], "two peers called 'a'"),
        (["--netstack", "a=/nowhere"], "/nowhere has no netstack/__main__.py"),
        (["--against", "nobody"], "'nobody' is none of: netstack"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_reason(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GVPROXY", raising=False)
    outcome = CliRunner().invoke(main, arguments)
    assert outcome.exit_code != 0
    assert said in outcome.output
