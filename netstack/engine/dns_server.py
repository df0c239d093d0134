"""The gateway's name server: a question's bytes in, the answer's bytes out, or a message to ask upstream.

`DnsServer.ask` answers from the local zones, then from the cache, and otherwise makes one `ResolveUpstream` for all
clients that wait for the same answer. It never asks the same thing twice at once. The caller carries that effect out
and hands the result to `resolved`, which gives the answers of all who wait, each with its own id and spelling.

What goes upstream is written anew: the question as the guest spelled it, RD and CD as the guest set them, AD so that
upstream says what it verified (RFC 6840 section 5.7), EDNS with 1232 bytes and the guest's DO. Nothing else of the
guest's message leaves: EDNS options are between neighbours (RFC 6891 section 6.1.1), and a client subnet (RFC 7871)
would tell the upstream about the guest and split the cache. From upstream's options only extended errors (RFC 8914)
are passed on.

What comes back keeps its records byte for byte: all types, TTLs, order. OPT is replaced by ours when the guest sent
one and left out otherwise, AA is cleared (we are no authority for it), AD is shown to those who asked for it with AD
or DO (RFC 6840 section 5.8).

Over UDP an answer has at most the size the guest offers, 512 to 4096 bytes, and never more than fits one packet of the
link: there is one hop, whose MTU we know, so nothing needs to be fragmented (RFC 9715 section 3.1). What does not fit
is cut between records, with TC unless only additional records had to go (RFC 2181 section 9).

All that is without a list. Under one, each question that is not for a local zone is ruled on first, and so is what
upstream or the cache says to it (`dns_rulings`). Then nothing of the guest's own choosing leaves but name and type: the
name goes upstream in lower case, since a choice of case is a channel, and DO stays here, since a guest cannot validate
what a list has been applied to. TTLs are capped, records that do not belong to the question are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Final, Literal, NamedTuple

import dns.rcode
import dns.rdatatype

from netstack.engine.dns_cache import DnsCache, Key
from netstack.engine.dns_names import name_text
from netstack.engine.dns_ready import ReadyAnswers
from netstack.engine.dns_rulings import Admission, DnsRulings, Ruling, Told
from netstack.engine.effects import ConsultDns, ResolveUpstream
from netstack.engine.events import DnsEvent, Event
from netstack.engine.judge import Judge
from netstack.engine.verdict import Verdict
from netstack.engine.zones import Zones
from netstack.wire import dns as wire

Transport = Literal["udp", "tcp"]

MAX_WAITING: int = 4096
"""Clients that wait for upstream, of all guests."""
MAX_WAITING_PER_GUEST: int = 1024
MAX_UDP_ANSWER: Final = 4096
"""Bytes of DNS in a UDP answer, whatever the guest offers and the link carries (RFC 6891 section 6.2.5)."""

_IP_AND_UDP: Final = 28
_LENGTH: Final = 2


class Answer(NamedTuple):
    """Send this to the client."""

    message: bytes


class Ask(NamedTuple):
    """Carry this effect out and give its result to `resolved` or `consulted`; the client's answer comes from there."""

    effect: ResolveUpstream | ConsultDns


class Wait(NamedTuple):
    """Someone asked the same already; the client's answer comes the same way."""


class Drop(NamedTuple):
    """Send nothing. A TCP client that gets here is not speaking DNS: close its connection."""

    reason: str


Outcome = Answer | Ask | Wait | Drop
_WAIT: Final = Wait()


class _Client(NamedTuple):
    token: Hashable
    guest: bytes
    transport: Transport
    query: wire.Query
    asked: float
    hook: Verdict | None = None
    """What a hook said to it."""

    @property
    def place(self) -> tuple[Hashable, int]:
        """By which a repetition is recognised."""
        return self.token, self.query.id


class _Upstream(NamedTuple):
    """One question on its way, and who waits for it: keyed so that a guest's repetition is recognised."""

    key: tuple[Key, bool]
    clients: dict[tuple[Hashable, int], _Client]


class DnsServer:
    """One gateway's name server. Holds the cache and the questions under way; knows no address and no socket."""

    def __init__(
        self,
        zones: Zones,
        report: Callable[[Event], None],
        *,
        judge: Judge,
        mtu: int = 1500,
        cache: DnsCache | None = None,
    ) -> None:
        """`report` gets a DnsEvent for each answer; `mtu` is the largest IP packet towards the guest, bytes.

        `judge` holds the policy, and is told which addresses guests were given.
        """
        self.zones = zones
        self.cache = DnsCache() if cache is None else cache
        self.synthetic = judge.synthetic
        """Which names the addresses stand for that guests were told, where the policy wants answers of that kind."""
        self._rulings = DnsRulings(judge)
        self._judge = judge
        self._report = report
        self._ready = ReadyAnswers()
        self._udp_limit = max(wire.MIN_UDP_SIZE, min(MAX_UDP_ANSWER, mtu - _IP_AND_UDP))
        self._upstream: dict[int, _Upstream] = {}
        self._by_key: dict[tuple[Key, bool], int] = {}
        self._waiting = 0
        self._waiting_of: dict[bytes, int] = {}
        self._last_query = 0
        self._consulting: dict[int, _Client] = {}
        self._consulting_at: dict[tuple[Hashable, int], int] = {}

    @property
    def waiting(self) -> int:
        """Clients that wait for upstream or for a hook."""
        return self._waiting

    def ask(self, message: bytes, guest: bytes, transport: Transport, token: Hashable, now: float) -> Outcome:
        """Answer one message of a guest.

        `guest` is its packed address: limits count by it. `token` is the caller's way back to the client; it is
        returned by `resolved` and not looked into. Raises nothing, whatever the bytes.
        """
        if transport == "udp":
            ready = self._ready.find(message, self.zones)
            if ready is not None:
                rest, name_word, type_word, rcode_word, answers = ready
                self._report(DnsEvent(guest, name_word, type_word, transport, "zone", rcode_word, answers, 0.0))
                return Answer(message[:2] + rest)
        head = wire.header(message)
        if head is None:
            return Drop("dns-truncated")
        ident, flags = head
        if flags & wire.QR:
            return Drop("dns-not-a-query")
        query = wire.parse_query(message)
        if isinstance(query, str):
            rcode = wire.NOTIMP if flags & wire.OPCODE else wire.FORMERR
            return Answer(self._answer_unread(rcode, ident, flags, guest, transport))
        client = _Client(token, guest, transport, query, now)
        if flags & wire.OPCODE:
            return Answer(self._answer(client, wire.Reply(wire.NOTIMP), "refused", now))
        edns = query.edns
        if edns is not None and (edns.version or edns.options is None):
            # RFC 6891 sections 6.1.3 and 7: with question and OPT, so that the client knows EDNS as such is understood.
            wrong = wire.BADVERS if edns.version else wire.FORMERR
            return Answer(self._answer(client, wire.Reply(wrong), "refused", now))
        name = query.name.lower()  # label lengths are below the letters, so this changes letters only
        reply = self.zones.answer(name, query.qtype, query.qclass)
        if reply is not None:
            answer = self._answer(client, reply, "zone", now)
            if transport == "udp":
                words = (name_text(query.name), _type_word(query.qtype), _rcode_word(answer[3] & wire.RCODE))
                self._ready.keep(message, self.zones, answer, (*words, int.from_bytes(answer[6:8], "big")))
            return Answer(answer)
        if self._judge.consults:
            return self._consult(client, name, now)
        return self._proceed(client, name, now)

    def _proceed(self, client: _Client, name: bytes, now: float) -> Outcome:
        """Answer a question that no local zone has anything to say to."""
        query = client.query
        unrestricted = self._judge.policy.unrestricted
        admission = None
        if not unrestricted:
            ruled = self._rulings.question(name, query.qtype, query.qclass, client.hook)
            if isinstance(ruled, Ruling):
                return Answer(self._answer(client, ruled.reply, "policy", now, ruled.verdict))
            admission = ruled
        if query.qtype in (wire.AXFR, wire.IXFR):
            # A transfer is a stream of messages between servers; there is nothing here to transfer (RFC 5936).
            return Answer(self._answer(client, wire.Reply(wire.REFUSED), "refused", now))
        dnssec_ok = unrestricted and query.edns is not None and query.edns.dnssec_ok
        key = Key(name, query.qtype, query.qclass, dnssec_ok, bool(query.flags & wire.CD))
        if admission is not None:
            entry = self.cache.find(key, now)
            if entry is not None:
                told = self._rulings.told_again(admission, name, query.qtype, entry, now)
                return Answer(self._tell(client, told, "cache", now))
            refusal = self._rulings.leaves(admission, client.guest, query.qtype, now)
            if refusal is not None:
                return Answer(self._answer(client, refusal.reply, "policy", now, refusal.verdict))
            return self._ask_upstream(client, key, name, now)
        reply = self.cache.get(key, now)
        if reply is not None:
            return Answer(self._answer(client, reply, "cache", now, client.hook))
        return self._ask_upstream(client, key, query.name, now)

    def _consult(self, client: _Client, name: bytes, now: float) -> Outcome:
        """Ask the hook about a question that may go somewhere, or that it may let go somewhere."""
        query = client.query
        ruled = self._rulings.question(name, query.qtype, query.qclass)
        if isinstance(ruled, Ruling) and not self._rulings.overrulable(ruled.verdict):
            return Answer(self._answer(client, ruled.reply, "policy", now, ruled.verdict))
        if client.place in self._consulting_at:
            return _WAIT
        if self._is_full(client.guest):
            return Answer(self._answer(client, wire.Reply(wire.SERVFAIL), "refused", now))
        self._count(client.guest, 1)
        self._last_query += 1
        number = self._last_query
        self._consulting[number] = client
        self._consulting_at[client.place] = number
        return Ask(ConsultDns(number, client.guest, name_text(query.name), _type_word(query.qtype), ruled.verdict))

    def consulted(self, number: int, verdict: Verdict, now: float) -> tuple[Hashable, Outcome] | None:
        """What the hook said to `ConsultDns` of that number. Gives the client's token and what becomes of its question.

        None for a number that is not under way.
        """
        client = self._consulting.pop(number, None)
        if client is None:
            return None
        del self._consulting_at[client.place]
        self._count(client.guest, -1)
        query = client.query
        if verdict.allowed:
            return client.token, self._proceed(client._replace(hook=verdict), query.name.lower(), now)
        refusal = self._rulings.refused(verdict, query.qtype, query.qclass)
        return client.token, Answer(self._answer(client, refusal.reply, "policy", now, verdict))

    def resolved(self, query: int, message: bytes | None, now: float) -> list[tuple[Hashable, bytes]]:
        """What upstream said to `ResolveUpstream` number `query`, None when nobody answered.

        Gives each waiting client's token and its answer; nothing for a number that is not under way.
        """
        upstream = self._upstream.pop(query, None)
        if upstream is None:
            return []
        key, recursive = upstream.key
        del self._by_key[upstream.key]
        reply = _read_reply(message, key)
        if recursive:
            # Without RD a server answers from what it has, with referrals: no answer for those who want recursion.
            self.cache.put(key, reply, now)
        unrestricted = self._judge.policy.unrestricted
        screened = None if unrestricted else self._rulings.screen(key.name, key.qtype, reply)
        answers: list[tuple[Hashable, bytes]] = []
        for client in upstream.clients.values():
            self._count(client.guest, -1)
            if unrestricted:
                answer = self._answer(client, reply, "upstream", now, client.hook)
            else:
                # Ruled on again: another policy may be in force by now.
                ruled = self._rulings.question(key.name, key.qtype, key.qclass, client.hook)
                if isinstance(ruled, Admission):
                    told = self._rulings.told(ruled, key.name, key.qtype, reply, screened)
                    answer = self._tell(client, told, "upstream", now)
                else:
                    answer = self._answer(client, ruled.reply, "policy", now, ruled.verdict)
            answers.append((client.token, answer))
        return answers

    def _tell(self, client: _Client, told: Told, source: str, now: float) -> bytes:
        """The answer to an admitted question, as far as the guest may see it."""
        if told.addresses:
            self._judge.pins.answered(client.guest, told.verdict.name, told.addresses, told.ttl, now)
        return self._answer(client, told.reply, source, now, told.verdict)

    def _ask_upstream(self, client: _Client, key: Key, spelled: bytes, now: float) -> Outcome:
        """`spelled` is how the name is written in the question upstream."""
        query = client.query
        recursive = bool(query.flags & wire.RD)
        number = self._by_key.get((key, recursive))
        place = client.place
        if number is not None and place in self._upstream[number].clients:
            return _WAIT  # the guest repeats itself because it has no answer yet: it gets one
        if self._is_full(client.guest):
            return Answer(self._answer(client, wire.Reply(wire.SERVFAIL), "refused", now))
        self._count(client.guest, 1)
        if number is not None:
            self._upstream[number].clients[place] = client
            return _WAIT
        self._last_query += 1
        number = self._last_query
        self._upstream[number] = _Upstream((key, recursive), {place: client})
        self._by_key[key, recursive] = number
        flags = query.flags & (wire.RD | wire.CD) | wire.AD
        opt = wire.opt_record(wire.SAFE_UDP_SIZE, dnssec_ok=key.dnssec_ok)
        question = wire.question_wire(spelled, query.qtype, query.qclass)
        return Ask(ResolveUpstream(number, wire.question(0, flags, question, opt)))

    def _is_full(self, guest: bytes) -> bool:
        return self._waiting >= MAX_WAITING or self._waiting_of.get(guest, 0) >= MAX_WAITING_PER_GUEST

    def _count(self, guest: bytes, change: int) -> None:
        self._waiting += change
        waiting = self._waiting_of.get(guest, 0) + change
        if waiting:
            self._waiting_of[guest] = waiting
        else:
            del self._waiting_of[guest]

    def _answer_unread(self, rcode: int, ident: int, flags: int, guest: bytes, transport: Transport) -> bytes:
        """The answer to a message of which only the header is worth reading."""
        self._report(DnsEvent(guest, "", "", transport, "refused", _rcode_word(rcode), 0, 0.0))
        return wire.response(ident, wire.QR | flags & (wire.OPCODE | wire.RD | wire.CD) | wire.RA | rcode, b"")

    def _answer(
        self, client: _Client, reply: wire.Reply, source: str, now: float, verdict: Verdict | None = None
    ) -> bytes:
        """Put a reply into the client's envelope and report it: a refusal is counted here, and told of here only."""
        query, edns, tcp = client.query, client.query.edns, client.transport == "tcp"
        question = wire.question_wire(query.name, query.qtype, query.qclass)
        room = wire.MAX_MESSAGE
        if not tcp:
            room = min(self._udp_limit, max(wire.MIN_UDP_SIZE, edns.udp_size if edns else 0))
        room -= wire.HEADER + len(question) + (wire.OPT_SIZE if edns else 0)
        errors = reply.errors if edns and len(reply.errors) <= room - len(reply.records.data) else b""
        reply = _fit(reply, room - len(errors), tcp=tcp)
        rcode = reply.rcode
        if edns is None and rcode > wire.RCODE:
            rcode = wire.SERVFAIL  # its upper bits have no place without EDNS
        flags = wire.QR | wire.RA | query.flags & (wire.OPCODE | wire.RD | wire.CD) | rcode & wire.RCODE
        if reply.authoritative:
            flags |= wire.AA
        if reply.truncated:
            flags |= wire.TC
        opt = b""
        if edns is not None:
            opt = wire.opt_record(
                wire.SAFE_UDP_SIZE, extended_rcode=rcode >> 4, dnssec_ok=edns.dnssec_ok, options=errors
            )
        if reply.authentic and (query.flags & wire.AD or (edns is not None and edns.dnssec_ok)):
            flags |= wire.AD
        self._report(
            DnsEvent(
                client.guest,
                name_text(query.name),
                _type_word(query.qtype),
                client.transport,
                source,
                _rcode_word(rcode),
                reply.records.answers,
                now - client.asked,
                verdict,
            )
        )
        if verdict is not None and not verdict.allowed:
            self._judge.count(verdict)
        return wire.response(query.id, flags, question, reply.records, opt)


class DnsStream:
    """One TCP connection's way from bytes to messages (RFC 7766 section 8): each has its length before it, 2 bytes.

    Holds less than one message, 65,537 bytes at most.
    """

    def __init__(self) -> None:
        self._held = bytearray()

    def receive(self, data: bytes) -> list[bytes]:
        """The messages complete by now, in order: several when the client pipelines. An empty one is a message too."""
        held = self._held
        held += data
        messages: list[bytes] = []
        at = 0
        while len(held) >= at + _LENGTH:
            end = at + _LENGTH + int.from_bytes(held[at : at + _LENGTH], "big")
            if len(held) < end:
                break
            messages.append(bytes(held[at + _LENGTH : end]))
            at = end
        del held[:at]
        return messages

    @staticmethod
    def frame(message: bytes) -> bytes:
        """A message as it goes onto the stream: length and bytes in one piece (RFC 7766 section 8)."""
        return len(message).to_bytes(_LENGTH, "big") + message


def _read_reply(message: bytes | None, key: Key) -> wire.Reply:
    """What upstream's message says to a question; SERVFAIL when it says nothing or something else."""
    response = None if message is None else wire.parse_response(message)
    if not isinstance(response, wire.Response) or not response.flags & wire.QR:
        return wire.Reply(wire.SERVFAIL)
    rcode = response.rcode
    asked = (response.name.lower(), response.qtype, response.qclass)
    if asked != (key.name, key.qtype, key.qclass) and (response.name or rcode == wire.NOERROR):
        return wire.Reply(wire.SERVFAIL)
    if not response.name:
        return wire.Reply(rcode)  # records behind no question would have their pointers elsewhere
    errors = wire.extended_errors(response.edns) if response.edns is not None else b""
    return wire.Reply(
        rcode,
        response.records,
        authentic=bool(response.flags & wire.AD),
        truncated=bool(response.flags & wire.TC),
        errors=errors,
    )


def _fit(reply: wire.Reply, room: int, *, tcp: bool) -> wire.Reply:
    """The reply with as many whole records as `room` bytes hold. Over TCP it is never marked truncated."""
    records = reply.records
    if len(records.data) > room:
        kept = sum(1 for end in records.ends if end <= room)
        required = records.answers + records.authority
        reply = reply._replace(records=wire.keep_records(records, kept), truncated=reply.truncated or kept < required)
    if tcp and reply.truncated:
        # The client came by TCP to have all of it; TC would only send it round again.
        return wire.Reply(wire.SERVFAIL)
    return reply


@lru_cache(maxsize=512)
def _type_word(qtype: int) -> str:
    return dns.rdatatype.to_text(dns.rdatatype.RdataType.make(qtype))


@lru_cache(maxsize=64)
def _rcode_word(rcode: int) -> str:
    return dns.rcode.to_text(dns.rcode.Rcode.make(rcode))
