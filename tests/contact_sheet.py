"""Draws docs/contact-sheet.png: every preset on the samples of the demo, for a person to look at.

    python -m tests.contact_sheet [FILE]

Cuts out by the stand-in's matte; no network, no cost.
"""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from bgremover.core.recipe import PRESETS, Recipe, recipe_of
from bgremover.sandbox.matte import cut_png
from bgremover.sandbox.samples import write_samples
from bgremover.studio.finish import Options, finish
from bgremover.studio.render import Sources, render

CELL, GAP, HEAD = 150, 10, 26
MOST_BYTES = 300_000
FORMS = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
MORE = (
    "shadow size=1200 trim=true fill=80% background=#e8eef2 shadow=soft",
    "cover size=900x1200 trim=true fit=cover background=#f4e6d0",
)
GROUND, LINES = (246, 246, 244), (60, 60, 60)


def draw(target: Path) -> int:
    """Draw the sheet and return its bytes."""
    recipes = [*PRESETS.values(), *map(recipe_of, MORE)]
    with tempfile.TemporaryDirectory() as folder:
        samples = write_samples(Path(folder))
        columns = [_column(sample, recipes) for sample in samples]
    heads = ["original", "cut-out", *(recipe.name for recipe in recipes)]
    sheet = _laid_out(columns, heads)
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(200, dither=Image.Dither.NONE).save(target, "PNG", optimize=True)
    return target.stat().st_size


def _column(sample: Path, recipes: list[Recipe]) -> list[Image.Image]:
    form, cut = FORMS[sample.suffix], io.BytesIO()
    with sample.open("rb") as original:
        finish(original, form, io.BytesIO(cut_png(sample.read_bytes())), cut, Options())
        drawn = [_rendition(Sources(cut, original, form), recipe) for recipe in recipes]
    with Image.open(sample) as original_image, Image.open(cut) as cut_out:
        return [original_image.convert("RGB"), cut_out.copy(), *drawn]


def _rendition(sources: Sources, recipe: Recipe) -> Image.Image:
    into = io.BytesIO()
    render(sources, recipe, into)
    with Image.open(into) as image:
        return image.copy()


def _laid_out(rows: list[list[Image.Image]], heads: list[str]) -> Image.Image:
    """Lay the pictures out in two blocks, so that the sheet is not too wide to be looked at."""
    half = -(-len(heads) // 2)
    high = HEAD + len(rows) * (CELL + GAP)
    sheet = Image.new("RGB", (GAP + half * (CELL + GAP), 2 * high + GAP), GROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for index, head in enumerate(heads):
        left, top = GAP + index % half * (CELL + GAP), index // half * high
        pen.text((left, top + 6), head, LINES, font)
        for row, pictures in enumerate(rows):
            _put(sheet, pictures[index], left, top + HEAD + row * (CELL + GAP))
    return sheet


def _put(sheet: Image.Image, picture: Image.Image, left: int, top: int) -> None:
    """Show a picture in its frame; a chequered ground stands for transparency."""
    shown = picture.convert("RGBA")
    shown.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
    ground = _chequered(shown.size)
    ground.paste(shown, (0, 0), shown)
    at = (left + (CELL - shown.width) // 2, top + (CELL - shown.height) // 2)
    sheet.paste(ground, at)
    frame = (at[0] - 1, at[1] - 1, at[0] + shown.width, at[1] + shown.height)
    ImageDraw.Draw(sheet).rectangle(frame, outline=(190, 190, 190))


def _chequered(size: tuple[int, int]) -> Image.Image:
    ground = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(ground)
    for top in range(0, size[1], 10):
        for left in range(top % 20, size[0], 20):
            pen.rectangle((left, top, left + 9, top + 9), fill=(218, 218, 222))
    return ground


if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/contact-sheet.png")
    size = draw(path)
    if size > MOST_BYTES:
        raise SystemExit(f"{path} has {size} bytes, more than {MOST_BYTES}")
    sys.stdout.write(f"{path}: {size / 1000:.0f} kB\n")
