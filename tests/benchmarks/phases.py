"""Where does the CPU of an image go?

    python -m tests.benchmarks.phases [--small 400] [--large 40]

The parts that the daemon is made of, in this process, the stand-in in another; only the CPU of this
process counts. The intake sweeps and waits; then all images take one step of their way after the
other, ten at a time, and the CPU of each step is told apart by its threads: the ledger has its own,
and so have pictures. `hash` is what hashing alone would cost; it is part of `inspect`. What `once`
as a whole takes more than all this are its start, the dispatcher and the log.
"""

import asyncio
import contextlib
import hashlib
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from bgremover.core.job import Job, Paid, Queued, finished
from bgremover.edges import logs
from bgremover.edges.inbox import Sighting, ignore_sigio
from bgremover.intake import Intake, Rhythm
from bgremover.key import KeySource, find_key_source
from bgremover.pipeline import Pipeline, Trouble
from bgremover.reading import parse_settings
from bgremover.settings import Settings
from bgremover.timing import Clock
from bgremover.wiring import Work, build, open_inbox, patience
from tests.benchmarks.clients import KEY
from tests.benchmarks.figures import Benchmark, Figure, alone
from tests.benchmarks.ground import Place, fill, large, stand_in

Spent = defaultdict[str, float]
"""CPU seconds by phase, in the order of an image's way."""

TOGETHER = 10
LATER = 30.0
"""Seconds that pass for the intake while nobody waits: whatever lies there has settled."""
SETTINGS = {
    "queue": {"workers": TOGETHER},
    "output": {"resolution": "result", "review": "off"},
}


@dataclass(frozen=True, slots=True)
class Options:
    """How much is done."""

    small: int = 400
    large: int = 40


def measure(options: Options, place: Path) -> list[Figure]:
    """Measure."""
    ignore_sigio()  # as the daemon does before it asks for leases
    told: list[Figure] = []
    with stand_in(0.0) as api:
        for name, count, first in (
            ("small", options.small, None),
            ("3 MB", options.large, large(3.0)),
            ("3 MB of 12 megapixels", options.large, large(3.0, 12.0)),
        ):
            root = place / name.replace(" ", "-")
            root.mkdir()
            with (root / "log").open("w") as log:
                logs.configure("json", "info", None, stream=log)
                spent = asyncio.run(_phases(root / "phases", api.url, count, first))
                logs.flush()
            spent["once, all of it"] = _once(root / "once", api.url, count, first)
            told += [*_figures(name, count, spent)]
    return told


def _figures(name: str, count: int, spent: Spent) -> Iterator[Figure]:
    for phase, seconds in spent.items():
        yield Figure(f"{phase}, {name}", seconds / count * 1e3, "ms", note="CPU an image")


def _once(root: Path, url: str, count: int, first: bytes | None) -> float:
    """Return the CPU of `once` over the same images, without that of its start."""
    site, empty = Place(root / "all", url, SETTINGS), Place(root / "none", url, SETTINGS)
    fill(site.inbox, count, first)
    return site.once()[0].cpu - empty.once()[0].cpu


# --- before the claim -----------------------------------------------------------------------


async def _phases(root: Path, url: str, count: int, first: bytes | None) -> Spent:
    settings, key = _set_up(root, url, count, first)
    work = Work(root / "inbox", "archive")
    spent = Spent(float)
    with _on(spent, "sweep"):
        open_inbox(settings, work).sweep(lambda _path, _identity: False, count)
    with _on(spent, "settle"):
        found = await _settled(settings, work)
    spent["settle"] -= spent["sweep"]  # it has swept once more
    with _on(spent, "hash"):
        for one in found:
            with (root / "inbox" / one.path).open("rb") as file:
                hashlib.file_digest(file, "sha256")
    await _all_steps(settings, work, key, found, spent)
    return spent


def _set_up(root: Path, url: str, count: int, first: bytes | None) -> tuple[Settings, KeySource]:
    fill(root / "inbox", count, first)
    for folder in ("outbox", "quarantine", "archive", "state"):
        (root / folder).mkdir()
    told = {"api": {"base_url": url}, **SETTINGS}
    settings = parse_settings(yaml.safe_dump(told), {}, root)
    return settings, find_key_source(settings, {"IDEOGRAM_API_KEY": KEY})


@contextlib.contextmanager
def _on(spent: Spent, phase: str) -> Iterator[None]:
    began = time.process_time()
    yield
    spent[phase] += time.process_time() - began


async def _settled(settings: Settings, work: Work) -> list[Sighting]:
    """Let the intake sweep, wait and offer."""
    found: list[Sighting] = []
    later = 0.0
    clock = Clock(lambda: time.time() + later, lambda: time.monotonic() + later)

    def claim(one: Sighting) -> bool:
        found.append(one)
        return True

    intake = Intake(
        open_inbox(settings, work),
        patience(settings, work),
        clock,
        claim,
        rhythm=Rhythm(300.0, 300.0),
        trust_ctime=True,
    )
    await intake.turn()
    later = LATER
    await intake.turn()
    return found


# --- after it -------------------------------------------------------------------------------


async def _all_steps(
    settings: Settings, work: Work, key: KeySource, found: list[Sighting], spent: Spent
) -> None:
    parts = build(settings, work, key)
    pipeline = parts.dispatcher._pipeline
    now = time.time()
    jobs = [Job(uuid.uuid4().hex, one.path, one.identity, now, Queued()) for one in found]
    try:
        while jobs:
            before = _threads()
            step, jobs = jobs[0], await _one_step(pipeline, jobs)
            for thread, seconds in _threads().items():
                spent[_phase(step, thread.name)] += seconds - before.get(thread, 0.0)
    finally:
        await parts.scribe.aclose()
        await parts.api.aclose()


async def _one_step(pipeline: Pipeline, jobs: list[Job]) -> list[Job]:
    """Let each image take one step; return those whose way has not ended."""
    waiting, after = iter(jobs), list[Job]()

    async def walk() -> None:
        for job in waiting:
            outcome = await pipeline.step(job, lambda: None)
            assert not isinstance(outcome, Trouble), outcome
            if not finished(outcome.state):
                after.append(outcome)

    async with asyncio.TaskGroup() as group:
        for _ in range(TOGETHER):
            group.create_task(walk())
    return after


def _threads() -> dict[threading.Thread, float]:
    """Return the CPU seconds of each thread of this process."""
    found = {}
    for thread in threading.enumerate():
        path = Path(f"/proc/self/task/{thread.native_id}/schedstat")
        found[thread] = int(path.read_text().split()[0]) / 1e9
    return found


def _phase(step: Job, thread: str) -> str:
    match step.state:
        case _ if thread.startswith(("ledger", "logs")):
            return thread.partition("_")[0]
        case Queued() if step.picture is None:
            return "inspect"
        case Queued():
            return "upload"
        case Paid():
            return "verify" if thread.startswith("pictures") else "download and save"
        case _:
            return "publish and archive"


BENCHMARK = Benchmark("phases", "CPU of an image by phase", Options(), Options(100, 10), measure)

if __name__ == "__main__":
    alone(BENCHMARK, __doc__)
