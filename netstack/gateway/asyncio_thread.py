"""An asyncio loop in a thread of its own, for libraries that need one. Trio waits for it as for anything else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import trio

log = logging.getLogger(__name__)

T = TypeVar("T")

END_SECONDS: Final = 3.0
"""How long a coroutine that was cancelled, or the end of the loop, is waited for."""


class AsyncioThread:
    """Started at the first use. `close` has to be awaited at the end."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    async def run(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: object) -> T:
        """Run a coroutine function in the loop to its end, and return or raise what it does.

        Cancellation is passed on, and its end waited for. Raises OSError (ECANCELED) when `close` has ended it.
        """
        loop = self._loop or self._start()
        token = trio.lowlevel.current_trio_token()
        over = trio.Event()
        tasks: list[asyncio.Task[T]] = []

        def tell(_task: object) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(over.set)

        def begin() -> None:
            tasks.append(loop.create_task(function(*arguments)))
            tasks[0].add_done_callback(tell)

        loop.call_soon_threadsafe(begin)
        try:
            await over.wait()
        except trio.Cancelled:
            loop.call_soon_threadsafe(_cancel_first, tasks)  # it may not have begun
            with trio.CancelScope(shield=True, deadline=trio.current_time() + END_SECONDS):
                await over.wait()
            raise
        if tasks[0].cancelled():
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        return tasks[0].result()

    def _start(self) -> asyncio.AbstractEventLoop:
        loop = self._loop = asyncio.new_event_loop()
        loop.set_exception_handler(_tell)
        self._thread = threading.Thread(target=self._run_loop, args=(loop,), name="asyncio", daemon=True)
        self._thread.start()
        return loop

    @staticmethod
    def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    async def close(self) -> None:
        """End what runs there, and the thread. Waits for END_SECONDS at most."""
        loop, thread, self._loop = self._loop, self._thread, None
        if loop is None or thread is None:
            return
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 2 * END_SECONDS):
            asyncio.run_coroutine_threadsafe(self._end(loop), loop)
            await trio.to_thread.run_sync(thread.join, END_SECONDS)

    async def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=END_SECONDS / 2)
        finally:
            loop.stop()


def _cancel_first(tasks: list[asyncio.Task[T]]) -> None:
    tasks[0].cancel()


def _tell(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    log.debug("asyncio: %s: %r", context.get("message"), context.get("exception"))
