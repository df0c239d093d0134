"""/v1/: what is told of flows, names, links and the policy is what is so, and what is asked for is done."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import trio
import trio.testing
from api_client import Served, served
from callee import ADDRESS, CLOSED, ECHO, GATEWAY, until
from prometheus_client.parser import text_string_to_metric_families

from guest_iface.link import MAX_FRAME, LinkClosed
from netstack.engine.events import FlowClosed, FrameDropped
from netstack.engine.verdict import ALLOW, Verdict
from netstack.gateway import records
from netstack.gateway.api import v1_events
from netstack.gateway.api.metrics import MAX_LINKS, OTHERS
from netstack.gateway.api.v1_words import ended_flow
from netstack.gateway.records import MAX_SUBSCRIBERS, QUEUE_EVENTS, Records
from netstack.network_spec import NetworkSpec
from tests.gateway.test_driver import MemoryLink

FULL = {
    "network": "enabled", "allow_net": [], "deny_all": False, "sinkhole": "null", "answers": "real",
    "pass_service_bindings": False, "strict_ech": False,
}  # fmt: skip


async def got(api: Served, path: str) -> object:
    answer = await api.http.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_flow_from_beginning_to_end(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        stream = await api.gateway.dial_guest(ADDRESS, ECHO)
        await stream.send_all(b"x" * 3000)
        data = b""
        while len(data) < 3000:
            data += await stream.receive_some()
        listed = await got(api, "/v1/flows?state=open&protocol=tcp")
        (flow,) = listed["flows"]
        assert listed["open"] == 1
        assert (flow["direction"], flow["state"], flow["guest"]) == ("in", "spliced", f"{ADDRESS}:{ECHO}")
        assert (flow["sent"], flow["received"]) == (3000, 3000)
        assert flow["verdict"] == {
            "verdict": "allowed", "step": "forward", "reason": "port-forward", "rule": "", "name": "",
            "name_source": "",
        }  # fmt: skip
        connection = flow["connection"]
        assert connection["state"] == "ESTABLISHED"
        assert connection["guest_window"] == 60_000
        assert connection["in_flight"] == connection["queued"] == connection["unread"] == 0
        assert 0 < connection["round_trip"] < 20
        assert connection["losses"] == {"timeouts": 0, "recoveries": 0, "repeats": 0, "duplicates": 0}
        assert await got(api, f"/v1/flows/{flow['id']}") == flow | {
            "seconds": pytest.approx(flow["seconds"], abs=20), "connection": connection
        }  # fmt: skip
        assert (await got(api, "/v1/flows?protocol=udp"))["flows"] == []
        assert (await got(api, "/v1/flows?guest=192.168.127.9"))["open"] == 0
        assert (await api.http.delete(f"/v1/flows/{flow['id']}")).status_code == 204
        with contextlib.suppress(trio.BrokenResourceError):
            assert await stream.receive_some() == b""
        await stream.aclose()
        await until(lambda: any("R" in segment.flags for segment in api.net.guest.heard))
        (over,) = (await got(api, "/v1/flows?state=closed"))["flows"]
        assert (over["id"], over["state"], over["ended"]) == (flow["id"], "closed", "closed by hand")
        assert over["ended_at"].endswith("Z")
        assert await got(api, f"/v1/flows/{flow['id']}") == over
        refused = await api.http.delete(f"/v1/flows/{flow['id']}")
        assert (refused.status_code, refused.json()) == (404, {"detail": f"flow {flow['id']}: no such flow is open"})
        assert (await api.http.get("/v1/flows/999")).status_code == 404


async def test_a_flow_that_never_opened_and_one_that_was_refused(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        with pytest.raises(ConnectionRefusedError):
            await api.gateway.dial_guest(ADDRESS, CLOSED)
        (failed,) = (await got(api, "/v1/flows"))["flows"]
        assert (failed["state"], failed["ended"]) == ("closed", "reset by guest")
        await api.net.guest.open(81)
        await until(lambda: api.gateway.driver.stack.judge.refusals)
        (refused,) = (await got(api, "/v1/flows?state=refused"))["flows"]
        assert (refused["guest"], refused["destination"]) == (f"{ADDRESS}:40000", f"{GATEWAY}:81")
        assert (refused["verdict"]["reason"], refused["told"], refused["total"]) == ("unserved-port", "reset", 1)
        counters = await got(api, "/v1/counters")
        assert counters["connections_failed"] == 1
        assert counters["refused"] == {"unserved-port": 1}


async def test_the_policy_is_read_back_as_it_is_enforced(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        judge = api.gateway.driver.stack.judge
        assert await got(api, "/v1/policy") == {
            "generation": 1, "access": "full", "killed": False, "spec": FULL, "warnings": [],
        }  # fmt: skip
        wanted = FULL | {"allow_net": ["pypi.org", "*.pythonhosted.org:443", "10.0.0.0/8"], "sinkhole": "nxdomain"}
        put = (await api.http.put("/v1/policy", json=wanted)).json()
        assert put == {"generation": 2, "access": "listed", "killed": False, "spec": wanted, "warnings": []}
        assert await got(api, "/v1/policy") == put
        assert [rule.text for rule in judge.policy.rules.rules] == wanted["allow_net"]
        assert judge.policy.settings == NetworkSpec.parse(wanted).policy()
        for body, said in (
            ({"allow_net": ["*.com"]}, "a wildcard needs a domain of two labels or more"),
            ({"allow_net": ["pypi.org"], "deny_all": True}, "contradicts"),
            ({"alow_net": []}, "alow_net"),
            ({"sinkhole": "hole"}, "sinkhole"),
        ):
            refused = await api.http.put("/v1/policy", json=body)
            assert (refused.status_code, said in refused.text) == (422, True), refused.text
            assert await got(api, "/v1/policy") == put, "what is refused changes nothing"
        warned = (await api.http.put("/v1/policy", json={"allow_net": ["127.0.0.1"]})).json()
        assert warned["warnings"] == [
            "allow_net rule '127.0.0.1' never matches: no flow goes there, whatever the rules"
        ]


async def test_the_kill_switch_and_its_end(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        assert (await api.http.post("/v1/policy/lift")).status_code == 409
        stream = await api.gateway.dial_guest(ADDRESS, ECHO)
        killed = (await api.http.post("/v1/policy/kill")).json()
        assert (killed["access"], killed["killed"], killed["spec"]) == ("nothing", True, FULL)
        assert (await got(api, "/v1/flows?state=open"))["flows"] == []
        with pytest.raises(PermissionError):
            await api.gateway.dial_guest(ADDRESS, ECHO)
        lifted = (await api.http.post("/v1/policy/lift")).json()
        assert (lifted["access"], lifted["killed"], lifted["generation"]) == ("full", False, 3)
        await stream.aclose()
        async with await api.gateway.dial_guest(ADDRESS, ECHO) as again:
            await again.send_all(b"alive")
            assert await again.receive_some() == b"alive"


async def test_leases_links_and_neighbours(tmp_path: Path) -> None:
    async with served(tmp_path) as api, await api.gateway.dial_guest(ADDRESS, ECHO):
        mac = "5a:94:ef:e4:0c:ee"
        assert await got(api, "/v1/leases") == [{"address": ADDRESS, "mac": mac, "static": True}]
        (neighbour,) = await got(api, "/v1/neighbours")
        assert (neighbour["address"], neighbour["mac"], neighbour["port"]) == (ADDRESS, mac, 0)
        (link,) = await got(api, "/v1/links")
        assert (link["name"], link["macs"], link["mtu"]) == (neighbour["link"], [mac], 1500)
        traits = api.gateway.driver.stack.settings.link
        told = {"segment": 1460, "window": traits.window, "queue_frames": traits.queue_frames}
        told |= {"largest_frame": MAX_FRAME, "segment_offload": 0, "verified_checksums": False, "batch_calls": True}
        assert {key: link[key] for key in told} == told
        own = api.gateway.driver.links[0].counters
        assert (link["counters"]["rx_frames"], link["counters"]["tx_bytes"]) == (own.rx_frames, own.tx_bytes)
        counters = await got(api, "/v1/counters")
        assert counters["links"]["rx_frames"] == own.rx_frames
        assert counters["flows_open"] == {"tcp": 1, "udp": 0, "icmp": 0}
        assert (counters["connections_opened"], counters["connections_established"]) == (1, 1)
        info = await got(api, "/v1/info")
        assert (info["gateway"], info["subnet"], info["api"]) == (GATEWAY, "192.168.127.0/24", [f"unix://{api.path}"])


async def test_what_is_switched_off_is_said(tmp_path: Path) -> None:
    asked = {"offload": False, "verify_checksums": True, "batch_calls": False}
    async with served(tmp_path, **asked) as api, await api.gateway.dial_guest(ADDRESS, ECHO) as stream:
        await stream.send_all(b"whole sums")
        assert await stream.receive_some() == b"whole sums"
        (link,) = await got(api, "/v1/links")
        told = {"largest_frame": 1518, "verified_checksums": True, "batch_calls": False}
        assert {key: link[key] for key in told} == told
        ours = json.loads((await api.ask("GET", "/stats")).body)["Links"][link["name"]]
        assert (ours["LargestFrame"], ours["VerifiedChecksums"], ours["BatchCalls"]) == (1518, 1, 0)


async def test_zones_are_put_whole(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        zones = api.gateway.driver.stack.dns.zones
        body = {"records": [{"name": "@", "ip": "10.0.0.1"}, {"regexp": "^n[0-9]$", "ip": "10.0.0.2"}]}
        made = await api.http.put("/v1/zones/Lab.Example.", json=body)
        assert (made.status_code, made.json()["name"]) == (200, "lab.example")
        reply = zones.answer(b"\x02n7\x03lab\x07example\x00", 1, 1)
        assert reply is not None
        assert reply.records.data.endswith(bytes((10, 0, 0, 2)))
        assert made.json() in await got(api, "/v1/zones")
        for name, spec in (("lab.example", {"records": [{"ip": "1.2.3.4"}]}), ("%20", {}), ("a..b", {})):
            refused = await api.http.put(f"/v1/zones/{name}", json=spec)
            assert refused.status_code == 422, name
        assert made.json() in await got(api, "/v1/zones"), "and it is as before"
        assert (await api.http.delete("/v1/zones/lab.example")).status_code == 204
        assert (await api.http.delete("/v1/zones/lab.example")).status_code == 404


async def test_forwards(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        wanted = {"local": "127.0.0.1:0", "remote": f"{ADDRESS}:{ECHO}", "protocol": "tcp"}
        made = await api.http.post("/v1/forwards", json=wanted)
        local = made.json()["local"]
        assert made.status_code == 201
        assert await got(api, "/v1/forwards") == [wanted | {"local": local}]
        twice = await api.http.post("/v1/forwards", json=wanted | {"local": local})
        assert (twice.status_code, twice.json()) == (409, {"detail": f"proxy already running for tcp on {local}"})
        assert (await api.http.post("/v1/forwards", json=wanted | {"remote": "guest:1"})).status_code == 422
        async with await trio.open_tcp_stream("127.0.0.1", int(local.rpartition(":")[2])) as stream:
            await stream.send_all(b"open")
            assert await stream.receive_some() == b"open"
            gone = await api.http.delete("/v1/forwards", params={"local": local, "close_flows": "true"})
            assert gone.status_code == 204
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        assert (await api.http.delete("/v1/forwards", params={"local": local})).status_code == 404


async def follow(api: Served, path: str) -> tuple[trio.SocketStream, bytes]:
    """A connection on which an answer without end comes, and its beginning: up to what is in its first piece."""
    stream = await api.connect()
    await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    data = b""
    while not data.partition(b"\r\n\r\n")[2]:
        data += await stream.receive_some()
    return stream, data


async def test_events_as_they_happen(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        events, data = await follow(api, "/v1/events?kinds=policy_replaced,flow_closed")
        async with events:
            assert b"content-type: text/event-stream" in data
            stream = await api.gateway.dial_guest(ADDRESS, ECHO)
            api.gateway.kill_network()
            while data.count(b"data: ") < 2:
                data += await events.receive_some()
            heard = [json.loads(line[6:]) for line in data.splitlines() if line.startswith(b"data: ")]
            assert [each["event"] for each in heard] == ["policy_replaced", "flow_closed"]
            assert (heard[0]["why"], heard[1]["direction"]) == ("kill-switch", "in")
            await stream.aclose()
            assert api.gateway.records is not None
            assert api.gateway.records.subscribers == 1
        await until(lambda: not api.gateway.records.subscribers)


async def test_followers_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(tmp_path) as api:
        await got(api, "/v1/info")
        monkeypatch.setattr(v1_events, "MAX_SUBSCRIBERS", 0)
        answer = await api.http.get("/v1/events")
        assert (answer.status_code, answer.json()) == (503, {"detail": "0 clients are following already"})
    assert MAX_SUBSCRIBERS > 0


async def test_who_does_not_keep_up_is_told_what_was_lost() -> None:
    kept = Records(clock=lambda: 0.0)
    with kept.subscribe() as slow:
        for number in range(QUEUE_EVENTS + 5):
            kept.note(FrameDropped("reason", number))
        events, lost = await slow.take()
        assert (len(events), lost) == (QUEUE_EVENTS, 5)
        kept.note(FrameDropped("reason", 0))
        events, lost = await slow.take()
        assert (len(events), lost, events[0].number) == (1, 0, QUEUE_EVENTS + 6)


def test_what_is_over_is_kept_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_FLOWS", 3)
    kept = Records(clock=lambda: 0.0)
    place, allowed = (bytes((10, 0, 0, 1)), 1), Verdict(ALLOW, "syn", "no-list")
    for number in range(5):
        kept.note(FlowClosed(number, "tcp", place, place, place, "finished", 0, 0, 0.0, allowed))
    assert [ended_flow(each).id for each in kept.all_over()] == [4, 3, 2]
    assert kept.over(1) is None


async def test_metrics_are_what_prometheus_reads(tmp_path: Path) -> None:
    async with served(tmp_path) as api, await api.gateway.dial_guest(ADDRESS, ECHO):
        answer = await api.http.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        families = {family.name: family for family in text_string_to_metric_families(answer.text)}
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for family in families.values()
            for sample in family.samples
        }
        own = api.gateway.driver.links[0]
        assert samples["netstack_link_frames_total", "from_guest", own.name] == own.counters.rx_frames
        assert samples["netstack_frames_total", "from_guest"] == own.counters.rx_frames
        assert samples["netstack_link_queue_frames", own.name] == own.capabilities.queue_frames
        assert samples["netstack_link_backlog_frames", own.name] == 0
        (info,) = (
            families["netstack_link"].samples if "netstack_link" in families else families["netstack_link_info"].samples
        )
        assert info.labels == {
            "link": own.name,
            "mtu": "1500",
            "largest_frame": str(own.capabilities.largest_frame),
            "segment_offload": "0",
            "batch_calls": str(own.capabilities.batch_calls).lower(),
            "verified_checksums": "false",
        }
        assert samples["netstack_flows", "tcp"] == 1
        assert samples["netstack_connections_opened_total",] == 1
        assert samples["netstack_policy_generation",] == 1


async def test_metrics_of_many_links_are_bounded_and_never_fall(tmp_path: Path) -> None:
    """Each has series of its own up to a bound; those of one name are one, and what is gone is in the totals."""
    async with served(tmp_path) as api:
        links = [MemoryLink("twice"), MemoryLink("twice"), *(MemoryLink(f"l{number}") for number in range(80))]
        async with trio.open_nursery() as nursery:
            for link in links[:3]:
                nursery.start_soon(api.gateway.serve_link, link)
            await until(lambda: len(api.gateway.driver.links) == 4)
            for link in links[3:]:
                nursery.start_soon(api.gateway.serve_link, link)
            await until(lambda: len(api.gateway.driver.links) == 83)
            for link in links:
                link.counters.rx_frames, link.counters.tx_bytes = 10, 1000
                link.counters.drop_received("too short", 2)
            families = list(text_string_to_metric_families((await api.http.get("/metrics")).text))
            for family in families:
                places = [(sample.name, *sample.labels.items()) for sample in family.samples]
                assert len(places) == len(set(places)), "a series twice is no exposition"
            values = {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}
            assert values["netstack_link_frames_total", "from_guest", "twice"] == 20
            assert values["netstack_link_bytes_total", "to_guest", "l0"] == 1000
            assert values["netstack_link_drop_reasons_total", "l0", "too short"] == 2
            assert len({place[2] for place in values if place[0] == "netstack_link_frames_total"}) == MAX_LINKS + 1
            assert values["netstack_link_dropped_total", "from_guest", OTHERS] == 2 * (83 - 1 - MAX_LINKS)
            assert ("netstack_link_backlog_frames", OTHERS) not in values
            for link in links:
                link.end(LinkClosed("gone"))
        answer = (await api.http.get("/metrics")).text
        assert 'link="l0"' not in answer
        total = api.gateway.driver.links[0].counters.rx_frames + 820
        assert f'netstack_frames_total{{direction="from_guest"}} {total:.1f}' in answer


async def test_the_description_is_complete(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        described = await got(api, "/v1/openapi.json")
        paths = {(method, path) for path, methods in described["paths"].items() for method in methods}
        for method, path in (
            ("get", "/v1/flows"), ("delete", "/v1/flows/{number}"), ("put", "/v1/policy"), ("post", "/v1/policy/kill"),
            ("get", "/v1/events"), ("post", "/v1/capture"), ("put", "/v1/shaping"), ("put", "/v1/impair"),
            ("post", "/v1/forwards"), ("get", "/v1/dns"), ("get", "/metrics"),
        ):  # fmt: skip
            assert (method, path) in paths
        assert described["openapi"].startswith("3.")
        assert "Flow" in described["components"]["schemas"]


async def test_a_capture_that_is_read_and_left(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        frames, data = await follow(api, "/v1/capture/stream")
        async with frames:
            assert b"\x0a\x0d\x0d\x0a" in data, "a section header"
            assert len(await got(api, "/v1/capture")) == 1
        await until(lambda: not len(api.gateway.captures))
