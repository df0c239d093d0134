"""The benchmark: what a guest gets out of netstack, next to what it gets out of the other user-mode network stacks.

`python -m bench` (or `make bench`) as root. The guest is a Linux kernel in a network namespace; a second namespace
plays the host, with the services the guest talks to on an address of its own, so nothing leaves the machine.

    guest namespace                                     host namespace
    load.c -> kernel -> TAP -> [bridge.c ->] the stack under test -> 198.51.100.10, serve.c

`lab.py` makes and removes all that, `peers.py` knows how each stack is started, `rows.py` what is measured, what is
wanted `targets.py`; `rules.py` and `seen.py` measure rows again under a list of rules, with a capture and with events.
`measure.py` takes the samples, `report.py` and `plots.py` tell them, `command.py` is what the commands share:
`python -m bench`, `bench/sweep` (`sweep.py`: MTU x loss x flows; bridge.c loses the frames and holds them) and
`bench/profile` (`flame_graph.py`).

For each row every peer is measured in turn, round after round (A B C A B C ...), so that what else the machine does
meets all of them; the ratios are medians of the ratios within each round.
"""
