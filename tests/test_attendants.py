"""Attendants: one that fails is started again, and the crier tells what is to be told."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from bgremover.attendants import Attendants, Crier, attended
from bgremover.core.job import Quarantined, Saved
from bgremover.core.notice import Condition, Happening, Message
from bgremover.timing import Clock
from tests.fakes import NOON, a_job


class Fragile:
    """Fails at first."""

    name = "fragile"

    def __init__(self) -> None:
        self.runs = 0

    async def run(self) -> None:
        self.runs += 1
        if self.runs < 3:
            raise RuntimeError("a defect")
        await asyncio.Event().wait()


def test_one_that_fails_is_started_again() -> None:
    fragile = Fragile()

    async def scenario() -> None:
        task = asyncio.create_task(attended(fragile, rest=0))
        async with asyncio.timeout(10):
            while fragile.runs < 3:  # noqa: ASYNC110 - the condition is no event
                await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


def test_all_end_with_the_block() -> None:
    fragile = Fragile()
    fragile.runs = 5

    async def scenario() -> set[str]:
        async with Attendants([fragile]):
            await asyncio.sleep(0)
        return {task.get_name() for task in asyncio.all_tasks()}

    assert "fragile" not in asyncio.run(scenario())
    assert fragile.runs == 6


class Times:
    """Two clocks that are set by hand."""

    def __init__(self, wall: float = NOON) -> None:
        self.wall = wall
        self.steady = 0.0

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.steady)

    def after(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


class Town:
    """A crier and what it cries."""

    def __init__(self, *, events: tuple[str, ...], digest_at: str | None = None) -> None:
        self.times = Times()
        self.condition = Condition()
        self.messages: list[Message] = []
        self.happenings: list[Happening] = []
        self.crier = Crier(
            lambda: self.condition,
            self._figures,
            self.times.clock(),
            commands=self.happenings.append,
            targets=[self.messages.append],
            events=events,
            quiet=60,
            digest_at=digest_at,
        )

    async def _figures(self) -> dict[str, float]:
        return {"saved": 7.0}

    def turn(self) -> None:
        asyncio.run(self.crier.turn())


def test_commands_get_each_happening_and_targets_few_messages() -> None:
    town = Town(events=("quarantined",))
    for _ in range(5):
        town.crier.told(a_job(state=Quarantined("empty", "{}")))
        town.crier.told(a_job(state=Saved("a.png", "b", 9)))
    town.turn()
    assert town.messages == []
    town.times.after(10)
    town.turn()
    assert [(one.kind, one.count) for one in town.messages] == [("quarantined", 5)]
    assert len(town.happenings) == 10


def test_a_cut_out_that_was_put_aside_is_for_people_and_not_for_commands() -> None:
    town = Town(events=("saved",))
    doubts = ("nothing_removed: 100 % of the area is kept",)
    for state in (
        Saved("_review/a.png", "b", 9, doubts=doubts),
        Saved("_review/b.png", "b", 9),
        Saved("c.png", "b", 9, doubts=doubts),
        Saved("d.png", "b", 9),
    ):
        town.crier.told(a_job(state=state))
    assert [(one.output, one.detail) for one in town.happenings] == [
        ("_review/b.png", ""),
        ("c.png", doubts[0]),
        ("d.png", ""),
    ]
    town.times.after(10)
    town.turn()
    assert [one.count for one in town.messages] == [4]


def test_a_defect_of_the_crier_does_not_reach_the_work() -> None:
    town = Town(events=("saved",))

    def broken(_happening: Happening) -> None:
        raise RuntimeError("a defect")

    town.crier._commands = broken
    town.crier.told(a_job(state=Saved("a.png", "b", 9)))


def test_a_pause_is_told_once_and_its_end_too() -> None:
    town = Town(events=("paused", "resumed"))
    town.condition = Condition("forbidden", "403")
    town.turn()
    town.turn()
    town.condition = Condition()
    town.turn()
    town.turn()
    assert [one.kind for one in town.messages] == ["paused", "resumed"]
    assert [one.kind for one in town.happenings] == ["paused", "resumed"]


@pytest.fixture
def in_utc() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("in_utc")
def test_the_digest_comes_once_a_day_at_its_time() -> None:
    town = Town(events=("digest",), digest_at="12:30")
    for _ in range(3 * 24):
        town.turn()
        town.times.after(3600)
    assert [(one.first.at - NOON) / 3600 for one in town.messages] == [1, 25, 49]
    assert town.messages[0].first.figures == {"saved": 7.0}
