"""What does bgremover cost while nothing comes?

    python -m tests.benchmarks.idle [--seconds 60]

A daemon with the default settings watches an inbox: an empty one, and one in which 1,000 originals
stay (`originals: keep`). Counted over a minute, some seconds after the last cut-out: CPU, how often
a thread woke up, system calls that write, and what was written to the disk.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.figures import Benchmark, Figure, alone
from tests.benchmarks.ground import Place, fill, stand_in

REST_SECONDS = 5.0
"""How long after its last work the daemon counts as idle."""


@dataclass(frozen=True, slots=True)
class Options:
    """How much is done."""

    seconds: int = 60
    kept: int = 1000


@dataclass(frozen=True, slots=True)
class Counted:
    """What a process has used so far: CPU in nanoseconds, the others as counts and bytes."""

    cpu: int
    wakings: int
    writes: int
    written: int
    read: int


def count(pid: int) -> Counted:
    """Look at a process and its threads."""
    cpu = wakings = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        cpu += int((thread / "schedstat").read_text().split()[0])
        status = (thread / "status").read_text()
        wakings += int(re.findall(r"\nvoluntary_ctxt_switches:\s+(\d+)", status)[0])
    told = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    written, read = int(told["write_bytes"]), int(told["read_bytes"])
    return Counted(cpu, wakings, int(told["syscw"]), written, read)


def measure(options: Options, place: Path) -> list[Figure]:
    """Measure."""
    with stand_in(0.0) as api:
        empty = Place(place / "empty", api.url)
        kept = Place(place / "kept", api.url, {"originals": "keep", "queue": {"workers": 10}})
        fill(kept.inbox, options.kept)
        return [
            *_figures("empty inbox", _idle(empty, 0, options.seconds), options.seconds),
            *_figures(
                f"{options.kept:,} originals kept",
                _idle(kept, options.kept, options.seconds),
                options.seconds,
            ),
        ]


def _idle(place: Place, images: int, seconds: int) -> tuple[Counted, Counted]:
    with place.running() as (pid, log):
        log.until("image.saved", images, 60 + images / 10)
        time.sleep(REST_SECONDS)
        before = count(pid)
        time.sleep(seconds)
        return before, count(pid)


def _figures(what: str, found: tuple[Counted, Counted], seconds: int) -> Iterator[Figure]:
    before, after = found
    cpu = (after.cpu - before.cpu) / 1e9 / seconds
    yield Figure(f"CPU, {what}", cpu * 100, "%", most=0.1, note=f"over {seconds} s")
    yield Figure(f"wake-ups, {what}", (after.wakings - before.wakings) / seconds * 60, "/min")
    yield Figure(f"writing calls, {what}", (after.writes - before.writes) / seconds * 60, "/min")
    yield Figure(f"written to the disk, {what}", after.written - before.written, "bytes", most=0)
    yield Figure(f"read from the disk, {what}", after.read - before.read, "bytes")


BENCHMARK = Benchmark(
    "idle", "CPU, wake-ups and disk writes of an idle daemon", Options(), Options(20, 200), measure
)

if __name__ == "__main__":
    alone(BENCHMARK, __doc__)
