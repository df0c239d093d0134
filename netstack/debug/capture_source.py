"""Where captured frames come from: a file, standard input, or a running gateway's live capture."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from netstack.debug.capture_reader import CaptureError, CaptureReader
from netstack.debug.live_api import LiveApi, SourceError, is_api
from netstack.debug.seen_packets import Recorded

STREAM_PATH: Final = "/v1/capture/stream"
STDIN: Final = "-"


def frames(source: str, token_file: Path | None = None) -> Iterator[Recorded]:
    """The frames of a file, of `-` (standard input), or of a running gateway, live.

    Raises SourceError, also for a file that is damaged further on: what comes before that is given.
    """
    try:
        if is_api(source):
            descriptor = _stream(source, token_file)
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


def _stream(source: str, token_file: Path | None) -> int:
    """Begin to read a gateway's live capture; the descriptor that its bytes come out of. Raises SourceError."""
    api = LiveApi(source, token_file)
    try:
        response = api.stream(STREAM_PATH)
    except SourceError:
        api.close()
        raise
    read_end, write_end = os.pipe()

    def pump() -> None:
        import httpx

        # A reader that has left, and a gateway that has ended, both end the stream: there is nobody to be told.
        with (
            suppress(OSError, httpx.HTTPError),
            closing(api),
            closing(response),
            os.fdopen(write_end, "wb", buffering=0) as pipe,
        ):
            for chunk in response.iter_raw():
                pipe.write(chunk)

    threading.Thread(target=pump, name="netstack-live-capture", daemon=True).start()
    return read_end
