"""Conformance B5, B7 to B9, B19, B22 with a real guest: messages by socket, DNS over HTTPS, sizes, dead resolvers."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from .open_internet import ATTACKER, SITE, OpenInternet
from .row_guest import GATEWAY, TELLING, RowGuest, start_row_guest
from .test_policy_dns import dig
from .zone_authority import ZoneAuthority

pytestmark = pytest.mark.guest("ip", "openssl", "curl", "dig")
BIG = [f'example.com 60 TXT "{number:04d}{"x" * 200}"' for number in range(30)]
ZONE = {
    ("real.test", "A"): [f"real.test 60 A {SITE}"],
    ("example.com", "A"): [f"example.com 60 A {SITE}"],
    ("example.com", "TXT"): BIG,
}


@pytest.fixture(scope="module")
def authority(internet: OpenInternet) -> Iterator[ZoneAuthority]:
    made = ZoneAuthority(internet.host, dict(ZONE))
    yield made
    made.close()


@pytest.fixture(scope="module")
def _guest(internet: OpenInternet, authority: ZoneAuthority) -> Iterator[RowGuest]:
    options = ("--allow-net", "real.test,example.com", "--dns-upstream", authority.option)
    made = start_row_guest(internet, *options, upstream=False)
    yield made
    made.close()


@pytest.fixture
def guest(_guest: RowGuest) -> Iterator[RowGuest]:
    """Whatever the test did to it, what is allowed works afterwards."""
    yield _guest
    _guest.still_works()


@contextlib.contextmanager
def over_tcp(guest: RowGuest) -> Iterator[socket.socket]:
    with guest.connect(GATEWAY, 53) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(20)
        yield connection


def read_answer(connection: socket.socket) -> dns.message.Message:
    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = connection.recv(size - len(data))
            assert more, "closed before its answer"
            data += more
        return data

    return dns.message.from_wire(exactly(int.from_bytes(exactly(2), "big")))


def texts(answer: dns.message.Message) -> list[str]:
    return [str(record) for rrset in answer.answer for record in rrset]


GATEWAY_SERVICE = {"event": "flow_opened", "protocol": "tcp", "reason_code": "gateway-service"}


# -- B5: over TCP ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 5000], ids=["single-bytes", "pieces", "at-once"])
def test_B5_questions_in_a_row_over_tcp(guest: RowGuest, authority: ZoneAuthority, size: int) -> None:
    """Three on one connection before the first answer; what one segment holds is no message's end."""
    names = [f"before-{size}.evil.example", "example.com", f"after-{size}.evil.example"]
    questions = [dns.message.make_query(name, "A") for name in names]
    data = b"".join(len(wire).to_bytes(2, "big") + wire for wire in (each.to_wire() for each in questions))
    asked = len(authority.asked)
    refused = {"event": "dns", "transport": "tcp", "verdict": "refused", "reason_code": "name-not-allowed"}
    before = len(guest.events(["dns"]))
    with guest.tells(GATEWAY_SERVICE, kinds=("flow_opened", "flow_refused")), over_tcp(guest) as connection:
        for at in range(0, len(data), size):
            connection.sendall(data[at : at + size])
        answers = {answer.id: texts(answer) for answer in (read_answer(connection) for _ in names)}
    assert answers == dict(zip((each.id for each in questions), (["0.0.0.0"], [SITE], ["0.0.0.0"]), strict=True))
    events = {str(event["name"]): event for event in guest.events(["dns"])[before:]}
    assert sorted(events) == sorted(names)
    for name in (names[0], names[2]):
        assert {key: events[name][key] for key in refused} == refused
    assert (events["example.com"]["verdict"], events["example.com"]["transport"]) == ("allowed", "tcp")
    assert set(authority.asked[asked:]) <= {"udp example.com A"}


@pytest.mark.parametrize("stream", [b"\0\0", b"\0\5hello"], ids=["length-0", "no-dns"])
def test_B5_what_is_no_message_ends_the_connection(guest: RowGuest, stream: bytes) -> None:
    with (
        guest.tells(GATEWAY_SERVICE),
        guest.nothing_leaves(),
        over_tcp(guest) as connection,
    ):
        connection.sendall(stream)
        with pytest.raises(ConnectionResetError):
            connection.recv(100)


def test_B5_the_longest_message_is_no_question(guest: RowGuest) -> None:
    """65,535 bytes, of which a question is the start: FORMERR for what follows it, and the next one as usual."""
    whole = dns.message.make_query("evil.example", "A", id=7).to_wire().ljust(65_535, b"\0")
    with guest.tells(GATEWAY_SERVICE, kinds=("flow_opened", "flow_refused")), over_tcp(guest) as connection:
        connection.sendall(b"\xff\xff" + whole)
        assert read_answer(connection).rcode() == dns.rcode.FORMERR
        wire = dns.message.make_query("example.com", "A", id=8).to_wire()
        connection.sendall(len(wire).to_bytes(2, "big") + wire)
        assert texts(read_answer(connection)) == [SITE]


# -- B7: DNS over HTTPS ----------------------------------------------------------------------------------------------


def test_B7_doh_by_a_listed_host_opens_nothing(guest: RowGuest) -> None:
    """It tells the guest the attacker's address, and the connection there is judged by its name all the same."""
    url = "https://real.test/dns-query"
    opened = {"event": "flow_opened", "name": "real.test", "name_source": "sni", "dialled": f"{SITE}:443"}
    refused = {
        "event": "flow_refused",
        "name": "evil.test",
        "destination": f"{ATTACKER}:80",
        "reason_code": "name-not-allowed",
    }
    visits = len(guest.internet.witness.visits)
    before = len(guest.events(["flow_refused"]))
    status, said = guest.curl("--doh-url", url, "-w", "%{http_code}", "http://evil.test/")
    assert (status, said) == (0, "netstack: evil.test is refused, no rule allows it (name-not-allowed)\n403")
    guest.settle()
    told = guest.events(["flow_opened"])[-1]
    assert {key: told[key] for key in opened} == opened
    (event,) = guest.events(["flow_refused"])[before:]
    assert {key: event[key] for key in refused} == refused
    assert {visit.address for visit in guest.internet.witness.visits[visits:]} == {SITE}


def test_B7_doh_by_another_host(guest: RowGuest) -> None:
    """By its address, which no rule lists: refused by its SNI."""
    with guest.turned_away("tls", "name-not-allowed", "alert", kinds=("flow_opened", "flow_refused"), name="evil.test"):
        status, _ = guest.curl(
            "--doh-url", "https://evil.test/dns-query", "--resolve", f"evil.test:443:{ATTACKER}", "http://example.com/"
        )
    assert status == 6, "curl: could not resolve host"


# -- B8, B9: messages that are no questions --------------------------------------------------------------------------

QUESTION = dns.message.make_query("example.com", "A", id=0x1234).to_wire()


def mangled(flags: int = 0x0100, counts: tuple[int, int, int, int] = (1, 0, 0, 0), rest: bytes | None = None) -> bytes:
    return struct.pack("!6H", 0x1234, flags, *counts) + (QUESTION[12:] if rest is None else rest)


@pytest.mark.parametrize(
    ("message", "rcode"),
    [
        (mangled(counts=(2, 0, 0, 0), rest=QUESTION[12:] * 2), "FORMERR"),
        (mangled(counts=(0, 0, 0, 0), rest=b""), "FORMERR"),
        (mangled(flags=0x2100), "NOTIMP"),
        (mangled(flags=0x2900), "NOTIMP"),
        (mangled(rest=b"\xc0\x0c\0\1\0\1"), "FORMERR"),
        (mangled(rest=b"\1a\xc0\x0c\0\1\0\1"), "FORMERR"),
        (mangled(rest=b"\x40" + b"a" * 64 + b"\0\0\1\0\1"), "FORMERR"),
        (mangled(rest=(b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1"), "FORMERR"),
        (mangled(rest=b"\1a" * 128 + b"\0\0\1\0\1"), "FORMERR"),
        (mangled(rest=b"\7example"), "FORMERR"),
    ],
    ids=["two-questions", "none", "notify", "update", "loop", "loop-later", "long-label", "long-name", "129-labels",
         "cut"],
)  # fmt: skip
def test_B8_B9_messages_that_are_no_question(guest: RowGuest, message: bytes, rcode: str) -> None:
    with (
        guest.tells({"event": "dns", "source": "refused", "rcode": rcode}),
        guest.nothing_leaves(),
        guest.namespace.socket(socket.SOCK_DGRAM) as sender,
    ):
        sender.settimeout(20)
        sender.sendto(message, (GATEWAY, 53))
        answer = sender.recv(1000)
    assert answer[:2] == b"\x12\x34"
    assert dns.rcode.to_text(dns.rcode.Rcode(answer[3] & 15)) == rcode


def test_B8_an_answer_from_the_guest_is_met_with_silence(guest: RowGuest) -> None:
    reason = {"event": "frame_dropped", "reason": "dns-not-a-query", "total": 1}
    with (
        guest.tells(reason, kinds=(*TELLING, "frame_dropped")),
        guest.nothing_leaves(),
        guest.namespace.socket(socket.SOCK_DGRAM) as sender,
    ):
        sender.sendto(mangled(flags=0x8180), (GATEWAY, 53))
        guest.drain()
        sender.setblocking(False)
        with pytest.raises(BlockingIOError):
            sender.recv(1000)


def test_B8_records_in_a_question_go_nowhere(guest: RowGuest, authority: ZoneAuthority) -> None:
    """Upstream is asked the question alone, if at all."""
    question = dns.message.make_query("example.com", "A")
    question.answer.append(dns.rrset.from_text("example.com.", 60, "IN", "A", ATTACKER))
    asked = len(authority.asked)
    with (
        guest.tells({"event": "dns", "name": "example.com", "verdict": "allowed"}),
        guest.namespace.socket(socket.SOCK_DGRAM) as sender,
    ):
        sender.settimeout(20)
        sender.sendto(question.to_wire(), (GATEWAY, 53))
        assert texts(dns.message.from_wire(sender.recv(1000))) == [SITE]
    assert set(authority.asked[asked:]) <= {"udp example.com A"}


# -- B19: sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [512, 1232, 4096])
def test_B19_a_big_answer_is_cut_and_whole_by_tcp(guest: RowGuest, size: int) -> None:
    question = {"event": "dns", "name": "example.com", "qtype": "TXT", "verdict": "allowed"}
    with guest.tells({**question, "transport": "udp"}):
        cut = dig(guest, "+ignore", f"+bufsize={size}", "example.com", "TXT")
    assert "tc" in cut.flags
    received = int(cut.text.partition("MSG SIZE  rcvd: ")[2].split()[0])
    assert received <= min(size, 1472)
    with guest.tells({**question, "transport": "udp"}, GATEWAY_SERVICE, {**question, "transport": "tcp"}):
        whole = dig(guest, f"+bufsize={size}", "example.com", "TXT")
    assert "Truncated, retrying in TCP mode" in whole.text
    assert "tc" not in whole.flags
    assert sorted(whole.answers) == sorted(line.partition(" 60 ")[2] for line in BIG)


# -- B22: dead resolvers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dead", ["refuses", "silent"])
def test_B22_the_first_resolver_is_dead(internet: OpenInternet, authority: ZoneAuthority, dead: str) -> None:
    """The second answers within the guest's patience, and once it is known not even that is needed."""
    with internet.host.socket(socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        first = f"127.0.0.1:{silent.getsockname()[1]}"
        if dead == "refuses":
            silent.close()
        upstreams = ("--dns-upstream", first, "--dns-upstream", authority.option)
        one = start_row_guest(internet, "--allow-net", "real.test,example.com", *upstreams, upstream=False)
        for name in ("example.com", "real.test"):
            answered = {"event": "dns", "name": name, "verdict": "allowed", "source": "upstream", "rcode": "NOERROR"}
            with one.tells(answered):
                assert dig(one, name).answers == [f"A {SITE}"]
        one.still_works()
        one.close()


def test_B22_no_resolver_answers(internet: OpenInternet) -> None:
    """SERVFAIL, which is no sinkhole; and names that are not allowed are answered as ever."""
    with internet.host.socket(socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
    one = start_row_guest(internet, "--allow-net", "real.test", "--dns-upstream", nobody, upstream=False)
    with one.tells({"event": "dns", "name": "real.test", "source": "upstream", "rcode": "SERVFAIL"}):
        reply = dig(one, "real.test")
    assert (reply.status, reply.answers) == ("SERVFAIL", [])
    with one.tells({"event": "dns", "name": "evil.test", "source": "policy", "rcode": "NOERROR"}):
        assert dig(one, "evil.test").answers == ["A 0.0.0.0"]
    one.close()
