"""What does one sweep through a full inbox cost?

    python -m tests.benchmarks.sweep [--files 100000] [--folders 100] [--times 5]

Makes empty files in a temporary folder and sweeps them: once as at the start, when nothing is
known yet, and once as later on, when every file is known. Prints CPU seconds; judges nothing.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bgremover.core.ignoring import Ignore
from bgremover.core.job import Identity
from bgremover.edges.inbox import Inbox

Skip = Callable[[str, Identity], bool]
ROOM = 4096


def fill(root: Path, files: int, folders: int) -> None:
    """Make `files` files, spread over `folders` folders."""
    for number in range(files):
        folder = root / f"{number % folders:04}"
        if number < folders:
            folder.mkdir()
        (folder / f"IMG_{number:06}.jpg").touch()


def measure(inbox: Inbox, skip: Skip, times: int) -> str:
    """Sweep and return the figures in words."""
    files, seconds = 0, []
    for _ in range(times):
        began = time.process_time()
        files = inbox.sweep(skip, ROOM).files
        seconds.append(time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    middle = statistics.median(seconds)
    each = middle / max(1, files) * 1e6
    return f"{middle:.3f} s of CPU for {files:,} files ({each:.2f} us each), peak {peak:.0f} MB"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--folders", type=int, default=100)
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        fill(Path(name), options.files, options.folders)
        inbox = Inbox(name, Ignore())
        nothing, everything = (lambda _path, _identity: False), (lambda _path, _identity: True)
        sys.stdout.write(f"nothing known: {measure(inbox, nothing, options.times)}\n")
        sys.stdout.write(f"all known: {measure(inbox, everything, options.times)}\n")


if __name__ == "__main__":
    main()
