"""The host side: trio tasks that move frames and bytes between links, the engine and host sockets."""

from __future__ import annotations


class RunFailed(Exception):  # noqa: N818 - it says what happened, and a command line ends with it
    """A command of the gateway could not start or go on; the message is the one line to show."""
