"""What has been kept long enough: by age, by number, by size. The oldest goes first."""

from collections.abc import Iterable
from dataclasses import dataclass

DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Policy:
    """How much is kept; None is without limit.

    Args:
        days: For how long.
        files: How many.
        size: How many bytes in all.
    """

    days: float | None = None
    files: int | None = None
    size: int | None = None

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is ever removed."""
        return self.days is None and self.files is None and self.size is None


@dataclass(frozen=True, slots=True)
class Kept:
    """A file that this program has put where it lies.

    Args:
        name: Relative to its folder.
        size: In bytes.
        mtime_ns: When its content changed last, in nanoseconds.
        at: When it was put there, Unix time.
        job: Whose it is.
        report: What its error JSON says; empty where it has none.
    """

    name: str
    size: int
    mtime_ns: int
    at: float
    job: str
    report: str = ""


def expired(kept: Iterable[Kept], policy: Policy, now: float) -> list[Kept]:
    """Return what is to be removed, oldest first.

    Args:
        kept: All there is.
        policy: How much is kept.
        now: Unix time. What is dated later counts as new: a clock that was wrong deletes nothing.
    """
    newest = sorted(kept, key=lambda one: (one.at, one.name), reverse=True)
    gone, size = list[Kept](), 0
    for number, one in enumerate(newest, 1):
        size += one.size
        old = policy.days is not None and now - one.at > policy.days * DAY
        many = policy.files is not None and number > policy.files
        large = policy.size is not None and size > policy.size
        if old or many or large:
            gone.append(one)
    return gone[::-1]
