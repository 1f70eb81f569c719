"""How many images a second can bgremover do when the API takes no time?

    python -m tests.benchmarks.ceiling [--images 20000] [--workers 10]

`once` over small images, the stand-in at zero latency in a process of its own on the same cores.
What the disk alone gives is measured beside it: a file written, synced and renamed, its folder
synced, one after the other.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.figures import Benchmark, Figure, alone
from tests.benchmarks.ground import Place, Run, at_work, fill, stand_in, steady_rate

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
        settings = {
            "queue": {"workers": options.workers},
            "output": {"resolution": options.resolution},
        }
        ours = Place(place / "ours", api.url, settings)
        ours.take(paths)
        before = api.cpu()
        run, log = ours.once()
        theirs = api.cpu() - before
    saved = len(log.moments("image.saved"))
    assert saved == options.images, f"{saved} of {options.images} are saved"
    rate = options.images / at_work(log)
    each = f"{options.images:,} small images, {options.workers} workers"
    files = f"{disk:.0f} a second, one by one"
    return [
        Figure("images a second", rate, "/s", least=IMAGES_A_SECOND, note=each),
        Figure("images a second, without ramp and tail", steady_rate(log), "/s"),
        Figure("CPU an image", run.cpu / options.images * 1e3, "ms", note=_share(run)),
        Figure("CPU of the stand-in an image", theirs / options.images * 1e3, "ms"),
        Figure("durable files", rate / disk, "x", to="the disk alone", note=files),
        Figure("peak memory", run.peak, "MB", most=100),
    ]


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
