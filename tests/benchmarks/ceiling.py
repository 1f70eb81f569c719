"""How many images a second can bgremover do when the API takes no time?

    python -m tests.benchmarks.ceiling [--images 20000] [--workers 10]

`once` over small images, the stand-in at zero latency in a process of its own on the same cores.
A quarter of them is done again with `queue.share_core: false`.
What the disk alone gives is measured beside it: a file written, synced and renamed, its folder
synced, one after the other.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.figures import Benchmark, Figure, alone
from tests.benchmarks.ground import Log, Place, Run, at_work, fill, stand_in, steady_rate

IMAGES_A_SECOND = 150


@dataclass(frozen=True, slots=True)
class Options:
    """How much is done."""

    images: int = 20_000
    workers: int = 10
    resolution: str = "result"


def measure(options: Options, place: Path) -> list[Figure]:
    """Measure."""
    disk = durable_files(place, 200)
    paths = fill(place / "images", options.images)
    with stand_in(0.0) as api:
        before = api.cpu()
        run, log = _once(place / "ours", options, api.url, paths)
        theirs = api.cpu() - before
        quarter = paths[: options.images // 4]
        _, apart = _once(place / "apart", options, api.url, quarter, share_core=False)
    rate, rate_apart = options.images / at_work(log), len(quarter) / at_work(apart)
    each = f"{options.images:,} small images, {options.workers} workers"
    files = f"{disk:.0f} a second, one by one"
    return [
        Figure("images a second", rate, "/s", least=IMAGES_A_SECOND, note=each),
        Figure("images a second, without ramp and tail", steady_rate(log), "/s"),
        Figure("images a second, threads on all cores", rate_apart, "/s"),
        Figure("images a second", rate / rate_apart, "x", to="threads on all cores"),
        Figure("CPU an image", run.cpu / options.images * 1e3, "ms", note=_share(run)),
        Figure("CPU of the stand-in an image", theirs / options.images * 1e3, "ms"),
        Figure("durable files", rate / disk, "x", to="the disk alone", note=files),
        Figure("peak memory", run.peak, "MB", most=100),
    ]


def _once(
    root: Path, options: Options, url: str, paths: list[Path], *, share_core: bool = True
) -> tuple[Run, Log]:
    settings = {
        "queue": {"workers": options.workers, "share_core": share_core},
        "output": {"resolution": options.resolution},
    }
    site = Place(root, url, settings)
    site.take(paths)
    run, log = site.once()
    saved = len(log.moments("image.saved"))
    assert saved == len(paths), f"{saved} of {len(paths)} are saved"
    return run, log


def _share(run: Run) -> str:
    return f"{run.cpu / run.wall:.2f} cores on average"


def durable_files(place: Path, count: int) -> float:
    """Return how many files a second can be written, renamed and made durable, one at a time."""
    folder = place / "disk"
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    began = time.monotonic()
    for number in range(count):
        with (folder / f".{number}").open("wb") as file:
            file.write(b"x" * 2000)
            file.flush()
            os.fsync(file.fileno())
        (folder / f".{number}").rename(folder / f"{number}")
        os.fsync(descriptor)
    spent = time.monotonic() - began
    os.close(descriptor)
    return count / spent


BENCHMARK = Benchmark(
    "ceiling", "images a second at zero latency", Options(), Options(images=2000), measure
)

if __name__ == "__main__":
    alone(BENCHMARK, __doc__)
