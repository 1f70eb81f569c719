"""Does an image cost the same whether a thousand or a hundred thousand are worked through?

    python -m tests.benchmarks.growth [--counts 1000,2000,4000,8000] [--rows 100000]

`once` over so many small images, the stand-in at zero latency. The start is taken out: what counts
is the CPU of each image more between two runs. `--counts 12500,25000,50000,100000` takes an hour,
in which a machine may change its speed by more than what is looked for; so there are also runs
in turn with a fresh ledger and with one that has many cut-outs behind it, and their medians.
"""

import itertools
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.figures import Benchmark, Figure, alone
from tests.benchmarks.ground import Place, Run, fill, stand_in
from tests.benchmarks.past import write_past

WORKERS = 10


@dataclass(frozen=True, slots=True)
class Options:
    """How much is done: images of each run, each more than the one before; and of those in turn."""

    counts: tuple[int, ...] = (1000, 2000, 4000, 8000)
    rows: int = 100_000
    rounds: int = 5
    images: int = 500


def measure(options: Options, place: Path) -> list[Figure]:
    """Measure."""
    with stand_in(0.0) as api:
        runs = [(count, _once(place / str(count), api.url, count)) for count in options.counts]
        return [*_figures(runs), _with_a_past(options, place, api.url)]


def _with_a_past(options: Options, place: Path, url: str) -> Figure:
    write_past(place / "past", options.rows)
    costs: dict[Path | None, list[float]] = {None: [], place / "past": []}
    for _ in range(options.rounds):
        for past, found in costs.items():
            counts = (1, 1 + options.images)  # what is more than one costs no start
            few, many = (_once(place / "in turn", url, count, past).cpu for count in counts)
            found.append((many - few) / options.images)
    fresh, aged = map(statistics.median, costs.values())
    note = f"{fresh * 1e3:.1f} ms fresh; {options.rounds} runs each, in turn"
    named = f"CPU an image after {options.rows:,}"
    return Figure(named, aged / fresh, "x", to="fresh ledger", most=1.1, note=note)


def _once(root: Path, url: str, count: int, past: Path | None = None) -> Run:
    settings = {"queue": {"workers": WORKERS}, "output": {"resolution": "result"}}
    site = Place(root, url, settings)
    if past is not None:
        shutil.copytree(past, site.state)
    fill(site.inbox, count)
    run, log = site.once()
    saved = len(log.moments("image.saved"))
    assert saved == count, f"{saved} of {count} are saved"
    shutil.rmtree(root)
    return run


def _figures(runs: list[tuple[int, Run]]) -> Iterator[Figure]:
    pairs = [((0, Run(0.0, 0.0, 0.0)), runs[0]), *itertools.pairwise(runs)]
    costs = [
        (after[1].cpu - before[1].cpu) / (after[0] - before[0]) * 1e3 for before, after in pairs
    ]
    for (before, after), cost in zip(pairs, costs, strict=True):
        note = f"peak {after[1].peak:.0f} MB, {after[0] / after[1].wall:.0f} images/s"
        note += ", with the start" if not before[0] else ""
        yield Figure(f"CPU an image, {before[0]:,} to {after[0]:,}", cost, "ms", note=note)
    if len(costs) > 2:
        yield Figure(
            "CPU an image, the last of these", costs[-1] / costs[1], "x", to="second", most=1.1
        )
    more = runs[-1][1].peak - runs[0][1].peak
    yield Figure("more memory for the last", more, "MB", to="first", most=5)


BENCHMARK = Benchmark(
    "growth",
    "CPU and memory at n, 2n, 4n, 8n images",
    Options(),
    Options((500, 1000, 2000), rounds=3),
    measure,
)

if __name__ == "__main__":
    alone(BENCHMARK, __doc__)
