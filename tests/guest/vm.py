"""A virtual machine for the tests: Debian's kernel, an initramfs made here around busybox, QEMU without acceleration.

The init script prints one line `@@ WORD VALUE...` on the serial console for everything a test wants to know.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from .lab import LabError, Namespace, Process, wait_until
from .network import GUEST_MAC

BOOT_SECONDS = 60
"""By then the kernel has long reached its init, or hangs: about one boot in a dozen does, and is tried again."""
RUN_SECONDS = 150
_numbers = itertools.count()
CARD = ("virtio_pci", "virtio_net")

INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /etc
/bin/busybox --install -s /bin

mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
echo @@ booted $(uname -r)
for module in {modules}; do insmod /modules/$module.ko || echo @@ failed $module; done
ip link set lo up; ip link set eth0 up
{script}
echo @@ done
poweroff -f
"""


def kernels() -> list[tuple[Path, Path]]:
    """Kernel images with their modules, the cloud flavour (fewer modules, quicker) and newer versions first."""
    found = []
    for image in Path("/boot").glob("vmlinuz-*"):
        modules = Path("/lib/modules") / image.name.removeprefix("vmlinuz-")
        if modules.is_dir():
            found.append((image, modules))
    return sorted(found, key=lambda pair: ("cloud" in pair[0].name, pair[0].name), reverse=True)


class Machine:
    """A kernel and an initramfs, ready to boot."""

    def __init__(self, directory: Path, script: str, *, modules: Sequence[str] = (), programs: Iterable[str] = ()):
        self._directory = directory
        self._initrd = directory / "initramfs.cpio"
        self.kernel, tree = kernels()[0]
        root = directory / "root"
        for name in ("bin", "modules", "programs"):
            (root / name).mkdir(parents=True)
        shutil.copy(shutil.which("busybox") or "/bin/busybox", root / "bin/busybox")
        found = self._modules(tree, [*CARD, *modules], root / "modules")
        for program in programs:
            self._program(program, root)
        dhcp = Path(__file__).with_name("dhcp_script.sh")
        shutil.copy(dhcp, root / "dhcp")
        init = root / "init"
        init.write_text(INIT.format(modules=" ".join(found), script=script))
        init.chmod(0o755)
        with self._initrd.open("wb") as archive:
            names = "\0".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
            subprocess.run(
                ["cpio", "--quiet", "--null", "-o", "-H", "newc"],
                input=names.encode(),
                stdout=archive,
                cwd=root,
                check=True,
            )

    @staticmethod
    def _modules(tree: Path, names: Iterable[str], target: Path) -> list[str]:
        """Copy modules and what they depend on, unpacked; their names in the order to load them.

        What is built into the kernel is not in modules.dep, and left out.
        """
        lines = (tree / "modules.dep").read_text().splitlines()
        needs = {path: rest.split() for path, _, rest in (line.partition(":") for line in lines)}
        paths = {Path(path).name.partition(".")[0]: path for path in needs}
        # modules.dep lists what a module needs last things first.
        order = [path for name in names if name in paths for path in [*reversed(needs[paths[name]]), paths[name]]]
        order = list(dict.fromkeys(order))
        for path in order:
            unpack = {".ko": "cat", ".xz": "xzcat", ".zst": "zstdcat"}[Path(path).suffix]
            data = subprocess.run([unpack, str(tree / path)], capture_output=True, check=True).stdout
            (target / f"{Path(path).name.partition('.')[0]}.ko").write_bytes(data)
        return [Path(path).name.partition(".")[0] for path in order]

    @staticmethod
    def _program(name: str, root: Path) -> None:
        """Copy a dynamically linked program with the libraries it names."""
        program = Path(shutil.which(name) or name)
        listed = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True).stdout
        for path in [program, *(Path(word) for word in re.findall(r"(/\S+)", listed))]:
            # In a place of their own: by bare name the shell runs its own `tc`, which knows little.
            target = root / "programs" / path.name if path == program else root / path.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)

    def boot(self, where: Namespace, netdev: str) -> Process:
        """Start it with its card on `netdev` and wait until it has booted; tried twice."""
        command = ["qemu-system-x86_64", "-M", "pc,accel=tcg", "-m", "256", "-nodefaults", "-no-user-config"]
        command += ["-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", str(self.kernel)]
        command += ["-initrd", str(self._initrd), "-append", "console=ttyS0 quiet panic=-1 mitigations=off"]
        command += ["-netdev", netdev, "-device", f"virtio-net-pci,netdev=net0,mac={GUEST_MAC},romfile="]
        for _ in range(2):
            machine = where.spawn("qemu", *command)
            with contextlib.suppress(LabError):
                wait_until(partial(_booted_or_gone, machine), "the VM to boot", timeout=BOOT_SECONDS)
            if "@@ booted" in machine.log:
                return machine
            machine.kill()
        raise LabError(f"the VM did not boot:\n{machine.log}")


def _booted_or_gone(machine: Process) -> bool:
    return "@@ booted" in machine.log or not machine.running


def results(machine: Process) -> dict[str, str]:
    """Wait until it has powered off; its `@@` lines by their first word."""
    status = machine.wait(RUN_SECONDS)
    lines = re.findall(r"^@@ (\S+) ?(.*?)\r?$", machine.log, flags=re.MULTILINE)
    told = dict(lines)
    if status or "done" not in told:
        raise LabError(f"the VM ended with {status}:\n{machine.log}")
    return told


def netdev(link: str, path: Path) -> str:
    """QEMU's option for a link of netstack (`link`: dgram or stream)."""
    if link == "stream":
        return f"stream,id=net0,server=off,addr.type=unix,addr.path={path}"
    local = path.with_name(f"{path.name}.qemu{next(_numbers)}")
    return f"dgram,id=net0,local.type=unix,local.path={local},remote.type=unix,remote.path={path}"
