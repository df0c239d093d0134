"""Conformance class I: what cannot be used stops the start, what fails later opens nothing, and what is told holds."""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dns.message
import pytest
import trio
from engine.wire_guest import GATEWAY, HOST_ALIAS, GuestTcp, network, payload_of, udp
from scapy.layers.inet import TCP, UDP
from wire import hellos
from wire.http_requests import get

from netstack.config import ListenLink, RunConfig, UnixEndpoint, network_settings
from netstack.engine.effects import NO_ADDRESS, OpenNamed, OpenStream
from netstack.engine.events import DnsEvent, FlowClosed, FlowOpened, FlowRefused, PolicyReplaced
from netstack.engine.policy import PolicySettings
from netstack.engine.stack import Stack
from netstack.gateway.attachments import open_attachments
from netstack.gateway.resolver import Resolver
from netstack.gateway.run_command import Gateway
from netstack.network_spec import NetworkSpec
from netstack.policy_check import check
from netstack.policy_config import network_spec

from .dns_client import sunk
from .live import running, settled
from .policy_wire import (
    ATTACKER,
    NAME,
    OTHER_NAME,
    SITE,
    PolicyWire,
    dialled_as_is,
    is_gone,
    peeked,
    refusal,
    refused_at_syn,
    say,
    turned_away,
)

Guest = Callable[..., PolicyWire]
ROOT = Path(__file__).parents[2]
HANGS = 60
"""Seconds after which a program that should have ended is taken to run."""


def started(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The program, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "netstack", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )


def does_not_start(tmp_path: Path, *options: str) -> str:
    """`run` with two links and these options ends with a line that says why, and leaves no socket; the line."""
    links = ["--listen-vfkit", f"unixgram://{tmp_path}/vfkit", "--listen-qemu", f"unix://{tmp_path}/qemu"]
    done = started("run", "--log-level", "error", *links, *options)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert done.stderr.startswith("netstack")
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "vfkit").exists()
    assert not (tmp_path / "qemu").exists()
    return done.stderr


# -- I1 ---------------------------------------------------------------------------------------------------------------

BAD_RULES = {
    "malformed": ("exa mple.com:443", "allow_net rule 'exa mple.com:443'", ""),
    "two ports": ("example.com:80,443", "'443'", ""),
    "a URL": ("https://pypi.org/simple", "'https://pypi.org/simple'", "did you mean 'pypi.org'?"),
    "port by name": ("pypi.org:https", "'pypi.org:https'", "did you mean 'pypi.org:443'?"),
    "port out of range": ("pypi.org:70000", "'pypi.org:70000'", ""),
    "range backwards": ("pypi.org:90-80", "'pypi.org:90-80'", "did you mean 'pypi.org:80-90'?"),
    "unknown protocol": ("tpc/pypi.org", "'tpc/pypi.org'", "did you mean 'tcp/pypi.org'?"),
    "unknown group": ("@publik", "'@publik'", "did you mean '@public'?"),
    "bits beyond the prefix": ("10.0.0.1/8", "'10.0.0.1/8'", "did you mean '10.0.0.0/8'?"),
    "IPv6 without brackets": ("2001:db8::1", "'2001:db8::1'", "did you mean '[2001:db8::1]'?"),
    "everything": ("*", "'*'", "did you mean '@public'?"),
    "bare TLD wildcard": ("*.com", "'*.com'", "did you mean '*.example.com'?"),
    "public suffix wildcard": ("*.co.uk", "'*.co.uk'", "did you mean '*.example.co.uk'?"),
    "single-label suffix": ("*.internal", "'*.internal'", "did you mean '*.example.internal'?"),
    "wildcard inside": ("api.*.com", "'api.*.com'", ""),
    "good and bad": ("pypi.org,*.org", "'*.org'", "did you mean '*.example.org'?"),
    "nothing": ("", "allow_net rule ''", ""),
}


@pytest.mark.parametrize(("rule", "named", "near"), BAD_RULES.values(), ids=BAD_RULES)
def test_I1_a_rule_that_cannot_be_used(tmp_path: Path, rule: str, named: str, near: str) -> None:
    said = does_not_start(tmp_path, "--allow-net", rule)
    assert named in said
    assert near in said


BAD_FILES = {
    "unknown key": ("policy: {allow_nets: [pypi.org]}", "policy.allow_nets", "did you mean 'allow_net'?"),
    "unknown section": ("polcy: {allow_net: [pypi.org]}", "polcy", "did you mean 'policy'"),
    "a bad rule": ("policy: {allow_net: [pypi.org, '*.com']}", "'*.com'", "did you mean"),
    "no list": ("policy: {allow_net: pypi.org}", "allow_net 'pypi.org'", "list of rules"),
    "no YAML": ("policy: [", "policy.yaml", ""),
    "contradiction": ("policy: {deny_all: true, allow_net: [pypi.org]}", "deny_all", "leave one of them out"),
    "disabled with entries": ("policy: {network: disabled, allow_net: [pypi.org]}", "allow_net", ""),
    "unknown word": ("policy: {sinkhole: zero}", "sinkhole 'zero'", "null"),
}


@pytest.mark.parametrize(("text", "named", "near"), BAD_FILES.values(), ids=BAD_FILES)
def test_I1_a_file_that_cannot_be_used(tmp_path: Path, text: str, named: str, near: str) -> None:
    (tmp_path / "policy.yaml").write_text(text)
    said = does_not_start(tmp_path, "--config", str(tmp_path / "policy.yaml"))
    assert named in said
    assert near in said


# -- I2 ---------------------------------------------------------------------------------------------------------------

MISSING_PARTS = {
    "capture": ["--capture", "{}/no/such/directory.pcapng"],
    "events": ["--events", "{}/no/such/directory.jsonl"],
    "hook that is not there": ["--hook", "{}/hook.py"],
    "hook that cannot be read": ["--hook", "{}/broken.py"],
    "hook that raises": ["--hook", "{}/raising.py"],
    "hook that exits": ["--hook", "{}/exiting.py"],
    "hook module": ["--hook", "no_such_module:Hook"],
    "resolver": ["--dns-upstream", "not-an-address"],
    "resolver's port": ["--dns-upstream", "127.0.0.1:0"],
    "another link": ["--listen-qemu", "unix://{}/no/such/directory.sock"],
    "inherited link": ["--fd", "77"],
    "namespace of a TAP": ["--tap", "t0", "--netns", "no-such-namespace"],
    "who waits for it": ["--ready-fd", "77"],
    "policy file": ["--config", "{}/policy.yaml"],
}


@pytest.mark.parametrize("options", MISSING_PARTS.values(), ids=MISSING_PARTS)
def test_I2_a_part_that_cannot_be_set_up(tmp_path: Path, options: list[str]) -> None:
    """All of it starts, or nothing: no link is left on which a guest would find a network without that part."""
    (tmp_path / "broken.py").write_text("class")
    (tmp_path / "raising.py").write_text("raise OSError('not today')")
    (tmp_path / "exiting.py").write_text("raise SystemExit(0)")
    said = does_not_start(tmp_path, "--allow-net", "pypi.org", *(word.replace("{}", str(tmp_path)) for word in options))
    assert "Traceback" not in said


class Breakable:
    """A stack whose methods can be replaced while it runs, also for those who have taken hold of one."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.replaced: dict[str, Callable[..., object]] = {}

    def __getattr__(self, name: str) -> object:
        found = getattr(self._stack, name)
        if not callable(found):
            return found
        return lambda *arguments: self.replaced.get(name, found)(*arguments)


@pytest.mark.parametrize("part", ["advance", "receive_frames", "take_effects"])
async def test_I2_a_part_that_breaks_later(tmp_path: Path, part: str) -> None:
    """A defect in the engine ends everything: links closed, their sockets gone, nothing served any more."""
    path = tmp_path / "qemu"
    config = RunConfig(
        network=network_settings(),
        links=(ListenLink("qemu", UnixEndpoint(path)),),
        dns_upstreams=("127.0.0.1:9",),
        policy=NetworkSpec.enabled([NAME]),
    )
    gateway = Gateway(config, open_attachments(config.links, 1500))
    stack = Breakable(gateway.driver.stack)
    gateway.driver.stack = stack  # type: ignore[assignment]  # does what a stack does

    def broken(*_: object) -> None:
        raise ArithmeticError("a defect")

    async def run_and_break(guest: socket.socket) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(gateway.run)
            guest.connect(str(path))
            await settled()
            stack.replaced[part] = broken
            if part == "advance":
                stack.replaced["next_deadline"] = lambda: 0.0
            guest.send((60).to_bytes(4, "big") + b"\x5a\x94\xef\xe4\x0c\xdd\x02\0\0\0\0\x02" + bytes(48))
            with trio.fail_after(HANGS):
                await trio.sleep_forever()

    with socket.socket(socket.AF_UNIX) as guest, pytest.raises(BaseExceptionGroup) as ended:
        await run_and_break(guest)
    assert ended.group_contains(ArithmeticError)
    assert not path.exists()
    assert len(gateway.driver.sockets) == 0
    with socket.socket(socket.AF_UNIX) as another, pytest.raises(OSError, match=r"."):
        another.connect(str(path))


# -- I3 ---------------------------------------------------------------------------------------------------------------


def test_I3_names_while_no_resolver_answers(guest: Guest) -> None:
    """(G) What is not listed is sunk as ever, what is listed fails; (D) nothing; (E) one event each, SERVFAIL."""
    wire = guest(NAME, f"{NAME}:22")
    sunk(wire, OTHER_NAME)
    wire.events.clear()
    wire.send(udp(GATEWAY, 53, dns.message.make_query(NAME, "A").to_wire()))
    wire.stack.dns_resolved(wire.asked()[0].query, None, wire.now)
    assert dns.message.from_wire(payload_of(wire.hear_one()[UDP])).rcode().name == "SERVFAIL"
    (event,) = wire.told(DnsEvent)
    assert (event.source, event.rcode, event.answers) == ("upstream", "SERVFAIL", 0)
    wire.events.clear()
    refused_at_syn(wire, SITE, 22, "no-rule")
    for port, data in ((443, hellos.python_ssl(NAME)), (80, get(f"Host: {NAME}"))):
        connection = peeked(wire, SITE, port)
        say(connection, data)
        flow = wire.asked_one(OpenNamed).flow
        connection.hear()
        wire.stack.stream_failed(flow, NO_ADDRESS, wire.now)
        assert "R" in str(connection.hear()[-1].flags)
        event = wire.one_flow_event()
        assert isinstance(event, FlowClosed)
        assert (event.reason, event.sent, event.received) == ("name has no address", 0, 0)
        assert wire.asks_nothing()
        assert is_gone(connection)


async def test_I3_a_resolver_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    """With the real resolver: said loudly, once, and nothing is opened by name or by the address the guest chose."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    async with running(NAME, resolver=Resolver([f"127.0.0.1:{port}"])) as live:
        guest = await live.attach()
        for number, name in enumerate((NAME, OTHER_NAME, f"other.{NAME}")):
            await guest.send(udp(GATEWAY, 53, dns.message.make_query(name, "A").to_wire(), source_port=5300 + number))
        events = await live.wait_for(DnsEvent, 3)
        assert {event.name: (event.source, event.rcode) for event in events} == {
            NAME: ("upstream", "SERVFAIL"),
            OTHER_NAME: ("policy", "NOERROR"),
            f"other.{NAME}": ("policy", "NOERROR"),
        }
        answers = {frame[UDP].dport: dns.message.from_wire(payload_of(frame[UDP])) for frame in guest.hear()}
        assert answers[5300].rcode().name == "SERVFAIL"
        assert [str(each) for each in answers[5301].answer[0]] == ["0.0.0.0"]
        await guest.syn(SITE, 80)
        (reply,) = [frame[TCP] for frame in guest.hear()]
        ports = {"sport": 40_000, "dport": 80}
        await guest.send(reply_to(reply, TCP(**ports, flags="A", seq=2, ack=reply.seq + 1)))
        await guest.send(reply_to(reply, TCP(**ports, flags="PA", seq=2, ack=reply.seq + 1) / get(f"Host: {NAME}")))
        (closed,) = await live.wait_for(FlowClosed)
        assert closed.reason == "name has no address"
        await settled()
        assert guest.flags()[-1] == (40_000, "RA")
        assert live.told(FlowOpened) == []
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == [
        f"no DNS server answers (asked: 127.0.0.1:{port}): guests are told SERVFAIL, and names cannot be dialled"
    ]


def reply_to(reply: TCP, segment: TCP) -> object:
    """A segment in the connection of an answer."""
    packet = reply.underlayer
    return type(packet)(src=packet.dst, dst=packet.src) / segment


# -- I4 ---------------------------------------------------------------------------------------------------------------

ACCESS = {
    "nothing said": ("", "full"),
    "no policy": ("{}", "full"),
    "empty policy": ("policy:", "full"),
    "an empty list": ("policy: {allow_net: []}", "full"),
    "enabled": ("policy: Enabled", "full"),
    "a list": (f"policy: {{allow_net: [{NAME}]}}", "listed"),
    "deny_all": ("policy: {deny_all: true}", "nothing"),
    "deny_all and an empty list": ("policy: {deny_all: true, allow_net: []}", "nothing"),
    "disabled": ("policy: Disabled", "disabled"),
}


@pytest.mark.parametrize(("text", "access"), ACCESS.values(), ids=ACCESS)
def test_I4_an_empty_list_and_a_missing_one(guest: Guest, tmp_path: Path, text: str, access: str) -> None:
    """An empty list is full access, as no list is; to say "nothing" there is a word of its own."""
    (tmp_path / "policy.yaml").write_text(text)
    spec = network_spec(config_file=tmp_path / "policy.yaml")
    wire = guest(spec=spec)
    assert wire.stack.judge.policy.access == access
    if access == "full":
        dialled_as_is(wire, ATTACKER, 22, "no-list")
    elif access == "disabled":
        wire.connection(ATTACKER, 22).syn()
        assert wire.hears_nothing()
        assert wire.asks_nothing()
    else:
        refused_at_syn(wire, ATTACKER, 22, "no-rule")
    if access == "nothing":
        refused_at_syn(wire, SITE, 443, "no-rule")
        sunk(wire, NAME)


# -- I6 ---------------------------------------------------------------------------------------------------------------

SPECS = {
    "full": NetworkSpec.enabled(),
    "names": NetworkSpec.enabled([NAME, "*.example.org", f"{OTHER_NAME}:22"]),
    "addresses": NetworkSpec.enabled(["10.0.0.0/8:22", "udp/93.184.216.34:53", "@host:8080"]),
    "public": NetworkSpec.enabled(["@public:443"], sinkhole="nxdomain", strict_ech=True),
    "synthetic": NetworkSpec.enabled([NAME], answers="synthetic", pass_service_bindings=True),
    "nothing": NetworkSpec.enabled(deny_all=True, sinkhole="refused"),
    "disabled": NetworkSpec.disabled(),
}
QUESTIONS = [(SITE, 443), (SITE, 22), (SITE, 53), ("10.0.0.1", 22), ("10.0.0.1", 80), (HOST_ALIAS, 8080), (GATEWAY, 80)]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_I6_what_is_read_back_is_what_was_said(guest: Guest, spec: NetworkSpec) -> None:
    """The specification through its mapping and back; the policy in force; the record of it; each rule by its text."""
    again = NetworkSpec.parse(dataclasses.asdict(spec))
    assert again == spec
    wire = guest(spec=NetworkSpec.enabled([ATTACKER]))
    wire.replace(spec, "api")
    assert read_back(wire) == spec.policy() == again.policy()
    (event,) = wire.told(PolicyReplaced)
    access = wire.stack.judge.policy.access
    assert event == PolicyReplaced(wire.stack.judge.generation, "api", access, len(spec.allow_net))
    assert tuple(rule.text for rule in read_back(wire).rules or ()) == spec.allow_net


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_I6_what_is_read_back_is_what_is_enforced(guest: Guest, spec: NetworkSpec) -> None:
    """`policy check` of what was read back says for each place what the engine then does with a SYN there."""
    wire = guest(spec=spec)
    back = read_back(wire)
    again = NetworkSpec.parse(
        dataclasses.asdict(spec) | {"allow_net": [rule.text for rule in back.rules or ()], "sinkhole": back.sinkhole}
    )
    for address, port in QUESTIONS:
        wire.events.clear()
        wire.hear()
        (_, verdict), *_ = check(again, f"{address}:{port}", network()).steps
        connection = wire.connection(address, port)
        connection.syn()
        dials = [effect for effect in wire.asked() if isinstance(effect, OpenStream)]
        refused = [event.verdict for event in wire.told(FlowRefused)]
        if spec.network == "disabled":
            assert (dials, refused, verdict.reason) == ([], [], "disabled")
            continue
        answered = [str(segment.flags) for segment in connection.hear()]
        assert bool(dials) == verdict.allowed
        assert refused == ([verdict] if verdict.action == refusal("").action else [])
        assert answered == (["RA"] if refused else [] if dials else ["SA"])


def read_back(wire: PolicyWire) -> PolicySettings:
    """The policy in force."""
    return wire.stack.judge.policy.settings


# -- I9 ---------------------------------------------------------------------------------------------------------------

USELESS = {
    "169.254.169.254": "metadata services need metadata access",
    "168.63.129.16:80": "metadata services need metadata access",
    "127.0.0.0/8": "no flow goes there, whatever the rules",
    "0.0.0.0": "no flow goes there, whatever the rules",
    "224.0.0.0/4": "no flow goes there, whatever the rules",
    "240.0.0.1": "no flow goes there, whatever the rules",
}


@pytest.mark.parametrize(("rule", "why"), USELESS.items(), ids=USELESS)
def test_I9_a_rule_that_never_matches(guest: Guest, rule: str, why: str) -> None:
    """The warning names the rule, and it is true: the flow it speaks of is refused."""
    spec = NetworkSpec.enabled([NAME, rule])
    assert spec.warnings() == [f"allow_net rule {rule!r} never matches: {why}"]
    wire = guest(spec=spec)
    connection = wire.connection(rule.partition("/")[0].partition(":")[0], 80)
    connection.syn()
    assert wire.asks_nothing()
    (event,) = wire.told(FlowRefused)
    assert event.verdict.rule == ""


@pytest.mark.parametrize(
    ("rules", "superfluous", "wider", "place"),
    [
        (["10.0.0.0/8", "10.1.2.3:80"], "10.1.2.3:80", "10.0.0.0/8", ("10.1.2.3", 80)),
        (["10.1.0.0/16:1-100", "10.0.0.0/8"], "10.1.0.0/16:1-100", "10.0.0.0/8", ("10.1.0.9", 100)),
        (["10.0.0.1", "tcp/10.0.0.1"], "tcp/10.0.0.1", "10.0.0.1", ("10.0.0.1", 22)),
    ],
)
def test_I9_a_rule_in_the_shadow_of_another(
    guest: Guest, rules: list[str], superfluous: str, wider: str, place: tuple[str, int]
) -> None:
    """The warning names both, and it is true: without the superfluous one the flow goes out as well."""
    spec = NetworkSpec.enabled(rules)
    assert spec.warnings() == [f"allow_net rule {superfluous!r} says nothing that {wider!r} does not say already"]
    dialled_as_is(guest(wider), *place, "address-rule", wider)
    left = [rule for rule in rules if rule != superfluous]
    assert NetworkSpec.enabled(left).warnings() == []


@pytest.mark.parametrize("rules", [["*.example.com", NAME], [NAME, f"tcp/{NAME}:443"]])
def test_I9_a_name_in_the_shadow_of_another(guest: Guest, rules: list[str]) -> None:
    spec = NetworkSpec.enabled(rules)
    (warning,) = spec.warnings()
    superfluous = next(rule for rule in rules if f"rule {rule!r} says nothing" in warning)
    wire = guest(*(rule for rule in rules if rule != superfluous))
    connection = peeked(wire)
    say(connection, hellos.python_ssl(NAME))
    assert wire.asked_one(OpenNamed).name == NAME
    other = another(wire)
    say(other, hellos.python_ssl(OTHER_NAME))
    turned_away(wire, other, refusal("name-not-allowed", "tls", name=OTHER_NAME, source="sni"))


def another(wire: PolicyWire) -> GuestTcp:
    wire.hear()
    return peeked(wire, ATTACKER)


def test_I9_warnings_are_told_by_the_program() -> None:
    done = started("policy", "check", "10.0.0.0/8", "10.1.0.0/16", "127.0.0.1", "--", "10.1.2.3:80")
    assert done.returncode == 0
    assert [line.split("'")[1] for line in done.stderr.splitlines()] == ["10.1.0.0/16", "127.0.0.1"]
