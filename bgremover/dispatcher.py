"""Which step starts now: the lanes, the parking lot, and what follows from each outcome.

Each step of `pipeline` is a task of its own in one of three lanes. `PREPARE` inspects a few
images ahead, `SEND` holds the calls that cost money and obeys `core.pacing`, `FINISH` fetches,
publishes and files. An image that must wait is parked with its moment and holds no task.
"""

import asyncio
import heapq
import itertools
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

import structlog

from bgremover.core import pacing, verdict
from bgremover.core.answer import LONGEST_WAIT
from bgremover.core.errors import (
    BgremoverError,
    Blame,
    Blocked,
    CrashLoop,
    EmptyImage,
    FileFault,
    LocalFault,
    Truncated,
)
from bgremover.core.job import (
    CONFIGURED,
    Accepted,
    Deferred,
    Fetched,
    Home,
    Job,
    Paid,
    Quarantined,
    Queued,
    Released,
    Saved,
    finished,
    receipt_of,
)
from bgremover.core.naming import printable
from bgremover.core.observed import Observed
from bgremover.core.report import error_report, render
from bgremover.edges.inbox import Sighting
from bgremover.intake import Intake
from bgremover.pipeline import ACCEPTED, GENERATING, TWIN, Pipeline, Trouble
from bgremover.timing import STEP, Bell, Clock, Progress

log = structlog.get_logger()


class Lane(Enum):
    """What kind of step a job is up for."""

    PREPARE = "prepare"
    SEND = "send"
    FINISH = "finish"


def lane_of(job: Job) -> Lane:
    """Return the lane of a job's next step."""
    match job.state:
        case Queued():
            return Lane.PREPARE if job.picture is None else Lane.SEND
        case _:
            return Lane.FINISH


@dataclass(frozen=True, slots=True)
class Size:
    """How much may be under way: claimed and waiting, and tasks in the lanes without a price."""

    capacity: int
    prepare: int = 2
    finish: int = 4


@dataclass(slots=True)
class Tally:
    """What this run has done so far."""

    saved: int = 0
    reused: int = 0
    quarantined: int = 0


class Dispatcher:
    """Starts steps, and acts on what comes of them.

    Args:
        pipeline: The steps.
        pace: The settings of the line.
        rules: The settings of the verdict.
        size: How much may be under way.
        clock: Both clocks.
        chance: Gives a number in [0, 1), for jitter.
        version: Goes into the error JSON.
        price_usd: Goes into the error JSON.
        unknown_sends: How often an image is sent again after an unknown charge.
        told: Called with each job that has come to rest.
        home: Of the images that are claimed.
    """

    def __init__(  # noqa: PLR0913 - the one place where the parts meet
        self,
        pipeline: Pipeline,
        *,
        pace: pacing.Pace,
        rules: verdict.Rules,
        size: Size,
        clock: Clock,
        chance: Callable[[], float],
        version: str,
        price_usd: float,
        unknown_sends: int,
        told: Callable[[Job], None],
        home: Home = CONFIGURED,
    ) -> None:
        self._home = home
        self.bell = Bell()
        self.line = pacing.opened(pace)
        self.tally = Tally()
        self.observed = Observed()
        self.intake: Intake | None = None
        self._pipeline = pipeline
        self._pace = pace
        self._rules = rules
        self._size = size
        self._clock = clock
        self._chance = chance
        self._version = version
        self._price_usd = price_usd
        self._unknown_sends = unknown_sends
        self._told = told
        self._lanes: dict[Lane, deque[Job]] = {lane: deque() for lane in Lane}
        self._running: dict[Lane, set[asyncio.Task[None]]] = {lane: set() for lane in Lane}
        self._answered: dict[str, bool] = {}
        self._alone: str | None = None
        self._crashed: set[str] = set()
        self._woken: set[str] = set()
        self._parked: dict[str, Job] = {}
        self._moments: list[tuple[float, int, str]] = []
        self._due: dict[str, float] = {}
        self._order = itertools.count()
        self._stopping = False
        self._inbox_lost = False
        self._defects: list[BaseException] = []

    # --- what comes in ----------------------------------------------------------------------

    def claim(self, sighting: Sighting) -> bool:
        """Claim a settled file, if fewer than `capacity` are claimed and waiting."""
        if self._stopping or self.waiting >= self._size.capacity:
            return False
        now = self._clock.wall()
        job = Job(
            uuid.uuid4().hex, sighting.path, sighting.identity, now, Queued(), home=self._home
        )
        log.info("image.claimed", job=job.id, file=printable(job.path), bytes=job.identity.size)
        self._enqueue(job)
        return True

    def resume(self, job: Job) -> None:
        """Take over a job of an earlier run."""
        if job.crashes:
            self._crashed.add(job.id)
        if verdict.crash_loop(job):
            fault = CrashLoop(f"the program was killed {job.crashes} times while it worked on this")
            self._tell_verdict(job, verdict.Quarantine(fault), fault)
            self._enqueue(replace(job, state=self._quarantined(job, fault)))
        elif isinstance(job.state, Deferred):
            self._park(job, job.state)
        else:
            self._enqueue(job)

    def inbox_trouble(self, fault: LocalFault | None) -> None:
        """Pause because the inbox is lost, or go on because it is back."""
        if fault is not None:
            self._inbox_lost = True
            self._line_failed("", fault, self._clock.steady())
        elif self._inbox_lost:
            self._inbox_lost = False
            self._change_line(pacing.mended(self.line, self._pace))

    def probe_now(self) -> None:
        """Let a probe through at once: the key changed, or somebody asked for it."""
        self.line = pacing.probe_now(self.line, self._clock.steady())
        self.bell.ring()

    # --- what is asked ----------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many images are claimed and waiting for a step."""
        return sum(map(len, self._lanes.values()))

    @property
    def in_flight(self) -> int:
        """How many images have a step or a generation under way."""
        return sum(map(len, self._running.values())) + self._generating

    @property
    def deferred(self) -> int:
        """How many images are parked."""
        return len(self._parked) - self._generating

    @property
    def _generating(self) -> int:
        return sum(_is_generating(job) for job in self._parked.values())

    @property
    def idle(self) -> bool:
        """Whether nothing is claimed, under way or parked."""
        return not (self.waiting or self.in_flight or self._parked)

    # --- the loop ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Start steps until `stop`; then wait for those under way to end."""
        while not self._stopping:
            self.pump()
            await self.bell.wait(self._next_moment())
            self._raise_defects()
        await self._drain()

    def _raise_defects(self) -> None:
        # A step never raises; what comes out of its task is a defect, and going on with a job
        # lost would hide it. The next start finds the job in the ledger or in the inbox.
        if self._defects:
            raise self._defects[0]

    def stop(self) -> None:
        """Start nothing any more but what keeps what was paid for."""
        self._stopping = True
        self.bell.ring()

    async def abandon(self) -> None:
        """Cancel what is under way; the next start goes on from the ledger."""
        tasks = [task for running in self._running.values() for task in running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _drain(self) -> None:
        while any(self._running.values()):
            self._start_finishing()
            await self.bell.wait(None)
            self._raise_defects()

    def _next_moment(self) -> float | None:
        now = self._clock.steady()
        moments = [moment for moment, _, _ in self._moments[:1]]
        gate = pacing.next_moment(self.line)
        if gate > now:
            moments.append(gate)
        return max(0.0, min(moments) - now) if moments else None

    def pump(self) -> None:
        """Start every step that may start now."""
        self._wake_due()
        if not self._start_suspect():
            self._start_finishing()
            self._start_preparing()
            self._start_sending()
        if self.intake is not None:
            self.intake.bell.ring()

    def _start_suspect(self) -> bool:
        """Start an image that may kill the program, alone; tell whether others must wait for it."""
        if self._alone is not None:
            return True
        job = next(filter(self._may_start_now, self._suspects()), None)
        if job is None:
            return False
        if not any(self._running.values()):
            self._alone = job.id
            self._lanes[lane_of(job)].remove(job)
            self._start(lane_of(job), job)
        return True

    def _suspects(self) -> Iterator[Job]:
        if not self._crashed:  # asked at every bell: the lanes are not walked through for nothing
            return iter(())
        lanes = (Lane.FINISH, Lane.PREPARE, Lane.SEND)
        return (job for lane in lanes for job in self._lanes[lane] if verdict.suspect(job))

    def _may_start_now(self, job: Job) -> bool:
        if lane_of(job) is Lane.SEND:
            return self._call_room() > 0 and self._next_to_send() is job
        return not self._paused_locally or self._call_room() > 0

    def _start_preparing(self) -> None:
        lane = self._lanes[Lane.PREPARE]
        while lane and self._may_start(Lane.PREPARE, self._size.prepare):
            # Not further ahead than the calls that may be in flight: what is inspected too early
            # may have changed when its turn comes. Images that met an unknown charge do not count:
            # in an outage they are the last that may be probes.
            ahead = sum(job.unknown_calls == 0 for job in self._lanes[Lane.SEND])
            if ahead + len(self._running[Lane.PREPARE]) >= max(2, self._pace.workers):
                break
            self._start(Lane.PREPARE, lane.popleft())

    def _start_sending(self) -> None:
        while len(self._lanes[Lane.FINISH]) < 2 * self._pace.workers and self._call_room() > 0:
            job = self._next_to_send()
            if job is None:
                break
            self._lanes[Lane.SEND].remove(job)
            self._start(Lane.SEND, job)

    def _next_to_send(self) -> Job | None:
        lane = self._lanes[Lane.SEND]
        if self.line.pause is None:
            return lane[0] if lane else None
        # A probe may be charged for and tell nothing: take the image that has met this least, and
        # none whose next step is quarantine for it: an outage would then quarantine it.
        fit = (job for job in lane if self._may_probe(job))
        last = lane[0] if lane and self._nothing_else_may_probe() else None
        return min(fit, key=lambda job: job.unknown_calls, default=last)

    def _may_probe(self, job: Job) -> bool:
        return job.unknown_calls <= self._unknown_sends

    def _nothing_else_may_probe(self) -> bool:
        # Then waiting helps nobody: what has used up its sends goes where the setting says.
        coming = self._lanes[Lane.PREPARE] or self._running[Lane.PREPARE]
        return not coming and not any(map(self._may_probe, self._parked.values()))

    def _note_answer(self, job_id: str) -> None:
        # The receipt is still to be written, but the next call need not wait for that.
        self._answered[job_id] = self._calls >= self.line.limit
        self.bell.ring()

    @property
    def _calls(self) -> int:
        # A probe is one until its outcome is known to the line, not only answered.
        answered = 0 if self.line.pause else len(self._answered)
        return len(self._running[Lane.SEND]) - answered + self._generating

    def _call_room(self) -> int:
        counted = self.in_flight if self._paused_locally else self._calls
        return pacing.room(self.line, counted, self._clock.steady())

    def _start_finishing(self) -> None:
        lane = self._lanes[Lane.FINISH]
        while lane and self._may_start(Lane.FINISH, self._size.finish):
            self._start(Lane.FINISH, lane.popleft())

    def _may_start(self, lane: Lane, most: int) -> bool:
        if self._paused_locally:
            return self._call_room() > 0
        return len(self._running[lane]) < most

    def _start(self, lane: Lane, job: Job) -> None:
        task = asyncio.create_task(self._work(job, self._clock.steady()), name=job.id)
        self._running[lane].add(task)
        task.add_done_callback(lambda ended: self._note_end(lane, ended))

    def _note_end(self, lane: Lane, task: "asyncio.Task[None]") -> None:
        self._running[lane].discard(task)
        self._answered.pop(task.get_name(), None)
        if self._alone == task.get_name():
            self._alone = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._defects.append(error)
        self.bell.ring()

    async def _work(self, job: Job, started: float) -> None:
        progress = Progress(self._clock.steady)
        STEP.set(progress)
        self.observed.began(job, started, progress.still)
        alone = self._alone == job.id
        if alone:
            await self._pipeline.work_alone(job.id)
        if job.id in self._woken:
            self._woken.discard(job.id)
            if not isinstance(job.state, Accepted):
                await self._pipeline.take_up(job)
        outcome = await self._pipeline.step(job, lambda: self._note_answer(job.id))
        now = self._clock.steady()
        match outcome:
            case Trouble(job=after, fault=fault):
                self.observed.ended(job, after, fault.code, now)
                await self._failed(after, fault, started)
            case _:
                self.observed.ended(job, outcome, None, now)
                self._advanced(job, outcome, started)
        if alone:
            await self._pipeline.work_alone(None)

    # --- what follows -----------------------------------------------------------------------

    def _advanced(self, before: Job, job: Job, started: float) -> None:
        # A generation that was accepted may still fail: it has not succeeded before it is paid.
        paid = isinstance(job.state, Paid) and job.attempts != before.attempts
        if paid and not self._paused_locally:
            self._line_succeeded(job.id, self._sent_at(job, started))
        if isinstance(job.state, Fetched) and isinstance(before.state, Paid):
            self._change_line(pacing.fetched(self.line, job.id, self._pace, started=started))
        self._settle(job)

    def _sent_at(self, job: Job, started: float) -> float:
        accepted = [one.at for one in job.attempts if one.outcome == ACCEPTED]
        age = self._clock.wall() - accepted[-1] if accepted else 0.0
        return min(started, self._clock.steady() - age)

    @property
    def _paused_locally(self) -> bool:
        return self.line.pause is not None and self.line.pause.blame is Blame.LOCAL

    def _settle(self, job: Job) -> None:
        match job.state:
            case Deferred() as state:
                self._park(job, state)
            case _ if finished(job.state):
                self._rest(job)
            case _:
                self._enqueue(job)

    async def _failed(self, job: Job, fault: BgremoverError, started: float) -> None:
        if self._taken_back(job, fault):
            await self._record(job.to(Released(fault.code)), started)
            return
        self._line_failed(job.id, fault, started)
        decision = verdict.judge(job, fault, self.line, self._rules, self._chance())
        after = self._after(job, decision)
        await self._record(after, started)
        self._tell_verdict(after, decision, fault)
        self._settle(after)

    async def _record(self, job: Job, started: float) -> None:
        try:
            await self._pipeline.record(job)
        except LocalFault as full:
            self._line_failed(job.id, full, started)

    def _taken_back(self, job: Job, fault: BgremoverError) -> bool:
        cut_off = isinstance(fault, Truncated | EmptyImage) and isinstance(job.state, Queued)
        if not cut_off or self.intake is None:
            return False
        return self.intake.wait_longer(job.path, job.identity)

    def _after(self, job: Job, decision: verdict.Verdict) -> Job:
        match decision:
            case verdict.Defer():
                until = self._clock.wall() + decision.seconds
                parked = Deferred(until, decision.resume, decision.reason)
                return replace(job, state=parked, faults=decision.faults)
            case verdict.Quarantine(fault=fault):
                return replace(job, state=self._quarantined(job, fault))
            case verdict.LetGo(reason=reason):
                return replace(job, state=Released(reason))

    def _quarantined(self, job: Job, fault: FileFault) -> Quarantined:
        report = error_report(
            job,
            fault,
            at=self._clock.wall(),
            version=self._version,
            price_usd=self._price_usd,
        )
        kept = receipt_of(job.state) if isinstance(fault, CrashLoop) else None
        return Quarantined(fault.code, render(report).decode(), receipt=kept)

    def _tell_verdict(self, job: Job, decision: verdict.Verdict, fault: BgremoverError) -> None:
        told = log.bind(job=job.id, file=printable(job.path))
        match decision:
            case verdict.Defer():
                seconds = round(decision.seconds, 1)
                told.info("image.deferred", why=fault.code, message=fault.message, seconds=seconds)
            case verdict.Quarantine(fault=reason):
                told.warning(
                    "image.quarantined",
                    code=reason.code,
                    message=reason.message,
                    hint=reason.hint,
                    billed=job.billed_calls,
                    unknown=job.unknown_calls,
                )
            case verdict.LetGo(reason=reason):
                tell = told.warning if isinstance(fault, Blocked) else told.info
                tell("image.released", why=reason, message=fault.message, hint=fault.hint)

    def _rest(self, job: Job) -> None:
        if self._paused_locally and isinstance(job.state, Saved | Quarantined):
            self._change_line(pacing.mended(self.line, self._pace))
        match job.state:
            case Saved(reused=reused):
                self.tally.saved += not reused
                self.tally.reused += reused
                self._tell_saved(job, job.state)
            case Quarantined():
                self.tally.quarantined += 1
            case _:
                pass
        self._crashed.discard(job.id)
        self.observed.rested(job)
        self._told(job)
        self._wake_twins()

    def _tell_saved(self, job: Job, state: Saved) -> None:
        tell = log.warning if state.doubts and not state.reused else log.info
        more = {"doubts": state.doubts, "notes": state.notes, "renditions": state.renditions}
        tell(
            "image.reused" if state.reused else "image.saved",
            job=job.id,
            file=printable(job.path),
            output=printable(state.output),
            seconds=round(self._clock.wall() - job.claimed_at, 3),
            bytes_in=job.identity.size,
            bytes_out=state.size,
            attempts=len(job.attempts),
            usd=round(job.billed_calls * self._price_usd, 6),
            request_id=job.attempts[-1].request_id if job.attempts else None,
            **{name: list(value) for name, value in more.items() if value},
        )

    # --- the line ---------------------------------------------------------------------------

    def _line_succeeded(self, job_id: str, started: float) -> None:
        full = self._answered.get(job_id, self._calls >= self.line.limit)
        now = self._clock.steady()
        self._change_line(
            pacing.succeeded(self.line, job_id, self._pace, full=full, started=started, now=now)
        )

    def _change_line(self, line: pacing.Line) -> None:
        before, self.line = self.line.pause, line
        if before is not None and line.pause is None:
            log.info("service.resumed", reason=before.reason)
            self._wake_all()
        self.bell.ring()

    def _line_failed(self, job_id: str, fault: BgremoverError, started: float) -> None:
        before = self.line.pause
        self.line = pacing.failed(
            self.line,
            job_id,
            fault,
            self._pace,
            started=started,
            now=self._clock.steady(),
            chance=self._chance(),
        )
        after = self.line.pause
        if after is not None and (before is None or before.reason != after.reason):
            log.warning(
                "budget.reached" if after.reason == "budget_reached" else "service.paused",
                reason=after.reason,
                detail=after.detail,
                hint=fault.hint,
                probe_in_seconds=round(after.next_probe_at - self._clock.steady(), 1),
            )
        self.bell.ring()

    # --- lanes and parking ------------------------------------------------------------------

    def _enqueue(self, job: Job) -> None:
        self._lanes[lane_of(job)].append(job)
        self.bell.ring()

    def _park(self, job: Job, state: Deferred) -> None:
        longest = max(self._rules.cap_seconds, LONGEST_WAIT)
        wait = min(max(0.0, state.until - self._clock.wall()), longest)
        moment = self._clock.steady() + wait
        self._parked[job.id] = job
        self._due[job.id] = moment
        heapq.heappush(self._moments, (moment, next(self._order), job.id))
        self.bell.ring()

    def _wake_due(self) -> None:
        now = self._clock.steady()
        while self._moments and self._moments[0][0] <= now:
            moment, _, job_id = heapq.heappop(self._moments)
            if self._due.get(job_id) == moment:  # not of an earlier parking
                self._wake(job_id)
        if self.line.pause is not None and self._call_room() > 0 and not self.waiting:
            self._wake_a_probe()

    def _wake_a_probe(self) -> None:
        parked = [job for job in self._parked.values() if not _is_generating(job)]
        fit = [job for job in parked if self._may_probe(job)]
        for job in (fit or parked)[:1]:
            self._wake(job.id)

    def _wake(self, job_id: str) -> None:
        self._due.pop(job_id, None)
        job = self._parked.pop(job_id, None)
        if job is not None and isinstance(job.state, Deferred):
            self._woken.add(job.id)
            self._enqueue(job.to(job.state.resume))

    def _wake_all(self) -> None:
        for job_id in [job.id for job in self._parked.values() if not _is_generating(job)]:
            self._wake(job_id)

    def _wake_twins(self) -> None:
        for twin in [parked for parked in self._parked.values() if _is_twin(parked)]:
            self._wake(twin.id)
        self.bell.ring()


def _is_generating(job: Job) -> bool:
    return isinstance(job.state, Deferred) and job.state.reason == GENERATING


def _is_twin(job: Job) -> bool:
    return isinstance(job.state, Deferred) and job.state.reason == TWIN
