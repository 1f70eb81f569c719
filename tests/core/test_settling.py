"""When a dropped file counts as whole, and how long a cut-off one is waited for."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bgremover.core.job import Identity
from bgremover.core.settling import (
    LONGEST_WAIT,
    Patience,
    Watched,
    cut_off,
    look_later,
    next_sweep,
    settled,
    sighted,
)

PATIENCE = Patience(settle_seconds=2.0, closed_seconds=0.5, incomplete_seconds=600.0)
FILE = Identity(device=1, inode=2, size=1000, mtime_ns=3, ctime_ns=4)
GROWN = replace(FILE, size=2000)

moments = st.floats(min_value=0, max_value=1e7)
knowledge = st.sampled_from([True, False, None])


@st.composite
def patiences(draw: st.DrawFn) -> Patience:
    settle = draw(st.floats(min_value=0, max_value=600))
    closed = draw(st.floats(min_value=0, max_value=settle))
    return Patience(settle, closed, draw(st.floats(min_value=0, max_value=1e5)))


def at(now: float, identity: Identity = FILE, before: Watched | None = None) -> Watched:
    return sighted(before, identity, now, PATIENCE)


def waits(watched: Watched, patience: Patience) -> list[float]:
    """Look at a cut-off file whenever it is due, until patience ends: seconds between looks."""
    now, between = watched.look_at, []
    while (later := cut_off(watched, now, patience)) is not None:
        between.append(later.look_at - now)
        watched, now = later, later.look_at
    return between


# --- settled --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quiet", "closed", "whole", "answer"),
    [
        (1.9, None, None, False),
        (2.0, None, None, True),
        (1.9, True, None, False),
        (2.0, True, None, True),
        (1.9, None, True, False),
        (1.9, True, False, False),
        (0.4, True, True, False),
        (0.5, True, True, True),
        (500.0, False, None, False),
        (500.0, False, True, False),
        (2.0, None, False, True),
    ],
)
def test_a_file_is_settled_by_quiet_and_by_what_is_known_of_it(
    quiet: float, closed: bool | None, whole: bool | None, answer: bool
) -> None:
    assert settled(at(100.0), 100.0 + quiet, PATIENCE, closed=closed, whole=whole) is answer


@given(
    st.lists(st.tuples(st.floats(0, 5), st.booleans()), min_size=1, max_size=12),
    knowledge,
    knowledge,
)
@example([(0.0, False), (5.0, False)], None, None)
def test_what_changed_less_than_settle_seconds_ago_is_never_settled(
    looks: list[tuple[float, bool]], closed: bool | None, whole: bool | None
) -> None:
    now, size, changed, watched = 0.0, 0, 0.0, None
    needed = PATIENCE.closed_seconds if closed and whole else PATIENCE.settle_seconds
    for gap, changes in looks:
        now += gap
        size += changes
        changed = now if changes else changed
        watched = sighted(watched, replace(FILE, size=size), now, PATIENCE)
        if settled(watched, now, PATIENCE, closed=closed, whole=whole):
            assert now >= changed + needed


@given(moments, patiences(), st.none() | st.just(True), knowledge)
@example(0.3, Patience(0.1, 0.1, 600), True, None)
@example(0.3, Patience(0.1, 0.05, 600), True, True)
def test_an_unchanged_file_that_nobody_writes_is_settled_at_its_first_look_or_its_second(
    now: float, patience: Patience, closed: bool | None, whole: bool | None
) -> None:
    first = sighted(None, FILE, now, patience)
    again = sighted(first, FILE, first.look_at, patience)
    early = settled(again, first.look_at, patience, closed=closed, whole=whole)
    second = look_later(again, first.look_at, patience)
    assert early or settled(second, second.look_at, patience, closed=closed, whole=whole)
    assert early or not (closed and whole)


@given(moments, patiences(), st.floats(0, 1e6), knowledge)
def test_what_is_open_for_writing_is_never_settled(
    now: float, patience: Patience, quiet: float, whole: bool | None
) -> None:
    watched = sighted(None, FILE, now, patience)
    assert not settled(watched, now + quiet, patience, closed=False, whole=whole)


def test_it_is_settled_once_the_writer_has_closed_it() -> None:
    assert settled(at(0.0), 500.0, PATIENCE, closed=True, whole=None)


# --- sightings ------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["device", "inode", "size", "mtime_ns", "ctime_ns"])
def test_any_change_begins_the_wait_anew(field: str) -> None:
    changed = replace(FILE, **{field: 99})
    assert at(11.0, changed, before=at(10.0)) == Watched(changed, since=11.0, look_at=11.5)


def test_an_unchanged_file_keeps_what_is_known_of_it() -> None:
    before = Watched(FILE, since=10.0, look_at=60.0, waits=3)
    assert at(30.0, before=before) == before


@pytest.mark.parametrize(
    ("quiet", "since", "look_at"),
    [
        (0.0, 100.0, 100.5),
        (0.4, 99.6, 100.1),
        (0.5, 99.5, 100.0),
        (2.0, 98.0, 100.0),
        (1e9, 100.0 - 1e9, 100.0),
        (-3600.0, 100.0, 100.5),
    ],
)
def test_the_age_of_the_change_time_counts_as_quiet(
    quiet: float, since: float, look_at: float
) -> None:
    first = sighted(None, FILE, 100.0, PATIENCE, quiet=quiet)
    assert (first.since, first.look_at) == (since, look_at)


@given(moments, patiences(), st.floats(-1e6, 1e6))
def test_no_first_look_lies_in_the_past(now: float, patience: Patience, quiet: float) -> None:
    assert sighted(None, FILE, now, patience, quiet=quiet).look_at >= now


# --- the next look --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "look_at"), [(10.1, 10.5), (10.5, 12.0), (11.9, 12.0), (12.0, 14.0), (70, 72)]
)
def test_the_next_look_is_when_it_may_settle_or_else_a_while_later(
    now: float, look_at: float
) -> None:
    assert look_later(at(10.0), now, PATIENCE).look_at == look_at


@given(moments, patiences(), st.floats(0, 1e5))
@example(1.0, Patience(0.0, 0.0, 600.0), 0.0)
def test_a_look_that_is_put_off_lies_in_the_future(
    since: float, patience: Patience, later: float
) -> None:
    watched, now = sighted(None, FILE, since, patience), since + later
    assert look_later(watched, now, patience).look_at > now
    cut = cut_off(watched, now, patience)
    assert cut is None or cut.look_at > now


# --- patience with what is cut off ----------------------------------------------------------


def test_patience_doubles_up_to_a_minute_and_ends_after_incomplete_seconds() -> None:
    between = waits(at(0.0), PATIENCE)
    assert between[:6] == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0]
    assert set(between[5:-1]) == {LONGEST_WAIT}
    assert sum(between) == PATIENCE.incomplete_seconds - PATIENCE.closed_seconds


@given(moments, patiences())
@example(0.0, Patience(2.0, 0.5, 100_000.0))
@example(0.0, Patience(0.0, 0.0, 600.0))
@example(0.3, Patience(0.1, 0.1, 0.7))
def test_patience_grows_and_ends_when_incomplete_seconds_are_over(
    now: float, patience: Patience
) -> None:
    first = sighted(None, FILE, now, patience)
    between = waits(first, patience)
    assert all(wait <= LONGEST_WAIT + 1e-6 for wait in between)
    grown = between[:-1]  # the last one is cut short by the end of patience
    assert all(wait <= later + 1e-6 for wait, later in itertools.pairwise(grown))
    longest = max(patience.incomplete_seconds, first.look_at - first.since)
    assert first.look_at + sum(between) == pytest.approx(first.since + longest)


def test_a_cut_off_file_that_grows_is_given_all_the_time_anew() -> None:
    waited = Watched(FILE, since=0.0, look_at=599.0, waits=9)
    assert cut_off(waited, 600.0, PATIENCE) is None
    grown = at(599.0, GROWN, before=waited)
    assert cut_off(grown, 601.0, PATIENCE) == Watched(GROWN, since=599.0, look_at=603.0, waits=1)


# --- when to sweep again --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "missed", "then"),
    [(300, 0, 300), (300, 1, 5), (5, 3, 5), (5, 0, 10), (10, 0, 20), (160, 0, 300)],
)
def test_missed_events_let_it_sweep_sooner_until_none_are_missed(
    interval: float, missed: int, then: float
) -> None:
    assert next_sweep(interval, 5, 300, missed=missed) == then


def test_where_polling_is_slower_than_sweeping_it_stays_with_sweeping() -> None:
    assert next_sweep(1, 5, 1, missed=1) == 1
