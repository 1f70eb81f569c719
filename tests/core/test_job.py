"""The states of a job, its only legal moves, and when its way has ended."""

from dataclasses import FrozenInstanceError, replace
from itertools import product
from typing import get_args, get_type_hints

import pytest
from hypothesis import example, given

from bgremover.core import job as job_module
from bgremover.core.errors import Billed
from bgremover.core.job import (
    MOVES,
    Accepted,
    Deferred,
    Fetched,
    Identity,
    Job,
    Paid,
    Quarantined,
    Queued,
    Released,
    Saved,
    State,
    Submitting,
    at_rest,
    finished,
)
from tests.fakes import NOON, RECEIPT, a_job, an_attempt, jobs, states

EVERY: tuple[type[State], ...] = get_args(State)
SENT: tuple[type[State], ...] = (Accepted, Paid, Fetched)
"""What has been sent and may have been paid for."""

EXAMPLES: dict[type[State], State] = {
    Queued: Queued(),
    Submitting: Submitting(7),
    Accepted: Accepted(RECEIPT),
    Paid: Paid(RECEIPT),
    Fetched: Fetched(RECEIPT, "a.png", "5ec4e7", 9),
    Deferred: Deferred(NOON, Queued(), "server_failed"),
    Saved: Saved("a.png", "5ec4e7", 9),
    Quarantined: Quarantined("empty", "{}"),
    Released: Released("vanished"),
}


def reachable(start: type[State]) -> set[type[State]]:
    found: set[type[State]] = set()
    ahead = [start]
    while ahead:
        for state in MOVES[ahead.pop()]:
            if state not in found:
                found.add(state)
                ahead.append(state)
    return found


# --- moves ----------------------------------------------------------------------------------


def test_every_state_has_its_moves_and_every_move_ends_in_a_state() -> None:
    assert set(MOVES) == set(EVERY) == set(EXAMPLES)
    for start, ends in MOVES.items():
        assert set(ends) <= set(EVERY), start
        assert len(set(ends)) == len(ends), start


@pytest.mark.parametrize(
    ("start", "end"), list(product(EVERY, EVERY)), ids=lambda state: state.__name__
)
def test_a_job_makes_the_moves_of_the_table_and_no_other(
    start: type[State], end: type[State]
) -> None:
    job = a_job(state=EXAMPLES[start])
    if end in MOVES[start]:
        assert job.to(EXAMPLES[end]).state == EXAMPLES[end]
    else:
        with pytest.raises(ValueError, match=rf"0a1b2c3d4e5f: {start.__name__.lower()} cannot"):
            job.to(EXAMPLES[end])


def test_a_move_changes_nothing_but_the_state_and_the_count_of_crashes() -> None:
    job = a_job(attempts=(an_attempt(),), faults=1, crashes=2, checked=3)
    moved = job.to(Submitting(7))
    assert replace(moved, state=job.state, crashes=job.crashes) == job


def test_every_state_can_be_come_to_from_the_claim() -> None:
    assert reachable(Queued) == set(EVERY)


@pytest.mark.parametrize("state", EVERY, ids=lambda state: state.__name__)
def test_every_way_comes_to_an_end(state: type[State]) -> None:
    ends = {Saved, Quarantined, Released}
    assert state in ends or reachable(state) & ends


def test_a_released_job_is_over() -> None:
    assert MOVES[Released] == ()


def test_a_call_is_only_made_by_a_job_that_is_queued() -> None:
    assert [state for state in EVERY if Submitting in MOVES[state]] == [Queued]


@pytest.mark.parametrize("state", SENT, ids=lambda state: state.__name__)
def test_what_was_sent_is_never_queued_submitted_or_let_go_by_a_single_move(
    state: type[State],
) -> None:
    assert not {Queued, Submitting, Released} & set(MOVES[state])


def test_what_was_sent_still_comes_to_be_saved() -> None:
    assert all(Saved in reachable(state) for state in SENT)


def test_a_parked_job_can_become_whatever_it_is_to_resume() -> None:
    hints = get_type_hints(Deferred, vars(job_module))
    resumed = set(get_args(hints["resume"]))
    assert resumed <= set(MOVES[Deferred])
    assert {Submitting, Deferred, Released}.isdisjoint(resumed)


# --- rest -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "rests", "ended"),
    [
        (Queued(), False, False),
        (Submitting(7), False, False),
        (Accepted(RECEIPT), False, False),
        (Paid(RECEIPT), False, False),
        (Fetched(RECEIPT, "a.png", "5ec4e7", 9), False, False),
        (Deferred(NOON, Queued(), "server_failed"), True, False),
        (Deferred(NOON, Saved("a.png", "5ec4e7", 9, filed=True), "disk_full"), True, False),
        (Saved("a.png", "5ec4e7", 9), False, False),
        (Saved("a.png", "5ec4e7", 9, filed=True), True, True),
        (Quarantined("empty", "{}"), False, False),
        (Quarantined("empty", "{}", filed=True), True, True),
        (Released("vanished"), True, True),
    ],
    ids=repr,
)
def test_when_a_job_rests_and_when_its_way_has_ended(
    state: State, rests: bool, ended: bool
) -> None:
    assert (at_rest(state), finished(state)) == (rests, ended)


@given(states)
@example(Deferred(NOON, Queued(), "server_failed"))
@example(Released("vanished"))
def test_what_has_ended_rests_and_what_rests_has_ended_or_is_parked(state: State) -> None:
    assert finished(state) <= at_rest(state)
    assert at_rest(state) <= (finished(state) or isinstance(state, Deferred))


@given(states)
@example(Saved("a.png", "5ec4e7", 9, filed=True))
@example(Saved("a.png", "5ec4e7", 9))
def test_no_worker_forgets_a_job_whose_original_is_still_to_be_filed(state: State) -> None:
    if isinstance(state, Saved | Quarantined):
        assert finished(state) is state.filed


# --- the record -----------------------------------------------------------------------------


def test_charges_are_counted_by_what_is_known_of_them() -> None:
    billed = (Billed.YES, Billed.NO, Billed.UNKNOWN, Billed.UNKNOWN, Billed.NO, Billed.NO)
    job = a_job(attempts=tuple(an_attempt(billed=one) for one in billed))
    assert (job.billed_calls, job.unknown_calls) == (1, 2)


@given(jobs)
@example(a_job(attempts=(an_attempt(billed=Billed.YES), an_attempt(billed=Billed.UNKNOWN))))
def test_no_call_is_counted_twice(job: Job) -> None:
    assert 0 <= job.billed_calls + job.unknown_calls <= len(job.attempts)


@pytest.mark.parametrize(
    ("field", "same"),
    [("inode", False), ("size", False), ("mtime_ns", False), ("ctime_ns", True), ("device", True)],
)
def test_a_file_has_the_same_content_unless_its_bytes_may_differ(field: str, same: bool) -> None:
    one = Identity(1, 2, 3, 4, 5)
    other = replace(one, **{field: 99})
    assert one.same_content(other) is same
    assert one != other


def test_a_job_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        a_job().faults = 1  # type: ignore[misc]
