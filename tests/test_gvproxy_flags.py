"""Go's flag syntax: what is read, what is refused, and in which words."""

from __future__ import annotations

import pytest

from netstack import cli
from netstack.gvproxy_flags import FLAGS, FlagError, GvproxyFlags, HelpWanted, flag_names, parse_flags, usage

GVPROXYS = (
    "config listen services debug pcap mtu ssh-port subnet gatewayIP deviceIP hostIP listen-vpnkit listen-qemu"
    " listen-bess listen-stdio listen-vfkit forward-sock forward-dest forward-user forward-identity pid-file log-file"
    " ec2-metadata-access notification version"
)
"""All flags of gvproxy (section 4 of what was found out about it)."""


def test_all_of_gvproxys_flags_are_there():
    assert set(FLAGS) == set(GVPROXYS.split()) == set(flag_names())


@pytest.mark.parametrize("words", [["-mtu", "9000"], ["-mtu=9000"], ["--mtu", "9000"], ["--mtu=9000"], ["-mtu=0x2328"]])
def test_four_ways_to_write_a_value(words: list[str]):
    assert parse_flags(words).mtu == 9000


@pytest.mark.parametrize(
    ("words", "debug"),
    [(["-debug"], True), (["--debug"], True), (["-debug=true"], True), (["-debug=0"], False), (["-debug=F"], False)],
)
def test_truths_take_a_value_behind_the_sign_only(words: list[str], debug: bool):
    assert parse_flags(words).debug is debug


def test_flags_that_come_several_times_and_those_of_which_the_last_counts():
    words = "-listen unix:///a -listen=unix:///b -mtu 1 -mtu 2 -pcap x= --pid-file="
    flags = parse_flags(words.split())
    assert flags.listen == ["unix:///a", "unix:///b"]
    assert (flags.mtu, flags.pcap, flags.pid_file) == (2, "x=", "")


def test_nothing_and_the_end_of_flags():
    assert parse_flags([]) == parse_flags(["--"]) == GvproxyFlags()
    assert parse_flags(["-ssh-port", "-1"]).ssh_port == -1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-foo"], "flag provided but not defined: -foo"),
        (["--foo=1"], "flag provided but not defined: -foo"),
        (["-mtu"], "flag needs an argument: -mtu"),
        (["-mtu", "big"], 'invalid value "big" for flag -mtu: parse error'),
        (["-mtu="], 'invalid value "" for flag -mtu: parse error'),
        (["-debug=maybe"], 'invalid boolean value "maybe" for -debug: parse error'),
        (["---mtu", "1"], "bad flag syntax: ---mtu"),
        (["-=1"], "bad flag syntax: -=1"),
        (["-debug", "true", "-mtu", "1"], 'unexpected argument "true": every flag begins with -'),
        (["--", "x"], 'unexpected argument "x": every flag begins with -'),
        (["-"], 'unexpected argument "-": every flag begins with -'),
    ],
)
def test_what_cannot_be_read(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(FlagError) as caught:
        parse_flags(words)
    assert str(caught.value) == message
    with pytest.raises(SystemExit) as ended:
        cli.main(["gvproxy", *words])
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (2, "")
    assert told.err == f"{message}\n{usage('netstack gvproxy')}"


@pytest.mark.parametrize("word", ["-h", "-help", "--h", "-mtu=5 -h"])
def test_help_is_usage_on_standard_error_and_no_failure(word: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(HelpWanted):
        parse_flags(word.split())
    with pytest.raises(SystemExit) as ended:
        cli.main(["gvproxy", *word.split()])
    told = capsys.readouterr()
    assert (ended.value.code, told.out, told.err) == (0, "", usage("netstack gvproxy"))
    for flag in FLAGS:
        assert f"\n  -{flag}" in told.err


def test_completion_knows_the_flags():
    command = cli.cli.commands["gvproxy"]

    def completed(incomplete: str) -> list[str]:
        return [item.value for item in command.shell_complete(command.make_context("gvproxy", []), incomplete)]

    assert completed("-listen-q") == ["-listen-qemu"]
    assert completed("--pid") == ["--pid-file"]
    assert completed("-") == [f"-{flag}" for flag in FLAGS]
    [path] = command.shell_complete(command.make_context("gvproxy", ["-config"]), "/etc/gv")
    assert (path.value, path.type) == ("/etc/gv", "file")


def test_version_begins_as_scripts_expect_and_says_what_it_is(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        cli.main(["gvproxy", "-version"])
    told = capsys.readouterr()
    assert (ended.value.code, told.err) == (0, "")
    assert told.out.startswith("gvproxy version netstack-")
