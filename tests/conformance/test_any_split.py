"""Whatever segments a first flight comes in, the verdict is the same, and the bytes judged are the bytes sent.

Through the whole stack: frames in, effects and events out. The reading alone is tried far harder in test_peek.py.
"""

from __future__ import annotations

from itertools import pairwise

from engine.wire_guest import GuestTcp, ip, sent_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import hellos
from wire.http_requests import get, written

from netstack.engine.effects import AbortStream, OpenNamed
from netstack.engine.events import FlowOpened, FlowRefused
from netstack.engine.peek import Named, Refuse, RequestGuard, StreamPeek

from .policy_wire import NAME, OTHER_NAME, SITE, PolicyWire, peeked

PYTHON = hellos.python_ssl(NAME)
STREAMS = (
    PYTHON,
    hellos.python_ssl(OTHER_NAME),
    hellos.openssl(NAME.encode()),
    hellos.openssl(OTHER_NAME.encode()),
    hellos.python_ssl(None),
    hellos.records(hellos.message_of(PYTHON), [3, 1, 40, 1, 1, 200]),
    hellos.records(hellos.message(hellos.server_name(NAME.encode(), OTHER_NAME.encode()))),
    PYTHON + b"\x14\x03\x03\x00\x01\x01" + bytes(600),
    PYTHON[:200] + b"\x15\x03\x03\x00\x02\x02\x70",
    get(f"Host: {NAME}", "X: " + "x" * 900),
    get(f"Host: {OTHER_NAME}"),
    get(f"Host: {NAME}") + b"body that nobody announced",
    written("POST", "/", NAME, body=b"b" * 700),
    b"SSH-2.0-OpenSSH_9.9\r\n" + bytes(300),
)
EXAMPLES = settings(max_examples=60)


def expected(stream: bytes) -> Named | Refuse | None:
    return StreamPeek(443, strict_ech=False).feed(stream)


def judged(wire: PolicyWire, connection: GuestTcp, stream: bytes) -> None:
    """The stack has come to the verdict that the whole stream deserves, and the server gets that stream."""
    outcome = expected(stream)
    if isinstance(outcome, Named) and outcome.name == NAME:
        opened = wire.asked_one(OpenNamed)
        assert (opened.name, opened.port) == (NAME, 443)
        wire.stack.stream_opened(opened.flow, wire.now, ip(SITE))
        effects = wire.asked()
        if isinstance(effects[-1], AbortStream):  # plain HTTP that went on as no request for this host does
            assert effects[:-1] == []
            assert RequestGuard(NAME, 443).feed(stream).refuse is not None
            return
        passes = RequestGuard(NAME, 443).feed(stream).data if outcome.protocol == "http" else stream
        assert sent_bytes(effects) == passes, "all but the beginning of a head that has no end yet"
        assert [type(event) for event in wire.flow_events()] == [FlowOpened]
        return
    assert wire.asks_nothing()
    if outcome is None:
        assert not wire.flow_events()
        return
    refused = wire.one_flow_event()
    assert isinstance(refused, FlowRefused)
    reason = outcome.reason if isinstance(outcome, Refuse) else "name-not-allowed"
    assert (refused.verdict.reason, refused.verdict.step) == (reason, outcome.protocol)


@EXAMPLES
@given(st.sampled_from(STREAMS), st.lists(st.integers(1, 2000), max_size=12), st.booleans())
def test_any_split_gives_the_same_verdict(stream: bytes, cuts: list[int], verify: bool) -> None:
    wire = PolicyWire(NAME, verify=verify)
    connection = peeked(wire)
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream)), *range(0, len(stream), 1400)})
    for start, end in pairwise(places):
        connection.say(stream[start:end])
    judged(wire, connection, stream)


@EXAMPLES
@given(
    st.sampled_from(STREAMS),
    st.sampled_from(STREAMS),
    st.lists(st.tuples(st.integers(0, 900), st.integers(1, 1400), st.booleans()), max_size=10),
    st.booleans(),
)
def test_the_first_bytes_accepted_are_judged_and_sent(
    stream: bytes, other: bytes, pieces: list[tuple[int, int, bool]], verify: bool
) -> None:
    """Segments in any order, overlapping, some with the bytes of another stream: each position's first byte counts."""
    wire = PolicyWire(NAME, verify=verify)
    connection = peeked(wire)
    accepted: dict[int, int] = {}
    sources = {True: other, False: stream}
    whole = [(at, 1400, False) for at in range(0, len(stream), 1400)]
    for at, length, lies in [*pieces, *whole]:
        data = sources[lies][at : at + length]
        if data:
            connection.put("PA", data, seq=(connection.isn + 1 + at) & 0xFFFFFFFF)
            for place, byte in enumerate(data, at):
                accepted.setdefault(place, byte)
    end = next(place for place in range(len(accepted) + 1) if place not in accepted)
    connection.sent = connection.isn + 1 + end
    judged(wire, connection, bytes(accepted[place] for place in range(end)))


HOSTS = st.lists(st.sampled_from([NAME, NAME.upper(), OTHER_NAME, "10.0.0.1", ""]), min_size=1, max_size=4)
BODIES = st.sampled_from([b"", b"12345", get(f"Host: {OTHER_NAME}")])


@EXAMPLES
@given(HOSTS, BODIES, st.lists(st.integers(1, 900), max_size=12))
def test_requests_for_another_host_never_pass(hosts: list[str], body: bytes, cuts: list[int]) -> None:
    """Many requests in any pieces: the server gets at most those before the first that is not for its host."""
    requests = [written("POST", "/", host or "x", body=body, headers={"Host": host}) for host in hosts]
    allowed = next((place for place, host in enumerate(hosts) if host.lower() != NAME), len(hosts))
    stream, good = b"".join(requests), b"".join(requests[:allowed])
    wire = PolicyWire(NAME)
    connection = peeked(wire, SITE, 80)
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream)), *range(0, len(stream), 1400)})
    sent = b""
    for start, end in pairwise(places):
        connection.say(stream[start:end])
        for effect in wire.asked():
            if isinstance(effect, OpenNamed):
                assert effect.name == NAME
                wire.stack.stream_opened(effect.flow, wire.now, ip(SITE))
            elif not isinstance(effect, AbortStream):
                sent += sent_bytes([effect])
        sent += sent_bytes(effect for effect in wire.asked() if not isinstance(effect, AbortStream))
    assert good.startswith(sent)
    refused = wire.told(FlowRefused)
    if allowed == len(hosts):
        assert sent == stream
        assert not refused
    else:
        assert len(refused) == 1
        assert refused[0].told == "forbidden"
