"""Where captured frames come from: a file, standard input, or a running gateway's live capture."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Final

from netstack.debug.capture_reader import CaptureError, CaptureReader
from netstack.debug.live_api import SourceError, is_api, open_client
from netstack.debug.seen_packets import Recorded

STREAM_PATH: Final = "/v1/capture/stream"
STDIN: Final = "-"
_CONNECT_SECONDS: Final = 5.0


def frames(source: str) -> Iterator[Recorded]:
    """The frames of a file, of `-` (standard input), or of a running gateway, live.

    Raises SourceError, also for a file that is damaged further on: what comes before that is given.
    """
    try:
        if is_api(source):
            descriptor = _stream(source)
            try:
                reader = CaptureReader(f"/dev/fd/{descriptor}")
            finally:
                os.close(descriptor)
        else:
            reader = CaptureReader("/dev/stdin" if source == STDIN else source)
        for each in reader:
            comment = " ".join(each.comment.splitlines())
            yield Recorded(each.number, each.time / 1e9, each.direction, each.data, each.length, comment, each.ethernet)
    except CaptureError as error:
        raise SourceError(str(error).replace("/dev/stdin", "standard input")) from error


def _stream(source: str) -> int:
    """Begin to read a gateway's live capture; the descriptor that its bytes come out of. Raises SourceError."""
    import httpx

    client = open_client(source)
    try:
        request = client.build_request("GET", STREAM_PATH, timeout=httpx.Timeout(_CONNECT_SECONDS, read=None))
        response = client.send(request, stream=True)
    except httpx.HTTPError as error:
        client.close()
        raise SourceError(f"{source}: {str(error) or type(error).__name__}") from error
    if response.status_code != 200:
        response.read()
        client.close()
        raise SourceError(f"{source}: {STREAM_PATH} says {response.status_code}: {response.text.strip()[:200]}")
    read_end, write_end = os.pipe()

    def pump() -> None:
        # A reader that has left, and a gateway that has ended, both end the stream: there is nobody to be told.
        with suppress(OSError, httpx.HTTPError), closing(client), os.fdopen(write_end, "wb", buffering=0) as pipe:
            for chunk in response.iter_raw():
                pipe.write(chunk)

    threading.Thread(target=pump, name="netstack-live-capture", daemon=True).start()
    return read_end
