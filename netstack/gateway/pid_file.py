"""The file that holds the process id while the program runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from netstack.gateway import RunFailed


@contextmanager
def pid_file(path: Path | None) -> Iterator[None]:
    """Keep the decimal process id, without a newline, in `path`; None is no file.

    It is removed at the end, unless another process has written its own there meanwhile. Raises RunFailed.
    """
    if path is None:
        yield
        return
    own = str(os.getpid())
    try:
        path.write_text(own, encoding="ascii")
    except OSError as error:
        raise RunFailed(f"failed to create pidfile: open {path}: {error.strerror}") from error
    try:
        yield
    finally:
        with suppress(OSError, UnicodeDecodeError):  # gone already, or no longer ours to remove
            if path.read_text(encoding="ascii") == own:
                path.unlink()
