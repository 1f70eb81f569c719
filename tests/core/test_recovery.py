"""Where the jobs of an earlier run go on, and what a call that was cut short means."""

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bgremover.core.errors import Billed
from bgremover.core.job import (
    Accepted,
    Deferred,
    Fetched,
    Job,
    Paid,
    Picture,
    Quarantined,
    Queued,
    Released,
    Saved,
    State,
    Submitting,
)
from bgremover.core.recovery import KILLED, recovered
from tests.fakes import NOON, RECEIPT, a_job, an_attempt, jobs, moments

OPEN = a_job(state=Submitting(7), picture=Picture("5ec4e7", "JPEG", 8, 6))
LATER = NOON + 100

flags = st.booleans()

GOES_ON: list[tuple[State, type[State]]] = [
    (Queued(), Queued),
    (Submitting(7), Queued),
    (Accepted(RECEIPT), Accepted),
    (Paid(RECEIPT), Paid),
    (Fetched(RECEIPT, "a.png", "5ec4e7", 9), Fetched),
    (Deferred(LATER, Queued(), "server_failed"), Deferred),
    (Saved("a.png", "5ec4e7", 9), Saved),
    (Quarantined("empty", "{}"), Quarantined),
    (Released("vanished"), Released),
]


def again(job: Job, *, answered: bool = False, crashed: bool = False) -> Job:
    return recovered(job, answered=answered, crashed=crashed, at=LATER)


@pytest.mark.parametrize(
    ("before", "after"),
    GOES_ON,
    ids=lambda value: getattr(value, "kind", None),
)
def test_a_job_goes_on_in_the_latest_state_that_is_certain(
    before: State, after: type[State]
) -> None:
    assert type(again(a_job(state=before)).state) is after


def test_the_table_holds_every_state() -> None:
    assert {type(before) for before, _ in GOES_ON} == set(get_args(State))


def test_a_call_that_was_cut_short_is_an_unknown_charge() -> None:
    job = again(replace(OPEN, attempts=(an_attempt(),)))
    assert job.state == Queued()
    assert job.attempts == (
        an_attempt(),
        an_attempt(
            number=2,
            at=LATER,
            outcome=KILLED,
            status=None,
            request_id=None,
            seconds=0.0,
            billed=Billed.UNKNOWN,
        ),
    )


def test_a_call_whose_outcome_is_known_is_no_unknown_charge() -> None:
    job = again(OPEN, answered=True)
    assert (job.state, job.attempts) == (Queued(), ())


@given(jobs, flags, flags)
@example(OPEN, False, True)
@example(OPEN, True, True)
def test_only_an_open_call_is_an_unknown_charge_and_only_one(
    job: Job, answered: bool, crashed: bool
) -> None:
    after = again(job, answered=answered, crashed=crashed)
    cut_short = isinstance(job.state, Submitting) and not answered
    assert after.unknown_calls == job.unknown_calls + cut_short
    assert after.attempts[: len(job.attempts)] == job.attempts


@given(jobs, flags, flags)
@example(OPEN, False, True)
def test_a_kill_during_recovery_charges_nothing_twice(
    job: Job, answered: bool, crashed: bool
) -> None:
    once = again(job, answered=answered, crashed=crashed)
    twice = again(once, answered=answered, crashed=True)
    assert (twice.state, twice.attempts) == (once.state, once.attempts)


@given(jobs, flags, flags)
@example(a_job(state=Paid(RECEIPT)), False, True)
def test_what_was_paid_for_is_never_let_go_of(job: Job, answered: bool, crashed: bool) -> None:
    after = again(job, answered=answered, crashed=crashed)
    if not isinstance(job.state, Submitting):
        assert after.state == job.state


@given(jobs, flags, flags, moments)
@example(OPEN, False, True, NOON)
def test_no_job_is_mixed_up_with_another(
    job: Job, answered: bool, crashed: bool, at: float
) -> None:
    after = recovered(job, answered=answered, crashed=crashed, at=at)
    kept = ("id", "path", "identity", "claimed_at", "faults", "checked", "home")
    assert [getattr(after, name) for name in kept] == [getattr(job, name) for name in kept]


@pytest.mark.parametrize("state", [Queued(), Submitting(7)], ids=lambda state: state.kind)
def test_a_picture_is_inspected_again_before_it_is_sent_again(state: State) -> None:
    assert again(replace(OPEN, state=state)).picture is None


@pytest.mark.parametrize(
    "state", [Paid(RECEIPT), Fetched(RECEIPT, "a.png", "5ec4e7", 9)], ids=lambda state: state.kind
)
def test_a_picture_that_was_sent_is_remembered(state: State) -> None:
    assert again(replace(OPEN, state=state)).picture == OPEN.picture


# --- crashes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        Queued(),
        Submitting(7),
        Accepted(RECEIPT),
        Paid(RECEIPT),
        Fetched(RECEIPT, "a.png", "5ec4e7", 9),
    ],
    ids=lambda state: state.kind,
)
def test_a_kill_counts_against_what_was_under_way(state: State) -> None:
    job = a_job(state=state, crashes=1, taken=isinstance(state, Queued))
    assert again(job, crashed=True).crashes == 2
    assert again(job, crashed=False).crashes == 1


@pytest.mark.parametrize("state", [Queued(), Deferred(LATER, Queued(), "server_failed")])
def test_a_kill_does_not_count_against_what_only_waited(state: State) -> None:
    assert again(a_job(state=state, crashes=1), crashed=True).crashes == 1
    taken = again(a_job(state=state, crashes=1, taken=True), crashed=True)
    assert (taken.crashes, taken.taken) == (2, False)
