"""Start, stop, signals; two loops: the intake decides what may be claimed, the dispatcher works.

`once` is the same daemon, stopped when nothing is left to do.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from bgremover import __version__
from bgremover.core.errors import Billed, LedgerDamaged, SetupError
from bgremover.core.job import Home, Job, Quarantined, Released, Saved
from bgremover.core.naming import printable
from bgremover.core.recovery import KILLED, recovered
from bgremover.core.report import utc
from bgremover.dispatcher import Dispatcher
from bgremover.edges.folders import Folders
from bgremover.edges.ideogram import Ideogram
from bgremover.edges.ledger import Ledger, Scribe
from bgremover.edges.supervisor import Notifier, StatusSocket, watchdog_interval
from bgremover.intake import Intake
from bgremover.lookout import Lookout
from bgremover.timing import Bell, Clock

log = structlog.get_logger()

GRACE_SECONDS = 8.0
"""How long calls in flight may still bring their receipt home after SIGTERM."""
LOOK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Standing:
    """How things stand, in words and as data."""

    dispatcher: Dispatcher
    intake: Intake
    lookout: Lookout
    clock: Clock

    def line(self) -> str:
        """Return the state in one line, for systemd."""
        words = f"{self.dispatcher.in_flight} in flight, {self._waiting} waiting"
        if self.dispatcher.deferred:
            words += f", {self.dispatcher.deferred} deferred"
        pause = self.pause()
        if pause is not None:
            words += f"; paused: {pause['reason'].replace('_', ' ')} since {pause['since']}"
        return words

    def pause(self) -> dict[str, str] | None:
        """Return the pause as `status --json` shows it; None while the line runs."""
        pause = self.dispatcher.line.pause
        if pause is None:
            return None
        offset = self.clock.wall() - self.clock.steady()
        return {
            "reason": pause.reason,
            "detail": pause.detail,
            "since": utc(pause.since + offset),
            "next_probe_at": utc(pause.next_probe_at + offset),
        }

    def live(self) -> dict[str, Any]:
        """Return what only the running daemon knows, for the status socket."""
        pause = self.pause()
        return {
            "state": "paused" if pause else "running",
            "pause": pause,
            "queue": {
                "waiting": self._waiting,
                "in_flight": self.dispatcher.in_flight,
                "deferred": self.dispatcher.deferred,
            },
            "ailment": self.lookout.ailment,
            "pid": os.getpid(),
        }

    @property
    def _waiting(self) -> int:
        return self.dispatcher.waiting + self.intake.waiting


@dataclass(frozen=True, slots=True)
class Parts:
    """What the daemon is made of.

    `home` says whose jobs of the ledger are resumed; with `kept`, originals stay in the inbox
    after they were cut out, and those of earlier runs are not looked at again. `key_version` gives
    something that is another when the API key may have changed.
    """

    home: Home
    kept: bool
    key_version: Callable[[], object]
    scribe: Scribe
    folders: Folders
    api: Ideogram
    dispatcher: Dispatcher
    intake: Intake
    lookout: Lookout
    clock: Clock
    standing: Standing
    socket: StatusSocket
    notifier: Notifier


class Daemon:
    """Runs the parts until it is told to stop, or until nothing is left to do.

    Args:
        parts: All of it, built.
        until_idle: Stop when the inbox is worked through or the line pauses.
        reload: Called on SIGHUP.
    """

    def __init__(
        self, parts: Parts, *, until_idle: bool = False, reload: Callable[[], None] | None = None
    ) -> None:
        self.interrupted = False
        self._parts = parts
        self._until_idle = until_idle
        self._reload = reload
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._bell = Bell()
        self._key = parts.key_version()

    def stop(self) -> None:
        """End the run; what is in flight gets `GRACE_SECONDS`, at the second call nothing."""
        if self.interrupted:
            self._hurry.set()
        self.interrupted = True
        self._stop.set()
        self._bell.ring()

    async def run(self) -> None:
        """Recover, watch, work, stop.

        Raises:
            LocalFault: The ledger or a folder does not let the daemon start.
            SetupError: The ledger is damaged.
        """
        parts = self._parts
        log.info("daemon.started", once=self._until_idle, version=__version__)
        self._listen_to_signals()
        try:
            await self._recovered()
            if not self._until_idle:
                await parts.lookout.start()
            await self._work()
            await parts.scribe.do(Ledger.end_run)
        finally:
            await parts.lookout.stop()
            await parts.scribe.aclose()
            await parts.api.aclose()
        log.info("daemon.stopped")

    async def _work(self) -> None:
        parts = self._parts
        async with parts.socket, asyncio.TaskGroup() as group:
            intake = group.create_task(parts.intake.run(), name="intake")
            dispatcher = group.create_task(parts.dispatcher.run(), name="dispatcher")
            parts.notifier.ready(parts.standing.line())
            log.info("daemon.ready")
            await self._supervise(dispatcher)
            intake.cancel()
            await self._wind_up(dispatcher)

    # --- start ------------------------------------------------------------------------------

    async def _recovered(self) -> None:
        try:
            await self._recover()
        except LedgerDamaged as fault:  # waiting mends nothing: exit 78, not 69
            raise SetupError(fault.message) from fault

    async def _recover(self) -> None:
        parts, now = self._parts, self._parts.clock.wall()
        jobs, orphans = await parts.scribe.do(
            lambda ledger: (recover_all(ledger, parts.home, now), ledger.orphans())
        )
        for output, job_id in orphans:
            await asyncio.to_thread(parts.folders.discard_temp, output, job_id)
        for job in jobs:
            parts.intake.resume(job.path)
            parts.dispatcher.resume(job)
        if parts.kept and not self._until_idle:
            await self._keep_out_saved()

    async def _keep_out_saved(self) -> None:
        parts = self._parts
        saved = await parts.scribe.do(lambda ledger: list(ledger.saved(parts.home)))
        for job in await asyncio.to_thread(_still_there, saved, parts.folders):
            parts.intake.keep_out(job.path, job.identity)

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        loop.add_signal_handler(signal.SIGUSR1, self._log_state)

    def _hang_up(self) -> None:
        self._parts.notifier.reloading()
        if self._reload is not None:
            self._reload()
        self._parts.dispatcher.probe_now()
        self._parts.notifier.ready(self._parts.standing.line())

    def _log_state(self) -> None:
        log.info("daemon.state", **self._parts.standing.live())

    # --- while it runs ----------------------------------------------------------------------

    async def _supervise(self, dispatcher: "asyncio.Task[None]") -> None:
        beat = watchdog_interval()
        while not self._stop.is_set() and not dispatcher.done():
            if self._until_idle and self._is_over():
                return
            if not self._until_idle:
                await self._parts.lookout.look()
                await self._look_at_key()
            self._parts.notifier.watchdog()
            self._parts.notifier.status(self._parts.standing.line())
            await self._bell.wait(min(beat or LOOK_SECONDS, self._look_seconds))

    async def _look_at_key(self) -> None:
        before, self._key = self._key, await asyncio.to_thread(self._parts.key_version)
        if before != self._key:
            log.info("key.changed")
            self._parts.dispatcher.probe_now()

    @property
    def _look_seconds(self) -> float:
        return 0.05 if self._until_idle else LOOK_SECONDS

    def _is_over(self) -> bool:
        done = self._parts.dispatcher.idle and self._parts.intake.idle
        pause = self._parts.dispatcher.line.pause
        return done or (pause is not None and not self._parts.dispatcher.in_flight)

    # --- stop -------------------------------------------------------------------------------

    async def _wind_up(self, dispatcher: "asyncio.Task[None]") -> None:
        log.info("daemon.stopping", in_flight=self._parts.dispatcher.in_flight)
        self._parts.notifier.stopping()
        self._parts.dispatcher.stop()
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait(
            {dispatcher, hurry}, timeout=GRACE_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        hurry.cancel()
        if not dispatcher.done():
            await self._parts.dispatcher.abandon()
            dispatcher.cancel()


def _still_there(jobs: list[Job], folders: Folders) -> list[Job]:
    return [
        job
        for job in jobs
        if isinstance(job.state, Saved) and folders.has(job.state.output, job.state.size)
    ]


def recover_all(ledger: Ledger, home: Home, now: float) -> list[Job]:
    """Bring every unfinished job of a home to where it goes on, and return them."""
    crashed = not ledger.begin_run()
    return [_recover_one(ledger, job, now, crashed=crashed) for job in ledger.unfinished(home)]


def _recover_one(ledger: Ledger, job: Job, now: float, *, crashed: bool) -> Job:
    call = ledger.last_call(job.id)
    answered = call is None or call.billed is not None
    at = call.started_at if call else now
    again = recovered(job, answered=answered, crashed=crashed, at=at)
    if again.attempts != job.attempts and call is not None:
        ledger.end_call(
            call.id,
            billed=Billed.UNKNOWN,
            outcome=KILLED,
            status=None,
            request_id=None,
            seconds=None,
        )
        log.warning("image.charge_unknown", job=job.id, file=printable(job.path))
    ledger.put(again, now)
    return again


def rest(intake: Intake, *, kept: bool) -> Callable[[Job], None]:
    """Return what tells the intake that a job has come to rest.

    Args:
        intake: Who is told.
        kept: Whether originals stay in the inbox after they were cut out.
    """

    def told(job: Job) -> None:
        match job.state:
            case Released(reason="blocked" | "known") | Saved(left=True) | Quarantined(left=True):
                intake.keep_out(job.path, job.identity)
                intake.finished(job.path)
            case Saved() if kept:
                intake.keep_out(job.path, job.identity)
                intake.finished(job.path)
            case _:
                intake.let_go(job.path)

    return told
