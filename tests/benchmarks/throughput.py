"""How close does bgremover come to the limit, and to bare clients?

    python -m tests.benchmarks.throughput [--images 300] [--workers 10] [--latency 0.5]

The limit is `workers / latency`. The same images go through bare clients (the POST and the fetch,
nothing else) and through `bgremover once` with every check, fsync and ledger write, in turn,
several times; the median counts. Wall times are from the first to the last image; CPU is that of
the whole process. The stand-in's own work comes on top of its latency, even for a call that has
it for itself: what is reached of the limit at that time is told too.

A bare client has all its calls in flight at once; `once` begins with a single one, as every start
does, and `run` is met when it has grown to all of them in earlier work. With `--megabytes 0` the
images are small: of 200 large ones a second two cores could not even send the bytes.
"""

import importlib.util
import shutil
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.benchmarks.clients import CURL, lone_call
from tests.benchmarks.figures import Benchmark, Figure, alone
from tests.benchmarks.ground import (
    Place,
    Run,
    StandIn,
    at_work,
    cpu_seconds,
    fill,
    large,
    measured,
    peak_memory,
    stand_in,
    steady_rate,
)

OURS = "bgremover once"
WARM = "bgremover run, at work already"
CLIENTS = ("httpx", "requests", "curl")
NAMES = {
    "httpx": "bare httpx",
    "requests": "requests pool",
    "curl": "xargs -P curl",
    OURS: OURS,
    WARM: WARM,
}


@dataclass(frozen=True, slots=True)
class Options:
    """How much is done; without megabytes the images are small.

    `least` of the limit is wanted; `slower` is how many times as long as bare httpx it may take.
    """

    images: int = 300
    workers: int = 10
    latency: float = 0.5
    megabytes: float = 3.0
    resolution: str = "result"
    rounds: int = 3
    least: float = 0.97
    slower: float | None = 1.1


@dataclass(frozen=True, slots=True)
class Shift:
    """One run of one client; `rate` is that without ramp and tail, where it is known."""

    run: Run
    rate: float = 0.0


def measure(options: Options, place: Path) -> list[Figure]:
    """Measure."""
    first = large(options.megabytes) if options.megabytes else None
    paths = fill(place / "images", options.images + 2 * options.workers, first)
    clients = [client for client in CLIENTS if lacking(client) is None]
    shifts: dict[str, list[Shift]] = {client: [] for client in (OURS, WARM, *clients)}
    with stand_in(options.latency) as api:
        for number in range(options.rounds):
            for client, found in shifts.items():
                root = place / f"{client}-{number}"
                root.mkdir()
                found.append(_shift(client, options, api, paths, root))
        lone = lone_call(api.url, paths[0])
    skipped = [client for client in CLIENTS if client not in clients]
    return [
        *_told(options, shifts, lone),
        *(Figure(NAMES[one], None, "", note=f"skipped: {lacking(one)}") for one in skipped),
    ]


def _shift(client: str, options: Options, api: StandIn, paths: list[Path], root: Path) -> Shift:
    counted, earlier = paths[: options.images], paths[options.images :]
    if client == OURS:
        return _once(_site(options, api, root), counted)
    if client == WARM:
        return _run(_site(options, api, root), earlier, counted)
    return _bare(client, options, api, counted, root)


def _bare(client: str, options: Options, api: StandIn, paths: list[Path], root: Path) -> Shift:
    listing = root / "listing"
    listing.write_text("".join(f"{path}\n" for path in paths))
    job = Job(api.url, listing, options.workers)
    return Shift(run_curl(job, root) if client == "curl" else run_python(client, job, root))


def _site(options: Options, api: StandIn, root: Path) -> Place:
    queue = {"workers": options.workers, "capacity": max(64, 2 * options.workers)}
    return Place(root, api.url, {"queue": queue, "output": {"resolution": options.resolution}})


def _once(site: Place, paths: list[Path]) -> Shift:
    site.take(paths)
    run, log = site.once()
    saved = len(log.moments("image.saved"))
    assert saved == len(paths), f"{saved} of {len(paths)} are saved"
    return Shift(Run(at_work(log), run.cpu, run.peak), steady_rate(log))


def _run(site: Place, earlier: list[Path], paths: list[Path]) -> Shift:
    with site.running() as (pid, log):
        site.take(earlier)
        log.until("image.saved", len(earlier))
        log.lines.clear()
        before = cpu_seconds(pid)
        site.take(paths)
        log.until("image.saved", len(paths), limit=300)
        run = Run(at_work(log), cpu_seconds(pid) - before, peak_memory(pid))
        return Shift(run, steady_rate(log))


# --- the clients ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Job:
    """What a client is to do: send the images named in `listing`, so many at a time."""

    url: str
    listing: Path
    workers: int


def run_python(client: str, job: Job, root: Path) -> Run:
    """Run a client of this module in a process of its own; its wall time is that of the work."""
    words = [client, job.url, str(job.listing), str(job.workers)]
    run = measured([sys.executable, "-m", "tests.benchmarks.clients", *words], root / "log")
    return replace(run, wall=float((root / "log").read_text()))


def run_curl(job: Job, root: Path) -> Run:
    """Run curl under `xargs -P`."""
    script = root / "one.sh"
    script.write_text(CURL)
    words = ["-P", str(job.workers), "-I", "{}", "-a", str(job.listing)]
    return measured(["xargs", *words, "sh", "-e", str(script), job.url, "{}"], root / "log")


def lacking(client: str) -> str | None:
    """Say why a client cannot be run here; None where it can."""
    match client:
        case "curl":
            there = all(map(shutil.which, ("curl", "xargs")))
            return None if there else "needs curl and xargs"
        case _:
            there = importlib.util.find_spec(client) is not None
            return None if there else f"needs {client} (pip install {client})"


# --- the figures ----------------------------------------------------------------------------


def _told(options: Options, shifts: dict[str, list[Shift]], lone: float) -> Iterator[Figure]:
    limit, pace = options.workers / options.latency, f"{options.workers} workers"
    rates = {
        client: options.images / statistics.median(one.run.wall for one in found)
        for client, found in shifts.items()
    }
    size = f"of {options.megabytes:g} MB" if options.megabytes else "small"
    note = f"{options.images} images, {size}, {options.latency:g} s at the API"
    yield Figure(f"images a second, {pace}", rates[OURS], "/s", note=note)
    for client, rate in rates.items():
        least = options.least if client in (OURS, WARM) else None
        to = f"limit, {limit:g}/s"
        yield Figure(f"{NAMES[client]}, all of it", rate / limit, "x", to=to, least=least)
    steady = statistics.median(one.rate for one in shifts[OURS]) / limit
    name = f"{OURS}, without ramp and tail"
    yield Figure(name, steady, "x", to="limit", least=options.least)
    to = f"limit at {lone:.3f} s, a lone call"
    yield Figure(name, steady * lone / options.latency, "x", to=to)
    for client in [client for client in rates if client not in (OURS, WARM)]:
        for ours in (OURS, WARM):
            most = options.slower if (ours, client) == (WARM, "httpx") else None
            yield Figure(f"time, {ours}", rates[client] / rates[ours], "x", NAMES[client], most)
    yield from _costs(options, shifts)


def _costs(options: Options, shifts: dict[str, list[Shift]]) -> Iterator[Figure]:
    costs = {
        client: statistics.median(one.run.cpu for one in found) / options.images * 1e3
        for client, found in shifts.items()
    }
    for client, cost in costs.items():
        yield Figure(f"CPU an image, {NAMES[client]}", cost, "ms")
    # Of small images bare httpx does next to nothing.
    most = 2.0 if options.megabytes else None
    if "httpx" in costs:
        ratio = costs[OURS] / costs["httpx"]
        yield Figure(f"CPU an image, {OURS}", ratio, "x", to=NAMES["httpx"], most=most)
    peak = max(one.run.peak for ours in (OURS, WARM) for one in shifts[ours])
    yield Figure("peak memory", peak, "MB", most=100)


BENCHMARK = Benchmark(
    "throughput",
    "10 workers, 0.5 s, images of 3 MB: against the limit and bare clients",
    Options(),
    Options(images=120, rounds=1),
    measure,
)
HUNDRED = Benchmark(
    "hundred",
    "100 workers, 0.5 s, small images: the same",
    Options(images=10_000, workers=100, megabytes=0.0, rounds=1, least=0.9, slower=None),
    Options(images=2000, workers=100, megabytes=0.0, rounds=1, least=0.9, slower=None),
    measure,
)

if __name__ == "__main__":
    alone(BENCHMARK, __doc__)
