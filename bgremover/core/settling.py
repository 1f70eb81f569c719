"""Is a dropped file whole? Sightings in, answer out.

A file is settled when nothing about it has changed for `settle_seconds` and nobody is known to
have it open for writing. A file that is settled but cut off is looked at again with growing
patience; only one that stayed cut off for `incomplete_seconds` is given up on.
All moments are seconds of one monotonic clock.
"""

from dataclasses import dataclass, replace

from bgremover.core.job import Identity

LEAST_WAIT = 0.1
"""Seconds until a look that is put off, at least: with no `settle_seconds` too."""

LONGEST_WAIT = 60.0
"""Seconds between two looks at a file that is still cut off, at most."""

_MOST_DOUBLINGS = 30  # 2.0 ** 1024 does not fit a float, and patience may last for days


@dataclass(frozen=True, slots=True)
class Patience:
    """How long is waited, in seconds.

    `closed_seconds` replaces `settle_seconds` for a file that is certainly closed and whole; the
    first look is that early. It is not longer, and equal where neither can be known.
    """

    settle_seconds: float
    closed_seconds: float
    incomplete_seconds: float


@dataclass(frozen=True, slots=True)
class Watched:
    """A file that is waited for.

    Args:
        identity: What it was when it was last looked at.
        since: The moment since which it has been like that.
        look_at: The moment of the next look.
        waits: How often it was found settled but cut off.
    """

    identity: Identity
    since: float
    look_at: float
    waits: int = 0


def sighted(
    before: Watched | None, identity: Identity, now: float, patience: Patience, *, quiet: float = 0
) -> Watched:
    """Take note of a sighting.

    Args:
        before: What was known of the file, None at the first sighting.
        identity: What the file is now.
        now: The moment of the sighting.
        patience: How long is waited.
        quiet: Seconds for which the file is known to have been unchanged before a first sighting
            (the age of its change time, where the clock of the file system is this machine's).

    Returns:
        What is known now; an unchanged file keeps the moment since which it has been so.
    """
    if before is not None and before.identity == identity:
        return before
    since = now - max(0.0, quiet)
    return Watched(identity, since, max(now, since + patience.closed_seconds))


def settled(
    watched: Watched, now: float, patience: Patience, *, closed: bool | None, whole: bool | None
) -> bool:
    """Tell whether the file may be claimed.

    Args:
        watched: The file as it was just looked at.
        now: The moment of that look.
        patience: How long is waited.
        closed: Whether no process has it open for writing; None when that cannot be known.
        whole: Whether its last bytes are those of a complete picture; None when unknown.
    """
    if closed is False:
        return False
    sure = closed is True and whole is True
    needed = patience.closed_seconds if sure else patience.settle_seconds
    return now >= watched.since + needed  # as the next look is reckoned: no rounding between


def look_later(watched: Watched, now: float, patience: Patience) -> Watched:
    """Return the file with its next look: not settled yet, or open for writing."""
    early, late = watched.since + patience.closed_seconds, watched.since + patience.settle_seconds
    again = now + max(LEAST_WAIT, patience.settle_seconds)
    return replace(watched, look_at=next((one for one in (early, late) if one > now), again))


def cut_off(watched: Watched, now: float, patience: Patience) -> Watched | None:
    """Decide about a settled file that turned out to be cut off or empty.

    Returns:
        The file with a next look that is twice as far away as the last one, or None when it has
        been the same for `incomplete_seconds`: patience is over.
    """
    end = watched.since + patience.incomplete_seconds
    if now >= end:
        return None
    first = max(LEAST_WAIT, patience.settle_seconds)
    wait = min(first * 2.0 ** min(watched.waits, _MOST_DOUBLINGS), LONGEST_WAIT)
    return replace(watched, look_at=min(now + wait, end), waits=watched.waits + 1)


def next_sweep(interval: float, shortest: float, longest: float, *, missed: int) -> float:
    """Return the seconds until the next sweep.

    Events that did not come are the one proof that they cannot be trusted: an overlay changed
    underneath and a queue that overflowed look like any other folder.

    Args:
        interval: The seconds before this sweep.
        shortest: How soon is swept after events were missed.
        longest: How late is swept while none are.
        missed: How many files this sweep found that an event should have told of.
    """
    return min(shortest if missed else 2 * interval, longest)
