"""The model of the configuration file: gvproxy's YAML keys and ours, how each is checked and what it is for.

`configuration` reads files with it. Only the two import pydantic; a run without a file never does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue, WithJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError

from netstack import setting_values as values
from netstack.engine.policy import ANSWER_MODES, NULL, SINKHOLE_MODES
from netstack.engine.settings import Zone, ZoneRecord
from netstack.setting_values import ConfigError


def _as_expected(parse: Callable[[Any, str], Any]) -> AfterValidator:
    """A check by one of `setting_values`; the value stays as it was written."""

    def check(value: Any) -> Any:
        try:
            parse(value, "")
        except ConfigError as error:
            raise PydanticCustomError("setting", "{expected}", {"expected": error.expected}) from error
        return value

    return AfterValidator(check)


def _endpoint(*schemes: str) -> AfterValidator:
    return _as_expected(lambda text, key: values.parse_endpoint(text, key, schemes))


def _truth(value: object) -> object:
    """YAML 1.2 has only true and false; people write YAML 1.1's words too."""
    if isinstance(value, str) and (word := value.lower()) in ("on", "yes", "off", "no"):
        return word in ("on", "yes")
    if not isinstance(value, bool):
        raise PydanticCustomError("setting", "{expected}", {"expected": "true or false, on or off"})
    return value


def _choice(value: object) -> object:
    """What YAML reads as a truth, as the word it was."""
    return ("on" if value else "off") if isinstance(value, bool) else value


def _one_or_more(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _zero_is_default(mtu: object) -> object:
    return 1500 if mtu == 0 and mtu is not False else mtu


def _pattern(text: str, key: str) -> None:
    try:
        re.compile(text)
    except re.error as error:
        raise ConfigError(key, text, f"a regular expression ({error})") from None


def _apex_or_domain(text: str, key: str) -> None:
    if text != "@":
        values.parse_domain(text, key)


def _notification(text: str, key: str) -> None:
    if not Path(text.removeprefix("unix://")).is_absolute():
        raise ConfigError(key, text, "the absolute path of a listening unix socket")


_BOOLEAN_SCHEMA: Final = {"anyOf": [{"type": "boolean"}, {"enum": ["on", "off", "yes", "no"]}]}
Boolean = Annotated[bool, BeforeValidator(_truth), WithJsonSchema(_BOOLEAN_SCHEMA)]
Ipv4 = Annotated[str, _as_expected(values.parse_ipv4)]
Mac = Annotated[str, _as_expected(values.parse_mac)]
Seconds = Annotated[float, _as_expected(values.parse_seconds)]
Bytes = Annotated[int | str, _as_expected(values.parse_size)]
Microseconds = Annotated[float, _as_expected(values.parse_busy_poll)]
Window = Annotated[int | str, _as_expected(values.parse_window)]


class _OrOneAlone:
    """Says in the schema that one value may stand where a list could."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        array = handler(schema)
        return {"anyOf": [array["items"], array]}


T = TypeVar("T")
OneOrMore = Annotated[list[T], BeforeValidator(_one_or_more), _OrOneAlone()]
Url = Annotated[str, _endpoint(*values.STREAM_SCHEMES)]
DatagramUrl = Annotated[str, _endpoint("unixgram")]
PacketUrl = Annotated[str, _endpoint("unixpacket")]
Upstream = Annotated[str, _as_expected(values.parse_dns_upstream)]
Device = Annotated[str, _as_expected(values.parse_device_name)]
Descriptor = Annotated[int, _as_expected(values.parse_fd)]


class _Section(BaseModel):
    """Keys as they are in the file. What is empty there says nothing, as gvproxy has it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty_keys(cls, section: object) -> object:
        if not isinstance(section, dict):
            return section
        return {key: value for key, value in section.items() if value is not None and value != ""}


class Interfaces(_Section):
    """Where guests attach; each takes one URL, or a list of them."""

    vfkit: OneOrMore[DatagramUrl] | None = Field(
        default=None, description="unixgram://PATH: vfkit, krunkit, libkrun, QEMU -netdev dgram."
    )
    qemu: OneOrMore[Url] | None = Field(
        default=None, description="unix://PATH, tcp://HOST:PORT or vsock://[CID]:PORT: QEMU -netdev stream, libkrun."
    )
    bess: OneOrMore[PacketUrl] | None = Field(default=None, description="unixpacket://PATH: BESS, User Mode Linux.")
    vpnkit: OneOrMore[Url] | None = Field(
        default=None, description="unix://PATH, tcp://HOST:PORT or vsock://[CID]:PORT: HyperKit."
    )
    stdio: str | None = Field(default=None, description="Any text: the guest is on standard input and output.")


class SocketForward(_Section):
    """A unix socket of the host that leads to one in the guest over SSH."""

    socket: str = Field(description="Path on the host.")
    dest: str = Field(description="Path in the guest.")
    user: str = Field(description="Who to be there.")
    identity: str = Field(description="File of the private key.")


class DnsRecord(_Section):
    """One address, by name or by pattern."""

    name: Annotated[str, _as_expected(_apex_or_domain)] | None = Field(
        default=None, description="Labels left of the zone's name; @ is the zone's own name."
    )
    ip: Ipv4 = Field(description="IPv4 address of the answer.")
    regexp: Annotated[str, _as_expected(_pattern)] | None = Field(
        default=None, description="Searched in the labels left of the zone's name, without case."
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> DnsRecord:
        if (self.name is None) == (self.regexp is None):
            raise PydanticCustomError("setting", "{expected}", {"expected": "either a name or a regexp"})
        return self


class DnsZone(_Section):
    """A zone that is answered here. The longest that fits a question answers it."""

    name: Annotated[str, _as_expected(values.parse_domain)] = Field(description="With or without the final dot.")
    defaultIP: Ipv4 | None = Field(default=None, description="Address of every name that no record fits.")
    records: list[DnsRecord] = Field(default=[], description="In this order; the first that fits answers.")

    def zone(self) -> Zone:
        """As the engine has it."""
        records = []
        for each in self.records:
            pattern = None if each.regexp is None else re.compile(each.regexp, re.IGNORECASE)
            name = "" if each.name in (None, "@") else values.parse_domain(str(each.name), "")
            records.append(ZoneRecord(name, values.parse_ipv4(each.ip, ""), pattern))
        default = None if self.defaultIP is None else values.parse_ipv4(self.defaultIP, "")
        return Zone(values.parse_domain(self.name, ""), tuple(records), default)


class NetworkStack(_Section):
    """The guest's network: gvproxy's `stack`."""

    debug: Boolean | None = Field(default=None, description="The same as log-level: debug.")
    capture_file: str | None = Field(default=None, alias="capture-file", description="The same as capture.file.")
    mtu: Annotated[int, BeforeValidator(_zero_is_default), _as_expected(values.parse_mtu)] | None = Field(
        default=None,
        description="Largest IP packet on the guest's link, bytes, 576 to 65521. Default 1500, which 0 means too.",
    )
    subnet: Annotated[str, _as_expected(values.parse_subnet)] | None = Field(
        default=None, description="The guest's network, /8 to /29. Default 192.168.127.0/24."
    )
    gatewayIP: Ipv4 | None = Field(default=None, description="Router, DNS, DHCP. Default: the subnet's first.")
    deviceIP: Ipv4 | None = Field(default=None, description="The guest. Default: the subnet's second.")
    hostIP: Ipv4 | None = Field(default=None, description="This machine's 127.0.0.1. Default: the subnet's last.")
    gatewayMacAddress: Mac | None = Field(default=None, description="Default 5a:94:ef:e4:0c:dd.")
    dns: list[DnsZone] | None = Field(default=None, description="Zones that are answered here.")
    dnsSearchDomains: list[Annotated[str, _as_expected(values.parse_domain)]] | None = Field(
        default=None, description="What DHCP tells guests to search; `run`: the host's unless given."
    )
    forwards: dict[str, str] | None = Field(
        default=None, description="HOST:PORT to listen on -> IP:PORT of the guest; udp: or unix: before it for these."
    )
    nat: dict[Ipv4, Ipv4] | None = Field(
        default=None, description="What the guest dials -> what is dialled. Default: hostIP -> 127.0.0.1."
    )
    gatewayVirtualIPs: list[Ipv4] | None = Field(
        default=None, description="Further addresses the gateway answers ARP for. Default: hostIP."
    )
    dhcpStaticLeases: dict[Ipv4, Mac] | None = Field(default=None, description="Address -> MAC.")
    vpnKitUUIDMacAddresses: dict[str, Mac] | None = Field(
        default=None, description="UUID of a machine on vpnkit's link -> the MAC it is told."
    )
    ec2MetadataAccess: Boolean | None = Field(default=None, description="The same as ec2-metadata-access.")
    tcpMaxInFlight: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Read and not needed: dials do not wait for each other."
    )
    tcpConnectTimeout: Seconds | None = Field(default=None, description="Seconds a TCP dial may take. Default 30.")

    @model_validator(mode="after")
    def _forwards_have_two_ends(self) -> NetworkStack:
        for local, remote in (self.forwards or {}).items():
            try:
                values.parse_forward_ends(local, remote, "")
            except ConfigError as error:
                where = {"expected": f"in forwards: {error.expected}, not {error.value!r}"}
                raise PydanticCustomError("setting", "{expected}", where) from error
        return self


def _rules(value: object) -> object:
    if not isinstance(value, list) or not all(isinstance(rule, str) for rule in value):
        expected = "a list of rules, each a text (in quotes, if it is a number)"
        raise PydanticCustomError("setting", "{expected}", {"expected": expected})
    return value


class Policy(BaseModel):
    """What guests may reach; the keys of NetworkSpec."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    network: str | None = Field(default=None, description="enabled or disabled.")
    allow_net: Annotated[list[str], BeforeValidator(_rules)] | None = Field(
        default=None, description="Only this is reached: a list of rules."
    )
    deny_all: Boolean | None = Field(default=None, description="Nothing is reached.")
    sinkhole: Annotated[str, BeforeValidator(lambda word: NULL if word is None else word)] | None = Field(
        default=None, description=f"What a name that is not allowed resolves to: {', '.join(SINKHOLE_MODES)}."
    )
    answers: str | None = Field(default=None, description=f"{' or '.join(ANSWER_MODES)}.")
    pass_service_bindings: Boolean | None = Field(default=None, description="HTTPS and SVCB records reach the guest.")
    strict_ech: Boolean | None = Field(default=None, description="TLS hellos that hide their name are refused.")


class _OrAWord:
    """Says in the schema that one of the words may stand where the mapping could."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), {"enum": ["enabled", "disabled"]}]}


def _policy_word(value: object) -> object:
    return {"network": value} if isinstance(value, str) else value


class Capture(_Section):
    """Frames in a pcapng file."""

    file: str | None = Field(default=None, description="Where to.")
    snaplen: Annotated[int, Field(ge=14)] | None = Field(default=None, description="Bytes of each frame that are kept.")
    rotate_size: Bytes | None = Field(
        default=None, alias="rotate-size", description="Bytes of a file (K, M, G); then the next."
    )
    rotate_count: Annotated[int, Field(ge=1)] | None = Field(
        default=None, alias="rotate-count", description="Files kept."
    )
    filter: str | None = Field(default=None, description="Which frames, as in: host 10.0.0.5 and port 443.")


class LinkRates(_Section):
    """Rates in kbit/s as the guest sees them."""

    tx_kbps: Annotated[float, Field(gt=0)] | None = Field(default=None, description="What a guest sends.")
    rx_kbps: Annotated[float, Field(gt=0)] | None = Field(default=None, description="What it receives.")
    burst: Bytes | None = Field(default=None, description="What may go at once after a pause (K, M, G).")


class LinkShaping(LinkRates):
    """Rates of each link."""

    links: dict[str, LinkRates] | None = Field(
        default=None, description="Rates of some links: by their name, or a pattern such as tap*."
    )


class Api(_Section):
    """The HTTP API."""

    token: str | None = Field(default=None, description="What callers have to bear (Authorization: Bearer ...).")
    token_file: str | None = Field(default=None, alias="token-file", description="File that holds it, instead.")
    guests: Boolean | None = Field(
        default=None, description="Guests may ask for forwards to themselves, at http://gateway. gvproxy's always may."
    )

    @model_validator(mode="after")
    def _one_token(self) -> Api:
        if self.token and self.token_file:
            raise PydanticCustomError("setting", "{expected}", {"expected": "a token or a token-file, not both"})
        return self


class Document(_Section):
    """The whole file."""

    listen: OneOrMore[Url] | None = Field(
        default=None, description="Endpoints of the HTTP API: unix://PATH, tcp://HOST:PORT, vsock://[CID]:PORT."
    )
    services: Url | None = Field(default=None, description="One more endpoint of it, without /connect.")
    log_level: str | None = Field(
        default=None, alias="log-level", description="trace, debug, info, warning, error, fatal or panic. Default info."
    )
    log_format: Literal["text", "json"] | None = Field(
        default=None, alias="log-format", description="How messages look."
    )
    log_file: str | None = Field(
        default=None, alias="log-file", description="Where they go, emptied at the start. Default: standard error."
    )
    pid_file: str | None = Field(default=None, alias="pid-file", description="Holds the process id while it runs.")
    notification: Annotated[str, _as_expected(_notification)] | None = Field(
        default=None, description="Path of a listening unix socket that is told what happens."
    )
    ec2_metadata_access: Boolean | None = Field(
        default=None,
        alias="ec2-metadata-access",
        description="Guests may reach 169.254.0.0/16, where clouds keep metadata.",
    )
    interfaces: Interfaces = Interfaces()
    forwards: list[SocketForward] | None = Field(
        default=None, description="Unix sockets that lead to the guest's over SSH."
    )
    stack: NetworkStack = NetworkStack()
    policy: Annotated[Policy, BeforeValidator(_policy_word), _OrAWord()] | None = Field(
        default=None, description="What guests may reach; `enabled` or `disabled` alone does as well."
    )
    offload: Boolean | None = Field(
        default=None,
        description="Guests may leave segmentation to us: a TAP's kernel, others by frames beyond the MTU. Default on.",
    )
    verify_checksums: Annotated[Literal["auto", "on", "off"], BeforeValidator(_choice)] | None = Field(
        default=None,
        alias="verify-checksums",
        description="on, off, or auto: guests' checksums are looked at where the link can damage bytes. Default auto.",
    )
    batch_calls: Boolean | None = Field(
        default=None,
        alias="batch-calls",
        description="Many frames go with one system call, where there are such. Default on.",
    )
    busy_poll: Microseconds | None = Field(
        default=None,
        alias="busy-poll",
        description="Microseconds for which the next frame is waited for awake at most; 0 is off. Default 200.",
    )
    tap: OneOrMore[Device] | None = Field(default=None, description="Name of a TAP device, or a list.")
    netns: str | None = Field(
        default=None, description="Network namespace of the TAPs: a name, a process id or a path."
    )
    fd: OneOrMore[Descriptor] | None = Field(default=None, description="Number of an inherited socket, or a list.")
    dns_upstream: OneOrMore[Upstream] | None = Field(
        default=None,
        alias="dns-upstream",
        description="Resolvers to ask, in this order. Default: those of /etc/resolv.conf.",
    )
    events: str | None = Field(default=None, description="File for events as JSON lines; - is standard output.")
    capture: Capture = Capture()
    shaping: LinkShaping | None = None
    impair: str | dict[str, Any] | list[str | dict[str, Any]] | None = Field(
        default=None, description="Impairments and faults: 'dir=to-guest delay 50ms loss 1%', or a mapping of words."
    )
    api: Api = Api()
    keep_source: Boolean | None = Field(
        default=None, alias="keep-source", description="Forwards show guests the client's address where it can be kept."
    )
    udp_timeout: Seconds | None = Field(
        default=None,
        alias="udp-timeout",
        description="Seconds after which a silent, answered UDP flow is over. Default 180.",
    )
    udp_unreplied_timeout: Seconds | None = Field(
        default=None, alias="udp-unreplied-timeout", description="The same for one that was never answered. Default 30."
    )
    tcp_window: Window | None = Field(
        default=None,
        alias="tcp-window",
        description="Bytes (K, M) on their way in a TCP connection, each way. Default: what the link's queue holds.",
    )
    tcp_keepalive: Seconds | None = Field(
        default=None, alias="tcp-keepalive", description="Idle seconds after which a guest is asked. Default: never."
    )

    @model_validator(mode="after")
    def _one_capture(self) -> Document:
        one, other = self.capture.file, self.stack.capture_file
        if one and other and one != other:
            raise PydanticCustomError("setting", "{expected}", {"expected": "capture.file or stack.capture-file"})
        return self
