"""What measured numbers say about a cut-out: is it plausible, or should a person look at it?"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from bgremover.core.naming import printable
from bgremover.core.report import utc

SCHEMA = "bgremover.review/1"
FOLDER = "_review"
"""Below the outbox: where doubtful cut-outs are put aside."""

LEAST, MOST = 0.005, 0.98
"""Shares of the area between which the foreground of a plausible cut-out lies."""

_NOTHING = 0.0001
_EVERYTHING = 0.9999
_CUT = 0.03  # of a border's length: the subject leaves the picture there
_BORDERS = 3
_ISLANDS = 25
_TOLERANCE = 0.02  # of the aspect: results are rounded to whole blocks of pixels


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of a result.

    Args:
        original: Width and height of the upright original, in pixels.
        result: The same of what came back.
        foreground: Share of the area that is kept, each pixel by its alpha, 0 to 1.
        borders: Shares of the top, right, bottom and left border that are foreground.
        islands: Separate pieces of foreground.
        matches: Whether the opaque area shows what the original shows; None if not compared.
    """

    original: tuple[int, int]
    result: tuple[int, int]
    foreground: float
    borders: tuple[float, float, float, float]
    islands: int
    matches: bool | None = None


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why a person should look. `code` is for programs, `message` tells what was measured."""

    code: str
    message: str


def doubts(measured: Measured) -> list[Doubt]:
    """Return everything about a result that is not plausible; nothing is a good sign."""
    return [*_amount(measured.foreground), *_shape(measured), *_sizes(measured)]


def review_report(
    path: str, found: Sequence[Doubt], measured: Measured, *, at: float, version: str
) -> dict[str, Any]:
    """Return what is told about a cut-out that is put aside: its `.review.json`.

    Args:
        path: The original, relative to the inbox.
        found: The doubts.
        measured: What they come from.
        at: When, Unix time.
        version: Of this program.
    """
    return {
        "schema": SCHEMA,
        "file": printable(path),
        "reviewed_at": utc(at),
        "bgremover_version": version,
        "doubts": [{"code": doubt.code, "message": doubt.message} for doubt in found],
        "measured": {
            "original": list(measured.original),
            "result": list(measured.result),
            "foreground": round(measured.foreground, 4),
            "borders": [round(share, 4) for share in measured.borders],
            "islands": measured.islands,
            "matches": measured.matches,
        },
    }


def review_path(output: str) -> str:
    """Return where a cut-out is put aside: `shoes/a.png` below `_review` in the outbox."""
    return f"{FOLDER}/{output}"


def same_aspect(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Tell whether two sizes differ by scale only, but for the rounding to whole pixels."""
    wide, high = one[0] / other[0], one[1] / other[1]
    off = abs(one[1] - other[1] * wide), abs(one[0] - other[0] * high)
    return abs(wide / high - 1) <= _TOLERANCE or min(off) <= 1


def _amount(share: float) -> list[Doubt]:
    told = f"{share:.1%} of the area is left"
    if share < _NOTHING:
        return [Doubt("nothing_left", "nothing is left of the picture")]
    if share > _EVERYTHING:
        return [Doubt("nothing_removed", "nothing was removed from the picture")]
    if share < LEAST:
        return [Doubt("little_left", f"{told}, less than {LEAST:.1%}")]
    if share > MOST:
        return [Doubt("little_removed", f"{told}, more than {MOST:.0%}")]
    return []


def _shape(measured: Measured) -> list[Doubt]:
    found = []
    cut = sum(share >= _CUT for share in measured.borders)
    if cut >= _BORDERS and measured.foreground <= _EVERYTHING:
        found.append(Doubt("cut_by_borders", f"the subject is cut by {cut} of the four borders"))
    if measured.islands > _ISLANDS:
        found.append(Doubt("many_islands", f"the subject lies in {measured.islands} pieces"))
    return found


def _sizes(measured: Measured) -> list[Doubt]:
    (width, height), (wide, high) = measured.original, measured.result
    if not same_aspect(measured.result, measured.original):
        told = f"the result has {wide} x {high} pixels, the original {width} x {height}"
        return [Doubt("other_aspect", f"{told}: not the same shape")]
    if measured.matches is False:
        return [Doubt("other_picture", "the result does not show what the original shows")]
    return []


def islands(rows: Sequence[bytes], threshold: int = 128) -> int:
    """Count the separate pieces of foreground.

    Args:
        rows: Alpha, a byte a pixel, a row each.
        threshold: The least alpha of foreground.

    Returns:
        How many groups of pixels there are that touch each other, at corners too.
    """
    foreground = bytes(value >= threshold for value in range(256))
    before: list[_Run] = []
    parents: list[int] = []
    for row in rows:
        here = []
        for found in _STRETCH.finditer(row.translate(foreground)):
            touched = [label for _, _, label in _touching(before, *found.span())]
            here.append((*found.span(), _joined(parents, touched)))
        before = here
    return sum(parent == label for label, parent in enumerate(parents))


_Run = tuple[int, int, int]
"""A stretch of foreground: its first pixel, the one after its last, and its piece."""

_STRETCH = re.compile(rb"\x01+")


def _touching(runs: list[_Run], start: int, end: int) -> list[_Run]:
    first = bisect_left(runs, start, key=itemgetter(1))
    return runs[first : bisect_right(runs, end, lo=first, key=itemgetter(0))]


def _joined(parents: list[int], labels: list[int]) -> int:
    """Make one piece of all that are touched, or a new one; return its label."""
    roots = sorted({_root(parents, label) for label in labels})
    if not roots:
        parents.append(len(parents))
        return len(parents) - 1
    for root in roots[1:]:
        parents[root] = roots[0]
    return roots[0]


def _root(parents: list[int], label: int) -> int:
    while parents[label] != label:
        label = parents[label]
    return label
