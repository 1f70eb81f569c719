"""Threads that share a core: of this process, and by the kernel's own word."""

import ctypes
import os
import platform
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bgremover.affinity import FOLLOW_SECONDS, GIVEN, LONG_SECONDS, Affinity, everywhere

pytestmark = pytest.mark.skipif(len(GIVEN) < 2, reason="needs two processor cores")
FIRST, SECOND = sorted(GIVEN)[:2] if len(GIVEN) > 1 else (0, 0)


class Steady:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Helper:
    """A thread that does what it is told, one thing after the other."""

    def __init__(self, affinity: Affinity) -> None:
        self.affinity = affinity
        self.id = 0
        self.begun, self.enough = threading.Event(), threading.Event()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        thread = threading.Thread(target=self._work)
        thread.start()
        assert self.begun.wait(10)
        try:
            yield
        finally:
            self.enough.set()
            thread.join()

    def _work(self) -> None:
        self.id = threading.get_native_id()
        with self.affinity.at_work():
            self.begun.set()
            self.enough.wait(10)


@pytest.fixture
def steady() -> Steady:
    return Steady()


@pytest.fixture
def sharing(steady: Steady) -> Iterator[Affinity]:
    affinity = Affinity(wanted=True, steady=steady)
    yield affinity
    affinity.end()
    assert cores() == {GIVEN}


def cores() -> set[frozenset[int]]:
    """Return where the threads of this process may run."""
    return {frozenset(os.sched_getaffinity(int(name))) for name in os.listdir("/proc/self/task")}


def test_all_threads_share_one_core_and_those_that_they_start(sharing: Affinity) -> None:
    with Helper(Affinity(wanted=False)).at_work():
        sharing.follow()
        assert sharing.shared in GIVEN
        assert cores() == {frozenset({sharing.shared})}
    with Helper(sharing).at_work():
        assert cores() == {frozenset({sharing.shared})}


def test_in_the_end_each_runs_anywhere_again(sharing: Affinity) -> None:
    with Helper(sharing).at_work():
        sharing.follow()
        sharing.end()
        assert cores() == {GIVEN}
        assert sharing.shared is None


def test_work_that_lasts_goes_to_the_other_cores_and_comes_back(
    sharing: Affinity, steady: Steady
) -> None:
    sharing.follow()
    helper = Helper(sharing)
    with helper.at_work():
        steady.now += LONG_SECONDS / 2
        sharing.release_long()
        assert os.sched_getaffinity(helper.id) == {sharing.shared}
        steady.now += LONG_SECONDS / 2
        sharing.release_long()
        assert os.sched_getaffinity(helper.id) == GIVEN
        assert os.sched_getaffinity(0) == {sharing.shared}


def test_a_thread_returns_to_the_shared_core_with_its_next_work(
    sharing: Affinity, steady: Steady
) -> None:
    sharing.follow()
    with sharing.at_work():
        steady.now += LONG_SECONDS
        sharing.release_long()
        assert os.sched_getaffinity(0) == GIVEN
    for _ in range(2):  # and may be released again
        with sharing.at_work():
            assert os.sched_getaffinity(0) == {sharing.shared}
            steady.now += LONG_SECONDS
            sharing.release_long()
            assert os.sched_getaffinity(0) == GIVEN


def test_threads_of_libraries_are_released_with_the_work(sharing: Affinity, steady: Steady) -> None:
    sharing.follow()
    with unknown_thread() as stranger, sharing.at_work():
        assert os.sched_getaffinity(stranger) == {sharing.shared}
        steady.now += LONG_SECONDS
        sharing.release_long()
        assert os.sched_getaffinity(stranger) == GIVEN


@contextmanager
def unknown_thread() -> Iterator[int]:
    """Run a thread of which `threading` knows nothing, as those of libraries."""
    import _thread  # noqa: PLC0415 - threads of its own are what only a library has

    told, enough = threading.Event(), threading.Event()
    ids: list[int] = []

    def work() -> None:
        ids.append(threading.get_native_id())
        told.set()
        enough.wait(10)

    _thread.start_new_thread(work, ())
    assert told.wait(10)
    try:
        yield ids[0]
    finally:
        enough.set()


def test_it_follows_the_kernel_and_only_now_and_then(steady: Steady) -> None:
    chosen = [FIRST, SECOND]
    affinity = Affinity(wanted=True, steady=steady, choose=lambda: chosen.pop(0))
    try:
        affinity.follow()
        assert cores() == {frozenset({FIRST})}
        steady.now += FOLLOW_SECONDS * 0.9
        affinity.follow()
        assert cores() == {frozenset({FIRST})}
        steady.now += FOLLOW_SECONDS * 0.1
        affinity.follow()
        assert cores() == {frozenset({SECOND})}
    finally:
        affinity.end()


def test_work_that_lasts_is_left_alone_when_the_others_move(steady: Steady) -> None:
    chosen = [FIRST, SECOND]
    affinity = Affinity(wanted=True, steady=steady, choose=lambda: chosen.pop(0))
    affinity.follow()
    helper = Helper(affinity)
    try:
        with helper.at_work():
            steady.now += FOLLOW_SECONDS
            affinity.release_long()
            affinity.follow()
            assert os.sched_getaffinity(helper.id) == GIVEN
            assert os.sched_getaffinity(0) == {SECOND}
    finally:
        affinity.end()


def test_unwanted_it_does_nothing(steady: Steady) -> None:
    affinity = Affinity(wanted=False, steady=steady)
    affinity.follow()
    with affinity.at_work():
        steady.now += LONG_SECONDS
        affinity.release_long()
    assert affinity.shared is None
    assert cores() == {GIVEN}


def test_a_process_that_is_started_runs_on_all_cores(sharing: Affinity) -> None:
    ask = [sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]
    sharing.follow()
    with everywhere():
        told = subprocess.check_output(ask, text=True)
    assert told.strip() == str(sorted(GIVEN))
    assert os.sched_getaffinity(0) == {sharing.shared}
    assert subprocess.check_output(ask, text=True).strip() == str([sharing.shared])


# --- a kernel that forbids it ---------------------------------------------------------------

_NUMBERS = {"x86_64": 203, "aarch64": 122}
"""Of sched_setaffinity(2)."""


def forbid_affinity() -> None:
    """Have the kernel refuse `sched_setaffinity` to this process, as a sandbox would."""
    load, jump_if_equal, give = 0x20, 0x15, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | 1  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO, EPERM
    program = b"".join(
        struct.pack("HBBI", *line)
        for line in (
            (load, 0, 0, 0),
            (jump_if_equal, 0, 1, _NUMBERS[platform.machine()]),
            (give, 0, 0, refuse),
            (give, 0, 0, allow),
        )
    )
    lines = ctypes.create_string_buffer(program, len(program))
    filtered = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(lines))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, seccomp, by_filter = 38, 22, 2
    assert libc.prctl(no_new_privileges, 1, 0, 0, 0) == 0
    assert libc.prctl(seccomp, by_filter, filtered, 0, 0) == 0, os.strerror(ctypes.get_errno())


def live_where_it_is_forbidden() -> None:
    """Do all that there is to do; fails if anything does, or if it was not forbidden."""
    forbid_affinity()
    steady = Steady()
    affinity = Affinity(wanted=True, steady=steady)
    affinity.follow()
    with affinity.at_work(), everywhere():
        steady.now += FOLLOW_SECONDS
        affinity.release_long()
        affinity.follow()
    affinity.end()
    assert affinity.shared is None
    assert cores() == {GIVEN}
    with pytest.raises(PermissionError):
        os.sched_setaffinity(0, GIVEN)


@pytest.mark.skipif(platform.machine() not in _NUMBERS, reason="needs x86-64 or aarch64")
def test_where_it_is_forbidden_all_stays_as_it_is() -> None:
    code = "from tests.test_affinity import live_where_it_is_forbidden as live; live()"
    root = Path(__file__).parents[1]
    ask = [sys.executable, "-c", code]
    ended = subprocess.run(ask, cwd=root, check=False, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 0, ended.stderr
