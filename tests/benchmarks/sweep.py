"""What does one sweep through a full inbox cost?

    python -m tests.benchmarks.sweep [--files 100000] [--folders 100] [--times 5]

Makes empty files in a temporary folder and sweeps them: as at the start, when nothing is known
yet, and as later on, when every file is known. Beside it `os.scandir` and `stat` alone, and the
same with an eighth of the files, to see what grows. All in CPU seconds.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bgremover.core.ignoring import Ignore
from bgremover.core.job import Identity
from bgremover.edges.inbox import Inbox
from tests.benchmarks.figures import Benchmark, Figure, alone

ROOM = 4096


@dataclass(frozen=True, slots=True)
class Options:
    """How much is done."""

    files: int = 100_000
    folders: int = 100
    times: int = 5


def fill(root: Path, files: int, folders: int) -> None:
    """Make `files` files, spread over `folders` folders."""
    for number in range(files):
        folder = root / f"{number % folders:04}"
        if number < folders:
            folder.mkdir(parents=True)
        (folder / f"IMG_{number:06}.jpg").touch()


def measure(options: Options, place: Path) -> list[Figure]:
    """Measure."""
    files, few = options.files, options.files // 8
    fill(place / "few", few, max(1, options.folders // 8))
    fill(place / "all", files, options.folders)
    inbox, small = Inbox(place / "all", Ignore()), Inbox(place / "few", Ignore())
    new = _cpu(options.times, lambda: inbox.sweep(_none, ROOM))
    known = _cpu(options.times, lambda: inbox.sweep(_all, ROOM))
    scan = _cpu(options.times, lambda: _scan(place / "all"))
    less = _cpu(options.times, lambda: small.sweep(_none, ROOM)) / few
    return [
        Figure(f"{files:,} files, nothing known", new, "s", note="CPU"),
        Figure(f"{files:,} files, all known", known, "s", note="CPU"),
        Figure("nothing known", new / scan, "x", to="scandir and stat"),
        Figure("CPU a file", new / files / less, "x", to=f"with {few:,} files", most=1.1),
    ]


def _none(_path: str, _identity: Identity) -> bool:
    return False


def _all(_path: str, _identity: Identity) -> bool:
    return True


def _cpu(times: int, work: Callable[[], object]) -> float:
    spent = []
    for _ in range(times):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return statistics.median(spent)


def _scan(root: Path) -> int:
    found, waiting = 0, [str(root)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    found += entry.stat(follow_symlinks=False).st_size == 0
    return found


BENCHMARK = Benchmark("sweep", "a sweep of 100,000 files", Options(), Options(times=3), measure)

if __name__ == "__main__":
    alone(BENCHMARK, __doc__)
