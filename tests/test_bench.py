"""The benchmark's arithmetic and its command line; what it measures is looked at by people."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from bench import measure, plots, sweep, targets
from bench.__main__ import KNOWN_ROWS, QUICK_PEERS, main
from bench.command import choose
from bench.flame_graph import main as flame_graph
from bench.lab import BenchError, Session, Tools, Wire, run
from bench.peers import PEERS, Netstack, Peer, with_checkouts
from bench.report import Round, as_json, notes, number, summarise, tables
from bench.rows import BULK, JUMBO, ROWS, Needs, Row, Sample
from bench.seen import SEEN
from bench.sweep import Cell, Cells

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
    (shown,) = tables(results, peers, HOST, OPTIONS, "netstack", 150)
    Console(file=written, width=150).print(shown)
    lines = {line.split("│")[1].strip(): line for line in written.getvalue().splitlines() if line.startswith("│")}
    assert "4.50" in lines["TCP guest -> host, 1 flow"]
    assert "x0.45" in lines["TCP guest -> host, 1 flow"]
    assert "failed" in lines["TCP request/response"]


def test_a_narrow_terminal_gets_several_tables() -> None:
    peers = list(PEERS.values())
    shown = tables({}, peers, HOST, OPTIONS, "netstack", 130)
    assert [len(part.columns) - 2 for part in shown] == [2] * (len(peers) // 2)
    assert len(tables({}, peers, HOST, OPTIONS, "netstack", 20)) == len(peers)


def test_the_json_holds_every_sample() -> None:
    peers = [PEERS["netstack"], PEERS["passt"]]
    results = {"tcp-up": summarise(ROWS["tcp-up"], rates((4.0, 2.0)), "netstack")}
    versions = {"netstack": "1", "passt": "2"}
    document = json.loads(json.dumps(as_json(results, peers, versions, "netstack")))
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
    assert ROWS["tso-up"].applies_to(PEERS["gvproxy"])
    assert ROWS["forward-crr"].applies_to(PEERS["passt"])
    assert not ROWS["forward-crr"].applies_to(PEERS["slirp4netns"])
    assert not ROWS["tso-up"].applies_to(PEERS["netstack-tap"])
    assert all(any(row.applies_to(PEERS[name]) for name in QUICK_PEERS) for row in ROWS.values())
    assert {row.needs for row in ROWS.values()} == set(Needs)


def test_a_row_says_what_card_the_guest_has() -> None:
    assert ROWS["tcp-up"].wire(1400) == Wire(mtu=1400)
    assert ROWS["tcp-down-jumbo-8"].wire(1400) == Wire(mtu=JUMBO)
    assert ROWS["tso-up"].wire(1400) == Wire(mtu=1400, offload=True)
    assert ROWS["forward-crr"].wire(1400) == Wire(mtu=1400, forwarded=True)
    assert ROWS["tso-up"].wire(1400).bridge_options() == ["--offload", "1414"]
    assert Wire(loss=0.01, delay=0.02, seed=3).bridge_options() == ["--loss", "0.01", "--delay", "0.01", "--seed", "3"]
    assert {(bulk.up, bulk.flows, bulk.mtu) for bulk in BULK.values()} == set(
        itertools.product((True, False), (1, 8, 32), (None, JUMBO))
    )


def test_every_peer_is_measured_in_turn_and_one_that_fails_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []

    @contextlib.contextmanager
    def running(peer: Peer, _tools: Tools, _wire: Wire) -> Iterator[Session | None]:
        happened.append(f"+{peer.name}")
        yield None
        happened.append(f"-{peer.name}")

    def sample(_session: Session, peer: Peer, _seconds: float) -> Sample:
        happened.append(peer.name)
        if happened.count("passt") == 1 and peer.name == "passt":
            raise BenchError("once")
        return Sample(1.0)

    monkeypatch.setattr(measure, "running", running)
    row = Row(name="r", title="r", unit="/s", measure=sample, needs=Needs.PROCESS)
    told: list[str] = []
    turns = measure.measure(
        row,
        [PEERS["netstack"], PEERS["passt"], PEERS["veth"]],
        None,  # type: ignore[arg-type]  # the sessions are not real
        wire=Wire(),
        seconds=1.0,
        rounds=2,
        begin=told.append,
        failed=told.append,
    )
    assert happened[:5] == ["+netstack", "netstack", "+passt", "passt", "-passt"]
    assert happened[5:] == ["netstack", "+passt", "passt", "-passt", "-netstack"]
    assert turns == [
        {"netstack": Sample(1.0), "passt": "once"},
        {"netstack": Sample(1.0), "passt": Sample(1.0)},
    ]
    assert told[:3] == ["r: netstack, round 1 of 2", "r: passt, round 1 of 2", "r: passt: once"]


def judged(row: str, *turns: Round) -> dict[tuple[str, str | None], targets.Outcome]:
    outcomes = targets.judge(ROWS[row], turns)
    assert len({(outcome.key, outcome.ours, outcome.against) for outcome in outcomes}) == len(outcomes)
    return {(outcome.key, outcome.against): outcome for outcome in outcomes}


def test_targets_are_met_or_missed_by_ratio_and_by_figure() -> None:
    turn: Round = {"netstack": Sample(1.2), "gvproxy": Sample(1.0), "passt": Sample(1.5)}
    up = judged("tcp-up", turn)
    assert up["value", "gvproxy"].met
    assert not up["value", "passt"].met
    assert up["value", "passt"].moonshot
    assert not judged("tcp-down", turn)["value", "gvproxy"].met
    memory = judged("memory", {"netstack": Sample(60.0, 0, {"flows_5000_mb": 111.0})})
    assert memory["value", None].met
    assert not memory["flows_5000_mb", None].met
    assert ("closed_mb", None) not in memory


def test_targets_where_lower_is_better_are_ratios_above_one() -> None:
    turn: Round = {"netstack": Sample(1.0, 0, {"cpu_s_per_gb": 4.0}), "gvproxy": Sample(1.0, 0, {"cpu_s_per_gb": 5.0})}
    assert judged("tcp-up", turn)["cpu_s_per_gb", "gvproxy"].figure == 1.25
    assert judged("hang", {"netstack": Sample(1.0), "gvproxy": Sample(5000.0)})["value", "gvproxy"].met


def test_targets_are_of_rows_and_peers_that_exist() -> None:
    names = {"list-1k", "no-list", *SEEN.names, *PEERS}
    for target in targets.TARGETS:
        assert set(target.rows) <= set(KNOWN_ROWS)
        assert target.ours in names
        assert target.against is None or target.against in names


def test_the_table_of_targets_says_how_many_are_met() -> None:
    turn: Round = {"netstack": Sample(1.2), "gvproxy": Sample(1.0), "passt": Sample(1.5)}
    results = {"tcp-up": summarise(ROWS["tcp-up"], [turn], "gvproxy")}
    written = io.StringIO()
    Console(file=written, width=150).print(targets.table(targets.judge(ROWS["tcp-up"], [turn]), results))
    assert "Targets: 1 of 1 met; moonshots below the line" in written.getvalue()
    assert written.getvalue().count("missed") == 1


def test_names_are_chosen_by_pattern() -> None:
    assert choose("--rows", "tso-*,tcp-rr,tso-up", list(ROWS), ()) == ["tso-up", "tso-up-8", "tcp-rr"]
    assert choose("--rows", "all", ["a", "b"], ()) == ["a", "b"]
    assert choose("--rows", None, ["a", "b"], ["b"]) == ["b"]


CELLS: Cells = {
    Cell(1500, 0.0, 1, up=True): {"netstack": [0.8, 1.0, 0.9], "slirp4netns": [0.025]},
    Cell(1500, 5.0, 1, up=True): {"netstack": [0.003], "slirp4netns": [0.006]},
    Cell(65520, 0.0, 1, up=True): {"netstack": [0.4], "slirp4netns": []},
    Cell(65520, 5.0, 1, up=True): {"netstack": [0.05]},
}


def test_a_sweep_is_told_as_text_with_what_is_empty_what_dips_and_what_is_behind() -> None:
    text = sweep.as_text(CELLS, ["netstack", "slirp4netns"], HOST, {"delay": 20.0, "seconds": 1.0, "rounds": 3})
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "1500 netstack 900 3.00" in lines
    assert "65520 slirp4netns failed -" in lines
    assert "cells without a figure: 1 of 7" in lines
    assert "MTU 65520, loss 0 %, 1 flows, guest to host: slirp4netns" in lines
    assert "dip: MTU 65520, loss 0 %, 1 flows, guest to host: netstack: 400 after 900 at MTU 1500" in lines
    assert "netstack / slirp4netns: median 18.25, lowest 0.50; below 0.8 with loss in 1 cells" in lines


def test_a_sweep_keeps_its_samples_as_json() -> None:
    document = json.loads(sweep.as_json(CELLS, {"netstack": "1"}, HOST, {"delay": 20.0}))
    assert document["cells"][0] == {
        "mtu": 1500,
        "loss_percent": 0.0,
        "flows": 1,
        "up": True,
        "gbit_per_s": {"netstack": [0.8, 1.0, 0.9], "slirp4netns": [0.025]},
    }


def test_throughput_is_drawn_against_mtu_flows_and_loss(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots.require()
    sweep.plot(CELLS, ["netstack", "slirp4netns"], tmp_path)
    rows = {
        name: {"lines": {"value": {"peers": {"netstack": {"median": 1.0 + number}}}}}
        for number, name in enumerate(BULK)
    }
    plots.plot_flows({"groups": [{"rows": rows}], "options": OPTIONS}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "throughput-flows.svg",
        "throughput-loss.svg",
        "throughput-mtu.svg",
    ]
    assert all("<svg" in path.read_text() for path in tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("program", ["bridge", "load", "serve"])
def test_the_c_programs_compile_without_a_warning(program: str, tmp_path: Path) -> None:
    source = Path(measure.__file__).with_name(f"{program}.c")
    options = ["-O2", "-Wall", "-Wextra", "-Wno-unused-function", "-Werror", "-o", str(tmp_path / program)]
    done = subprocess.run(["cc", *options, str(source)], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


@pytest.mark.guest("cc")
@pytest.mark.parametrize("name", ["bridge", "netstack-tap"])
def test_the_wire_holds_frames_for_bridged_guests_and_for_taps(name: str) -> None:
    """A lower bound: a busy machine answers later, never earlier."""
    with contextlib.closing(Tools()) as tools, measure.running(PEERS[name], tools, Wire(delay=0.1)) as session:
        assert session.load("rr", 0.3)["p50_us"] >= 100_000


@pytest.mark.guest("cc")
def test_the_wire_loses_frames() -> None:
    """One small message on its way at a time: no queue overflows, so that nothing but a lost frame is sent again."""
    wire = Wire(loss=0.05, delay=0.0001)
    with contextlib.closing(Tools()) as tools, measure.running(PEERS["bridge"], tools, wire) as session:
        session.load("rr", 1)
        counters = run("ip", "netns", "exec", session.guest, "cat", "/proc/net/snmp")
        names, values = (line.split() for line in counters.splitlines() if line.startswith("Tcp:"))
        assert int(values[names.index("RetransSegs")]) > 0


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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mtus", "1500,no"], "'1500,no' is not a list of numbers"),
        (["--losses", "51"], "each has to be within 0 to 50"),
        (["--peers", "veth"], "'veth' is none of: netstack"),
    ],
)
def test_a_sweep_of_what_cannot_be_is_refused(arguments: list[str], said: str) -> None:
    outcome = CliRunner().invoke(sweep.main, arguments)
    assert outcome.exit_code == 2
    assert said in outcome.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--row", "start"], "'start' is none of: tcp-up"),
        (["--peer", "passt"], "'passt' is none of: netstack"),
        (["--row", "tso-up", "--peer", "netstack-tap"], "netstack-tap does not have the row tso-up"),
    ],
)
def test_a_profile_of_what_cannot_be_is_refused(arguments: list[str], said: str) -> None:
    outcome = CliRunner().invoke(flame_graph, arguments)
    assert outcome.exit_code == 2
    assert said in outcome.output
