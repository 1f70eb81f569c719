"""Runs a piece of a test in a process of its own: another user, own mounts, fewer system calls.

The piece is a plain function; what it raises fails the test. What it needs and cannot have skips
the test with the reason.
"""

import contextlib
import ctypes
import errno
import os
import platform
import signal
import struct
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

NOBODY = 65534
_CLONE_NEWNS = 0x00020000
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
_SKIPPED = 77
_NUMBERS: dict[str, dict[str, tuple[int, ...]]] = {
    "x86_64": {"renameat2": (316,), "link": (86, 265), "fsync": (74,), "mkdir": (83, 258)},
    "aarch64": {"renameat2": (276,), "link": (37,), "fsync": (82,), "mkdir": (34,)},
}
_DISK_EVENTS = frozenset(
    {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.utime", "os.chown", "os.chmod"}
)

_libc = ctypes.CDLL(None, use_errno=True)


class Missing(Exception):
    """The machine does not have what the piece needs."""


def apart(
    piece: Callable[[], object],
    *,
    uid: int | None = None,
    mounts: Mapping[Path, str] | None = None,
    refused: Mapping[str, int] | None = None,
) -> None:
    """Run `piece` in a forked process.

    Args:
        piece: What is run; its exceptions fail the test.
        uid: The user and group that runs it; needs root.
        mounts: tmpfs to mount where nobody else sees them, with their options; needs root.
        refused: System calls that fail, with the error number they fail with.
    """

    def prepared() -> None:
        _mount(mounts or {})
        if uid is not None:
            _become(uid)
        refuse(refused or {})
        piece()

    status, words = _forked(prepared)
    if status == _SKIPPED:
        pytest.skip(words)
    assert status == 0, f"in a process of its own (status {status}):\n{words}"


def dies_at(moment: int, piece: Callable[[], object], refused: Mapping[str, int]) -> bool:
    """Run `piece` in a process that dies right before its call number `moment` that alters a disk.

    Returns:
        Whether it died; False when it came to its end before.
    """

    def mortal() -> None:
        refuse(refused)
        left = moment

        def count(event: str, _arguments: object) -> None:
            nonlocal left
            if event in _DISK_EVENTS:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        piece()

    status, words = _forked(mortal)
    if status == _SKIPPED:
        pytest.skip(words)
    assert status in (0, -signal.SIGKILL), words
    return status != 0


def _forked(piece: Callable[[], None]) -> tuple[int, str]:
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # The child never uses what other threads may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        os.close(reading)
        _live(piece, writing)
    os.close(writing)
    with open(reading, encoding="utf-8", errors="replace") as pipe:
        words = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), words


def _live(piece: Callable[[], None], writing: int) -> None:
    status, words = 0, ""
    try:
        piece()
    except Missing as missing:
        status, words = _SKIPPED, str(missing)
    except BaseException:  # noqa: BLE001 - told to the parent, which fails
        status, words = 1, traceback.format_exc()
    with contextlib.suppress(OSError):
        os.write(writing, words.encode(errors="replace")[:60_000])
    os._exit(status)


def _mount(mounts: Mapping[Path, str]) -> None:
    if not mounts:
        return
    if os.geteuid() != 0 or _libc.unshare(_CLONE_NEWNS):
        raise Missing("needs root and CAP_SYS_ADMIN, to mount a small file system of its own")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    for point, options in mounts.items():
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(point)], check=True)


def remount(point: Path, options: str) -> None:
    """Change the options of a mount made by `apart`, inside its piece."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(point)], check=True)


def _become(uid: int) -> None:
    if os.geteuid() != 0:
        raise Missing("needs root, to be another user for a moment")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def refuse(calls: Mapping[str, int]) -> None:
    """Let system calls fail in this process from now on, as on a file system without them."""
    if not calls:
        return
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        raise Missing(f"the numbers of system calls on {platform.machine()} are not known here")
    failures = [(number, error) for name, error in calls.items() for number in numbers[name]]
    # A filter in classic BPF: load the number, compare with each, answer with its error.
    program = [struct.pack("HBBI", 0x20, 0, 0, 0)]
    for number, error in failures:
        program.append(struct.pack("HBBI", 0x15, 0, 1, number))
        program.append(struct.pack("HBBI", 0x06, 0, 0, 0x00050000 | error))
    program.append(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000))
    code = ctypes.create_string_buffer(b"".join(program))
    head = struct.pack("HP", len(program), ctypes.addressof(code))
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, head, 0, 0):
        raise Missing(f"needs seccomp filters: {errno.errorcode[ctypes.get_errno()]}")


@contextlib.contextmanager
def open_to_all() -> Iterator[Path]:
    """Make an empty folder that every user can reach, unlike pytest's, and remove it again."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        os.chmod(name, 0o777)  # noqa: S103 - the point of it
        yield Path(name)
