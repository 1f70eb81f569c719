"""Counts are what was told, no more and no less."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgremover.core.job import (
    Fetched,
    Job,
    Paid,
    Picture,
    Quarantined,
    Queued,
    Released,
    Saved,
    State,
)
from bgremover.core.observed import BUCKETS, PHASES, Histogram, Observed, phase
from tests.fakes import RECEIPT, a_job, an_attempt, jobs

PICTURE = Picture("a" * 64, "JPEG", 96, 72)


@pytest.mark.parametrize(
    ("state", "name"),
    [
        (Queued(), "call"),
        (Paid(RECEIPT), "fetch"),
        (Fetched(RECEIPT, "a.png", "b", 9), "publish"),
        (Saved("a.png", "b", 9), "file"),
        (Quarantined("empty", "{}"), "quarantine"),
    ],
)
def test_a_step_is_called_by_the_state_it_begins_in(state: State, name: str) -> None:
    assert phase(a_job(state=state, picture=PICTURE)) == name


def test_a_picture_that_was_not_looked_at_is_inspected() -> None:
    assert phase(a_job()) == "inspect"


@given(jobs)
def test_every_job_has_a_phase(job: Job) -> None:
    assert phase(job) in PHASES


def test_a_step_counts_its_time_its_calls_and_its_fault() -> None:
    observed, job = Observed(), a_job(picture=PICTURE, attempts=(an_attempt(),))
    observed.began(job, 10.0, lambda: 3.0)
    assert [(one.phase, one.still()) for one in observed.under_way.values()] == [("call", 3.0)]
    calls = (*job.attempts, an_attempt(number=2, status=None, outcome="no_usable_answer"))
    observed.ended(job, replace(job, attempts=calls), "no_usable_answer", 12.0)
    assert observed.under_way == {}
    assert observed.calls == {("none", "no_usable_answer"): 1}
    assert observed.faults == {"no_usable_answer": 1}
    assert observed.phases["call"].seconds == 2.0


def test_what_became_of_images_is_counted() -> None:
    observed = Observed()
    ends = (
        Saved("a.png", "b", 9),
        Saved("b.png", "b", 9, reused=True),
        Quarantined("empty", "{}"),
        Quarantined("empty", "{}"),
        Released("vanished"),
        Queued(),
    )
    for state in ends:
        observed.rested(a_job(state=state))
    assert observed.images == {"saved": 1, "reused": 1, "quarantined": 2, "released": 1}
    assert observed.failures == {"empty": 2}


@given(st.lists(st.floats(0, 1000)))
def test_a_histogram_counts_each_up_to_its_bound(times: list[float]) -> None:
    histogram = Histogram()
    for seconds in times:
        histogram.add(seconds)
    told = dict(histogram.cumulated())
    assert [*told] == [*BUCKETS, float("inf")]
    assert all(told[bound] == sum(one <= bound for one in times) for bound in told)
    assert histogram.seconds == pytest.approx(sum(times))
