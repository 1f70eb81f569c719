"""The line: how it grows and shrinks, when it pauses and probes, and the laws of both."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgremover.core import pacing
from bgremover.core.answer import LONGEST_WAIT
from bgremover.core.errors import (
    BgremoverError,
    Blame,
    BrokenResult,
    BudgetReached,
    DiskFull,
    EmptyImage,
    FolderLost,
    Forbidden,
    HttpAnswer,
    InternalFault,
    KeyRefused,
    LinkExpired,
    LinkFailed,
    LinkRefused,
    NoUsableAnswer,
    PaymentRequired,
    Rejected,
    ServerFailed,
    Throttled,
    Unreachable,
    Unsafe,
    Vanished,
)
from bgremover.core.pacing import (
    ACCOUNT_PROBES,
    FETCH_QUOTA,
    FIRST_WINDOW,
    LOCAL_PROBES,
    LONELY,
    QUOTA,
    Line,
    Pace,
    Pause,
    explain,
    failed,
    failure_rate,
    failures_in_a_row,
    fetched,
    mended,
    next_moment,
    opened,
    others_succeeded,
    probe_now,
    room,
    succeeded,
    suspicions,
)

PACE = Pace(workers=20, base_seconds=2.0, cap_seconds=300.0)
BUSY = Line(limit=12, threshold=20, proven=True)


def wins(line: Line, at: float, *, name: str = "b", full: bool = True, took: float = 3.0) -> Line:
    return succeeded(line, name, PACE, full=full, started=at - took, now=at)


def loses(
    line: Line,
    fault: BgremoverError,
    at: float,
    *,
    name: str = "a",
    took: float = 1.0,
    chance: float = 0.5,
) -> Line:
    return failed(line, name, fault, PACE, started=at - took, now=at, chance=chance)


def paused(line: Line) -> Pause:
    assert line.pause is not None
    return line.pause


def probes(line: Line, fault: BgremoverError, took: float = 0.5) -> Line:
    """Let the probe that is due next end with `fault`."""
    return loses(line, fault, paused(line).next_probe_at + took, took=took)


def resumes(line: Line, took: float = 2.0) -> Line:
    """Let the probe that is due next succeed."""
    return wins(line, paused(line).next_probe_at + took, took=took)


# --- growth ---------------------------------------------------------------------------------


def test_it_begins_with_one_call() -> None:
    assert opened(PACE).limit == 1
    assert room(opened(PACE), 0, 0.0) == 1


def test_the_first_success_opens_the_first_window() -> None:
    assert wins(opened(PACE), 3.0).limit == FIRST_WINDOW
    few = Pace(workers=4, base_seconds=2.0, cap_seconds=300.0)
    line = succeeded(opened(few), "a", few, full=True, started=0.0, now=3.0)
    assert line.limit == 4


def test_afterwards_each_success_lets_one_more_call_in() -> None:
    line = wins(opened(PACE), 3.0)
    for number in range(10):
        line = wins(line, 6.0 + number / 10)
        assert line.limit == 11 + number
    assert wins(line, 9.0).limit == PACE.workers


def test_it_grows_only_when_the_limit_is_what_holds_back() -> None:
    line = wins(opened(PACE), 3.0, full=False)
    assert line.limit == 1
    for number in range(50):
        line = wins(line, 6.0 + number, full=False)
    assert line.limit == 1


def test_calls_that_end_together_were_all_held_back() -> None:
    line = wins(BUSY, 10.0, full=True)
    line = wins(line, 10.0, full=False)
    assert line.limit == BUSY.limit + 2
    assert wins(line, 14.0, full=False, took=3.0).limit == line.limit


def test_beyond_the_threshold_it_grows_after_rounds_of_successes() -> None:
    line = replace(BUSY, limit=5, threshold=5, patience=4)
    for number in range(4 * 5 - 1):
        line = wins(line, 10.0 + number)
        assert line.limit == 5
    line = wins(line, 50.0)
    assert (line.limit, line.threshold, line.patience) == (6, 6, 2)


# --- congestion -----------------------------------------------------------------------------

TOO_MANY = Throttled("429", http=HttpAnswer(429))
OVERLOADED = ServerFailed("503", http=HttpAnswer(503))


@pytest.mark.parametrize("fault", [TOO_MANY, OVERLOADED])
def test_a_congestion_halves_the_limit_once_for_all_that_were_in_flight(
    fault: BgremoverError,
) -> None:
    line = BUSY
    for number in range(6):
        line = loses(line, fault, 10.0 + number / 100, name=f"{number}", took=1.0)
    assert line.limit == 6
    assert line.threshold == 6  # of twelve, six were taken
    assert loses(line, fault, 12.0, took=1.0).limit == 3


def test_the_limit_that_the_service_tells_is_taken_over() -> None:
    assert loses(BUSY, Throttled("429", max_inflight=10), 10.0).limit == 10
    assert loses(BUSY, Throttled("429", max_inflight=10), 10.0).threshold == 10


@pytest.mark.parametrize("allowed", [12, 13, 1000])
def test_a_told_limit_that_is_not_lower_is_shared_with_others(allowed: int) -> None:
    assert loses(BUSY, Throttled("429", max_inflight=allowed), 10.0).limit == 6


def test_after_a_congestion_only_what_began_later_lets_the_limit_grow() -> None:
    line = loses(BUSY, TOO_MANY, 10.0)
    assert wins(line, 11.0, took=3.0).limit == 6
    assert wins(line, 13.5, took=3.0).limit == 7


def test_each_congestion_makes_the_next_growth_more_patient() -> None:
    line, patience = BUSY, [BUSY.patience]
    for number in range(4):
        line = wins(loses(line, TOO_MANY, 100.0 * number), 100.0 * number + 50)
        patience.append(line.patience)
    assert patience == sorted(patience)
    assert patience[1] == 4 * patience[0]
    assert patience[-1] == pacing.LONGEST_PATIENCE


def test_no_call_starts_before_retry_after_has_run_off() -> None:
    line = loses(BUSY, Throttled("429", retry_after=7.0), 10.0)
    assert room(line, 0, 16.9) == 0
    assert room(line, 0, 17.0) == 6
    assert next_moment(line) == 17.0


def test_a_shorter_retry_after_does_not_shorten_a_longer_one() -> None:
    line = loses(BUSY, Throttled("429", retry_after=7.0), 10.0)
    assert loses(line, Throttled("429", retry_after=1.0), 10.5).held_until == 17.0


def test_the_limit_is_not_sought_again_soon_after_a_long_retry_after() -> None:
    line = loses(BUSY, Throttled("429", retry_after=30.0), 10.0)
    line = replace(line, limit=11, patience=1)
    for number in range(100):
        line = wins(line, 50.0 + number)
    assert line.limit == 11
    assert wins(line, 10 + 30 + 20 * 30).limit == 12


def test_while_nothing_is_taken_the_calls_come_more_and_more_rarely() -> None:
    line, at, waits = BUSY, 10.0, []
    for _ in range(12):
        line = loses(line, TOO_MANY, at, took=0.05, chance=0.999)
        waits.append(round(max(0.0, line.held_until - at), 6))
        at = max(at, line.held_until) + 0.1
    assert waits[0] == 0.0
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(pacing.LONGEST_SERVICE_PROBE, rel=0.01)
    assert wins(line, at + 3).congestions == 0


# --- pauses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        KeyRefused("401"),
        PaymentRequired("402"),
        Forbidden("403"),
    ],
)
def test_the_account_is_probed_after_1_2_4_8_15_minutes(fault: BgremoverError) -> None:
    line, waits = loses(BUSY, fault, 100.0), []
    since = paused(line).since
    for _ in range(7):
        waits.append(paused(line).next_probe_at - since)
        since = paused(line).next_probe_at + 0.5
        line = probes(line, fault)
    assert waits == [60, 120, 240, 480, 900, 900, 900]
    assert paused(line).since == 100.0
    assert paused(line).probes == 8


def test_one_image_is_the_probe_and_only_when_nothing_is_in_flight() -> None:
    line = loses(BUSY, KeyRefused("401"), 100.0)
    due = paused(line).next_probe_at
    assert next_moment(line) == due
    assert room(line, 0, due - 0.1) == 0
    assert room(line, 0, due) == 1
    assert room(line, 1, due) == 0


def test_what_was_in_flight_does_not_put_the_probe_off() -> None:
    line = loses(BUSY, KeyRefused("401"), 100.0)
    for number in range(9):
        later = loses(line, KeyRefused("401"), 100.1 + number, took=30.0)
        assert later.pause == line.pause


def test_what_was_in_flight_does_not_end_the_pause() -> None:
    line = loses(BUSY, KeyRefused("401"), 100.0)
    assert wins(line, 120.0, took=30.0).pause == line.pause


def test_after_the_pause_it_begins_with_one_call_again() -> None:
    line = resumes(loses(BUSY, PaymentRequired("402"), 100.0))
    assert line.pause is None
    assert line.limit == 1
    line = wins(line, 200.0)
    assert line.limit == 2  # no first window: it grows by one for each success


def test_a_probe_can_be_had_at_once() -> None:
    line = probe_now(loses(BUSY, KeyRefused("401"), 100.0), 130.0)
    assert room(line, 0, 130.0) == 1
    again = probes(line, KeyRefused("401"))
    assert paused(again).next_probe_at == pytest.approx(130.5 + 120.0)
    assert wins(line, 132.0, took=2.0).pause is None


def test_a_probe_that_was_under_way_when_the_key_changed_is_followed_by_another() -> None:
    line = loses(BUSY, KeyRefused("401"), 100.0)
    changed = probe_now(line, 161.0)
    line = loses(changed, KeyRefused("401"), 162.0, took=2.0)
    assert room(line, 0, 162.0) == 1


def test_a_new_key_need_not_wait_for_the_old_ones_retry_after() -> None:
    line = loses(BUSY, Throttled("429", retry_after=3600.0), 10.0)
    assert room(probe_now(line, 11.0), 0, 11.0) > 0


def test_the_detail_is_what_the_service_said() -> None:
    fault = PaymentRequired("402: no", http=HttpAnswer(402, reject_reason="insufficient_funds"))
    assert paused(loses(BUSY, fault, 1.0)).detail == "insufficient_funds"
    assert paused(loses(BUSY, KeyRefused("401: bad key"), 1.0)).detail == "401: bad key"


def test_the_machine_is_asked_again_within_a_minute() -> None:
    line, waits = loses(BUSY, DiskFull("full"), 100.0), []
    since = 100.0
    for _ in range(6):
        waits.append(paused(line).next_probe_at - since)
        since = paused(line).next_probe_at + 0.5
        line = probes(line, DiskFull("full"))
    assert tuple(waits[:5]) == LOCAL_PROBES
    assert waits[5] == LOCAL_PROBES[-1]


def test_the_budget_is_asked_again_when_it_is_new() -> None:
    line = loses(BUSY, BudgetReached("2 of 2 USD", resumes_in=5000.0), 100.0)
    assert paused(line).next_probe_at == 5100.0
    assert paused(line).blame is Blame.ACCOUNT


# Which fault prevails while the line is paused already.
@pytest.mark.parametrize(
    ("first", "second", "in_flight", "reason"),
    [
        (ServerFailed("500"), KeyRefused("401"), True, "key_refused"),
        (KeyRefused("401"), DiskFull("full"), True, "disk_full"),
        (ServerFailed("500"), DiskFull("full"), True, "disk_full"),
        (KeyRefused("401"), ServerFailed("500"), True, "key_refused"),
        (DiskFull("full"), KeyRefused("401"), True, "disk_full"),
        (KeyRefused("401"), PaymentRequired("402"), True, "key_refused"),
        (KeyRefused("401"), PaymentRequired("402"), False, "payment_required"),
        (KeyRefused("401"), Unreachable("refused"), False, "unreachable"),
        (DiskFull("full"), KeyRefused("401"), False, "key_refused"),
        (DiskFull("full"), LinkFailed("502"), False, "link_failed"),
        (KeyRefused("401"), LinkFailed("502"), False, "key_refused"),
        (KeyRefused("401"), TOO_MANY, False, "key_refused"),
        (KeyRefused("401"), EmptyImage("0 bytes"), False, "key_refused"),
        (KeyRefused("401"), Rejected("400"), False, "key_refused"),
        (FolderLost("inbox"), Vanished("a.jpg"), False, "folder_lost"),
    ],
)
def test_the_newest_truth_prevails_and_the_stronger_one(
    first: BgremoverError, second: BgremoverError, in_flight: bool, reason: str
) -> None:
    line = replace(BUSY, quota=1)
    line = loses(line, first, 100.0)
    due = paused(line).next_probe_at
    line = loses(line, second, 101.0, took=5.0) if in_flight else loses(line, second, due + 1)
    assert paused(line).reason == reason


def test_a_probe_that_is_throttled_is_a_probe_in_vain() -> None:
    line = loses(BUSY, KeyRefused("401"), 100.0)
    line = probes(line, Throttled("429", retry_after=1.0))
    assert paused(line).next_probe_at == pytest.approx(160.5 + 120.0)
    line = probes(line, Throttled("429", retry_after=3000.0))
    assert room(line, 0, paused(line).next_probe_at) == 0
    assert next_moment(line) == line.held_until


def test_an_image_that_the_safety_check_withholds_proves_that_all_is_well() -> None:
    line = loses(BUSY, KeyRefused("401"), 100.0)
    assert probes(line, Unsafe("422")).pause is None


# --- the quota ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "calls"),
    [
        (Unreachable("refused"), 4),
        (NoUsableAnswer("timed out"), 3),
        (ServerFailed("500"), QUOTA),
        (InternalFault("KeyError"), QUOTA),
        (LinkRefused("elsewhere"), 3),
        (LinkFailed("502"), 12),
        (BrokenResult("no end"), FETCH_QUOTA),
    ],
)
def test_how_many_failures_in_a_row_pause_the_line(fault: BgremoverError, calls: int) -> None:
    line, made = BUSY, 0
    while line.pause is None:
        line = loses(line, fault, 10.0 + made, name=f"{made}")
        made += 1
    assert made == calls
    assert line.pause.reason == fault.code
    assert line.pause.blame is Blame.SERVICE


def test_every_second_call_may_fail_for_ever() -> None:
    line = BUSY
    for number in range(1000):
        line = loses(line, ServerFailed("500"), 10.0 + number, name=f"{number}")
        line = wins(line, 10.5 + number)
    assert line.pause is None


def test_dead_links_are_no_outage() -> None:
    line = BUSY
    for number in range(100):
        line = loses(line, LinkExpired("dead"), 10.0, name=f"{number}")
    assert line == BUSY


def test_one_image_that_fails_alone_pauses_the_line_soon() -> None:
    line, calls = BUSY, 0
    while line.pause is None:
        line = loses(line, ServerFailed("500"), 10.0 + calls)
        calls += 1
    assert calls == LONELY


def test_an_outage_is_probed_at_growing_intervals_with_jitter() -> None:
    line, waits = BUSY, []
    while line.pause is None:
        line = loses(line, Unreachable("refused"), 10.0, chance=0.0)
    before = 10.0
    for _ in range(8):
        waits.append(paused(line).next_probe_at - before)
        before = paused(line).next_probe_at + 1.0
        line = loses(line, Unreachable("refused"), before, took=1.0, chance=0.0)
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
    most = loses(line, Unreachable("refused"), before + 31, took=0.5, chance=1.0)
    assert paused(most).next_probe_at - (before + 31) == pacing.LONGEST_SERVICE_PROBE


def test_a_probe_that_may_be_charged_for_comes_more_rarely() -> None:
    line, at = BUSY, 10.0
    for _ in range(20):
        at = (line.pause.next_probe_at if line.pause else at) + 1.0
        line = loses(line, NoUsableAnswer("timed out"), at, chance=0.999)
    assert paused(line).next_probe_at - at == pytest.approx(PACE.cap_seconds, rel=0.01)


def test_after_an_outage_half_of_the_quota_is_left() -> None:
    line = BUSY
    while line.pause is None:
        line = loses(line, ServerFailed("500"), 10.0, name=f"{line.quota}")
    line = resumes(line)
    assert line.quota == QUOTA // 2
    assert line.marks == ()


def test_what_was_learned_of_the_limit_before_an_outage_is_soon_learned_anew() -> None:
    line = replace(BUSY, threshold=3, patience=80)
    assert resumes(loses(line, KeyRefused("401"), 10.0)).patience == 80
    while line.pause is None:
        line = loses(line, OVERLOADED, 10.0, name=f"{line.quota}")
    line, successes = resumes(line), 0
    while line.limit < 10:
        line, successes = wins(line, 1000.0 + successes), successes + 1
    assert successes <= sum(range(10))


# --- results --------------------------------------------------------------------------------


def no_results() -> Line:
    line = BUSY
    while line.pause is None:
        line = loses(line, LinkFailed("502"), 10.0, name=f"{line.fetch_quota}")
    return line


def test_a_call_that_succeeds_does_not_prove_that_results_can_be_fetched() -> None:
    line = no_results()
    after = resumes(line)
    assert paused(after).reason == "link_failed"
    assert paused(after).next_probe_at >= paused(line).next_probe_at + 2.0 + 120.0


def test_a_result_that_is_fetched_ends_the_pause() -> None:
    line = no_results()
    assert fetched(line, "a", PACE, started=9.0).pause == line.pause  # was under way before
    line = fetched(line, "a", PACE, started=11.0)
    assert line.pause is None
    assert line.limit == 1
    assert line.fetch_quota == FETCH_QUOTA // 2


def test_a_result_that_is_fetched_ends_no_other_pause() -> None:
    line = loses(BUSY, KeyRefused("401"), 10.0)
    assert fetched(line, "a", PACE, started=11.0).pause == line.pause


def test_single_results_that_fail_do_not_pause_the_line() -> None:
    line = BUSY
    for number in range(200):
        line = loses(line, LinkFailed("502"), 10.0 + number)
        line = fetched(line, "b", PACE, started=10.0 + number)
    assert line.pause is None


def test_a_folder_that_is_back_ends_a_pause_for_this_machine_alone() -> None:
    local, account = (
        loses(BUSY, FolderLost("inbox"), 10.0),
        loses(BUSY, KeyRefused("401"), 10.0),
    )
    assert mended(local, PACE).pause is None
    assert mended(local, PACE).limit == 1
    assert mended(account, PACE) == account
    assert mended(BUSY, PACE) == BUSY


# --- what is known of an image and of the others --------------------------------------------


def test_failures_of_one_image_are_counted_until_it_succeeds() -> None:
    line = loses(loses(BUSY, Unreachable("refused"), 10.0), ServerFailed("500"), 20.0)
    assert (failures_in_a_row(line, "a"), suspicions(line, "a")) == (2, 1)
    assert (failures_in_a_row(line, "b"), suspicions(line, "b")) == (0, 0)
    assert failures_in_a_row(wins(line, 30.0, name="a"), "a") == 0


def test_a_success_counts_from_the_beginning_of_the_first_failed_call() -> None:
    line = loses(BUSY, ServerFailed("500"), 10.0, took=5.0)
    assert not others_succeeded(wins(BUSY, 4.9), "a")
    assert others_succeeded(loses(wins(BUSY, 5.1), ServerFailed("500"), 10.0, took=5.0), "a")
    assert others_succeeded(wins(line, 11.0), "a")
    assert not others_succeeded(loses(wins(BUSY, 4.9), ServerFailed("500"), 10.0, took=5.0), "a")


def test_the_failure_rate_counts_images_and_not_calls() -> None:
    line = BUSY
    for number in range(49):
        line = wins(line, 10.0 + number, name=f"good-{number}")
    for number in range(30):
        line = loses(line, ServerFailed("500"), 100.0 + number, name="bad")
    assert failure_rate(line, "a") == 1 / 50
    assert failure_rate(line, "bad") == 0.0


def test_a_first_success_does_not_make_a_service_spotless() -> None:
    assert failure_rate(BUSY, "a") == 0.5
    rates = [failure_rate(BUSY, "a")]
    line = BUSY
    for number in range(8):
        line = wins(line, 10.0, name=f"{number}")
        rates.append(failure_rate(line, "a"))
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == 0.0


@pytest.mark.parametrize("blame", list(Blame))
def test_every_pause_can_be_explained(blame: Blame) -> None:
    assert explain(blame).startswith("waiting for ")


# --- laws -----------------------------------------------------------------------------------

FAULTS: list[Callable[[], BgremoverError]] = [
    lambda: KeyRefused("401"),
    lambda: DiskFull("full"),
    lambda: BudgetReached("day", resumes_in=100.0),
    lambda: Throttled("429"),
    lambda: Throttled("429", retry_after=30.0, max_inflight=3),
    lambda: ServerFailed("500", http=HttpAnswer(500)),
    lambda: ServerFailed("503", http=HttpAnswer(503)),
    lambda: Unreachable("refused"),
    lambda: NoUsableAnswer("timed out"),
    lambda: LinkFailed("502"),
    lambda: LinkRefused("elsewhere"),
    lambda: BrokenResult("no end"),
    lambda: Rejected("400"),
    lambda: Unsafe("422"),
    lambda: EmptyImage("0 bytes"),
]


@dataclass(frozen=True)
class Outcome:
    """What became of a call; no fault is a success. `took` and `gap` in seconds."""

    fault: Callable[[], BgremoverError] | None
    name: str
    took: float
    gap: float
    chance: float
    full: bool
    fetch: bool
    now: bool


outcomes = st.builds(
    Outcome,
    fault=st.none() | st.sampled_from(FAULTS),
    name=st.sampled_from("abcdefgh"),
    took=st.floats(0, 400),
    gap=st.floats(0, 2000),
    chance=st.floats(0, 1, exclude_max=True),
    full=st.booleans(),
    fetch=st.booleans(),
    now=st.booleans(),
)
paces = st.builds(
    Pace,
    workers=st.integers(1, 30),
    base_seconds=st.floats(0.01, 60),
    cap_seconds=st.floats(60, 3600),
)


def follow(line: Line, one: Outcome, pace: Pace, at: float) -> Line:
    started = at - one.took
    if one.now:
        line = probe_now(line, at)
    if one.fault is not None:
        fault, chance = one.fault(), one.chance
        return failed(line, one.name, fault, pace, started=started, now=at, chance=chance)
    if one.fetch:
        return fetched(line, one.name, pace, started=started)
    return succeeded(line, one.name, pace, full=one.full, started=started, now=at)


@given(pace=paces, story=st.lists(outcomes, max_size=60))
def test_the_laws_of_the_line(pace: Pace, story: list[Outcome]) -> None:
    line, at = opened(pace), 1000.0
    for one in story:
        at += one.gap
        before, line = line, follow(line, one, pace, at)
        assert 1 <= line.limit <= pace.workers
        assert 1 <= line.threshold <= pace.workers
        assert line.limit - before.limit <= max(1, FIRST_WINDOW - 1)
        assert 0 <= line.quota <= QUOTA
        assert 0 <= line.fetch_quota <= FETCH_QUOTA
        assert line.held_until <= at + LONGEST_WAIT
        room_is_lawful(line, pace, at)
        pause_is_lawful(line, at)
        if before.pause is not None and line.pause is None:
            assert line.limit == 1


def room_is_lawful(line: Line, pace: Pace, at: float) -> None:
    for moment in (at, at + 50.0, next_moment(line), next_moment(line) + 1e6):
        for in_flight in range(pace.workers + 3):
            free = room(line, in_flight, moment)
            assert 0 <= free <= max(0, line.limit - in_flight)
            if line.pause is not None:
                assert in_flight + free <= max(1, in_flight)
            if moment < line.held_until:
                assert free == 0


def pause_is_lawful(line: Line, at: float) -> None:
    if line.pause is None:
        return
    due = next_moment(line)
    assert line.pause.since <= at
    assert due - at <= max(LONGEST_WAIT, *ACCOUNT_PROBES)
    assert room(line, 0, max(due, at)) == 1  # somebody will be let through


def test_the_laws_meet_pauses_and_their_ends() -> None:
    line, at, states = opened(PACE), 1000.0, set()
    for fault in FAULTS * 3:
        for one in (None, fault):
            at += 1000.0
            outcome = Outcome(one, "a", 1.0, 0.0, 0.5, full=True, fetch=False, now=False)
            line = follow(line, outcome, PACE, at)
            states.add(line.pause.reason if line.pause else None)
    assert states >= {None, "key_refused", "disk_full", "budget_reached"}


def test_a_probe_in_flight_when_the_key_changes_may_still_end_the_pause() -> None:
    line = loses(BUSY, KeyRefused("401"), 100.0)
    began = paused(line).next_probe_at + 1
    changed = probe_now(line, began + 2)
    assert wins(changed, began + 5, took=5.0).pause is None
    # What was in flight when the line paused does not.
    assert wins(changed, began + 5, took=began + 5 - 99.0).pause is not None
