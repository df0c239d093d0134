"""The pid file, and messages: to a file or standard error, as a line, gvproxy's line or a JSON object."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from netstack.gateway import RunFailed
from netstack.gateway.pid_file import pid_file
from netstack.gateway.process_log import logrus_line, start_logging

LOGRUS = re.compile(r'time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ" level=(\w+) msg=("(?:[^"\\]|\\.)*")')


@contextmanager
def fresh_root() -> Iterator[logging.Logger]:
    """The root logger as a new process has it: without pytest's handlers."""
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    root.handlers[:] = []
    try:
        yield root
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = kept
        root.setLevel(level)


def test_the_pid_is_there_while_it_runs(tmp_path: Path):
    path = tmp_path / "pid"
    path.write_text("4711 and more, of a process that is dead")
    with pid_file(path):
        assert path.read_text() == str(os.getpid())
    assert not path.exists()
    with pid_file(None):
        assert not path.exists()


def test_it_goes_with_a_failure_too(tmp_path: Path):
    def fail() -> None:
        with pid_file(tmp_path / "pid"):
            raise RunFailed("no")

    with pytest.raises(RunFailed, match="no"):
        fail()
    assert not (tmp_path / "pid").exists()


def test_another_processs_file_is_left_alone(tmp_path: Path):
    with pid_file(tmp_path / "pid"):
        (tmp_path / "pid").write_text("1")
    assert (tmp_path / "pid").read_text() == "1"
    with pid_file(tmp_path / "pid"):
        (tmp_path / "pid").unlink()


def test_a_pid_file_that_cannot_be_written_is_a_failure(tmp_path: Path):
    with (
        pytest.raises(
            RunFailed, match=f"failed to create pidfile: open {tmp_path}/none/pid: No such file or directory"
        ),
        pid_file(tmp_path / "none" / "pid"),
    ):
        pass


def test_a_log_file_is_emptied_first_and_holds_gvproxys_lines(tmp_path: Path):
    path = tmp_path / "log"
    path.write_text("old\n")
    with fresh_root() as root:
        start_logging("info", "logrus", path)
        for level in ("debug", "info", "warning", "error", "critical"):
            getattr(root, level)('said at %s: "quoted"\nand on', level)
    lines = [LOGRUS.fullmatch(line) for line in path.read_text().splitlines()]
    assert [line and line[1] for line in lines] == ["info", "warning", "error", "fatal"]
    assert all(line and json.loads(line[2]).endswith(': "quoted"\nand on') for line in lines)


def test_a_log_file_that_was_rotated_is_made_again(tmp_path: Path):
    path = tmp_path / "log"
    with fresh_root() as root:
        start_logging("info", "plain", path)
        root.info("before")
        path.rename(tmp_path / "log.1")
        root.info("behind")
    assert [each.read_text() for each in (tmp_path / "log.1", path)] == ["netstack: before\n", "netstack: behind\n"]


def test_json_is_an_object_a_line_with_what_was_raised(capsys: pytest.CaptureFixture[str]):
    with fresh_root() as root:
        start_logging("debug", "json")
        root.error("failed\n", exc_info=ValueError("reason"))
    [line] = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert (said["level"], said["message"], said["logger"]) == ("error", "failed\n", "root")
    assert said["exception"].endswith("ValueError: reason")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said["time"])


def test_plain_is_a_line_on_standard_error(capsys: pytest.CaptureFixture[str]):
    with fresh_root() as root:
        start_logging("warning")
        root.info("quiet")
        root.warning("loud")
    assert capsys.readouterr().err == "netstack: loud\n"


def test_a_log_file_that_cannot_be_opened_is_a_failure_in_gvproxys_words(tmp_path: Path):
    with pytest.raises(RunFailed, match=f"unable to open log file {tmp_path}: Is a directory"):
        start_logging("info", "logrus", tmp_path)


def test_a_line_of_a_moment():
    assert logrus_line("info", "x", when=0.0) == 'time="1970-01-01T00:00:00Z" level=info msg="x"\n'
