"""Messages and commands beside the real daemon: few, true, and never in the way."""

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox
from tests.edges.test_notify import Receiver
from tests.site import KEY, Site, photo, until


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with RunningSandbox(SandboxOptions(key=KEY, latency_seconds=0.05)) as running:
        yield running


def events(receiver: Receiver) -> list[dict[str, Any]]:
    return [json.loads(body) for _, _, body in receiver.got if body]


def test_forty_failures_and_a_pause_are_few_messages(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    with Receiver().listening() as receiver:
        site = Site(
            tmp_path,
            sandbox.url,
            notify={"webhook_url": receiver.url, "heartbeat_url": receiver.url},
        )
        with site.running() as daemon:
            for number in range(40):
                site.drop(f"bad-{number}.jpg", b"I am no picture. " * (number + 1))
            daemon.until_event("image.quarantined", 40, limit=60)
            site.inbox.rename(tmp_path / "elsewhere")
            daemon.until_event("watch.lost")
            (tmp_path / "elsewhere").rename(site.inbox)
            daemon.until_event("watch.restored")
            until(
                lambda: (
                    {"lost", "restored", "quarantined"}
                    <= {one["event"] for one in events(receiver)}
                ),
                40,
            )
            assert daemon.end() == 0
    told = {one["event"]: one for one in events(receiver)}
    assert len(events(receiver)) == 3
    assert told["quarantined"]["count"] == 40
    assert told["quarantined"]["codes"] == {"not_an_image": 40}
    assert any(not body for _, _, body in receiver.got), "no heartbeat came"
    log = (tmp_path / "log").read_text()
    assert "hook-5ec4e7" not in log
    assert KEY not in log + json.dumps(events(receiver))


def test_a_deaf_receiver_and_a_hanging_command_hold_nothing_up(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/"
        site = Site(
            tmp_path,
            sandbox.url,
            notify={
                "webhook_url": url,
                "events": ["saved"],
                "on_saved": [sys.executable, "-c", "import time; time.sleep(600)"],
            },
        )
        with site.running() as daemon:
            for number in range(10):
                site.drop(f"{number}.jpg", photo(number))
            daemon.until_event("image.saved", 10)
            assert daemon.end(limit=12) == 0
    assert len(site.files(site.outbox)) == 10
    assert len(sandbox.state.payments) == 10


def test_a_command_is_run_for_each_image_with_the_place_of_its_cut_out(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    told = tmp_path / "told"
    script = (
        "import os, sys; e = os.environ; "
        "assert open(e['NOTICE_OUTPUT'], 'rb').read(4) == b'\\x89PNG'; "
        "open(sys.argv[1], 'a').write(f\"{e['NOTICE_EVENT']} {e['NOTICE_FILE']} {len(e)}\\n\"); "
        "assert 'IDEOGRAM_API_KEY' not in e"
    )
    site = Site(
        tmp_path, sandbox.url, notify={"on_saved": [sys.executable, "-c", script, str(told)]}
    )
    with site.running() as daemon:
        for number in range(3):
            site.drop(f"{number}.jpg", photo(number))
        until(lambda: told.exists() and len(told.read_text().splitlines()) == 3)
        assert daemon.end() == 0
    assert {line.rpartition(" ")[0] for line in told.read_text().splitlines()} == {
        f"saved {number}.jpg" for number in range(3)
    }
    assert daemon.events("notify.failed") == []


def test_a_secret_that_is_missing_ends_the_start_with_78(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    notify = {"webhook_url": "http://127.0.0.1:9/", "webhook_secret_file": "./none"}
    told = Site(tmp_path, sandbox.url, notify=notify).command("run")
    assert told.returncode == 78
    assert "notify.webhook_secret_file" in told.stderr
