"""How soon is a dropped file at the API?

    python -m tests.benchmarks.latency [--drops 30] [--together 1000]

A real daemon with the default `watch.settle_seconds`, the stand-in in a process of its own.
On a local disk a file that is closed and whole is taken before that, so figures may be negative.
First one file after the other into the idle daemon: from its drop to its POST, less the settle
time. Then many files at once: from the last drop to the last claim, less the settle time. Then ten
uploads of 10 MB in flight at once: the most memory the daemon had. Prints; judges nothing.
"""

import argparse
import re
import statistics
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.throughput import draw, sandbox
from tests.site import Process, Site, photo, until

SETTLE = 2.0
WATCH = {"settle_seconds": SETTLE, "poll_seconds": 5, "rescan_seconds": 300}


def moments(process: Process, event: str) -> dict[str, float]:
    """Return when each file met `event` first, as Unix time."""
    found: dict[str, float] = {}
    for line in process.events(event):
        found.setdefault(line["file"], datetime.fromisoformat(line["timestamp"]).timestamp())
    return found


def place(root: Path, url: str, **queue: int) -> Site:
    """Return folders and a configuration with the default settle time."""
    return Site(root, url, watch=WATCH, queue=queue, api={"base_url": url})


def one_by_one(root: Path, url: str, drops: int) -> str:
    """Drop files into an idle daemon."""
    site, dropped = place(root, url), {}
    with site.running() as daemon:
        daemon.until_event("daemon.ready")
        for number in range(drops):
            site.drop(f"{number}.jpg", photo(number))
            dropped[f"{number}.jpg"] = time.time()
            daemon.until_event("image.saved", number + 1)
        sent = moments(daemon, "image.submitted")
        daemon.end()
    late = sorted(sent[name] - dropped[name] - SETTLE for name in dropped)
    p99 = late[min(len(late) - 1, int(0.99 * len(late)))]
    return (
        f"drop to POST, less {SETTLE:g} s: p50 {statistics.median(late):.3f} s, p99 {p99:.3f} s, "
        f"most {late[-1]:.3f} s ({drops} drops)"
    )


def all_together(root: Path, url: str, count: int) -> str:
    """Drop many files at once."""
    site = place(root, url, capacity=2 * count, workers=10)
    beside = root / "beside"
    beside.mkdir()
    for number in range(count):
        (beside / f"{number}.jpg").write_bytes(photo(number))
    with site.running() as daemon:
        daemon.until_event("daemon.ready")
        for path in beside.iterdir():
            path.rename(site.inbox / path.name)
        dropped = time.time()
        daemon.until_event("image.claimed", count, 120)
        claimed = moments(daemon, "image.claimed")
        daemon.end()
    late = max(claimed.values()) - dropped - SETTLE
    return f"{count} files at once: the last is claimed {late:.2f} s after the settle time"


def memory(root: Path, url: str) -> str:
    """Have ten uploads of 10 MB in flight."""
    site = place(root, url, workers=10)
    paths = draw(site.root, 30, 9.9)
    with site.running() as daemon:
        daemon.until_event("daemon.ready")
        for path in paths:
            path.rename(site.inbox / path.name)
        until(lambda: len(daemon.events("image.saved")) == len(paths), 120)
        status = Path(f"/proc/{daemon.popen.pid}/status").read_text()
        daemon.end()
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1000
    size = max(_size(line) for line in daemon.events("image.submitted"))
    return f"30 images of {size / 1e6:.1f} MB, ten in flight: peak RSS {peak:.0f} MB"


def _size(line: dict[str, Any]) -> int:
    return int(line["bytes"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--drops", type=int, default=30)
    parser.add_argument("--together", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, sandbox(0.5) as url:
        root = Path(scratch)
        for name in ("one", "all", "memory"):
            (root / name).mkdir()
        sys.stdout.write(one_by_one(root / "one", url, options.drops) + "\n")
        sys.stdout.write(all_together(root / "all", url, options.together) + "\n")
        sys.stdout.write(memory(root / "memory", url) + "\n")


if __name__ == "__main__":
    main()
