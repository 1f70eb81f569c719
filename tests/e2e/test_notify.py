"""What the whole daemon tells its service manager (sd_notify(3)), heard where systemd listens."""

import asyncio
import contextlib
import re
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import structlog.testing

from bgremover.core.observed import PHASES
from bgremover.daemon import Daemon, Parts
from bgremover.door import prepare_folders
from bgremover.edges.supervisor import Notifier
from bgremover.key import find_key_source
from bgremover.reading import load_settings
from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox
from bgremover.wiring import Work, build
from tests.site import KEY, Process, Site, photo, until

NOWHERE = "http://127.0.0.1:9"
WATCHDOG_SECONDS = 0.6


class Manager:
    """The receiving end of NOTIFY_SOCKET: what it has heard, from whom, in order."""

    def __init__(self, address: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.bind(str(address))
        self.socket.setblocking(False)
        self.senders: set[int] = set()
        self._heard: list[dict[str, str]] = []

    def heard(self) -> list[dict[str, str]]:
        with contextlib.suppress(BlockingIOError):
            while True:
                data, ancillary, _, _ = self.socket.recvmsg(4096, socket.CMSG_SPACE(12))
                ((_, _, credentials),) = ancillary
                self.senders.add(struct.unpack("3i", credentials)[0])
                lines = data.decode().split("\n")
                self._heard.append(dict(line.split("=", 1) for line in lines))
        return self._heard

    def count(self, key: str) -> int:
        return sum(key in message for message in self.heard())

    @property
    def status(self) -> str:
        told = [message["STATUS"] for message in self.heard() if "STATUS" in message]
        return told[-1] if told else ""


class Unit(Site):
    """A site whose daemon is started as systemd starts it."""

    @property
    def environment(self) -> dict[str, str]:
        manager = {
            "NOTIFY_SOCKET": str(self.root / "notify"),
            "WATCHDOG_USEC": str(int(WATCHDOG_SECONDS * 1e6)),
        }
        return {**super().environment, **manager}


@contextmanager
def started(site: Unit) -> Iterator[tuple[Process, Manager]]:
    manager = Manager(site.root / "notify")
    with manager.socket, site.running() as daemon:
        until(lambda: manager.count("READY") or daemon.popen.poll() is not None)
        yield daemon, manager


def test_it_is_ready_when_everything_stands_but_the_api(tmp_path: Path) -> None:
    with started(Unit(tmp_path, NOWHERE)) as (daemon, manager):
        assert manager.heard()[0] == {"READY": "1", "STATUS": "0 in flight, 0 waiting"}
        assert (tmp_path / "outbox").is_dir()
        assert (tmp_path / "state/ledger.sqlite3").exists()
        assert (tmp_path / "state/status.sock").exists()
        assert manager.senders == {daemon.popen.pid}  # NotifyAccess=main hears nobody else
        assert daemon.end() == 0


@pytest.mark.parametrize(
    ("section", "values"), [("folders", {"inbox": "/proc/none"}), ("queue", {"workers": 0})]
)
def test_it_is_never_ready_with_a_set_up_that_is_wrong(
    tmp_path: Path, section: str, values: dict[str, object]
) -> None:
    with started(Unit(tmp_path, NOWHERE, **{section: values})) as (daemon, manager):
        assert daemon.popen.wait(20) == 78
        assert manager.heard() == []


def test_signs_of_life_come_while_it_lives_and_stop_when_it_hangs(tmp_path: Path) -> None:
    with started(Unit(tmp_path, NOWHERE)) as (daemon, manager):
        began = time.monotonic()
        until(lambda: manager.count("WATCHDOG") >= 6)
        assert time.monotonic() - began < 6 * WATCHDOG_SECONDS
        daemon.send(signal.SIGSTOP)
        until(lambda: Path(f"/proc/{daemon.popen.pid}/stat").read_text().split()[2] == "T")
        before = manager.count("WATCHDOG")
        stopped = time.monotonic()
        until(lambda: time.monotonic() - stopped > 2 * WATCHDOG_SECONDS)
        assert manager.count("WATCHDOG") == before
        daemon.send(signal.SIGCONT)
        until(lambda: manager.count("WATCHDOG") > before)
        assert daemon.end() == 0


def test_a_reload_begins_and_ends(tmp_path: Path) -> None:
    with started(Unit(tmp_path, NOWHERE)) as (daemon, manager):
        before = time.monotonic_ns() // 1000
        daemon.send(signal.SIGHUP)
        until(lambda: manager.count("READY") == 2)
        after = time.monotonic_ns() // 1000
        told = [message for message in manager.heard() if message.keys() & {"READY", "RELOADING"}]
        assert [list(message) for message in told[1:]] == [
            ["RELOADING", "MONOTONIC_USEC"],
            ["READY", "STATUS"],
        ]
        assert before <= int(told[1]["MONOTONIC_USEC"]) <= after
        assert daemon.end() == 0


def test_the_end_is_announced_before_it_is_waited_for(tmp_path: Path) -> None:
    with RunningSandbox(SandboxOptions(key=KEY, latency_seconds=1.5)) as sandbox:
        site = Unit(tmp_path, sandbox.url)
        with started(site) as (daemon, manager):
            site.drop("a.jpg", photo())
            daemon.until_event("image.submitted")
            daemon.send(signal.SIGTERM)
            until(lambda: manager.count("STOPPING"))
            assert daemon.popen.poll() is None
            assert daemon.end() == 0
            assert manager.heard()[-1] == {"STOPPING": "1"}


def test_the_status_tells_of_a_pause_in_words(tmp_path: Path) -> None:
    with RunningSandbox(SandboxOptions(key="another-key")) as sandbox:
        site = Unit(tmp_path, sandbox.url)
        with started(site) as (daemon, manager):
            for number in range(3):
                site.drop(f"{number}.jpg", photo(number))
            words = (
                r"0 in flight, \d+ waiting(, \d+ deferred)?; paused: key refused since \d\d:\d\d"
            )
            until(lambda: re.fullmatch(words, manager.status))
            assert daemon.end() == 0


def test_a_step_that_hangs_withholds_the_sign_of_life_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunningSandbox(SandboxOptions(key=KEY, latency_seconds=3)) as slow:
        site = Unit(tmp_path, slow.url)
        manager = Manager(tmp_path / "notify")
        monkeypatch.setenv("WATCHDOG_USEC", site.environment["WATCHDOG_USEC"])

        async def scenario() -> None:
            daemon = Daemon(parts_of(site))
            running = asyncio.create_task(daemon.run())
            await until_async(lambda: manager.count("WATCHDOG") >= 2)
            site.drop("slow.jpg", photo())
            await until_async(lambda: "the step call of slow.jpg has not moved" in manager.status)
            assert "WATCHDOG" not in manager.heard()[-1]
            before = manager.count("WATCHDOG")
            await until_async(lambda: site.files(site.outbox) == {"slow.png"})
            assert manager.count("WATCHDOG") <= before + 1
            await until_async(lambda: manager.count("WATCHDOG") >= before + 2)
            assert manager.status == "0 in flight, 0 waiting"
            daemon.stop()
            await running

        with manager.socket, structlog.testing.capture_logs() as told:
            asyncio.run(scenario())
    hung = [line for line in told if line["event"] == "daemon.hung"]
    assert len(hung) == 1
    assert "slow.jpg" in hung[0]["message"]


def parts_of(site: Unit) -> Parts:
    """Build the parts of a daemon with hardly any patience, which tells `site`'s manager."""
    settings = load_settings(str(site.config), {}, site.root)
    prepare_folders(settings)
    key = find_key_source(settings, {"IDEOGRAM_API_KEY": KEY})
    parts = build(settings, Work(site.inbox, settings.originals), key)
    impatient = replace(parts.standing, limits=dict.fromkeys(PHASES, 0.5))
    return replace(parts, standing=impatient, notifier=Notifier(site.environment))


async def until_async(condition: Callable[[], object], limit: float = 30.0) -> None:
    async with asyncio.timeout(limit):
        while not condition():  # noqa: ASYNC110 - what it asks comes through a socket
            await asyncio.sleep(0.02)
