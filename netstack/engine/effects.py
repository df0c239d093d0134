"""The words that cross the border: what the engine asks of its driver, as small frozen values.

A *flow* number is unique for the life of a stack. The driver answers each effect by calling the stack's `stream_*`,
`datagram_*`, `echo_*` and `dns_*` methods; those about inbound flows answer calls of the driver's. Nothing here does
anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from netstack.engine.events import Event
from netstack.engine.verdict import Question, Verdict

# Why a dial, a datagram or an echo request failed on the host side. Plain ints: compared on the hot path.
REFUSED: Final = 1
NETWORK_UNREACHABLE: Final = 2
HOST_UNREACHABLE: Final = 3
PROHIBITED: Final = 4
TIMED_OUT: Final = 5
TTL_EXCEEDED: Final = 6
TOO_BIG: Final = 7
NO_RESOURCES: Final = 8
NO_ADDRESS: Final = 9

FAILURE_WORDS: Final = {
    REFUSED: "refused",
    NETWORK_UNREACHABLE: "network unreachable",
    HOST_UNREACHABLE: "host unreachable",
    PROHIBITED: "prohibited by the host",
    TIMED_OUT: "timed out",
    TTL_EXCEEDED: "time to live exceeded",
    TOO_BIG: "datagram too big",
    NO_RESOURCES: "host has no resources left",
    NO_ADDRESS: "name has no address",
}


class OpenStream(NamedTuple):
    """Dial TCP `address:port`. Answer with `stream_opened` or `stream_failed`."""

    flow: int
    address: bytes
    port: int


class OpenNamed(NamedTuple):
    """Find the addresses of `name`, keep those `Stack.candidate_fault` has nothing against, and dial them on `port`, at
    `Stack.dialled`.

    Answer with `stream_opened` (and the address that answered), with `stream_failed`, or with `stream_objected` when
    there are addresses and all were objected to.
    """

    flow: int
    name: str
    port: int


class ConsultFlow(NamedTuple):
    """Ask the hook about a flow. `verdict` is what the policy says. Answer once with `flow_consulted`."""

    question: Question
    verdict: Verdict


class ConsultDns(NamedTuple):
    """Ask the hook about a DNS question of `guest`. Answer once with `dns_consulted`."""

    number: int
    guest: bytes
    name: str
    qtype: str
    verdict: Verdict


class ResolveName(NamedTuple):
    """Find the addresses of `name` for a datagram flow. Answer once with `name_resolved`."""

    flow: int
    name: str
    port: int


class SendStream(NamedTuple):
    """Write `chunks` in order and report each byte the host took with `stream_sent`; keep the rest and go on later."""

    flow: int
    chunks: Sequence[bytes | memoryview]


class ReadStream(NamedTuple):
    """There is room again: go on reading this flow's host socket."""

    flow: int


class ShutdownStream(NamedTuple):
    """After everything handed over was written: end the writing side (FIN)."""

    flow: int


class CloseStream(NamedTuple):
    """Both directions are done: close the host socket and forget the flow."""

    flow: int


class AbortStream(NamedTuple):
    """Reset the host socket (RST) and forget the flow. Also ends a dial under way."""

    flow: int


class ServeStream(NamedTuple):
    """A guest wants the service at `port` of the gateway: make a stream for who serves it.

    `guest` is its address and port. Answer with `stream_opened` or `stream_failed`.
    """

    flow: int
    port: int
    guest: tuple[bytes, int]


class InboundOpened(NamedTuple):
    """The guest has answered what `open_inbound` asked: from here on the flow is a stream like any other."""

    flow: int


class InboundFailed(NamedTuple):
    """The guest did not answer, or refused: nothing more is heard of this flow."""

    flow: int
    failure: int


class DeliverDatagram(NamedTuple):
    """The guest answers on a flow of `open_inbound_datagrams`."""

    flow: int
    payload: bytes


class InboundDatagramsEnded(NamedTuple):
    """A flow of `open_inbound_datagrams` is over. `reason`: idle, refused, evicted, guest left, closed ..."""

    flow: int
    reason: str


class OpenDatagrams(NamedTuple):
    """Make one unconnected UDP host socket for this mapping (endpoint-independent, RFC 4787 section 4.1)."""

    flow: int


class SendDatagram(NamedTuple):
    """Send one datagram from the mapping's socket. `ttl` is what is left of the guest's."""

    flow: int
    address: bytes
    port: int
    payload: bytes
    ttl: int


class CloseDatagrams(NamedTuple):
    """The mapping has expired: close its socket and forget it."""

    flow: int


class OpenEcho(NamedTuple):
    """Make one ping socket for this mapping (a guest address and an echo identifier)."""

    flow: int


class SendEcho(NamedTuple):
    """Send one ICMP echo request from the mapping's ping socket."""

    flow: int
    address: bytes
    sequence: int
    payload: bytes
    ttl: int


class CloseEcho(NamedTuple):
    """The mapping has expired: close its ping socket."""

    flow: int


class ResolveUpstream(NamedTuple):
    """Ask the host's resolvers this DNS message (its id is to be replaced). Answer once with `dns_resolved`."""

    query: int
    message: bytes


class Report(NamedTuple):
    """Something people want to know of."""

    event: Event


Effect = (
    OpenStream
    | OpenNamed
    | ResolveName
    | ConsultFlow
    | ConsultDns
    | SendStream
    | ReadStream
    | ShutdownStream
    | CloseStream
    | AbortStream
    | ServeStream
    | InboundOpened
    | InboundFailed
    | DeliverDatagram
    | InboundDatagramsEnded
    | OpenDatagrams
    | SendDatagram
    | CloseDatagrams
    | OpenEcho
    | SendEcho
    | CloseEcho
    | ResolveUpstream
    | Report
)
