"""gvproxy's command line: its flags, in the syntax of Go's flag package.

`-x v`, `-x=v`, `--x v` and `--x=v` are the same; `-debug` and its like take a value only behind `=`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Final, Literal

DEFAULT_SSH_PORT: Final = 2222


class FlagError(ValueError):
    """Flags that cannot be read: what Go says, and the usage that follows it."""


class HelpWanted(Exception):  # noqa: N818 - nothing has gone wrong
    """`-h` or `-help`."""


@dataclass(slots=True, kw_only=True)
class GvproxyFlags:
    """The values of the flags. Empty text, 0 and None: not given."""

    config: str = ""
    debug: bool = False
    deviceIP: str = ""  # noqa: N815 - named as the flag is
    ec2_metadata_access: bool = False
    forward_dest: list[str] = field(default_factory=list)
    forward_identity: list[str] = field(default_factory=list)
    forward_sock: list[str] = field(default_factory=list)
    forward_user: list[str] = field(default_factory=list)
    gatewayIP: str = ""  # noqa: N815
    hostIP: str = ""  # noqa: N815
    listen: list[str] = field(default_factory=list)
    listen_bess: str = ""
    listen_qemu: str = ""
    listen_stdio: str = ""
    listen_vfkit: str = ""
    listen_vpnkit: str = ""
    log_file: str = ""
    mtu: int = 0
    notification: str = ""
    pcap: str = ""
    pid_file: str = ""
    services: str = ""
    ssh_port: int | None = None
    subnet: str = ""
    version: bool = False


Kind = Literal["", "value", "int", "string"]
"""What the usage shows behind a flag: nothing (a truth), a value that may come several times, a number, a text."""

FLAGS: Final[dict[str, tuple[Kind, str]]] = {
    "config": ("string", "Read the configuration from a YAML file"),
    "debug": ("", "Say more: the same as log-level: debug"),
    "deviceIP": ("string", "IP address of the guest (default: the second of the subnet)"),
    "ec2-metadata-access": ("", "Let the guest reach 169.254.0.0/16, where clouds keep their metadata"),
    "forward-dest": ("value", "Unix socket in the guest that -forward-sock leads to"),
    "forward-identity": ("value", "File of the private key for it"),
    "forward-sock": ("value", "Unix socket on the host that leads to one in the guest, over SSH"),
    "forward-user": ("value", "Who to be there"),
    "gatewayIP": ("string", "IP address of the gateway (default: the first of the subnet)"),
    "hostIP": ("string", "IP address that stands for this machine (default: the last of the subnet)"),
    "listen": ("value", "Serve the HTTP API there: unix://PATH, tcp://HOST:PORT or vsock://[CID]:PORT"),
    "listen-bess": ("string", "Wait for a guest at unixpacket://PATH (User Mode Linux, BESS)"),
    "listen-qemu": ("string", "Wait for a guest at unix://PATH, tcp://HOST:PORT or vsock://[CID]:PORT (QEMU, libkrun)"),
    "listen-stdio": ("string", "The guest is on standard input and output; the value is any text, such as accept"),
    "listen-vfkit": ("string", "Wait for a guest at unixgram://PATH (vfkit, krunkit, libkrun)"),
    "listen-vpnkit": ("string", "Wait for a guest at unix://PATH, tcp://HOST:PORT or vsock://[CID]:PORT (HyperKit)"),
    "log-file": ("string", "Write messages there instead of standard error; emptied at the start"),
    "mtu": ("int", "Largest IP packet on the guest's link, bytes (default 1500)"),
    "notification": ("string", "Tell the listening socket unix://PATH what happens"),
    "pcap": ("string", "Write every Ethernet frame there, as pcapng"),
    "pid-file": ("string", "Hold the process id there while it runs"),
    "services": ("string", "Serve the HTTP API there, without /connect"),
    "ssh-port": ("int", "Port of 127.0.0.1 that leads to the guest's port 22; -1 for none (default 2222)"),
    "subnet": ("string", 'Subnet of the guest (default "192.168.127.0/24")'),
    "version": ("", "Print the version and exit"),
}

_TRUE: Final = ("1", "t", "T", "true", "TRUE", "True")
_FALSE: Final = ("0", "f", "F", "false", "FALSE", "False")


def parse_flags(arguments: Sequence[str]) -> GvproxyFlags:
    """Read a command line. Raises FlagError, HelpWanted."""
    flags = GvproxyFlags()
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if argument == "--":
            break
        if argument == "-" or not argument.startswith("-"):
            left.insert(0, argument)
            break
        name, separator, value = argument[2 if argument.startswith("--") else 1 :].partition("=")
        if not name or name.startswith("-"):
            raise FlagError(f"bad flag syntax: {argument}")
        if name not in FLAGS:
            if name in ("h", "help"):
                raise HelpWanted
            raise FlagError(f"flag provided but not defined: -{name}")
        kind = FLAGS[name][0]
        if not separator:
            if kind == "":
                value = "true"
            elif not left:
                raise FlagError(f"flag needs an argument: -{name}")
            else:
                value = left.pop(0)
        _set(flags, name, kind, value)
    if left:
        raise FlagError(f'unexpected argument "{left[0]}": every flag begins with -')
    return flags


def _set(flags: GvproxyFlags, name: str, kind: Kind, text: str) -> None:
    attribute = name.replace("-", "_")
    if kind == "":
        if text not in _TRUE + _FALSE:
            raise FlagError(f'invalid boolean value "{text}" for -{name}: parse error')
        setattr(flags, attribute, text in _TRUE)
    elif kind == "int":
        try:
            setattr(flags, attribute, int(text, 0))
        except ValueError:
            raise FlagError(f'invalid value "{text}" for flag -{name}: parse error') from None
    elif kind == "value":
        getattr(flags, attribute).append(text)
    else:
        setattr(flags, attribute, text)


def usage(program: str) -> str:
    """What `-h` prints, in the form of Go's flag package."""
    lines = [f"Usage of {program}:"]
    for name, (kind, meaning) in FLAGS.items():
        lines += [f"  -{name} {kind}".rstrip(), f"    \t{meaning}"]
    return "\n".join(lines) + "\n"


def flag_names() -> list[str]:
    """Every flag, without dashes."""
    return [each.name.replace("_", "-") for each in fields(GvproxyFlags)]
