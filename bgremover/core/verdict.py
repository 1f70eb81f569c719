"""After an attempt that failed: put the image off, quarantine it, or let go of it.

Blame decides. Only faults of the file move the file; what the account, the service or this
machine did leaves every file where it is. What is paid for is never thrown away: an image goes on
from the latest state that its receipt allows.
"""

import math
from dataclasses import dataclass, replace
from typing import assert_never

from bgremover.core.errors import (
    AccountFault,
    AttemptsExhausted,
    BadResult,
    BgremoverError,
    Billed,
    BrokenResult,
    ContractChanged,
    CrashLoop,
    FileFault,
    GenerationFailed,
    InternalFault,
    LinkExpired,
    LocalFault,
    Rejected,
    ServerFailed,
    ServiceFault,
    Throttled,
    Withdrawn,
)
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
    State,
    Submitting,
)
from bgremover.core.pacing import (
    Line,
    failure_rate,
    failures_in_a_row,
    others_succeeded,
    suspicions,
)

BROKEN_FETCHES = 3
PAID_CALLS = 2
CRASHES = 3
UNGATED_TRIES = 5
SPOTLESS = 0.02
SPOTLESS_FAULTS = 3
DOUBT = 1e-7
"""The probability at which a row of failures is no longer taken for the service's bad luck."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings of the verdict: `retry` of the configuration, times in seconds."""

    max_attempts: int
    base_seconds: float
    cap_seconds: float


@dataclass(frozen=True, slots=True)
class Defer:
    """Go on with `resume` after `seconds`. `faults` is the job's new count."""

    seconds: float
    resume: Queued | Accepted | Paid | Fetched | Saved | Quarantined
    reason: str
    faults: int


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Move the image to quarantine with this fault as the reason."""

    fault: FileFault


@dataclass(frozen=True, slots=True)
class LetGo:
    """Forget the claim; the inbox is looked at afresh."""

    reason: str


Verdict = Defer | Quarantine | LetGo


def judge(job: Job, fault: BgremoverError, line: Line, rules: Rules, chance: float) -> Verdict:
    """Decide what happens to an image after a fault.

    Args:
        job: The image, with the failed call among its attempts.
        fault: What ended the attempt.
        line: The line after the fault was taken into account.
        rules: The settings.
        chance: Uniform in [0, 1), for the jitter.

    Returns:
        What to do with the image. The line is none of its business.
    """
    match fault:
        case Withdrawn():
            return LetGo(fault.code)
        case Rejected() if line.pause is not None and line.pause.reason == ContractChanged.code:
            return Defer(0.0, Queued(), ContractChanged.code, job.faults)
        case FileFault():
            return Quarantine(fault)
        case AccountFault() | LocalFault() | Throttled():
            return _held_up(job, fault, rules, chance)
        case LinkExpired():
            return _after_expiry(job, fault)
        case BrokenResult() if line.pause is None or not line.pause.fetching:
            return _after_broken_result(job, fault, rules, chance)
        case ServerFailed() | GenerationFailed() | InternalFault() if line.pause is None:
            return _after_failure(job, fault, line, rules, chance)
        case _:
            return _later(job, fault, line, rules, chance)


def resume_point(state: State) -> Queued | Accepted | Paid | Fetched | Saved | Quarantined:
    """Return the latest state from which nothing is paid for again."""
    match state:
        case Accepted() | Paid() | Fetched() | Saved() | Quarantined():
            return state
        case Deferred(resume=resume):
            return resume
        case Queued() | Submitting() | Released():
            return Queued()
        case _:
            assert_never(state)


def backoff(tries: int, rules: Rules, chance: float) -> float:
    """Return the seconds to wait after `tries` failures in a row, with full jitter.

    Full jitter (a uniform part of the whole interval) spreads the retries of many images best:
    Marc Brooker, "Exponential Backoff And Jitter", 2015.
    """
    doublings = min(max(0, tries - 1), 30)
    longest = min(rules.cap_seconds, rules.base_seconds * 2.0**doublings)
    return chance * longest


def tolerance(rate: float, max_attempts: int) -> int:
    """Return how many failures of one image are taken for bad luck.

    Args:
        rate: The share of failures among the calls of the other images.
        max_attempts: The setting, for a service that is mostly well.

    Returns:
        3 while the others are spotless; else as many as make a row of failures less likely than
        `DOUBT` if the image were like the others, but not fewer than `max_attempts`.
    """
    if rate <= SPOTLESS:
        return min(SPOTLESS_FAULTS, max_attempts)
    if rate >= 1.0:
        return max(max_attempts, 1_000)
    return max(max_attempts, math.ceil(math.log(DOUBT) / math.log(rate)))


def _held_up(job: Job, fault: BgremoverError, rules: Rules, chance: float) -> Defer:
    """Put off what the line lets through again, without any count."""
    asked = (fault.retry_after or 0.0) if isinstance(fault, Throttled) else 0.0
    resume = resume_point(job.state)
    if isinstance(resume, Accepted | Paid) and not isinstance(fault, LocalFault):
        # Polls and fetches do not wait for the line.
        asked = max(asked, rules.base_seconds, backoff(UNGATED_TRIES, rules, chance))
    return Defer(asked, resume, fault.code, job.faults)


def _later(job: Job, fault: BgremoverError, line: Line, rules: Rules, chance: float) -> Defer:
    seconds = backoff(failures_in_a_row(line, job.id), rules, chance)
    return Defer(seconds, resume_point(job.state), fault.code, job.faults)


def _after_failure(
    job: Job, fault: ServiceFault, line: Line, rules: Rules, chance: float
) -> Verdict:
    later = _later(job, fault, line, rules, chance)
    failures = suspicions(line, job.id)
    if failures == 1 or not others_succeeded(line, job.id):
        return later  # it may be the beginning of an outage
    if failures >= tolerance(failure_rate(line, job.id), rules.max_attempts):
        gave_up = CrashLoop if isinstance(fault, InternalFault) else AttemptsExhausted
        return Quarantine(gave_up(fault.message, billed=fault.billed, http=fault.http))
    return replace(later, faults=failures)


def _after_expiry(job: Job, fault: LinkExpired) -> Verdict:
    if job.billed_calls < PAID_CALLS:
        return Defer(0.0, Queued(), fault.code, job.faults)
    message = f"paid for twice, and {fault.message}"
    return Quarantine(BadResult(message, billed=Billed.YES, http=fault.http))


def _after_broken_result(job: Job, fault: BrokenResult, rules: Rules, chance: float) -> Verdict:
    state = resume_point(job.state)
    broken = state.broken + 1 if isinstance(state, Paid) else BROKEN_FETCHES
    if broken >= BROKEN_FETCHES:
        return Quarantine(BadResult(fault.message, billed=Billed.YES, http=fault.http))
    resume = Paid(state.receipt, broken) if isinstance(state, Paid) else state
    return Defer(backoff(broken, rules, chance), resume, fault.code, job.faults)


def suspect(job: Job) -> bool:
    """Tell whether the program died while it worked on this image, among others.

    Such an image is worked on alone, until it has come further: if it is the reason, the others
    must not share the blame. Not while a generation runs: nothing of the image is in this
    program's hands then.
    """
    harmless = isinstance(resume_point(job.state), Accepted | Quarantined)
    return job.crashes > 0 and not harmless


def crash_loop(job: Job) -> bool:
    """Tell whether the program died too often while it worked on this image.

    Not once its cut-out is made: it may lie in the outbox already, and an image ends in one place.
    What is left to do then is done without renditions.
    """
    made = isinstance(resume_point(job.state), Fetched | Saved)
    return deadly(job) and suspect(job) and not made


def deadly(job: Job) -> bool:
    """Tell whether what is left to do must be the least that there is."""
    return job.crashes >= CRASHES
