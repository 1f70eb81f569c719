"""On which processor cores the threads of a process may run."""

import contextlib
import os
from collections.abc import Iterator

from bgremover.affinity import GIVEN


def cores_of(pid: int) -> Iterator[set[int]]:
    """Tell where each thread of a process may run."""
    for name in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(ProcessLookupError):  # it has ended
            yield os.sched_getaffinity(int(name))


def share_a_core(pid: int) -> bool:
    """Whether the main thread has one core, and the others the same.

    The workshop's two threads may have had work that lasts and run anywhere. So may, for the
    moment, the main thread: while it starts a command, and when it asks the kernel for a core.
    Wait for it.
    """
    shared = os.sched_getaffinity(pid)
    others = [one for one in cores_of(pid) if one != shared]
    return len(shared) == 1 and all(one == GIVEN for one in others) and len(others) <= 2
