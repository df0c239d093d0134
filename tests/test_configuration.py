"""The configuration file: every key has its effect, every mistake its line, the schema and the docs know them all."""

from __future__ import annotations

import ipaddress
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack import cli
from netstack.config import (
    CaptureOptions,
    ConfigError,
    FdLink,
    ForwardSpec,
    ListenLink,
    RunConfig,
    Shaping,
    SshForward,
    StdioLink,
    TapLink,
    UnixEndpoint,
    key_of,
)
from netstack.config_check import check_file
from netstack.configuration import read_document, schema, settings_of
from netstack.configuration_errors import ConfigurationError, keys_of
from netstack.configuration_model import Document
from netstack.network_spec import NetworkSpec
from netstack.policy_config import network_spec
from netstack.run_settings import RunSettings, run_config
from netstack.setting_values import parse_forward_ends, parse_size

ROOT = Path(__file__).parents[1]


def ip(text: str) -> bytes:
    return ipaddress.IPv4Address(text).packed


def made(tmp_path: Path, text: str, **options: Any) -> RunConfig:
    """What a run with this file is told."""
    file = tmp_path / "netstack.yaml"
    file.write_text(text)
    document = read_document(file)
    policy = network_spec(config_file=file, document=document)
    return run_config(settings_of(document, file), links=False, policy=policy, **options)


def problems(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "netstack.yaml"
    file.write_text(text)
    return check_file(file)[0]


def link(protocol: Any, path: str) -> ListenLink:
    return ListenLink(protocol, UnixEndpoint(Path(path)))


EFFECTS: dict[str, tuple[str, Callable[[RunConfig], Any], Any]] = {
    "listen": ("listen: [unix:///a, 'tcp://127.0.0.1:9']", lambda c: c.api_listen, ("unix:///a", "tcp://127.0.0.1:9")),
    "services": ("services: unix:///s", lambda c: c.services, "unix:///s"),
    "log-level": ("log-level: WARN", lambda c: c.log_level, "warning"),
    "log-format": ("log-format: json", lambda c: c.log_format, "json"),
    "log-file": ("log-file: l.log", lambda c: c.log_file, Path("l.log")),
    "pid-file": ("pid-file: p.pid", lambda c: c.pid_file, Path("p.pid")),
    "notification": ("notification: /n.sock", lambda c: c.notification, Path("/n.sock")),
    "ec2-metadata-access": ("ec2-metadata-access: true", lambda c: c.network.metadata_access, True),
    "interfaces.vfkit": ("interfaces: {vfkit: unixgram:///v}", lambda c: c.links, (link("vfkit", "/v"),)),
    "interfaces.qemu": (
        "interfaces: {qemu: [unix:///q, unix:///r]}",
        lambda c: c.links,
        (link("qemu", "/q"), link("qemu", "/r")),
    ),
    "interfaces.bess": ("interfaces: {bess: unixpacket:///b}", lambda c: c.links, (link("bess", "/b"),)),
    "interfaces.vpnkit": ("interfaces: {vpnkit: unix:///k}", lambda c: c.links, (link("vpnkit", "/k"),)),
    "interfaces.stdio": ("interfaces: {stdio: anything}", lambda c: c.links, (StdioLink(),)),
    "forwards": (
        "forwards: [{socket: /s, dest: /d, user: core, identity: /dev/null}]",
        lambda c: c.ssh_forwards,
        (SshForward(Path("/s"), "/d", "core", Path("/dev/null")),),
    ),
    "stack.debug": ("stack: {debug: yes}", lambda c: c.log_level, "debug"),
    "stack.capture-file": ("stack: {capture-file: c.pcapng}", lambda c: c.capture, Path("c.pcapng")),
    "stack.mtu": ("stack: {mtu: 9000}", lambda c: c.network.link.mtu, 9000),
    "stack.subnet": ("stack: {subnet: 10.0.0.0/16}", lambda c: c.network.host_ip, ip("10.0.255.254")),
    "stack.gatewayIP": ("stack: {gatewayIP: 192.168.127.9}", lambda c: c.network.gateway_ip, ip("192.168.127.9")),
    "stack.deviceIP": ("stack: {deviceIP: 192.168.127.9}", lambda c: c.network.device_ip, ip("192.168.127.9")),
    "stack.hostIP": ("stack: {hostIP: 192.168.127.9}", lambda c: c.network.host_ip, ip("192.168.127.9")),
    "stack.gatewayMacAddress": (
        "stack: {gatewayMacAddress: 52:54:00:12:34:56}",
        lambda c: c.network.gateway_mac.hex(":"),
        "52:54:00:12:34:56",
    ),
    "stack.dns": (
        "stack: {dns: [{name: Crc.testing., defaultIP: 10.1.1.1,"
        " records: [{name: api, ip: 10.1.1.2}, {name: '@', ip: 10.1.1.4}, {regexp: ^n\\d+$, ip: 10.1.1.3}]}]}",
        lambda c: [
            (zone.name, zone.default_ip, [(each.name, each.address, bool(each.regexp)) for each in zone.records])
            for zone in c.network.zones[2:]
        ],
        [
            (
                "crc.testing",
                ip("10.1.1.1"),
                [("api", ip("10.1.1.2"), False), ("", ip("10.1.1.4"), False), ("", ip("10.1.1.3"), True)],
            )
        ],
    ),
    "stack.dnsSearchDomains": (
        "stack: {dnsSearchDomains: [Lab.Example, b.example.]}",
        lambda c: c.network.search_domains,
        ("lab.example", "b.example"),
    ),
    "stack.forwards": (
        "stack: {forwards: {'127.0.0.1:2222': '192.168.127.2:22', 'udp::53': '192.168.127.2:53',"
        " 'unix:/run/x': 'tcp://192.168.127.2:80'}}",
        lambda c: c.forwards,
        (
            ForwardSpec("tcp", "127.0.0.1:2222", "192.168.127.2:22"),
            ForwardSpec("udp", ":53", "192.168.127.2:53"),
            ForwardSpec("unix", "/run/x", "tcp://192.168.127.2:80"),
        ),
    ),
    "stack.nat": (
        "stack: {nat: {203.0.113.9: 127.0.0.1}}",
        lambda c: c.network.nat,
        {ip("203.0.113.9"): ip("127.0.0.1")},
    ),
    "stack.gatewayVirtualIPs": (
        "stack: {gatewayVirtualIPs: [192.168.127.200]}",
        lambda c: c.network.virtual_ips,
        {ip("192.168.127.200"), ip("192.168.127.254")},
    ),
    "stack.dhcpStaticLeases": (
        "stack: {dhcpStaticLeases: {192.168.127.9: 02:AA:00:00:00:01}}",
        lambda c: c.network.static_leases.get(bytes.fromhex("02aa00000001")),
        ip("192.168.127.9"),
    ),
    "stack.vpnKitUUIDMacAddresses": (
        "stack: {vpnKitUUIDMacAddresses: {AB-cd: 12:34:56:10:20:30}}",
        lambda c: c.vpnkit_macs.get("ab-cd", b"").hex(),
        "123456102030",
    ),
    "stack.ec2MetadataAccess": ("stack: {ec2MetadataAccess: on}", lambda c: c.network.metadata_access, True),
    "stack.tcpConnectTimeout": ("stack: {tcpConnectTimeout: 7}", lambda c: c.network.dial_timeout, 7),
    "policy.network": ("policy: Disabled", lambda c: c.policy, NetworkSpec.disabled()),
    "policy.allow_net": ("policy: {allow_net: [a.example]}", lambda c: c.policy.allow_net, ("a.example",)),
    "policy.deny_all": ("policy: {deny_all: on}", lambda c: c.policy.deny_all, True),
    "policy.sinkhole": ("policy: {sinkhole: nxdomain}", lambda c: c.policy.sinkhole, "nxdomain"),
    "policy.answers": ("policy: {answers: synthetic}", lambda c: c.policy.answers, "synthetic"),
    "policy.pass_service_bindings": (
        "policy: {pass_service_bindings: true}",
        lambda c: c.policy.pass_service_bindings,
        True,
    ),
    "policy.strict_ech": ("policy: {strict_ech: yes}", lambda c: c.policy.strict_ech, True),
    "offload": ("offload: off", lambda c: c.offload, False),
    "verify-checksums": ("verify-checksums: on", lambda c: c.verify_checksums, True),
    "batch-calls": ("batch-calls: off", lambda c: c.batch_calls, False),
    "busy-poll": ("busy-poll: 50", lambda c: c.busy_poll, 50),
    "tcp-window": ("tcp-window: 256K", lambda c: c.network.link.window, 256 << 10),
    "tap": ("tap: tap7", lambda c: c.links, (TapLink("tap7"),)),
    "netns": ("{tap: [tap7], netns: '17'}", lambda c: c.links, (TapLink("tap7", "17"),)),
    "fd": ("fd: [7, 8]", lambda c: c.links, (FdLink(7), FdLink(8))),
    "dns-upstream": ("dns-upstream: 9.9.9.9", lambda c: c.dns_upstreams, ("9.9.9.9:53",)),
    "events": ("events: '-'", lambda c: c.events, "-"),
    "capture.file": ("capture: {file: c.pcapng}", lambda c: c.capture, Path("c.pcapng")),
    "capture.snaplen": ("capture: {file: c, snaplen: 96}", lambda c: c.capture_options, CaptureOptions(snaplen=96)),
    "capture.rotate-size": (
        "capture: {file: c, rotate-size: 10M}",
        lambda c: c.capture_options,
        CaptureOptions(rotate_size=10 << 20),
    ),
    "capture.rotate-count": (
        "capture: {file: c, rotate-size: 1M, rotate-count: 3}",
        lambda c: c.capture_options,
        CaptureOptions(rotate_size=1 << 20, rotate_count=3),
    ),
    "capture.filter": (
        "capture: {file: c, filter: host 10.0.0.5}",
        lambda c: c.capture_options,
        CaptureOptions(filter="host 10.0.0.5"),
    ),
    "shaping.tx_kbps": ("shaping: {tx_kbps: 512}", lambda c: c.shaping, Shaping(tx_kbps=512)),
    "shaping.rx_kbps": ("shaping: {rx_kbps: 512}", lambda c: c.shaping, Shaping(rx_kbps=512)),
    "shaping.burst": (
        "shaping: {tx_kbps: 512, burst: 10k}",
        lambda c: c.shaping,
        Shaping(tx_kbps=512, burst=10 << 10),
    ),
    "shaping.links": (
        "shaping: {links: {'tap*': {tx_kbps: 512, rx_kbps: 1024, burst: 20k}}}",
        lambda c: c.shaping,
        Shaping(links=(("tap*", Shaping(tx_kbps=512, rx_kbps=1024, burst=20 << 10)),)),
    ),
    "impair": (
        "impair: ['dir=to-guest delay 50ms', {dir: to-guest, loss: 1%}]",
        lambda c: len(c.impair),
        2,
    ),
    "api.token": ("api: {token: secret}", lambda c: c.api_token, "secret"),
    "api.guests": ("api: {guests: on}", lambda c: (c.guest_api, c.has_api), (True, True)),
    "keep-source": ("keep-source: true", lambda c: c.keep_source, True),
    "udp-timeout": ("udp-timeout: 60", lambda c: c.network.udp_replied_timeout, 60),
    "udp-unreplied-timeout": ("udp-unreplied-timeout: 9", lambda c: c.network.udp_unreplied_timeout, 9),
    "tcp-keepalive": ("tcp-keepalive: 7.5", lambda c: c.network.tcp_keepalive, 7.5),
}
SECTIONS = {"interfaces", "stack", "policy", "capture", "shaping", "api"}
"""Keys that hold other keys."""
ELSEWHERE = {
    "forwards.socket",
    "forwards.dest",
    "forwards.user",
    "forwards.identity",
    "stack.dns.name",
    "stack.dns.defaultIP",
    "stack.dns.records",
    "stack.dns.records.name",
    "stack.dns.records.ip",
    "stack.dns.records.regexp",
    "stack.tcpMaxInFlight",
    "api.token-file",
    "shaping.links.tx_kbps",
    "shaping.links.rx_kbps",
    "shaping.links.burst",
}
"""Keys whose effect is seen in the row of the list they are in, or in a test of their own."""


@pytest.mark.parametrize(("text", "seen", "expected"), EFFECTS.values(), ids=EFFECTS)
def test_every_key_has_its_effect(tmp_path: Path, text: str, seen: Callable[[RunConfig], Any], expected: Any):
    assert seen(made(tmp_path, "{}")) != expected, "the default would do as well"
    assert seen(made(tmp_path, text)) == expected


def test_busy_polling_has_its_bounds(tmp_path: Path) -> None:
    for wrong in ("1001", "-1"):
        (line,) = problems(tmp_path, f"busy-poll: {wrong}")
        assert line == f"busy-poll {wrong}: expected microseconds from 0 to 1000"


def test_whether_checksums_are_verified_is_one_of_three(tmp_path: Path):
    """YAML's on and off are truths."""
    for word, meaning in (("auto", None), ("on", True), ("off", False), ("'off'", False), ("true", True)):
        config = made(tmp_path, f"{{verify-checksums: {word}, tap: tap0}}")
        assert config.verify_checksums is meaning
        assert not config.notes, "a TAP says which are partial"
    (note,) = made(tmp_path, "{verify-checksums: on, tap: tap0, fd: 9}").notes
    assert "libkrun with CSUM" in note
    assert "tcp-checksum" in note
    for wrong in ("sometimes", "3"):
        (line,) = problems(tmp_path, f"verify-checksums: {wrong}")
        assert "expected one of auto, on, off" in line
    (line,) = problems(tmp_path, "tcp-window: 1K")
    assert line == "tcp-window '1K': expected bytes from 4K to 4M"


def test_no_key_is_left_out():
    assert set(keys_of(Document)) == set(EFFECTS) | SECTIONS | ELSEWHERE


def test_the_documentation_has_a_row_for_every_key():
    told = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `([^`]+)`", told, re.MULTILINE))
    assert set(keys_of(Document)) <= rows


def test_an_empty_file_and_empty_keys_say_nothing(tmp_path: Path):
    default = run_config(RunSettings(), links=False)
    assert made(tmp_path, "").network == default.network
    text = "{listen: , log-file: '', interfaces: {}, stack: {mtu: 0, nat: {}, gatewayIP: '', dhcpStaticLeases: {}}}"
    assert made(tmp_path, text).network == default.network
    assert made(tmp_path, "policy: {sinkhole: null}").policy.sinkhole == "null"


def test_a_token_from_a_file(tmp_path: Path):
    (tmp_path / "token").write_text("s3cret\n")
    assert made(tmp_path, f"api: {{token-file: {tmp_path}/token}}").api_token == "s3cret"
    (tmp_path / "token").write_text("two words\n")
    with pytest.raises(ConfigError, match=r"api.token-file '.*/token': expected a file that holds one token"):
        made(tmp_path, f"api: {{token-file: {tmp_path}/token}}")
    with pytest.raises(ConfigError, match=r"api.token-file '/none': expected a readable file"):
        made(tmp_path, "api: {token-file: /none}")


MISTAKES = {
    "unknown key": ("lisen: []", "lisen: unknown key; did you mean 'listen'?"),
    "unknown key inside": ("stack: {mtuu: 1}", "stack.mtuu: unknown key; did you mean 'mtu'?"),
    "key of another section": ("mtu: 1500", "mtu: unknown key; did you mean 'stack.mtu'?"),
    "underscore": ("log_level: info", "log_level: unknown key; did you mean 'log-level'?"),
    "unlike any": ("stack: {zzz: 1}", "stack.zzz: unknown key; known are debug, capture-file, mtu,"),
    "in a list": (
        "stack: {dns: [{name: a}, {nme: b}]}",
        "stack.dns[1].name: missing|stack.dns[1].nme: unknown key; did you mean 'name'?",
    ),
    "no number": ("stack: {mtu: big}", "stack.mtu 'big': expected a whole number"),
    "number as text": ("stack: {mtu: '1500'}", "stack.mtu '1500': expected a whole number"),
    "no as number": ("stack: {mtu: false}", "stack.mtu False: expected a whole number"),
    "truth as number": ("stack: {mtu: true}", "stack.mtu True: expected a whole number"),
    "out of range": ("stack: {mtu: 100}", "stack.mtu 100: expected a number of bytes from 576 to 65521"),
    "no truth": ("stack: {debug: 2}", "stack.debug 2: expected true or false, on or off"),
    "no address": (
        "stack: {gatewayIP: here}",
        "stack.gatewayIP 'here': expected an IPv4 address such as 192.168.127.1",
    ),
    "no MAC": ("stack: {dhcpStaticLeases: {192.168.127.3: x}}", "stack.dhcpStaticLeases.192.168.127.3 'x': expected a"),
    "bad key": ("stack: {nat: {x: 127.0.0.1}}", "stack.nat.x 'x': expected an IPv4 address such as 192.168.127.1"),
    "no mapping": ("stack: [1]", "stack [1]: expected a mapping"),
    "no list": ("stack: {dns: {name: a}}", "stack.dns {'name': 'a'}: expected a list"),
    "no rules": ("policy: {allow_net: pypi.org}", "policy.allow_net 'pypi.org': expected a list of rules"),
    "scheme": ("interfaces: {vfkit: unix:///x}", "interfaces.vfkit 'unix:///x': expected unixgram://PATH"),
    "second of a list": ("interfaces: {qemu: [unix:///x, x]}", "interfaces.qemu[1] 'x': expected unix://PATH"),
    "no text": ("services: 5", "services 5: expected text"),
    "neither": ("stack: {dns: [{name: a, records: [{ip: 1.1.1.1}]}]}", "stack.dns[0].records[0] {'ip': '1.1.1.1'}:"),
    "regexp": (
        "stack: {dns: [{name: a, records: [{ip: 1.1.1.1, regexp: '('}]}]}",
        "stack.dns[0].records[0].regexp '(': expected a regular expression",
    ),
    "word": ("log-format: xml", "log-format 'xml': expected one of text, json"),
    "level": ("log-level: loud", "log-level 'loud': expected one of trace, debug,"),
    "seconds": ("udp-timeout: 0.1", "udp-timeout 0.1: expected seconds from 1 to 86400"),
    "forward": ("stack: {forwards: {':22': x}}", "stack {"),
    "two tokens": ("api: {token: a, token-file: b}", "api {"),
    "two captures": ("{capture: {file: a}, stack: {capture-file: b}}", "the file {"),
    "size": ("capture: {file: a, rotate-size: much}", "capture.rotate-size 'much': expected a number of bytes above 0"),
    "at least": ("capture: {file: a, snaplen: 3}", "capture.snaplen 3: expected a number of at least 14"),
    "above": ("shaping: {tx_kbps: 0}", "shaping.tx_kbps 0: expected a number above 0"),
    "options of no capture": ("capture: {snaplen: 96}", "capture.file 'none': expected a file"),
    "an impairment": ("impair: dir=to-guest dealy 50ms", "dealy"),
    "an identity that is not there": (
        "forwards: [{socket: /s, dest: /d, user: core, identity: /none/key}]",
        "forwards '/none/key': expected a readable file with the private key of the identity",
    ),
    "half a forward": (
        "forwards: [{socket: /s, dest: /d}]",
        "forwards[0].user: missing|forwards[0].identity: missing",
    ),
    "together": ("stack: {gatewayIP: 10.0.0.1}", "stack.gatewayIP '10.0.0.1': expected a usable address of 192.168"),
    "off the subnet": (
        "stack: {gatewayVirtualIPs: [10.0.0.1]}",
        "stack.gatewayVirtualIPs '10.0.0.1': expected a usable address of the guest's subnet",
    ),
    "zone twice": (
        "stack: {dns: [{name: a.b}, {name: A.b.}]}",
        "stack.dns 'a.b': expected each zone once; a.b was given before",
    ),
    "endpoint twice": ("interfaces: {qemu: unix:///x, vpnkit: unix:///x}", "--listen-* '/x': expected an endpoint of"),
    "rule": ("policy: {allow_net: ['*.com']}", "policy: allow_net rule '*.com'"),
    "key twice": ("{events: a, events: b}", "the key 'events' twice"),
    "alias": ("policy:\n  allow_net:\n    - *.pypi.org\n", "needs quotes"),
    "nesting": ("[" * 100, "nested deeper than 16"),
    "list": ("[]", "expected a mapping of keys such as 'stack' and 'policy'"),
    "itself": ("stack: &a {nat: *a}", "stack.nat.nat 'nat': expected an IPv4 address|stack.nat.nat {"),
}


@pytest.mark.parametrize(("text", "lines"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_by_its_path(tmp_path: Path, text: str, lines: str):
    found = problems(tmp_path, text)
    assert len(found) == len(lines.split("|"))
    for line, expected in zip(found, lines.split("|"), strict=True):
        assert expected in line
        assert "\n" not in line


def test_all_mistakes_are_told_and_a_run_tells_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "bad.yaml"
    file.write_text("{lisen: [], stack: {mtu: 1, subnet: x}}")
    with pytest.raises(SystemExit) as ended:
        cli.main(["config", "check", str(file)])
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (2, "")
    assert [line.split(": ")[1].split(" ")[0] for line in told.err.splitlines()] == [
        "stack.mtu",
        "stack.subnet",
        "lisen",
    ]
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--config", str(file), "--fd", "5"])
    assert ended.value.code == 2
    assert re.fullmatch(
        r"netstack: --config .*bad.yaml: stack.mtu 1: expected .* \(and 2 more: `netstack config check` lists them\)\n",
        capsys.readouterr().err,
    )


def test_all_contradictions_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "bad.yaml"
    file.write_text("""
interfaces: {qemu: unix:///x, vpnkit: unix:///x, stdio: accept}
events: "-"
capture: {filter: hots, snaplen: 20, rotate-count: 3}
shaping: {tx_kbps: 1.0e-9}
impair: loss 200%
forwards: [{socket: /s, dest: /d, user: u, identity: /nowhere/key}]
stack:
  gatewayVirtualIPs: [10.0.0.1, 192.168.127.2]
  nat: {127.0.0.5: 127.0.0.1, 192.168.127.9: 192.168.127.8}
  dns: [{name: a.b}, {name: A.b.}]
  dhcpStaticLeases: {192.168.127.1: 02:aa:00:00:00:01, 10.0.0.1: 02:aa:00:00:00:02}
policy: {allow_net: ["*.com", pypi.org, "*.net"], deny_all: true}
""")
    with pytest.raises(SystemExit) as ended:
        cli.main(["config", "check", str(file)])
    assert ended.value.code == 2
    found = [line.removeprefix(f"{file}: ") for line in capsys.readouterr().err.splitlines()]
    beginnings = [
        "policy: ", "policy: allow_net rule '*.com'", "policy: allow_net rule '*.net'",
        "stack.dns 'a.b'", "stack.nat '127.0.0.5=", "stack.nat '192.168.127.9=",
        "stack.gatewayVirtualIPs '10.0.0.1'", "stack.gatewayVirtualIPs '192.168.127.2'",
        "stack.dhcpStaticLeases '02:aa:00:00:00:01=", "stack.dhcpStaticLeases '02:aa:00:00:00:02=",
        "--listen-* '/x'", "events '-'", "forwards '/nowhere/key'",
        "capture.rotate-count '3'", "capture.filter 'hots'", "capture.file 'none'", "shaping.tx_kbps '1e-09'",
        "impair: ",
    ]  # fmt: skip
    told = [next((each for each in beginnings if line.startswith(each)), line) for line in found]
    assert "contradicts" in found[0] or "deny_all" in found[0]
    assert told[3:] == beginnings[3:]
    assert len(found) == len(beginnings)


def test_what_depends_on_a_wrong_address_is_not_judged(tmp_path: Path):
    """It would be said of a network that nobody asked for. What does not depend on it is."""
    text = (
        "stack: {subnet: 10.9.0.0/16, gatewayIP: 10.8.0.1, deviceIP: 10.9.0.2, gatewayVirtualIPs: [10.7.0.1], mtu: 576}"
    )
    assert problems(tmp_path, text) == [
        "stack.gatewayIP '10.8.0.1': expected a usable address of 10.9.0.0/16: 10.9.0.1 to 10.9.255.254"
    ]
    both = problems(tmp_path, "{stack: {gatewayIP: 10.8.0.1, deviceIP: 10.8.0.2}, events: '-', interfaces: {stdio: x}}")
    assert [line.split(" ")[0] for line in both] == ["stack.gatewayIP", "stack.deviceIP", "events"]


def test_what_has_no_effect_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "odd.yaml"
    file.write_text("{stack: {tcpMaxInFlight: 128}, netns: x, policy: {allow_net: [127.0.0.1]}}")
    with pytest.raises(SystemExit) as ended:
        cli.main(["config", "check", str(file)])
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (0, f"{file}: ok\n")
    assert [line.split(": ")[2] for line in told.err.splitlines()] == [
        "stack.tcpMaxInFlight",
        "netns",
        "allow_net rule '127.0.0.1' never matches",
    ]


def test_a_file_that_is_not_there(tmp_path: Path):
    assert check_file(tmp_path / "none") == (["No such file or directory"], [])


def test_options_replace_what_the_file_says(tmp_path: Path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "{stack: {mtu: 9000, subnet: 10.0.0.0/16, nat: {10.0.9.9: 127.0.0.1}},"
        " interfaces: {qemu: unix:///q}, log-level: error}"
    )
    below = settings_of(read_document(file), file)
    over = RunSettings(mtu=1400, nat=("10.0.9.8=127.0.0.1",), qemu=("unix:///other",)).over(below)
    config = run_config(over)
    assert config.network.link.mtu == 1400
    assert config.network.gateway_ip == ip("10.0.0.1")
    assert set(config.network.nat) == {ip("10.0.255.254"), ip("10.0.9.8")}
    assert config.links == (link("qemu", "/other"),)
    assert config.log_level == "error"
    with pytest.raises(ConfigError, match=r"^--mtu '1'"):
        run_config(RunSettings(mtu=1).over(below))
    assert over.key("subnet") == f"--config {file}: stack.subnet"
    assert over.key("mtu") == "--mtu"


def test_run_reads_links_from_the_file_and_options_stand_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from netstack.gateway import run_command

    seen: list[RunConfig] = []
    monkeypatch.setattr(run_command, "run_gateway", seen.append)
    file = tmp_path / "c.yaml"
    file.write_text("{interfaces: {qemu: unix:///q}, stack: {mtu: 9000}, log-level: debug, udp-timeout: 60}")
    (tmp_path / "token").write_text("t0ken\n")
    options = f"--mtu 1400 --listen unix:///a --services unix:///s --api-token-file {tmp_path}/token --keep-source"
    options += " --forward udp::53=192.168.127.2:53 --log-file l --log-format json --pid-file p --notification /n"
    with pytest.raises(SystemExit):
        cli.main(["run", "--config", str(file), *options.split()])
    [config] = seen
    assert config.links == (link("qemu", "/q"),)
    assert (config.network.link.mtu, config.network.udp_replied_timeout) == (1400, 60)
    assert (config.api_listen, config.services, config.api_token) == (("unix:///a",), "unix:///s", "t0ken")
    assert config.forwards == (ForwardSpec("udp", ":53", "192.168.127.2:53"),)
    assert config.keep_source
    assert (config.log_level, config.log_format, config.log_file) == ("debug", "json", Path("l"))
    assert (config.pid_file, config.notification) == (Path("p"), Path("/n"))


def test_a_guest_of_our_own_has_its_link_and_says_what_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from netstack.gateway import guest_command

    seen: list[RunConfig] = []
    monkeypatch.setattr(guest_command, "run_guest", lambda config, _command: seen.append(config) or 0)
    file = tmp_path / "c.yaml"
    file.write_text("{interfaces: {qemu: unix:///q}, pid-file: p, stack: {mtu: 9000}}")
    with pytest.raises(SystemExit):
        cli.main(["guest", "--config", str(file), "true"])
    [config] = seen
    assert (config.links, config.pid_file, config.network.link.mtu) == ((), None, 9000)
    assert [note.split(": ")[1] for note in config.notes] == ["interfaces.qemu", "pid-file"]


def test_the_api_alone_is_a_way_for_guests_and_nothing_is_none():
    assert run_config(RunSettings(api_listen=("unix:///a",))).links == ()
    with pytest.raises(ConfigError, match="link 'none'"):
        run_config(RunSettings())


@pytest.mark.parametrize(
    ("local", "remote", "said"),
    [
        ("22", "192.168.127.2:22", "an address to listen on"),
        (":70000", "192.168.127.2:22", "an address to listen on"),
        (":22", "192.168.127.2", "the guest's address and port"),
        (":22", "guest:22", "an IPv4 address"),
        (":22", "192.168.127.2:0", "the guest's address and port"),
        ("unix:x", "tcp://192.168.127.2:22", "an absolute path"),
    ],
)
def test_forwards_that_cannot_be(local: str, remote: str, said: str):
    with pytest.raises(ConfigError, match=said):
        parse_forward_ends(local, remote, "--forward")


def test_sizes():
    assert [parse_size(text, "") for text in ("1", "2k", "3M", "4GiB", "5KB", 6)] == [
        1,
        2 << 10,
        3 << 20,
        4 << 30,
        5 << 10,
        6,
    ]
    for text in ("0", "x", "1T", "-1", "1.5M", ""):
        with pytest.raises(ConfigError):
            parse_size(text, "")


def test_the_schema_describes_every_key_and_takes_no_other():
    made_schema = schema()
    json.dumps(made_schema)
    definitions = made_schema["$defs"]
    for name, definition in [("", made_schema), *definitions.items()]:
        assert definition["additionalProperties"] is False, name
        for key, described in definition["properties"].items():
            assert "description" in described or "$ref" in json.dumps(described), (name, key)
    assert {"type": "array", "items": {"type": "string"}} in made_schema["properties"]["tap"]["anyOf"]
    assert {"enum": ["enabled", "disabled"]} in made_schema["properties"]["policy"]["anyOf"]


def test_config_schema_is_printed(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        cli.main(["config", "schema"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out) == schema()


def test_a_run_without_a_file_does_not_import_pydantic():
    code = (
        "import sys; from netstack.cli_options import configuration; from netstack.gateway import run_command;"
        "from netstack.gvproxy_config import gvproxy_config; from netstack.gvproxy_flags import parse_flags;"
        "gvproxy_config(parse_flags(['-listen-qemu', 'unix:///none/q']));"
        "print({'pydantic', 'fastapi', 'hypercorn', 'httpx', 'asyncssh', 'yaml'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "set()\n"


def test_key_names():
    assert key_of("mtu") == "--mtu"
    assert key_of("udp_timeout") == "--udp-timeout"
    assert key_of("qemu") == "--listen-qemu"
    assert key_of("qemu", {"qemu": "-listen-qemu"}) == "-listen-qemu"


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted({key.split(".")[0] for key in keys_of(Document)})), _VALUES, max_size=4))
def test_any_values_are_taken_or_refused_with_paths(content: dict[str, Any]):
    from pydantic import ValidationError

    from netstack.configuration_errors import problems_of

    try:
        Document.model_validate(content)
    except ValidationError as error:
        lines = problems_of(error, Document, content)
        assert lines
        assert all("\n" not in line for line in lines)


def test_an_error_that_stands_alone_has_no_more():
    assert str(ConfigurationError("f", ["a"])) == "f: a"
