"""Guest namespaces and the commands in them: configuration, exit statuses, signals, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import termios
import textwrap
from pathlib import Path

import pytest
import trio
import trio.testing

from guest_iface.link import LinkError
from tests.guest_iface.conftest import DEADLINE, until
from tests.guest_iface.kernel_guest import PROJECT, command, guest_namespace, output_of

pytestmark = pytest.mark.guest


async def test_the_configuration_is_the_guests_only() -> None:
    before = Path("/etc/resolv.conf").read_text()  # noqa: ASYNC240 - a line
    with guest_namespace() as namespace:
        status, shown = await output_of(namespace, "cat", "/etc/resolv.conf")
        assert (status, shown) == (0, "nameserver 192.168.127.1\nsearch example.test test\n")
        status, routes = await output_of(namespace, "cat", "/proc/net/route")
        assert [line.split()[:3] for line in routes.splitlines()[1:]] == [
            ["eth0", "00000000", "017FA8C0"],
            ["eth0", "007FA8C0", "00000000"],
        ]
        assert Path("/etc/resolv.conf").read_text() == before  # noqa: ASYNC240 - a line
    assert not list(Path("/tmp").glob("netstack-resolv-*"))  # noqa: ASYNC240 - a line


async def test_without_configuration_there_is_a_device_and_no_address() -> None:
    with guest_namespace(configuration=None) as namespace:
        _, routes = await output_of(namespace, "cat", "/proc/net/route")
        assert len(routes.splitlines()) == 1


async def test_environment_directory_and_arguments_are_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INHERITED", "yes")
    with guest_namespace() as namespace:
        script = 'echo "$INHERITED/$OWN/$(pwd)/$1"'
        assert await output_of(namespace, "sh", "-c", script, "sh", "a b\udcff") == (0, f"yes//{tmp_path}/a b\udcff\n")
        environment = {"OWN": "x" * 50_000, "PATH": os.environ["PATH"]}
        _, shown = await output_of(namespace, "sh", "-c", script, "sh", "", environment=environment)
        assert shown == f"/{'x' * 50_000}/{tmp_path}/\n"


async def test_no_descriptor_of_ours_reaches_the_command() -> None:
    with guest_namespace() as namespace:
        _, shown = await output_of(namespace, *command("import os; print(os.listdir('/proc/self/fd'))"))
        assert shown == "['0', '1', '2', '3']\n"  # 3 is the listing itself


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 42"], 42),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["sh", "-c", "kill -KILL $$"], 137),
        (["/nonexistent/command"], 127),
        (["/etc/passwd"], 126),
    ],
)
async def test_exit_statuses(arguments: list[str], status: int) -> None:
    with guest_namespace() as namespace:
        ended, shown = await output_of(namespace, *arguments)
        assert ended == status
        assert shown.startswith(f"netstack: {arguments[0]}: " if status in (126, 127) else "")


async def test_commands_run_side_by_side() -> None:
    with guest_namespace() as namespace:
        statuses: list[int] = []
        read_fd, write_fd = os.pipe()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def waits() -> None:
                statuses.append(await namespace.run_command(["sh", "-c", "read line; exit $line"], stdin=read_fd))

            await trio.testing.wait_all_tasks_blocked()
            statuses.append(await namespace.run_command(["sh", "-c", "exit 1"]))
            os.write(write_fd, b"2\n")
        assert statuses == [1, 2]
        os.close(read_fd)
        os.close(write_fd)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_signals_are_forwarded(number: signal.Signals) -> None:
    with guest_namespace() as namespace:
        read_fd, write_fd = os.pipe()
        script = f"trap 'exit 33' {number.name.removeprefix('SIG')}; echo ready; while :; do sleep 0.01; done"
        statuses: list[int] = []
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def run() -> None:
                statuses.append(
                    await namespace.run_command(["sh", "-c", script], stdout=write_fd, forward_signals=True)
                )

            await trio.lowlevel.wait_readable(read_fd)
            os.kill(os.getpid(), number)
        assert statuses == [33]
        os.close(read_fd)
        os.close(write_fd)


async def test_a_cancelled_command_is_ended() -> None:
    with guest_namespace() as namespace:
        read_fd, write_fd = os.pipe()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: namespace.run_command(["sh", "-c", "echo $$; exec sleep 1000"], stdout=write_fd))
            await trio.lowlevel.wait_readable(read_fd)
            nursery.cancel_scope.cancel()
        pid = int(os.read(read_fd, 100))
        await until(lambda: not Path(f"/proc/{pid}").exists())
        os.close(read_fd)
        os.close(write_fd)


def remaining(word: str) -> list[str]:
    """Processes with this word on their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word.encode() in entry.read_bytes():
                found.append(entry.parent.name)
    return found


async def test_close_ends_what_the_command_left_behind() -> None:
    """Also what detached itself and hears no signal.

    It says itself that it has begun: while a process executes its program, its command line reads as empty.
    """
    mark = f"mark-{os.getpid()}-close"
    stubborn = "setsid sh -c 'trap \"\" TERM HUP; echo ready; while :; do sleep 0.05; done' "
    read_fd, write_fd = os.pipe()
    with guest_namespace() as namespace:
        script = f"sleep 1000 & {stubborn} {mark} & : {mark}"
        assert await namespace.run_command(["sh", "-c", script], stdout=write_fd) == 0
        await trio.lowlevel.wait_readable(read_fd)
        assert remaining(mark) != []
    assert remaining(mark) == []
    os.close(read_fd)
    os.close(write_fd)


async def test_killing_us_leaves_nothing_behind(tmp_path: Path) -> None:
    mark = f"mark-{os.getpid()}-kill"
    script = f"""
        import trio
        from guest_iface.namespaces import GuestNamespace
        async def main():
            namespace = GuestNamespace.create(mac=bytes.fromhex("5a94efe40cee"))
            await namespace.run_command(["sh", "-c", "setsid sleep 1000 & echo ready; wait; : {mark}"])
        trio.run(main)
    """
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=PROJECT, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with trio.fail_after(DEADLINE):
        assert await process.stdout.receive_some() == b"ready\n"
        assert len(remaining(mark)) >= 2
        process.kill()
        await process.wait()
        await until(lambda: remaining(mark) == [])


async def test_a_namespace_whose_process_was_killed_is_reported() -> None:
    with guest_namespace() as namespace:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def run() -> None:
                with pytest.raises(LinkError, match="the namespace's process has ended"):
                    await namespace.run_command(["sleep", "0.1"])

            await trio.testing.wait_all_tasks_blocked()
            os.kill(namespace.pid, signal.SIGKILL)
        with pytest.raises(LinkError, match="the namespace's process"):
            await namespace.run_command(["true"])


UNPRIVILEGED = """
    import os
    import trio
    from guest_iface.namespaces import GuestConfiguration, GuestNamespace
    from guest_iface.tap import TapLink

    async def main():
        ours, gateway = bytes([192, 168, 127, 2]), bytes([192, 168, 127, 1])
        configuration = GuestConfiguration(address=ours, prefix_length=24, gateway=gateway, dns=gateway)
        namespace = GuestNamespace.create(mac=bytes.fromhex("5a94efe40cee"), configuration=configuration)
        assert os.readlink(f"/proc/{namespace.pid}/ns/user") != os.readlink("/proc/self/ns/user")
        tap = namespace.open_tap()
        script = "cat /etc/resolv.conf; id -u; ping -c 1 127.0.0.1 >/dev/null"
        assert await namespace.run_command(["sh", "-c", script]) == 0
        frames = await tap.receive_batch()
        assert frames[0][6:12].hex() == "5a94efe40cee"
        joined = TapLink.open("tap7", netns=namespace.pid)
        assert joined.device == "tap7"
        joined.close()
        namespace.close()

    trio.run(main)
"""


@pytest.mark.guest("setpriv", "userns", "ping")
async def test_without_privilege_a_user_namespace_is_made_and_entered() -> None:
    """Without CAP_SYS_ADMIN, as any user has it (or root, of whom it was taken)."""
    without = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"] if os.geteuid() == 0 else []
    with trio.fail_after(DEADLINE):
        done = await trio.run_process(
            [*without, sys.executable, "-c", textwrap.dedent(UNPRIVILEGED)],
            cwd=PROJECT,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"nameserver 192.168.127.1\n0\n", b"")


@pytest.mark.guest("setpriv", "root")
async def test_where_namespaces_are_forbidden_it_says_so() -> None:
    """A user namespace inside which no further one may be made stands for such a kernel."""
    script = """
        from pathlib import Path
        from guest_iface.link import LinkError
        from guest_iface.namespaces import GuestNamespace
        Path("/proc/sys/user/max_net_namespaces").write_text("0")
        try:
            GuestNamespace.create(mac=bytes(6))
        except LinkError as error:
            print(error)
    """
    done = await trio.run_process(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", textwrap.dedent(script)],
        cwd=PROJECT,
        capture_stdout=True,
    )
    words = done.stdout.decode()
    assert words.startswith("cannot make a network namespace: new network namespace: No space left on device (")
    assert "user.max_net_namespaces" in words


INTERRUPTED = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
print("ready", flush=True)
signal.sigwait([signal.SIGINT])
print("interrupted", flush=True)
input()
sys.exit(5 + len(signal.sigpending()))
"""


@pytest.mark.guest("setsid")
async def test_the_terminals_interrupt_reaches_the_command_once() -> None:
    """Control-C goes to the whole foreground group: it is not forwarded a second time, and ends only who it should."""
    script = """
        import sys
        import trio
        from guest_iface.namespaces import GuestNamespace

        async def main():
            namespace = GuestNamespace.create(mac=bytes.fromhex("5a94efe40cee"))
            command = [sys.executable, "-c", sys.argv[1]]
            print("status", await namespace.run_command(command, forward_signals=True))
            namespace.close()

        trio.run(main)
    """
    ours, theirs = os.openpty()
    modes = termios.tcgetattr(theirs)
    modes[3] |= termios.NOFLSH  # an interrupt drops what is in the terminal's output, even if said right after it
    termios.tcsetattr(theirs, termios.TCSANOW, modes)
    process = await trio.lowlevel.open_process(
        ["setsid", "--ctty", "--wait", sys.executable, "-c", textwrap.dedent(script), INTERRUPTED],
        cwd=PROJECT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    shown = ""

    async def see(words: str) -> None:
        nonlocal shown
        while words not in shown:
            await trio.lowlevel.wait_readable(ours)
            shown += os.read(ours, 1000).decode()

    with trio.fail_after(DEADLINE):
        await see("ready")
        os.write(ours, b"\x03")
        await see("interrupted")
        os.write(ours, b"go on\n")
        await see("status 5")
        await process.wait()
    os.close(ours)
    os.close(theirs)
