"""How close does bgremover come to a bare HTTP client?

    python -m tests.benchmarks.throughput [--images 120] [--workers 10] [--latency 0.5]

The stand-in for the API runs in a process of its own. The same images go through a bare
`httpx.AsyncClient` (the POST and the download, nothing else) and through `bgremover once` with
every check, fsync and ledger write; both in turn, several times. Prints ratios; judges nothing.
With `--resolution original` the cut-outs are drawn at full size too, which takes the processor
longer than everything else together.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import httpx
import yaml
from PIL import Image

KEY = "benchmark"


@dataclass(frozen=True, slots=True)
class Run:
    """One run: wall and CPU seconds, and the peak memory in MB."""

    wall: float
    cpu: float
    peak: float
    work: float


@contextlib.contextmanager
def sandbox(latency: float) -> Iterator[str]:
    """Run the stand-in in its fast mode; yield where it listens."""
    command = [
        *(sys.executable, "-m", "bgremover", "sandbox", "--port", "0", "--fast"),
        *("--latency", str(latency), "--max-inflight", "1000"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+?(?=:? )", process.stdout.readline())
        assert found is not None
        try:
            yield found[0].rstrip(":")
        finally:
            process.terminate()


def draw(folder: Path, count: int, megabytes: float) -> list[Path]:
    """Fill a folder with JPEGs of about this size, no two alike."""
    side = int((megabytes * 1_000_000 / 1.05) ** 0.5)
    noise = random.Random(7).randbytes(side * side * 3)  # noqa: S311 - grain, no secret
    grain = Image.frombytes("RGB", (side, side), noise)
    path = folder / "first.jpg"
    for quality in range(95, 40, -3):
        grain.save(path, quality=quality)
        if path.stat().st_size <= megabytes * 1_000_000:
            break
    first = path.read_bytes()
    path.unlink()
    paths = [folder / f"{number:05}.jpg" for number in range(count)]
    for number, each in enumerate(paths):
        each.write_bytes(first + b"%08d" % number)
    return paths


async def bare(url: str, paths: list[Path], workers: int) -> None:
    """Send and fetch, nothing else."""
    waiting = iter(paths)
    limits = httpx.Limits(max_connections=2 * workers)
    async with httpx.AsyncClient(headers={"Api-Key": KEY}, limits=limits, timeout=60) as client:

        async def work() -> None:
            for path in waiting:
                files = {"image": (path.name, path.read_bytes(), "image/jpeg")}
                answer = await client.post(f"{url}/v1/remove-background", files=files)
                link = answer.raise_for_status().json()["data"][0]["url"]
                (await client.get(link)).raise_for_status()

        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(work())


def measured(command: list[str], env: dict[str, str], log: Path) -> Run:
    """Run a command and let the operating system account for it."""
    began = time.monotonic()
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=stderr)
        _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, log.read_text()[-2000:]
    wall = time.monotonic() - began
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000, work_seconds(log))


def work_seconds(log: Path) -> float:
    """Return the time from the first image claimed to the last one saved, from the log."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    stamps = [
        _seconds(line["timestamp"])
        for line in lines
        if line["event"] in ("image.claimed", "image.saved")
    ]
    return max(stamps) - min(stamps) if stamps else 0.0


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def through_bgremover(
    url: str, paths: list[Path], workers: int, root: Path, resolution: str
) -> Run:
    """Run `bgremover once` over links to the images, with a fresh ledger."""
    inbox = root / "inbox"
    inbox.mkdir(parents=True)
    for path in paths:
        os.link(path, inbox / path.name)
    config = root / "config.yaml"
    # The stand-in's fast mode gives all the same picture, which no review would pass.
    output = {"resolution": resolution, "review": "off"}
    settings = {"api": {"base_url": url}, "queue": {"workers": workers}, "output": output}
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "bgremover", "once", "-c", str(config)]
    return measured(command, {**os.environ, "IDEOGRAM_API_KEY": KEY}, root / "log")


def through_httpx(url: str, paths: list[Path], workers: int, root: Path) -> Run:
    """Run the bare client in a process of its own."""
    listing = root / "paths"
    root.mkdir()
    listing.write_text("\n".join(map(str, paths)))
    command = [*(sys.executable, "-m", __spec__.name, "--bare", url, str(listing))]
    return measured([*command, "--workers", str(workers)], dict(os.environ), root / "log")


def table(images: int, workers: int, latency: float, ours: list[Run], theirs: list[Run]) -> str:
    """Return the figures as text."""
    limit = images / workers * latency
    ratio = [one.wall / other.wall for one, other in zip(ours, theirs, strict=True)]
    work = [one.work / other.wall for one, other in zip(ours, theirs, strict=True)]
    cpu = [one.cpu / other.cpu for one, other in zip(ours, theirs, strict=True)]
    median = statistics.median
    return (
        f"{images} images, {workers} workers, {latency} s latency: the limit is {limit:.2f} s\n"
        f"bare httpx   wall {median(r.wall for r in theirs):6.2f} s  "
        f"cpu {median(r.cpu for r in theirs):6.2f} s  peak {max(r.peak for r in theirs):.0f} MB\n"
        f"bgremover    wall {median(r.wall for r in ours):6.2f} s  "
        f"cpu {median(r.cpu for r in ours):6.2f} s  peak {max(r.peak for r in ours):.0f} MB  "
        f"first claim to last cut-out {median(r.work for r in ours):.2f} s\n"
        f"ratios       wall {median(ratio):.3f}  first claim to last cut-out {median(work):.3f}  "
        f"cpu {median(cpu):.2f}\n"
        f"of the limit {limit / median(r.work for r in ours):.3f}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--latency", type=float, default=0.5)
    parser.add_argument("--megabytes", type=float, default=3.0)
    parser.add_argument("--resolution", choices=["original", "result"], default="result")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", nargs=2, metavar=("URL", "LISTING"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        paths = [Path(line) for line in Path(options.bare[1]).read_text().splitlines()]
        asyncio.run(bare(options.bare[0], paths, options.workers))
        return
    with tempfile.TemporaryDirectory() as scratch, sandbox(options.latency) as url:
        root = Path(scratch)
        (root / "images").mkdir()
        paths = draw(root / "images", options.images, options.megabytes)
        size = paths[0].stat().st_size / 1e6
        sys.stdout.write(f"each image has {size:.1f} MB\n")
        ours, theirs = [], []
        for number in range(options.rounds):
            theirs.append(through_httpx(url, paths, options.workers, root / f"bare-{number}"))
            ours.append(
                through_bgremover(
                    url, paths, options.workers, root / f"ours-{number}", options.resolution
                )
            )
        text = table(options.images, options.workers, options.latency, ours, theirs)
        sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
