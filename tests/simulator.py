"""A discrete-event stand-in for dispatcher, clock and API: hours pass in no time.

`Simulation` makes the same calls to `pacing` and `verdict`, in the same order, as the dispatcher
does. `Service` answers by its first rule that has an answer. Nothing sleeps; all chance is seeded.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from random import Random

from bgremover.core import pacing, verdict
from bgremover.core.errors import BgremoverError, Billed, HttpAnswer, Throttled, UnknownCharge
from bgremover.core.job import Attempt, Deferred, Identity, Job, Paid, Queued, Receipt, Submitting

NOBODY = Identity(1, 1, 1, 1, 1)
LINK_LIFE = 24 * 3600.0
FINISHERS = 4
CAPACITY = 64


@dataclass(frozen=True, slots=True)
class Call:
    """A request as the service sees it, `now` seconds after the beginning.

    `running` counts the calls that it works on.
    """

    name: str
    now: float
    running: int
    chance: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What comes back after `seconds`; no fault is a success."""

    seconds: float
    fault: BgremoverError | None = None


Rule = Callable[[Call], Answer | None]


@dataclass(slots=True)
class Service:
    """The API: `rules` for calls, `fetch_rules` for results; by default all goes well."""

    latency: float = 3.0
    rules: Iterable[Rule] = ()
    fetch_rules: Iterable[Rule] = ()
    fetch_seconds: float = 0.1
    running: int = 0

    def call(self, name: str, now: float, chance: float) -> Answer:
        """Answer a call; a healthy one takes 0.8 to 1.2 times the latency."""
        given = _first(self.rules, Call(name, now, self.running, chance))
        return given or Answer(self.latency * (0.8 + 0.4 * chance))

    def fetch(self, name: str, now: float, chance: float) -> Answer:
        """Answer a fetch."""
        given = _first(self.fetch_rules, Call(name, now, 0, chance))
        return given or Answer(self.fetch_seconds)


def _first(rules: Iterable[Rule], call: Call) -> Answer | None:
    return next((answer for rule in rules if (answer := rule(call)) is not None), None)


@dataclass(frozen=True, slots=True)
class Post:
    """A call that was made: when, for which image, and what came of it."""

    at: float
    name: str
    seconds: float
    fault: BgremoverError | None


@dataclass
class Simulation:
    """Images going through the line. Ask for the tallies after `run`."""

    service: Service
    names: Iterable[str]
    workers: int = 10
    unknown_sends: int = 1
    base_seconds: float = 2.0
    cap_seconds: float = 300.0
    max_attempts: int = 5
    seed: int = 1
    now: float = 1000.0
    line: pacing.Line = field(init=False)
    posts: list[Post] = field(default_factory=list)
    fetches: list[Post] = field(default_factory=list)
    saved: dict[str, Job] = field(default_factory=dict)
    quarantined: dict[str, tuple[str, Job]] = field(default_factory=dict)
    pauses: list[pacing.Pause] = field(default_factory=list)
    most_faults: int = 0
    most_in_flight: int = 0
    most_probes: int = 0

    def __post_init__(self) -> None:
        self.pace = pacing.Pace(self.workers, self.base_seconds, self.cap_seconds)
        self.rules = verdict.Rules(self.max_attempts, self.base_seconds, self.cap_seconds)
        self.line = pacing.opened(self.pace)
        self.random = Random(self.seed)  # noqa: S311 - chance that can be repeated
        self.inbox = deque(self.names)
        self.began = self.now
        self._send: deque[Job] = deque()
        self._finish: deque[Job] = deque()
        self._sending = 0
        self._finishing = 0
        self._parked: dict[str, Job] = {}
        self._moments: list[tuple[float, int, str]] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    # --- the world --------------------------------------------------------------------------

    @property
    def elapsed(self) -> float:
        return self.now - self.began

    @property
    def idle(self) -> bool:
        lanes = self.inbox or self._send or self._finish or self._parked
        return not (lanes or self._sending or self._finishing)

    def at(self, moment: float, event: Callable[[], None]) -> None:
        """Let `event` happen `moment` seconds after the beginning."""
        heapq.heappush(self._events, (self.began + moment, next(self._order), event))

    def drop(self, names: Iterable[str]) -> None:
        self.inbox.extend(names)

    def run(self, seconds: float = 7 * 24 * 3600.0) -> "Simulation":
        """Go on until nothing is left to do, or for `seconds` from the beginning."""
        end = self.began + seconds
        self.pump()
        while not self.idle and (moment := self._next_moment()) is not None and moment <= end:
            self.now = max(self.now, moment)
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            self.pump()
        return self

    def _next_moment(self) -> float | None:
        moments = [one[0] for one in (*self._events[:1], *self._moments[:1])]
        if (gate := pacing.next_moment(self.line)) > self.now:
            moments.append(gate)
        return min(moments, default=None)

    # --- the dispatcher ---------------------------------------------------------------------

    def pump(self) -> None:
        self._wake_due()
        while self._finish and self._finishing < FINISHERS:
            self._start_finishing(self._finish.popleft())
        while self.inbox and self._has_room():
            name = self.inbox.popleft()
            self._send.append(Job(name, name, NOBODY, self.now, Queued()))
        while len(self._finish) < 2 * self.workers and self._call_room() > 0:
            job = self._next_to_send()
            if job is None:
                break
            self._send.remove(job)
            self._start_sending(job)

    def _has_room(self) -> bool:
        if len(self._send) < self.workers:
            return True
        fresh = sum(job.unknown_calls == 0 for job in self._send)
        return fresh < self.workers and len(self._send) < CAPACITY

    def _call_room(self) -> int:
        return pacing.room(self.line, self._sending, self.now)

    def _next_to_send(self) -> Job | None:
        if self.line.pause is None:
            return self._send[0] if self._send else None
        fit = (job for job in self._send if job.unknown_calls <= self.unknown_sends)
        return min(fit, key=lambda job: job.unknown_calls, default=None)

    def _start_sending(self, job: Job) -> None:
        self._sending += 1
        self.most_in_flight = max(self.most_in_flight, self._sending)
        if self.line.pause is not None:
            self.most_probes = max(self.most_probes, self._sending)
        started = self.now
        if job.unknown_calls > self.unknown_sends:
            fault = UnknownCharge("asked too often", billed=Billed.UNKNOWN)
            self._end(0.0, lambda: self._failed(job, fault, started))
            return
        answer = self.service.call(job.id, self.elapsed, self.random.random())
        self.posts.append(Post(self.elapsed, job.id, answer.seconds, answer.fault))
        taken = not isinstance(answer.fault, Throttled)
        self.service.running += taken

        def ended() -> None:
            self.service.running -= taken
            self._answered(job, answer, started)

        self._end(answer.seconds, ended)

    def _end(self, seconds: float, act: Callable[[], None]) -> None:
        def ended() -> None:
            act()
            self._sending -= 1

        heapq.heappush(self._events, (self.now + seconds, next(self._order), ended))

    def _answered(self, job: Job, answer: Answer, started: float) -> None:
        job = _with_attempt(job, answer, started)
        if answer.fault is not None:
            self._failed(replace(job, state=Submitting(1)), answer.fault, started)
            return
        self._line_succeeded(job.id, started)
        receipt = Receipt(None, "https://ideogram.ai/x", self.now + LINK_LIFE, None)
        self._finish.append(replace(job, state=Paid(receipt)))

    def _start_finishing(self, job: Job) -> None:
        self._finishing += 1
        started = self.now
        answer = self.service.fetch(job.id, self.elapsed, self.random.random())
        self.fetches.append(Post(self.elapsed, job.id, answer.seconds, answer.fault))

        def ended() -> None:
            if answer.fault is None:
                self._fetched(job, started)
            else:
                self._failed(job, answer.fault, started)
            self._finishing -= 1

        heapq.heappush(self._events, (self.now + answer.seconds, next(self._order), ended))

    def _fetched(self, job: Job, started: float) -> None:
        self._change(pacing.fetched(self.line, job.id, self.pace, started=started))
        assert job.id not in self.saved
        self.saved[job.id] = job

    def _failed(self, job: Job, fault: BgremoverError, started: float) -> None:
        chance = self.random.random()
        self._change(
            pacing.failed(
                self.line, job.id, fault, self.pace, started=started, now=self.now, chance=chance
            )
        )
        decision = verdict.judge(job, fault, self.line, self.rules, self.random.random())
        match decision:
            case verdict.Defer():
                parked = Deferred(self.now + decision.seconds, decision.resume, decision.reason)
                self.most_faults = max(self.most_faults, decision.faults)
                self._park(replace(job, state=parked, faults=decision.faults), parked)
            case verdict.Quarantine(fault=reason):
                self.quarantined[job.id] = (reason.code, job)
            case verdict.LetGo():
                raise AssertionError("no image of a simulation is withdrawn")

    def _line_succeeded(self, job_id: str, started: float) -> None:
        full = self._sending >= self.line.limit
        self._change(
            pacing.succeeded(self.line, job_id, self.pace, full=full, started=started, now=self.now)
        )

    def _change(self, line: pacing.Line) -> None:
        before, self.line = self.line.pause, line
        if line.pause is not None and line.pause != before:
            self.pauses.append(line.pause)
        if before is not None and line.pause is None:
            for job_id in list(self._parked):
                self._wake(job_id)

    def _park(self, job: Job, state: Deferred) -> None:
        wait = min(max(0.0, state.until - self.now), self.cap_seconds)
        self._parked[job.id] = job
        heapq.heappush(self._moments, (self.now + wait, next(self._order), job.id))

    def _wake_due(self) -> None:
        while self._moments and self._moments[0][0] <= self.now:
            self._wake(heapq.heappop(self._moments)[2])
        due = self.line.pause is not None and self._call_room() > 0
        if due and self._parked and not (self._send or self._finish or self.inbox):
            self._wake(next(iter(self._parked)))

    def _wake(self, job_id: str) -> None:
        job = self._parked.pop(job_id, None)
        if job is not None and isinstance(job.state, Deferred):
            woken = job.to(job.state.resume)
            (self._send if isinstance(woken.state, Queued) else self._finish).append(woken)


def _with_attempt(job: Job, answer: Answer, started: float) -> Job:
    fault = answer.fault
    billed = fault.billed if fault else Billed.YES
    attempt = Attempt(
        number=len(job.attempts) + 1,
        at=started,
        outcome=fault.code if fault else "paid",
        status=fault.http.status if fault and fault.http else 200,
        request_id=None,
        seconds=answer.seconds,
        billed=billed,
    )
    return replace(job, attempts=(*job.attempts, attempt))


# --- rules ----------------------------------------------------------------------------------


def between(begin: float, end: float, rule: Rule) -> Rule:
    """Let `rule` hold from `begin` to `end`, seconds after the beginning."""
    return lambda call: rule(call) if begin <= call.now < end else None


def always(fault: Callable[[], BgremoverError], seconds: float = 0.05) -> Rule:
    """Answer every call with `fault` after `seconds`."""
    return lambda _: Answer(seconds, fault())


def sometimes(rate: float, fault: Callable[[], BgremoverError], seconds: float = 0.5) -> Rule:
    """Answer a share of the calls with `fault`, by chance alone."""
    return lambda call: Answer(seconds, fault()) if call.chance < rate else None


def poison(names: Iterable[str], fault: Callable[[], BgremoverError], seconds: float) -> Rule:
    """Answer every call for these images with `fault`."""
    known = frozenset(names)
    return lambda call: Answer(seconds, fault()) if call.name in known else None


def at_most(
    limit: Callable[[float], int],
    *,
    retry_after: float | None = None,
    told: bool = False,
    status: int = 429,
) -> Rule:
    """Refuse calls beyond `limit`, which may change with time; `told` puts it into the answer."""

    def rule(call: Call) -> Answer | None:
        allowed = limit(call.now)
        if call.running < allowed:
            return None
        fault = Throttled(
            f"{status}",
            retry_after=retry_after,
            max_inflight=allowed if told else None,
            http=HttpAnswer(status),
        )
        return Answer(0.05, fault)

    return rule
