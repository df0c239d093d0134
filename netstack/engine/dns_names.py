"""Names of DNS questions, from wire form to text: for people, and for the rules."""

from __future__ import annotations

from functools import lru_cache

from netstack.engine.names import canonical
from netstack.wire import dns as wire


def name_text(name: bytes) -> str:
    """A name as people write it, without the final dot; bytes that are no plain letters are escaped (RFC 4343)."""
    parts = wire.labels(name)
    text = b".".join(parts)
    if (
        text.isascii()
        and text.replace(b".", b"").replace(b"-", b"").replace(b"_", b"").isalnum()
        and text.count(b".") == len(parts) - 1
    ):
        return text.decode()
    import dns.name  # for what is not plain only: see zones.py

    return dns.name.Name((*parts, b"")).to_text(omit_final_dot=True)


@lru_cache(maxsize=1024)
def host_name(name: bytes) -> str | None:
    """A name in wire form as the host name it is (canonical), None when it is none.

    Nothing is mended: a dot inside a label, or a blank at an end, would make it the name of another.
    """
    parts = wire.labels(name)
    text = b".".join(parts)
    if text.count(b".") != len(parts) - 1:
        return None
    host = canonical(text)
    return host if host is not None and len(host) == len(text) else None
