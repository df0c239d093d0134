"""Conformance F14: a hook that raises, hangs or talks nonsense refuses that flow; all else goes on.

With a driver that runs, a server on the loopback behind the host's alias, and a guest that speaks scapy.
"""

from __future__ import annotations

import dns.message
import pytest
import trio
from engine.wire_guest import GATEWAY, GUEST, HOST_ALIAS, ip, payload_of, ping, udp
from scapy.layers.inet import ICMP, IP, TCP, UDP

from netstack.engine.events import DnsEvent, FlowOpened, FlowRefused
from netstack.engine.verdict import REFUSE
from netstack.hooks import Decision, DnsQuestion, Flow, Hooks, allow, refuse

from .live import accepted, listener, running, settled

BAD = 7001
"""The port the hook stumbles over."""


class Stumbles(Hooks):
    """Does to some what `how` says; has no opinion about others."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.asked: list[Flow | DnsQuestion] = []

    async def on_flow(self, flow: Flow) -> Decision | None:
        self.asked.append(flow)
        return await self._answer() if flow.port in {BAD, 0} else None

    async def on_dns(self, question: DnsQuestion) -> Decision | None:
        self.asked.append(question)
        return await self._answer() if question.name.startswith("bad") else allow()

    async def _answer(self) -> Decision | None:
        if self.how == "raises":
            raise KeyError("no such thing")
        if self.how == "exits":
            raise SystemExit(1)
        if self.how == "hangs":
            await trio.sleep_forever()
        if self.how == "hangs on":
            with trio.CancelScope(shield=True):
                await trio.sleep(0.5)
            return allow()
        return "yes" if self.how == "nonsense" else refuse("closed")  # type: ignore[return-value]  # on purpose


HOW = {
    "raises": "hook-failed",
    "exits": "hook-failed",
    "nonsense": "hook-failed",
    "hangs": "hook-timeout",
    "hangs on": "hook-timeout",
    "refuses": "closed",
}


async def past_the_deadline(clock: trio.testing.MockClock, how: str) -> None:
    """Let the hook's time run out where it needs to."""
    if how.startswith("hangs"):
        clock.jump(0.3)
        await settled()
        clock.jump(0.3)
    await settled()


@pytest.mark.parametrize("may_allow", [False, True], ids=["tightens", "may allow"])
@pytest.mark.parametrize("how", HOW)
async def test_F14_a_connection(mock_clock: trio.testing.MockClock, how: str, may_allow: bool) -> None:
    hook = Stumbles(how)
    async with running("@host", hooks=hook, may_allow=may_allow, deadline=0.25) as live:
        guest = await live.attach()
        await guest.syn(HOST_ALIAS, BAD, 40_001)
        await past_the_deadline(mock_clock, how)
        assert guest.flags() == [(40_001, "RA")]
        (event,) = live.told(FlowRefused)
        assert (event.protocol, event.destination) == ("tcp", (ip(HOST_ALIAS), BAD))
        assert (event.verdict.action, event.verdict.step, event.verdict.reason) == (REFUSE, "hook", HOW[how])
        assert event.told == "reset"
        assert not live.told(FlowOpened)
        assert len(live.driver.sockets) == 0
        assert len(hook.asked) == 1


async def test_F14_others_go_on_while_one_hangs(mock_clock: trio.testing.MockClock) -> None:
    with listener() as (server, port):
        async with running("@host", hooks=Stumbles("hangs"), deadline=5) as live:
            guest = await live.attach()
            await guest.syn(HOST_ALIAS, BAD, 40_001)
            assert guest.flags() == []
            await guest.syn(HOST_ALIAS, port, 40_002)
            for _ in range(200):
                if answered := guest.flags():
                    break
                await settled()
            assert answered == [(40_002, "SA")]
            assert accepted(server) == 1
            assert not live.told(FlowRefused)
            mock_clock.jump(5)
            await settled()
            assert (40_001, "RA") in guest.flags(), "beside the other's SYN-ACK, sent again, whichever is first"
            assert [event.verdict.reason for event in live.told(FlowRefused)] == ["hook-timeout"]


@pytest.mark.parametrize("how", HOW)
async def test_F14_a_datagram_and_a_ping(mock_clock: trio.testing.MockClock, how: str) -> None:
    async with running("@host", hooks=Stumbles(how), deadline=0.25) as live:
        guest = await live.attach()
        await guest.send(ping(GATEWAY))
        guest.hear()
        await guest.send(udp(HOST_ALIAS, BAD, b"x"))
        await past_the_deadline(mock_clock, how)
        (frame,) = guest.hear()
        assert (frame[ICMP].type, frame[ICMP].code) == (3, 3)
        await guest.send(ping(HOST_ALIAS))
        await past_the_deadline(mock_clock, how)
        (frame,) = guest.hear()
        assert (frame[ICMP].type, frame[ICMP].code) == (3, 13)
        assert len(live.driver.sockets) == 0
        assert [(event.protocol, event.verdict.reason) for event in live.told(FlowRefused)] == [
            ("udp", HOW[how]),
            ("icmp", HOW[how]),
        ]


@pytest.mark.parametrize("how", HOW)
async def test_F14_a_question(mock_clock: trio.testing.MockClock, how: str) -> None:
    """Nothing is asked upstream (the resolver here would raise)."""
    async with running("*.example.com", hooks=Stumbles(how), deadline=0.25) as live:
        guest = await live.attach()
        await guest.send(ping(GATEWAY))
        guest.hear()
        await guest.send(udp(GATEWAY, 53, dns.message.make_query("bad.example.com", "A").to_wire()))
        await past_the_deadline(mock_clock, how)
        (frame,) = guest.hear()
        answer = dns.message.from_wire(payload_of(frame[UDP]))
        assert [str(record) for rrset in answer.answer for record in rrset] == ["0.0.0.0"]
        (event,) = live.told(DnsEvent)
        assert event.verdict is not None
        assert (event.verdict.step, event.verdict.reason) == ("hook", HOW[how])


async def test_F14_a_flood_of_flows_and_a_hook_that_hangs(mock_clock: trio.testing.MockClock) -> None:
    """What it is asked at a time is bounded, everything is refused in the end, and then it goes on."""
    async with running("@host", hooks=Stumbles("hangs"), deadline=0.25) as live:
        guest = await live.attach()
        await guest.send(ping(GATEWAY))
        guest.hear()
        await guest.send(
            *(IP(src=GUEST, dst=HOST_ALIAS) / TCP(sport=20_000 + n, dport=BAD, flags="S", seq=1) for n in range(300))
        )
        mock_clock.jump(0.3)
        await settled()
        assert {flags for _, flags in guest.flags()} == {"RA"}
        assert len(live.driver.stack.tcp.table) == 0
        assert sum(live.driver.stack.judge.refusals.values()) == 300
        assert len(live.told(FlowRefused)) <= 4
        live.driver.stack.judge.consults = False
        await guest.send(ping(GATEWAY))
        assert len(guest.hear()) == 1


async def test_F14_a_hook_may_open_what_the_policy_refuses_only_where_it_is_let() -> None:
    class Opens(Hooks):
        async def on_flow(self, flow: Flow) -> Decision | None:
            return allow("trusted")

    with listener() as (server, port):
        for may_allow in (False, True):
            async with running("example.com", hooks=Opens(), may_allow=may_allow) as live:
                guest = await live.attach()
                await guest.syn(HOST_ALIAS, port)
                for _ in range(200):
                    if answered := guest.flags():
                        break
                    await settled()
                assert answered == [(40_000, "SA" if may_allow else "RA")]
                await guest.send(udp("169.254.169.254", 80, b"x"))
                assert "metadata" in live.driver.stack.judge.refusals, "that never"
        assert accepted(server) == 1
