"""How many calls may be in flight now: growth, pauses, probes.

The line is one frozen record for all workers; each call's outcome gives the next one.

- Growth is AIMD (additive increase, multiplicative decrease, Chiu and Jain 1989) with TCP's slow
  start: from 1; the first success opens a window of `FIRST_WINDOW`, as RFC 6928 does; then one
  more for each success while the limit is what holds back, up to the threshold. Beyond it one
  more after `patience` rounds of successes, which a refusal makes longer and a growth without
  one shorter. 429 and 503 halve the limit, once for all the calls that were in flight together;
  what the service took of them is the threshold. If nothing succeeds after that, the next calls
  wait longer each time.
- A retry quota shared by all workers (the idea of botocore's standard mode) tells an outage from
  single failures: each failure takes from it, each success gives back; when it is used up the
  line pauses and probes. Results that cannot be fetched have a quota of their own: a call that
  succeeds says nothing about them, and would cost money.
- A paused line lets one image through at growing intervals; its success ends the pause. What
  was already in flight when the line paused neither ends the pause nor puts the probe off.
All moments are seconds of one monotonic clock; `chance` is uniform in [0, 1).
"""

from dataclasses import dataclass, replace
from typing import assert_never

from bgremover.core.errors import (
    AccountFault,
    BgremoverError,
    Blame,
    BrokenResult,
    BudgetReached,
    ContractChanged,
    GenerationFailed,
    InternalFault,
    LinkExpired,
    LinkFailed,
    LinkRefused,
    LocalFault,
    NoUsableAnswer,
    Rejected,
    ServerFailed,
    ServiceFault,
    Throttled,
    Unreachable,
    Unsafe,
)

QUOTA = 24
"""Failures of the cheapest kind that pause the line, if no success comes between."""
GIVEN_BACK = 2
FETCH_QUOTA = 2 * QUOTA
"""The same for results: 3 refused links, 12 failed fetches, 16 images broken three times."""
FIRST_WINDOW = 10
REFUSALS_IN_A_ROW = 5
REMEMBERED = 200
ENOUGH = 6
"""Images below which those that are missing are taken for failures, half of them."""
LONELY = 7
"""Failures of one image that pause the line, if nobody succeeded since the first of them."""
PATIENCE = 10
LONGEST_PATIENCE = 80
REST = 20
LONGEST_REST = 3600.0
"""After a Retry-After the line does not grow beyond the threshold for `REST` times as long, at
most for `LONGEST_REST` seconds: to find the limit again costs 5 % of the time at most."""
ACCOUNT_PROBES = (60.0, 120.0, 240.0, 480.0, 900.0)
LOCAL_PROBES = (5.0, 10.0, 20.0, 40.0, 60.0)
LONGEST_SERVICE_PROBE = 60.0

_SUSPICIOUS = (ServerFailed, GenerationFailed, InternalFault)
_FETCHING = (LinkFailed, LinkRefused, BrokenResult)
_OVERLOADED = 503
_MOST_DOUBLINGS = 30  # 2.0 ** 1024 does not fit a float, and an outage may last for days


@dataclass(frozen=True, slots=True)
class Pace:
    """The settings of the line: most calls in flight, first and longest back-off in seconds."""

    workers: int
    base_seconds: float
    cap_seconds: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Why nothing starts: since when, and when the next image is let through as a probe.

    `fetching` when results cannot be fetched: then the next result that can ends the pause.
    """

    reason: str
    detail: str
    blame: Blame
    since: float
    next_probe_at: float
    probes: int = 0
    fetching: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """An image that failed `failures` times in a row.

    `suspicions` counts those of them that may be its own fault; `since` is when the first call
    of these began.
    """

    job_id: str
    failures: int
    suspicions: int
    since: float


@dataclass(frozen=True, slots=True)
class Line:
    """The state of the line.

    Args:
        limit: Calls that may be in flight.
        threshold: Up to where `limit` grows by one for each success.
        proven: Whether a call has succeeded or met congestion: the first window is over.
        credit: Successes since the last growth beyond the threshold.
        patience: Rounds of successes before the next growth beyond the threshold.
        full_at: When as many calls as allowed were last seen in flight.
        grows_after: Before this moment there is no growth beyond the threshold.
        held_until: No call starts before (Retry-After).
        lowered_at: When the limit was last halved; calls that started earlier do not halve again.
        congestions: How often it was halved with no success between.
        quota: What is left of the retry quota.
        fetch_quota: The same for the results' links.
        succeeded_at: When the latest call ended that succeeded.
        marks: The images whose latest outcome is a failure, longest ago first.
        recent: The latest outcomes of calls as (job id, success), oldest first.
        refused: The jobs refused with 400 in a row.
        pause: Set while the line is paused.
    """

    limit: int
    threshold: int
    proven: bool = False
    credit: int = 0
    patience: int = PATIENCE
    full_at: float = float("-inf")
    grows_after: float = float("-inf")
    held_until: float = 0.0
    lowered_at: float = float("-inf")
    congestions: int = 0
    quota: int = QUOTA
    fetch_quota: int = FETCH_QUOTA
    succeeded_at: float = float("-inf")
    marks: tuple[Mark, ...] = ()
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


# --- successes ------------------------------------------------------------------------------


def succeeded(
    line: Line,
    job_id: str,
    pace: Pace,
    *,
    full: bool,
    started: float,
    now: float,
) -> Line:
    """Take a success into account.

    Args:
        line: The line before.
        job_id: Whose call it was.
        pace: The settings.
        full: Whether as many calls were in flight as the limit allows.
        started: When the attempt began.
        now: When it ended.
    """
    line = _noted(line, job_id, now)
    if full:
        line = replace(line, full_at=max(line.full_at, now))
    if line.pause is None:
        # Calls that end together find fewer and fewer in flight; what counts is whether the
        # limit was reached while they ran.
        held_back = full or started <= line.full_at
        return _grown(line, pace, now) if held_back and started > line.lowered_at else line
    if started < line.pause.since:  # in flight when the line paused
        return line
    if line.pause.fetching:
        # The call is paid for; whether its result can be fetched is still to be seen.
        seen = max(now, line.pause.next_probe_at)
        return _put_off(line, seen + _interval(line.pause, pace, chance=0.0))
    return _resumed(line, pace)


def fetched(line: Line, job_id: str, pace: Pace, *, started: float) -> Line:
    """Take into account that a result was fetched and found whole.

    Args:
        line: The line before.
        job_id: Whose result it is.
        pace: The settings.
        started: When the fetch began.
    """
    given_back = min(FETCH_QUOTA, line.fetch_quota + 2 * GIVEN_BACK)
    line = replace(line, fetch_quota=given_back, marks=_unmarked(line, job_id))
    if line.pause is None or not line.pause.fetching or started < line.pause.since:
        return line
    return _resumed(replace(line, fetch_quota=FETCH_QUOTA // 2), pace)


def mended(line: Line, pace: Pace) -> Line:
    """Return the line with a pause for this machine's sake ended; any other pause goes on."""
    paused = line.pause is not None and line.pause.blame is Blame.LOCAL
    return _resumed(line, pace) if paused else line


def _noted(line: Line, job_id: str, now: float) -> Line:
    return replace(
        line,
        congestions=0,
        quota=min(QUOTA, line.quota + GIVEN_BACK),
        succeeded_at=max(line.succeeded_at, now),
        marks=_unmarked(line, job_id),
        recent=_remember(line, job_id, ok=True),
        refused=(),
    )


def _remember(line: Line, job_id: str, *, ok: bool) -> tuple[tuple[str, bool], ...]:
    return (*line.recent, (job_id, ok))[-REMEMBERED:]


def _unmarked(line: Line, job_id: str) -> tuple[Mark, ...]:
    return tuple(mark for mark in line.marks if mark.job_id != job_id)


def _resumed(line: Line, pace: Pace) -> Line:
    # What failed on the way into the pause speaks against no image, and what was learned of the
    # service's limit before an outage may hold no longer.
    outage = line.pause is not None and line.pause.blame is Blame.SERVICE
    return replace(
        line,
        limit=1,
        threshold=min(line.threshold, pace.workers),
        proven=True,
        credit=0,
        patience=1 if outage else line.patience,
        quota=max(line.quota, QUOTA // 2),
        marks=(),
        pause=None,
    )


def _grown(line: Line, pace: Pace, now: float) -> Line:
    line, first = replace(line, proven=True), not line.proven
    if line.limit >= pace.workers:
        return line
    if line.limit < line.threshold:
        window = FIRST_WINDOW if first else line.limit + 1
        return replace(line, limit=min(line.threshold, window), credit=0)
    if line.credit + 1 < line.patience * line.limit or now < line.grows_after:
        return replace(line, credit=line.credit + 1)
    limit, patience = line.limit + 1, max(1, line.patience // 2)
    return replace(line, limit=limit, threshold=limit, credit=0, patience=patience)


# --- faults ---------------------------------------------------------------------------------


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
    moments = _Moments(started, now, chance)
    match fault:
        case AccountFault() | LocalFault():
            return _paused(line, fault, pace, moments)
        case Throttled():
            return _throttled(line, fault, pace, moments)
        case LinkFailed() | LinkRefused() | BrokenResult():
            return _unfetched(_marked(line, job_id, fault, started), fault, pace, moments)
        case LinkExpired():
            return line
        case ServiceFault():
            return _spent(_marked(line, job_id, fault, started), job_id, fault, pace, moments)
        case Rejected():
            return _refused(line, job_id, fault, pace, moments)
        case Unsafe():
            return succeeded(line, job_id, pace, full=False, started=started, now=now)
        case _:
            return line


@dataclass(frozen=True, slots=True)
class _Moments:
    started: float
    now: float
    chance: float


def _marked(line: Line, job_id: str, fault: ServiceFault, started: float) -> Line:
    mark = _mark(line, job_id) or Mark(job_id, failures=0, suspicions=0, since=started)
    mark = replace(mark, failures=mark.failures + 1)
    if isinstance(fault, _SUSPICIOUS):
        since = mark.since if mark.suspicions else started
        mark = replace(mark, suspicions=mark.suspicions + 1, since=since)
    return replace(line, marks=(*_unmarked(line, job_id), mark)[-REMEMBERED:])


def _mark(line: Line, job_id: str) -> Mark | None:
    return next((mark for mark in line.marks if mark.job_id == job_id), None)


# --- congestion -----------------------------------------------------------------------------


def _throttled(line: Line, fault: Throttled, pace: Pace, moments: _Moments) -> Line:
    asked = fault.retry_after or 0.0
    held = replace(line, held_until=max(line.held_until, moments.now + asked))
    if line.pause is not None:
        return _probed_in_vain(held, line.pause, pace, moments)
    lowered = _congested(held, fault.max_inflight, moments)
    if lowered.congestions > 1:
        wait = moments.chance * _spell(lowered.congestions - 2, pace)
        lowered = replace(lowered, held_until=max(lowered.held_until, moments.now + wait))
    rest = asked + min(LONGEST_REST, REST * asked)
    return replace(lowered, grows_after=max(lowered.grows_after, moments.now + rest))


def _congested(line: Line, allowed: int | None, moments: _Moments) -> Line:
    if moments.started <= line.lowered_at:
        return _one_fewer(line, allowed)
    threshold, patience = line.threshold, line.patience
    if line.limit == 1:  # others hold all the places: what is known of ours says nothing now
        patience = 1
    elif line.congestions == 0:
        threshold, patience = line.limit - 1, min(LONGEST_PATIENCE, 4 * patience)
    return replace(
        line,
        limit=_lowered(line.limit, allowed),
        threshold=max(1, min(threshold, allowed or threshold)),
        patience=patience,
        proven=True,
        credit=0,
        lowered_at=moments.now,
        congestions=line.congestions + 1,
    )


def _one_fewer(line: Line, allowed: int | None) -> Line:
    """Of the calls that were in flight together, one more that the service did not take."""
    if allowed is not None or line.congestions > 1:
        return line
    return replace(line, threshold=max(line.limit, line.threshold - 1))


def _lowered(limit: int, allowed: int | None) -> int:
    if allowed is not None and allowed < limit:
        return max(1, allowed)
    return max(1, limit // 2)


# --- pauses ---------------------------------------------------------------------------------


def _spent(line: Line, job_id: str, fault: ServiceFault, pace: Pace, moments: _Moments) -> Line:
    if line.pause is None and fault.http is not None and fault.http.status == _OVERLOADED:
        line = _congested(line, None, moments)
    left = 0 if _is_lonely(line, job_id) else max(0, line.quota - _cost(fault))
    line = replace(line, quota=left, recent=_remember(line, job_id, ok=False))
    if line.quota > 0 and line.pause is None:
        return line
    return _paused(line, fault, pace, moments)


def _unfetched(line: Line, fault: ServiceFault, pace: Pace, moments: _Moments) -> Line:
    line = replace(line, fetch_quota=max(0, line.fetch_quota - _cost(fault)))
    if line.fetch_quota > 0 and line.pause is None:
        return line
    return _paused(line, fault, pace, moments)


def _is_lonely(line: Line, job_id: str) -> bool:
    return failures_in_a_row(line, job_id) >= LONELY and not others_succeeded(line, job_id)


def _cost(fault: ServiceFault) -> int:
    match fault:
        case NoUsableAnswer():
            return QUOTA // 3
        case Unreachable():
            return QUOTA // 4
        case LinkRefused():
            return FETCH_QUOTA // 3
        case LinkFailed():
            return FETCH_QUOTA // 12
        case _:
            return 1


def _refused(line: Line, job_id: str, fault: Rejected, pace: Pace, moments: _Moments) -> Line:
    refused = tuple(dict.fromkeys((*line.refused, job_id)))
    line = replace(line, refused=refused[-REFUSALS_IN_A_ROW:])
    if len(line.refused) < REFUSALS_IN_A_ROW:
        return line
    changed = ContractChanged(
        f"{len(line.refused)} different images in a row were refused, the last with: "
        f"{fault.message}",
        http=fault.http,
    )
    return _paused(line, changed, pace, moments)


def _paused(line: Line, fault: BgremoverError, pace: Pace, moments: _Moments) -> Line:
    before, blame = line.pause, _blame(fault)
    if before is not None and not _prevails(fault, before, moments.started):
        return line
    fetching = isinstance(fault, _FETCHING)
    same = before is not None and (before.blame, before.fetching) == (blame, fetching)
    pause = Pause(
        reason=fault.code,
        detail=(fault.http.reject_reason if fault.http else None) or fault.message,
        blame=blame,
        since=before.since if before and same else moments.now,
        next_probe_at=moments.now,
        probes=before.probes if before and same else 0,
        fetching=fetching,
    )
    wait = _interval(pause, pace, moments.chance)
    if isinstance(fault, BudgetReached):
        wait = max(1.0, fault.resumes_in)
    return _put_off(replace(line, pause=pause), moments.now + wait)


def _put_off(line: Line, until: float) -> Line:
    if line.pause is None:
        return line
    pause = replace(line.pause, next_probe_at=until, probes=line.pause.probes + 1)
    return replace(line, pause=pause)


def _probed_in_vain(line: Line, pause: Pause, pace: Pace, moments: _Moments) -> Line:
    if moments.started < pause.next_probe_at:
        return line
    return _put_off(line, moments.now + _interval(pause, pace, moments.chance))


def _prevails(fault: BgremoverError, pause: Pause, started: float) -> bool:
    """Tell whether a fault says more about a paused line than what it is paused for."""
    ranks = (Blame.SERVICE, Blame.ACCOUNT, Blame.LOCAL)
    if ranks.index(_blame(fault)) > ranks.index(pause.blame):
        return True
    if started < pause.next_probe_at:
        return False  # it was in flight when the line paused
    if isinstance(fault, _FETCHING):
        return pause.fetching or pause.blame is Blame.LOCAL  # fetches are no probes of the others
    return True


def _interval(pause: Pause, pace: Pace, chance: float) -> float:
    match pause.blame:
        case Blame.ACCOUNT:
            return ACCOUNT_PROBES[min(pause.probes, len(ACCOUNT_PROBES) - 1)]
        case Blame.LOCAL:
            return LOCAL_PROBES[min(pause.probes, len(LOCAL_PROBES) - 1)]
        case Blame.SERVICE if pause.fetching:
            # A probe costs money; the fetches themselves go on and cost nothing.
            return ACCOUNT_PROBES[min(pause.probes, len(ACCOUNT_PROBES) - 1)]
        case Blame.SERVICE if pause.reason == NoUsableAnswer.code:  # each probe may be charged
            return _jittered(_doubled(pause.probes, pace), chance)
        case _:
            return _jittered(_spell(pause.probes, pace), chance)


def _jittered(seconds: float, chance: float) -> float:
    return seconds * (0.5 + chance / 2)


def _spell(doublings: int, pace: Pace) -> float:
    return min(LONGEST_SERVICE_PROBE, _doubled(doublings, pace))


def _doubled(doublings: int, pace: Pace) -> float:
    return min(pace.cap_seconds, pace.base_seconds * 2.0 ** min(doublings, _MOST_DOUBLINGS))


def _blame(fault: BgremoverError) -> Blame:
    match fault:
        case AccountFault() | LocalFault() | ServiceFault():
            return fault.blame
        case _:
            raise ValueError(f"{fault.code} pauses nothing") from fault


# --- what is asked --------------------------------------------------------------------------


def probe_now(line: Line, now: float) -> Line:
    """Return the line with its probe due at once: the key changed, or somebody asked."""
    if line.pause is None:
        return replace(line, held_until=min(line.held_until, now))
    return replace(line, pause=replace(line.pause, next_probe_at=now), held_until=now)


def failures_in_a_row(line: Line, job_id: str) -> int:
    """Return how often this image failed since its last success or the end of the last pause."""
    mark = _mark(line, job_id)
    return mark.failures if mark else 0


def failure_rate(line: Line, without: str) -> float:
    """Return the share of the images of late, all but one, that met a failure.

    Images are counted, not calls: one that fails again and again does not make a service bad.
    While fewer than `ENOUGH` are known, those that are missing are taken for half failures: a
    first success does not make a service spotless.
    """
    others = {job_id for job_id, _ in line.recent if job_id != without}
    failures = {job_id for job_id, ok in line.recent if not ok} - {without}
    missing = max(0, ENOUGH - len(others))
    return (len(failures) + missing / 2) / (len(others) + missing)


def suspicions(line: Line, job_id: str) -> int:
    """Return how many of `failures_in_a_row` may be the image's own fault."""
    mark = _mark(line, job_id)
    return mark.suspicions if mark else 0


def others_succeeded(line: Line, job_id: str) -> bool:
    """Tell whether another image succeeded since the first suspicious call of this one began.

    No success of its own can have come between.
    """
    mark = _mark(line, job_id)
    return mark is not None and line.succeeded_at > mark.since


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
