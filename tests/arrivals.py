"""What tests of arriving files share: pictures that take their time, a reader of the outbox."""

import hashlib
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from bgremover.sandbox.server import RunningSandbox
from tests.site import Site, until


def noise(seed: int, kind: str = "JPEG", size: int = 420) -> bytes:
    """Draw a picture that does not compress: about half a megabyte as PNG, a third as JPEG."""
    ground = hashlib.shake_128(str(seed).encode()).digest(3 * size * size)
    buffer = io.BytesIO()
    Image.frombytes("RGB", (size, size), ground).save(buffer, kind, quality=95)
    return buffer.getvalue()


class OutboxReader:
    """Reads whatever has a visible name in the outbox, all the time, as an impatient user does."""

    def __init__(self, outbox: Path) -> None:
        self.undecodable: list[str] = []
        self.reads = 0
        self._outbox = outbox
        self._end = threading.Event()
        self._seen: dict[tuple[str, int], None] = {}

    def run(self) -> None:
        while not self._end.wait(0.002):
            for path in self._outbox.rglob("*"):
                if not path.name.startswith(".") and path.is_file():
                    self._read(path)

    def _read(self, path: Path) -> None:
        key = (str(path), path.stat().st_ino)
        if key in self._seen:
            return
        try:
            with Image.open(path) as image:
                image.load()
        except Exception as error:  # noqa: BLE001 - whatever a reader would meet
            self.undecodable.append(f"{path}: {error!r}")
        self._seen[key] = None
        self.reads += 1

    def stop(self) -> None:
        self._end.set()


@contextmanager
def reading(outbox: Path) -> Iterator[OutboxReader]:
    """Read the outbox for the length of the `with`; fail when anything could not be decoded."""
    reader = OutboxReader(outbox)
    thread = threading.Thread(target=reader.run, daemon=True)
    thread.start()
    try:
        yield reader
    finally:
        reader.stop()
        thread.join()
    assert reader.undecodable == []


def digest(data: bytes) -> str:
    """Return what the stand-in knows an upload by."""
    return hashlib.sha256(data).hexdigest()


def all_came_back(
    site: Site, sandbox: RunningSandbox, dropped: dict[str, bytes], limit: float = 60.0
) -> None:
    """Wait until the inbox is worked off; every image came back, and each was paid for once."""
    until(lambda: len(site.files(site.archive)) >= len(dropped), limit)
    until(lambda: not images(site), limit)
    assert site.files(site.archive) == set(dropped)
    assert all((site.archive / name).read_bytes() == data for name, data in dropped.items())
    assert len(site.files(site.outbox)) == len(dropped)
    assert site.files(site.quarantine) == set()
    paid = sorted(payment.sha256 for payment in sandbox.state.payments)
    assert paid == sorted(map(digest, dropped.values()))


def images(site: Site) -> set[str]:
    """Return what lies in the inbox and is not hidden."""
    return {name for name in site.files(site.inbox) if "/." not in f"/{name}"}
