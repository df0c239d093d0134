"""`netstack console`: a Python prompt on a running network. `net` is the network; what it has comes as objects.

net.flows, net.flow(7), net.questions, net.leases, net.neighbours, net.links, net.zones, net.policy, net.counters
net.story(7)                                    what happened to a flow
net.inject(IP(dst="10.0.0.5") / ICMP())         as if the guest had sent it; the answers
net.inject(packet, from_="host")                to the guest
stop = net.break_on("tcp and port 443")         holds these frames, both ways
stop.held; stop.step(); stop.drop(); stop.release()
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, cast

from netstack.debug.live_api import LiveApi, SourceError

if TYPE_CHECKING:
    from scapy.packet import Packet

Value = Any
"""What JSON has."""

_BANNER: Final = """netstack console on {source}: netstack {version}, gateway {gateway}, {flows} flows open
net is the network (help(net)); scapy's Ether, IP, TCP, UDP, ICMP, ARP and Raw are there. Ctrl-D ends it."""
_COLUMNS: Final = 8
"""Fields of a record that a list shows of it."""
_LONGEST: Final = 32


class Record:
    """A thing of the network: its fields are attributes."""

    def __init__(self, values: dict[str, Value]) -> None:
        self._values = {key: made(value) for key, value in values.items()}

    def __getattr__(self, name: str) -> Value:
        """A field."""
        values = self.__dict__.get("_values", {})
        if name in values:
            return values[name]
        raise AttributeError(f"there is no {name!r}; there are: {', '.join(values)}")

    def __getitem__(self, name: str) -> Value:
        """A field, also one whose name is no Python name."""
        return self._values[name]

    def __dir__(self) -> list[str]:
        """The fields, for completion."""
        return list(self._values)

    def __repr__(self) -> str:
        """All fields with their values, the empty ones left out."""
        fields = ", ".join(f"{key}={value!r}" for key, value in self._values.items() if value not in ("", None))
        return f"<{fields}>"

    def values(self) -> dict[str, Value]:
        """The fields as a dictionary."""
        return dict(self._values)


class Records(list[Value]):
    """Several, shown as a table."""

    def __repr__(self) -> str:
        """A line for each, with the fields that are short and differ from empty anywhere."""
        rows = [each.values() for each in self if isinstance(each, Record)]
        if not rows or len(rows) != len(self):
            return super().__repr__()
        keys = [key for key in rows[0] if any(_short(row.get(key)) for row in rows)][:_COLUMNS]
        table = [keys] + [[_short(row.get(key)) for key in keys] for row in rows]
        widths = [max(len(line[column]) for line in table) for column in range(len(keys))]
        return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
                         for line in table)  # fmt: skip


def made(value: Value) -> Value:
    """JSON's values as objects: dictionaries as Record, lists as Records."""
    if isinstance(value, dict):
        return Record(value)
    return Records(made(each) for each in value) if isinstance(value, list) else value


def _short(value: Value) -> str:
    """A cell of a table; empty for what has no place in one."""
    if isinstance(value, Record):
        known = value.values()
        text = str(known.get("verdict") or known.get("state") or "")
        reason = known.get("reason")
        return f"{text} {reason}".strip() if text and reason else text
    if value is None or isinstance(value, list):
        return ""
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


class Answer:
    """A frame that came back, or that is held: `packet` is scapy's, `direction` from-guest or to-guest."""

    def __init__(self, values: dict[str, Value]) -> None:
        self.direction = str(values["direction"])
        self.link = str(values["link"])
        self.seconds = float(values["seconds"])
        self.frame = bytes.fromhex(values["frame"])

    @property
    def packet(self) -> Packet:
        """The frame, dissected."""
        return cast("Packet", scapy_layers()["Ether"](self.frame))

    def __repr__(self) -> str:
        """One line."""
        return f"<{self.direction} {self.packet.summary()}>"


class Breakpoint:
    """A breakpoint of `net.break_on`. Leaving a `with` block releases it."""

    def __init__(self, api: LiveApi, number: int) -> None:
        self._api = api
        self.number = number

    def _state(self) -> dict[str, Value]:
        return cast(dict[str, Value], self._api.call("GET", f"/v1/breakpoints/{self.number}"))

    @property
    def held(self) -> list[Answer]:
        """The frames that wait, the oldest first."""
        return [Answer(each) for each in self._state()["held"]]

    def step(self, frames: int = 1) -> int:
        """Let the oldest go on; how many did."""
        return int(self._api.call("POST", f"/v1/breakpoints/{self.number}/step", {"frames": frames})["frames"])

    def drop(self, frames: int | None = None) -> int:
        """Drop the oldest, all without a number; how many were dropped."""
        return int(self._api.call("POST", f"/v1/breakpoints/{self.number}/drop", {"frames": frames})["frames"])

    def release(self) -> int:
        """Take it away and let all go on; how many did."""
        return int(self._api.call("DELETE", f"/v1/breakpoints/{self.number}")["frames"])

    def __enter__(self) -> Breakpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        """What it is and what it holds; asks the gateway."""
        try:
            state = self._state()
        except SourceError:
            return f"<breakpoint {self.number}, released>"
        return f"<breakpoint {self.number} {state['filter']!r}: {len(state['held'])} held, {state['hits']} hits>"


class Net:
    """The network of a running gateway. Every attribute asks the gateway anew."""

    def __init__(self, api: LiveApi) -> None:
        self._api = api

    def __repr__(self) -> str:
        """Where it is."""
        return f"<network at {self._api.where}: flows, questions, leases, neighbours, links, zones, policy, counters>"

    @property
    def flows(self) -> Records:
        """Flows that are open, and those that ended or were refused lately."""
        return cast(Records, made(self._api.call("GET", "/v1/flows")["flows"]))

    def flow(self, number: int) -> Record:
        """One flow, with its connection."""
        return cast(Record, made(self._api.call("GET", f"/v1/flows/{number}")))

    def close(self, number: int) -> None:
        """Reset a flow at both ends."""
        self._api.call("DELETE", f"/v1/flows/{number}", answers=False)

    @property
    def questions(self) -> Records:
        """DNS questions, the latest first."""
        return self._list("/v1/dns")

    @property
    def leases(self) -> Records:
        """DHCP leases."""
        return self._list("/v1/leases")

    @property
    def neighbours(self) -> Records:
        """Addresses and MACs that guests have."""
        return self._list("/v1/neighbours")

    @property
    def links(self) -> Records:
        """How guests are attached, with counters."""
        return self._list("/v1/links")

    @property
    def zones(self) -> Records:
        """DNS zones answered here."""
        return self._list("/v1/zones")

    @property
    def policy(self) -> Record:
        """What guests may reach."""
        return cast(Record, made(self._api.call("GET", "/v1/policy")))

    @property
    def counters(self) -> Record:
        """Everything that is counted."""
        return cast(Record, made(self._api.call("GET", "/v1/counters")))

    @property
    def breakpoints(self) -> list[Breakpoint]:
        """The breakpoints there are."""
        return [Breakpoint(self._api, each["id"]) for each in self._api.call("GET", "/v1/breakpoints")]

    def _list(self, path: str) -> Records:
        return cast(Records, made(self._api.call("GET", path)))

    def story(self, number: int) -> None:
        """Print what happened to a flow, as `netstack explain` does."""
        from netstack.debug.explain_text import story
        from netstack.debug.live_stories import report_of

        for line in story(report_of(self._api.call("GET", f"/v1/stories/{number}"))):
            print(line)

    def inject(
        self,
        packets: Packet | bytes | Iterable[Packet | bytes],
        *,
        from_: str = "guest",
        link: str = "",
        wait: float = 0.5,
    ) -> list[Answer]:
        """Put scapy packets, or bytes of frames, on a link: as if the guest had sent them, or (`from_="host"`) to it.

        What lacks an Ethernet header, or the guest's address, gets it. Gives back what came the other way within `wait`
        seconds, at most 10. `link` may be left out where there is one.
        """
        if from_ not in ("guest", "host"):
            raise ValueError(f"from_ {from_!r}: expected 'guest' or 'host'")
        # A packet of scapy's can be iterated over too: it would give itself, once for each value of its fields.
        one = isinstance(packets, bytes) or hasattr(packets, "summary")
        given = [cast("Packet | bytes", packets)] if one else list(cast("Iterable[Packet | bytes]", packets))
        body: dict[str, Any] = {"side": from_, "link": link, "wait": wait, "frames": [], "packets": []}
        for each in given:
            if isinstance(each, bytes):
                body["frames"].append(each.hex())
            elif each.haslayer(scapy_layers()["Ether"]):
                body["frames"].append(bytes(each).hex())
            else:
                body["packets"].append(bytes(self._addressed(each, from_, link)).hex())
        return [Answer(each) for each in self._api.call("POST", "/v1/inject", body)]

    def _addressed(self, packet: Packet, side: str, link: str) -> Packet:
        """A packet with the guest's address where it has none of its own. Raises ValueError for one without IP."""
        layer = scapy_layers()["IP"]
        if not packet.haslayer(layer):
            raise ValueError(f"{packet.summary()}: expected an IPv4 packet, or a whole frame: Ether()/...")
        end = "src" if side == "guest" else "dst"
        if end in packet[layer].fields:
            return packet
        known = [each for each in self._api.call("GET", "/v1/neighbours") if not link or each["link"] == link]
        if not known:
            raise SourceError(f"{self._api.where}: no guest has been heard of yet: give IP({end}=...)")
        packet = packet.copy()
        setattr(packet[layer], end, known[-1]["address"])
        return packet

    def break_on(self, text: str) -> Breakpoint:
        """Hold the frames that a filter in tcpdump's words matches, both ways, until they are released."""
        return Breakpoint(self._api, self._api.call("POST", "/v1/breakpoints", {"filter": text})["id"])


def scapy_layers() -> dict[str, Any]:
    """Scapy's layers that a prompt wants, by name. Raises SourceError where scapy is not installed."""
    try:
        from scapy.layers.dns import DNS, DNSQR
        from scapy.layers.inet import ICMP, IP, TCP, UDP
        from scapy.layers.l2 import ARP, Ether
        from scapy.packet import Raw
    except ImportError as error:
        raise SourceError("packets need scapy: install netstack[debug]") from error
    return {
        "Ether": Ether, "ARP": ARP, "IP": IP, "TCP": TCP, "UDP": UDP, "ICMP": ICMP, "DNS": DNS, "DNSQR": DNSQR,
        "Raw": Raw,
    }  # fmt: skip


def run_console(api: LiveApi, command: str | None) -> int:
    """A prompt until its end, or one command. Raises SourceError when there is no gateway."""
    net = Net(api)
    info = api.call("GET", "/v1/info")
    names: dict[str, Any] = {"net": net}
    try:
        names |= scapy_layers()
    except SourceError:
        names["scapy"] = None
    if command is not None:
        return _run(command, names)
    banner = _BANNER.format(
        source=api.where, version=info["version"], gateway=info["gateway"], flows=api.call("GET", "/v1/flows")["open"]
    )
    try:
        from IPython import start_ipython  # type: ignore[import-not-found,unused-ignore]  # may or may not be there
    except ImportError:
        import code

        code.interact(banner=banner, local=names, exitmsg="")
        return 0
    print(banner)
    start_ipython(argv=["--no-banner"], user_ns=names)
    return 0


def _run(command: str, names: dict[str, Any]) -> int:
    """Run code as a prompt would: print the value of an expression."""
    try:
        compiled = compile(command, "<command>", "eval")
    except SyntaxError:
        exec(compile(command, "<command>", "exec"), names)  # noqa: S102 - that is what it is for
        return 0
    value = eval(compiled, names)  # noqa: S307 - that is what it is for
    if value is not None:
        print(repr(value))
    return 0
