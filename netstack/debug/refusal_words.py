"""Why the policy said no, in plain words, and what would change it: from a verdict's step, reason, rule and name."""

from __future__ import annotations

from typing import Final, NamedTuple

from netstack.engine.verdict import ACTION_WORDS, Verdict

WEB_PORTS: Final = (80, 443)

STEP_WORDS: Final = {
    "syn": "when the connection was opened (SYN)",
    "datagram": "at its first datagram",
    "tls": "at the TLS hello",
    "http": "at the HTTP request",
    "quic": "at the QUIC hello",
    "echo": "at the echo request",
    "dns": "when its name was asked for",
    "dial": "when its name was to be dialled",
    "hook": "by the hook",
    "replaced": "when the policy was replaced",
}

_ADDRESS_KINDS: Final = {
    "private": "a private address (RFC 1918 or RFC 4193)",
    "loopback": "a loopback address",
    "link-local": "a link-local address",
    "cgnat": "an address of a carrier's shared space (100.64.0.0/10)",
    "multicast": "a multicast address",
    "reserved": "a reserved address",
    "unspecified": "the unspecified address",
    "embedded": "an IPv4 address in IPv6's clothes",
    "group": "a group address (multicast or broadcast)",
    "forbidden": "a place that no option opens",
}

_NEVER: Final = frozenset(("loopback", "multicast", "reserved", "unspecified", "group", "forbidden"))

_SAYINGS: Final[dict[str, tuple[str, str]]] = {
    "metadata": (
        "it leads to where clouds keep their metadata, which no rule opens",
        "start with --metadata-access if the guest may see it",
    ),
    "disabled": ("the network is disabled", "start with --network enabled"),
    "own-subnet": ("the name leads into the guest's own subnet", "correct the name's records; no rule allows this"),
    "name-has-no-usable-address": (
        "every address of the name is one that must not be dialled",
        "correct the name's records, or list its address in allow_net",
    ),
    "no-name": (
        "the first bytes say no name, and only a name could have allowed it",
        "list the address in allow_net, or have the client send SNI or Host",
    ),
    "no-name-in-time": (
        "no name was said in time: the client sent nothing, or not enough, within 5 s",
        "list the address in allow_net if the server speaks first; otherwise look why the client is silent",
    ),
    "closed-without-name": ("the client ended the connection before it said a name", "look at the client"),
    "name-disagrees-with-address": (
        "the address was made up for another name than the one said",
        "have the client resolve the name that it says",
    ),
    "host-changed": (
        "a later request on the connection names another host than the first",
        "open a connection for each host, or list both",
    ),
    "unserved-port": ("the gateway serves nothing on this port", "use DNS (53) of the gateway, or dial the host IP"),
    "unused-address": ("nobody has this address of the guest's subnet", "use an address that is in use"),
    "policy-replaced": ("the policy in force now does not allow it any more", "add it to the new policy"),
    "table-full": ("there is no room for another flow", "close connections; the bound is max_tcp_flows"),
    "too-many-unnamed-flows": ("too many connections have not said their name yet", "look for a flood in the guest"),
    "too-many-bytes-wait": ("too many bytes wait for a verdict", "look for a flood in the guest"),
    "not-a-host-name": ("the question is for no host name", "ask for a host name"),
    "service-binding-withheld": (
        "HTTPS and SVCB records can lead past the name",
        "set pass_service_bindings in the policy's file if they may",
    ),
    "any-not-forwarded": ("questions of type ANY are not forwarded (RFC 8482)", "ask for the type that is wanted"),
    "too-many-new-names": ("too many new names below a wildcard", "list the names themselves"),
    "name-too-long-for-wildcard": ("the name is too long for a wildcard", "list the name itself"),
    "too-many-labels-for-wildcard": ("the name has too many labels for a wildcard", "list the name itself"),
    "synthetic-pool-exhausted": ("no made-up address is left", "list fewer names, or use --dns-answers real"),
    "ip-protocol": ("only TCP, UDP and ICMP leave the guest", "use TCP or UDP"),
    "hook-refuses": ("the hook refused it", "look at the hook"),
    "hook-failed": ("the hook raised an exception", "look at the hook's traceback in the log"),
    "hook-timeout": ("the hook took too long", "make the hook quicker, or raise --hook-deadline"),
    "hook-silent": ("the hook gave no answer in time", "make the hook quicker, or raise --hook-deadline"),
    "hook-busy": ("the hook has too many questions waiting", "make the hook quicker"),
    "not-http": ("what was sent is neither TLS nor HTTP", "list the address or the name with its port in allow_net"),
    "ech": ("the hello hides its name (ECH)", "start without --strict-ech"),
}


class Words(NamedTuple):
    """One sentence without its end, and what to change: empty where nothing helps."""

    says: str
    advice: str


def refusal(verdict: Verdict, protocol: str, destination: str, port: int) -> Words:
    """A refused flow. `destination` is the address as text; `protocol` tcp, udp or icmp."""
    reason, where = verdict.reason, STEP_WORDS.get(verdict.step, f"at {verdict.step}")
    said, advice = _reason(verdict, protocol, destination, port)
    name = f" for {verdict.name}" if verdict.name else ""
    if verdict.step == "dns" and verdict.name:
        where, name = f"when {verdict.name} was asked for", ""
    return Words(f"the policy refused it {where}{name}: {said} ({reason})", advice)


def question(verdict: Verdict, name: str, qtype: str) -> Words:
    """A DNS question that the policy answered itself."""
    if verdict.reason == "name-not-allowed":
        return Words(f"no rule allows {name}, so the policy answered {qtype} itself", f"add '{name}' to allow_net")
    said, advice = _SAYINGS.get(verdict.reason, (verdict.reason.replace("-", " "), ""))
    return Words(f"the policy answered {name} {qtype} itself: {said} ({verdict.reason})", advice)


def _reason(verdict: Verdict, protocol: str, destination: str, port: int) -> tuple[str, str]:
    reason, name = verdict.reason, verdict.name
    if reason == "name-not-allowed":
        wanted = name if port in WEB_PORTS else f"{name}:{port}"
        return "no rule allows this name", f"add '{wanted}' to allow_net"
    if reason == "port-not-covered":
        wanted = f"{name or destination}:{port}"
        return f"the rule '{verdict.rule}' is for other ports", f"add '{wanted}' to allow_net"
    if reason == "no-rule":
        return "no rule allows this address", f"add '{_target(destination, protocol, port)}' to allow_net"
    if reason in _SAYINGS:
        return _SAYINGS[reason]
    kind = reason.removesuffix("-address")
    if kind != reason and kind in _ADDRESS_KINDS:
        what = _ADDRESS_KINDS[kind]
        if kind in _NEVER:
            return f"it is {what}", ""
        if verdict.step in ("tls", "http", "quic", "dial"):
            return (
                f"the name leads to {what}",
                "add its address to allow_net if that is meant; names open public places",
            )
        return f"it is {what}", f"add '{_target(destination, protocol, port)}' to allow_net"
    for lead, what in (("sni-", "the SNI is not usable"), ("tls-", "the TLS hello is not usable"),
                       ("host-", "the Host is not usable"), ("http-", "the HTTP request is not usable"),
                       ("quic-", "the QUIC hello is not usable")):  # fmt: skip
        if reason.startswith(lead):
            return f"{what} ({reason.removeprefix(lead).replace('-', ' ')})", "look at what the client sends"
    if verdict.step == "hook":
        return f"the hook said: {reason}", "look at the hook"
    return reason.replace("-", " "), ""


def _target(destination: str, protocol: str, port: int) -> str:
    host = f"[{destination}]" if ":" in destination else destination
    if protocol == "icmp":
        return destination
    return f"{host}:{port}" if protocol == "tcp" else f"udp/{host}:{port}"


def verdict_words(verdict: Verdict) -> str:
    """`allowed at tls: name-rule 'pypi.org'`: the record's own words."""
    rule = f" '{verdict.rule}'" if verdict.rule else ""
    return f"{ACTION_WORDS[verdict.action]} at {verdict.step}: {verdict.reason}{rule}"
