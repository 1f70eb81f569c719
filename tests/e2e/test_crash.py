"""Killed at any moment: nothing lost, nothing half-visible, and no more paid than was in flight.

The long versions: `python -m pytest -m long tests/e2e/test_crash.py`.
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest
from PIL import Image

from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox
from tests.site import KEY, Site, photo, until

WORKERS = 4


class Reader:
    """Looks at the outbox all the time, as a script of the user's would."""

    def __init__(self, outbox: Path) -> None:
        self._outbox = outbox
        self._seen: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.partial: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            self._look()

    def _look(self) -> None:
        names = os.listdir(self._outbox) if self._outbox.exists() else []
        for name in names:
            if name not in self._seen and not name.startswith("."):
                self._seen[name] = time.monotonic()
                self._decode(name)

    def _decode(self, name: str) -> None:
        try:
            with Image.open(self._outbox / name) as image:
                image.load()
        except (OSError, SyntaxError) as error:
            self.partial.append(f"{name}: {error}")


def sums(folder: Path) -> list[str]:
    return [
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".error.json")
    ]


def hidden(site: Site) -> list[Path]:
    folders = (site.inbox, site.outbox, site.archive, site.quarantine)
    return [path for folder in folders for path in folder.rglob(".bgremover-*")]


def check_books(site: Site, sandbox: RunningSandbox, dropped: list[str], kills: int) -> None:
    """Hold everything that must be true against disk and sandbox."""
    assert sorted(sums(site.archive) + sums(site.quarantine)) == sorted(dropped), "originals"
    failed = [path.name for path in site.quarantine.glob("*.error.json")]
    assert len(site.files(site.outbox)) == len(dropped) - len(failed), "one cut-out each"
    assert hidden(site) == [], "nothing unfinished lies about"
    paid = [payment.sha256 for payment in sandbox.state.payments]
    assert set(paid) <= set(dropped)
    assert len(paid) - len(set(paid)) <= WORKERS * kills, "at most what was in flight"


@contextmanager
def storm(tmp_path: Path, files: int) -> Iterator[tuple[Site, RunningSandbox, list[str]]]:
    options = SandboxOptions(key=KEY, latency_seconds=0.1, fixed_result=True)
    with RunningSandbox(options) as sandbox:
        site = Site(tmp_path, sandbox.url, queue={"workers": WORKERS})
        dropped = []
        for number in range(files):
            data = photo(number)
            dropped.append(hashlib.sha256(data).hexdigest())
            site.drop(f"{number:04}.jpg", data)
        yield site, sandbox, dropped


def kill_at_random(tmp_path: Path, files: int, kills: int, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - moments, no secrets
    done = 0
    with storm(tmp_path, files) as (site, sandbox, dropped), Reader(site.outbox) as reader:
        while done < kills and site.files(site.inbox):
            with site.running() as daemon:
                daemon.until_event("daemon.ready")
                pause = threading.Event()
                pause.wait(chance.uniform(0.0, 0.6))
                daemon.end(signal.SIGKILL)
                done += 1
        with site.running() as daemon:
            daemon.until_event("daemon.ready")
            until(lambda: not site.files(site.inbox), 120)
            until(lambda: not hidden(site))
            assert daemon.end() == 0
        check_books(site, sandbox, dropped, done)
    assert reader.partial == []
    assert done >= min(kills, 3), "the test must have killed something"


def test_killed_at_random_moments(tmp_path: Path) -> None:
    kill_at_random(tmp_path, files=60, kills=8, seed=1)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_killed_a_thousand_times_over_two_thousand_images(tmp_path: Path) -> None:
    for number in range(10):
        kill_at_random(tmp_path / str(number), files=200, kills=100, seed=number)


# --- at every system call ------------------------------------------------------------------

STRACE = shutil.which("strace")
DURABLE = ("fsync", "fdatasync", "renameat2", "rename", "renameat", "unlink", "unlinkat")
ALL = (*DURABLE, "pwrite64", "write", "sendto", "recvfrom", "mkdir", "connect", "ftruncate")


def kill_at(site: Site, syscall: str, number: int) -> int:
    """Run `once` and kill it at the `number`-th call of `syscall`; return the exit code."""
    assert STRACE is not None
    inject = f"inject={syscall}:signal=KILL:when={number}"
    done = subprocess.run(
        [
            *(STRACE, "-f", "-qq", "-o", "/dev/null", "-e", f"trace={syscall}", "-e", inject),
            *(os.path.realpath(sys.executable), "-m", "bgremover", "once"),
        ],
        cwd=site.root,
        env={**site.environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.returncode


def kill_at_each(
    tmp_path: Path, syscalls: tuple[str, ...], step: Callable[[int], int], *renditions: str
) -> int:
    """Kill one image's way at each call of each kind; return at how many points it was killed."""
    killed = 0
    output = {"renditions": list(renditions)}
    for syscall in syscalls:
        number = 1
        while True:
            with RunningSandbox(SandboxOptions(key=KEY, fixed_result=True)) as sandbox:
                site = Site(tmp_path / f"{syscall}-{number}", sandbox.url, output=output)
                data = photo(number)
                site.drop("one.jpg", data)
                code = kill_at(site, syscall, number)
                if code == 0:
                    break
                killed += 1
                again = site.command("once")
                assert again.returncode == 0, (syscall, number, again.stdout, again.stderr)
                for name in renditions:
                    (site.outbox / f"one-{name}.png").unlink()
                check_books(site, sandbox, [hashlib.sha256(data).hexdigest()], 1)
                assert len(sandbox.state.payments) <= 2, (syscall, number)
            shutil.rmtree(site.root)
            number = step(number)
    return killed


@pytest.mark.skipif(STRACE is None, reason="needs strace (apt-get install strace)")
@pytest.mark.timeout(300)
def test_killed_at_the_calls_that_make_things_durable(tmp_path: Path) -> None:
    assert kill_at_each(tmp_path, ("fsync", "renameat2"), lambda number: number + 1) >= 3


@pytest.mark.skipif(STRACE is None, reason="needs strace (apt-get install strace)")
@pytest.mark.timeout(300)
def test_killed_between_its_renditions(tmp_path: Path) -> None:
    """Each is there once afterwards, and nothing else: neither a second one nor a rest."""
    assert kill_at_each(tmp_path, ("renameat2",), lambda number: number + 1, "mask", "square") >= 2


@pytest.mark.long
@pytest.mark.skipif(STRACE is None, reason="needs strace (apt-get install strace)")
@pytest.mark.timeout(3600)
def test_killed_at_every_system_call(tmp_path: Path) -> None:
    assert kill_at_each(tmp_path, ALL, lambda number: number + 1) >= 30
