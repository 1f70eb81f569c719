"""`health` tests the watching: each way in which a daemon can live and yet do nothing."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from bgremover.core.observed import PHASES
from bgremover.daemon import Daemon, Parts
from bgremover.door import prepare_folders
from bgremover.key import find_key_source
from bgremover.reading import load_settings
from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox
from bgremover.wiring import Work, build
from tests.e2e.test_faults import mounted
from tests.site import KEY, Site, photo, until

UNHEALTHY_SECONDS = 30.0
"""Within which a dead emitter must be noticed and revived."""


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with RunningSandbox(SandboxOptions(key=KEY, latency_seconds=0.05)) as running:
        yield running


@asynccontextmanager
async def daemon_in(site: Site) -> AsyncIterator[Parts]:
    """Run the daemon in this process, so that its threads can be reached."""
    settings = load_settings(str(site.config), {}, site.root)
    prepare_folders(settings)
    key = find_key_source(settings, {"IDEOGRAM_API_KEY": KEY})
    parts = build(settings, Work(site.inbox, settings.originals), key)
    daemon = Daemon(parts)
    running = asyncio.create_task(daemon.run())
    try:
        await until_async(lambda: parts.dispatcher.observed.looked_at is not None)
        yield parts
    finally:
        daemon.stop()
        await running


async def until_async(condition: Callable[[], object], limit: float = 20.0) -> None:
    async with asyncio.timeout(limit):
        while not condition():  # noqa: ASYNC110 - the condition is no event
            await asyncio.sleep(0.02)


def health(site: Site, *arguments: str) -> tuple[int, str]:
    told = site.command("health", *arguments)
    return told.returncode, (told.stdout or told.stderr).strip()


def test_a_dead_emitter_is_told_at_once_and_revived(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    # Only events can find what is dropped afterwards: no sweep comes within the test.
    site = Site(tmp_path, sandbox.url, watch={"backend": "native", "rescan_seconds": 3600})

    async def scenario() -> None:
        async with daemon_in(site) as parts:
            watcher = parts.lookout._watcher
            for emitter in watcher._observer.emitters:  # type: ignore[union-attr]
                emitter.stop()
                emitter.join(5)
            # What the status socket answers; asked without a turn of the loop, which may mend it.
            assert "has ended" in parts.standing.live()["ailment"]
            async with asyncio.timeout(UNHEALTHY_SECONDS):
                await until_async(lambda: not parts.standing.ailments(), UNHEALTHY_SECONDS)
            assert parts.lookout._watcher is not watcher
            site.drop("after.jpg", photo())
            await until_async(lambda: site.files(site.outbox) == {"after.png"})

    asyncio.run(scenario())


def test_a_step_that_hangs_is_told(tmp_path: Path) -> None:
    with RunningSandbox(SandboxOptions(key=KEY, latency_seconds=20)) as slow:
        site = Site(tmp_path, slow.url)

        async def scenario() -> None:
            async with daemon_in(site) as parts:
                impatient = replace(parts.standing, limits=dict.fromkeys(PHASES, 0.3))
                site.drop("stuck.jpg", photo())
                with suppress(TimeoutError):
                    await until_async(impatient.ailments)
                (words,) = impatient.ailments()
                assert words.startswith("the step call of stuck.jpg has not moved for ")
                assert parts.standing.ailments() == []
                os.kill(os.getpid(), signal.SIGTERM)  # and the one that ends the run hurries it

        asyncio.run(scenario())


def test_pictures_that_wait_for_their_turn_do_not_hang(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url, queue={"workers": 8})

    async def scenario() -> None:
        async with daemon_in(site) as parts:
            workshop = parts.dispatcher._pipeline._workshop
            impatient = replace(parts.standing, limits=dict.fromkeys(PHASES, 0.5))
            with workshop._memory.taken(10**12):
                for number in range(6):
                    site.drop(f"{number}.jpg", photo(number))
                await until_async(lambda: parts.standing.live()["queue"]["in_flight"] > 1)
                waits = parts.dispatcher.observed.under_way.values()
                end = parts.clock.steady() + 0.7
                await until_async(lambda: parts.clock.steady() > end)
                assert [one.phase for one in waits] == ["inspect"] * len(waits)
                assert len(waits) > 1
                assert impatient.ailments() == []
            await until_async(lambda: len(site.files(site.outbox)) == 6)

    asyncio.run(scenario())


def test_a_lost_inbox_is_ill_until_it_is_back(tmp_path: Path, sandbox: RunningSandbox) -> None:
    site = Site(tmp_path, sandbox.url)
    with site.running() as daemon:
        daemon.until_event("daemon.ready")
        assert health(site) == (0, "running")
        site.inbox.rename(tmp_path / "elsewhere")
        daemon.until_event("watch.lost")
        code, words = health(site)
        assert code == 1
        assert "the inbox is lost" in words
        (tmp_path / "elsewhere").rename(site.inbox)
        daemon.until_event("watch.restored")
        until(lambda: health(site)[0] == 0)


def test_a_full_disk_is_ill(tmp_path: Path, sandbox: RunningSandbox) -> None:
    site = Site(tmp_path, sandbox.url)
    site.outbox.mkdir()
    with mounted(["-t", "tmpfs", "-o", "size=4m", "tmpfs"], site.outbox), site.running() as daemon:
        daemon.until_event("daemon.ready")
        until(lambda: health(site)[0] == 1)
        assert "the disk of the outbox is full (4 MB free)" in health(site)[1]


def test_a_daemon_that_is_stopped_is_ill_and_one_that_goes_on_is_well(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url)
    with site.running() as daemon:
        daemon.until_event("daemon.ready")
        daemon.send(signal.SIGSTOP)
        code, words = health(site)
        assert code == 1
        assert "stalls" in words
        daemon.send(signal.SIGCONT)
        until(lambda: health(site)[0] == 0)


def test_a_pause_is_well_but_told_and_strict_is_strict(tmp_path: Path) -> None:
    with RunningSandbox(SandboxOptions(key="another-key")) as sandbox:
        site = Site(tmp_path, sandbox.url)
        with site.running() as daemon:
            site.drop("a.jpg", photo())
            daemon.until_event("service.paused")
            code, words = health(site)
            assert code == 0
            assert words.startswith("paused: key refused")
            code, words = health(site, "--strict")
            assert code == 1
            assert words.startswith("bgremover: paused: key refused")
