"""Fixtures of the guest tests. What a test needs of the machine its marker says: see tests/conftest.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .lab import Lab
from .network import Network, World, start_network
from .open_internet import OpenInternet

SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
LINKS = ("tap",) if os.environ.get("GUEST_STANDIN") else ("tap", "dgram")
_networks: list[Network] = []


@pytest.fixture(scope="session", autouse=True)
def _search_path() -> Iterator[None]:
    """ip, tc and udhcpc live in sbin directories, which a user's PATH may leave out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{os.environ['PATH']}:{SBIN}")
        yield


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The host namespace, its servers, and the Internet behind."""
    with Lab(tmp_path_factory.mktemp("guest")) as lab:
        yield World(lab)


@pytest.fixture(scope="session")
def internet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenInternet]:
    """An Internet of public addresses, for guests under a list. Each module has its own guests there."""
    with Lab(tmp_path_factory.mktemp("internet")) as lab:
        made = OpenInternet(lab)
        yield made
        made.witness.close()


@pytest.fixture(scope="module", params=LINKS)
def _shared(request: pytest.FixtureRequest, world: World) -> Iterator[Callable[[], Network]]:
    """Gives the module's network, and a new one should netstack have died in a test."""
    running: list[Network] = []

    def get() -> Network:
        if not running:
            running.append(start_network(world, request.param))
            _networks.append(running[0])
        elif not running[0].gateway.process.running:
            _networks.remove(running[0])
            running.pop().discard()
            return get()
        return running[0]

    yield get
    for network in running:
        _networks.remove(network)
        network.close()


@pytest.fixture
def network(_shared: Callable[[], Network]) -> Iterator[Network]:
    """A guest with its address, shared by the tests of a module: once on a TAP, once on a unix datagram socket."""
    made = _shared()
    yield made
    assert made.gateway.process.running, f"netstack died in this test:\n{made.gateway.process.log[-8000:]}"


@pytest.fixture
def fresh(world: World) -> Iterator[Callable[..., Network]]:
    """`fresh("dgram", options=[...])`: networks for one test, as `start_network` makes them."""
    mine: list[Network] = []

    def start(link: str, **options: object) -> Network:
        made = start_network(world, link, **options)
        mine.append(made)
        _networks.append(made)
        return made

    yield start
    for made in mine:
        _networks.remove(made)
        made.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Add the end of each running gateway's output to the report of a failed test."""
    report = yield
    if report.failed:
        for network in _networks:
            log = network.gateway.process.log
            report.sections.append((f"netstack on {network.link}, pid {network.gateway.process.pid}", log[-8000:]))
    return report


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A directory that programs of other users can reach too."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.geteuid() and directory != Path("/tmp"):
            directory.chmod(directory.stat().st_mode | 0o111)
    return tmp_path
