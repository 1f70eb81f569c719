"""Few messages: nothing is left out of them, and none comes too often or too late."""

from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgremover.core.job import Quarantined, Queued, Released, Saved, State
from bgremover.core.notice import (
    GATHER_SECONDS,
    MOST_FILES,
    Condition,
    Desk,
    Happening,
    Kind,
    Message,
    changes,
    due,
    gathered,
    next_moment,
    of_job,
)
from tests.fakes import NOON, a_job

KINDS: tuple[Kind, ...] = get_args(Kind)


def told_by(times: list[tuple[float, Happening]], quiet: float) -> list[tuple[float, Message]]:
    """Every message with its moment, when somebody looks whenever one is due."""
    desk, told = Desk(quiet), list[tuple[float, Message]]()
    for now, happening in [*times, (float("inf"), None)]:
        while (moment := next_moment(desk)) is not None and moment <= now:
            desk, messages = due(desk, moment)
            assert messages
            told += [(moment, message) for message in messages]
        if happening is not None:
            desk = gathered(desk, happening, now)
    return told


def failure(number: int, code: str = "truncated") -> Happening:
    return Happening("quarantined", NOON + number, file=f"{number}.jpg", code=code)


def test_five_hundred_failures_are_one_message() -> None:
    happenings = [
        (number / 100, failure(number, "empty" if number % 5 else "unsafe"))
        for number in range(500)
    ]
    ((at, message),) = told_by(happenings, 300)
    assert at == GATHER_SECONDS
    assert message.count == 500
    assert message.codes == {"unsafe": 100, "empty": 400}
    assert len(message.files) == MOST_FILES
    assert message.title == "bgremover: 500 images quarantined: unsafe 100, empty 400"
    assert message.text.splitlines()[1] == "  0.jpg"
    assert message.text.splitlines()[-1] == "  and 490 more"


def test_what_comes_in_the_quiet_time_is_one_more_message() -> None:
    times = [(0.0, failure(1)), (20.0, failure(2)), (100.0, failure(3)), (311.0, failure(4))]
    assert [(at, one.count) for at, one in told_by(times, 300)] == [(10, 1), (310, 2), (610, 1)]


def test_a_pause_is_told_at_once_and_a_flapping_one_seldom() -> None:
    pause = Happening("paused", NOON, code="server_failed", detail="503")
    times = [(float(number), pause) for number in range(100)]
    told = told_by(times, 300)
    assert [(at, one.count) for at, one in told] == [(0, 1), (300, 99)]
    assert told[0][1].title == "bgremover: paused: server failed (503)"


def test_the_newest_reason_of_a_pause_is_told() -> None:
    times = [
        (0.0, Happening("paused", NOON, code="forbidden")),
        (1.0, Happening("paused", NOON, code="server_failed")),
        (2.0, Happening("paused", NOON, code="key_refused", hint="Put a valid key there.")),
    ]
    assert told_by(times, 60)[1][1].text == "paused: key refused\nPut a valid key there."


happenings = st.builds(
    Happening,
    kind=st.sampled_from(KINDS),
    at=st.just(NOON),
    file=st.sampled_from(["", "a.jpg", "b.jpg"]),
    code=st.sampled_from(["", "empty", "unsafe"]),
)
floods = st.lists(st.tuples(st.floats(0, 2000), happenings), max_size=60).map(
    lambda found: sorted(found, key=lambda one: one[0])
)


@given(floods, st.floats(0, 1000))
def test_nothing_is_left_out_and_nothing_comes_too_often_or_too_late(
    flood: list[tuple[float, Happening]], quiet: float
) -> None:
    told = told_by(flood, quiet)
    for kind in KINDS:
        began = [at for at, one in flood if one.kind == kind]
        ends = [(at, message) for at, message in told if message.kind == kind]
        assert sum(message.count for _, message in ends) == len(began)
        assert all(later - earlier >= quiet - 1e-6 for (earlier, _), (later, _) in pairwise(ends))
        if began:
            assert ends[-1][0] <= began[-1] + quiet + GATHER_SECONDS + 1e-6


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (Saved("a.png", "b", 9), "saved"),
        (Saved("a.png", "b", 9, reused=True), "saved"),
        (Quarantined("empty", "{}"), "quarantined"),
        (Released("vanished"), None),
        (Queued(), None),
    ],
)
def test_what_a_job_means_for_others(state: State, kind: str | None) -> None:
    happening = of_job(a_job(path="odd\udce9.jpg", state=state), NOON)
    assert (happening.kind if happening else None) == kind
    if happening is not None:
        happening.file.encode()  # it can be sent


WELL = Condition()
PAUSED = Condition("forbidden", "403 at https://a.example/x?sig=5ec4e7", "Look.")
LOST = Condition("folder_lost", lost=True)
BUDGET = Condition("budget_reached")


@pytest.mark.parametrize(
    ("before", "now", "kinds"),
    [
        (WELL, WELL, []),
        (WELL, PAUSED, ["paused"]),
        (PAUSED, PAUSED, []),
        (PAUSED, WELL, ["resumed"]),
        (WELL, BUDGET, ["budget"]),
        (PAUSED, BUDGET, ["budget"]),
        (BUDGET, PAUSED, ["paused"]),
        (WELL, LOST, ["lost"]),
        (LOST, WELL, ["restored"]),
        (LOST, PAUSED, ["paused", "restored"]),
        (PAUSED, LOST, ["lost"]),
    ],
)
def test_what_has_changed_is_told(before: Condition, now: Condition, kinds: list[Kind]) -> None:
    assert [one.kind for one in changes(before, now, NOON)] == kinds


def test_no_signed_link_is_told() -> None:
    (happening,) = changes(WELL, PAUSED, NOON)
    assert "5ec4e7" not in happening.detail
    assert happening.hint == "Look."


def test_every_kind_has_a_sentence_and_a_document() -> None:
    titles = []
    for kind in KINDS:
        happening = Happening(kind, NOON, code="empty", figures={"saved": 1234, "month_usd": 2.5})
        ((_, message),) = told_by([(0.0, happening)], 0)
        document = message.document()
        assert document["event"] == kind
        assert document["first_at"] == "2026-01-01T12:00:00Z"
        titles.append(document["title"])
    assert all(title.startswith("bgremover: ") for title in titles)
    assert len(set(titles)) == len(KINDS) - 1  # a budget that is reached is a pause
    assert titles[-1].endswith("$2.50 this month")
