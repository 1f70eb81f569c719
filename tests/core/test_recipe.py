"""Recipes: how they are read, where what they show goes, what the files are called."""

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from bgremover.core.recipe import (
    MAX_SIDE,
    PRESETS,
    Box,
    Fit,
    Length,
    Plan,
    Recipe,
    distinct,
    plan,
    recipe_of,
    suffix_of,
    target_of,
    template_of,
)

MASTER = (1000, 800)
SUBJECT: Box = (100, 200, 500, 400)


def drawn(line: str, subject: Box | None = SUBJECT) -> Plan:
    return plan(recipe_of(line), MASTER, subject)


# --- reading --------------------------------------------------------------------------------


def test_a_recipe_is_read_word_by_word() -> None:
    line = "white size=800x600 format=webp trim=true margin=10,5% align=top background=#0a141e"
    assert recipe_of(f'{line} name="{{stem}} on white.webp" quality=70 max_mb=1.5') == Recipe(
        "white",
        "{stem} on white.webp",
        "webp",
        (800, 600),
        trim=True,
        margin=(Length(10), Length(share=0.05), Length(10), Length(share=0.05)),
        align="top",
        background=(10, 20, 30),
        quality=70,
        max_bytes=1_500_000,
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_recipe_by_its_name_alone(name: str) -> None:
    assert recipe_of(name) == PRESETS[name]


def test_a_preset_can_be_changed_and_renamed() -> None:
    assert recipe_of("amazon max_mb=5").max_bytes == 5_000_000
    shop = recipe_of("shop preset=amazon longest=900")
    assert (shop.name, shop.size, shop.longest, shop.fill) == ("shop", None, 900, 0.85)
    assert recipe_of("amazon margin=3%").fill is None


@pytest.mark.parametrize(
    ("word", "attribute", "value"),
    [
        ("size=300", "size", (300, 300)),
        ("size=300X200", "size", (300, 200)),
        ("margin=7", "margin", (Length(7),) * 4),
        ("margin=7px/2%", "margin", (Length(7), Length(share=0.02)) * 2),
        ("margin=1,2,3,4", "margin", tuple(map(Length, (1, 2, 3, 4)))),
        ("fill=82.5%", "fill", 0.825),
        ("background=transparent", "background", None),
        ("background=black", "background", (0, 0, 0)),
        ("background=walls/wood.jpg", "background", "walls/wood.jpg"),
        ("shadow=soft", "shadow", 0.35),
        ("shadow=none", "shadow", 0.0),
        ("show=mask", "show", "mask"),
        ("iptc=yes", "iptc", True),
        ("name={stem}.avif", "format", "avif"),
        ("folder=shop", "template", "shop/{stem}.png"),
    ],
)
def test_every_word_is_understood(word: str, attribute: str, value: object) -> None:
    assert getattr(recipe_of(f"one {word}"), attribute) == value


def test_a_jpeg_lies_on_white_unless_told_otherwise() -> None:
    assert recipe_of("one format=jpeg").background == (255, 255, 255)
    assert recipe_of("one format=jpeg background=black").background == (0, 0, 0)
    assert recipe_of("one format=jpeg show=original").background is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "begins with its name"),
        ('one name="', "every quote"),
        ("=3", "no name of a recipe"),
        ("amazone", "no preset"),
        ("one preset=amazone", "no preset"),
        ("one colour=red", "no word of a recipe"),
        ("one size=1 size=2", "twice"),
        ("one size=0", "pixels as"),
        (f"one size={MAX_SIDE + 1}", "at most"),
        ("one size=large", "pixels as"),
        ("one margin=1,2,3", "1, 2 or 4"),
        ("one margin=50%", "45%"),
        ("one margin=-1", "1, 2 or 4"),
        ("one fill=0", "from 1%"),
        ("one fill=101%", "from 1%"),
        ("one background=reddish", "a colour as"),
        ("one trim=perhaps", "true or false"),
        ("one quality=101", "1 to 100"),
        ("one quality=nan", "1 to 100"),
        ("one max_mb=nan", "millions"),
        ("one size=100 margin=60", "leave nothing"),
        ("one longest=100 margin=50", "leave nothing"),
        ("one name=white.png", "{stem}"),
        ("one name={stem}{size}.png", "no other braces"),
        ("one name=../{stem}.png", "hidden"),
        ("one name=/{stem}.png", "below the outbox"),
        ("one name=.x/{stem}.png", "hidden"),
        ("one name={stem}/../../x.png", "hidden"),
        ('one name="a\n{stem}.png"', "hidden"),
        ("one name=a\0{stem}.png", "hidden"),
        ("one name=\ud800{stem}.png", "hidden"),
        ("one name={stem}.png format=jpeg", "ends in .jpg"),
        ("one name={stem}.psd", "no format"),
        ("one show=mask shadow=soft", "shadow"),
    ],
)
def test_what_is_wrong_is_told(line: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        recipe_of(line)
    assert words in str(caught.value)


# --- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "target"),
    [
        ("amazon", "shoes/IMG_1-amazon.jpg"),
        ("webp", "shoes/IMG_1.webp"),
        ("one name={recipe}/{stem}.png", "shoes/one/IMG_1.png"),
        ("one size=3 folder=a/b", "shoes/a/b/IMG_1.png"),
    ],
)
def test_a_rendition_lies_beside_the_cut_out(line: str, target: str) -> None:
    assert target_of(recipe_of(line), "shoes/IMG_1.tiff") == target


def test_a_stem_that_looks_like_a_placeholder_stays() -> None:
    assert target_of(recipe_of("mask"), "{recipe}.jpg") == "{recipe}-mask.png"


@given(st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=200))
@example("é" * 124)
@example("x" * 255)
def test_no_name_is_too_long_for_a_file_system(stem: str) -> None:
    assume(stem not in (".", ".."))
    target = target_of(recipe_of("amazon"), f"a/{stem}.jpg")
    assert target.startswith("a/")
    assert target.endswith(".jpg")
    assert len(target.rpartition("/")[2].encode()) <= 255


def test_two_recipes_may_not_share_a_name_nor_take_the_cut_out_s() -> None:
    assert distinct(PRESETS.values()) == []
    (found,) = distinct([recipe_of("a name={stem}-1.png"), recipe_of("b name={stem}-1.PNG")])
    assert "b has the name of a" in found
    (found,) = distinct([recipe_of("a name={stem}.PNG")])
    assert "the cut-out" in found


@pytest.mark.parametrize("recipe", PRESETS.values(), ids=str)
def test_the_suffix_is_that_of_the_format(recipe: Recipe) -> None:
    assert template_of(recipe).endswith(suffix_of(recipe.format))


# --- geometry -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("one format=png", Plan(MASTER, (0, 0, *MASTER), MASTER, (0, 0))),
        ("one trim=true", Plan((400, 200), SUBJECT, (400, 200), (0, 0))),
        ("one trim=true margin=10", Plan((420, 220), SUBJECT, (400, 200), (10, 10))),
        ("one trim=true margin=1,2,3,4", Plan((406, 204), SUBJECT, (400, 200), (4, 1))),
        ("one trim=true margin=10%", Plan((500, 250), SUBJECT, (400, 200), (50, 25))),
        ("one trim=true fill=50%", Plan((800, 400), SUBJECT, (400, 200), (200, 100))),
        ("one trim=true size=200", Plan((200, 200), SUBJECT, (200, 100), (0, 50))),
        ("one trim=true size=200 align=top", Plan((200, 200), SUBJECT, (200, 100), (0, 0))),
        ("one trim=true size=200 align=bottom", Plan((200, 200), SUBJECT, (200, 100), (0, 100))),
        ("one trim=true size=200 fit=cover", Plan((200, 200), SUBJECT, (400, 200), (-100, 0))),
        (
            "one trim=true size=200 fit=cover align=top-right",
            Plan((200, 200), SUBJECT, (400, 200), (-200, 0)),
        ),
        ("one trim=true size=800 fit=shrink", Plan((800, 800), SUBJECT, (400, 200), (200, 300))),
        ("one trim=true size=200 margin=20", Plan((200, 200), SUBJECT, (160, 80), (20, 60))),
        ("one trim=true longest=100", Plan((100, 50), SUBJECT, (100, 50), (0, 0))),
        ("one trim=true longest=100 margin=10", Plan((100, 60), SUBJECT, (80, 40), (10, 10))),
        ("one trim=true longest=100 fill=50%", Plan((100, 50), SUBJECT, (50, 25), (25, 12))),
        ("amazon", Plan((2000, 2000), SUBJECT, (1700, 850), (150, 575))),
        ("shopify", Plan((2048, 2048), SUBJECT, (1843, 922), (102, 563))),
    ],
)
def test_where_everything_goes(line: str, expected: Plan) -> None:
    assert drawn(line) == expected


def test_without_a_subject_all_is_shown() -> None:
    assert drawn("one trim=true", None).source == (0, 0, *MASTER)


sides = st.integers(1, 12_000)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[tuple[int, int], Box]:
    width, height = draw(sides), draw(sides)
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    return (width, height), (left, top, right, bottom)


@given(boxes(), st.sampled_from(["amazon", "ebay", "google"]))
def test_the_subject_fills_what_the_marketplace_asks_for(
    given_: tuple[tuple[int, int], Box], name: str
) -> None:
    recipe = PRESETS[name]
    found = plan(recipe, *given_)
    assert found.canvas == recipe.size
    assert recipe.fill is not None
    assert max(found.size) / found.canvas[0] == pytest.approx(recipe.fill, abs=0.005)


@given(boxes(), sides, sides, st.sampled_from(["contain", "shrink", "cover"]), st.booleans())
def test_all_of_it_is_shown_or_all_is_covered(
    given_: tuple[tuple[int, int], Box], width: int, height: int, fit: Fit, trim: bool
) -> None:
    recipe = Recipe("one", size=(width, height), fit=fit, trim=trim)
    found = plan(recipe, *given_)
    (x, y), (wide, high) = found.at, found.size
    assert found.canvas == (width, height)
    if fit == "cover":
        assert x <= 0 <= x + wide - width + 1
        assert y <= 0 <= y + high - height + 1
    else:
        assert 0 <= x <= width - wide
        assert 0 <= y <= height - high


@given(boxes(), st.integers(1, MAX_SIDE))
def test_the_longest_side_is_kept_to(given_: tuple[tuple[int, int], Box], longest: int) -> None:
    found = plan(Recipe("one", longest=longest, trim=True), *given_)
    assert max(found.canvas) == longest
    assert found.canvas == found.size
