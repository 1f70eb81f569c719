"""The cut-out at the original's full size, from the original's pixels and the result's alpha.

A result may be smaller than what was sent. Where it is opaque the original's own pixels are used,
where it is thin the result's colours, which the service has cleaned of the background, and
between them a ramp. Only the picture's edge needs the result's colours: it is worked on in tiles,
in place, so that no second picture of full size is made.
"""

import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import Image, ImageChops, ImageCms, ImageFilter, ImageStat
from PIL.PngImagePlugin import PngInfo

from bgremover.core.review import Measured, islands, same_aspect
from bgremover.studio import colour
from bgremover.studio.metadata import Policy, kept_of
from bgremover.studio.opening import NotDecoded, upright, working

Box = tuple[int, int, int, int]

_CLEAR, _SOLID = 200, 250
"""Alpha up to which the result's colours are used, and from which on the original's are."""

_RAMP = [round(min(max((a - _CLEAR) / (_SOLID - _CLEAR), 0), 1) * 255) for a in range(256)]
_GONE = [255] + [0] * 255
_TILE = 512
_MARGIN = 4  # pixels of the result around a tile that its enlargement looks at
_ROWS = 16  # of a small copy that are made at a time
_SMALL = 256  # the longer side of the copies that are measured and compared
_OFF = 24.0  # levels, on average: the result shows something else than the original
_LEAST_COMPARED = 30  # pixels of the small copy

_STRIP = 64  # rows on which the packing is tried
_RLE_WORTH = 1.1  # so much larger a file may be for being written in two thirds of the time


@dataclass(frozen=True, slots=True)
class Options:
    """How cut-outs of the original's size are made.

    Args:
        metadata: What of the original's metadata is kept; see `metadata.kept_of`.
    """

    metadata: Policy = "safe"


@dataclass(frozen=True, slots=True)
class Finished:
    """A cut-out that is written. `notes` tell what was not done as asked, and why."""

    width: int
    height: int
    stats: Measured
    notes: tuple[str, ...] = ()


@working("finishing a cut-out")
def finish(
    original: BinaryIO | None, form: str, result: BinaryIO, into: BinaryIO, options: Options
) -> Finished:
    """Make the cut-out at the original's size.

    Args:
        original: The original, open for reading; a format that `opening.opened` knows. None when
            it is no longer there.
        form: Its format.
        result: The PNG that came back, verified.
        into: Where the PNG goes; empty, open for writing.
        options: How.

    Raises:
        NotDecoded: The result cannot be decoded.
        LocalFault: This machine cannot read the files now, or has not the memory.
    """
    if original is None:
        return _without_original(result, into, "the original is gone: the result's pixels are used")
    try:
        picture = upright(original, form)
    except NotDecoded as error:
        note = f"the original cannot be decoded for its pixels ({error}): the result's are used"
        return _without_original(result, into, note)
    kept, icc = kept_of(picture, options.metadata), picture.info.get("icc_profile")
    picture, profile = _as_rgb(picture, convert=options.metadata == "strip")
    cut = colour.to_srgb(_with_alpha(upright(result, "PNG")))
    stats = _measured(picture.size, cut, matches=_matches(picture, cut))
    if not same_aspect(cut.size, picture.size):
        done, profile = _cleared(cut), None
    elif stats.matches is False:
        done, profile = _cleared(_enlarged(cut, picture.size)), None
    else:
        done = _hybrid(picture, cut, profile)
    save_png(done, into, kept, icc if profile else None)
    return Finished(done.width, done.height, stats, _notes(stats))


@working("keeping a result")
def as_it_came(size: tuple[int, int], result: BinaryIO, into: BinaryIO) -> Finished:
    """Keep a result at its own size, byte for byte if no colour is hidden under its transparency.

    Args:
        size: Width and height of the upright original, in pixels.
        result: The PNG that came back, verified.
        into: Where it goes; empty, open for writing.

    Raises:
        NotDecoded: The result cannot be decoded.
        LocalFault: This machine cannot read the file now, or has not the memory.
    """
    cut = _with_alpha(upright(result, "PNG"))
    stats = _measured(size, cut, matches=None)
    if _hides_colours(cut):
        profile = cut.info.get("icc_profile")
        save_png(_cleared(cut), into, {}, profile)
    else:
        result.seek(0)
        shutil.copyfileobj(result, into, 1 << 20)
    return Finished(cut.width, cut.height, stats, _notes(stats))


@working("passing an original on")
def pass_on(original: BinaryIO, form: str, into: BinaryIO, options: Options) -> Finished:
    """Make the cut-out of an original that is transparent already; no result is needed.

    Args:
        original: The original, open for reading; a format that `opening.opened` knows.
        form: Its format.
        into: Where the PNG goes; empty, open for writing.
        options: How.

    Raises:
        NotDecoded: The original cannot be decoded.
        LocalFault: This machine cannot read the file now, or has not the memory.
    """
    picture = upright(original, form)
    kept, icc = kept_of(picture, options.metadata), picture.info.get("icc_profile")
    picture, profile = _as_rgb(picture, convert=options.metadata == "strip")
    picture = _cleared(_with_alpha(picture))
    save_png(picture, into, kept, icc if profile else None)
    return Finished(*picture.size, _measured(picture.size, picture, matches=None))


@working("writing a cut-out anew")
def anew(
    original: BinaryIO | None, form: str, earlier: BinaryIO, into: BinaryIO, options: Options
) -> Finished:
    """Write what `finish` made once more, with other metadata; its pixels stay.

    Args:
        original: The original, open for reading; None when it is no longer there.
        form: Its format.
        earlier: The cut-out that was made of it.
        into: Where the PNG goes; empty, open for writing.
        options: How.

    Raises:
        NotDecoded: The cut-out cannot be decoded.
        LocalFault: This machine cannot read the files now, or has not the memory.
    """
    picture, told = _compared(original, form)
    kept = {} if picture is None else kept_of(picture, options.metadata)
    cut = _with_alpha(upright(earlier, "PNG"))
    icc = cut.info.get("icc_profile")
    cut, profile = _as_rgb(cut, convert=options.metadata == "strip")
    # A small copy is converted: what is written keeps its colours.
    matches = None if picture is None else _matches(picture, colour.to_srgb(_reduced(cut)))
    stats = _measured(picture.size if picture is not None else cut.size, cut, matches=matches)
    save_png(cut, into, kept, icc if profile else None)
    return Finished(cut.width, cut.height, stats, (*told, *_notes(stats)))


def _compared(original: BinaryIO | None, form: str) -> tuple[Image.Image | None, tuple[str, ...]]:
    """Return the original, for comparing, where there is one that can be decoded; and what to know.

    `finish` took one that cannot be decoded, too.
    """
    if original is None:
        return None, ()
    try:
        return upright(original, form), ()
    except NotDecoded as error:
        return None, (f"the original cannot be decoded ({error}): none of its metadata are kept",)


def _without_original(result: BinaryIO, into: BinaryIO, note: str) -> Finished:
    cut = colour.to_srgb(_with_alpha(upright(result, "PNG")))
    save_png(_cleared(cut), into, {}, None)
    return Finished(cut.width, cut.height, _measured(cut.size, cut, matches=None), (note,))


def _notes(stats: Measured) -> tuple[str, ...]:
    (wide, high), (width, height) = stats.result, stats.original
    if not same_aspect(stats.result, stats.original):
        sizes = f"{wide} x {high} pixels for an original of {width} x {height}"
        return (f"the result has another shape, {sizes}: it is kept as it came",)
    if stats.matches is False:
        return ("the result does not show what the original shows: its own pixels are used",)
    return ()


def _as_rgb(picture: Image.Image, *, convert: bool) -> tuple[Image.Image, colour.Profile | None]:
    """Return the original as RGB or RGBA, and its profile where it is another than sRGB.

    A wide profile is kept, and the pixels with it, so that they stay what they are.
    """
    profile = colour.profile_of(picture)
    if convert or picture.mode not in ("RGB", "RGBA") or colour.is_srgb(profile):
        return colour.to_srgb(picture), None
    return picture, profile


def _with_alpha(image: Image.Image) -> Image.Image:
    return image if image.mode in ("LA", "RGBA") else image.convert("RGBA")


# --- the pixels -----------------------------------------------------------------------------


def _hybrid(picture: Image.Image, cut: Image.Image, profile: colour.Profile | None) -> Image.Image:
    """Turn the original into its cut-out, in place."""
    alpha = _enlarged(cut.getchannel("A"), picture.size)
    if picture.mode == "RGBA":
        alpha = ImageChops.darker(alpha, picture.getchannel("A"))
    transform = colour.from_srgb(profile) if profile else None
    for box in _tiles(picture.size):
        matte = alpha.crop(box)
        low, high = _range(matte)
        if high == 0:
            picture.paste((0, 0, 0, 0)[: len(picture.mode)], box)
        elif low < _SOLID:
            edge = _edge(picture.crop(box), cut, _scaled(box, picture.size, cut.size), transform)
            picture.paste(_blended(*edge, matte), box)
    picture.putalpha(alpha)
    return picture


def _tiles(size: tuple[int, int]) -> Iterator[Box]:
    width, height = size
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            yield left, top, min(left + _TILE, width), min(top + _TILE, height)


def _range(matte: Image.Image) -> tuple[int, int]:
    return matte.getextrema()  # type: ignore[return-value]


def _scaled(
    box: Box, size: tuple[int, int], other: tuple[int, int]
) -> tuple[float, float, float, float]:
    across, down = other[0] / size[0], other[1] / size[1]
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down


def _edge(
    tile: Image.Image,
    cut: Image.Image,
    place: tuple[float, float, float, float],
    transform: ImageCms.ImageCmsTransform | None,
) -> tuple[Image.Image, Image.Image]:
    """Return the original's and the result's colours of a tile, the latter enlarged to it."""
    left, top = (max(0, int(place[axis]) - _MARGIN) for axis in (0, 1))
    right, bottom = (
        min(side, int(end) + 1 + _MARGIN) for side, end in zip(cut.size, place[2:], strict=True)
    )
    inner = (place[0] - left, place[1] - top, place[2] - left, place[3] - top)
    near = cut.crop((left, top, right, bottom))
    colours = near.resize(tile.size, Image.Resampling.BICUBIC, box=inner).convert("RGB")
    if transform is not None:
        ImageCms.applyTransform(colours, transform, inPlace=True)
    return tile.convert("RGB"), colours


def _blended(tile: Image.Image, colours: Image.Image, matte: Image.Image) -> Image.Image:
    blended = Image.composite(tile, colours, matte.point(_RAMP))
    blended.paste((0, 0, 0), mask=matte.point(_GONE))
    return blended


def _enlarged(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def _cleared(cut: Image.Image) -> Image.Image:
    """Make everything black that is fully transparent, in place."""
    for box in _tiles(cut.size):
        gone = cut.crop(box).getchannel("A").point(_GONE)
        if gone.getbbox():
            cut.paste((0, 0, 0, 0), box, gone)
    return cut


def _hides_colours(cut: Image.Image) -> bool:
    return any(_hides(cut.crop(box)) for box in _tiles(cut.size))


def _hides(tile: Image.Image) -> bool:
    matte = tile.getchannel("A")
    if _range(matte)[0] > 0:
        return False
    colours = tile.convert("RGB" if tile.mode == "RGBA" else "L")
    hidden = Image.new(colours.mode, colours.size)
    hidden.paste(colours, mask=matte.point(_GONE))
    return hidden.getbbox() is not None


# --- what is measured -----------------------------------------------------------------------


def _measured(size: tuple[int, int], cut: Image.Image, *, matches: bool | None) -> Measured:
    alpha = cut.getchannel("A")
    small = _reduced(alpha)
    data, across = small.tobytes(), small.width
    rows = [data[start : start + across] for start in range(0, len(data), across)]
    wide, high = alpha.size
    edges = ((0, 0, wide, 1), (wide - 1, 0, wide, high), (0, high - 1, wide, high), (0, 0, 1, high))
    top, right, bottom, left = (_share(alpha.crop(box).point(_IS_KEPT)) for box in edges)
    return Measured(
        size, cut.size, _share(alpha), (top, right, bottom, left), islands(rows), matches
    )


_IS_KEPT = [0] * 128 + [255] * 128


def _share(alpha: Image.Image) -> float:
    return ImageStat.Stat(alpha).mean[0] / 255


def _reduced(image: Image.Image) -> Image.Image:
    """Return a small copy, strip by strip: Pillow weighs alpha on a copy of what it scales."""
    factor = max(1, -(-max(image.size) // _SMALL))
    small = Image.new(image.mode, (-(-image.width // factor), -(-image.height // factor)))
    for top in range(0, image.height, factor * _ROWS):
        strip = image.crop((0, top, image.width, min(image.height, top + factor * _ROWS)))
        small.paste(strip.reduce(factor), (0, top // factor))
    small.info = image.info
    return small


def _matches(picture: Image.Image, cut: Image.Image) -> bool | None:
    """Compare where the result is opaque; None where that is next to nothing."""
    small = _reduced(cut.getchannel("A"))
    solid = small.point([0] * _SOLID + [255] * (256 - _SOLID)).filter(ImageFilter.MinFilter(3))
    if solid.histogram()[255] < _LEAST_COMPARED:
        return None
    shown = colour.to_srgb(_reduced(picture)).convert("RGB").resize(small.size)
    off = ImageChops.difference(shown, _reduced(cut).convert("RGB").resize(small.size))
    return max(ImageStat.Stat(off, mask=solid).mean) <= _OFF


# --- writing --------------------------------------------------------------------------------


def save_png(
    image: Image.Image,
    into: BinaryIO,
    options: dict[str, Any],
    profile: bytes | None = None,
) -> None:
    """Write a PNG, packed as fast as a small machine needs it.

    Args:
        image: The picture.
        into: Where to.
        options: The metadata, as `kept_of` gives them.
        profile: The profile of its colours; None for sRGB, which is named by a chunk.
    """
    image.info = {}
    strategy = packing(image)
    options = {**_chunks_of(options, profile), "compress_type": strategy}
    image.save(into, "PNG", compress_level=1, **options)


def _chunks_of(options: dict[str, Any], profile: bytes | None) -> dict[str, Any]:
    info, options = PngInfo(), dict(options)
    if xmp := options.pop("xmp", None):
        info.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
    if profile is None:
        info.add(b"sRGB", b"\0")
    else:
        options["icc_profile"] = profile
    return {**options, "pnginfo": info}


def packing(image: Image.Image) -> int:
    """Return zlib's strategy for a picture: run lengths only where that packs about as well.

    On noisy photographs level 1 finds next to no repetition and takes half as long again to say
    so; on smooth ones it halves the file. A strip from the middle tells which it is.
    """
    top = max(0, (image.height - _STRIP) // 2)
    strip = image.crop((0, top, image.width, min(image.height, top + _STRIP)))
    plain, runs = (_packed(strip, strategy) for strategy in (_DEFAULT, _RLE))
    return _RLE if runs <= plain * _RLE_WORTH else _DEFAULT


_DEFAULT, _RLE = 0, 3


def _packed(strip: Image.Image, strategy: int) -> int:
    buffer = io.BytesIO()
    strip.save(buffer, "PNG", compress_level=1, compress_type=strategy)
    return buffer.seek(0, os.SEEK_END)
