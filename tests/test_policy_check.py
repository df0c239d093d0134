"""`netstack policy check`: what is answered offline, with steps, reasons and advice; and that it is so (I6)."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from engine.wire_guest import VirtualWire, ip, network, udp
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP

from netstack import cli
from netstack.config import network_settings
from netstack.engine.effects import OpenDatagrams, OpenStream
from netstack.engine.verdict import ACTION_WORDS
from netstack.network_spec import NetworkSpec
from netstack.policy_check import Answer, QuestionError, check

SITE = "93.184.216.34"
SETTINGS = network_settings()


def ask(question: str, *rules: str, spec: NetworkSpec | None = None, **options: object) -> Answer:
    return check(spec or NetworkSpec.enabled(rules, **options), question, SETTINGS)


def steps(answer: Answer) -> list[tuple[str, str]]:
    """Each step's action and reason."""
    return [(ACTION_WORDS[verdict.action], verdict.reason) for _, verdict in answer.steps]


# -- by name ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "question", ["api.example.com:443", "https://api.example.com/", "https://API.example.com.:443/x?y"]
)
def test_a_name_that_is_listed(question: str) -> None:
    answer = ask(question, "*.example.com")
    assert answer.allowed
    assert steps(answer) == [("allowed", "name-rule"), ("peek", "name-decides"), ("allowed", "name-rule")]
    assert [word for word, _ in answer.steps] == [
        "DNS question api.example.com A",
        "SYN to the address our DNS gave",
        "TLS SNI or HTTP Host api.example.com",
    ]
    assert answer.steps[-1][1].rule == "*.example.com"
    assert answer.hint == ""


@pytest.mark.parametrize(
    ("question", "rules", "expected", "hint"),
    [
        ("example.com:443", [], [("allowed", "no-list")] * 2, ""),
        ("example.com:443", ["example.org"], [("refused", "name-not-allowed")], "add 'example.com' to allow_net"),
        ("example.com:22", ["example.org"], [("refused", "name-not-allowed")], "add 'example.com:22' to allow_net"),
        ("example.com:22", ["example.com"], [("allowed", "name-rule"), ("refused", "no-rule")],
         "add 'example.com:22' to allow_net"),
        ("example.com:22", ["example.com:22"], [("allowed", "name-rule"), ("allowed", "answered-name")], ""),
        ("example.com:80", ["example.com:22", "x.example"],
         [("allowed", "name-rule"), ("peek", "name-decides"), ("refused", "port-not-covered")],
         "add 'example.com' to allow_net"),
        ("quic://example.com", ["example.com"],
         [("allowed", "name-rule"), ("peek", "name-decides"), ("allowed", "name-rule")], ""),
        ("quic://example.com", ["tcp/example.com"], [("allowed", "name-rule"), ("refused", "no-rule")],
         "add 'example.com' to allow_net"),
        ("udp://example.com:123", ["example.com:123"], [("allowed", "name-rule"), ("refused", "no-rule")],
         "under a list UDP has no names but those in QUIC: add its address, or use synthetic DNS answers"),
        ("http://example.com/", ["@public"], [("allowed", "public-rule"), ("allowed", "address-rule")], ""),
        ("example.com:8443", ["example.com", "4.4.4.4:8443", "1.4.4.4:8443"],
         [("allowed", "name-rule"), ("refused", "no-rule")], "add 'example.com:8443' to allow_net"),
    ],
)  # fmt: skip
def test_flows_to_names(question: str, rules: list[str], expected: list[tuple[str, str]], hint: str) -> None:
    answer = ask(question, *rules)
    assert steps(answer) == expected
    assert answer.hint == hint
    assert answer.allowed == (expected[-1][0] == "allowed")


def test_synthetic_answers_make_names_work_for_any_protocol() -> None:
    for question in ("example.com:22", "udp://example.com:22"):
        answer = ask(question, "example.com:22", answers="synthetic")
        assert steps(answer) == [("allowed", "name-rule"), ("allowed", "name-rule")]
    assert steps(ask("quic://example.com", "example.com", answers="synthetic"))[1:] == [
        ("peek", "name-rule"),
        ("allowed", "name-rule"),
    ]


def test_local_names_are_answered_here_and_lead_to_the_host() -> None:
    name = "host.containers.internal"
    assert steps(ask(f"{name}:8080", "example.com")) == [("allowed", "local-zone"), ("refused", "private-address")]
    assert steps(ask(f"{name}:8080", "@host:8080")) == [("allowed", "local-zone"), ("allowed", "address-rule")]
    assert steps(ask("nobody.containers.internal", "example.com")) == [("refused", "no-such-name")]
    assert ask("nobody.containers.internal", "example.com").hint == ""


# -- by address ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "rules", "action", "reason", "hint"),
    [
        (f"{SITE}:443", [], "allowed", "no-list", ""),
        (f"{SITE}:443", ["93.184.216.0/24"], "allowed", "address-rule", ""),
        (f"{SITE}:443", ["10.0.0.0/8"], "refused", "no-rule", f"add '{SITE}:443' to allow_net"),
        (f"{SITE}:443", ["example.com"], "peek", "name-decides", f"add '{SITE}:443' to allow_net"),
        (f"udp://{SITE}:53", ["10.0.0.0/8"], "refused", "no-rule", f"add '{SITE}:53' to allow_net"),
        ("[2606:4700::1]:443", ["10.0.0.0/8"], "refused", "no-rule", "add '[2606:4700::1]:443' to allow_net"),
        ("10.1.2.3:22", ["example.com:22"], "refused", "private-address", "add '10.1.2.3:22' to allow_net"),
        ("169.254.169.254:80", ["0.0.0.0/0"], "refused", "metadata", "start with --metadata-access; no rule opens it"),
        ("168.63.129.16:80", [], "refused", "metadata", "start with --metadata-access; no rule opens it"),
        ("127.0.0.1:80", [], "refused", "forbidden-address", ""),
        ("240.0.0.1:80", ["0.0.0.0/0"], "refused", "forbidden-address", ""),
        ("224.0.0.1:80", [], "refused", "group-address", ""),
        ("192.168.127.77:80", [], "refused", "unused-address", ""),
        ("192.168.127.1:22", [], "refused", "unserved-port", ""),
        ("192.168.127.1:53", ["10.0.0.0/8"], "allowed", "gateway-service", ""),
        ("udp://192.168.127.1:53", ["10.0.0.0/8"], "allowed", "gateway-service", ""),
        ("192.168.127.254:22", ["10.0.0.0/8"], "refused", "private-address", "add '192.168.127.254:22' to allow_net"),
        (f"icmp://{SITE}", ["example.com"], "refused", "no-rule", f"add '{SITE}' to allow_net"),
        (f"icmp://{SITE}", [SITE], "allowed", "address-rule", ""),
        ("icmp://192.168.127.1", ["example.com"], "allowed", "gateway-service", ""),
        ("icmp://127.0.0.1", [], "refused", "forbidden-address", ""),
    ],
)
def test_addresses(question: str, rules: list[str], action: str, reason: str, hint: str) -> None:
    answer = ask(question, *rules)
    assert steps(answer) == [(action, reason)]
    assert answer.hint == hint
    assert answer.allowed == (action == "allowed")


@pytest.mark.parametrize("question", [f"{SITE}:443", "example.com:443", "icmp://1.1.1.1", "example.com", "127.0.0.1:1"])
def test_a_disabled_network(question: str) -> None:
    answer = ask(question, spec=NetworkSpec.disabled())
    assert not answer.allowed
    assert (steps(answer)[-1], answer.hint) == (("refused", "disabled"), "enable the network")


# -- DNS -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "rules", "action", "reason"),
    [
        ("example.com", ["example.com:22"], "allowed", "name-rule"),
        ("dns://a.example.com/TXT", ["*.example.com"], "allowed", "name-rule"),
        ("dns://example.com/https", ["example.com"], "allowed", "service-binding-withheld"),
        ("dns://example.com/ANY", ["example.com"], "allowed", "any-not-forwarded"),
        ("dns://example.com/TYPE65280", ["example.com"], "allowed", "name-rule"),
        ("dns://example.net/MX", ["example.com"], "refused", "name-not-allowed"),
        ("EVIL.example.", ["example.com"], "refused", "name-not-allowed"),
        ("dns://a b.example", ["example.com"], "refused", "not-a-host-name"),
        ("dns://" + "a" * 60 + "." + "b" * 60 + "." + "c" * 60 + ".example.com", ["*.example.com"], "refused",
         "name-too-long-for-wildcard"),
        ("example.com", [], "allowed", "no-list"),
    ],
)  # fmt: skip
def test_questions(question: str, rules: list[str], action: str, reason: str) -> None:
    assert steps(ask(question, *rules)) == [(action, reason)]


# -- what cannot be read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "question",
    ["", "  ", SITE, "::1", "[::1]", "ftp://example.com/", "udp://example.com", "tcp://example.com:0",
     "example.com:99999", "http://", "icmp://example.com", "icmp://", "dns://", "dns://example.com/NOTYPE", "dns://a..b",
     "-a-:443", "a b:443", "1.2.3:443", "[::1:443", "dns://" + "a" * 64 + ".com"],
)  # fmt: skip
def test_questions_that_cannot_be_read(question: str) -> None:
    with pytest.raises(QuestionError) as caught:
        ask(question, "example.com")
    assert repr(question) in str(caught.value)


@given(st.one_of(st.text(), st.from_regex(r"\A(dns|udp|https?|icmp|quic)?(://)?[a-z0-9.:\[\]/-]{0,30}\Z")))
def test_any_text_is_answered_or_a_question_error(question: str) -> None:
    try:
        answer = ask(question, "example.com", "*.example.org:22", "10.0.0.0/8")
    except QuestionError:
        return
    assert answer.steps
    assert all(verdict.reason for _, verdict in answer.steps)


# -- I6: what is answered is what is enforced ------------------------------------------------------------------------

RULES = st.lists(
    st.sampled_from(
        [
            "example.com",
            "example.com:22",
            "10.0.0.0/8",
            "tcp/93.184.216.0/24:443",
            "@public:53",
            "@host",
            "udp/10.1.0.0/16",
        ]
    ),
    max_size=4,
)
PLACES = st.sampled_from(
    [SITE, "10.1.2.3", "172.16.0.1", "127.0.0.1", "169.254.169.254", "168.63.129.16", "192.168.127.1", "192.168.127.77",
     "192.168.127.254", "224.0.0.1", "240.0.0.1", "8.8.8.8", "198.18.0.5"]
)  # fmt: skip


@given(
    RULES, PLACES, st.sampled_from([22, 53, 80, 443, 5000]), st.booleans(), st.sampled_from(["list", "nothing", "off"])
)
def test_i6_the_engine_does_what_was_answered(
    rules: list[str], address: str, port: int, by_tcp: bool, mode: str
) -> None:
    spec = {
        "list": NetworkSpec.enabled(rules),
        "nothing": NetworkSpec.enabled(deny_all=True),
        "off": NetworkSpec.disabled(),
    }[mode]
    wire = VirtualWire(network(), policy=spec.policy())
    if by_tcp:
        wire.send(IP(src="192.168.127.2", dst=address) / TCP(sport=40_000, dport=port, flags="S"))
    else:
        wire.send(udp(address, port, b"x"))
    goes = any(isinstance(effect, OpenStream | OpenDatagrams) for effect in wire.asked())
    answer = check(spec, f"{'tcp' if by_tcp else 'udp'}://{address}:{port}", wire.settings)
    served = answer.steps[-1][1].reason == "gateway-service"
    assert goes == (answer.allowed and not served)
    refusals = set(wire.stack.judge.refusals)
    if answer.steps[-1][1].action == 0 and mode != "off":
        assert refusals == {answer.steps[-1][1].reason}
    assert ip(address)


# -- the command -----------------------------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.cli, ["policy", "check", *arguments], standalone_mode=False)
    if result.exception:
        raise result.exception
    return int(result.return_value), result.output


def test_the_command_answers_and_its_status_says_whether_all_is_allowed() -> None:
    status, output = run("example.com", "--", "example.com:443", "example.net:443")
    assert status == 1
    assert "allowed  example.com:443" in output
    assert "refused  example.net:443" in output
    assert "add 'example.net' to allow_net" in output
    assert run("example.com", "--", "example.com:443")[0] == 0


def test_the_command_knows_the_local_names() -> None:
    assert run("@host", "--", "host.containers.internal:80")[0] == 0


def test_the_command_in_json() -> None:
    _, output = run("--json", "example.com", "--", "udp://1.2.3.4:53", "example.com")
    refused, allowed = map(json.loads, output.splitlines())
    assert refused == {
        "question": "udp://1.2.3.4:53",
        "allowed": False,
        "steps": [{"step": "first datagram", "verdict": "refused", "reason": "no-rule", "rule": ""}],
        "hint": "add '1.2.3.4:53' to allow_net",
    }
    assert allowed["allowed"]
