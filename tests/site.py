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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

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


class Process:
    """The program, running."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path) -> None:
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
        return subprocess.run(
            [sys.executable, "-m", "bgremover", *arguments],
            cwd=self.root,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

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
            subprocess.run(
                [sys.executable, "-m", "bgremover", *arguments],
                cwd=self.root,
                env={**self.environment, "TERM": "xterm", "COLUMNS": "100", **environment},
                stdin=subprocess.DEVNULL,
                stdout=terminal,
                stderr=terminal,
                timeout=60,
                check=False,
            )
        finally:
            os.close(terminal)
            reader.join()
            os.close(owner)
        return shown.decode()

    @contextmanager
    def running(self, *arguments: str, log: str = "log") -> Iterator[Process]:
        """Run the daemon (or another command) beside the test; it is ended with the `with`."""
        path = self.root / log
        with path.open("wb") as stderr:
            popen = subprocess.Popen(
                [sys.executable, "-m", "bgremover", *(arguments or ("run",))],
                cwd=self.root,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
            process = Process(popen, path)
            try:
                yield process
            finally:
                if popen.poll() is None:
                    popen.kill()
                popen.wait()

    def files(self, folder: Path) -> set[str]:
        """All files below a folder, by their path in it."""
        found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        return {str(path.relative_to(folder)) for path in found}
