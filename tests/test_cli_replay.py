"""`netstack replay`: lines, JSON, traces, and what the status says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from netstack import cli

PCAPS = Path(__file__).parents[1] / "fixtures" / "pcaps"
SESSION = PCAPS / "tcp-echo.pcapng"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["replay", *map(str, arguments)])
    told = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, told.out, told.err


def test_the_dialogue_in_lines(capsys: pytest.CaptureFixture[str]):
    status, out, err = run(capsys, SESSION)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "# netstack trace 1"
    assert any(" > tcp " in line and "<mss 1460, sack, ts, scale" in line for line in lines)
    assert any(" = flow 1 tcp " in line and "opened: allowed at syn: no-list" in line for line in lines)
    assert lines[-1].endswith(" 0 differences")


def test_quiet_says_the_sum_alone(capsys: pytest.CaptureFixture[str]):
    _, out, _ = run(capsys, "-q", SESSION)
    assert len(out.splitlines()) == 1


def test_json_is_a_step_a_line(capsys: pytest.CaptureFixture[str]):
    status, out, _ = run(capsys, "--json", SESSION)
    steps = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [step["number"] for step in steps if step["number"]] == list(range(1, len(steps) + 1))
    opened = [event for step in steps for event in step["events"] if event["event"] == "flow_opened"]
    assert opened[0]["reason_code"] == "no-list"


def test_a_trace_is_kept_and_expected(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    trace = tmp_path / "a.trace"
    assert run(capsys, "-q", "--trace", trace, SESSION)[0] == 0
    assert trace.read_text() == SESSION.with_suffix(".trace").read_text()
    assert run(capsys, "-q", "--expect", trace, SESSION)[0] == 0
    trace.write_text(trace.read_text().replace("hello", "").replace("finished", "something else"))
    status, out, _ = run(capsys, "-q", "--expect", trace, SESSION)
    assert status == 1
    assert "-" in out
    assert "something else" in out


def test_a_policy_that_does_otherwise_is_status_1(capsys: pytest.CaptureFixture[str]):
    status, out, _ = run(capsys, "-q", "--allow-net", "example.org", PCAPS / "kernel-tls.pcapng")
    assert status == 1
    assert " ! " in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.pcap"], "nowhere.pcap: No such file"),
        ([__file__], "expected a pcap or pcapng file"),
        (["--guest", "x", SESSION], "--guest 'x': expected an IPv4 address or a MAC"),
        (["--allow-net", "*.com", SESSION], "allow_net rule '*.com'"),
        (["--expect", "nowhere.trace", SESSION], "--expect nowhere.trace: No such file"),
        (["--trace", "/nowhere/a.trace", SESSION], "--trace /nowhere/a.trace: No such file"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[object], words: str
):
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert words in err
    assert err.count("\n") == 1
