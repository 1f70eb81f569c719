"""Renditions: what else is made of a cut-out that is paid for, as recipes of one line.

    white size=2000x2000 fill=85% background=white name={stem}-white.jpg
    amazon max_mb=5

The first word is the recipe's name. One that is called like a preset begins as that preset; the
words after it change it. Measures are pixels, or percent of the picture that is made.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from bgremover.core.naming import fold, output_path, printable, split

Format = Literal["png", "webp", "jpeg", "avif", "tiff"]
Fit = Literal["contain", "shrink", "cover"]
Show = Literal["cut-out", "mask", "original"]
Align = Literal[
    "center", "top", "bottom", "left", "right",
    "top-left", "top-right", "bottom-left", "bottom-right",
]  # fmt: skip
Size = tuple[int, int]
Box = tuple[int, int, int, int]
Colour = tuple[int, int, int]

LONGEST_LINE = 1000
"""Characters of a recipe."""

MAX_SIDE = 16_000
"""Pixels: the longest side that is rendered; WebP ends at 16,383."""

_SUFFIXES: dict[Format, tuple[str, ...]] = {
    "png": (".png",),
    "webp": (".webp",),
    "jpeg": (".jpg", ".jpeg"),
    "avif": (".avif",),
    "tiff": (".tif", ".tiff"),
}
_COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
_FOURS = {1: (0, 0, 0, 0), 2: (0, 1, 0, 1), 4: (0, 1, 2, 3)}


@dataclass(frozen=True, slots=True)
class Length:
    """A measure: pixels, plus a share of the side of the picture that it lies along, 0 to 1."""

    pixels: float = 0.0
    share: float = 0.0


_NONE = (Length(), Length(), Length(), Length())


@dataclass(frozen=True, slots=True)
class Recipe:
    """One rendition.

    Args:
        name: What it is called in messages and, by default, in names.
        template: The name of the file, below the folder of the cut-out: `white/{stem}.jpg`.
        format: What is written.
        size: Width and height in pixels; None: as large as what is shown, or by `longest`.
        longest: The longer side in pixels; the shape is that of what is shown.
        fit: contain: all of it is shown, enlarged where it must be. shrink: never enlarged. cover:
            no background is seen beside it.
        trim: Whether everything around the subject is cut off first.
        margin: What is kept free at the top, right, bottom and left.
        fill: Share of the picture that the subject takes along its longer side, instead of margins.
        align: Where it lies in a picture that it does not fill.
        background: A colour; or the path of an image, which covers the picture; None: transparent.
        shadow: How dark a soft shadow below the subject is, 0 to 1.
        show: The cut-out, its mask as grey, or the original with its background.
        quality: Of a lossy format, 1 to 100.
        max_bytes: How large the file may be.
        iptc: Whether the original's IPTC and XMP data are kept.
    """

    name: str
    template: str = ""
    format: Format = "png"
    size: Size | None = None
    longest: int | None = None
    fit: Fit = "contain"
    trim: bool = False
    margin: tuple[Length, Length, Length, Length] = _NONE
    fill: float | None = None
    align: Align = "center"
    background: Colour | str | None = None
    shadow: float = 0.0
    show: Show = "cut-out"
    quality: int = 90
    max_bytes: int | None = None
    iptc: bool = False

    @property
    def opaque(self) -> bool:
        """Whether the rendition has no transparency."""
        return self.background is not None or self.show != "cut-out"


_WHITE = (255, 255, 255)
_FIVE = (Length(share=0.05),) * 4
_PRODUCT = Recipe("", "", "jpeg", trim=True, background=_WHITE)

PRESETS: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        # Pure white, the product fills 85 % of the frame, 1600 px and more for the zoom, 10 MB.
        replace(_PRODUCT, name="amazon", size=(2000, 2000), fill=0.85, max_bytes=10_000_000),
        # 500 px at least, 1600 px for the zoom, 12 MB.
        replace(_PRODUCT, name="ebay", size=(1600, 1600), fill=0.9, max_bytes=12_000_000),
        # Square pictures of 2048 px, all with one margin; 20 MB.
        replace(_PRODUCT, name="shopify", size=(2048, 2048), margin=_FIVE, max_bytes=20_000_000),
        # The product takes 75 to 90 % of the frame; IPTC data must not be removed; 16 MB.
        replace(
            _PRODUCT, name="google", size=(1500, 1500), fill=0.82, iptc=True, max_bytes=16_000_000
        ),
        Recipe("square", size=(1200, 1200), trim=True, margin=_FIVE),
        Recipe("thumb", format="webp", longest=320, trim=True, quality=80),
        Recipe("mask", show="mask"),
        Recipe("crop", format="jpeg", trim=True, show="original", quality=92),
        Recipe("webp", format="webp", template="{stem}.webp"),
    )
}


# --- reading --------------------------------------------------------------------------------


def recipe_of(line: str) -> Recipe:
    """Read a recipe.

    Args:
        line: A name, then words of the form key=value. Quotes keep blanks together.

    Raises:
        ValueError: The message says what is wrong and what to write.
    """
    if len(line) > LONGEST_LINE:
        raise ValueError(f"a recipe has at most {LONGEST_LINE} characters. Shorten it.")
    try:
        name, *words = shlex.split(line)
    except ValueError as error:
        raise ValueError("a recipe begins with its name, and every quote is closed.") from error
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError(
            f'"{printable(name)}" is no name of a recipe. Begin with a word of letters, digits, '
            f"- and _; the presets are {', '.join(PRESETS)}."
        )
    fields = dict(word.partition("=")[::2] for word in words)
    if len(fields) < len(words):
        raise ValueError(f"{name}: a word stands there twice. Take one of the two out.")
    preset = fields.pop("preset", name)
    base = PRESETS.get(preset)
    if base is None and (preset != name or not words):
        known = ", ".join(PRESETS)
        raise ValueError(f'there is no preset "{printable(preset)}". The presets are {known}.')
    return _checked(_changed(replace(base or Recipe(name), name=name), fields))


def _changed(recipe: Recipe, fields: Mapping[str, str]) -> Recipe:
    values: dict[str, Any] = {}
    for key, text in fields.items():
        if key not in _READERS:
            raise ValueError(f'"{printable(key)}" is no word of a recipe: {", ".join(_READERS)}.')
        attribute, reader, wanted = _READERS[key]
        try:
            values[attribute] = reader(text)
        except (ValueError, KeyError, ZeroDivisionError) as error:
            raise ValueError(f'{key}="{printable(text)}" will not do. Give {wanted}.') from error
    folder = values.pop("folder", "")
    if values.get("size"):
        values.setdefault("longest", None)
    if values.get("longest"):
        values.setdefault("size", None)
    if "margin" in values:
        values.setdefault("fill", None)
    if suffix := split(values.get("template", ""))[2]:
        values.setdefault("format", _format_of(suffix))
    changed = replace(recipe, **values)
    if folder:
        template = changed.template or "{stem}" + suffix_of(changed.format)
        changed = replace(changed, template=f"{folder}/{template}")
    return changed


def _format_of(suffix: str) -> Format:
    known = {one: form for form, suffixes in _SUFFIXES.items() for one in suffixes}
    if suffix.lower() not in known:
        raise ValueError(f"{printable(suffix)} is no format. Names end in {', '.join(known)}.")
    return known[suffix.lower()]


def suffix_of(form: Format) -> str:
    """Return how names of a format end."""
    return _SUFFIXES[form][0]


def _word(kind: object) -> Callable[[str], str]:
    return {word: word for word in get_args(kind)}.__getitem__


def _size(text: str) -> Size:
    width, by, height = text.lower().partition("x")
    return _side(width), _side(height if by else width)


def _side(text: str) -> int:
    side = int(text)
    if not 1 <= side <= MAX_SIDE:
        raise ValueError(text)
    return side


def _margin(text: str) -> tuple[Length, ...]:
    lengths = [_length(part) for part in re.split(r"[,/ ]+", text)]
    return tuple(lengths[index] for index in _FOURS[len(lengths)])


def _length(text: str) -> Length:
    if text.endswith("%"):
        return Length(share=_within(float(text[:-1]) / 100, 0, 0.45))
    return Length(_within(float(text.removesuffix("px")), 0, MAX_SIDE))


def _share(text: str) -> float:
    return _within(float(text.removesuffix("%")) / 100, 0.01, 1)


def _shadow(text: str) -> float:
    return 0.0 if text == "none" else 0.35 if text == "soft" else _share(text)


def _within(value: float, least: float, most: float) -> float:
    if not least <= value <= most:
        raise ValueError(value)
    return value


def _background(text: str) -> Colour | str | None:
    if text == "transparent":
        return None
    if text in _COLOURS:
        return _COLOURS[text]
    if re.fullmatch(r"#[0-9A-Fa-f]{6}", text):
        return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
    if "/" in text or "." in text[1:]:
        return text
    raise ValueError(text)


def _truth(text: str) -> bool:
    return {"true": True, "yes": True, "false": False, "no": False}[text]


_READERS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "name": ("template", str, "a name as {stem}-white.jpg"),
    "folder": ("folder", str, "a folder as white"),
    "format": ("format", _word(Format), "png, webp, jpeg, avif or tiff"),
    "size": ("size", _size, f"pixels as 2000x1500, or 2000 for a square; at most {MAX_SIDE}"),
    "longest": ("longest", _side, f"the longer side in pixels, at most {MAX_SIDE}"),
    "fit": ("fit", _word(Fit), "contain, shrink or cover"),
    "trim": ("trim", _truth, "true or false"),
    "margin": ("margin", _margin, "1, 2 or 4 measures of at most 45%, as 40, 5% or 10,5%"),
    "fill": ("fill", _share, "a share from 1% to 100%"),
    "align": ("align", _word(Align), ", ".join(get_args(Align))),
    "background": ("background", _background, "transparent, white, a colour as #f0f0f0, or a path"),
    "shadow": ("shadow", _shadow, "none, soft, or how dark it is as 40%"),
    "show": ("show", _word(Show), "cut-out, mask or original"),
    "quality": ("quality", lambda text: int(_within(int(text), 1, 100)), "a number from 1 to 100"),
    "max_mb": (
        "max_bytes",
        lambda text: round(_within(float(text), 0.001, 1000) * 1e6),
        "millions of bytes, from 0.001 to 1000",
    ),
    "iptc": ("iptc", _truth, "true or false"),
}


def _checked(recipe: Recipe) -> Recipe:
    if recipe.format == "jpeg" and not recipe.opaque:
        recipe = replace(recipe, background=_WHITE)  # a JPEG has no transparency
    if recipe.shadow and recipe.show != "cut-out":
        raise ValueError(f"{recipe.name}: only a cut-out has a shadow. Take shadow or show out.")
    for share in (_shares(recipe, 0, 2), _shares(recipe, 1, 3)):
        if share >= 1:
            raise ValueError(f"{recipe.name}: the margins leave nothing. Make them smaller.")
    if recipe.longest or recipe.size:
        _room(recipe)
    _check_template(recipe)
    return recipe


def _shares(recipe: Recipe, one: int, other: int) -> float:
    return recipe.margin[one].share + recipe.margin[other].share


def _room(recipe: Recipe) -> None:
    width, height = recipe.size or (recipe.longest or 1, recipe.longest or 1)
    top, right, bottom, left = recipe.margin
    for side, one, other in ((width, left, right), (height, top, bottom)):
        if side - _along(side, one) - _along(side, other) < 1:
            raise ValueError(f"{recipe.name}: the margins leave nothing. Make them smaller.")


def _check_template(recipe: Recipe) -> None:
    template = template_of(recipe)
    fields = set(re.findall(r"\{([^{}]*)\}", template))
    if "{stem}" not in template or fields - {"stem", "recipe"}:
        raise ValueError(
            f'{recipe.name}: name="{printable(template)}" will not do. It has {{stem}}, may have '
            "{recipe}, and no other braces."
        )
    parts = template.split("/")
    if any(part.startswith(".") or not part.strip() or not part.isprintable() for part in parts):
        raise ValueError(
            f'{recipe.name}: "{printable(template)}" is no name below the outbox. Write one as '
            "white/{stem}.jpg, without hidden folders, .. and control characters"
        )
    suffix = split(template)[2]
    if suffix.lower() not in _SUFFIXES[recipe.format]:
        raise ValueError(
            f"{recipe.name}: a name of a {recipe.format} ends in {suffix_of(recipe.format)}, "
            f'not as "{printable(template)}" does.'
        )


def distinct(recipes: Iterable[Recipe]) -> list[str]:
    """Return what is wrong with recipes together: names that two of them, or the cut-out, share."""
    taken = {fold("x.png"): "the cut-out"}
    mistakes = []
    for recipe in recipes:
        target = fold(target_of(recipe, "x.jpg"))
        if target in taken:
            remedy = f"Give {recipe.name} another name=, as {{stem}}-2.png"
            mistakes.append(f"{recipe.name} has the name of {taken[target]}. {remedy}.")
        taken.setdefault(target, recipe.name)
    return mistakes


# --- names ----------------------------------------------------------------------------------


def template_of(recipe: Recipe) -> str:
    """Return the template of a recipe's names; by default `{stem}-{recipe}` and its suffix."""
    return recipe.template or "{stem}-{recipe}" + suffix_of(recipe.format)


def target_of(recipe: Recipe, path: str) -> str:
    """Return where the rendition of the inbox path `path` goes, relative to the outbox."""
    folder, stem, _ = split(path)
    template = template_of(recipe).replace("{recipe}", recipe.name)
    filled = folder + template.replace("{stem}", stem)
    return output_path(filled, split(filled)[2])


# --- geometry -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything goes, in pixels.

    Args:
        canvas: Width and height of the rendition.
        source: The part of the master that is shown.
        size: To which width and height it is scaled.
        at: Where its left upper corner lies on the canvas; negative where it is cut off.
    """

    canvas: Size
    source: Box
    size: Size
    at: tuple[int, int]


def plan(recipe: Recipe, master: Size, subject: Box | None) -> Plan:
    """Lay out a rendition.

    Args:
        recipe: What is wanted.
        master: Width and height of the cut-out.
        subject: What of it is not transparent; None if nothing is.
    """
    source = subject if recipe.trim and subject else (0, 0, *master)
    wide, high = source[2] - source[0], source[3] - source[1]
    scale = _scale(recipe, wide, high)
    size = max(1, round(wide * scale)), max(1, round(high * scale))
    canvas = recipe.size or _canvas(recipe, size)
    return Plan(canvas, source, size, _place(recipe, canvas, size))


def _scale(recipe: Recipe, wide: int, high: int) -> float:
    if recipe.size is None and recipe.longest is None:
        return 1.0
    width, height = recipe.size or (recipe.longest or 1, recipe.longest or 1)
    across, down = _free(recipe, width, (1, 3)) / wide, _free(recipe, height, (0, 2)) / high
    match recipe.fit:
        case "cover":
            # With one length given the shape is that of what is shown: it covers as it is.
            return max(across, down) if recipe.size else min(across, down)
        case "shrink":
            return min(across, down, 1.0)
        case _:
            return min(across, down)


def _free(recipe: Recipe, side: int, margins: tuple[int, int]) -> float:
    if recipe.fill is not None:
        return side * recipe.fill
    one, other = (recipe.margin[index] for index in margins)
    return max(1.0, side - _along(side, one) - _along(side, other))


def _along(side: int, length: Length) -> float:
    return length.pixels + length.share * side


def _canvas(recipe: Recipe, size: Size) -> Size:
    """Return the picture around what is shown where its shape is not given."""
    if recipe.fill is not None:
        width, height = (round(side / recipe.fill) for side in size)
    else:
        width, height = (_around(recipe, size[axis], ((1, 3), (0, 2))[axis]) for axis in (0, 1))
    most = recipe.longest or MAX_SIDE * 10
    return min(max(1, width), most), min(max(1, height), most)


def _around(recipe: Recipe, side: int, margins: tuple[int, int]) -> int:
    one, other = (recipe.margin[index] for index in margins)
    return round((side + one.pixels + other.pixels) / (1 - one.share - other.share))


def _place(recipe: Recipe, canvas: Size, size: Size) -> tuple[int, int]:
    top, right, bottom, left = _NONE if recipe.fill is not None else recipe.margin
    x = _aligned(recipe, canvas[0], size[0], (left, right), ("left", "right"))
    return x, _aligned(recipe, canvas[1], size[1], (top, bottom), ("top", "bottom"))


def _aligned(
    recipe: Recipe,
    canvas: int,
    size: int,
    margins: tuple[Length, Length],
    words: tuple[str, str],
) -> int:
    start = _along(canvas, margins[0])
    end = canvas - _along(canvas, margins[1]) - size
    if words[0] in recipe.align:
        return round(start)
    if words[1] in recipe.align:
        return round(end)
    return round((start + end) / 2)
