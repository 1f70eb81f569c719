"""The oldest goes first, and never more than has to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgremover.core.retention import DAY, Kept, Policy, expired

NOW = 1000 * DAY


def a_file(days: float, size: int = 10) -> Kept:
    return Kept(f"{days}.jpg", size, 1, NOW - days * DAY, "job")


FILES = [a_file(3), a_file(1), a_file(30), a_file(10), a_file(-2)]


@pytest.mark.parametrize(
    ("policy", "ages"),
    [
        (Policy(), []),
        (Policy(days=5), [30, 10]),
        (Policy(days=3), [30, 10]),
        (Policy(files=2), [30, 10, 3]),
        (Policy(files=0), [30, 10, 3, 1, -2]),
        (Policy(size=35), [30, 10]),
        (Policy(days=20, files=4), [30]),
    ],
)
def test_what_is_removed(policy: Policy, ages: list[float]) -> None:
    assert [one.name for one in expired(FILES, policy, NOW)] == [f"{age}.jpg" for age in ages]


files = st.lists(
    st.builds(
        Kept,
        name=st.text("abc", min_size=1, max_size=4),
        size=st.integers(0, 100),
        mtime_ns=st.just(1),
        at=st.floats(0, 2 * NOW),
        job=st.uuids().map(str),
    )
)
limits = st.builds(
    Policy,
    days=st.none() | st.floats(0.1, 1000),
    files=st.none() | st.integers(0, 20),
    size=st.none() | st.integers(0, 1000),
)


@given(files, limits)
def test_what_stays_is_within_the_limits_and_newer(kept: list[Kept], policy: Policy) -> None:
    gone = expired(kept, policy, NOW)
    stays = [one for one in kept if one not in gone]
    assert len(gone) + len(stays) == len(kept)
    assert policy.files is None or len(stays) <= policy.files
    assert policy.size is None or sum(one.size for one in stays) <= policy.size
    assert policy.days is None or all(NOW - one.at <= policy.days * DAY for one in stays)
    assert all(old.at <= new.at for old in gone for new in stays)
    assert gone == sorted(gone, key=lambda one: (one.at, one.name))
    assert gone == [] or not policy.keeps_all


@given(files, st.integers(0, 20))
def test_no_more_go_than_have_to(kept: list[Kept], most: int) -> None:
    assert len(expired(kept, Policy(files=most), NOW)) == max(0, len(kept) - most)
