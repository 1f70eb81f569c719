"""How soon after its start is bgremover ready?

    python -m tests.benchmarks.start [--rows 100000] [--times 9]

From the moment its process is made until it says READY=1, as systemd would hear it: with an empty
ledger and with one of 100,000 images; after an end of its own and after a kill, which leaves
images at each point of their way. A bare interpreter is started beside it.
"""

import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.figures import Benchmark, Figure, alone
from tests.benchmarks.ground import Place, environment, memory
from tests.benchmarks.past import write_past

UNDER_WAY = 64
LIMIT_SECONDS = 120.0
NOWHERE = "http://127.0.0.1:9"
"""Nobody listens there, and nothing is sent before it is killed."""


@dataclass(frozen=True, slots=True)
class Options:
    """How much is done."""

    rows: int = 100_000
    times: int = 9


@dataclass(frozen=True, slots=True)
class Start:
    """A start: seconds until it was ready, CPU seconds and MB at that moment."""

    seconds: float
    cpu: float
    memory: float


@dataclass(frozen=True, slots=True)
class Starts:
    """Several: the median of each, and from when to when they were ready."""

    seconds: float
    cpu: float
    memory: float
    spread: str


def measure(options: Options, place: Path) -> list[Figure]:
    """Measure."""
    times = options.times
    write_past(place / "ended", options.rows)
    write_past(place / "killed", options.rows, UNDER_WAY, killed=True)
    bare = _spent(place, "pass", times)
    imports = _spent(place, "import bgremover.commands.work", times)
    empty = _starts(place / "empty", None, times)
    full = _starts(place / "full", place / "ended", times)
    kept = _starts(place / "kept", place / "ended", times, originals="keep")
    killed = _starts(place / "again", place / "killed", times)
    ready, rows, keep = "start to ready", f"{options.rows:,} rows", "originals: keep"
    again = f"{UNDER_WAY} images under way, {killed.spread}"
    return [
        Figure(f"{ready}, empty ledger", empty.seconds, "s", most=0.5, note=empty.spread),
        Figure(f"{ready}, empty ledger", empty.seconds / bare, "x", to="python -c pass"),
        Figure("imports alone", imports, "s"),
        Figure("CPU until ready", empty.cpu, "s"),
        Figure(f"{ready}, {rows}", full.seconds, "s", most=2.0, note=full.spread),
        Figure(f"{ready}, {rows}", full.seconds / empty.seconds, "x", to="empty ledger"),
        Figure(f"{ready}, {rows}, {keep}", kept.seconds, "s", most=2.0, note=kept.spread),
        Figure(f"recovery after a kill, {rows}", killed.seconds, "s", most=2.0, note=again),
        Figure("memory when ready, empty ledger", empty.memory, "MB"),
        Figure(f"memory when ready, {rows}", full.memory, "MB"),
        Figure(f"memory when ready, {rows}, {keep}", kept.memory, "MB"),
    ]


def _spent(place: Path, code: str, times: int) -> float:
    """Return how long an interpreter takes for some code."""
    found = []
    for _ in range(times + 1):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", code], cwd=place, env=environment(), check=True)
        found.append(time.monotonic() - began)
    return statistics.median(found[1:])


def _starts(root: Path, past: Path | None, times: int, **settings: str) -> Starts:
    """Start so many times, each with the same ledger; the first does not count."""
    site = Place(root, NOWHERE, settings)
    found = []
    for _ in range(times + 1):
        shutil.rmtree(site.state, ignore_errors=True)
        if past is not None:
            shutil.copytree(past, site.state)
        found.append(start(site))
    seconds = [one.seconds for one in found[1:]]
    return Starts(
        statistics.median(seconds),
        statistics.median(one.cpu for one in found[1:]),
        statistics.median(one.memory for one in found[1:]),
        f"{min(seconds):.2f} to {max(seconds):.2f} s",
    )


def start(site: Place) -> Start:
    """Start the daemon once, and kill it when it is ready."""
    address = site.root / "notify"
    address.unlink(missing_ok=True)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear,
        (site.root / "log").open("wb") as log,
    ):
        ear.bind(str(address))
        ear.settimeout(LIMIT_SECONDS)
        began = time.monotonic()
        process = subprocess.Popen(
            site.command("run"),
            cwd=site.root,
            env=environment(NOTIFY_SOCKET=str(address)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        try:
            while not ear.recv(65_536).startswith(b"READY=1"):
                pass
            seconds, size = time.monotonic() - began, memory(process.pid)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            _, _, usage = os.wait4(process.pid, 0)
            process.returncode = -signal.SIGKILL
    return Start(seconds, usage.ru_utime + usage.ru_stime, size)


BENCHMARK = Benchmark(
    "start",
    "start to ready; recovery",
    Options(),
    Options(times=3),
    measure,
)

if __name__ == "__main__":
    alone(BENCHMARK, __doc__)
