"""gvproxy's flags and file: its defaults with and without a file, who wins, and its words for what cannot be."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netstack import cli
from netstack.config import (
    DEFAULT_GUEST_MAC,
    DEFAULT_VPNKIT_MACS,
    ConfigError,
    ForwardSpec,
    ListenLink,
    RunConfig,
    SshForward,
    StdioLink,
    TcpEndpoint,
    UnixEndpoint,
    search_domains,
)
from netstack.gvproxy_config import gvproxy_config
from netstack.gvproxy_flags import FLAGS, parse_flags
from netstack.network_spec import NetworkSpec


def ip(text: str) -> bytes:
    return ipaddress.IPv4Address(text).packed


def made(line: str) -> RunConfig:
    """What runs with these flags, to which a place to listen is added."""
    return gvproxy_config(parse_flags(["-listen", "unix:///none/api.sock", *line.split()]))


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], str]:
    """Writes the configuration file; gives the flag that reads it."""

    def write(text: str) -> str:
        (tmp_path / "gvproxy.yaml").write_text(text)
        return f"-config {tmp_path}/gvproxy.yaml "

    return write


# -- gvproxy's own cases (its TestConfigInit) -------------------------------------------------------------------


def test_no_flags():
    config = made("")
    network = config.network
    assert (network.gateway_ip, network.device_ip, network.host_ip) == tuple(
        map(ip, ("192.168.127.1", "192.168.127.2", "192.168.127.254"))
    )
    assert network.gateway_mac.hex(":") == "5a:94:ef:e4:0c:dd"
    assert network.link.mtu == 1500
    assert network.nat == {ip("192.168.127.254"): ip("127.0.0.1")}
    assert network.virtual_ips == {ip("192.168.127.254")}
    assert network.static_leases == {DEFAULT_GUEST_MAC: ip("192.168.127.2")}
    assert [zone.name for zone in network.zones] == ["containers.internal", "docker.internal"]
    assert network.search_domains == search_domains(Path("/etc/resolv.conf").read_text())
    assert config.forwards == (ForwardSpec("tcp", "127.0.0.1:2222", "192.168.127.2:22"),)
    assert config.vpnkit_macs == DEFAULT_VPNKIT_MACS
    assert (config.log_level, config.log_format, config.capture, config.links) == ("info", "logrus", None, ())
    assert config.policy == NetworkSpec.enabled()
    assert not network.metadata_access


def test_a_file_without_the_three_addresses(written: Callable[[str], str]):
    config = made(written("stack: {subnet: 192.168.127.0/24, mtu: 1500}"))
    assert config.network.host_ip == ip("192.168.127.254")


def test_an_empty_file_starts_without_what_is_there_without_one(written: Callable[[str], str]):
    config = made(written(""))
    assert (config.network.zones, config.network.static_leases, config.network.search_domains) == ((), {}, ())
    assert (config.forwards, config.vpnkit_macs) == ((), {})
    assert config.network.nat == {ip("192.168.127.254"): ip("127.0.0.1")}
    assert config.network.virtual_ips == {ip("192.168.127.254")}


@pytest.mark.parametrize(
    ("line", "link", "level"),
    [
        ("-listen-qemu tcp://0.0.0.0:4321", ListenLink("qemu", TcpEndpoint("0.0.0.0", 4321)), "info"),
        ("-debug -listen-qemu unix:///none/q", ListenLink("qemu", UnixEndpoint(Path("/none/q"))), "debug"),
        ("-debug -listen-bess unixpacket:///none/b", ListenLink("bess", UnixEndpoint(Path("/none/b"))), "debug"),
        ("-debug -listen-vfkit unixgram:///none/v", ListenLink("vfkit", UnixEndpoint(Path("/none/v"))), "debug"),
        ("-listen-vpnkit unix:///none/k", ListenLink("vpnkit", UnixEndpoint(Path("/none/k"))), "info"),
        ("-listen-stdio accept", StdioLink(), "info"),
    ],
)
def test_interfaces(line: str, link: object, level: str):
    config = made(line)
    assert config.links == (link,)
    assert config.log_level == level


def test_interfaces_and_level_from_the_file(written: Callable[[str], str]):
    text = "{listen: [unix:///none/l], log-level: info, interfaces: {qemu: tcp://0.0.0.0:4321}, stack: {debug: true}}"
    config = gvproxy_config(parse_flags(written(text).split()))
    assert config.api_listen == ("unix:///none/l",)
    assert config.links == (ListenLink("qemu", TcpEndpoint("0.0.0.0", 4321)),)
    assert config.log_level == "debug"
    assert gvproxy_config(parse_flags(written("interfaces: {stdio: accept}").split())).links == (StdioLink(),)


def test_addresses_follow_from_the_files_subnet(written: Callable[[str], str]):
    text = "stack: {subnet: 10.0.0.0/16, mtu: 1480, gatewayMacAddress: '5A:94:EF:E4:0C:DF'}"
    network = made(written(text)).network
    assert (network.gateway_ip, network.device_ip, network.host_ip) == tuple(
        map(ip, ("10.0.0.1", "10.0.0.2", "10.0.255.254"))
    )
    assert (network.link.mtu, network.gateway_mac.hex(":")) == (1480, "5a:94:ef:e4:0c:df")
    assert network.nat == {ip("10.0.255.254"): ip("127.0.0.1")}


def test_the_files_leases_and_forwards_are_kept(written: Callable[[str], str]):
    text = "stack: {dhcpStaticLeases: {192.168.127.9: 02:AA:00:00:00:01}, forwards: {':8080': '192.168.127.9:80'}}"
    config = made(written(text))
    assert config.network.static_leases == {bytes.fromhex("02aa00000001"): ip("192.168.127.9")}
    assert config.forwards == (ForwardSpec("tcp", ":8080", "192.168.127.9:80"),)


def test_debug_overrides_the_files_level(written: Callable[[str], str]):
    assert made(written("log-level: error") + "-debug").log_level == "debug"
    assert made(written("log-level: error")).log_level == "error"


# -- every flag ---------------------------------------------------------------------------------------------------

EFFECTS: dict[str, tuple[str, Callable[[RunConfig], Any], Any]] = {
    "listen": ("-listen unix:///none/b", lambda c: c.api_listen, ("unix:///none/api.sock", "unix:///none/b")),
    "services": ("-services unix:///none/s", lambda c: c.services, "unix:///none/s"),
    "debug": ("-debug", lambda c: c.log_level, "debug"),
    "pcap": ("-pcap x.pcapng", lambda c: c.capture, Path("x.pcapng")),
    "mtu": ("-mtu 4000", lambda c: c.network.link.mtu, 4000),
    "ssh-port": (
        "-ssh-port 2200",
        lambda c: c.forwards,
        (ForwardSpec("tcp", "127.0.0.1:2200", "192.168.127.2:22"),),
    ),
    "subnet": ("-subnet 10.1.0.0/16", lambda c: c.network.host_ip, ip("10.1.255.254")),
    "gatewayIP": ("-gatewayIP 192.168.127.7", lambda c: c.network.gateway_ip, ip("192.168.127.7")),
    "deviceIP": ("-deviceIP 192.168.127.7", lambda c: c.network.device_ip, ip("192.168.127.7")),
    "hostIP": ("-hostIP 192.168.127.7", lambda c: c.network.host_ip, ip("192.168.127.7")),
    "linger": ("-linger 3", lambda c: c.linger, 3.0),
    "pid-file": ("-pid-file p", lambda c: c.pid_file, Path("p")),
    "log-file": ("-log-file l", lambda c: c.log_file, Path("l")),
    "ec2-metadata-access": ("-ec2-metadata-access", lambda c: c.network.metadata_access, True),
    "notification": ("-notification unix:/none/a%20b", lambda c: c.notification, Path("/none/a b")),
}
ELSEWHERE = {"config", "version", *(f"listen-{kind}" for kind in ("qemu", "bess", "vfkit", "vpnkit", "stdio"))} | {
    f"forward-{end}" for end in ("sock", "dest", "user", "identity")
}


@pytest.mark.parametrize(("line", "seen", "expected"), EFFECTS.values(), ids=EFFECTS)
@pytest.mark.parametrize("file", [False, True], ids=["without a file", "with a file"])
def test_every_flag_has_its_effect_with_a_file_too(
    line: str, seen: Callable[[RunConfig], Any], expected: Any, file: bool, written: Callable[[str], str]
):
    """Without -config, and with it: there gvproxy ignores -pcap, -ssh-port and the addresses."""
    start = written("{events: e}") if file else ""
    assert seen(made(start)) != expected, "the default would do as well"
    assert seen(made(start + line)) == expected


def test_no_flag_is_left_out():
    assert set(EFFECTS) | ELSEWHERE == set(FLAGS)


def test_flags_replace_the_files_values_but_addresses_do_not(written: Callable[[str], str]):
    text = """
        {listen: [unix:///none/l], services: unix:///none/s, pid-file: fp, log-file: fl, notification: /none/n,
         interfaces: {qemu: unix:///none/fq}, capture: {file: fc},
         stack: {mtu: 9000, subnet: 10.2.0.0/16, deviceIP: 10.2.0.9}}"""
    config = made(
        written(text) + "-mtu 1400 -subnet 10.3.0.0/16 -deviceIP 10.3.0.4 -gatewayIP 10.2.0.77 -pid-file p -pcap c"
        " -listen-qemu unix:///none/q -services unix:///none/t -notification unix:///none/m -log-file l"
    )
    assert config.network.link.mtu == 1400
    assert (config.network.subnet, config.network.device_ip) == (ip("10.2.0.0"), ip("10.2.0.9"))
    assert config.network.gateway_ip == ip("10.2.0.77"), "the file says none"
    assert config.api_listen == ("unix:///none/api.sock",)
    assert config.services == "unix:///none/t"
    assert (config.pid_file, config.log_file, config.capture) == (Path("p"), Path("l"), Path("c"))
    assert config.notification == Path("/none/m")
    assert config.links == (ListenLink("qemu", UnixEndpoint(Path("/none/q"))),)
    assert config.notes == (
        "-subnet 10.3.0.0/16: the configuration file says 10.2.0.0/16, which is used",
        "-deviceIP 10.3.0.4: the configuration file says 10.2.0.9, which is used",
    )


def test_ssh_port_leads_to_the_device_wherever_it_is(written: Callable[[str], str]):
    config = made("-subnet 10.1.0.0/16 -deviceIP 10.1.0.50")
    assert config.forwards == (ForwardSpec("tcp", "127.0.0.1:2222", "10.1.0.50:22"),)
    assert made("-ssh-port -1").forwards == ()
    text = "stack: {subnet: 10.1.0.0/16, forwards: {'127.0.0.1:2200': '10.1.0.9:22', ':80': '10.1.0.9:80'}}"
    assert made(written(text) + "-ssh-port 2200").forwards == (
        ForwardSpec("tcp", ":80", "10.1.0.9:80"),
        ForwardSpec("tcp", "127.0.0.1:2200", "10.1.0.2:22"),
    )


def test_ssh_forwards_are_added_to_the_files(tmp_path: Path, written: Callable[[str], str]):
    key = tmp_path / "key"
    key.write_text("key")
    one = f"-forward-sock /a -forward-dest /run/a -forward-user core -forward-identity {key} "
    two = f"-forward-sock /b -forward-dest /run/b -forward-user root -forward-identity {key} "
    both = (SshForward(Path("/a"), "/run/a", "core", key), SshForward(Path("/b"), "/run/b", "root", key))
    assert made(one + two).ssh_forwards == both
    text = f"forwards: [{{socket: /a, dest: /run/a, user: core, identity: {key}}}]"
    assert made(written(text) + two).ssh_forwards == both


def test_a_policy_in_the_file_holds_and_can_be_read_again(written: Callable[[str], str]):
    config = made(written("policy: {allow_net: [a.example]}"))
    assert config.policy == NetworkSpec.enabled(["a.example"])
    written("policy: disabled")
    assert config.reload_policy is not None
    assert config.reload_policy() == NetworkSpec.disabled()
    assert made("").reload_policy is None


def test_an_unknown_level_is_a_warning(written: Callable[[str], str]):
    config = made(written("log-level: loud"))
    assert config.log_level == "info"
    assert config.notes == ('bad log level "loud", falling back to "info"',)


# -- in gvproxy's words ------------------------------------------------------------------------------------------

_IPS = "failed to validate configuration IPs: "
MESSAGES = {
    "-subnet 192.168.127.0/30": "failed to identify usable gateway IP address in subnet: subnet too small",
    "-subnet nonsense": "failed to parse subnet: netip.ParsePrefix(\"nonsense\"): no '/'",
    "-subnet 10.0.0.0/33": 'failed to parse subnet: netip.ParsePrefix("10.0.0.0/33"): prefix length out of range',
    "-subnet 10.0.0.0/x": 'failed to parse subnet: netip.ParsePrefix("10.0.0.0/x"): bad bits after slash: "x"',
    "-subnet /24": 'failed to parse subnet: netip.ParsePrefix("/24"): ParseAddr(""): unable to parse IP',
    "-linger -1": "linger value must be seconds, 0 or more: -1",
    "-gatewayIP here": _IPS + "invalid IP address: here",
    "-gatewayIP 10.0.0.1": _IPS + "IP (10.0.0.1) not in subnet (192.168.127.0/24)",
    "-deviceIP 192.168.127.0": _IPS + "IP must not be address of subnet: 192.168.127.0",
    "-hostIP 192.168.127.255": _IPS + "IP must not be broadcast address: 192.168.127.255",
    "-hostIP 192.168.127.1": _IPS + "IP addresses need to be distinct",
    "-ssh-port 80": "ssh-port value must be between 1024 and 65535",
    "-ssh-port 65536": "ssh-port value must be between 1024 and 65535",
    "-listen-vpnkit unix:///none/a -listen-qemu unix:///none/b": "cannot use qemu and vpnkit protocol at the same time",
    "-listen-vpnkit unix:///none/a -listen-bess unixpacket:///none/b": (
        "cannot use bess and vpnkit protocol at the same time"
    ),
    "-listen-qemu unix:///none/a -listen-bess unixpacket:///none/b": (
        "cannot use qemu and bess protocol at the same time"
    ),
    "-listen-bess unix:///none/a": "bess listen address must be unixpacket:// address",
    "-listen-vfkit unix:///none/a": "vfkit listen address must be unixgram:// address",
    "-notification /none/a": "notification listen address must be unix:// address",
    "-forward-sock /a -forward-dest /b": (
        "--forward-sock, --forward-dest, --forward-user, and --forward-identity must all be specified together,"
        " the same number of times, or not at all"
    ),
    "-forward-sock /a -forward-dest /b -forward-user c -forward-identity /none/key": (
        'identity file "/none/key" can\'t be loaded: stat /none/key: no such file or directory'
    ),
    "-config /none/file": "failed to read config file: open /none/file: no such file or directory",
    "-subnet fc00::/64": "-subnet 'fc00::/64': expected an IPv4 network such as 192.168.127.0/24",
    "-mtu 70000": "-mtu '70000': expected a number of bytes from 576 to 65521",
    "-listen-qemu http://x": "-listen-qemu 'http://x': expected unix://PATH or tcp://HOST:PORT or vsock://[CID]:PORT",
    "-listen http://x": "-listen 'http://x': expected unix://PATH or tcp://HOST:PORT or vsock://[CID]:PORT",
    "-services x": "-services 'x': expected unix://PATH or tcp://HOST:PORT or vsock://[CID]:PORT",
}


@pytest.mark.parametrize(("line", "message"), MESSAGES.items(), ids=MESSAGES)
def test_messages(line: str, message: str):
    with pytest.raises(ConfigError) as caught:
        made(line)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stack: {mtuu: 1}", "failed to parse configuration: stack.mtuu: unknown key; did you mean 'mtu'?"),
        ("[", "failed to parse configuration: while parsing a flow node"),
        ("stack: {nat: {192.168.127.254: '::1'}}", "failed to parse configuration: stack.nat.192.168.127.254 '::1'"),
        ("policy: {allow_net: ['*.com']}", "failed to parse configuration: "),
        ("stack: {gatewayIP: 10.0.0.1}", _IPS + "IP (10.0.0.1) not in subnet (192.168.127.0/24)"),
        (
            "forwards: [{socket: /a, dest: /b, user: c, identity: /none/key}]",
            'identity file "/none/key" can\'t be loaded: stat /none/key: no such file or directory',
        ),
    ],
)
def test_messages_about_the_file(text: str, message: str, written: Callable[[str], str]):
    with pytest.raises(ConfigError) as caught:
        made(written(text))
    assert str(caught.value).startswith(message)


def test_nothing_to_attach_to():
    with pytest.raises(ConfigError, match="nothing to attach a guest to"):
        gvproxy_config(parse_flags([]))


@pytest.mark.parametrize(
    ("flag", "scheme", "kind"),
    [
        ("qemu", "unix", socket.SOCK_STREAM),
        ("bess", "unixpacket", socket.SOCK_SEQPACKET),
        ("vfkit", "unixgram", socket.SOCK_DGRAM),
        ("vpnkit", "unix", socket.SOCK_STREAM),
    ],
)
def test_a_living_socket_exists_already_and_a_dead_one_does_not(
    flag: str, scheme: str, kind: socket.SocketKind, tmp_path: Path
):
    path = tmp_path / "link"
    line = f"-listen-{flag} {scheme}://{path}"
    with socket.socket(socket.AF_UNIX, kind) as living:
        living.bind(str(path))
        if kind != socket.SOCK_DGRAM:
            living.listen()
        with pytest.raises(ConfigError) as caught:
            made(line)
        assert str(caught.value) == f'"{path}" already exists'
    assert len(made(line).links) == 1
    path.unlink()
    path.write_text("somebody's")
    with pytest.raises(ConfigError, match="already exists"):
        made(line)


def test_a_configuration_that_cannot_be_used_is_a_line_and_status_1(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        cli.main(["gvproxy", "-subnet", "10.0.0.0/30"])
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (1, "")
    assert told.err.startswith('time="20')
    assert told.err.endswith(
        'level=fatal msg="failed to identify usable gateway IP address in subnet: subnet too small"\n'
    )


def test_the_documentation_has_a_row_for_every_flag_and_tests_that_exist():
    root = Path(__file__).parents[1]
    told = (root / "docs" / "gvproxy.md").read_text(encoding="utf-8")
    cells = [line.split("|")[1] for line in told.splitlines() if line.startswith("| `-")]
    assert set(re.findall(r"-([a-zA-Z0-9-]+)[^`]*`", " ".join(cells))) == set(FLAGS)
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", told)
    assert len(named) > 40
    for file, test in named:
        assert re.search(rf"^(async )?def {test}\(", (root / file).read_text(encoding="utf-8"), re.MULTILINE), test


def test_the_evidence_has_every_path_and_tests_that_have_the_texts():
    from netstack.gateway.api import app, gvproxy

    root = Path(__file__).parents[1]
    told = (root / "docs" / "gvproxy.md").read_text(encoding="utf-8").partition("## Evidence")[2]
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \|$", told, re.MULTILINE)
    served = set(re.findall(r'^ +"(/[a-z/]+)": ', Path(gvproxy.__file__).read_text(encoding="utf-8"), re.MULTILINE))
    assert {what for what, _ in rows if what.startswith("/")} == served | app.FULL
    texts = [(what, said) for what, said in rows if not what.startswith("/")]
    assert len(texts) > 30
    for text, said in texts:
        for file in re.findall(r"`(tests/[\w/]+\.py)::", said):
            assert text in (root / file).read_text(encoding="utf-8"), (text, file)
