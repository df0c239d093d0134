"""Damage on a guest's interface, done by the kernel: loss, duplication and reordering in either direction.

Towards netstack `tc netem` where the kernel has it. Towards the guest (netem works on egress only), and on kernels
without netem, the same with a classifier: a four-instruction BPF program that matches a share of the packets at random,
and mirred, which sends those to a sink (loss), once more (duplication), or round through a slower queue (reordering).
"""

from __future__ import annotations

from .lab import Namespace

NETEM = {"loss": "loss 3%", "duplicate": "duplicate 2%", "reorder": "delay 5ms reorder 75% 50%"}
SHARE = {"loss": 0.03, "duplicate": 0.02, "reorder": 0.25}
SINK, DETOUR = "sink0", "ifb0"


def impair(guest: Namespace, device: str, kind: str) -> str:
    """Damage both directions of `device` (`kind`: loss, duplicate or reorder). Returns what did it on egress."""
    guest.run("tc", "qdisc", "add", "dev", device, "clsact")
    _classifier(guest, device, kind, "ingress")
    if (
        guest.run("tc", "qdisc", "add", "dev", device, "root", "netem", *NETEM[kind].split(), check=False).returncode
        == 0
    ):
        return "netem"
    _classifier(guest, device, kind, "egress")
    return "classifier"


def damaged(guest: Namespace, device: str) -> int:
    """How many packets were hit on ingress so far."""
    statistics = guest.run("tc", "-s", "filter", "show", "dev", device, "ingress").stdout
    return sum(int(line.split()[3]) for line in statistics.splitlines() if line.strip().startswith("Sent "))


def _classifier(guest: Namespace, device: str, kind: str, direction: str) -> None:
    if kind == "loss":
        _once(guest, SINK, f"ip link add {SINK} type veth peer name sink1; ip link set {SINK} up; ip link set sink1 up")
        action = f"mirred egress redirect dev {SINK}"
    elif kind == "duplicate":
        action = f"mirred {direction} mirror dev {device}"
    else:
        # 200 Mbit/s and a packet of burst: what goes round this way comes out behind its successors.
        queue = "tbf rate 200mbit burst 66kb limit 4mb"
        _once(
            guest,
            DETOUR,
            f"ip link add {DETOUR} type ifb; ip link set {DETOUR} up; tc qdisc add dev {DETOUR} root {queue}",
        )
        action = f"mirred egress redirect dev {DETOUR}"
    guest.run(
        "tc",
        "filter",
        "add",
        "dev",
        device,
        direction,
        "bpf",
        "bytecode",
        _dice(SHARE[kind]),
        "action",
        *action.split(),
    )


def _once(guest: Namespace, device: str, script: str) -> None:
    if guest.run("ip", "link", "show", device, check=False).returncode:
        guest.sh(script)


def _dice(share: float) -> str:
    """Classic BPF: load the kernel's random word (SKF_AD_RANDOM), match when it is in the uppermost `share`."""
    random_word = 0x1_0000_0000 - 0x1000 + 56
    return f"4,32 0 0 {random_word},53 0 1 {int((1 - share) * 2**32)},6 0 0 {0xFFFFFFFF},6 0 0 0"
