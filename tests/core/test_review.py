"""What is said of a result: plausible ones are left alone, each kind of doubt has its word."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgremover.core.review import (
    Measured,
    doubts,
    islands,
    review_path,
    review_report,
    same_aspect,
)

GOOD = Measured((3000, 2000), (1500, 1000), 0.4, (0, 0, 0.3, 0), 1, matches=True)


def test_a_plausible_result_raises_no_doubt() -> None:
    assert doubts(GOOD) == []
    assert doubts(replace(GOOD, matches=None)) == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"foreground": 0.0}, "nothing_left"),
        ({"foreground": 1.0, "borders": (1, 1, 1, 1)}, "nothing_removed"),
        ({"foreground": 0.0049}, "little_left"),
        ({"foreground": 0.981}, "little_removed"),
        ({"borders": (0.03, 0.5, 0.1, 0)}, "cut_by_borders"),
        ({"islands": 26}, "many_islands"),
        ({"result": (1000, 1000)}, "other_aspect"),
        ({"result": (1000, 1500)}, "other_aspect"),
        ({"matches": False}, "other_picture"),
    ],
)
def test_each_doubt_has_its_word(changes: dict[str, object], code: str) -> None:
    (found,) = doubts(replace(GOOD, **changes))  # type: ignore[arg-type]
    assert found.code == code
    assert found.message


@pytest.mark.parametrize(
    "changes",
    [
        {"foreground": 0.005},
        {"foreground": 0.98},
        {"borders": (0.029, 1, 1, 0)},
        {"islands": 25},
        {"result": (1008, 672)},
        {"result": (3, 2)},
        {"original": (3, 1000), "result": (1, 500)},
    ],
)
def test_on_the_border_there_is_no_doubt(changes: dict[str, object]) -> None:
    assert doubts(replace(GOOD, **changes)) == []  # type: ignore[arg-type]


def test_what_is_told_of_one_that_is_put_aside() -> None:
    bad = replace(GOOD, foreground=0.00321987, islands=30)
    told = review_report("shoes/a\n.jpg", doubts(bad), bad, at=0, version="1.2.3")
    assert json.loads(json.dumps(told)) == {
        "schema": "bgremover.review/1",
        "file": "shoes/a\\n.jpg",
        "reviewed_at": "1970-01-01T00:00:00Z",
        "bgremover_version": "1.2.3",
        "doubts": [
            {"code": "little_left", "message": "0.3% of the area is left, less than 0.5%"},
            {"code": "many_islands", "message": "the subject lies in 30 pieces"},
        ],
        "measured": {
            "original": [3000, 2000],
            "result": [1500, 1000],
            "foreground": 0.0032,
            "borders": [0, 0, 0.3, 0],
            "islands": 30,
            "matches": True,
        },
    }
    assert review_path("shoes/a.png") == "_review/shoes/a.png"


sides = st.integers(1, 20_000)


@given(sides, sides, st.floats(0.05, 4))
def test_scaling_keeps_the_aspect(width: int, height: int, scale: float) -> None:
    scaled = max(1, round(width * scale)), max(1, round(height * scale))
    assert same_aspect(scaled, (width, height))


def test_a_turned_picture_has_another_aspect() -> None:
    assert not same_aspect((3000, 2000), (2000, 3000))


# --- islands --------------------------------------------------------------------------------


def counted(*rows: str) -> int:
    return islands([bytes(255 if cell == "#" else 0 for cell in row) for row in rows])


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        ((), 0),
        (("...",), 0),
        (("###",), 1),
        (("#.#",), 2),
        (("#.#", "###"), 1),
        (("###", "#.#"), 1),
        (("#..", ".#.", "..#"), 1),
        (("#.#.#", ".....", "#.#.#"), 6),
        (("#####", "#...#", "#.#.#", "#...#", "#####"), 2),
        (("#.#.#", "#.###", "###.."), 1),
    ],
)
def test_pieces_are_counted(rows: tuple[str, ...], count: int) -> None:
    assert counted(*rows) == count


def flooded(cells: set[tuple[int, int]]) -> int:
    """Count by walking from cell to cell: another way to the same number."""
    count = 0
    while cells:
        count += 1
        open_ = [cells.pop()]
        while open_:
            x, y = open_.pop()
            near = {(x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & cells
            cells -= near
            open_ += near
    return count


@given(st.lists(st.text("#.", min_size=9, max_size=9), max_size=9))
def test_two_ways_of_counting_agree(rows: list[str]) -> None:
    cells = {(x, y) for y, row in enumerate(rows) for x, cell in enumerate(row) if cell == "#"}
    assert counted(*rows) == flooded(cells)
