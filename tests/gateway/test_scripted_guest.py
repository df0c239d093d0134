"""The demonstration's guest in this process: its steps over the scripted network, against a gateway with sockets."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import trio

from guest_iface.unixgram import UnixgramLink
from netstack.config import RunConfig, network_settings
from netstack.gateway import demo_guest
from netstack.gateway.attachments import Attachments
from netstack.gateway.demo_guest import Plan, Step
from netstack.gateway.demo_services import OFFICE_ADDRESS, PAGE, WEB_ADDRESS, WEB_NAME, Services
from netstack.gateway.demo_services import demo_services as run_services
from netstack.gateway.run_command import Gateway
from netstack.gateway.scripted_guest import ScriptedNetwork


def plan_for(services: Services) -> Plan:
    return Plan(
        web_name=WEB_NAME,
        missing_name="nowhere.demo.test",
        local_name="host.containers.internal",
        http_port=services.http_port,
        https_port=services.https_port,
        closed_port=services.closed_port,
        certificate=str(services.certificate),
        page_sha256=hashlib.sha256(PAGE).hexdigest(),
        pings_leave=False,
        listed_address=OFFICE_ADDRESS,
        other_name="evil.demo.test",
        other_address="45.33.32.156",
    )


@asynccontextmanager
async def running(services: Services) -> AsyncIterator[tuple[Gateway, socket.socket]]:
    """A gateway on one end of a socket pair, and the other end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    config = RunConfig(
        network=network_settings(nat=[f"{WEB_ADDRESS}={services.loopback}", f"{OFFICE_ADDRESS}={services.loopback}"]),
        links=(),
        dns_upstreams=(f"127.0.0.1:{services.dns_port}",),
    )
    gateway = Gateway(config, Attachments(links=[UnixgramLink.from_fd(ours.detach())]))
    with theirs:
        async with trio.open_nursery() as nursery:
            await nursery.start(gateway.run)
            yield gateway, theirs
            gateway.stop()


async def walk(plan: Plan, card: socket.socket) -> dict[str, Step]:
    network = ScriptedNetwork(card)
    steps = await trio.to_thread.run_sync(lambda: list(demo_guest.FullAccess(network, plan).steps()))
    return {step.name: step for step in steps}


async def test_every_step_succeeds(tmp_path: Path):
    with run_services(tmp_path) as services:
        async with running(services) as (_, card):
            steps = await walk(plan_for(services), card)
    assert {name: step.state for name, step in steps.items()} == {
        "lease": "ok",
        "local name": "ok",
        "forwarded name": "ok",
        "no such name": "ok",
        "web page": "ok",
        "web page, TLS": "ok",
        "ping, gateway": "ok",
        "ping, beyond": "skipped",
        "refused port": "ok",
    }
    assert steps["lease"].answer == "192.168.127.2/24, router and DNS 192.168.127.1, MTU 1500, for 3600 s"
    assert steps["local name"].answer == "NOERROR, 192.168.127.254"
    assert steps["web page"].answer == f"200, {len(PAGE)} bytes, sha256 as served"


async def test_steps_that_go_wrong_say_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo_guest, "PING_TIMEOUT", 0.05)
    with run_services(tmp_path) as services:
        plan = replace(
            plan_for(services),
            missing_name="host.docker.internal",
            https_port=services.closed_port,
            closed_port=services.http_port,
            page_sha256="0" * 64,
        )
        async with running(services) as (_, card):
            steps = await walk(plan, card)
    assert steps["no such name"].answer == "ValueError: NOERROR, expected NXDOMAIN"
    assert steps["web page"].answer == f"ValueError: 200, {len(PAGE)} bytes that are not the page"
    assert steps["web page, TLS"].answer.startswith("ConnectionRefusedError: ")
    assert steps["refused port"].answer == "ValueError: the connection was accepted"
    assert [step.state for step in steps.values()].count("failed") == 4


async def test_a_frame_card_where_nobody_answers_is_one_failed_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(demo_guest, "TIMEOUT", 0.05)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs, run_services(tmp_path) as services:
        steps = await walk(plan_for(services), theirs)
    assert list(steps) == ["lease"]
    assert steps["lease"].answer == "TimeoutError: no answer from a DHCP server"


async def test_the_program_writes_a_line_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with run_services(tmp_path) as services:
        async with running(services) as (_, card):
            plan = json.dumps(asdict(replace(plan_for(services), other_address=OFFICE_ADDRESS)))
            monkeypatch.setattr(sys, "argv", ["demo_guest", "--fd", str(card.detach()), plan])
            monkeypatch.setattr(sys, "stdin", io.StringIO())
            await trio.to_thread.run_sync(demo_guest.main)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = [line.get("name") for line in lines]
    assert names[:2] == ["lease", "local name"]
    first, second = lines[: names.index(None)], lines[names.index(None) + 1 :]
    assert lines[names.index(None)] == {"act": 2}
    assert all(line["state"] in ("ok", "skipped") for line in first)
    # Nobody has changed the policy: what is not refused is a failed step.
    assert [line["name"] for line in second if line["state"] == "failed"][:2] == ["name not listed", "DNS tunnel"]
