"""Bulk data, whole: over a perfect link, and over one that loses, doubles and reorders frames in both directions."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from . import payload
from .impairment import damaged, impair
from .network import PUBLIC, TAP, Network

pytestmark = pytest.mark.guest("ip", "openssl", "curl")
BIG = 200 << 20
MEDIUM = 20 << 20


@pytest.fixture(scope="module")
def body_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A body of BIG bytes to upload; a smaller one is its beginning."""
    path = tmp_path_factory.mktemp("body") / "body"
    with path.open("wb") as file:
        file.writelines(payload.body(BIG))
    return path


def download(network: Network, size: int, scheme: str = "http") -> str:
    """Fetch a body with curl; the digest of what arrived."""
    ca = network.world.certificate
    url = f"{scheme}://{PUBLIC}/bytes/{size}"
    done = network.guest.sh(f"curl -sSf --cacert {ca} {url} | sha256sum", timeout=150)
    assert not done.stderr, done.stderr
    return done.stdout.split()[0]


def upload(network: Network, body: Path, size: int, scheme: str = "http") -> list[str]:
    """Send a body with curl; digest and size of what the server got."""
    url = f"{scheme}://{PUBLIC}/upload"
    if size == body.stat().st_size:
        return network.curl("-T", str(body), url, timeout=150).split()
    part = body.with_name(f"part-{size}")
    if not part.exists():
        with part.open("wb") as file:
            file.writelines(payload.body(size))
    return network.curl("-T", str(part), url, timeout=150).split()


def test_200_megabytes_to_the_guest(network: Network) -> None:
    assert download(network, BIG) == payload.sha256(BIG)


def test_200_megabytes_from_the_guest(network: Network, body_file: Path) -> None:
    assert upload(network, body_file, BIG) == [payload.sha256(BIG), str(BIG)]


def test_https_both_ways(network: Network, body_file: Path) -> None:
    assert download(network, MEDIUM, "https") == payload.sha256(MEDIUM)
    assert upload(network, body_file, MEDIUM, "https") == [payload.sha256(MEDIUM), str(MEDIUM)]


def test_both_ways_at_once(network: Network, body_file: Path) -> None:
    going_up = network.guest.spawn("curl", "curl", "-sSf", "-T", str(body_file), f"http://{PUBLIC}/upload")
    assert download(network, BIG // 4) == payload.sha256(BIG // 4)
    assert going_up.wait(150) == 0
    assert going_up.log.split() == [payload.sha256(BIG), str(BIG)]


def test_200_downloads_in_parallel(network: Network, tmp_path: Path) -> None:
    """Each of its own size, so that none can pass for another."""
    sizes = range(200_000, 200_200)
    urls = f"http://{PUBLIC}/bytes/[{sizes.start}-{sizes.stop - 1}]"
    network.curl("--parallel", "--parallel-immediate", "--parallel-max", "200", "-o", f"{tmp_path}/#1", urls)
    for size in sizes:
        assert hashlib.sha256((tmp_path / str(size)).read_bytes()).hexdigest() == payload.sha256(size)


@pytest.mark.parametrize("link", ["dgram", "stream"])
@pytest.mark.parametrize("damage", ["", "loss=3", "reorder=25"], ids=["whole", "loss", "reorder"])
def test_frames_of_64_kib(fresh, body_file: Path, link: str, damage: str) -> None:
    """The largest MTU there is: text goes out as it was read, in pieces, and comes in one frame."""
    network = fresh(link, options=["--mtu", "65520"], bridge=["--to-guest", damage, "--seed", "7"] if damage else [])
    network.guest.run("ip", "link", "set", TAP, "mtu", "65520")
    size = MEDIUM + 12_345
    assert download(network, size) == payload.sha256(size)
    assert download(network, size, "https") == payload.sha256(size)
    assert upload(network, body_file, size) == [payload.sha256(size), str(size)]


@pytest.mark.guest("tc")
@pytest.mark.parametrize("kind", ["loss", "duplicate", "reorder"])
def test_damaged_tap(fresh, body_file: Path, record_property, kind: str) -> None:
    """3 % loss, 2 % duplicates, or 25 % of the packets late, each way, made by the guest's kernel on the TAP."""
    network = fresh("tap")
    record_property("egress damaged by", impair(network.guest, TAP, kind))
    for _ in range(8):
        assert download(network, MEDIUM) == payload.sha256(MEDIUM)
        assert upload(network, body_file, MEDIUM) == [payload.sha256(MEDIUM), str(MEDIUM)]
        if damaged(network.guest, TAP):  # of some hundred frames of 64 KiB, it may have been none
            return
    pytest.fail(f"no frame was hit by {kind} in eight rounds")


@pytest.mark.parametrize("words", ["loss=3", "duplicate=2", "reorder=25", "loss=1,duplicate=1,reorder=5"])
@pytest.mark.parametrize("direction", ["--to-guest", "--from-guest"])
def test_damaged_datagram_link(fresh, body_file: Path, words: str, direction: str) -> None:
    """The same by the bridge, one direction at a time and the same frames each run."""
    network = fresh("dgram", bridge=[direction, words, "--seed", "7"])
    assert download(network, MEDIUM) == payload.sha256(MEDIUM)
    assert upload(network, body_file, MEDIUM) == [payload.sha256(MEDIUM), str(MEDIUM)]
