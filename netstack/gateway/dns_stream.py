"""DNS over TCP (RFC 7766) for who reaches the gateway's port 53 from this side: the engine's server on a stream."""

from __future__ import annotations

from collections.abc import Callable

import trio

from netstack.engine.stack import Stack


async def serve_dns(stack: Stack, flush: Callable[[], None], stream: trio.SocketStream, _client: object) -> None:
    """Answer questions until the client has ended its side and has every answer, or says what is no DNS."""
    news = trio.Event()
    ended = False

    def woken(_flow: int) -> None:
        news.set()

    async def listen() -> None:
        nonlocal ended
        async for data in stream:
            session.receive(bytes(data), trio.current_time())
            flush()
            news.set()
            await said.wait()  # who does not read its answers is not heard further
        ended = True
        news.set()

    session = stack.dns_session(stack.settings.gateway_ip, woken)
    said = trio.Event()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            while not session.failed and not (ended and session.idle):
                await news.wait()
                news = trio.Event()
                while session.out:
                    await stream.send_all(session.out.pop(0))
                    session.more(trio.current_time())
                    flush()
                said.set()
                said = trio.Event()
            nursery.cancel_scope.cancel()
    finally:
        session.closed()
