"""What the benchmarks stand on: the stand-in, images, the program in a process of its own."""

import io
import json
import os
import random
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

import bgremover
from tests.benchmarks.clients import KEY
from tests.site import photo

ROOT = Path(bgremover.__file__).parents[1]
LOOK_SECONDS = 0.1
"""How often whoever measures looks: it takes from what is measured."""


def environment(**more: str) -> dict[str, str]:
    """Return what the processes see: this very code, and no variables of whoever measures."""
    found = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "TZ": "UTC"}
    return {**found, "PYTHONPATH": str(ROOT), "IDEOGRAM_API_KEY": KEY, **more}


# --- the stand-in ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StandIn:
    """The stand-in for the API: where it listens, and its process."""

    url: str
    pid: int

    def cpu(self) -> float:
        """Return the CPU seconds that it has taken."""
        return cpu_seconds(self.pid)


@contextmanager
def stand_in(latency: float, inflight: int = 1000) -> Iterator[StandIn]:
    """Run the stand-in in its fast mode, in a process of its own."""
    command = [
        *(sys.executable, "-m", "bgremover", "sandbox", "--port", "0", "--fast"),
        *("--latency", str(latency), "--max-inflight", str(inflight)),
    ]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+?(?=:? )", process.stdout.readline())
        assert found is not None
        try:
            yield StandIn(found[0].rstrip(":"), process.pid)
        finally:
            process.terminate()


# --- images ---------------------------------------------------------------------------------


def small(number: int) -> bytes:
    """Return a small JPEG; each number gives other bytes."""
    return _SMALL + b"%08d" % number


_SMALL = photo()


def large(megabytes: float, megapixels: float | None = None) -> bytes:
    """Return a JPEG of at most so many megabytes: noise, with as few pixels as that takes.

    With `megapixels` the noise is coarser and has so many: a camera writes 12 into 3 MB.
    """
    side = int((megabytes * 1_000_000 / 1.05) ** 0.5)
    noise = random.Random(7).randbytes(side * side * 3)  # noqa: S311 - grain, no secret
    grain = Image.frombytes("RGB", (side, side), noise)
    if megapixels is not None:
        wide = int((megapixels * 1e6) ** 0.5)
        grain = grain.resize((wide, wide), Image.Resampling.BICUBIC)
    for quality in range(95, 5, -3):
        buffer = io.BytesIO()
        grain.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= megabytes * 1_000_000 - 8:
            return buffer.getvalue()
    raise AssertionError(f"no JPEG is as small as {megabytes} MB")


def fill(folder: Path, count: int, first: bytes | None = None) -> list[Path]:
    """Fill a folder with images, no two alike: `first`, or small ones."""
    folder.mkdir(parents=True, exist_ok=True)
    content = _SMALL if first is None else first
    paths = [folder / f"{number:06}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(content + b"%08d" % number)
    return paths


# --- processes ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a command to its end: wall and CPU seconds, the peak memory in MB."""

    wall: float
    cpu: float
    peak: float


def measured(command: list[str], log: Path, *, cwd: Path | None = None) -> Run:
    """Run a command and let the operating system account for it and its children."""
    began = time.monotonic()
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment(), stdout=subprocess.DEVNULL, stderr=stderr
        )
        peak = _peak_to_the_end(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, log.read_text()[-2000:]
    wall = time.monotonic() - began
    return Run(wall, usage.ru_utime + usage.ru_stime, peak)


def _peak_to_the_end(pid: int) -> float:
    # What wait4 tells of the memory is that of whoever started it, where that was more.
    peak, end = 0.0, os.pidfd_open(pid)
    try:
        while not select.select([end], [], [], LOOK_SECONDS)[0]:
            peak = max(peak, peak_memory(pid))
    finally:
        os.close(end)
    return peak


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process and all its threads, ended ones too."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_memory(pid: int) -> float:
    """Return the most memory that a process has had, in MB; 0 of one that has ended."""
    return _told_of_memory(pid, "VmHWM")


def memory(pid: int) -> float:
    """Return the memory of a process, in MB; 0 of one that has ended."""
    return _told_of_memory(pid, "VmRSS")


def _told_of_memory(pid: int, name: str) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


# --- the program ----------------------------------------------------------------------------


class Log:
    """What a process has logged, read as it grows: each line once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        self._rest = b""
        self._file: io.BufferedReader | None = None

    def read(self) -> list[dict[str, Any]]:
        """Read on; return all lines so far."""
        if self._file is None:
            self._file = self.path.open("rb")
        *whole, self._rest = (self._rest + self._file.read()).split(b"\n")
        self.lines += [json.loads(line) for line in whole if line.startswith(b"{")]
        return self.lines

    def close(self) -> None:
        """Read no more."""
        if self._file is not None:
            self._file.close()

    def moments(self, event: str) -> dict[str, float]:
        """Return when each file met `event` first, as Unix time."""
        found: dict[str, float] = {}
        for line in self.lines:
            if line["event"] == event:
                found.setdefault(line["file"], seconds(line["timestamp"]))
        return found

    def count(self, event: str) -> int:
        """Read on; return how many lines tell of `event`."""
        return sum(line["event"] == event for line in self.read())

    def until(self, event: str, count: int = 1, limit: float = 60.0) -> None:
        """Wait for an event."""
        end = time.monotonic() + limit
        while (seen := self.count(event)) < count:
            if time.monotonic() > end:
                told = self.path.read_text(errors="replace")[-2000:]
                raise AssertionError(f"{seen} of {count} {event} within {limit:g} s: {told}")
            time.sleep(LOOK_SECONDS)


def seconds(stamp: str) -> float:
    """Return the Unix time of a log line's stamp."""
    return datetime.fromisoformat(stamp).timestamp()


class Place:
    """Folders and a configuration for the program.

    Args:
        root: An empty folder, or none yet.
        url: Of the stand-in.
        settings: What differs from the defaults, by section.
    """

    def __init__(self, root: Path, url: str, settings: Mapping[str, Any] | None = None) -> None:
        self.root = root
        self.inbox, self.state = root / "inbox", root / "state"
        self.inbox.mkdir(parents=True, exist_ok=True)
        # The stand-in's fast mode gives all the same picture, which no review would pass.
        sections: dict[str, Any] = {"api": {"base_url": url}, "output": {"review": "off"}}
        for section, told in (settings or {}).items():
            both = isinstance(told, dict) and section in sections
            sections[section] = {**sections[section], **told} if both else told
        (root / "config.yaml").write_text(yaml.safe_dump(sections))

    def take(self, paths: list[Path]) -> None:
        """Put links to images into the inbox."""
        for path in paths:
            os.link(path, self.inbox / path.name)

    def command(self, *words: str) -> list[str]:
        """Return how the program is started."""
        return [sys.executable, "-m", "bgremover", *words]

    def once(self) -> tuple[Run, Log]:
        """Work through the inbox in a process of its own."""
        log = Log(self.root / "log")
        run = measured(self.command("once", "--yes"), log.path, cwd=self.root)
        log.read()
        log.close()
        return run, log

    @contextmanager
    def running(self, **more: str) -> Iterator[tuple[int, Log]]:
        """Run the daemon; yield its pid and its log, of a daemon that is ready."""
        log = Log(self.root / "log")
        with log.path.open("wb") as stderr:
            process = subprocess.Popen(
                self.command("run"),
                cwd=self.root,
                env=environment(**more),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        try:
            log.until("daemon.ready")
            yield process.pid, log
            process.terminate()
            assert process.wait(30) == 0, log.path.read_text()[-2000:]
        finally:
            process.kill()
            process.wait()
            log.close()


def at_work(log: Log) -> float:
    """Return the seconds from the first claim to the last cut-out."""
    claimed, saved = log.moments("image.claimed"), log.moments("image.saved")
    return max(saved.values()) - min(claimed.values())


def steady_rate(log: Log) -> float:
    """Return the cut-outs a second between the first and the last tenth: no ramp, no tail."""
    saved = sorted(log.moments("image.saved").values())
    begin, end = len(saved) // 10, len(saved) - len(saved) // 10 - 1
    return (end - begin) / (saved[end] - saved[begin])
