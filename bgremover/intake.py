"""What lies in the inbox, what changed, what may be claimed.

Events are hints, the folder is the truth: hinted paths are looked at, and a sweep at the start,
every `rescan_seconds` and after any doubt finds the rest. Only `ROOM` files are watched at a time
until they settle; the others simply lie in the inbox, are counted, and are found by a later sweep.

What a sweep finds although an event should have told of it was missed. That is counted, and the
next sweeps come sooner.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

from bgremover.core.errors import LocalFault
from bgremover.core.job import Identity, Kept
from bgremover.core.naming import printable
from bgremover.core.settling import (
    Patience,
    Watched,
    cut_off,
    look_later,
    next_sweep,
    settled,
    sighted,
)
from bgremover.core.terms import FILE
from bgremover.edges.inbox import Inbox, Sighting, Sweep
from bgremover.timing import Bell, Clock

log = structlog.get_logger()

ROOM = 4096
HINTS = 20_000
LEAST_SWEEP_GAP = 1.0
SWEEP_SHARE = 1.0
"""How many times as long as it took a sweep is waited for until the next one, at least."""
EVENT_SECONDS = 1.0
"""How long an event may be under way; a file that is older and was not told of was missed."""

EVERYTHING = ("",)


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often is swept, in seconds.

    Args:
        sweep_seconds: Between two sweeps of the whole inbox, where events can be trusted.
        poll_seconds: The same after events were missed, and where there are none.
        polled: The folders where there are none, as "nas/"; "" is the whole inbox.
        events: Whether anybody watches.
    """

    sweep_seconds: float
    poll_seconds: float
    polled: tuple[str, ...] = ()
    events: bool = False

    @property
    def longest(self) -> float:
        """Seconds between two sweeps of the whole inbox, at most."""
        return self.shortest if "" in self.polled else self.sweep_seconds

    @property
    def shortest(self) -> float:
        """Seconds between two sweeps, at least."""
        return min(self.poll_seconds, self.sweep_seconds)


class Intake:
    """Watches files until they are settled and offers them for claiming.

    Args:
        inbox: The folder.
        patience: When a file counts as settled.
        clock: Both clocks.
        claim: Called with a settled file; says whether it was taken.
        rhythm: How often the folder is swept.
        trust_ctime: Whether change times are of this machine's clock: local file systems only. May
            be set anew: a share may be mounted later.
    """

    def __init__(
        self,
        inbox: Inbox,
        patience: Patience,
        clock: Clock,
        claim: Callable[[Sighting], bool],
        *,
        rhythm: Rhythm,
        trust_ctime: bool,
    ) -> None:
        self.bell = Bell()
        self._inbox = inbox
        self._patience = patience
        self._rhythm = rhythm
        self.trust_ctime = trust_ctime
        self._clock = clock
        self._claim = claim
        self._watched: dict[str, Watched] = {}
        self._due: list[tuple[float, str]] = []
        self._settled: deque[Sighting] = deque()
        self._claimed: dict[str, Watched | None] = {}
        self._done: set[int] = set()
        self._hints: dict[str, None] = {}
        self._interval = rhythm.longest
        self._sweep_at = float("-inf")
        self._poll_at = float("inf")
        self._last_sweep = float("-inf")
        self._ended = clock.steady()
        self._more = True
        self._all_seen = False
        self._wished = False
        self._told: dict[str, str] = {}
        self.folders = 0
        self.lying = 0
        self.held = 0
        self.sweeps = 0
        self.missed = 0
        self.last_sweep_seconds = 0.0

    # --- what others tell -------------------------------------------------------------------

    def set_rhythm(self, rhythm: Rhythm) -> None:
        """Sweep this often from now on: the watching has changed, or begun anew."""
        # What came while nobody watched was not missed: no event should have told of it.
        self._all_seen = False
        self._rhythm = rhythm
        self._interval = min(self._interval, rhythm.longest)
        self._sweep_at = min(self._sweep_at, self._last_sweep + self._interval)
        self._set_poll()
        self.bell.ring()

    def hint(self, path: str) -> None:
        """Something happened to `path`: look at it."""
        if path.rpartition("/")[2] == FILE:
            self._unsure()  # other files may count now
        elif len(self._hints) < HINTS:
            self._hints[path] = None
        else:
            self._unsure()
        self.bell.ring()

    def doubt(self, _reason: str) -> None:
        """Events may have been lost: sweep."""
        self._wish_sweep()
        self.bell.ring()

    def _unsure(self) -> None:
        self._all_seen = False
        self._wish_sweep()

    def _wish_sweep(self) -> None:
        self._wished = True
        self._sweep_at = min(self._sweep_at, self._last_sweep + self._gap)

    @property
    def _gap(self) -> float:
        # Of a million files, or on a slow share, a sweep takes minutes: doubts must not make it
        # sweep without end.
        return max(LEAST_SWEEP_GAP, SWEEP_SHARE * self.last_sweep_seconds)

    def resume(self, path: str) -> None:
        """Take note that a job from an earlier run has claimed `path`."""
        self._claimed[path] = None

    def keep_out(self, path: str, identity: Identity) -> None:
        """Take note that this very file needs nothing any more, though it stays in the inbox."""
        self._done.add(_fingerprint(path, identity))

    async def keep_out_own(self, those: Sequence[Kept]) -> None:
        """Take note of originals of earlier runs that their folders keep by their own wish.

        The others that stayed are looked at again: what kept them there may be over.
        """
        kept = await asyncio.to_thread(self._inbox.keeping, [one.path for one in those])
        for one in those:
            if one.path in kept:
                self.keep_out(one.path, one.identity)

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
        return self._held + self.lying

    @property
    def _held(self) -> int:
        return len(self._watched) + len(self._settled)

    @property
    def oldest_waiting_seconds(self) -> float:
        """For how long the file that is watched longest has been unchanged, in seconds."""
        claims = (self._claimed.get(one.path) for one in self._settled)
        since = [one.since for one in (*self._watched.values(), *claims) if one is not None]
        return max(0.0, self._clock.steady() - min(since)) if since else 0.0

    @property
    def sweep_seconds(self) -> float:
        """The time between two sweeps of the whole inbox as it is now, in seconds."""
        return self._interval

    @property
    def sweep_age(self) -> float:
        """Seconds since the last sweep of the whole inbox ended, or since the start."""
        return self._clock.steady() - self._ended

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
        elif self._clock.steady() >= self._poll_at:
            await self._poll()

    def _next_moment(self) -> float:
        # Not before the gap is over: a moment that has passed would be waited for without end.
        moments = [max(self._sweep_at, self._last_sweep + self._gap), self._poll_at]
        if self._more and self._has_room():
            moments.append(self._last_sweep + self._gap)
        if self._due:
            moments.append(self._due[0][0])
        return min(moments)

    def _has_room(self) -> bool:
        return self._held < ROOM // 2

    def _sweep_is_due(self) -> bool:
        now = self._clock.steady()
        early = now < self._last_sweep + self._gap
        return not early and (now >= self._sweep_at or (self._more and self._has_room()))

    async def _sweep(self) -> None:
        began, wall = self._clock.steady(), self._clock.wall()
        self._wished = False
        sweep = await self._swept(EVERYTHING)
        now = self._clock.steady()
        if sweep is None:
            # The lookout sees it too, and pauses the line. Nothing counts as deleted.
            self._more, self._all_seen = True, False
        else:
            self._count_missed(sweep, wall)
            self.folders, self.lying, self._more = sweep.folders, sweep.more, bool(sweep.more)
            self._all_seen = not (sweep.more or self._wished)
            self.held = sweep.held
            self.sweeps += 1
        self.last_sweep_seconds = now - began
        self._last_sweep = self._ended = now
        # What was doubted meanwhile may lie where it had swept already.
        self._sweep_at = now + (self._gap if self._wished else self._interval)
        self._set_poll()

    async def _poll(self) -> None:
        """Sweep the folders where there are no events; the others are left to the events."""
        sweep = await self._swept(self._rhythm.polled)
        self._more = self._more or bool(sweep and sweep.more)
        self._set_poll()

    def _set_poll(self) -> None:
        polls = self._rhythm.polled and "" not in self._rhythm.polled
        self._poll_at = self._clock.steady() + self._rhythm.poll_seconds if polls else float("inf")

    async def _swept(self, folders: tuple[str, ...]) -> Sweep | None:
        room = max(0, ROOM - self._held)
        try:
            sweep = await asyncio.to_thread(self._inbox.sweep, self._is_known, room, folders)
        except LocalFault:
            return None
        self._tell_oddities(sweep.odd)
        self._notice(sweep.sightings)
        return sweep

    def _count_missed(self, sweep: Sweep, began: float) -> None:
        missed = sum(self._was_missed(one, began) for one in sweep.sightings)
        before, rhythm = self._interval, self._rhythm
        self._interval = next_sweep(before, rhythm.shortest, rhythm.longest, missed=missed)
        self.missed += missed
        if missed:
            log.warning("watch.missed", files=missed, all=self.missed, sweep_seconds=self._interval)

    def _was_missed(self, one: Sighting, began: float) -> bool:
        """Tell whether an event should have told of a file that a sweep found; `began` is wall."""
        # Nothing else was left over from the last sweep: it came since, by whatever way.
        if not self._all_seen or not self._is_told_of(one.path) or one.path in self._hints:
            return False
        return one.identity.ctime_ns / 1e9 < began - EVENT_SECONDS

    def _is_told_of(self, path: str) -> bool:
        told = self._rhythm.events and self.trust_ctime
        return told and not any(path.startswith(folder) for folder in self._rhythm.polled)

    def _is_known(self, path: str, identity: Identity) -> bool:
        return (
            path in self._watched
            or path in self._claimed
            or _fingerprint(path, identity) in self._done
        )

    def _tell_oddities(self, odd: Iterable[tuple[str, str]]) -> None:
        for path, why in odd:
            if self._told.get(path) != why:
                self._told[path] = why
                log.warning("image.ignored", file=printable(path), why=why)

    async def _look_at_hints(self) -> None:
        if not self._hints:
            return
        room = max(0, ROOM - self._held)
        hints, self._hints = list(self._hints), {}
        if len(hints) > room:
            del hints[room:]
            self._more = True
            self._unsure()
        sightings = await asyncio.to_thread(self._inbox.look, tuple(hints))
        self._notice(one for one in sightings if not self._is_known(one.path, one.identity))

    def _notice(self, sightings: Iterable[Sighting]) -> None:
        now = self._clock.steady()
        for one in sightings:
            self._watch(one.path, self._sighted(self._watched.get(one.path), one, now))

    def _sighted(self, before: Watched | None, one: Sighting, now: float) -> Watched:
        age = self._clock.wall() - one.identity.ctime_ns / 1e9 if self.trust_ctime else 0.0
        return sighted(before, one.identity, now, self._patience, quiet=age)

    def _watch(self, path: str, watched: Watched) -> None:
        self._watched[path] = watched
        heapq.heappush(self._due, (watched.look_at, path))

    async def _look_at_due(self) -> None:
        due = self._take_due()
        if not due:
            return
        began = self._clock.steady()
        sightings = await asyncio.to_thread(self._inbox.look, tuple(due), leases=True)
        found = {one.path: one for one in sightings}
        for path in due:
            watched = self._watched.pop(path, None)
            if watched is not None and path in found:
                self._consider(watched, found[path], began)

    def _take_due(self) -> list[str]:
        now, due = self._clock.steady(), dict[str, None]()
        while self._due and self._due[0][0] <= now:
            moment, path = heapq.heappop(self._due)
            watched = self._watched.get(path)
            if watched is not None and watched.look_at == moment:
                due[path] = None
        return list(due)

    def _consider(self, watched: Watched, one: Sighting, began: float) -> None:
        now = self._clock.steady()
        watched = self._sighted(watched, one, now)
        # It was looked at between the two moments: it is unchanged until the first one at least.
        if settled(watched, began, self._patience, closed=one.closed, whole=one.whole):
            self._settled.append(one)
            self._claimed[one.path] = watched
        else:
            self._watch(one.path, look_later(watched, now, self._patience))

    def _offer(self) -> None:
        while self._settled and self._claim(self._settled[0]):
            self._settled.popleft()


def _fingerprint(path: str, identity: Identity) -> int:
    return hash((path, identity.inode, identity.size, identity.mtime_ns, identity.ctime_ns))
