"""A guest that is the kernel of a fresh namespace, and commands in it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import trio

from guest_iface.namespaces import GuestConfiguration, GuestNamespace
from guest_iface.tap import TapLink
from tests.guest_iface.conftest import DEADLINE, running

GUEST_MAC = bytes.fromhex("5a94efe40cee")
CONFIGURATION = GuestConfiguration(
    address=b"\xc0\xa8\x7f\x02",
    prefix_length=24,
    gateway=b"\xc0\xa8\x7f\x01",
    dns=b"\xc0\xa8\x7f\x01",
    search=("example.test", "test"),
)
PROJECT = Path(__file__).parents[2]


@contextlib.contextmanager
def guest_namespace(
    mtu: int = 1500,
    configuration: GuestConfiguration | None = CONFIGURATION,
    offload_with: bytes | None = None,
) -> Iterator[GuestNamespace]:
    """A namespace for the time of the block."""
    namespace = GuestNamespace.create(mac=GUEST_MAC, mtu=mtu, configuration=configuration, offload_with=offload_with)
    try:
        yield namespace
    finally:
        namespace.close()


@contextlib.asynccontextmanager
async def guest_and_tap(
    mtu: int = 1500, offload_with: bytes | None = None
) -> AsyncIterator[tuple[GuestNamespace, TapLink]]:
    """A namespace and its link, running."""
    with guest_namespace(mtu, offload_with=offload_with) as namespace:
        tap = namespace.open_tap()
        async with running(tap):
            yield namespace, tap


async def output_of(namespace: GuestNamespace, *arguments: str, **options: object) -> tuple[int, str]:
    """A command's exit status and what it printed."""
    read_fd, write_fd = os.pipe()
    with os.fdopen(read_fd, errors="surrogateescape") as output:
        try:
            with trio.fail_after(DEADLINE):
                status = await namespace.run_command(arguments, stdout=write_fd, stderr=write_fd, **options)  # type: ignore[arg-type]  # passed on as they come
        finally:
            os.close(write_fd)
        return status, output.read()


def command(script: str, *arguments: str) -> list[str]:
    """A Python script as a command line."""
    return [sys.executable, "-I", "-S", "-c", script, *arguments]
