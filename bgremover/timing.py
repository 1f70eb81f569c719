"""Clocks as parameters, and the bell: the one thing in the program that is waited for."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from bgremover.core.budget import Period


@dataclass(frozen=True, slots=True)
class Clock:
    """The two clocks: `wall` for what is shown or stored, `steady` for what is waited for.

    Both give seconds; only `steady` never jumps.
    """

    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = time.monotonic

    def local_day(self) -> str:
        """Return today's local date as YYYY-MM-DD."""
        return time.strftime("%Y-%m-%d", time.localtime(self.wall()))

    def until_next(self, period: Period) -> float:
        """Return the seconds until the next local day or month begins."""
        today = time.localtime(self.wall())
        if period == "day":
            start = (today.tm_year, today.tm_mon, today.tm_mday + 1)
        else:
            start = (today.tm_year, today.tm_mon + 1, 1)
        # mktime carries over day 32 and month 13, and knows about summer time (-1).
        return max(1.0, time.mktime((*start, 0, 0, 0, 0, 0, -1)) - self.wall())


class Bell:
    """Rung by whoever has news; waited for by the one loop that acts on them."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake the waiter; rings while nobody waits are remembered as one."""
        self._rung.set()

    async def wait(self, seconds: float | None) -> None:
        """Wait for a ring, at most `seconds` (None: without end)."""
        if seconds is None or seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._rung.wait()
        else:
            await asyncio.sleep(0)  # the others have their turn even where every moment is over
        self._rung.clear()


class Progress:
    """When a step last moved: when it began, or came to its turn where others work too.

    One that waits for its turn does not hang: if anybody does, it is one of those before it.

    Args:
        steady: The steady clock.
    """

    def __init__(self, steady: Callable[[], float]) -> None:
        self._steady = steady
        self._moved: float | None = steady()

    def still(self) -> float:
        """Return the seconds since it moved; 0 while it waits for its turn."""
        moved = self._moved
        return 0.0 if moved is None else self._steady() - moved

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait for a turn; it is there at the end."""
        self._moved = None
        try:
            yield
        finally:
            self._moved = self._steady()


STEP: ContextVar[Progress | None] = ContextVar("step", default=None)
"""The progress of the step that runs here, if one does."""


def waiting() -> contextlib.AbstractContextManager[None]:
    """Return what tells the step that runs here, if one does, that it waits for its turn."""
    step = STEP.get()
    return contextlib.nullcontext() if step is None else step.waiting()
