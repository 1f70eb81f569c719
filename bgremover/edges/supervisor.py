"""What looks after the daemon from outside: systemd, the state folder's lock, the status socket.

`health` and `status` use only `ask_status`, so nothing slow is imported on their way.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bgremover.core.errors import AlreadyRunning, BgremoverError, SetupError, local_fault
from bgremover.core.naming import printable

LOCK_NAME = "lock"
SOCKET_NAME = "status.sock"

_STALLS = "the daemon listens but does not answer in time: its loop stalls"
_SEND_SECONDS = 0.2
_LONGEST_ADDRESS = 107
"""What fits into `sun_path` of unix(7), without its final zero."""
_OPEN_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
# O_NOFOLLOW: a link planted in the state folder must not have another file written.
_OPEN_LOCK = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_NO_SOCKETS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


# --- systemd -------------------------------------------------------------------------------


class Notifier:
    """Tells systemd how the daemon is (sd_notify(3)); does nothing where nobody listens.

    Nothing here raises: a service manager that does not listen is no reason to stop.

    Args:
        env: Where NOTIFY_SOCKET is looked up.
    """

    def __init__(self, env: Mapping[str, str] = os.environ) -> None:
        self._address = _notify_address(env.get("NOTIFY_SOCKET", ""))
        self._status: str | None = None

    def ready(self, status: str) -> None:
        """Say that start or reload is done, and what is being done now."""
        text = printable(status)
        if self._send(f"READY=1\nSTATUS={text}"):
            self._status = text

    def reloading(self) -> None:
        """Say that the settings are being read anew; `ready` has to follow."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")

    def stopping(self) -> None:
        """Say that the daemon is winding up."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """Give the sign of life that WatchdogSec= waits for."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Say in one line what is being done; the same text is not sent twice in a row."""
        text = printable(text)
        if text != self._status and self._send(f"STATUS={text}"):
            self._status = text

    def _send(self, message: str) -> bool:
        if self._address is None:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                # A full queue must hold up the event loop for a moment only.
                sender.settimeout(_SEND_SECONDS)
                sender.sendto(message.encode("utf-8", "backslashreplace"), self._address)
        except OSError:
            return False
        return True


def _notify_address(name: str) -> bytes | None:
    raw = os.fsencode(name)
    if raw.startswith(b"/"):
        return raw
    # "@" stands for the zero byte of the abstract name space.
    return b"\0" + raw[1:] if raw.startswith(b"@") and len(raw) > 1 else None


def watchdog_interval(env: Mapping[str, str] = os.environ) -> float | None:
    """Return how often to give a sign of life, in seconds: half of what systemd waits.

    Args:
        env: Where WATCHDOG_USEC and WATCHDOG_PID are looked up.

    Returns:
        None when nobody waits, or not for this process.
    """
    microseconds, pid = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", "")
    if pid and pid != str(os.getpid()):
        return None
    if not re.fullmatch(r"[0-9]{1,18}", microseconds) or int(microseconds) == 0:
        return None
    return int(microseconds) / 2_000_000


# --- one owner -----------------------------------------------------------------------------


class StateLock:
    """Makes this process the one owner of a state folder, for the length of a `with`.

    The kernel gives the lock back when the process ends, however it ends. The file stays: taking
    it away would let two owners lock two files of the same name.

    Args:
        state: The folder; it exists.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._held = ExitStack()

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            AlreadyRunning: Another process has it.
            SetupError: The folder's file system has no locks, or there is no such folder.
            LocalFault: This machine cannot open the file now.
        """
        with ExitStack() as stack:
            descriptor = self._open()
            stack.callback(os.close, descriptor)
            self._lock(descriptor)
            # Only a courtesy to whoever finds the lock taken; it needs no room on a full disk.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, _name_of_this_process(), 0)
            self._held = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.close()

    def _open(self) -> int:
        try:
            return os.open(self._state / LOCK_NAME, _OPEN_LOCK, 0o600)
        except OSError as error:
            raise _unusable(
                error, f"opening {LOCK_NAME} in the state folder {self._shown}"
            ) from error

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunning(
                f"{_owner(descriptor)} owns the state folder {self._shown}. "
                "Stop it first, or give this one folders of its own (folders.state)."
            ) from error
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> BgremoverError:
        if error.errno not in _NO_LOCKS:
            return local_fault(error, f"locking the state folder {self._shown}")
        return SetupError(
            f"the file system of the state folder {self._shown} has no locks ({error.strerror}). "
            "Put folders.state on a local disk."
        )

    @property
    def _shown(self) -> str:
        return printable(str(self._state))


def _name_of_this_process() -> bytes:
    # The host's name tells containers that share a folder apart: each has its own pid 1.
    return f"{os.getpid()} {socket.gethostname()}\n".encode("utf-8", "backslashreplace")


def _owner(descriptor: int) -> str:
    words = os.pread(descriptor, 300, 0).decode("utf-8", "replace").split()
    if not words:
        return "another bgremover"
    where = f" on {printable(words[1])}" if words[1:] and words[1] != socket.gethostname() else ""
    return f"another bgremover (pid {printable(words[0])}{where})"


def _unusable(error: OSError, doing: str) -> BgremoverError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR):
        return SetupError(f"{doing}: {error.strerror}. Let folders.state name a folder of its own.")
    return local_fault(error, doing)


# --- the status socket ---------------------------------------------------------------------


class StatusSocket:
    """Answers whoever asks how the daemon is, for the length of an `async with`.

    The event loop itself answers, so a loop that stalls is a daemon that does not answer. Only
    the owner of the state folder's lock may open it.

    Args:
        state: The folder that holds the socket.
        answer: Returns what is told; it goes out as one JSON document.
    """

    def __init__(self, state: Path, answer: Callable[[], dict[str, Any]]) -> None:
        self._state = state
        self._answer = answer
        self._open = ExitStack()

    async def __aenter__(self) -> Self:
        """Begin to answer.

        Raises:
            SetupError: The state folder takes no sockets, or something else has the name.
            LocalFault: This machine cannot make the socket now.
        """
        import asyncio  # noqa: PLC0415 - slow to import, and `health` only asks

        def tell(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                writer.write(json.dumps(self._answer()).encode() + b"\n")
            finally:
                writer.close()

        with self._explained(), ExitStack() as stack:
            server = await asyncio.start_unix_server(tell, sock=self._listener(stack))
            stack.callback(server.close)
            self._open = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def _listener(self, stack: ExitStack) -> socket.socket:
        folder, address = stack.enter_context(_address(self._state))
        self._make_way(folder)
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        # Before bind: the file is then never there with another mode, whatever the umask.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(address)
        stack.callback(_unlink, folder)
        return listener

    @contextmanager
    def _explained(self) -> Iterator[None]:
        shown = printable(str(self._state))
        try:
            yield
        except OSError as error:
            if error.errno not in _NO_SOCKETS:
                doing = f"making {SOCKET_NAME} in the state folder {shown}"
                raise _unusable(error, doing) from error
            raise SetupError(
                f"the file system of the state folder {shown} takes no sockets "
                f"({error.strerror}). Put folders.state on a local disk."
            ) from error

    def _make_way(self, folder: int) -> None:
        try:
            found = os.lstat(SOCKET_NAME, dir_fd=folder)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            where = f"in the state folder {printable(str(self._state))}"
            raise SetupError(f"{SOCKET_NAME} {where} is no socket. Remove it.")
        # Left by a process that was killed: the lock says that nobody answers there.
        _unlink(folder)


def _unlink(folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(SOCKET_NAME, dir_fd=folder)


@contextmanager
def _address(state: Path) -> Iterator[tuple[int, bytes]]:
    """Open the state folder; give its descriptor and the address of the socket in it.

    Longer paths than an address can hold are reached through the descriptor.
    """
    folder = os.open(state, _OPEN_FOLDER)
    try:
        plain = os.fsencode(state / SOCKET_NAME)
        short = f"/proc/self/fd/{folder}/{SOCKET_NAME}".encode()
        yield folder, plain if len(plain) <= _LONGEST_ADDRESS else short
    finally:
        os.close(folder)


def ask_status(state: Path, timeout: float) -> dict[str, Any] | None:
    """Ask the daemon that owns a state folder how it is.

    Args:
        state: The folder.
        timeout: How long to wait for the whole answer, in seconds.

    Returns:
        What it told; None when no daemon listens.

    Raises:
        TimeoutError: One listens and gives no whole answer in time: its loop stalls.
        LocalFault: This user may not ask, or this machine cannot now.
    """
    try:
        with _address(state) as (_, address):
            told = _received(address, time.monotonic() + timeout)
    except (FileNotFoundError, NotADirectoryError, ConnectionError):
        return None
    except BlockingIOError as error:
        raise TimeoutError("the daemon takes no more questions: its loop stalls") from error
    except TimeoutError as error:
        raise TimeoutError(_STALLS) from error
    except OSError as error:
        raise local_fault(error, f"asking the daemon in {printable(str(state))}") from error
    return _read(told)


def _received(address: bytes, deadline: float) -> bytes:
    told = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
        asker.settimeout(_left(deadline))
        asker.connect(address)
        while part := asker.recv(65_536):
            told += part
            asker.settimeout(_left(deadline))
    return told


def _left(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError(_STALLS)
    return seconds


def _read(told: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(told)
    except ValueError as error:
        raise TimeoutError("the daemon listens but gave no whole answer") from error
    if not isinstance(answer, dict):
        raise TimeoutError("the daemon gave an answer that is none")
    return answer
