"""Which processor cores the threads run on.

Python's lock lets one thread run at a time. Where threads that take turns sit on different cores,
each turn first wakes a core that sleeps, and of small images that is more than the work itself.
So all threads share one core, and only work that lasts goes to the others: Pillow lets go of the
lock while it decodes. What it saves is in the README, under Measured.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LONG_SECONDS = 0.05
"""Work that lasts so long is worth a core of its own, and so is any work on a core so busy that
it takes that long."""
FOLLOW_SECONDS = 5.0
_NAP = 0.001
_TASKS = "/proc/self/task"
_PROCESSOR = 39 - 3
"""The place of the field in /proc/PID/stat after the name, proc_pid_stat(5)."""


def _allowed() -> frozenset[int]:
    if not hasattr(os, "sched_getaffinity"):  # not Linux
        return frozenset()
    try:
        return frozenset(os.sched_getaffinity(0))
    except OSError:  # a sandbox that forbids even to ask
        return frozenset()


GIVEN = _allowed()
"""The cores that this process may use, read before any of its threads is bound to one."""


class Affinity:
    """The threads of this process, and the core that they share.

    Where the kernel does not allow it, where there is one core only, and where Python runs without
    that lock, all stays as it is.

    Args:
        wanted: Whether they are to share one.
        steady: The steady clock, in seconds.
        choose: Frees the thread that calls it and returns the core on which the kernel runs it.
    """

    def __init__(
        self,
        *,
        wanted: bool,
        steady: Callable[[], float] = time.monotonic,
        choose: Callable[[], int] | None = None,
    ) -> None:
        self._wanted = wanted and len(GIVEN) > 1 and _locked()
        self._steady = steady
        self._choose = choose or chosen_core
        self._shared: int | None = None
        self._follows_at = 0.0
        self._at_work: dict[int, float] = {}
        self._released: set[int] = set()

    @property
    def shared(self) -> int | None:
        """The core that the threads share; None while each may run anywhere."""
        return self._shared

    def follow(self) -> None:
        """Have all threads share the core on which the kernel would run this one now.

        It may be another than the last time, where something else is busy on that one. Called
        again within `FOLLOW_SECONDS` it does nothing.
        """
        now = self._steady()
        if not self._wanted or now < self._follows_at:
            return
        self._follows_at = now + FOLLOW_SECONDS
        try:
            core = self._choose()
            if core != self._shared:
                self._shared = core
                _bind(_threads() - self._released, {core})
            os.sched_setaffinity(0, {core})
        except OSError:  # a sandbox that forbids it: it was to be faster, not to be at all
            self.end()
            self._wanted = False

    def end(self) -> None:
        """Let every thread run anywhere again."""
        if self._shared is not None:
            self._shared = None
            self._released.clear()
            with contextlib.suppress(OSError):
                _bind(_threads(), GIVEN)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Do a piece of work in this thread: on the shared core, as long as it is short."""
        thread = threading.get_native_id()
        if thread in self._released:
            self._released.discard(thread)
            if self._shared is not None:
                with contextlib.suppress(OSError):
                    _bind({thread}, {self._shared})
        self._at_work[thread] = self._steady()
        try:
            yield
        finally:
            del self._at_work[thread]

    def release_long(self) -> None:
        """Let threads run anywhere whose piece of work lasts `LONG_SECONDS`."""
        if self._shared is None:
            return
        begun = self._steady() - LONG_SECONDS
        lasting = {thread for thread, since in list(self._at_work.items()) if since <= begun}
        if new := lasting - self._released:
            self._released |= new
            with contextlib.suppress(OSError):
                _bind(new | _of_libraries(), GIVEN)


@contextlib.contextmanager
def everywhere() -> Iterator[None]:
    """Let a process that is started meanwhile run on all the cores that this one was given."""
    before = _allowed()
    if before == GIVEN:
        yield
        return
    _bind({0}, GIVEN)
    try:
        yield
    finally:
        _bind({0}, before)


def _locked() -> bool:
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def chosen_core() -> int:
    """Let this thread run anywhere; return the core on which the kernel runs it then.

    Raises:
        OSError: The kernel does not allow it, or does not tell.
    """
    os.sched_setaffinity(0, GIVEN)
    time.sleep(_NAP)  # the kernel chooses a core when a thread wakes
    stat = Path("/proc/thread-self/stat").read_text()
    return int(stat.rpartition(")")[2].split()[_PROCESSOR])


def _threads() -> set[int]:
    return {int(name) for name in os.listdir(_TASKS)}


def _of_libraries() -> set[int]:
    # A decoder may have threads of its own, which were started on the shared core.
    return _threads() - {thread.native_id for thread in threading.enumerate() if thread.native_id}


def _bind(threads: set[int], cores: set[int] | frozenset[int]) -> None:
    for thread in threads:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(thread, cores)
