"""Is anything missed when very many files come at once, and how soon is it known?

    python -m tests.benchmarks.burst [--files 50000] [--moved 20000] [--packed 20000] [--busy 10]

Watches a temporary folder with the real observer and intake while a process of its own creates
files as fast as it can, moves a folder's files in, and unpacks a tar; the last one while the
workshop has its hands full. Nothing is claimed, so that memory shows what a backlog costs.
Tells, for each burst, after how many seconds all were known, how many no event had told of, and
the memory. With `--folder` on a tmpfs the bursts are fastest.
"""

import asyncio
import io
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bgremover.affinity import Affinity
from bgremover.core.ignoring import Ignore
from bgremover.core.settling import Patience
from bgremover.edges.inbox import Inbox
from bgremover.intake import Intake, Rhythm
from bgremover.lookout import Lookout, Watching
from bgremover.studio.intake import Limits
from bgremover.timing import Clock
from bgremover.workshop import Craft, Workshop
from tests.benchmarks.figures import Benchmark, Figure, alone
from tests.benchmarks.ground import large

CREATE = """
import os, sys
for number in range(int(sys.argv[2])):
    os.close(os.open(f"{sys.argv[1]}/{number:06}.jpg", os.O_WRONLY | os.O_CREAT))
"""
MOVE = """
import os, sys
for name in os.listdir(sys.argv[1]):
    os.rename(f"{sys.argv[1]}/{name}", f"{sys.argv[2]}/{name}")
"""


@dataclass(frozen=True, slots=True)
class Found:
    """What became of one burst: `seconds` after its end until all were known."""

    files: int
    burst_seconds: float
    seconds: float
    untold: int
    megabytes: float
    grown: float


class Ground:
    """A folder that is watched; `known` counts what the intake knows to wait there."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.root = place / "inbox"
        self.root.mkdir()
        inbox = Inbox(self.root, Ignore())
        self.told = 0
        self.intake = Intake(
            inbox,
            Patience(2.0, 0.5, 600.0),
            Clock(),
            lambda _: False,
            rhythm=Rhythm(300.0, 5.0),
            trust_ctime=True,
        )
        watching = Watching("native", recursive=True, poll_seconds=5.0, rescan_seconds=300.0)
        self.lookout = Lookout(inbox, self.intake, watching, lambda _: None)

    def known(self) -> int:
        """Return how many files the intake knows of."""
        return self.intake.waiting

    async def burst(self, command: list[str], files: int, limit: float = 60.0) -> Found:
        """Run `command`, which brings `files` files; wait until all are known."""
        before, missed, memory = self.known(), self.intake.missed, resident()
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(*command)
        await process.wait()
        ended = time.monotonic()
        end = before + files
        while self.known() < end and time.monotonic() < ended + limit:  # noqa: ASYNC110 - measured
            await asyncio.sleep(0.02)
        done = time.monotonic()
        if self.known() != before + files:
            raise AssertionError(f"{self.known() - before} of {files} files are known")
        return Found(
            files,
            ended - began,
            done - ended,
            self.intake.missed - missed,
            resident(),
            resident() - memory,
        )


def resident() -> float:
    """Return the memory of this process, in megabytes."""
    with open("/proc/self/statm", encoding="ascii") as numbers:
        return int(numbers.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


@asynccontextmanager
async def busy(images: int, scratch: Path) -> AsyncIterator[None]:
    """Look at so many images all the time, as is done while calls are in flight."""
    craft = Craft(Limits(25_000_000), memory=1_000_000_000, scratch=str(scratch))
    workshop = Workshop(craft, Affinity(wanted=False))
    picture = large(3.0)

    async def work() -> None:
        while True:
            await workshop.look(lambda: io.BytesIO(picture))

    at_work = [asyncio.create_task(work()) for _ in range(images)]
    try:
        yield
    finally:
        for one in at_work:
            one.cancel()
        await asyncio.gather(*at_work, return_exceptions=True)


def created(ground: Ground, files: int) -> list[str]:
    """Return the command that creates files."""
    (ground.root / "created").mkdir()
    return [sys.executable, "-c", CREATE, str(ground.root / "created"), str(files)]


def moved(ground: Ground, files: int) -> list[str]:
    """Return the command that moves files in, one by one."""
    source = ground.place / "source"
    source.mkdir()
    subprocess.run([sys.executable, "-c", CREATE, str(source), str(files)], check=True)
    (ground.root / "moved").mkdir()
    return [sys.executable, "-c", MOVE, str(source), str(ground.root / "moved")]


def unpacked(ground: Ground, files: int) -> list[str]:
    """Return the command that unpacks files."""
    source, archive = ground.place / "packed", ground.place / "all.tar"
    source.mkdir()
    subprocess.run([sys.executable, "-c", CREATE, str(source), str(files)], check=True)
    subprocess.run(["tar", "cf", str(archive), "-C", str(source), "."], check=True)
    (ground.root / "unpacked").mkdir()
    return ["tar", "xf", str(archive), "-C", str(ground.root / "unpacked")]


Bring = Callable[[Ground, int], list[str]]


async def meet(place: Path, bursts: Sequence[tuple[Bring, int, int]]) -> list[Found]:
    """Let bursts happen, one after another: how, how many files, beside how many images."""
    ground, found = Ground(place), []
    running = asyncio.create_task(ground.intake.run())
    await ground.lookout.start()
    try:
        for bring, files, images in bursts:
            if files:
                command = bring(ground, files)
                await asyncio.sleep(1.5)  # the folder is watched by now
                async with AsyncExitStack() as stack:
                    if images:
                        await stack.enter_async_context(busy(images, place))
                    found.append(await ground.burst(command, files))
    finally:
        await ground.lookout.stop()
        running.cancel()
    return found


@dataclass(frozen=True, slots=True)
class Options:
    """How much is done."""

    files: int = 50_000
    moved: int = 20_000
    packed: int = 20_000
    busy: int = 10


def measure(options: Options, place: Path) -> list[Figure]:
    """Measure."""
    bursts: list[tuple[Bring, int, int]] = [
        (created, options.files, 0),
        (moved, options.moved, 0),
        (unpacked, options.packed, options.busy),
    ]
    found = asyncio.run(meet(place, bursts))
    wanted = [burst for burst in bursts if burst[1]]
    return [_figure(*burst, one) for burst, one in zip(wanted, found, strict=True)]


def _figure(bring: Bring, files: int, images: int, one: Found) -> Figure:
    beside = f" while {images} images are looked at" if images else ""
    note = (
        f"burst of {one.burst_seconds:.1f} s, {one.untold:,} counted as missed, "
        f"{one.megabytes:.0f} MB ({one.grown:+.0f} MB)"
    )
    name = f"{files:,} {bring.__name__}{beside}: all known after"
    return Figure(name, one.seconds, "s", most=5, note=note)


BENCHMARK = Benchmark(
    "burst",
    "a burst of 50,000 files",
    Options(),
    Options(moved=5000, packed=5000),
    measure,
)

if __name__ == "__main__":
    alone(BENCHMARK, __doc__)
