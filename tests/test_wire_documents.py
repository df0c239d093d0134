"""What docs/impair.md and docs/captures.md show can be used as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from guest_iface.frame_filter import parse_filter
from netstack.configuration import read_document, settings_of
from netstack.impairments import parse_impairments
from netstack.run_settings import run_config

DOCS = Path(__file__).parents[1] / "docs"
IMPAIR, CAPTURES = ((DOCS / name).read_text(encoding="utf-8") for name in ("impair.md", "captures.md"))
FILES = [
    *re.findall(r"^```yaml\n(.*?)^```$", IMPAIR, re.MULTILINE | re.DOTALL),
    "\n".join(re.findall(r"`(capture: \{.*\})`", CAPTURES)),
]


@pytest.mark.parametrize("text", FILES)
def test_the_files_are_read(text: str, tmp_path: Path) -> None:
    path = tmp_path / "netstack.yaml"
    path.write_text(text)
    config = run_config(settings_of(read_document(path), path), links=False)
    assert config.impair or config.shaping or config.capture_options.rotate_count


def test_the_files_say_what_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "netstack.yaml"
    path.write_text("\n".join(FILES))
    config = run_config(settings_of(read_document(path), path), links=False)
    assert config.impair == (
        "dir=to-guest delay 50ms 10ms distribution normal loss 1% seed 7",
        "dir=from-guest match (tcp and port 443) rate 2mbit limit 100",
        "stream match (name pypi.org) reset after 100k",
        "dns *.example.com servfail",
    )
    assert config.shaping is not None
    assert (config.shaping.tx_kbps, config.shaping.rx_kbps, config.shaping.burst) == (20_000, 50_000, 65_536)
    assert [(link, each.tx_kbps) for link, each in config.shaping.links] == [("tap*", 100_000)]
    options = config.capture_options
    assert (options.filter, options.snaplen, options.rotate_size, options.rotate_count) == (
        "not arp",
        128,
        100 << 20,
        5,
    )


def test_the_commands_words_can_be_read() -> None:
    commands = re.findall(r"^\$ (netstack .*)$", IMPAIR, re.MULTILINE)
    specs = [word for command in commands for word in shlex.split(command.partition(" -- ")[0]) if " " in word]
    assert len(parse_impairments(specs, "docs")) >= 4
    printed = re.findall(r"^(match .*|stream match \(.*|dns .* seed \d+)$", IMPAIR, re.MULTILINE)
    for text in printed:
        (spec,) = parse_impairments(text.partition("    #")[0], "docs")
        assert str(spec) == text.partition("    #")[0]
    for text in re.findall(r"--capture-filter '([^']+)'", CAPTURES) + re.findall(r"`match ([^`]+)`", IMPAIR):
        if text != "FILTER":
            parse_filter(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("impair: lose 1%", "netstack.yaml: impair: 'lose': expected one of dir="),
        ("impair: [{delay: 5ms, los: 1%}]", "'los': expected one of"),
        ("shaping: {tx_kbps: 1}", "netstack.yaml: shaping.tx_kbps '1.0': expected a rate from 8 to"),
        ("shaping: {links: {tap0: {rx_kbps: 1}}}", "shaping.links.tap0.rx_kbps '1.0': expected a rate"),
        ("capture: {file: a, filter: hst}", "netstack.yaml: capture.filter 'hst': expected a filter such as"),
        ("capture: {file: a, rotate-count: 5}", "capture.rotate-count '5': expected .*capture.rotate-size with it"),
    ],
)
def test_errors_name_the_key_of_the_file(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "netstack.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        run_config(settings_of(read_document(path), path), links=False)
