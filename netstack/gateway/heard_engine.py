"""An engine somebody can listen to.

A journal puts itself before methods of the engine (journal.py). Those of a compiled object cannot be replaced; and an
interpreted one that has attributes its class does not know of is slower in all it does, because CPython then looks up
each of its attributes in a dict: 2 % of TCP at MTU 1500. So where a journal may be wanted, everything outside of the
engine calls it through these. Nothing inside does.
"""

from __future__ import annotations

from typing import Any, cast

from netstack.engine.stack import Stack


class Heard:
    """An object whose methods can be replaced; all else is the object's own."""

    def __init__(self, own: object, **parts: Heard) -> None:
        """`parts` are those of its attributes that are heard as well."""
        self._own = own
        self.__dict__.update(parts)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._own, name)
        if getattr(value, "__self__", None) is self._own:
            self.__dict__[name] = value  # a method, and that stays as it is: it is looked up once
        return value


def heard(stack: Stack) -> Stack:
    """The engine, with the places where journal.CALLS has methods. Compiled code does not take it for a Stack."""
    dns = Heard(stack.dns, cache=Heard(stack.dns.cache), zones=Heard(stack.dns.zones))
    return cast(Stack, Heard(stack, names=Heard(stack.names), dns=dns))
