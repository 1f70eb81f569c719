"""Is the daemon well? A table, and the law that only what is told makes it ill."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgremover.core.health import LEAST_FREE, Step, Vitals, ailments

WELL = Vitals(
    watching=None,
    look_age=5.0,
    sweep_age=300.0,
    sweep_seconds=300.0,
    steps=(Step("send of a.jpg", 250.0, 400.0),),
    pause=None,
    free={"outbox": 10**9, "state": None},
)


def test_one_that_works_is_well() -> None:
    assert ailments(WELL) == []


@pytest.mark.parametrize("reason", ["payment_required", "budget_reached", "server_failed"])
def test_a_pause_is_no_ailment(reason: str) -> None:
    assert ailments(replace(WELL, pause=reason)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"watching": "the inbox is lost"}, "the inbox is lost"),
        ({"look_age": 61.0}, "nobody has looked at the inbox for 61 s"),
        (
            {"sweep_age": 721.0},
            "the last sweep of the inbox is 721 s old, and one is due every 300 s",
        ),
        (
            {"sweep_age": 132.0, "sweep_seconds": 5.0},
            "the last sweep of the inbox is 132 s old, and one is due every 5 s",
        ),
        (
            {"steps": (Step("send of a.jpg", 401.0, 400.0),)},
            "the step send of a.jpg has not moved for 401 s",
        ),
        (
            {"steps": (Step("one", 401.0, 400.0), Step("two", 700.0, 600.0), Step("x", 0, 1))},
            "the step two has not moved for 700 s, and 1 more",
        ),
        ({"pause": "disk_full"}, "the disk is full"),
        (
            {"pause": "disk_full", "free": {"outbox": LEAST_FREE - 1}},
            "the disk of the outbox is full (15 MB free)",
        ),
        ({"free": {"state": 0}}, "the disk of the state is full (0 MB free)"),
    ],
)
def test_what_is_wrong_is_told(changes: dict[str, Any], words: str) -> None:
    assert ailments(replace(WELL, **changes)) == [words]


def test_all_that_is_wrong_is_told_and_the_watching_first() -> None:
    ill = replace(WELL, watching="it does not watch", look_age=99.0, pause="disk_full")
    assert ailments(ill) == [
        "it does not watch",
        "nobody has looked at the inbox for 99 s",
        "the disk is full",
    ]


@given(
    look=st.floats(0, 60),
    sweep=st.floats(0, 720),
    ages=st.lists(st.floats(0, 400)),
    free=st.none() | st.integers(min_value=LEAST_FREE),
    pause=st.none() | st.sampled_from(["forbidden", "no_permission", "unreachable"]),
)
def test_what_is_within_its_limits_is_well(
    look: float, sweep: float, ages: list[float], free: int | None, pause: str | None
) -> None:
    steps = tuple(Step("a step", age, 400.0) for age in ages)
    vitals = Vitals(None, look, sweep, 300.0, steps, pause, {"outbox": free})
    assert ailments(vitals) == []
