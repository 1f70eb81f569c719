"""How soon is a dropped file at the API?

    python -m tests.benchmarks.latency [--drops 100] [--together 1000]

A real daemon with the default `watch.settle_seconds`, the stand-in in a process of its own.
On a local disk a file that is closed and whole is taken before that, so figures may be negative.
First one file after the other into the idle daemon: from its drop to its POST, less the settle
time. Then many files at once: from the last drop to the last claim, less the settle time.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.figures import Benchmark, Figure, alone
from tests.benchmarks.ground import Place, fill, small, stand_in

SETTLE = 2.0
WATCH = {"settle_seconds": SETTLE}


@dataclass(frozen=True, slots=True)
class Options:
    """How much is done."""

    drops: int = 100
    together: int = 1000


def measure(options: Options, place: Path) -> list[Figure]:
    """Measure."""
    with stand_in(0.0) as api:
        one = Place(place / "one", api.url, {"watch": WATCH})
        queue = {"capacity": 2 * options.together, "workers": 10}
        many = Place(place / "many", api.url, {"watch": WATCH, "queue": queue})
        return [*_one_by_one(one, options.drops), _together(many, options.together)]


def _one_by_one(place: Place, drops: int) -> Iterator[Figure]:
    """Drop files into an idle daemon."""
    dropped = {}
    beside = place.root / "dropping"
    with place.running() as (_, log):
        for number in range(drops):
            beside.write_bytes(small(number))
            beside.rename(place.inbox / f"{number}.jpg")
            dropped[f"{number}.jpg"] = time.time()
            log.until("image.saved", number + 1)
        sent = log.moments("image.submitted")
    late = sorted(sent[name] - dropped[name] - SETTLE for name in dropped)
    p99 = late[min(len(late) - 1, int(0.99 * len(late)))]
    note = f"{drops} drops, most {late[-1] + SETTLE:.3f} s"
    middle = statistics.median(late)
    yield Figure(f"drop to POST less {SETTLE:g} s, p50", middle, "s", note=note)
    yield Figure(f"drop to POST less {SETTLE:g} s, p99", p99, "s")
    yield Figure("drop to POST, p50", middle + SETTLE, "s")
    yield Figure("drop to POST, p99", p99 + SETTLE, "s")


def _together(place: Place, count: int) -> Figure:
    """Drop many files at once."""
    paths = fill(place.root / "beside", count)
    with place.running() as (_, log):
        for path in paths:
            path.rename(place.inbox / path.name)
        dropped = time.time()
        log.until("image.saved", count, 120)
        claimed = log.moments("image.claimed")
    late = max(claimed.values()) - dropped
    return Figure(f"{count:,} files at once, the last claimed after", late, "s")


BENCHMARK = Benchmark("latency", "drop to POST", Options(), Options(20, 500), measure)

if __name__ == "__main__":
    alone(BENCHMARK, __doc__)
