"""Both pollers against real sockets: they say the same."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from netstack.gateway.poller import READ, WRITE, Poller, PortablePoller

AnyPoller = Poller | PortablePoller


@pytest.fixture(params=[Poller, PortablePoller])
def poller(request: pytest.FixtureRequest) -> Iterator[AnyPoller]:
    made: AnyPoller = request.param()
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_what_is_asked_for_is_told(poller: AnyPoller, pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    descriptor = one.fileno()
    poller.register(descriptor, READ)
    assert poller.poll() == []
    poller.modify(descriptor, READ | WRITE)
    assert poller.poll() == [(descriptor, WRITE)]
    other.send(b"x")
    assert poller.poll() == [(descriptor, READ | WRITE)]
    poller.modify(descriptor, READ)
    assert poller.poll() == [(descriptor, READ)] == poller.poll(), "until it is read"
    assert select.select([poller], [], [], 0)[0] == [poller], "and it is readable itself"
    poller.unregister(descriptor)
    assert poller.poll() == []
    assert select.select([poller], [], [], 0)[0] == []


def test_an_end_is_something_to_read(poller: AnyPoller, pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    poller.register(one.fileno(), READ)
    other.close()
    ((descriptor, mask),) = poller.poll()
    assert descriptor == one.fileno()
    assert mask & READ


def test_a_refused_connection_is_told_to_who_waits_to_write(poller: AnyPoller) -> None:
    with socket.socket() as taken, socket.socket() as dialling:
        taken.bind(("127.0.0.1", 0))
        dialling.setblocking(False)
        poller.register(dialling.fileno(), WRITE)
        dialling.connect_ex(taken.getsockname())
        ((descriptor, mask),) = poller.poll()
        assert descriptor == dialling.fileno()
        assert mask & WRITE


def test_many(poller: AnyPoller) -> None:
    """More than one call takes from the kernel are all told in the end."""
    pipes = [os.pipe() for _ in range(300)]
    try:
        for reader, writer in pipes:
            poller.register(reader, READ)
            os.write(writer, b"x")
        told: set[int] = set()
        while ready := poller.poll():
            for descriptor, mask in ready:
                assert mask == READ
                told.add(descriptor)
                poller.unregister(descriptor)
        assert told == {reader for reader, _ in pipes}
    finally:
        for ends in pipes:
            for descriptor in ends:
                os.close(descriptor)


def test_what_cannot_be_watched_is_an_error(poller: AnyPoller) -> None:
    with Path(__file__).open() as file, pytest.raises(OSError, match="Operation not permitted"):
        poller.register(file.fileno(), READ)
