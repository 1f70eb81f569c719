"""systemd's socket, the state folder's lock, the status socket: all real."""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bgremover.core.errors import (
    AlreadyRunning,
    BgremoverError,
    DiskFailed,
    DiskFull,
    LocalFault,
    SetupError,
)
from bgremover.edges.supervisor import (
    Notifier,
    StateLock,
    StatusSocket,
    ask_status,
    watchdog_interval,
)

LIMIT = 10.0
STATUS = {"state": "running", "queue": {"waiting": 3}, "odd": "caf\udce9"}


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def long_folder(tmp_path: Path) -> Path:
    folder = tmp_path.joinpath(*["a-folder-with-a-rather-long-name"] * 6)
    folder.mkdir(parents=True)
    assert len(os.fsencode(folder)) > 200
    return folder


# --- sd_notify ------------------------------------------------------------------------------


class Systemd:
    """The receiving end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(LIMIT)
        self.env = {"NOTIFY_SOCKET": address}

    def heard(self) -> dict[str, str]:
        lines = self.socket.recv(4096).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def silent(self) -> bool:
        self.socket.setblocking(False)
        try:
            self.socket.recv(1)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(LIMIT)
        return False


@contextmanager
def systemd(address: str) -> Iterator[Systemd]:
    receiver = Systemd(address)
    with receiver.socket:
        yield receiver


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Systemd]:
    with systemd(str(tmp_path / "notify")) as found:
        yield found


@pytest.mark.parametrize(
    ("tell", "heard"),
    [
        (lambda one: one.ready("watching"), {"READY": "1", "STATUS": "watching"}),
        (lambda one: one.stopping(), {"STOPPING": "1"}),
        (lambda one: one.watchdog(), {"WATCHDOG": "1"}),
        (lambda one: one.status("2 in flight"), {"STATUS": "2 in flight"}),
        (lambda one: one.status("a\nREADY=1"), {"STATUS": "a\\nREADY=1"}),
        (lambda one: one.status("caf\udce9"), {"STATUS": "caf\\xe9"}),
    ],
    ids=["ready", "stopping", "watchdog", "status", "status of two lines", "status not UTF-8"],
)
def test_systemd_hears_what_it_is_told(
    receiver: Systemd, tell: Callable[[Notifier], None], heard: dict[str, str]
) -> None:
    tell(Notifier(receiver.env))
    assert receiver.heard() == heard


def test_an_abstract_address_is_understood() -> None:
    with systemd(f"@bgremover-test-{os.getpid()}") as receiver:
        Notifier(receiver.env).watchdog()
        assert receiver.heard() == {"WATCHDOG": "1"}


def test_a_reload_carries_the_monotonic_clock(receiver: Systemd) -> None:
    before = time.monotonic_ns() // 1000
    Notifier(receiver.env).reloading()
    heard = receiver.heard()
    assert heard["RELOADING"] == "1"
    assert before <= int(heard["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000


def test_the_same_status_is_sent_once(receiver: Systemd) -> None:
    notifier = Notifier(receiver.env)
    notifier.ready("watching")
    assert receiver.heard()["STATUS"] == "watching"
    notifier.status("watching")
    assert receiver.silent()
    notifier.status("1 in flight")
    notifier.status("1 in flight")
    assert receiver.heard() == {"STATUS": "1 in flight"}
    assert receiver.silent()


def test_a_status_that_was_not_heard_is_sent_again(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.status("watching")
    with systemd(address) as receiver:
        notifier.status("watching")
        assert receiver.heard() == {"STATUS": "watching"}


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "@"},
        {"NOTIFY_SOCKET": "vsock:2:1234"},
        {"NOTIFY_SOCKET": "/nowhere/at/all"},
        {"NOTIFY_SOCKET": "/" + "x" * 500},
    ],
)
def test_nobody_to_tell_is_no_error(env: dict[str, str]) -> None:
    notifier = Notifier(env)
    notifier.ready("watching")
    notifier.reloading()
    notifier.watchdog()
    notifier.status("watching")
    notifier.stopping()


def test_a_receiver_that_does_not_read_holds_up_for_a_moment_only(receiver: Systemd) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                other.sendto(b"x", receiver.env["NOTIFY_SOCKET"])
    began = time.monotonic()
    Notifier(receiver.env).watchdog()
    assert time.monotonic() - began < 2.0


@pytest.mark.parametrize(
    ("env", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getppid())}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": ""}, 15.0),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "9" * 5000}, None),
        ({"WATCHDOG_PID": str(os.getpid())}, None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_it_bites(
    env: dict[str, str], seconds: float | None
) -> None:
    assert watchdog_interval(env) == seconds


# --- the lock -------------------------------------------------------------------------------

OWNER = """
import sys, time
from pathlib import Path
from bgremover.edges.supervisor import StateLock
with StateLock(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(600)
"""


@contextmanager
def owner(state: Path) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(state)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "mine\n"
            yield process
        finally:
            process.kill()


def test_the_second_instance_is_told_who_was_first(tmp_path: Path) -> None:
    with owner(tmp_path) as first:
        with pytest.raises(AlreadyRunning) as fault, StateLock(tmp_path):
            pass
        assert f"pid {first.pid})" in fault.value.message
        assert str(tmp_path) in fault.value.message
        assert "Stop it first" in fault.value.message


def test_an_owner_on_another_host_is_named_with_it(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write("1 nas\x1b[31m\n")
        other.flush()
        with pytest.raises(AlreadyRunning, match=r"pid 1 on nas\\x1b\[31m"), StateLock(tmp_path):
            pass


def test_an_owner_that_has_not_signed_yet_is_no_trouble(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(AlreadyRunning, match="another bgremover owns"), StateLock(tmp_path):
            pass


def test_a_killed_owner_leaves_the_folder_free(tmp_path: Path) -> None:
    with owner(tmp_path) as first:
        first.send_signal(signal.SIGKILL)
        first.wait(LIMIT)
        assert (tmp_path / "lock").exists()
        with StateLock(tmp_path):
            assert (tmp_path / "lock").read_text().split()[0] == str(os.getpid())


def test_the_lock_is_given_back_and_can_be_taken_again(tmp_path: Path) -> None:
    before = open_descriptors()
    lock = StateLock(tmp_path)
    for _ in range(3):
        with lock, pytest.raises(AlreadyRunning), StateLock(tmp_path):
            pass
    assert open_descriptors() == before


def test_the_lock_is_given_back_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), StateLock(tmp_path):
        raise ZeroDivisionError
    with StateLock(tmp_path):
        pass


def test_the_lock_file_is_private_and_a_shorter_name_leaves_nothing_of_the_longer(
    tmp_path: Path,
) -> None:
    with StateLock(tmp_path):
        assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600
    (tmp_path / "lock").write_text("1234567890 " + "x" * 200)
    with StateLock(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()} {socket.gethostname()}\n"


def test_a_child_does_not_inherit_the_lock(tmp_path: Path) -> None:
    with StateLock(tmp_path):
        child = subprocess.Popen(["sleep", "600"], close_fds=False)
    try:
        with StateLock(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


def test_no_folder_and_a_planted_link_are_set_up_errors(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"folders\.state"), StateLock(tmp_path / "none"):
        pass
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(SetupError, match=r"folders\.state"), StateLock(tmp_path):
        pass
    assert not (tmp_path / "precious").exists()


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOLCK, SetupError),
        (errno.EOPNOTSUPP, SetupError),
        (errno.ENOSYS, SetupError),
        (errno.EIO, DiskFailed),
    ],
)
def test_a_file_system_without_locks_is_a_set_up_error(
    tmp_path: Path, number: int, kind: type[BgremoverError]
) -> None:
    fault = StateLock(tmp_path)._refused(OSError(number, os.strerror(number)))
    assert isinstance(fault, kind)
    assert str(tmp_path) in fault.message


# --- the status socket ----------------------------------------------------------------------


def answer() -> dict[str, Any]:
    return STATUS


async def asked(state: Path, seconds: float = LIMIT) -> dict[str, Any] | None:
    return await asyncio.to_thread(ask_status, state, seconds)


@pytest.mark.parametrize("place", [lambda path: path, long_folder], ids=["short", "long path"])
def test_who_asks_is_answered(tmp_path: Path, place: Callable[[Path], Path]) -> None:
    state = place(tmp_path)

    async def main() -> None:
        async with StatusSocket(state, answer):
            assert await asked(state) == STATUS
            assert await asked(state) == STATUS
            assert stat.S_IMODE((state / "status.sock").stat().st_mode) == 0o600

    before = open_descriptors()
    asyncio.run(main())
    assert not (state / "status.sock").exists()
    assert ask_status(state, LIMIT) is None
    assert open_descriptors() == before


def test_the_socket_is_private_whatever_the_umask(tmp_path: Path) -> None:
    async def main() -> int:
        async with StatusSocket(tmp_path, answer):
            return stat.S_IMODE((tmp_path / "status.sock").stat().st_mode)

    before = os.umask(0)
    try:
        assert asyncio.run(main()) == 0o600
    finally:
        os.umask(before)


def test_one_line_of_json_is_all_that_is_sent(tmp_path: Path) -> None:
    async def main() -> bytes:
        async with StatusSocket(tmp_path, answer):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "status.sock")
            told = await reader.read()
            writer.close()
            await writer.wait_closed()
            return told

    told = asyncio.run(main())
    assert told.count(b"\n") == 1
    assert json.loads(told) == STATUS


def test_a_long_answer_arrives_whole(tmp_path: Path) -> None:
    long = {"files": ["x" * 1000] * 2000}

    async def main() -> None:
        async with StatusSocket(tmp_path, lambda: long):
            assert await asked(tmp_path) == long

    asyncio.run(main())


def test_a_loop_that_stalls_does_not_answer(tmp_path: Path) -> None:
    async def main() -> None:
        async with StatusSocket(tmp_path, answer):
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                ask_status(tmp_path, 0.05)  # Asked in the loop itself, which thus stalls.
            assert time.monotonic() - began < 5.0
            assert await asked(tmp_path) == STATUS

    asyncio.run(main())


def test_more_askers_than_a_stalled_loop_can_hold_give_up_too(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stalled:
        stalled.bind(str(tmp_path / "status.sock"))
        stalled.listen(0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as first:
            first.connect(str(tmp_path / "status.sock"))
            with pytest.raises(TimeoutError, match="no more questions"):
                ask_status(tmp_path, 0.05)


def test_an_answer_that_fails_is_no_answer_and_the_next_one_is(tmp_path: Path) -> None:
    answers: list[dict[str, Any]] = [STATUS]

    def first_fails() -> dict[str, Any]:
        if len(answers) == 1:
            answers.append({})
            raise ZeroDivisionError
        return STATUS

    async def main() -> list[str]:
        told: list[str] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: told.append(type(context["exception"]).__name__)
        )
        async with StatusSocket(tmp_path, first_fails):
            with pytest.raises(TimeoutError, match="no whole answer"):
                await asked(tmp_path)
            assert await asked(tmp_path) == STATUS
        return told

    assert asyncio.run(main()) == ["ZeroDivisionError"]


@pytest.mark.parametrize("said", [b"", b'{"state": "run', b"[]", b"\xff\xfe"])
def test_half_an_answer_is_none(tmp_path: Path, said: bytes) -> None:
    async def half(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    async def main() -> None:
        server = await asyncio.start_unix_server(half, tmp_path / "status.sock")
        try:
            with pytest.raises(TimeoutError):
                await asked(tmp_path)
        finally:
            server.close()

    asyncio.run(main())


def test_an_answer_that_drips_for_ever_is_none(tmp_path: Path) -> None:
    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            while not writer.is_closing():
                writer.write(b" ")
                await asyncio.sleep(0.005)

    async def main() -> None:
        server = await asyncio.start_unix_server(drip, tmp_path / "status.sock")
        try:
            with pytest.raises(TimeoutError):
                await asked(tmp_path, 0.1)
        finally:
            server.close()

    asyncio.run(main())


def test_nobody_listens(tmp_path: Path) -> None:
    assert ask_status(tmp_path, LIMIT) is None
    assert ask_status(tmp_path / "none", LIMIT) is None
    (tmp_path / "file").touch()
    assert ask_status(tmp_path / "file", LIMIT) is None


def leave_stale(state: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as killed:
        killed.bind(str(state / "status.sock"))
        killed.listen()


def test_the_socket_of_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    leave_stale(tmp_path)
    assert (tmp_path / "status.sock").exists()
    assert ask_status(tmp_path, LIMIT) is None

    async def main() -> None:
        async with StatusSocket(tmp_path, answer):
            assert await asked(tmp_path) == STATUS

    asyncio.run(main())


def open_and_close(state: Path) -> None:
    async def main() -> None:
        async with StatusSocket(state, answer):
            pass

    asyncio.run(main())


def test_what_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "status.sock").write_text("precious")
    before = open_descriptors()
    with pytest.raises(SetupError, match="no socket"):
        open_and_close(tmp_path)
    assert (tmp_path / "status.sock").read_text() == "precious"
    assert open_descriptors() == before


def test_a_state_folder_that_is_not_there_is_a_set_up_error(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"folders\.state"):
        open_and_close(tmp_path / "none")


def test_a_place_that_makes_no_sockets_is_told() -> None:
    # Which number procfs says it with is the kernel's affair.
    with pytest.raises((SetupError, LocalFault), match="state folder /proc/self"):
        open_and_close(Path("/proc/self"))


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EPERM, SetupError),
        (errno.EOPNOTSUPP, SetupError),
        (errno.ENOSPC, DiskFull),
        (errno.EIO, DiskFailed),
    ],
)
def test_a_file_system_without_sockets_is_a_set_up_error(
    tmp_path: Path, number: int, kind: type[BgremoverError]
) -> None:
    with pytest.raises(kind, match="state folder"), StatusSocket(tmp_path, answer)._explained():
        raise OSError(number, os.strerror(number))


def test_a_socket_file_that_was_taken_away_is_no_trouble_at_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with StatusSocket(tmp_path, answer):
            (tmp_path / "status.sock").unlink()

    asyncio.run(main())


def test_asking_imports_nothing_slow() -> None:
    code = (
        "import sys; from bgremover.edges import supervisor;"
        "print(sorted({'asyncio', 'structlog', 'httpx', 'watchdog'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
