"""What lies in the inbox, what changed, what may be claimed.

Events are hints, the folder is the truth: hinted paths are looked at, and a sweep at the start,
every `rescan_seconds` and after any doubt finds the rest. Only `ROOM` files are watched at a time
until they settle; the others simply lie in the inbox and are found by a later sweep.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Iterable

import structlog

from bgremover.core.errors import LocalFault
from bgremover.core.job import Identity
from bgremover.core.naming import printable
from bgremover.core.settling import Patience, Watched, cut_off, look_later, settled, sighted
from bgremover.edges.inbox import Inbox, Sighting
from bgremover.timing import Bell, Clock

log = structlog.get_logger()

ROOM = 4096
HINTS = 20_000
LEAST_SWEEP_GAP = 1.0


class Intake:
    """Watches files until they are settled and offers them for claiming.

    Args:
        inbox: The folder.
        patience: When a file counts as settled.
        clock: Both clocks.
        claim: Called with a settled file; says whether it was taken.
        sweep_seconds: How often the folder is swept.
        trust_ctime: Whether change times are of this machine's clock: local file systems only.
    """

    def __init__(
        self,
        inbox: Inbox,
        patience: Patience,
        clock: Clock,
        claim: Callable[[Sighting], bool],
        *,
        sweep_seconds: float,
        trust_ctime: bool,
    ) -> None:
        self.bell = Bell()
        self._inbox = inbox
        self._patience = patience
        self._sweep_seconds = sweep_seconds
        self._trust_ctime = trust_ctime
        self._clock = clock
        self._claim = claim
        self._watched: dict[str, Watched] = {}
        self._due: list[tuple[float, str]] = []
        self._settled: deque[Sighting] = deque()
        self._claimed: dict[str, Watched | None] = {}
        self._done: set[int] = set()
        self._hints: dict[str, None] = {}
        self._sweep_at = float("-inf")
        self._last_sweep = float("-inf")
        self._more = True
        self._told: set[str] = set()
        self.folders = 0

    # --- what others tell -------------------------------------------------------------------

    def set_sweep_seconds(self, seconds: float) -> None:
        """Sweep at least this often from now on."""
        if seconds != self._sweep_seconds:
            self._sweep_seconds = seconds
            self._sweep_at = min(self._sweep_at, self._last_sweep + seconds)
            self.bell.ring()

    def hint(self, path: str) -> None:
        """Something happened to `path`: look at it."""
        if len(self._hints) < HINTS:
            self._hints[path] = None
        else:
            self._wish_sweep()
        self.bell.ring()

    def doubt(self, _reason: str) -> None:
        """Events may have been lost: sweep."""
        self._wish_sweep()
        self.bell.ring()

    def _wish_sweep(self) -> None:
        self._sweep_at = min(self._sweep_at, self._last_sweep + LEAST_SWEEP_GAP)

    def resume(self, path: str) -> None:
        """Take note that a job from an earlier run has claimed `path`."""
        self._claimed[path] = None

    def keep_out(self, path: str, identity: Identity) -> None:
        """Take note that this very file needs nothing any more, though it stays in the inbox."""
        self._done.add(_fingerprint(path, identity))

    def let_go(self, path: str) -> None:
        """Forget the claim of `path`; whatever lies there now is looked at again."""
        self._claimed.pop(path, None)
        self.hint(path)

    def finished(self, path: str) -> None:
        """Forget the claim of `path`, which is no longer in the inbox or is kept out."""
        self._claimed.pop(path, None)
        self.bell.ring()

    def wait_longer(self, path: str, identity: Identity) -> bool:
        """Take a claimed file back that turned out to be cut off.

        Returns:
            False when patience with it is over; it stays claimed then.
        """
        now = self._clock.steady()
        watched = self._claimed.get(path) or self._sighted(None, Sighting(path, identity), now)
        later = cut_off(watched, now, self._patience)
        if later is None:
            return False
        self._claimed.pop(path, None)
        self._watch(path, later)
        self.bell.ring()
        return True

    # --- what is asked ----------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many files are known that wait to settle or to be claimed."""
        return len(self._watched) + len(self._settled)

    @property
    def idle(self) -> bool:
        """Whether nothing is left but files that are waited for because they are cut off."""
        patient = all(watched.waits for watched in self._watched.values())
        return patient and not (self._more or self._hints or self._settled)

    @property
    def left(self) -> list[str]:
        """The files that are waited for because they are cut off or open for writing."""
        return sorted(self._watched)

    # --- the loop ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Look, sweep and offer until cancelled."""
        while True:
            await self.turn()
            await self.bell.wait(self._next_moment() - self._clock.steady())

    async def turn(self) -> None:
        """Do once all that is due now."""
        self._offer()
        await self._look_at_hints()
        await self._look_at_due()
        self._offer()
        if self._sweep_is_due():
            await self._sweep()

    def _next_moment(self) -> float:
        moments = [self._sweep_at]
        if self._more and self._has_room():
            moments.append(self._last_sweep + LEAST_SWEEP_GAP)
        if self._due:
            moments.append(self._due[0][0])
        return min(moments)

    def _has_room(self) -> bool:
        return self.waiting < ROOM // 2

    def _sweep_is_due(self) -> bool:
        now = self._clock.steady()
        early = now < self._last_sweep + LEAST_SWEEP_GAP
        return not early and (now >= self._sweep_at or (self._more and self._has_room()))

    async def _sweep(self) -> None:
        room = max(0, ROOM - self.waiting)
        try:
            sweep = await asyncio.to_thread(self._inbox.sweep, self._is_known, room)
        except LocalFault:
            # The lookout sees it too, and pauses the line. Nothing counts as deleted.
            self._swept(more=True)
            return
        self.folders = sweep.folders
        self._tell_oddities(sweep.odd)
        self._notice(sweep.sightings)
        self._swept(more=sweep.more)

    def _swept(self, *, more: bool) -> None:
        self._more = more
        self._last_sweep = self._clock.steady()
        self._sweep_at = self._last_sweep + self._sweep_seconds

    def _is_known(self, path: str, identity: Identity) -> bool:
        return (
            path in self._watched
            or path in self._claimed
            or _fingerprint(path, identity) in self._done
        )

    def _tell_oddities(self, odd: Iterable[tuple[str, str]]) -> None:
        for path, why in odd:
            if path not in self._told:
                self._told.add(path)
                log.warning("image.ignored", file=printable(path), why=why)

    async def _look_at_hints(self) -> None:
        if not self._hints or self.waiting >= ROOM:
            self._more = self._more or bool(self._hints)
            self._hints.clear()
            return
        hints, self._hints = self._hints, {}
        sightings = await asyncio.to_thread(self._inbox.look, tuple(hints))
        self._notice(one for one in sightings if not self._is_known(one.path, one.identity))

    def _notice(self, sightings: Iterable[Sighting]) -> None:
        now = self._clock.steady()
        for one in sightings:
            self._watch(one.path, self._sighted(self._watched.get(one.path), one, now))

    def _sighted(self, before: Watched | None, one: Sighting, now: float) -> Watched:
        age = self._clock.wall() - one.identity.ctime_ns / 1e9 if self._trust_ctime else 0.0
        return sighted(before, one.identity, now, self._patience, quiet=age)

    def _watch(self, path: str, watched: Watched) -> None:
        self._watched[path] = watched
        heapq.heappush(self._due, (watched.look_at, path))

    async def _look_at_due(self) -> None:
        due = self._take_due()
        if not due:
            return
        sightings = await asyncio.to_thread(self._inbox.look, tuple(due), leases=True)
        found = {one.path: one for one in sightings}
        now = self._clock.steady()
        for path in due:
            watched = self._watched.pop(path, None)
            if watched is not None and path in found:
                self._consider(watched, found[path], now)

    def _take_due(self) -> list[str]:
        now, due = self._clock.steady(), dict[str, None]()
        while self._due and self._due[0][0] <= now:
            moment, path = heapq.heappop(self._due)
            watched = self._watched.get(path)
            if watched is not None and watched.look_at == moment:
                due[path] = None
        return list(due)

    def _consider(self, watched: Watched, one: Sighting, now: float) -> None:
        watched = self._sighted(watched, one, now)
        if settled(watched, now, self._patience, closed=one.closed, whole=None):
            self._settled.append(one)
            self._claimed[one.path] = watched
        else:
            self._watch(one.path, look_later(watched, now, self._patience))

    def _offer(self) -> None:
        while self._settled and self._claim(self._settled[0]):
            self._settled.popleft()


def _fingerprint(path: str, identity: Identity) -> int:
    return hash((path, identity.inode, identity.size, identity.mtime_ns, identity.ctime_ns))
