"""Hooks: what one is told and may say, what becomes of one that fails, hangs or talks nonsense, how it is loaded."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from netstack import hooks
from netstack.engine.verdict import ALLOW, REFUSE, Question, Verdict
from netstack.hooks import Decision, DnsQuestion, Flow, HookError, HookRunner, Hooks, allow, load_hooks, refuse

GUEST, SERVER = bytes([192, 168, 127, 2]), bytes([93, 184, 215, 14])
QUESTION = Question(7, 6, (GUEST, 40000), (SERVER, 443))
ALLOWED = Verdict(ALLOW, "tls", "name-rule", "example.com", "example.com", "sni")
REFUSED = Verdict(REFUSE, "tls", "name-not-allowed", "", "example.net", "sni")


class Says(Hooks):
    """Says the same to everything, and keeps what it was asked."""

    def __init__(self, answer: object = None) -> None:
        self.answer = answer
        self.asked: list[Flow | DnsQuestion] = []

    async def on_flow(self, flow: Flow) -> Decision | None:
        self.asked.append(flow)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer  # type: ignore[return-value]  # nonsense on purpose

    async def on_dns(self, question: DnsQuestion) -> Decision | None:
        self.asked.append(question)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer  # type: ignore[return-value]  # nonsense on purpose


def hook_verdict(verdict: Verdict, action: int, reason: str, rule: str) -> Verdict:
    return verdict._replace(action=action, step="hook", reason=reason, rule=rule)


# -- what it is told and may say -------------------------------------------------------------------------------------


async def test_a_hook_is_told_everything_about_a_flow() -> None:
    says = Says()
    assert await HookRunner(says).flow(QUESTION, ALLOWED) is ALLOWED
    assert says.asked == [
        Flow(7, "tcp", "192.168.127.2", 40000, "93.184.215.14", 443, "example.com", "sni", True, "name-rule",
             "example.com")
    ]  # fmt: skip


async def test_a_hook_is_told_everything_about_a_question() -> None:
    says = Says()
    assert await HookRunner(says).dns(GUEST, "example.net", "TXT", REFUSED) is REFUSED
    assert says.asked == [DnsQuestion("192.168.127.2", "example.net", "TXT", False, "name-not-allowed", "")]


@pytest.mark.parametrize(("number", "word"), [(1, "icmp"), (17, "udp"), (47, "47")])
async def test_protocols_have_names(number: int, word: str) -> None:
    says = Says()
    await HookRunner(says).flow(QUESTION._replace(protocol=number), ALLOWED)
    assert isinstance(says.asked[0], Flow)
    assert says.asked[0].protocol == word


@pytest.mark.parametrize("may_allow", [False, True])
@pytest.mark.parametrize("verdict", [ALLOWED, REFUSED])
async def test_no_opinion_leaves_what_the_policy_says(verdict: Verdict, may_allow: bool) -> None:
    runner = HookRunner(Hooks(), may_allow=may_allow)
    assert await runner.flow(QUESTION, verdict) is verdict
    assert await runner.dns(GUEST, "example.com", "A", verdict) is verdict


@pytest.mark.parametrize("may_allow", [False, True])
@pytest.mark.parametrize("verdict", [ALLOWED, REFUSED])
async def test_a_hook_may_always_refuse(verdict: Verdict, may_allow: bool) -> None:
    runner = HookRunner(Says(refuse("closed")), may_allow=may_allow)
    expected = hook_verdict(verdict, REFUSE, "closed", "")
    assert await runner.flow(QUESTION, verdict) == expected
    assert await runner.dns(GUEST, "example.com", "A", verdict) == expected


async def test_a_hook_may_allow_only_where_it_is_let() -> None:
    for verdict in (ALLOWED, REFUSED):
        assert await HookRunner(Says(allow("why not"))).flow(QUESTION, verdict) is verdict
    lets = HookRunner(Says(allow("why not")), may_allow=True)
    assert await lets.flow(QUESTION, REFUSED) == hook_verdict(REFUSED, ALLOW, "why not", "")
    assert await lets.dns(GUEST, "example.net", "A", REFUSED) == hook_verdict(REFUSED, ALLOW, "why not", "")
    assert await lets.flow(QUESTION, ALLOWED) is ALLOWED, "the rule's own verdict says more"


def test_reasons_there_are_without_words() -> None:
    assert (allow().reason, refuse().reason) == ("hook-allows", "hook-refuses")


# -- F14: a hook that raises, hangs or returns nonsense --------------------------------------------------------------


async def asks(runner: HookRunner, verdict: Verdict) -> list[Verdict]:
    return [await runner.flow(QUESTION, verdict), await runner.dns(GUEST, "example.com", "A", verdict)]


@pytest.mark.parametrize(
    "problem",
    [ValueError("x"), KeyError(), AssertionError(), SystemExit(3), ExceptionGroup("several", [ValueError()]),
     trio.TooSlowError(), RecursionError(), BaseExceptionGroup("of a nursery", [SystemExit(3), ValueError()])],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("may_allow", [False, True])
async def test_f14_one_that_raises_refuses_that_flow(problem: BaseException, may_allow: bool) -> None:
    runner = HookRunner(Says(problem), may_allow=may_allow)
    assert await asks(runner, ALLOWED) == [hook_verdict(ALLOWED, REFUSE, "hook-failed", "")] * 2


@pytest.mark.parametrize(
    "problem", [KeyboardInterrupt(), BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError()])], ids=repr
)
async def test_f14_what_is_to_end_the_program_does(problem: BaseException) -> None:
    with pytest.raises((KeyboardInterrupt, BaseExceptionGroup)):
        await HookRunner(Says(problem)).flow(QUESTION, ALLOWED)


@pytest.mark.parametrize(
    "nonsense",
    [True, False, "allow", 0, object(), Decision, [allow()], Decision(True, 5), Decision(False, None)],  # type: ignore[arg-type]  # nonsense on purpose
    ids=["True", "False", "text", "0", "object", "the class", "a list", "reason 5", "reason None"],
)
async def test_f14_one_that_returns_nonsense_refuses_that_flow(nonsense: object) -> None:
    runner = HookRunner(Says(nonsense), may_allow=True)
    assert await asks(runner, ALLOWED) == [hook_verdict(ALLOWED, REFUSE, "hook-failed", "")] * 2


async def test_f14_one_that_is_no_coroutine_refuses_that_flow() -> None:
    class Plain(Hooks):
        def on_flow(self, flow: Flow) -> Decision | None:  # type: ignore[override]  # a likely mistake
            return allow()

    assert (await HookRunner(Plain()).flow(QUESTION, ALLOWED)).reason == "hook-failed"


class Hangs(Hooks):
    """Never answers flows to port 443, and refuses to be told so if it is stubborn."""

    def __init__(self, *, stubborn: bool = False) -> None:
        self.stubborn = stubborn

    async def on_flow(self, flow: Flow) -> Decision | None:
        if flow.port == 443:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                if not self.stubborn:
                    raise
        return allow("at last")


@pytest.mark.parametrize("stubborn", [False, True])
async def test_f14_one_that_hangs_refuses_that_flow_at_its_deadline(
    autojump_clock: trio.testing.MockClock, stubborn: bool
) -> None:
    runner = HookRunner(Hangs(stubborn=stubborn), may_allow=True, deadline=2.5)
    begun = trio.current_time()
    assert await runner.flow(QUESTION, ALLOWED) == hook_verdict(ALLOWED, REFUSE, "hook-timeout", "")
    assert trio.current_time() - begun == 2.5


async def test_f14_others_go_on_while_one_hangs(autojump_clock: trio.testing.MockClock) -> None:
    runner = HookRunner(Hangs(), deadline=2.5)
    verdicts: dict[int, tuple[float, str]] = {}

    async def ask(port: int) -> None:
        verdict = await runner.flow(QUESTION._replace(destination=(SERVER, port)), ALLOWED)
        verdicts[port] = trio.current_time() - begun, verdict.reason

    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        for port in (443, 80, 22):
            nursery.start_soon(ask, port)
    assert verdicts == {80: (0.0, "name-rule"), 22: (0.0, "name-rule"), 443: (2.5, "hook-timeout")}


async def test_f14_a_flood_of_questions_is_bounded(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flows that a SYN flood has pushed out are forgotten long before a slow hook has answered for them."""
    monkeypatch.setattr(hooks, "MAX_ASKING", 3)
    runner = HookRunner(Hangs(), deadline=2.5)
    reasons: list[str] = []

    async def ask() -> None:
        reasons.append((await runner.flow(QUESTION, ALLOWED)).reason)

    for _ in range(2):  # and it recovers
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
    assert reasons == ["hook-busy", "hook-busy", "hook-timeout", "hook-timeout", "hook-timeout"] * 2


async def test_f14_failures_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    runner = HookRunner(Says(ValueError("x")))
    with caplog.at_level(logging.INFO):
        for _ in range(1000):
            await runner.flow(QUESTION, ALLOWED)
    assert [record.message.rpartition("(")[2] for record in caplog.records] == [
        "1 of these so far)", "10 of these so far)", "100 of these so far)", "1000 of these so far)",
    ]  # fmt: skip
    assert "flow to example.com:443 is refused" in caplog.records[0].message
    assert caplog.records[0].exc_info, "where it went wrong"


async def test_f14_names_a_guest_made_up_are_escaped_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    await HookRunner(Says(ValueError())).dns(GUEST, "a\nnetstack: all is well", "A", REFUSED)
    assert "\n" not in caplog.records[0].message


async def test_a_gateway_that_ends_does_not_wait_for_its_hook(autojump_clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(1) as scope:
        await HookRunner(Hangs(), deadline=5).flow(QUESTION, ALLOWED)
    assert scope.cancelled_caught


# -- loading ---------------------------------------------------------------------------------------------------------

TWO = """
from netstack.hooks import Hooks, refuse
class One(Hooks):
    pass
class Two(Hooks):
    async def on_flow(self, flow):
        return refuse("two")
class Three:
    pass
"""
ONE = """
from __future__ import annotations
from dataclasses import dataclass
from netstack import hooks
@dataclass
class Limit:
    most: int = 3
class Only(hooks.Hooks):
    def __init__(self):
        self.limit = Limit()
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(directory: Path, name: str, text: str) -> str:
    (directory / f"{name}.py").write_text(text)
    return str(directory / f"{name}.py")


def test_the_only_hook_of_a_file(directory: Path) -> None:
    made = load_hooks(write(directory, "only", ONE))
    assert type(made).__name__ == "Only"
    assert made.limit.most == 3  # type: ignore[attr-defined]  # of the file's own


async def test_a_hook_of_several_by_its_name(directory: Path) -> None:
    made = load_hooks(write(directory, "two", TWO) + ":Two")
    assert (await HookRunner(made).flow(QUESTION, ALLOWED)).reason == "two"


def test_a_hook_of_a_module(directory: Path) -> None:
    write(directory, "hook_module", TWO)
    assert type(load_hooks("hook_module:One")).__name__ == "One"
    assert isinstance(load_hooks("hook_module:Two"), sys.modules["hook_module"].Two)


@pytest.mark.parametrize(
    ("text", "suffix", "message"),
    [
        (TWO, "", "found One, Two"),
        (TWO, ":Three", "found none"),
        (TWO, ":Nobody", "found none"),
        ("x = 1", "", "found none"),
        ("from netstack.hooks import Hooks", "", "found none"),
        ("def broken(:", "", "SyntaxError"),
        ("raise RuntimeError('not today')", "", "RuntimeError: not today"),
        ("import sys; sys.exit(4)", "", "SystemExit: 4"),
        ("import no_such_module_anywhere", "", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        (ONE.replace("Limit()", "1 / 0"), "", "Only(): ZeroDivisionError"),
        (ONE.replace("def __init__(self)", "def __init__(self, needed)"), "", "Only(): TypeError"),
    ],
)
def test_what_cannot_be_loaded_is_one_error(directory: Path, text: str, suffix: str, message: str) -> None:
    where = write(directory, "hook", text) + suffix
    with pytest.raises(HookError) as caught:
        load_hooks(where)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("/nowhere/hook.py", "FileNotFoundError"),
        ("no_such_module:Hook", "No module named 'no_such_module'"),
        ("", "ValueError"),
        (":Hook", "ValueError"),
        ("..relative:Hook", "TypeError"),
        ("/etc/passwd", "No module named"),
    ],
)
def test_what_is_not_there(where: str, message: str) -> None:
    with pytest.raises(HookError) as caught:
        load_hooks(where)
    assert message in str(caught.value)
