"""The guides in docs/: their commands are understood, their files can be read, and their links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from netstack import cli
from netstack.gateway import guest_command, run_command

DOCS = Path(__file__).parents[1] / "docs"
GUIDES = sorted((DOCS / "guides").glob("*.md"))
SHELL = frozenset({"&", "&&", "|", "||", ";", ">", ">>", "<<"})


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def shell_lines(text: str) -> Iterator[str]:
    """What is typed at a host's prompt, `$` or `#`; lines that a backslash continues are one."""
    for block in blocks(text, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith(("$ ", "# ")):
                yield line[2:]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each call of netstack, without those of the shell around them."""
    for line in shell_lines(text):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, "&"]:
            if word not in SHELL:
                words.append(word)
                continue
            if words and words[0] == "netstack":
                yield words[1:]
            words = []


COMMANDS = [
    pytest.param(words, id=f"{guide.stem}-{number}")
    for guide in GUIDES
    for number, words in enumerate(commands(guide.read_text(encoding="utf-8")), 1)
]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Stands in for the networks that commands would start or ask, and holds what they were started with or asked."""
    calls: list[tuple[Any, ...]] = []

    def ask(request: httpx.Request) -> httpx.Response:
        calls.append((request.method, request.url.path))
        raise httpx.ConnectError("nobody is there")

    monkeypatch.setattr(run_command, "run_gateway", lambda *given: calls.append(given))
    monkeypatch.setattr(httpx, "HTTPTransport", lambda uds: httpx.MockTransport(ask))
    monkeypatch.setattr(guest_command, "run_guest", lambda *given: calls.append(given) or 0)
    return calls


@pytest.mark.parametrize("words", COMMANDS)
def test_the_command_is_understood(
    words: list[str], started: list[tuple[Any, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Options, their values and what they say together: all that is checked before a socket is opened."""
    key = tmp_path / ".local/share/containers/podman/machine/machine"
    key.parent.mkdir(parents=True)
    key.write_text("a private key that -forward-identity names")
    with pytest.raises(SystemExit) as ended:
        cli.main([re.sub(r"^~|^\$NET|/tmp(?=/)", str(tmp_path), word) for word in words])
    assert ended.value.code == (1 if words[0] == "ctl" else 0), capsys.readouterr().err
    assert len(started) == 1


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_each_guide_says_what_goes_wrong_and_what_was_tried(guide: Path):
    text = guide.read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert {"See that it works", "A list", "What goes wrong"} <= set(headings)
    assert headings[-1] == "Tried"
    assert list(commands(text))


def test_the_file_for_podman_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (text,) = blocks((DOCS / "guides/podman-machine.md").read_text(encoding="utf-8"), "yaml")
    (tmp_path / "podman.yaml").write_text(text)
    with pytest.raises(SystemExit) as ended:
        cli.main(["config", "check", str(tmp_path / "podman.yaml")])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"{tmp_path}/podman.yaml: ok\n")


def test_every_guide_is_in_the_index():
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert [guide.name for guide in GUIDES if f"](guides/{guide.name})" not in index] == []


@pytest.mark.parametrize("document", [DOCS / "README.md", *GUIDES], ids=lambda document: document.stem)
def test_links_lead_somewhere(document: Path):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    assert [target for target in targets if not (document.parent / target).exists()] == []
