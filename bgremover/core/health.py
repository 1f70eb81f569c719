"""Is the daemon well? What is seen of it at one moment in, what is wrong with it out.

That it answers at all proves that its loop turns. A pause is no ailment: it waits for the account,
the service or a remedy, and a restart would not help; a full disk is one, for nobody else tells.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

LOOK_SECONDS = 60.0
"""How long the look at inbox and observer may take: it hangs where a share no longer answers."""

SWEEP_SECONDS = 120.0
"""How long a sweep may be late, besides once more the time between two: it has files to stat."""

LEAST_FREE = 16_000_000
"""Bytes; with less, the next result or the ledger may find no room."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of one image that is under way.

    Args:
        name: What it is called.
        still: Seconds since it last moved: one that waits for its turn does not hang.
        limit: Seconds after which it counts as hanging.
    """

    name: str
    still: float
    limit: float


@dataclass(frozen=True, slots=True)
class Vitals:
    """What is seen of the daemon at one moment.

    Args:
        watching: What is wrong with observer, emitters or inbox, in words; None when nothing.
        look_age: Seconds since inbox and observer were last looked at.
        sweep_age: Seconds since the last sweep ended, or since the start.
        sweep_seconds: The time between two sweeps.
        steps: What is under way.
        pause: The reason of the pause; None while the line runs.
        free: Free bytes of each disk, by what lies on it; None where it did not tell.
    """

    watching: str | None
    look_age: float
    sweep_age: float
    sweep_seconds: float
    steps: Iterable[Step]
    pause: str | None
    free: Mapping[str, int | None]


def ailments(vitals: Vitals) -> list[str]:
    """Return what is wrong, in words, worst first; empty while all is well."""
    return [
        *([vitals.watching] if vitals.watching else []),
        *_late(vitals),
        *_hanging(vitals.steps),
        *_full(vitals),
    ]


def _late(vitals: Vitals) -> list[str]:
    found = []
    if vitals.look_age > LOOK_SECONDS:
        found.append(f"nobody has looked at the inbox for {vitals.look_age:.0f} s")
    if vitals.sweep_age > 2 * vitals.sweep_seconds + SWEEP_SECONDS:
        found.append(
            f"the last sweep of the inbox is {vitals.sweep_age:.0f} s old, and one is due every "
            f"{vitals.sweep_seconds:g} s"
        )
    return found


def _hanging(steps: Iterable[Step]) -> list[str]:
    late = [step for step in steps if step.still > step.limit]
    if not late:
        return []
    worst = max(late, key=lambda step: step.still - step.limit)
    more = f", and {len(late) - 1} more" if late[1:] else ""
    return [f"the step {worst.name} has not moved for {worst.still:.0f} s{more}"]


def _full(vitals: Vitals) -> list[str]:
    full = [
        f"the disk of the {name} is full ({free // 1_000_000} MB free)"
        for name, free in vitals.free.items()
        if free is not None and free < LEAST_FREE
    ]
    return full or (["the disk is full"] if vitals.pause == "disk_full" else [])
