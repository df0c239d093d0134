"""gvproxy's paths: every endpoint, status code and text of its API, in the order of its clients' needs."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import trio
from api_client import Said, Served, asked_by_guest, served
from callee import ADDRESS, ECHO

from netstack.gateway.api import gvproxy

OK, TEXT = 200, "text/plain; charset=utf-8"


def errors(said: Said, status: int, text: str) -> None:
    """An error as http.Error writes it."""
    assert said == (status, f"{text}\n", TEXT, True)


# (method, path, body, status, text) of everything that is answered with an error.
ERRORS = [
    ("GET", "/", None, 404, "404 page not found"),
    ("GET", "/nothing", None, 404, "404 page not found"),
    ("GET", "/services/", None, 404, "404 page not found"),
    ("GET", "/services/forwarder/expose", None, 400, "post only"),
    ("PUT", "/services/forwarder/unexpose", "{}", 400, "post only"),
    ("DELETE", "/services/dns/add", None, 400, "post only"),
    ("POST", "/services/forwarder/expose", "", 400, "EOF"),
    ("POST", "/services/forwarder/expose", "  \n", 400, "EOF"),
    ("POST", "/services/forwarder/expose", "x", 400, "invalid character 'x' looking for beginning of value"),
    ("POST", "/services/forwarder/unexpose", "{", 400, "unexpected EOF"),
    ("POST", "/services/forwarder/expose", "{}", 400, "missing port in address"),
    ("POST", "/services/forwarder/expose", '{"remote":"nix"}', 400, "address nix: missing port in address"),
    ("POST", "/services/forwarder/expose", '{"remote":":80"}', 400, "address @: missing port in address"),
    (
        "POST", "/services/forwarder/expose", '{"local":5}', 400,
        "json: cannot unmarshal number into Go struct field ExposeRequest.local of type string",
    ),
    (
        "POST", "/services/forwarder/expose", "[]", 400,
        "json: cannot unmarshal array into Go value of type types.ExposeRequest",
    ),
    ("POST", "/services/forwarder/expose", '{"protocol":"TCP"}', 500, "unknown protocol TCP"),
    (
        "POST", "/services/forwarder/expose", '{"protocol":"npipe"}', 500,
        "named pipes are not supported by this platform",
    ),
    (
        "POST", "/services/forwarder/expose", '{"local":"127.0.0.1:1","remote":"a:b:c"}', 400,
        "address a:b:c: too many colons in address",
    ),
    (
        "POST", "/services/forwarder/expose", '{"local":"127.0.0.1:0","remote":"192.168.127.2:99999"}', 500,
        'strconv.ParseUint: parsing "99999": value out of range',
    ),
    (
        "POST", "/services/forwarder/expose", '{"local":"19007","remote":"192.168.127.2:80"}', 500,
        "listen tcp: address 19007: missing port in address",
    ),
    (
        "POST", "/services/forwarder/expose", '{"local":"192.0.2.77:1","remote":"192.168.127.2:80"}', 500,
        "listen tcp 192.0.2.77:1: bind: cannot assign requested address",
    ),
    ("POST", "/services/forwarder/unexpose", '{"local":"127.0.0.1:1"}', 500, "proxy not found"),
    ("POST", "/services/forwarder/unexpose", "{}", 500, "proxy not found"),
    ("POST", "/services/dns/add", "", 400, "EOF"),
    ("POST", "/services/dns/add", "{}", 400, "a zone needs a Name: one without would answer every question"),
    ("POST", "/services/dns/add", '{"Name":"."}', 400, "a zone needs a Name: one without would answer every question"),
    ("POST", "/services/dns/add", '{"Name":"a.","DefaultIP":"x"}', 400, "invalid IP address: x"),
    (
        "POST", "/services/dns/add", '{"Name":"a.","Records":[{"Name":"b","IP":"1.2.3"}]}', 400,
        "invalid IP address: 1.2.3",
    ),
    (
        "POST", "/services/dns/add", '{"Name":"a.","Records":[{"Name":"b","IP":"2001:db8::1"}]}', 400,
        "invalid IP address: 2001:db8::1: zones hold IPv4 addresses",
    ),
    ("POST", "/services/dns/add", '{"Name":"a.","Records":[{"Name":"b"}]}', 400, "record 'b': it needs an IP"),
    (
        "POST", "/services/dns/add", '{"Name":"a.","Records":[{"IP":"1.2.3.4"}]}', 400,
        "record with IP 1.2.3.4: it needs a Name or a Regexp",
    ),
    ("POST", "/services/dns/remove", '{"Name":"nix."}', 500, "zone not found"),
    ("POST", "/services/dns/remove/record", '{"Name":"nix.","Records":[{"Name":"a"}]}', 500, "record not found"),
]  # fmt: skip


async def test_what_is_answered_with_an_error(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        before = await api.ask("GET", "/services/dns/all")
        for method, path, body, status, text in ERRORS:
            errors(await api.ask(method, path, body), status, text)
        refused = await api.ask("POST", "/services/dns/add", '{"Name":"a.","Records":[{"Regexp":"(","IP":"1.2.3.4"}]}')
        assert (refused.status, refused.body.startswith("error parsing regexp: "), refused.nosniff) == (400, True, True)
        assert await api.ask("GET", "/services/dns/all") == before, "what is refused changes nothing"
        assert (await api.ask("GET", "/services/forwarder/all")).body == "[]\n"
        redirected = await api.ask("GET", "/services")
        assert (redirected.status, redirected.body) == (307, '<a href="/services/">Temporary Redirect</a>.\n\n')
        assert (await api.ask("POST", "/services", "x")).status == 307


async def test_what_is_only_looked_at_is_told_whatever_the_method(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        for path in (
            "/leases",
            "/services/dhcp/leases",
            "/cam",
            "/stats",
            "/services/forwarder/all",
            "/services/dns/all",
        ):
            for method in ("GET", "POST", "DELETE", "PATCH"):
                said = await api.ask(method, path, "what is here is not read" if method == "POST" else None)
                assert (said.status, said.content_type, said.nosniff) == (OK, TEXT, False), path
                assert said.body.endswith("\n")
                json.loads(said.body)
        leases = json.loads((await api.ask("GET", "/leases")).body)
        assert leases == {"192.168.127.1": "5a:94:ef:e4:0c:dd", "192.168.127.2": "5a:94:ef:e4:0c:ee"}
        assert await api.ask("GET", "/leases") == await api.ask("GET", "/services/dhcp/leases")


async def test_cam_has_the_guest_and_its_port(tmp_path: Path) -> None:
    async with served(tmp_path) as api, await api.gateway.dial_guest(ADDRESS, ECHO):
        assert json.loads((await api.ask("GET", "/cam")).body) == {"5a:94:ef:e4:0c:ee": 0}


async def test_forwards_as_gvproxy_makes_them(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        local = f"127.0.0.1:{port}"
        # Keys in any case, an unknown one, and bytes behind the object: all of that Go's decoder takes.
        body = f'{{"LOCAL":"{local}","Remote":"{ADDRESS}:{ECHO}","else":1}} trailing'
        assert await api.ask("POST", "/services/forwarder/expose", body) == (OK, "", "", False)
        errors(
            await api.ask("POST", "/services/forwarder/expose", body), 500, f"proxy already running for tcp on {local}"
        )
        udp = f'{{"local":"{local}","remote":"{ADDRESS}:{ECHO}","protocol":"udp"}}'
        assert (await api.ask("POST", "/services/forwarder/expose", udp)).status == OK
        listed = json.loads((await api.ask("GET", "/services/forwarder/all")).body)
        assert listed == [
            {"local": local, "remote": f"{ADDRESS}:{ECHO}", "protocol": "tcp"},
            {"local": local, "remote": f"{ADDRESS}:{ECHO}", "protocol": "udp"},
        ]
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"through")
            assert await stream.receive_some() == b"through"
        for protocol in ("tcp", "udp"):
            gone = f'{{"local":"{local}","protocol":"{protocol}"}}'
            assert await api.ask("POST", "/services/forwarder/unexpose", gone) == (OK, "", "", False)
            errors(await api.ask("POST", "/services/forwarder/unexpose", gone), 500, "proxy not found")
        assert (await api.ask("GET", "/services/forwarder/all")).body == "[]\n"


async def test_port_0_is_answered_with_the_port(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        body = f'{{"local":"127.0.0.1:0","remote":"{ADDRESS}:{ECHO}"}}'
        made = json.loads((await api.ask("POST", "/services/forwarder/expose", body)).body)
        host, port = made["local"].split(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"


async def test_unix_forwards_never_delete_a_file(tmp_path: Path) -> None:
    """Defect 9 of gvproxy: there, whatever is at `local` is deleted."""
    (tmp_path / "precious").write_text("kept")
    async with served(tmp_path) as api:
        body = json.dumps(
            {"local": str(tmp_path / "precious"), "remote": f"tcp://{ADDRESS}:{ECHO}", "protocol": "unix"}
        )
        said = await api.ask("POST", "/services/forwarder/expose", body)
        assert (said.status, "not a socket" in said.body) == (500, True)
        body = json.dumps({"local": str(tmp_path / "fresh"), "remote": f"tcp://{ADDRESS}:{ECHO}", "protocol": "unix"})
        assert (await api.ask("POST", "/services/forwarder/expose", body)).status == OK
        async with await trio.open_unix_socket(str(tmp_path / "fresh")) as stream:
            await stream.send_all(b"by a path")
            assert await stream.receive_some() == b"by a path"
    assert (tmp_path / "precious").read_text() == "kept"
    assert not (tmp_path / "fresh").exists()


async def test_a_host_name_as_remote_is_an_answer(tmp_path: Path) -> None:
    """Defect 9 of gvproxy: there, the handler panics and the connection is dropped."""
    async with served(tmp_path) as api:
        said = await api.ask("POST", "/services/forwarder/expose", '{"local":"127.0.0.1:0","remote":"guest:80"}')
        assert (said.status, said.nosniff) == (400, True)


async def test_nobody_is_at_port_0_of_a_guest(tmp_path: Path) -> None:
    """gvproxy accepts it, and every connection to the forward fails."""
    async with served(tmp_path) as api:
        text = f"invalid remote addr '{ADDRESS}:0': expected a port from 1 to 65535"
        for protocol in ("tcp", "udp"):
            body = {"local": "127.0.0.1:0", "remote": f"{ADDRESS}:0", "protocol": protocol}
            said = await api.ask("POST", "/services/forwarder/expose", json.dumps(body))
            assert (said.status, said.body, said.nosniff) == (400, f"{text}\n", True)
        answer = await api.http.post("/v1/forwards", json=body)
        assert (answer.status_code, answer.json()) == (422, {"detail": text})
        async with asked_by_guest(api) as http:
            answer = await http.post("/services/forwarder/expose", content='{"local":":0","remote":":0"}')
            assert (answer.status_code, answer.text) == (400, f"{text}\n")
        assert json.loads((await api.ask("GET", "/services/forwarder/all")).body) == []


async def test_zones_grow_as_gvproxys_clients_expect(tmp_path: Path) -> None:
    async def zone(api: Served, name: str) -> dict[str, object]:
        return next(
            each for each in json.loads((await api.ask("GET", "/services/dns/all")).body) if each["Name"] == name
        )

    async def add(api: Served, body: str) -> None:
        assert await api.ask("POST", "/services/dns/add", body) == (OK, "", "", False)

    async with served(tmp_path) as api:
        await add(api, '{"Name":"dynamic.testing.","DefaultIP":"192.168.127.254"}')
        await add(api, '{"Name":"testing.","Records":[{"Name":"gateway","IP":"192.168.127.1"}]}')
        assert await zone(api, "dynamic.testing.") == {
            "Name": "dynamic.testing.", "Records": None, "DefaultIP": "192.168.127.254",
        }  # fmt: skip
        # crc adds records one by one; the newest address of a name is the answer.
        await add(api, '{"name":"TESTING","records":[{"name":"host","ip":"1.1.1.1"},{"Regexp":"^a","IP":"2.2.2.2"}]}')
        await add(api, '{"Name":"testing.","Records":[{"Name":"host","IP":"3.3.3.3"}]}')
        assert await zone(api, "testing.") == {
            "Name": "testing.",
            "Records": [
                {"Name": "host", "IP": "3.3.3.3"},
                {"Name": "", "IP": "2.2.2.2", "Regexp": "^a"},
                {"Name": "gateway", "IP": "192.168.127.1"},
            ],
            "DefaultIP": "",
        }
        # gvproxy's own test: records added without a DefaultIP take it away.
        await add(api, '{"Name":"dynamic.testing.","Records":[{"Name":"a","IP":"4.4.4.4"}]}')
        assert (await zone(api, "dynamic.testing."))["DefaultIP"] == ""
        body = '{"Name":"testing.","Records":[{"Name":"HOST"},{"Regexp":"^a"}]}'
        assert (await api.ask("POST", "/services/dns/remove/record", body)).status == OK
        assert (await zone(api, "testing."))["Records"] == [{"Name": "gateway", "IP": "192.168.127.1"}]
        assert (await api.ask("POST", "/services/dns/remove", '{"Name":"testing"}')).status == OK
        assert "testing." not in [each["Name"] for each in json.loads((await api.ask("GET", "/services/dns/all")).body)]
        for name in ("containers.internal", "docker.internal", "dynamic.testing"):
            assert (await api.ask("POST", "/services/dns/remove", json.dumps({"Name": name}))).status == OK
        assert (await api.ask("GET", "/services/dns/all")).body == "null\n"


GUEST_ERRORS = [
    ("/leases", None, 404, "404 page not found"),
    ("/stats", None, 404, "404 page not found"),
    ("/connect", None, 404, "404 page not found"),
    ("/tunnel?ip=192.168.127.2&port=7", None, 404, "404 page not found"),
    ("/services/dns/add", '{"Name":"a."}', 404, "404 page not found"),
    ("/v1/policy", None, 404, "404 page not found"),
    (
        "/services/forwarder/expose", {"local": "/tmp/x", "remote": "tcp://192.168.127.2:7", "protocol": "unix"}, 403,
        "from inside the network only tcp and udp can be exposed, not unix",
    ),
    (
        "/services/forwarder/expose", {"local": "192.0.2.1:80", "remote": ":7"}, 403,
        "from inside the network only loopback addresses of the host can be exposed, not 192.0.2.1",
    ),
    (
        "/services/forwarder/expose", {"local": "localhost.:80", "remote": ":7"}, 403,
        "from inside the network only loopback addresses of the host can be exposed, not localhost.",
    ),
    (
        "/services/forwarder/expose", {"local": "[::1%lo]:80", "remote": ":7"}, 403,
        "from inside the network only loopback addresses of the host can be exposed, not ::1%lo",
    ),
    (
        "/services/forwarder/expose", {"local": "127.0.0.1:0", "remote": "192.168.127.3:7"}, 403,
        "a guest can only forward to itself (192.168.127.2), not to 192.168.127.3",
    ),
    (
        "/services/forwarder/expose", {"local": "127.0.0.1:0", "remote": "127.0.0.1:22"}, 403,
        "a guest can only forward to itself (192.168.127.2), not to 127.0.0.1",
    ),
    (
        "/services/forwarder/expose", {"local": "nix", "remote": ":7"}, 500,
        "listen tcp: address nix: missing port in address",
    ),
    ("/services/forwarder/unexpose", {"local": "127.0.0.1:1"}, 500, "proxy not found"),
]  # fmt: skip


@pytest.mark.parametrize(
    "rest", [b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b'Content-Length: 9\r\n\r\n{"lo'], ids=["chunks", "length"]
)
async def test_a_body_that_is_cut_short_is_nothing_to_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rest: bytes
) -> None:
    """A traceback for each of a guest's requests would fill the host's disk."""
    async with served(tmp_path) as api:
        async with await api.connect() as stream:
            await stream.send_all(b"POST /services/forwarder/expose HTTP/1.1\r\nHost: x\r\n" + rest)
            await stream.send_eof()
            async for _ in stream:
                pass
        assert (await api.ask("GET", "/leases")).status == OK
    assert "Traceback" not in caplog.text


async def test_a_guest_may_forward_to_itself_and_no_more(tmp_path: Path) -> None:
    """Defect 9 of gvproxy, and conformance H: the API inside the network."""
    async with served(tmp_path, guest_api=True, api_token="secret") as api:
        mine = f'{{"local":"127.0.0.1:0","remote":"{ADDRESS}:{ECHO}"}}'
        said = await api.ask("POST", "/services/forwarder/expose", mine, Authorization="Bearer secret")
        assert said.status == OK
        operators = json.loads(said.body)["local"]
        async with asked_by_guest(api) as http:
            for path, body, status, text in GUEST_ERRORS:
                content = body if body is None or isinstance(body, str) else json.dumps(body)
                answer = await http.post(path, content=content)
                assert (answer.status_code, answer.text) == (status, f"{text}\n"), path
            made = await http.post("/services/forwarder/expose", content=f'{{"local":":0","remote":":{ECHO}"}}')
            local = made.json()["local"]
            assert local.startswith("127.0.0.1:"), "every interface is narrowed to the loopback"
            assert made.json()["remote"] == f"{ADDRESS}:{ECHO}"
            async with await trio.open_tcp_stream("127.0.0.1", int(local.split(":")[1])) as stream:
                await stream.send_all(b"podman")
                assert await stream.receive_some() == b"podman"
            assert len((await http.get("/services/forwarder/all")).json()) == 2
            async with asked_by_guest(api, "192.168.127.3") as other:
                assert (await other.get("/services/forwarder/all")).json() == []
                refused = await other.post("/services/forwarder/unexpose", content=json.dumps({"local": local}))
                assert (refused.status_code, refused.text) == (500, "proxy not found\n")
            again = await http.post("/services/forwarder/expose", content=json.dumps({"local": local, "remote": ":9"}))
            assert (again.status_code, again.text) == (500, f"proxy already running for tcp on {local}\n")
            kept = await http.post("/services/forwarder/unexpose", content=json.dumps({"local": operators}))
            assert (kept.status_code, kept.text) == (403, "a guest can only end forwards that it asked for itself\n")
            port = local.split(":")[1]
            gone = await http.post("/services/forwarder/unexpose", content=json.dumps({"local": f":{port}"}))
            assert (gone.status_code, gone.text) == (OK, "")


async def test_who_asked_for_a_forward_is_asked_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest's forward that the operator replaces is the operator's; and the operator may end a guest's."""
    monkeypatch.setattr(gvproxy, "MAX_GUEST_FORWARDS", 2)
    async with served(tmp_path, guest_api=True) as api, asked_by_guest(api) as http:

        async def asks(path: str, **body: str) -> int:
            return (await http.post(f"/services/forwarder/{path}", content=json.dumps(body))).status_code

        for _ in range(4):
            await api.gateway.forwards.expose("tcp", "127.0.0.1:0", f"{ADDRESS}:{ECHO}")
        made = await http.post("/services/forwarder/expose", content=json.dumps({"local": ":0", "remote": f":{ECHO}"}))
        local = made.json()["local"]
        await api.gateway.forwards.unexpose("tcp", local)
        await api.gateway.forwards.expose("tcp", local, f"{ADDRESS}:{ECHO}")
        assert await asks("unexpose", local=local) == 403
        assert len(api.gateway.forwards.listing()) == 5, "all the operator's"
        assert [await asks("expose", local=":0", remote=":7", protocol="udp") for _ in range(3)] == [OK, OK, 500]


async def test_a_token_is_wanted_by_every_path(tmp_path: Path) -> None:
    async with served(tmp_path, api_token="secret") as api:
        for path in ("/leases", "/v1/flows", "/metrics", "/nothing", "/v1/openapi.json"):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
                errors(await api.ask("GET", path, **headers), 401, "unauthorized")
        assert (await api.ask("GET", "/leases", Authorization="Bearer secret")).status == OK
        for path in ("/connect", f"/tunnel?ip={ADDRESS}&port={ECHO}"):
            async with await api.connect() as stream:
                await stream.send_all(f"POST {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                head = await stream.receive_some()
                assert head.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
                assert b"WWW-Authenticate: Bearer\r\n" in head


async def test_the_socket_is_its_owners_only(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "api.sock"))
    async with served(tmp_path) as api:
        assert api.path.stat().st_mode & 0o777 == 0o600, "and a dead one is replaced"
