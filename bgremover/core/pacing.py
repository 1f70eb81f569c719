"""How many calls may be in flight now: growth, pauses, probes.

The line is one frozen record for all workers; each call's outcome gives the next one.

- Growth is AIMD (additive increase, multiplicative decrease, Chiu and Jain 1989) with TCP's slow
  start: from 1, one more for each success while the limit is what holds back, up to the
  threshold; beyond it one more for `PATIENCE` rounds of successes. 429 and 503 halve it, once for
  all the calls that were in flight together.
- A retry quota shared by all workers (the idea of botocore's standard mode) tells an outage from
  single failures: each failure takes from it, each success gives back; when it is used up the
  line pauses and probes.
- A paused line lets one image through at growing intervals; its success ends the pause.
All moments are seconds of one monotonic clock; `chance` is uniform in [0, 1).
"""

from dataclasses import dataclass, replace
from typing import assert_never

from bgremover.core.errors import (
    AccountFault,
    BgremoverError,
    Blame,
    BudgetReached,
    ContractChanged,
    FileFault,
    LinkRefused,
    LocalFault,
    NoUsableAnswer,
    Rejected,
    ServiceFault,
    Throttled,
    Unreachable,
)

QUOTA = 12
REFUSALS_IN_A_ROW = 5
REMEMBERED = 50
PATIENCE = 20
ACCOUNT_PROBES = (60.0, 120.0, 240.0, 480.0, 900.0)
LOCAL_PROBES = (5.0, 10.0, 20.0, 40.0, 60.0)
LONGEST_SERVICE_PROBE = 60.0


@dataclass(frozen=True, slots=True)
class Pace:
    """The settings of the line: most calls in flight, first and longest back-off in seconds."""

    workers: int
    base_seconds: float
    cap_seconds: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Why nothing starts: since when, and when the next image is let through as a probe."""

    reason: str
    detail: str
    blame: Blame
    since: float
    next_probe_at: float
    probes: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """The state of the line.

    Args:
        limit: Calls that may be in flight.
        threshold: Up to where `limit` grows by one for each success.
        credit: Successes since the last growth beyond the threshold.
        held_until: No call starts before (Retry-After).
        lowered_at: When the limit was last halved; calls that started earlier do not halve again.
        quota: What is left of the retry quota.
        recent: The latest outcomes as (job id, success), oldest first.
        refused: The jobs refused with 400 in a row.
        pause: Set while the line is paused.
    """

    limit: int
    threshold: int
    credit: int = 0
    held_until: float = 0.0
    lowered_at: float = float("-inf")
    quota: int = QUOTA
    recent: tuple[tuple[str, bool], ...] = ()
    refused: tuple[str, ...] = ()
    pause: Pause | None = None


def opened(pace: Pace) -> Line:
    """Return the line as it is at the start."""
    return Line(limit=1, threshold=pace.workers)


def room(line: Line, in_flight: int, now: float) -> int:
    """Return how many calls may start now."""
    if now < line.held_until:
        return 0
    if line.pause is not None:
        return 1 if in_flight == 0 and now >= line.pause.next_probe_at else 0
    return max(0, line.limit - in_flight)


def next_moment(line: Line) -> float:
    """Return the moment at which `room` may change by time alone; in the past if it will not."""
    probe = line.pause.next_probe_at if line.pause else float("-inf")
    return max(line.held_until, probe)


def succeeded(line: Line, job_id: str, pace: Pace, *, full: bool) -> Line:
    """Take a success into account.

    Args:
        line: The line before.
        job_id: Whose call it was.
        pace: The settings.
        full: Whether as many calls were in flight as the limit allows.
    """
    recent = _remember(line, job_id, ok=True)
    if line.pause is not None:
        fresh = opened(pace)
        return replace(fresh, recent=recent, threshold=line.threshold, quota=QUOTA // 2)
    grown = _grown(line, pace) if full else line
    return replace(grown, recent=recent, refused=(), quota=min(QUOTA, line.quota + 2))


def _grown(line: Line, pace: Pace) -> Line:
    if line.limit >= pace.workers:
        return line
    if line.limit < line.threshold:
        return replace(line, limit=line.limit + 1, credit=0)
    if line.credit + 1 < PATIENCE * line.limit:
        return replace(line, credit=line.credit + 1)
    return replace(line, limit=line.limit + 1, threshold=line.threshold + 1, credit=0)


def failed(
    line: Line,
    job_id: str,
    fault: BgremoverError,
    pace: Pace,
    *,
    started: float,
    now: float,
    chance: float,
) -> Line:
    """Take a fault into account.

    Args:
        line: The line before.
        job_id: Whose attempt it was.
        fault: What ended it.
        pace: The settings.
        started: When the attempt began.
        now: When it ended.
        chance: For the jitter of the next probe.
    """
    match fault:
        case AccountFault() | LocalFault():
            return _paused(line, fault, now, _interval(line, fault, pace, chance))
        case Throttled():
            return _throttled(line, fault, started=started, now=now)
        case ServiceFault():
            return _spent(_forgot(line, job_id), fault, pace, now=now, chance=chance)
        case Rejected():
            return _refused(line, job_id, fault, now)
        case FileFault():
            return replace(line, recent=_remember(line, job_id, ok=True))
        case _:
            return line


def _remember(line: Line, job_id: str, *, ok: bool) -> tuple[tuple[str, bool], ...]:
    return (*line.recent, (job_id, ok))[-REMEMBERED:]


def _forgot(line: Line, job_id: str) -> Line:
    return replace(line, recent=_remember(line, job_id, ok=False))


def _interval(line: Line, fault: BgremoverError, pace: Pace, chance: float) -> float:
    probes = line.pause.probes if line.pause else 0
    match fault:
        case BudgetReached():
            return fault.resumes_in
        case AccountFault():
            return ACCOUNT_PROBES[min(probes, len(ACCOUNT_PROBES) - 1)]
        case LocalFault():
            return LOCAL_PROBES[min(probes, len(LOCAL_PROBES) - 1)]
        case _:
            cap = min(pace.cap_seconds, LONGEST_SERVICE_PROBE)
            return max(pace.base_seconds, chance * min(cap, pace.base_seconds * 2.0**probes))


def _paused(line: Line, fault: BgremoverError, now: float, interval: float) -> Line:
    before = line.pause
    since = before.since if before else now
    probes = before.probes + 1 if before else 1
    detail = (fault.http.reject_reason if fault.http else None) or fault.message
    pause = Pause(fault.code, detail, _blame(fault), since, now + interval, probes)
    return replace(line, pause=pause)


def _blame(fault: BgremoverError) -> Blame:
    match fault:
        case AccountFault() | LocalFault() | ServiceFault() | FileFault():
            return fault.blame
        case _:
            raise ValueError(f"{fault.code} blames nobody") from fault


def _throttled(line: Line, fault: Throttled, *, started: float, now: float) -> Line:
    held = max(line.held_until, now + (fault.retry_after or 0.0))
    if line.pause is not None:
        pause = replace(line.pause, next_probe_at=max(line.pause.next_probe_at, held))
        return replace(line, pause=pause, held_until=held)
    if started <= line.lowered_at:
        return replace(line, held_until=held)
    limit = _lowered(line.limit, fault.max_inflight)
    threshold = max(1, min(line.limit - 1, fault.max_inflight or line.limit))
    lowered = replace(line, limit=limit, threshold=threshold, credit=0)
    return replace(lowered, lowered_at=now, held_until=held)


def _lowered(limit: int, allowed: int | None) -> int:
    if allowed is not None and allowed < limit:
        return max(1, allowed)
    return max(1, limit // 2)


def _spent(line: Line, fault: ServiceFault, pace: Pace, *, now: float, chance: float) -> Line:
    quota = line.quota - _cost(fault)
    if quota > 0 and line.pause is None:
        return replace(line, quota=quota)
    paused = _paused(line, fault, now, _interval(line, fault, pace, chance))
    return replace(paused, quota=max(0, quota))


def _cost(fault: ServiceFault) -> int:
    match fault:
        case NoUsableAnswer() | LinkRefused():
            return QUOTA // 3
        case Unreachable():
            return QUOTA // 4
        case _:
            return 1


def _refused(line: Line, job_id: str, fault: Rejected, now: float) -> Line:
    refused = tuple(dict.fromkeys((*line.refused, job_id)))
    line = replace(line, refused=refused)
    if len(refused) < REFUSALS_IN_A_ROW:
        return line
    changed = ContractChanged(
        f"{len(refused)} different images in a row were refused, the last with: {fault.message}",
        http=fault.http,
    )
    probes = line.pause.probes if line.pause else 0
    return _paused(line, changed, now, ACCOUNT_PROBES[min(probes, len(ACCOUNT_PROBES) - 1)])


def probe_now(line: Line, now: float) -> Line:
    """Return the line with its probe due at once: the key changed, or somebody asked."""
    if line.pause is None:
        return replace(line, held_until=min(line.held_until, now))
    return replace(line, pause=replace(line.pause, next_probe_at=now), held_until=now)


def failure_rate(line: Line, without: str) -> float:
    """Return the share of failures among the latest outcomes of all images but one."""
    others = [ok for job_id, ok in line.recent if job_id != without]
    return others.count(False) / len(others) if others else 1.0


def others_succeeded(line: Line, job_id: str) -> bool:
    """Tell whether another image succeeded since the last failure of this one before now.

    The latest outcome of `job_id` itself is the one that is being judged.
    """
    own = [index for index, (who, _) in enumerate(line.recent) if who == job_id]
    since = own[-2] if len(own) > 1 else 0
    return any(ok for who, ok in line.recent[since:] if who != job_id)


def explain(blame: Blame) -> str:
    """Return in words what a pause with this blame waits for."""
    match blame:
        case Blame.ACCOUNT:
            return "waiting for the account"
        case Blame.SERVICE:
            return "waiting for the service"
        case Blame.LOCAL:
            return "waiting for this machine"
        case Blame.FILE:
            return "waiting for nothing"
        case _:
            assert_never(blame)
