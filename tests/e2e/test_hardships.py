"""Bad moments for the ledger, the drawing and the settings: nothing lost, nothing paid twice."""

import io
import signal
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageDraw

from bgremover.core.errors import Billed
from bgremover.edges.ledger import existing_ledger
from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox
from tests.site import KEY, Site, photo, until


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with RunningSandbox(SandboxOptions(key=KEY)) as running:
        yield running


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


EMPTY = png(Image.new("RGB", (96, 72), "white"))
"""Nothing is left of it when its background is taken away."""


@pytest.mark.timeout(120)
def test_a_ledger_that_cannot_be_written_after_the_answer_costs_no_second_call(
    tmp_path: Path,
) -> None:
    with RunningSandbox(SandboxOptions(key=KEY, latency_seconds=2, fixed_result=True)) as sandbox:
        site = Site(tmp_path, sandbox.url)
        site.drop("a.jpg", photo(1))
        with site.running() as daemon:
            daemon.until_event("image.submitted")
            ledger = site.state / "ledger.sqlite3"
            with closing(sqlite3.connect(ledger, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                daemon.until_event("service.paused", limit=60)
                other.execute("ROLLBACK")
            daemon.until_event("image.saved", limit=60)
            assert daemon.end() == 0
        assert len(sandbox.state.payments) == 1
        with existing_ledger(site.state) as record:
            assert record is not None
            assert [call.billed for call in record.calls()] == [Billed.YES]


@pytest.mark.parametrize(
    ("recipe", "width"),
    [("webp", 17_000), ("big background=white name={stem}-big.jpg", 66_000)],
)
def test_a_rendition_that_no_format_can_hold_stops_nothing(
    tmp_path: Path, sandbox: RunningSandbox, recipe: str, width: int
) -> None:
    output = {"resolution": "original", "renditions": [recipe]}
    site = Site(tmp_path, sandbox.url, output=output)
    wide = Image.new("RGB", (width, 64), "white")
    ImageDraw.Draw(wide).rectangle((width // 4, 16, width * 3 // 4, 48), fill=(200, 0, 0))
    site.drop("wide.png", png(wide))
    site.drop("other.jpg", photo(1))
    done = site.command("once")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no renditions" in done.stderr
    assert {"wide.png", "other.png"} <= site.files(site.outbox)
    assert site.files(site.archive) == {"wide.png", "other.jpg"}


@pytest.mark.parametrize("review", ["warn", "move"])
def test_an_original_with_a_doubtful_cut_out_is_never_deleted(
    tmp_path: Path, sandbox: RunningSandbox, review: str
) -> None:
    output = {"resolution": "original", "review": review}
    site = Site(tmp_path, sandbox.url, originals="delete", output=output)
    site.drop("empty.png", EMPTY)
    site.drop("good.jpg", photo(1))
    assert site.command("once").returncode == 0
    assert site.files(site.archive) == {"empty.png"}
    assert site.files(site.inbox) == set()


def test_the_same_doubtful_bytes_under_another_name_are_put_aside_too(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url, output={"resolution": "original", "review": "move"})
    for name in ("plain.png", "again.png"):
        site.drop(name, EMPTY)
        assert site.command("once").returncode == 0
    assert all(name.startswith("_review/") for name in site.files(site.outbox))
    assert len(sandbox.state.payments) == 1


def test_who_only_waits_is_not_blamed_for_a_death(tmp_path: Path, sandbox: RunningSandbox) -> None:
    site = Site(tmp_path, sandbox.url, budget={"per_day_usd": 0.01})
    for number in range(4):
        site.drop(f"{number}.jpg", photo(number))
    for number in range(4):
        with site.running(log=f"log-{number}") as daemon:
            daemon.until_event("budget.reached")
            daemon.end(signal.SIGKILL)
    assert site.files(site.quarantine) == set()
    assert len(site.files(site.inbox)) == 3


def test_settings_that_fail_only_when_they_are_used_are_refused_too(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url)
    with socket.create_server(("127.0.0.1", 0)) as busy, site.running() as daemon:
        daemon.until_event("daemon.ready")
        config = yaml.safe_load(site.config.read_text())
        config["http"] = {"listen": f"127.0.0.1:{busy.getsockname()[1]}"}
        site.config.write_text(yaml.safe_dump(config))
        daemon.send(signal.SIGHUP)
        daemon.until_event("settings.refused")
        daemon.until_event("daemon.ready", 2)
        site.drop("a.jpg", photo(1))
        until(lambda: site.files(site.outbox) == {"a.png"})
        assert daemon.end() == 0
