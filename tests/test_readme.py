"""What the README shows is run here: the hook, the specifications, the file, and the answers of `policy check`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from netstack import NetworkSpec, cli
from netstack.engine.verdict import ALLOW, Question, Verdict
from netstack.hooks import HookRunner, load_hooks
from netstack.policy_config import network_spec

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
GUEST, SERVER = (bytes([192, 168, 127, 2]), 40_000), (bytes([93, 184, 216, 34]), 443)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


async def test_the_hook_refuses_what_it_says(tmp_path: Path):
    (source,) = [block for block in blocks("python") if "Hooks" in block]
    (tmp_path / "quota.py").write_text(source)
    runner = HookRunner(load_hooks(str(tmp_path / "quota.py")))
    allowed = Verdict(ALLOW, "tls", "name-rule", "*.pythonhosted.org", "files.pythonhosted.org", "sni")
    reasons = [(await runner.flow(Question(number, 6, GUEST, SERVER), allowed)).reason for number in range(12)]
    assert reasons == ["name-rule"] * 10 + ["quota-used-up"] * 2
    other = allowed._replace(name="pypi.org")
    assert await runner.flow(Question(12, 6, GUEST, SERVER), other) == other
    question = Verdict(ALLOW, "dns", "name-rule", "pypi.org", "pypi.org", "dns")
    assert (await runner.dns(GUEST[0], "pypi.org", "MX", question)).reason == "no-mail"
    assert await runner.dns(GUEST[0], "pypi.org", "A", question) == question


def test_the_specifications_are_what_their_names_say():
    (source,) = [block for block in blocks("python") if "from netstack import NetworkSpec" in block]
    made: dict[str, NetworkSpec] = {}
    exec(source, made)
    assert str(made["everything"]) == "full access"
    assert str(made["nothing"]) == "nothing is allowed"
    assert made["off"] == made["also_off"] == NetworkSpec.disabled()
    assert made["listed"].policy().rules == NetworkSpec.parse(made["listed"]).rules()
    assert made["from_yaml"] == NetworkSpec.enabled(["pypi.org"])


def test_the_file_is_read(tmp_path: Path):
    (text,) = blocks("yaml")
    (tmp_path / "policy.yaml").write_text(text)
    spec = network_spec(config_file=tmp_path / "policy.yaml")
    assert spec == NetworkSpec.enabled(["pypi.org", "*.pythonhosted.org", "10.1.0.0/16"], sinkhole="nxdomain")


def test_the_answers_are_as_shown(capsys: pytest.CaptureFixture[str]):
    (shown,) = blocks("console")
    command, _, answers = shown.partition("\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(shlex.split(command.removeprefix("$ netstack ")))
    assert ended.value.code == 1, "something is refused"
    told = capsys.readouterr()
    assert (told.out, told.err) == (answers, "")


def test_every_rule_that_is_shown_can_be_used():
    table = README.partition("### Rules")[2].partition("Rules only allow")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    rules = [rule for cell in cells for rule in re.findall(r"`([^`]+)`", cell)]
    assert len(rules) >= 10
    assert [rule.text for rule in NetworkSpec.enabled(rules).rules()] == rules
    assert NetworkSpec.enabled(["bücher.example"]).rules()[0].name == "xn--bcher-kva.example"
