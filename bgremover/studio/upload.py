"""What is sent: the original byte for byte where that is possible, else an upright picture in sRGB.

Pixels are kept as long as possible: a lossless picture stays lossless while it fits, then the
quality is lowered as far as nobody sees it, and only then the size.
"""

import io
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import Image

from bgremover.core.errors import TooLarge
from bgremover.studio import colour
from bgremover.studio.intake import Look, Oversize
from bgremover.studio.opening import upright, working

MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}

_LOSSY = ("JPEG", "HEIF", "AVIF", "WEBP")
_QUALITIES = (95, 92, 90, 85)
_FULL_COLOUR = 92  # the least quality at which colours are stored for every pixel
_LEAST_SIDE = 16
_STEP = 0.97  # a little smaller than the bytes ask for, so that the first try mostly fits
_BARELY_A_PNG = 0.25  # bytes a pixel: a photograph takes more, so that no try is worth its time


@dataclass(frozen=True, slots=True)
class Options:
    """What may be sent.

    Args:
        max_bytes: What the API takes.
        oversize: Whether pixels may be given up for that.
    """

    max_bytes: int
    oversize: Oversize = "shrink"


@dataclass(frozen=True, slots=True)
class Prepared:
    """An upload that is written. `note` tells how it differs from the original, if it does."""

    media_type: str
    width: int
    height: int
    note: str = ""


@working("preparing an upload")
def prepare(original: BinaryIO, found: Look, options: Options, into: BinaryIO) -> Prepared:
    """Write what is sent.

    Args:
        original: The original, open for reading, at any position.
        found: What `intake.look` found it to be.
        options: What may be sent.
        into: Where to; empty, open for writing.

    Raises:
        NotDecoded: It cannot be decoded.
        TooLarge: It does not fit, and may not be shrunk.
        LocalFault: This machine cannot read it now, or has not the memory.
    """
    picture = found.picture
    if not found.needs_conversion:
        original.seek(0)
        shutil.copyfileobj(original, into, 1 << 20)
        return Prepared(MEDIA_TYPES[picture.format], picture.width, picture.height)
    image = _opaque(colour.to_srgb(upright(original, picture.format)))
    image.info = {}
    for rung in _ladder(image, picture.format, options):
        if (packed := _packed(rung, options.max_bytes)) is not None:
            into.write(packed)
            return Prepared(MEDIA_TYPES[rung.form], *rung.image.size, _told(rung, image))
    raise TooLarge(
        f"the upload would have more than the {options.max_bytes / 1e6:g} MB that are taken"
    )


@dataclass(frozen=True, slots=True)
class _Rung:
    """One way to write an upload. `quality` is None where nothing is lost."""

    image: Image.Image
    form: str
    quality: int | None = None


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode == "RGBA" and image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    return image


def _ladder(image: Image.Image, form: str, options: Options) -> Iterator[_Rung]:
    """Yield the ways, the best first."""
    lossy = "WEBP" if image.mode == "RGBA" else "JPEG"  # a JPEG has no transparency
    pixels = image.width * image.height
    if (form not in _LOSSY or lossy == "WEBP") and options.max_bytes > pixels * _BARELY_A_PNG:
        yield _Rung(image, "PNG")
    qualities = _QUALITIES if options.oversize == "shrink" else _QUALITIES[:1]
    yield from (_Rung(image, lossy, quality) for quality in qualities)
    while options.oversize == "shrink" and min(image.size) > _LEAST_SIDE:
        image = _smaller(image, _size_at(image, lossy, qualities[-1]), options.max_bytes)
        yield _Rung(image, lossy, qualities[-1])


def _size_at(image: Image.Image, form: str, quality: int) -> int:
    return len(_packed(_Rung(image, form, quality), None) or b"")


def _smaller(image: Image.Image, size: int, most: int) -> Image.Image:
    scale = min(math.sqrt(most / size), 1.0) * _STEP
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3)


class _Full(Exception):
    """More bytes than are taken."""


class _Limited(io.BytesIO):
    """Refuses to grow beyond what is taken: what does not fit need not be finished."""

    def __init__(self, most: int | None) -> None:
        super().__init__()
        self._most = most

    def write(self, data: Any) -> int:  # noqa: ANN401 - any buffer
        written = super().write(data)
        if self._most is not None and self.tell() > self._most:
            raise _Full
        return written


def _packed(rung: _Rung, most: int | None) -> bytes | None:
    buffer = _Limited(most)
    try:
        rung.image.save(buffer, rung.form, **_options(rung))
    except _Full:
        return None
    return buffer.getvalue()


def _options(rung: _Rung) -> dict[str, Any]:
    match rung.form:
        case "PNG":
            return {"compress_level": 4}
        case "WEBP":
            return {"quality": rung.quality, "method": 2, "exact": True}
        case _:
            fine = (rung.quality or 100) >= _FULL_COLOUR
            return {"quality": rung.quality, "subsampling": 0 if fine else 2}


def _told(rung: _Rung, image: Image.Image) -> str:
    size = f"{rung.image.width} x {rung.image.height} pixels"
    shrunk = f", scaled from {image.width} x {image.height} to {size}"
    quality = f" of quality {rung.quality}" if rung.quality else ""
    return f"sent as a {rung.form}{quality}{shrunk if rung.image.size != image.size else ''}"
