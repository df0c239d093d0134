"""pytest: a capture with its trace beside it is a test by being there, and `replay_capture` is a fixture.

    [tool.pytest.ini_options]
    netstack_captures = ["tests/captures"]

makes a test of each NAME.pcapng (or .pcap) in those directories: its replay has to give the lines of NAME.trace.
`--update-traces` writes them anew. NAME.yaml, if there is one, is the policy, as `netstack replay --config` takes it.
Nothing of netstack is imported before there is a capture to be replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from netstack.testing.replayed import Replayed

SUFFIXES = (".pcapng", ".pcap")


class TraceDiffers(AssertionError):  # noqa: N818 - it is what pytest reports, and no error of the program's
    """The replay gave other lines than the trace has; the message shows which."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--update-traces`, and where the captures are."""
    group = parser.getgroup("netstack")
    group.addoption(
        "--update-traces",
        action="store_true",
        help="write the trace of each capture anew instead of comparing it",
    )
    parser.addini(
        "netstack_captures",
        "directories, relative to the root, whose captures are tests with their traces beside them",
        type="linelist",
    )


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> CaptureFile | None:
    """A capture in one of the directories is a file of one test."""
    if file_path.suffix not in SUFFIXES:
        return None
    root = parent.config.rootpath
    places = [root / place for place in parent.config.getini("netstack_captures")]
    if not any(place in file_path.parents for place in places):
        return None
    return CaptureFile.from_parent(parent, path=file_path)


class CaptureFile(pytest.File):
    """A capture."""

    def collect(self) -> Iterable[pytest.Item]:
        """Its one test."""
        return [CaptureItem.from_parent(self, name="replay")]


class CaptureItem(pytest.Item):
    """Replays the capture and compares the lines with its trace."""

    obj = None
    """There is no function behind it; pytest-trio looks whether it is asynchronous."""

    def runtest(self) -> None:
        """Raises TraceDiffers."""
        from netstack.testing.replayed import replay_capture

        trace = self.path.with_suffix(".trace")
        settings = self.path.with_suffix(".yaml")
        spec = None
        if settings.exists():
            from netstack.policy_config import network_spec

            spec = network_spec(config_file=settings)
        lines = replay_capture(self.path, spec=spec).lines
        if self.config.getoption("update_traces"):
            trace.write_text("\n".join(lines) + "\n", encoding="ascii")
            return
        if not trace.exists():
            raise TraceDiffers(f"{trace.name} is not there; --update-traces makes it")
        wanted = trace.read_text(encoding="ascii").splitlines()
        if wanted != list(lines):
            import difflib

            shown = difflib.unified_diff(wanted, lines, trace.name, "replayed", lineterm="", n=2)
            raise TraceDiffers("\n".join([f"{self.path.name} replays otherwise than {trace.name} says:", *shown]))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The difference alone: the way through this file says nothing."""
        if isinstance(excinfo.value, TraceDiffers):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where it is."""
        return self.path, None, f"replay of {self.path.name}"


@pytest.fixture
def replay_capture(request: pytest.FixtureRequest) -> Callable[..., Replayed]:
    """`netstack.testing.replay_capture` with paths relative to the test's own file."""
    from netstack.testing.replayed import replay_capture as replay

    def relative(path: str | Path, **options: Any) -> Replayed:
        return replay(request.path.parent / path, **options)

    return relative
