"""How much memory does bgremover take with a full inbox and large uploads in flight?

    python -m tests.benchmarks.memory [--waiting 100000] [--large 40] [--small 1000]

Files wait in the inbox, and images of nearly 10 MB go out, ten at a time; then small ones, to see
whether the memory grows with what was done. Once with results kept as they come, once with
cut-outs drawn at full size, which takes what the pictures take.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.figures import Benchmark, Figure, alone
from tests.benchmarks.ground import Place, fill, large, memory, peak_memory, small, stand_in

WORKERS = 10
LATENCY = 0.5
MEGABYTES = 9.9
FOLDERS = 100


@dataclass(frozen=True, slots=True)
class Options:
    """How much is done."""

    waiting: int = 100_000
    large: int = 40
    small: int = 1000


def measure(options: Options, place: Path) -> list[Figure]:
    """Measure."""
    first = large(MEGABYTES)
    with stand_in(LATENCY) as api:
        return [
            *_figures(options, api.url, place / "result", first, "result"),
            *_figures(options, api.url, place / "original", first, "original"),
        ]


def _figures(
    options: Options, url: str, root: Path, first: bytes, resolution: str
) -> Iterator[Figure]:
    settings = {"queue": {"workers": WORKERS}, "output": {"resolution": resolution}}
    site = Place(root, url, settings)
    # The folder itself is swept first: the large ones are claimed before those in sub-folders.
    fill(site.inbox, options.large, first)
    _let_wait(site.inbox, options.waiting)
    with site.running() as (pid, log):
        log.until("image.saved", options.large + 50, 300)
        peak, early = peak_memory(pid), memory(pid)
        sent = [line["bytes"] for line in log.lines if line["event"] == "image.submitted"]
        log.until("image.saved", options.large + 50 + options.small, 60 + options.small)
        late = memory(pid)
    assert sorted(sent)[-options.large] > MEGABYTES * 0.8e6, "the large ones did not go first"
    what = "results as they come" if resolution == "result" else "cut-outs at full size"
    note = f"{options.waiting:,} files waiting, ten of {max(sent) / 1e6:.1f} MB in flight"
    most = 100 if resolution == "result" else None
    yield Figure(f"peak memory, {what}", peak, "MB", most=most, note=note)
    yield Figure(f"memory after these, {what}", early, "MB")
    yield Figure(f"growth over {options.small:,} more, {what}", late - early, "MB", most=3)


def _let_wait(inbox: Path, count: int) -> None:
    for number in range(count):
        folder = inbox / f"w{number % FOLDERS:03}"
        if number < FOLDERS:
            folder.mkdir()
        (folder / f"{number:06}.jpg").write_bytes(small(number))


BENCHMARK = Benchmark(
    "memory",
    "peak memory: 100,000 files waiting, ten uploads of 10 MB",
    Options(),
    Options(large=20, small=200),
    measure,
)

if __name__ == "__main__":
    alone(BENCHMARK, __doc__)
