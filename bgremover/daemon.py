"""Start, stop, signals; two loops: the intake decides what may be claimed, the dispatcher works.

`once` is the same daemon, stopped when nothing is left to do.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any

import structlog

from bgremover import __version__
from bgremover.affinity import Affinity
from bgremover.core.errors import Billed, LedgerDamaged, SetupError
from bgremover.core.health import Step, Vitals, ailments
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

GRACE_SECONDS = 7.0
"""How long calls in flight may still bring their receipt home after SIGTERM."""
LOOK_SECONDS = 5.0
HUNG_SWEEP_SECONDS = 3600.0
"""How old the last sweep must be before a restart shall help: one of a share may take long."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How things stand, in words and as data.

    `limits` says how long a step of each phase may take, in seconds; `listen` where the endpoint
    is, if there is one.
    """

    dispatcher: Dispatcher
    intake: Intake
    lookout: Lookout
    clock: Clock
    limits: Mapping[str, float]
    listen: str | None = None

    def line(self) -> str:
        """Return the state in one line, for systemd."""
        words = f"{self.dispatcher.in_flight} in flight, {self._waiting} waiting"
        if self.dispatcher.deferred:
            words += f", {self.dispatcher.deferred} deferred"
        pause = self.dispatcher.line.pause
        if pause is not None:
            since = self._time_of_day(pause.since)
            words += f"; paused: {pause.reason.replace('_', ' ')} since {since}"
        return "; ".join([words, *self.hangs()])

    def _time_of_day(self, steady: float) -> str:
        now = self.clock.wall()
        then = time.localtime(now - self.clock.steady() + steady)
        today = then[:3] == time.localtime(now)[:3]
        return time.strftime("%H:%M" if today else "%Y-%m-%d %H:%M", then)

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
        pause, ill = self.pause(), self.ailments()
        return {
            "state": "paused" if pause else "running",
            "pause": pause,
            "queue": {
                "waiting": self._waiting,
                "in_flight": self.dispatcher.in_flight,
                "deferred": self.dispatcher.deferred,
                "held": self.intake.held,
            },
            "ailment": "; ".join(ill) or None,
            "ailments": ill,
            "pid": os.getpid(),
            "listen": self.listen,
        }

    def ailments(self) -> list[str]:
        """Return what is wrong with the daemon, in words; empty while it is well."""
        return ailments(self._vitals())

    def hangs(self) -> list[str]:
        """Return what has not moved for so long that only a new start can help, in words.

        Less than `ailments`: a restart fills no folder that is lost and empties no disk, and it
        may turn calls in flight into unknown charges.
        """
        vitals, patience = self._vitals(), HUNG_SWEEP_SECONDS / 2
        sweep_seconds = max(vitals.sweep_seconds, patience)
        return ailments(
            replace(vitals, watching=None, sweep_seconds=sweep_seconds, pause=None, free={})
        )

    def _vitals(self) -> Vitals:
        now, pause = self.clock.steady(), self.dispatcher.line.pause
        looked_at = self.dispatcher.observed.looked_at
        return Vitals(
            watching=self.lookout.ailment,
            look_age=now - looked_at if looked_at is not None else 0.0,
            sweep_age=self.intake.sweep_age,
            sweep_seconds=self.intake.sweep_seconds,
            steps=self._steps(),
            pause=pause.reason if pause else None,
            free=self.dispatcher.observed.free,
        )

    def _steps(self) -> Iterator[Step]:
        for step in self.dispatcher.observed.under_way.values():
            name = f"{step.phase} of {printable(step.path)}"
            yield Step(name, step.still(), self.limits[step.phase])

    @property
    def _waiting(self) -> int:
        return self.dispatcher.waiting + self.intake.waiting


@dataclass(frozen=True, slots=True)
class Parts:
    """What the daemon is made of.

    `home` says whose jobs of the ledger are resumed; with `kept`, originals stay in the inbox
    after they were cut out, and those of earlier runs are not looked at again. `key_version` gives
    something that is another when the API key may have changed. `attendants` run beside the work.
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
    attendants: AbstractAsyncContextManager[object]
    notifier: Notifier
    affinity: Affinity


class Daemon:
    """Runs the parts until it is told to stop, or until nothing is left to do.

    Args:
        parts: All of it, built.
        until_idle: Stop when the inbox is worked through or the line pauses.
        reread: Called in a thread on SIGHUP; says whether the settings have changed, so that the
            parts must be built anew. The run then ends when what is in flight has ended, with
            `anew` set. Without it SIGHUP only asks for a probe.
    """

    def __init__(
        self, parts: Parts, *, until_idle: bool = False, reread: Callable[[], bool] | None = None
    ) -> None:
        self.interrupted = False
        self.anew = False
        self._parts = parts
        self._until_idle = until_idle
        self._reread = reread
        self._rereading: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._bell = Bell()
        self._key = parts.key_version()
        self._hung = False

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
            parts.affinity.end()
            await parts.lookout.stop()
            await parts.scribe.aclose()
            await parts.api.aclose()
        log.info("daemon.stopped")

    async def _work(self) -> None:
        parts = self._parts
        async with parts.socket, parts.attendants, asyncio.TaskGroup() as group:
            intake = group.create_task(parts.intake.run(), name="intake")
            dispatcher = group.create_task(parts.dispatcher.run(), name="dispatcher")
            parts.notifier.ready(parts.standing.line())
            log.info("daemon.ready")
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hang_up)
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
        if not self._until_idle:
            await self._keep_out_saved()

    async def _keep_out_saved(self) -> None:
        parts = self._parts
        # Whether the cut-out is still in the outbox is not asked: it may have been taken away to
        # where it is needed, and must not be paid for again at each start.
        kept = await parts.scribe.do(lambda ledger: ledger.kept(parts.home, own=not parts.kept))
        if not parts.kept:
            await parts.intake.keep_out_own(kept)
            return
        for one in kept:
            parts.intake.keep_out(one.path, one.identity)

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        # Not before it is ready, which the end of a reload would say. Until then what was just read
        # holds; without a handler the signal would kill.
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        loop.add_signal_handler(signal.SIGUSR1, self._log_state)

    def _hang_up(self) -> None:
        if self._rereading is None or self._rereading.done():
            self._parts.notifier.reloading()
            self._rereading = asyncio.create_task(self._take_in(), name="reread")

    async def _take_in(self) -> None:
        changed = self._reread is not None and await asyncio.to_thread(self._reread)
        self.anew = self.anew or changed
        if self.anew:
            # Nothing starts any more, what is in flight ends; the next start says READY.
            self._parts.dispatcher.stop()
        else:
            self._parts.dispatcher.probe_now()
            self._parts.notifier.ready(self._parts.standing.line())

    def _log_state(self) -> None:
        log.info("daemon.state", **self._parts.standing.live())

    # --- while it runs ----------------------------------------------------------------------

    async def _supervise(self, dispatcher: "asyncio.Task[None]") -> None:
        beat = watchdog_interval()
        dispatcher.add_done_callback(lambda _: self._bell.ring())
        while not self._stop.is_set() and not dispatcher.done():
            if self._until_idle and self._is_over():
                return
            self._parts.affinity.follow()
            if not self._until_idle:
                await self._parts.lookout.look()
                self._parts.dispatcher.observed.looked_at = self._parts.clock.steady()
                await self._look_at_key()
            self._feed_watchdog()
            self._parts.notifier.status(self._parts.standing.line())
            await self._bell.wait(min(beat or LOOK_SECONDS, self._look_seconds))

    def _feed_watchdog(self) -> None:
        # A look that hangs holds up the loop of `_supervise` itself, and thus the sign of life.
        hung = self._parts.standing.hangs()
        if not hung:
            self._parts.notifier.watchdog()
        elif not self._hung:
            hint = "systemd starts it anew when WatchdogSec= is over; without systemd, restart it"
            log.error("daemon.hung", message="; ".join(hung), hint=hint)
        self._hung = bool(hung)

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
        if self.interrupted or not self.anew:
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


def recover_all(ledger: Ledger, home: Home, now: float) -> list[Job]:
    """Bring every unfinished job of a home to where it goes on, and return them."""
    crashed, alone = not ledger.begin_run(), ledger.alone()
    ledger.work_alone(None)
    return [
        _recover_one(ledger, job, now, crashed=crashed and alone in (None, job.id))
        for job in ledger.unfinished(home)
    ]


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
