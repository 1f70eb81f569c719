"""Scenes whose truth is known: a textured subject, its alpha, and the photograph of both."""

import io
import struct
from dataclasses import dataclass
from typing import Any

import pillow_heif
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIZE = (480, 360)


@dataclass(frozen=True, slots=True)
class Scene:
    """`subject` and `alpha` are the truth; `photo` shows them over a green background."""

    subject: Image.Image
    alpha: Image.Image
    photo: Image.Image


def scene(size: tuple[int, int] = SIZE, *, soft: float = 1.5) -> Scene:
    width, height = size
    ramp = Image.linear_gradient("L").resize(size)
    colours = (ramp, Image.new("L", size, 80), ramp.transpose(Image.Transpose.ROTATE_180))
    noise = Image.effect_noise(size, 50)
    texture = Image.merge("RGB", [noise] * 3)
    subject = ImageChops.add(Image.merge("RGB", colours), texture, 1, -128)
    alpha = Image.new("L", size, 0)
    box = (width * 0.2, height * 0.15, width * 0.75, height * 0.9)
    ImageDraw.Draw(alpha).ellipse(box, fill=255)
    alpha = alpha.filter(ImageFilter.GaussianBlur(soft))
    photo = Image.composite(subject, Image.new("RGB", size, (40, 160, 60)), alpha)
    return Scene(subject, alpha, photo)


def result_of(given: Scene, size: tuple[int, int] | None = None) -> bytes:
    """Return the PNG that a service would send: clean colours, at its own size."""
    cut = given.subject.copy()
    cut.putalpha(given.alpha)
    return encoded(cut.resize(size, Image.Resampling.LANCZOS) if size else cut, "PNG")


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:  # noqa: ANN401 - Pillow's
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def solid(alpha: Image.Image, least: int = 252) -> Image.Image:
    """Return a mask of the pixels that are surely subject."""
    return alpha.point([0] * least + [255] * (256 - least)).filter(ImageFilter.MinFilter(5))


def furthest(one: Image.Image, other: Image.Image, mask: Image.Image | None = None) -> int:
    """Return the largest difference of a channel, in levels, where the mask is set."""
    off = ImageChops.difference(one, other)
    if mask is not None:
        off = Image.composite(off, Image.new(off.mode, off.size), mask)
    extrema = off.getextrema()
    pairs = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return max(int(high) for _, high in pairs)


def heic(image: Image.Image, quality: int = 95) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=quality)
    return buffer.getvalue()


def grey_of_16_bits(image: Image.Image) -> Image.Image:
    grey = _in_high_bytes(image.convert("L").tobytes(), low=b"\x4d")
    return Image.frombytes("I;16", image.size, grey)


def tiff_of_16_bits(image: Image.Image) -> bytes:
    """Write an uncompressed TIFF by hand: Pillow writes no colours of 16 bits."""
    width, height = image.size
    pixels = _in_high_bytes(image.tobytes(), low=bytes(range(256)))
    entries = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 8 + len(pixels)), (259, 3, 1, 1),
        (262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, 3), (278, 3, 1, height),
        (279, 4, 1, len(pixels)),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<I", 8 + len(pixels) + 6)
    return head + pixels + b"\x10\0" * 3 + struct.pack("<H", len(entries)) + directory + bytes(4)


def _in_high_bytes(values: bytes, low: bytes) -> bytes:
    pixels = bytearray(2 * len(values))
    pixels[::2] = (low * (len(values) // len(low) + 1))[: len(values)]
    pixels[1::2] = values
    return bytes(pixels)


TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How an upright picture is stored when its EXIF data say so."""


def turned(image: Image.Image, turn: int, form: str, **options: Any) -> bytes:  # noqa: ANN401
    exif = Image.Exif()
    exif[0x0112] = turn
    method = TURNS[turn]
    stored = image if method is None else image.transpose(method)
    return encoded(stored, form, exif=exif.tobytes(), **options)
