"""Where this process says what happens, and how a message looks: a line, gvproxy's line, or a JSON object."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from netstack.config import LogFormat
from netstack.gateway import RunFailed

_LOGRUS_LEVELS: Final = {"WARNING": "warning", "CRITICAL": "fatal"}


def _level(record: logging.LogRecord) -> str:
    return _LOGRUS_LEVELS.get(record.levelname, record.levelname.lower())


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def logrus_line(level: str, message: str, *, when: float | None = None) -> str:
    """A line as gvproxy logs it: time, level and message, the last quoted as Go quotes. `when`: seconds since 1970."""
    moment = datetime.now(UTC) if when is None else datetime.fromtimestamp(when, UTC)
    stamp = moment.isoformat(timespec="seconds").replace("+00:00", "Z")
    return f'time="{stamp}" level={level} msg={json.dumps(message)}\n'


class _Logrus(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return logrus_line(_level(record), record.getMessage(), when=record.created).rstrip("\n")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": _time(record.created),
            "level": _level(record),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said)


def _formatter(log_format: LogFormat) -> logging.Formatter:
    if log_format == "logrus":
        return _Logrus()
    if log_format == "json":
        return _Json()
    return logging.Formatter("netstack: %(message)s")


def start_logging(level: str, log_format: LogFormat = "plain", log_file: Path | None = None) -> None:
    """Say what is said at `level` or above, on standard error or in a file that is emptied first.

    A file that was renamed or removed, as log rotation does, is made again for the next message. Raises RunFailed.
    """
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if log_file is not None:
        from logging.handlers import WatchedFileHandler

        try:
            log_file.write_bytes(b"")
            handler = WatchedFileHandler(log_file, encoding="utf-8")
        except OSError as error:
            raise RunFailed(f"unable to open log file {log_file}: {error.strerror}") from error
    handler.setFormatter(_formatter(log_format))
    logging.basicConfig(level=level.upper(), handlers=[handler])
