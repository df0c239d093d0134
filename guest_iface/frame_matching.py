"""Which frames a filter of `frame_filter` means."""

from __future__ import annotations

from collections.abc import Callable

from guest_iface import frame_fields
from guest_iface.frame_fields import Fields, read_fields
from guest_iface.frame_filter import (
    ETHERTYPES,
    PROTOCOLS,
    And,
    EtherHost,
    Filter,
    FilterError,
    Flow,
    FlowEnds,
    Host,
    Known,
    Name,
    Not,
    Or,
    Port,
    Protocols,
)
from guest_iface.libpcap_words import TcpFlags

Matcher = Callable[[Fields], bool]


def uses_names(term: Filter | None) -> bool:
    """Whether a filter says `name` anywhere: then somebody has to learn what names stand for."""
    if isinstance(term, And | Or):
        return uses_names(term.left) or uses_names(term.right)
    return uses_names(term.term) if isinstance(term, Not) else isinstance(term, Name)


def frame_matcher(term: Filter, known: Known | None = None) -> Callable[[bytes], bool]:
    """What says of a frame whether it is meant. Raises FilterError as `fields_matcher` does."""
    matches = fields_matcher(term, known)
    return lambda frame: matches(read_fields(frame))


def fields_matcher(term: Filter, known: Known | None = None) -> Matcher:
    """The same of a frame's fields. A numbered flow is looked up now, names each time.

    Raises FilterError for a flow that `known` does not know, and for flow numbers and names without a `known`.
    """
    if isinstance(term, And):
        left, right = fields_matcher(term.left, known), fields_matcher(term.right, known)
        return lambda fields: left(fields) and right(fields)
    if isinstance(term, Or):
        left, right = fields_matcher(term.left, known), fields_matcher(term.right, known)
        return lambda fields: left(fields) or right(fields)
    if isinstance(term, Not):
        inner = fields_matcher(term.term, known)
        return lambda fields: not inner(fields)
    if isinstance(term, Protocols):
        return _protocol_matcher(term)
    if isinstance(term, Host):
        return _host_matcher(term)
    if isinstance(term, Port):
        return _port_matcher(term)
    if isinstance(term, TcpFlags):
        return term.matches
    if isinstance(term, EtherHost):
        mac, side = term.mac, term.side
        return lambda fields: (
            (side != "dst" and fields.mac_source == mac) or (side != "src" and fields.mac_destination == mac)
        )
    if isinstance(term, Flow):
        return _flow_matcher(term.ends)
    if known is None:
        raise FilterError(f"filter {str(term)!r}: only a running gateway knows flow numbers and names")
    if isinstance(term, Name):
        name, addresses = term.name, known.addresses

        def is_named(fields: Fields) -> bool:
            current = addresses(name)
            return fields.destination in current or fields.source in current

        return is_named
    ends = known.flow(term.number)
    if ends is None:
        raise FilterError(f"filter 'flow {term.number}': expected the number of a flow that is open")
    return _flow_matcher(ends)


def _protocol_matcher(term: Protocols) -> Matcher:
    ethertype = ETHERTYPES.get(term.word)
    if ethertype is not None:
        return lambda fields: fields.ethertype == ethertype
    number = PROTOCOLS[term.word]
    return lambda fields: fields.protocol == number


def _host_matcher(term: Host) -> Matcher:
    network, side = term.network, term.side
    size = network.max_prefixlen // 8
    shift = network.max_prefixlen - network.prefixlen
    wanted = int(network.network_address) >> shift

    def inside(address: bytes) -> bool:
        return len(address) == size and int.from_bytes(address, "big") >> shift == wanted

    return lambda fields: (side != "dst" and inside(fields.source)) or (side != "src" and inside(fields.destination))


def _port_matcher(term: Port) -> Matcher:
    first, last, side = term.first, term.last, term.side
    return lambda fields: (
        (side != "dst" and first <= fields.source_port <= last)
        or (side != "src" and first <= fields.destination_port <= last)
    )


def _flow_matcher(ends: FlowEnds) -> Matcher:
    protocol, (guest, guest_port), (other, other_port) = ends
    if protocol not in (frame_fields.TCP, frame_fields.UDP):
        # An echo flow's numbers are identifiers, which are no ports: its addresses say enough.
        return lambda fields: (
            fields.protocol == protocol
            and (
                (fields.source == guest and fields.destination == other)
                or (fields.source == other and fields.destination == guest)
            )
        )
    there = guest, other, guest_port, other_port
    back = other, guest, other_port, guest_port
    return lambda fields: fields.protocol == protocol and fields[4:8] in (there, back)
