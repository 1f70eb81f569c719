"""What is counted while images travel, as plain numbers: for metrics, health and the digest.

Nothing is decided by it. It lives as long as the run; what must outlive it, the money above all,
is in the ledger.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import assert_never

from bgremover.core.job import (
    Accepted,
    Deferred,
    Fetched,
    Job,
    Paid,
    Quarantined,
    Queued,
    Released,
    Saved,
    Submitting,
)

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds in seconds: from what a disk takes to the longest answer of the API."""

PHASES = ("inspect", "call", "poll", "fetch", "publish", "file", "quarantine")


def phase(job: Job) -> str:
    """Return what the step of a job in its state is called, one of `PHASES`."""
    match job.state:
        case Queued() | Submitting():
            return "inspect" if job.picture is None else "call"
        case Accepted():
            return "poll"
        case Paid():
            return "fetch"
        case Fetched():
            return "publish"
        case Saved() | Released():
            return "file"
        case Quarantined():
            return "quarantine"
        case Deferred(resume=resume):
            return "inspect" if isinstance(resume, Queued) else "file"
        case _:
            assert_never(job.state)


class Histogram:
    """How long something took: how often in all, and up to each of `BUCKETS`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._counts = [0] * (len(BUCKETS) + 1)

    def add(self, seconds: float) -> None:
        """Count one more."""
        self.seconds += seconds
        self._counts[bisect_left(BUCKETS, seconds)] += 1

    def cumulated(self) -> Iterator[tuple[float, int]]:
        """Yield each upper bound in seconds with how many took no longer; infinity last."""
        total = 0
        for bound, count in zip((*BUCKETS, float("inf")), self._counts, strict=True):
            total += count
            yield bound, total


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A step that has begun: of which image, which phase, and when by the steady clock.

    `still` gives the seconds since it last moved.
    """

    path: str
    phase: str
    began: float
    still: Callable[[], float]


@dataclass(slots=True)
class Observed:
    """The counts of one run.

    Args:
        images: Images that came to rest, by what became of them.
        failures: Images that were quarantined, by code.
        calls: Answers of the API to uploads, by status ("none" without one) and outcome.
        faults: Steps that failed, by the code of the fault.
        phases: Seconds of each phase.
        under_way: The steps that have not ended, by job.
        looked_at: When inbox and observer were last looked at, by the steady clock.
        free: Free bytes of each disk, by what lies on it.
    """

    images: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    phases: dict[str, Histogram] = field(
        default_factory=lambda: {name: Histogram() for name in PHASES}
    )
    under_way: dict[str, UnderWay] = field(default_factory=dict)
    looked_at: float | None = None
    free: dict[str, int | None] = field(default_factory=dict)

    def began(self, job: Job, now: float, still: Callable[[], float]) -> None:
        """Note that a step begins.

        Args:
            job: Of which image.
            now: By the steady clock.
            still: Gives the seconds since the step last moved.
        """
        self.under_way[job.id] = UnderWay(job.path, phase(job), now, still)

    def ended(self, before: Job, after: Job, fault: str | None, now: float) -> None:
        """Note that a step ended.

        Args:
            before: The job as the step began.
            after: As it is now.
            fault: The code of what went wrong, if anything did.
            now: By the steady clock.
        """
        begun = self.under_way.pop(before.id, None)
        if begun is not None:
            self.phases[begun.phase].add(now - begun.began)
        if fault is not None:
            self.faults[fault] += 1
        for attempt in after.attempts[len(before.attempts) :]:
            self.calls[str(attempt.status or "none"), attempt.outcome] += 1

    def rested(self, job: Job) -> None:
        """Note what became of a job that has come to rest."""
        match job.state:
            case Saved(reused=reused):
                self.images["reused" if reused else "saved"] += 1
            case Quarantined(code=code):
                self.images["quarantined"] += 1
                self.failures[code] += 1
            case Released():
                self.images["released"] += 1
            case _:
                pass


@dataclass(frozen=True, slots=True)
class Spending:
    """What the ledger says of the money: US dollars, and calls by what is known of their charge."""

    today_usd: float
    month_usd: float
    total_usd: float
    billed: int
    unknown: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How things stand at one moment.

    Args:
        waiting: Images that wait to settle, to be claimed, or for a step.
        in_flight: Images with a step or a generation under way.
        deferred: Images that are parked.
        limit: How many calls may be in flight now.
        pause: The reason of the pause; None while the line runs.
        ailments: What is wrong with the daemon, in words.
        sweep_age: Seconds since the last sweep ended.
        sweeps: Sweeps since the start.
        missed: Images that only a sweep found.
        oldest: Seconds that the oldest image has waited; 0 when none waits.
        spending: The money; None when the ledger does not tell.
    """

    waiting: int
    in_flight: int
    deferred: int
    limit: int
    pause: str | None
    ailments: tuple[str, ...]
    sweep_age: float
    sweeps: int
    missed: int
    oldest: float
    spending: Spending | None
