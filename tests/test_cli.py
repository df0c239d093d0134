"""The command line: what it says, with which status it ends, and that the README tells of every command and option."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from netstack import __version__, cli
from netstack.build_kind import build_kind
from netstack.config import ListenLink, RunConfig, StdioLink, TapLink

ROOT = Path(__file__).parents[1]


def invoke(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command line in this process: its status, standard output and standard error."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    told = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, told.out, told.err


def every_command() -> Iterator[tuple[str, click.Command]]:
    yield "netstack", cli.cli
    for name, command in cli.cli.commands.items():
        yield f"netstack {name}", command


def test_version(capsys: pytest.CaptureFixture[str]):
    assert invoke(capsys, "--version") == (0, f"netstack {__version__} ({build_kind()})\n", "")


@pytest.mark.parametrize(("path", "command"), list(every_command()))
def test_every_command_has_help_that_names_every_option(
    path: str, command: click.Command, capsys: pytest.CaptureFixture[str]
):
    status, out, err = invoke(capsys, *path.split()[1:], "--help")
    assert (status, err) == (0, "")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert parameter.opts[0] in out


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["run"], 2, "netstack: link 'none': expected one of --listen-vfkit,"),
        (["run", "--listen-vfkit", "/x"], 2, "netstack: --listen-vfkit '/x': expected unixgram://PATH"),
        (["run", "--fd", "5", "--mtu", "9"], 2, "netstack: --mtu '9': expected a number of bytes"),
        (["run", "--fd", "5", "--mtu", "x"], 2, "netstack run: Invalid value for '--mtu': 'x' is not a valid integer"),
        (["run", "--fd", "5", "--dns-upstream", "x"], 2, "netstack: --dns-upstream 'x': expected the address"),
        (["run", "--fd", "5", "--zone", "x"], 2, "netstack: --zone 'x': expected NAME:WHAT=IP"),
        (["run", "--fd", "5", "--ready-fd", "0"], 2, "netstack: --ready-fd '0': expected the number of an open file"),
        (["run", "--fd", "5", "--mut", "1500"], 2, "netstack run: No such option '--mut'. (Did you mean"),
        (["run", "--listen-stdio", "--events", "-"], 2, "netstack: --events '-': expected a file"),
        (["guest"], 2, "netstack guest: Missing argument 'COMMAND...'"),
        (["guest", "--mtu", "1", "--", "true"], 2, "netstack: --mtu '1': expected"),
        (["ruin"], 2, "netstack: No such command 'ruin'"),
        (["explain", "/nowhere/x.pcap"], 2, "netstack: /nowhere/x.pcap: No such file"),
        (["completion", "tcsh"], 2, "netstack completion: Invalid value for"),
    ],
)
def test_a_mistake_is_one_line_and_a_status(
    arguments: list[str], status: int, line: str, capsys: pytest.CaptureFixture[str]
):
    ended, out, err = invoke(capsys, *arguments)
    assert (ended, out) == (status, "")
    assert err.startswith(line)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--allow-net", "*.co.uk"], "anybody can register"),
        (["--allow-net", "https://pypi.org/"], "did you mean 'pypi.org'?"),
        (["--allow-net", "10.0.0.1/8"], "did you mean '10.0.0.0/8'?"),
        (["--allow-net", "pypi.org,bad rule"], "'bad rule'"),
        (["--network", "disabled", "--allow-net", "pypi.org"], "allow_net"),
        (["--network", "disabled", "--deny-all"], "deny_all"),
        (["--deny-all", "--allow-net", "pypi.org"], "deny_all"),
        (["--network", "off"], "expected 'enabled' or 'disabled'"),
        (["--dns-sinkhole", "loopback"], "--dns-sinkhole"),
        (["--config", "/nonexistent/policy.yaml"], "No such file"),
        (["--config", "/proc/self"], "Is a directory"),
        (["--config", "{}/alias.yaml"], "quotes"),
        (["--config", "{}/deep.yaml"], "deep.yaml"),
        (["--config", "{}/binary.yaml"], "UTF-8"),
        (["--config", "{}/key.yaml"], "did you mean 'allow_net'?"),
        (["--config", "{}/section.yaml"], "'policy'"),
        (["--config", "{}/list.yaml"], "list of rules"),
        (["--hook", "/nonexistent/hook.py"], "No such file"),
        (["--hook", "{}/broken.py"], "SyntaxError"),
        (["--hook", "netstack.hooks:Hooks"], "expected one subclass"),
        (["--hook-deadline", "0", "--hook", "{}/broken.py"], "--hook-deadline"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("command", ["run", "guest"])
def test_i1_i2_bad_policies_are_one_line_and_start_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, options: list[str], said: str
):
    """Conformance I1, I2: nothing is ever partly applied."""
    files = {
        "alias.yaml": b"policy:\n  allow_net:\n    - *.pypi.org\n",
        "deep.yaml": b"[" * 100_000,
        "binary.yaml": b"policy: \xff\xfe",
        "key.yaml": b"policy: {allow_nets: [pypi.org]}",
        "section.yaml": b"polcy: {allow_net: [pypi.org]}",
        "list.yaml": b"policy: {allow_net: [1, 2]}",
        "broken.py": b"class",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    words = [word.format(tmp_path) if word.startswith("{}") else word for word in options]
    rest = ["--tap", "t0"] if command == "run" else ["--", "echo", "started"]
    status, out, err = invoke(capsys, command, *words, *rest)
    assert status in (1, 2)
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("netstack")
    assert said in err


def test_no_command_shows_the_help_and_fails(capsys: pytest.CaptureFixture[str]):
    status, out, err = invoke(capsys)
    assert (status, out) == (2, "")
    assert "Usage: netstack" in err


@pytest.fixture
def configurations(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """What the commands would run with."""
    from netstack.gateway import guest_command, run_command

    seen: list[RunConfig] = []

    def run_guest(config: RunConfig, command: object) -> int:
        seen.append(config)
        return 42 if command == ("ls", "-l", "--all") else 0

    monkeypatch.setattr(run_command, "run_gateway", seen.append)
    monkeypatch.setattr(guest_command, "run_guest", run_guest)
    return seen


def test_run_hands_over_what_the_options_say(configurations: list[RunConfig], capsys: pytest.CaptureFixture[str]):
    options = (
        "--listen-qemu unix:///q --listen-stdio --tap t0 --netns 17 --mtu 9000 --subnet 10.1.0.0/16 --capture c.pcapng"
    )
    options += " --events e.jsonl --ready-fd 7 --log-level debug --dns-upstream 127.0.0.1:5353 --dns-upstream ::1"
    options += " --nat 10.9.9.9=127.0.0.1 --zone lab:*=10.1.0.7 --static-lease 02:00:00:00:00:01=10.1.0.9"
    options += " --udp-timeout 60 --udp-unreplied-timeout 5 --metadata-access --host-ip 10.1.0.200"
    assert invoke(capsys, "run", *options.split())[0] == 0
    [config] = configurations
    assert isinstance(config.links[0], ListenLink)
    assert config.links[1:] == (StdioLink(), TapLink("t0", "17"))
    assert config.network.link.mtu == 9000
    assert config.network.gateway_ip == bytes([10, 1, 0, 1])
    assert config.network.host_ip == bytes([10, 1, 0, 200])
    assert config.network.nat[bytes([10, 9, 9, 9])] == bytes([127, 0, 0, 1])
    assert config.network.zones[-1].name == "lab"
    assert len(config.network.static_leases) == 2
    assert config.network.udp_replied_timeout == 60
    assert config.network.udp_unreplied_timeout == 5
    assert config.network.metadata_access is True
    assert config.dns_upstreams == ("127.0.0.1:5353", "[::1]:53")
    assert (config.capture, config.events, config.ready_fd) == (Path("c.pcapng"), Path("e.jsonl"), 7)
    assert config.log_level == "debug"


def test_a_run_that_fails_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    from netstack.gateway import RunFailed, run_command

    def fail(_config: RunConfig) -> None:
        raise RunFailed("fd 5: not a socket")

    monkeypatch.setattr(run_command, "run_gateway", fail)
    assert invoke(capsys, "run", "--fd", "5") == (1, "", "netstack: fd 5: not a socket\n")


def test_an_interrupt_is_one_line_and_status_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    from netstack.gateway import doctor

    def interrupt(*, as_json: bool) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "run_doctor", interrupt)
    status, _, err = invoke(capsys, "doctor")
    assert (status, err.strip()) == (130, "netstack: interrupted")


def test_demo_gets_the_captures_name(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    from netstack.gateway import demo

    monkeypatch.setattr(demo, "run_demo", lambda capture: 3 if capture == Path("x.pcapng") else 0)
    assert invoke(capsys, "demo", "--capture", "x.pcapng")[0] == 3


def test_stdio_with_gvproxys_word(configurations: list[RunConfig], capsys: pytest.CaptureFixture[str]):
    assert invoke(capsys, "run", "--listen-stdio", "accept")[0] == 0
    assert configurations[0].links == (StdioLink(),)


@pytest.mark.parametrize(
    "words", [["--", "ls", "-l", "--all"], ["ls", "-l", "--all"], ["--mtu", "1400", "ls", "-l", "--all"]]
)
def test_guest_passes_the_command_and_its_status_on(
    words: list[str], configurations: list[RunConfig], capsys: pytest.CaptureFixture[str]
):
    assert invoke(capsys, "guest", *words)[0] == 42
    assert configurations[0].network.link.mtu == (1400 if "1400" in words else 1500)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str, capsys: pytest.CaptureFixture[str]):
    status, out, _ = invoke(capsys, "completion", shell)
    assert status == 0
    assert "_NETSTACK_COMPLETE" in out


def test_completion_completes_options():
    environment = {"_NETSTACK_COMPLETE": "bash_complete", "COMP_WORDS": "netstack run --listen-v", "COMP_CWORD": "2"}
    done = subprocess.run([sys.executable, "-m", "netstack"], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["plain,--listen-vfkit", "plain,--listen-vpnkit"]


def test_help_imports_nothing_heavy():
    code = "import sys, netstack.cli; print([name for name in sys.modules if name.split('.')[0] in sys.argv])"
    heavy = ["trio", "dns", "dpkt", "rich", "scapy", "asyncio", "ssl"]
    heavy += ["cryptography", "publicsuffixlist", "yaml", "idna"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_doctor_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    from netstack.gateway import doctor

    monkeypatch.setattr(doctor, "check_resolver", lambda: None)
    monkeypatch.setattr(doctor.run_doctor, "__kwdefaults__", {"checks": [doctor.check_python]})
    status, out, err = invoke(capsys, "doctor", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["checks"][0]["name"] == "Python"


def test_readme_tells_of_every_command_and_every_option():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    known = {option for _, command in every_command() for parameter in command.params for option in parameter.opts}
    known |= {"-h", "--help"}
    for path, command in every_command():
        assert f"`{path}" in readme
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert f"`{parameter.opts[0]}" in readme, f"{path} {parameter.opts[0]}"
    tables = re.findall(r"^\| `(--[a-z-]+)", readme, re.MULTILINE)
    assert set(tables) <= known
