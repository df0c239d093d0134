"""Samples: every peer in turn, round after round, each in a session of its own that ends whatever happens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from bench.lab import BenchError, Session, Tools, Wire
from bench.peers import Peer
from bench.report import Round
from bench.rows import Row, Sample

Teller = Callable[[str], None]
"""Is told what happens, in a line of words."""


@contextlib.contextmanager
def running(peer: Peer, tools: Tools, wire: Wire) -> Iterator[Session]:
    """A session with the peer running in it and the guest connected. Raises BenchError when it cannot be reached."""
    with Session(tools, wire) as session:
        peer.start(session)
        session.await_first_echo()
        yield session


def rounds_of(row: Row, rounds: int) -> int:
    """How many rounds of a row are measured in a run of so many."""
    return rounds if row.rounds is None else min(row.rounds, rounds)


def measure(
    row: Row,
    peers: Sequence[Peer],
    tools: Tools,
    *,
    wire: Wire,
    seconds: float,
    rounds: int,
    begin: Teller,
    failed: Teller,
) -> list[Round]:
    """Measure one row on every peer that has it, in turn, `rounds` times. `begin` is told before each sample."""
    turns: list[Round] = []
    with contextlib.ExitStack() as stack:
        sessions: dict[str, tuple[Session, contextlib.ExitStack]] = {}
        for number in range(rounds):
            turn: dict[str, Sample | str] = {}
            for peer in peers:
                if not row.applies_to(peer):
                    continue
                begin(f"{row.name}: {peer.name}, round {number + 1} of {rounds}")
                try:
                    if peer.name not in sessions:
                        ending = stack.enter_context(contextlib.ExitStack())
                        sessions[peer.name] = ending.enter_context(running(peer, tools, wire)), ending
                    turn[peer.name] = row.measure(sessions[peer.name][0], peer, seconds)
                except BenchError as error:
                    failed(f"{row.name}: {peer.name}: {error}")
                    turn[peer.name] = str(error)
                if peer.name in sessions and (row.fresh or isinstance(turn[peer.name], str)):
                    sessions.pop(peer.name)[1].close()
            turns.append(turn)
    return turns
