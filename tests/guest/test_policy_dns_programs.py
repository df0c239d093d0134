"""Conformance class B with busybox's nslookup and wget: an allowed and a refused name, on every kind of answer.

Both kinds of answers for what is allowed, the three sinkholes for what is not. Each is held to what the program does,
to what leaves the host, and to what is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from subprocess import CompletedProcess
from typing import NamedTuple

import pytest

from .open_internet import SITE, OpenInternet
from .row_guest import GATEWAY, RowGuest, start_row_guest

pytestmark = pytest.mark.guest("ip", "openssl", "curl", "busybox")
RCODES = {"null": "NOERROR", "nxdomain": "NXDOMAIN", "refused": "REFUSED"}
KINDS = [(answers, sinkhole) for answers in ("real", "synthetic") for sinkhole in RCODES]


class Styled(NamedTuple):
    """A guest, and how its questions are answered."""

    guest: RowGuest
    answers: str
    sinkhole: str

    def busybox(self, *arguments: str) -> CompletedProcess[str]:
        """Run it. (Debian's static one crashes on `wget -T`; what hangs is ended by the lab.)"""
        return self.guest.namespace.run("busybox", *arguments, check=False)

    def asked(self, before: int) -> list[tuple[object, ...]]:
        """(E) The questions told of since, in the order of their types: both come at once."""
        self.guest.settle()
        events = self.guest.events(["dns"])[before:]
        return sorted((str(event["name"]), event["qtype"], event["verdict"], event["rcode"]) for event in events)


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def styled(request: pytest.FixtureRequest, internet: OpenInternet) -> Iterator[Styled]:
    answers, sinkhole = request.param
    options = ["--allow-net", "real.test", "--dns-answers", answers, "--dns-sinkhole", sinkhole]
    made = start_row_guest(internet, *options)
    yield Styled(made, answers, sinkhole)
    made.close()


def test_B1_nslookup_of_an_allowed_name(styled: Styled) -> None:
    """It asks A and AAAA, and fails unless both are NOERROR."""
    before = len(styled.guest.events(["dns"]))
    with styled.guest.tells(kinds=("flow_opened", "flow_refused")):
        done = styled.busybox("nslookup", "real.test", GATEWAY)
    assert done.returncode == 0, done
    (address,) = re.findall(r"\nAddress: (\S+)", done.stdout)
    assert address == SITE if styled.answers == "real" else address.startswith("198.18.")
    assert styled.asked(before) == [("real.test", kind, "allowed", "NOERROR") for kind in ("A", "AAAA")]


def test_B1_nslookup_of_a_refused_name(styled: Styled) -> None:
    before, upstream = len(styled.guest.events(["dns"])), len(styled.guest.internet.asked())
    with styled.guest.tells(kinds=("flow_opened", "flow_refused")), styled.guest.nothing_leaves():
        done = styled.busybox("nslookup", "evil.test", GATEWAY)
    rcode = RCODES[styled.sinkhole]
    if styled.sinkhole == "null":
        assert (done.returncode, re.findall(r"\nAddress: (\S+)", done.stdout)) == (0, ["0.0.0.0"])
    else:
        assert done.returncode == 1
        assert rcode in done.stdout + done.stderr
    assert styled.asked(before) == [("evil.test", kind, "refused", rcode) for kind in ("A", "AAAA")]
    assert len(styled.guest.internet.asked()) == upstream


def test_B1_wget_of_an_allowed_name(styled: Styled) -> None:
    source = "synthetic" if styled.answers == "synthetic" else "host"
    with styled.guest.reaches(f"{SITE}:80", "name-rule", name="real.test", name_source=source):
        done = styled.busybox("wget", "-q", "-O", "-", "http://real.test/")
    assert (done.returncode, done.stdout) == (0, f"{SITE} for real.test\n")


def test_B17_wget_of_a_refused_name(styled: Styled) -> None:
    """It ends at once, by the guest's own loopback or for want of an address; the question names the name."""
    before = len(styled.guest.events(["dns"]))
    with styled.guest.tells(kinds=("flow_opened", "flow_refused")), styled.guest.nothing_leaves():
        done = styled.busybox("wget", "-O", "-", "http://evil.test/")
    assert done.returncode == 1
    null = styled.sinkhole == "null"
    assert ("can't connect to remote host (0.0.0.0): Connection refused" if null else "bad address") in done.stderr
    told = styled.asked(before)
    assert {("evil.test", kind, "refused", RCODES[styled.sinkhole]) for kind in ("A", "AAAA")} == set(told)
    if null:
        assert len(told) == 2, "answered, so asked once"


def test_B1_wget_with_another_host(styled: Styled) -> None:
    """Past DNS, at an address that was answered for the allowed name."""
    (address,) = styled.guest.resolved("real.test")
    name = f"{styled.sinkhole}.evil.test"
    synthetic = styled.answers == "synthetic"
    reason = "name-disagrees-with-address" if synthetic else "name-not-allowed"
    refused = {"event": "flow_refused", "name": name, "reason_code": reason, "told": "forbidden"}
    opened = [{"event": "flow_opened", "name": "real.test", "name_source": "synthetic"}] if synthetic else []
    visits = len(styled.guest.internet.witness.visits)
    with styled.guest.tells(*opened, refused):
        done = styled.busybox("wget", "-O", "-", "--header", f"Host: {name}", f"http://{address}/")
    assert done.returncode == 1
    assert "403" in done.stderr
    assert synthetic or styled.guest.internet.witness.visits[visits:] == []
    assert all(visit.data == b"" for visit in styled.guest.internet.witness.visits[visits:]), "not a byte arrives"
