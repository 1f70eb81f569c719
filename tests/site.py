"""A place where the real program runs: its folders, its configuration, its processes."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Protocol

import yaml
from PIL import Image, ImageDraw

from tests.forkserver import fork

KEY = "k-3141592653589793"
FAST = {"settle_seconds": 0.2, "poll_seconds": 0.3, "rescan_seconds": 1}


def until(condition: Callable[[], object], limit: float = 20.0) -> None:
    """Wait until `condition` holds; fail when it does not within `limit` seconds."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"not within {limit} s: {condition}"
        time.sleep(0.02)


def photo(shade: int = 30, kind: str = "JPEG", size: tuple[int, int] = (96, 72)) -> bytes:
    """Draw a subject on a plain background; each shade up to 65,535 gives other bytes."""
    image = Image.new("RGB", size, "white")
    width, height = size
    draw = ImageDraw.Draw(image)
    draw.ellipse((width // 4, height // 8, width * 3 // 4, height * 7 // 8), fill=(200, 60, 40))
    for bit in range(16):
        x, y = width // 2 - 8 + 4 * (bit % 4), height // 2 - 8 + 4 * (bit // 4)
        if shade >> bit & 1:
            draw.rectangle((x, y, x + 3, y + 3), fill=(20, 20, 120))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


class Started(Protocol):
    """A process: of `subprocess.Popen`, what the tests use."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int, /) -> None: ...
    def kill(self) -> None: ...


Start = Callable[[Sequence[str], Path, Mapping[str, str], Sequence[int]], Started]
"""Starts the program: what follows its name, its folder, its environment, its three streams."""


def by_exec(
    arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], streams: Sequence[int]
) -> Started:
    """Start the program as a user does: with this process's umask and limits, seen by `ps`."""
    stdin, stdout, stderr = streams
    command = [sys.executable, "-m", "bgremover", *arguments]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdin=stdin, stdout=stdout, stderr=stderr
    )


class Process:
    """The program, running."""

    def __init__(self, popen: Started, log: Path) -> None:
        self.popen = popen
        self._log = log

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged."""
        text = self._log.read_text()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def events(self, name: str) -> list[dict[str, Any]]:
        """All log lines of one event."""
        return [line for line in self.lines() if line["event"] == name]

    def until_event(self, name: str, count: int = 1, limit: float = 20.0) -> None:
        """Wait for an event."""
        until(lambda: len(self.events(name)) >= count or self._gone(name), limit)

    def _gone(self, name: str) -> bool:
        assert self.popen.poll() is None, f"ended before {name}: {self._log.read_text()[-3000:]}"
        return False

    def send(self, number: int) -> None:
        """Send a signal."""
        self.popen.send_signal(number)

    def end(self, number: int = signal.SIGTERM, limit: float = 20.0) -> int:
        """Send a signal, wait for the end, return the exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        return self.popen.wait(limit)


class Site:
    """Folders and a configuration.

    Args:
        root: An empty folder.
        url: Of the sandbox.
        settings: Changes to the configuration, by section.
    """

    def __init__(self, root: Path, url: str, **settings: Any) -> None:  # noqa: ANN401 - YAML
        self.root = root
        self.config = root / "config.yaml"
        self.inbox, self.outbox, self.quarantine, self.archive, self.state = (
            root / name for name in ("inbox", "outbox", "quarantine", "archive", "state")
        )
        self.inbox.mkdir(parents=True, exist_ok=True)
        api = {"base_url": url, **settings.pop("api", {})}
        watch = {**FAST, **settings.pop("watch", {})}
        retry = {"base_seconds": 0.05, "cap_seconds": 0.5, **settings.pop("retry", {})}
        # Most tests are not about pictures; the stand-in's fast mode gives all the same one.
        output = {"resolution": "result", "review": "off", **settings.pop("output", {})}
        told = {"api": api, "watch": watch, "retry": retry, "output": output, **settings}
        text = yaml.safe_dump(told)
        self.config.write_text(text)

    def drop(self, name: str, data: bytes) -> Path:
        """Put a file into the inbox, as `mv` does."""
        path = self.inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.root / "dropping"
        beside.write_bytes(data)
        beside.rename(path)
        return path

    @property
    def environment(self) -> dict[str, str]:
        """What the program sees."""
        wanted = ("COVERAGE", "PYTHONPATH")
        kept = {name: value for name, value in os.environ.items() if name.startswith(wanted)}
        path = os.environ["PATH"]
        return {"PATH": path, "HOME": str(self.root), "IDEOGRAM_API_KEY": KEY, "TZ": "UTC", **kept}

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        with TemporaryFile() as stdout, TemporaryFile() as stderr:
            streams = (stdout.fileno(), stderr.fileno())
            with self._started(arguments, environment, streams) as started:
                code = started.wait(60)
            for stream in (stdout, stderr):
                stream.seek(0)
            told = stdout.read().decode(), stderr.read().decode()
        return subprocess.CompletedProcess(arguments, code, *told)

    def at_terminal(self, *arguments: str, **environment: str) -> str:
        """Run a command with a terminal of 100 columns; return all that the terminal gets."""
        owner, terminal = os.openpty()
        shown = bytearray()

        def read() -> None:
            with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
                while piece := os.read(owner, 65_536):
                    shown.extend(piece)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            terminals = {"TERM": "xterm", "COLUMNS": "100", **environment}
            with self._started(arguments, terminals, (terminal, terminal)) as started:
                started.wait(60)
        finally:
            os.close(terminal)
            reader.join()
            os.close(owner)
        return shown.decode()

    @contextmanager
    def running(self, *arguments: str, log: str = "log", start: Start = fork) -> Iterator[Process]:
        """Run the daemon (or another command) beside the test; it is ended with the `with`."""
        path = self.root / log
        with path.open("wb") as stderr, open(os.devnull, "wb") as stdout:
            streams = (stdout.fileno(), stderr.fileno())
            with self._started(arguments or ("run",), {}, streams, start) as started:
                yield Process(started, path)

    @contextmanager
    def _started(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        streams: tuple[int, int],
        start: Start = fork,
    ) -> Iterator[Started]:
        with open(os.devnull, "rb") as stdin:
            whole = {**self.environment, **environment}
            started = start(arguments, self.root, whole, (stdin.fileno(), *streams))
        try:
            yield started
        finally:
            if started.poll() is None:
                started.kill()
            started.wait()

    def files(self, folder: Path) -> set[str]:
        """All files below a folder, by their path in it."""
        found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        return {str(path.relative_to(folder)) for path in found}
