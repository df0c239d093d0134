"""Signals that a gateway obeys: to end, to read the policy again, the kill switch, and what log rotation sends."""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from netstack.gateway.run_command import Gateway

log = logging.getLogger(__name__)

POLICY_SIGNALS: Final = (signal.SIGUSR1, signal.SIGUSR2)


async def obey_policy_signals(signals: AsyncIterator[int], gateway: Gateway) -> None:
    """SIGUSR2 is the kill switch; SIGUSR1 reads the policy again, and lifts it. Obeyed until cancelled."""
    async with trio.open_nursery() as nursery:
        async for number in signals:
            _obey_policy_signal(number, gateway, nursery)


def _obey_policy_signal(number: int, gateway: Gateway, nursery: trio.Nursery) -> None:
    if number == signal.SIGUSR2:
        gateway.kill_network()
    else:
        nursery.start_soon(gateway.reload_policy)


async def obey(signals: AsyncIterator[int], gateway: Gateway) -> None:
    """SIGTERM and SIGINT end the gateway, SIGHUP too where it has no file to look at again; others are the policy's."""
    async with trio.open_nursery() as nursery:
        async for number in signals:
            if number in POLICY_SIGNALS:
                _obey_policy_signal(number, gateway, nursery)
            elif number != signal.SIGHUP or not _refresh(gateway, nursery):
                log.info("%s: ending", signal.Signals(number).name)
                gateway.stop()


def _refresh(gateway: Gateway, nursery: trio.Nursery) -> bool:
    """What SIGHUP asks of a gateway with files: read the policy's, open the events' again. False if it has none.

    A log file is one too; it is opened again by itself.
    """
    reopened = gateway.reopen_events()
    if gateway.killed:  # log rotation sends SIGHUP too, and must not open what somebody has closed
        log.warning("SIGHUP: the kill switch stays on until SIGUSR1")
    elif gateway.has_policy_file:
        nursery.start_soon(gateway.reload_policy)
    return reopened or gateway.has_policy_file or gateway.config.log_file is not None
