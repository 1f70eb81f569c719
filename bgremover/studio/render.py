"""Renditions of a cut-out that is paid for: drawn by a recipe, as often as wanted, for nothing."""

import io
import math
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import Image, ImageChops, ImageFilter

from bgremover.core.errors import TooLarge
from bgremover.core.recipe import MAX_SIDE, Plan, Recipe, Size, plan
from bgremover.studio import budget, colour
from bgremover.studio.finish import packing
from bgremover.studio.metadata import kept_of
from bgremover.studio.opening import NotDecoded, opened, upright, working

_SEEN = [0] * 32 + [255] * 224  # alpha of what is measured as subject: less is hardly seen
_FAINT = 8  # pixels around it that are shown all the same, so that a soft edge is not cut
_QUALITIES = (85, 80, 75, 70, 60, 50)  # below what was asked, when a file is too large
_STEP = 0.97
_LEAST_SIDE = 16
_LOSSY = ("jpeg", "webp", "avif")
_IPTC = 0x0404  # the Photoshop resource that holds IPTC data
_MOST_METADATA = 60_000  # bytes that fit into a segment of a JPEG
_SHADOW_DROP, _SHADOW_BLUR = 0.02, 0.025  # of the subject's longer side


@dataclass(frozen=True, slots=True)
class Sources:
    """What a rendition is drawn from.

    Args:
        master: The cut-out, a PNG as `finish` writes it.
        original: The original, for recipes that show it or keep its IPTC data.
        form: The format of the original, if that is given.
        backdrop: The image of a recipe's background, as a file of any format Pillow knows by
            `backdrop_form`.
        backdrop_form: Its format.
    """

    master: BinaryIO
    original: BinaryIO | None = None
    form: str = ""
    backdrop: BinaryIO | None = None
    backdrop_form: str = ""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendition that is written. `note` tells what was not done as asked, if anything."""

    width: int
    height: int
    size: int
    note: str = ""


@working("drawing a rendition")
def render(
    sources: Sources,
    recipe: Recipe,
    into: BinaryIO,
    most_pixels: int = MAX_SIDE**2,
    most_bytes: float = math.inf,
) -> Rendered:
    """Draw a rendition.

    Args:
        sources: What from.
        recipe: What is wanted.
        into: Where to; empty, open for writing.
        most_pixels: Of a rendition whose recipe does not say how large it is.
        most_bytes: Of memory that it may take.

    Raises:
        NotDecoded: The cut-out, the original or the background cannot be decoded.
        TooLarge: The file cannot be made as small as `max_bytes`; or margins and fill make more
            pixels of it than it may have; or it takes more memory than it may.
        LocalFault: This machine cannot read the files now, or has not the memory.
    """
    master = upright(sources.master, "PNG")
    options = kept_of(master, "safe")
    cut = colour.to_srgb(master if master.mode == "RGBA" else master.convert("RGBA"))
    subject = cut.getchannel("A").point(_SEEN).getbbox()
    layout = plan(recipe, cut.size, subject)
    _check_room(recipe, layout.canvas, most_pixels)
    need = budget.rendering(recipe, cut.size, sources.form, subject)
    if need > most_bytes:
        raise TooLarge(
            f"{recipe.name} would take {need / 1e6:,.0f} MB of memory. Make it smaller, or raise "
            "pictures.max_memory_mb"
        )
    image = _drawn(sources, recipe, cut, layout)
    if recipe.iptc and sources.original is not None:
        options |= _iptc(sources.original, sources.form)
    image, packed, note = _fitted(image, recipe, options)
    into.write(packed)
    return Rendered(*image.size, len(packed), note)


def _check_room(recipe: Recipe, canvas: Size, most_pixels: int) -> None:
    pixels = math.prod(canvas)
    if recipe.size is None and recipe.longest is None and pixels > most_pixels:
        raise TooLarge(
            f"{recipe.name} would have {pixels / 1e6:,.0f} megapixels. Give its size or longest "
            "side, or smaller margins"
        )


# --- drawing --------------------------------------------------------------------------------


def _drawn(sources: Sources, recipe: Recipe, cut: Image.Image, layout: Plan) -> Image.Image:
    match recipe.show:
        case "mask":
            layout = _widened(layout, cut.size)
            canvas = Image.new("L", layout.canvas, 0)
            canvas.paste(_scaled(cut.getchannel("A"), layout), layout.at)
            return canvas
        case "original":
            canvas = _ground(sources, recipe, layout.canvas).convert("RGB")
            canvas.paste(_scaled(_original(sources, cut.size), layout), layout.at)
            return canvas
        case _:
            ground = _ground(sources, recipe, layout.canvas)
            return _composed(ground, recipe, cut, _widened(layout, cut.size))


def _widened(layout: Plan, master: Size) -> Plan:
    """Show a little more on all sides, where there is more; nothing moves by it."""
    left, top, right, bottom = layout.source
    west, north = min(_FAINT, left), min(_FAINT, top)
    east, south = min(_FAINT, master[0] - right), min(_FAINT, master[1] - bottom)
    across, down = layout.size[0] / (right - left), layout.size[1] / (bottom - top)
    source = (left - west, top - north, right + east, bottom + south)
    size = (
        layout.size[0] + round(west * across) + round(east * across),
        layout.size[1] + round(north * down) + round(south * down),
    )
    at = (layout.at[0] - round(west * across), layout.at[1] - round(north * down))
    return Plan(layout.canvas, source, size, at)


def _original(sources: Sources, size: Size) -> Image.Image:
    if sources.original is None:
        raise NotDecoded("the original is not there any more")
    picture = colour.to_srgb(upright(sources.original, sources.form)).convert("RGB")
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def _scaled(image: Image.Image, layout: Plan) -> Image.Image:
    part = image.crop(layout.source)
    if part.size == layout.size:
        return part
    return part.resize(layout.size, Image.Resampling.LANCZOS, reducing_gap=3)


def _ground(sources: Sources, recipe: Recipe, size: Size) -> Image.Image:
    match recipe.background:
        case None:
            return Image.new("RGBA", size)
        case str():
            return _backdrop(sources, size)
        case tuple() as shade:
            return Image.new("RGB", size, shade)


def _backdrop(sources: Sources, size: Size) -> Image.Image:
    """Return the background image, scaled until it covers and cut at the sides."""
    if sources.backdrop is None:
        raise NotDecoded("the background image is not there")
    image = colour.to_srgb(upright(sources.backdrop, sources.backdrop_form)).convert("RGB")
    scale = max(size[0] / image.width, size[1] / image.height)
    wide, high = size[0] / scale, size[1] / scale
    left, top = (image.width - wide) / 2, (image.height - high) / 2
    box = (left, top, left + wide, top + high)
    return image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3)


def _composed(ground: Image.Image, recipe: Recipe, cut: Image.Image, layout: Plan) -> Image.Image:
    picture = _scaled(cut, layout)
    alpha = picture.getchannel("A")
    if recipe.shadow:
        _cast(ground, alpha, layout, recipe.shadow)
    if ground.mode == "RGB":
        ground.paste(picture, layout.at, alpha)
    elif recipe.shadow:
        layer = Image.new("RGBA", ground.size)
        layer.paste(picture, layout.at)
        ground.alpha_composite(layer)
    else:
        ground.paste(picture, layout.at)
    return ground


def _cast(ground: Image.Image, alpha: Image.Image, layout: Plan, strength: float) -> None:
    """Paint a soft shadow, a little below the subject, in place."""
    longer = max(layout.size)
    shade = Image.new("L", ground.size, 0)
    drop = (layout.at[0], layout.at[1] + round(longer * _SHADOW_DROP))
    shade.paste(alpha, drop)
    shade = shade.filter(ImageFilter.GaussianBlur(longer * _SHADOW_BLUR))
    shade = shade.point([round(value * strength) for value in range(256)])
    if ground.mode == "RGBA":
        ground.putalpha(ImageChops.lighter(ground.getchannel("A"), shade))
    else:
        ground.paste((0, 0, 0), mask=shade)


# --- writing --------------------------------------------------------------------------------


def _fitted(
    image: Image.Image, recipe: Recipe, options: dict[str, Any]
) -> tuple[Image.Image, bytes, str]:
    """Write with the quality that is asked for, or the best that the cap lets; then shrink."""
    most = recipe.max_bytes or math.inf
    qualities = [recipe.quality]
    if recipe.format in _LOSSY:
        qualities += [quality for quality in _QUALITIES if quality < recipe.quality]
    packed = b""
    for quality in qualities:
        packed = _packed(image, recipe, quality, options)
        if len(packed) <= most:
            lower = quality != recipe.quality
            return image, packed, f"quality {quality}, to be small enough" if lower else ""
    small = image
    while len(packed) > most and min(small.size) > _LEAST_SIDE:
        scale = math.sqrt(most / len(packed)) * _STEP
        width, height = (max(1, round(side * scale)) for side in small.size)
        small = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3)
        packed = _packed(small, recipe, qualities[-1], options)
    if len(packed) > most:
        raise TooLarge(f"{recipe.name} cannot be made smaller than {most / 1e6:g} MB")
    return small, packed, f"{small.width} x {small.height} pixels, to be small enough"


def _packed(image: Image.Image, recipe: Recipe, quality: int, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    given = {**options, **_options(image, recipe, quality)}
    if image.mode != "L":
        given["icc_profile"] = colour.srgb_bytes()
    image.save(buffer, recipe.format, **given)
    return buffer.getvalue()


def _options(image: Image.Image, recipe: Recipe, quality: int) -> dict[str, Any]:
    match recipe.format:
        case "png":
            return {"compress_level": 1, "compress_type": packing(image)}
        case "jpeg":
            fine = quality >= 90  # noqa: PLR2004 - above it colours are stored for every pixel
            return {"quality": quality, "subsampling": 0 if fine else 2, "optimize": True}
        case "webp":
            return {"quality": quality, "method": 4}
        case "avif":
            return {"quality": quality, "speed": 7}
        case "tiff":
            return {"compression": "tiff_lzw"}


def _iptc(original: BinaryIO, form: str) -> dict[str, Any]:
    """Return the IPTC and XMP data of a JPEG for `Image.save`; other formats have the latter."""
    kept: dict[str, Any] = {}
    with suppress(NotDecoded):
        image = opened(original, form)
        xmp = image.info.get("xmp")
        if isinstance(xmp, bytes) and len(xmp) < _MOST_METADATA:
            kept["xmp"] = xmp
        resources = image.info.get("photoshop")
        data = resources.get(_IPTC) if isinstance(resources, dict) else None
        if isinstance(data, bytes) and len(data) < _MOST_METADATA:
            kept["extra"] = _segment(data)
    return kept


def _segment(data: bytes) -> bytes:
    """Return the segment of a JPEG (APP13) that holds IPTC data."""
    resource = b"8BIM" + struct.pack(">HHI", _IPTC, 0, len(data)) + data + bytes(len(data) % 2)
    body = b"Photoshop 3.0\0" + resource
    return b"\xff\xed" + struct.pack(">H", len(body) + 2) + body
