"""Looks at an original of any kind: what it is, whether it is whole, what has to be done to it.

JPEG, PNG and WebP are inspected by `edges.pictures`, as strictly as ever. The kinds that must be
converted anyway are checked by their headers, so that the limit of pixels holds before anything
is unpacked, and then decoded once.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, BinaryIO, Literal

from PIL import Image

from bgremover.core.errors import (
    Animated,
    NotAnImage,
    TooLarge,
    TooManyPixels,
    Truncated,
    UnsupportedFormat,
)
from bgremover.core.job import Picture
from bgremover.core.naming import counted
from bgremover.edges import pictures
from bgremover.studio import colour
from bgremover.studio.opening import NotDecoded, decoding, opened, orientation, plain

Oversize = Literal["shrink", "reject"]

SENDABLE = ("JPEG", "PNG", "WEBP")
_SIDEWAYS = (5, 6, 7, 8)
_HEAD = 4096
_PIECE = 1 << 16
_BYTES_A_PIXEL = 8  # of the largest pixels there are, four channels of 16 bits
_ROOM = 10_000_000  # bytes of a file besides its pixels
_TRANSPARENT = 0.01  # of the area; less are stray pixels, not a cut-out

_KINDS = (
    (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "TIFF"),
    (rb"BM.{4}\0{4}", "BMP"),
    (rb"GIF8[79]a", "GIF"),
)
_SENT = ((rb"\xff\xd8\xff", "JPEG"), (rb"\x89PNG\r\n", "PNG"), (rb"RIFF....WEBP", "WEBP"))
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIF", b"heix": "HEIF"}
_BRANDS |= {b"heim": "HEIF", b"heis": "HEIF", b"hevc": "HEIF", b"hevx": "HEIF"}


@dataclass(frozen=True, slots=True)
class Limits:
    """What is taken.

    Args:
        max_upload_bytes: The bytes that the API takes.
        max_pixels: Width times height of the original.
        oversize: Whether a file of more bytes is shrunk for the upload, or rejected.
    """

    max_upload_bytes: int
    max_pixels: int = 100_000_000
    oversize: Oversize = "shrink"


@dataclass(frozen=True, slots=True)
class Look:
    """What was found.

    Args:
        picture: Its sum, format (JPEG, PNG, WEBP, HEIF, AVIF, TIFF, BMP or GIF), and width and
            height, upright.
        needs_conversion: Whether the upload is made from it; otherwise it is sent byte for byte.
        transparent: Whether part of it is transparent already.
        frames: How many pictures the file has; the first one is used.
        note: What a person should know, as that other pages are left out; empty if nothing.
    """

    picture: Picture
    needs_conversion: bool
    transparent: bool
    frames: int = 1
    note: str = ""


def look(file: BinaryIO, limits: Limits) -> Look:
    """Find out what an original is, and whether it can be sent or converted.

    Args:
        file: The original, open for reading, at any position.
        limits: What is taken.

    Raises:
        FileFault: It cannot be sent: EmptyImage, NotAnImage, UnsupportedFormat, Animated,
            TooManyPixels, TooLarge, Truncated or Unreadable.
        Blocked: It may not be read.
        LocalFault: This machine cannot read it now, or has not the memory.
    """
    form = _kind(file)
    if form is None:
        return _sendable(file, limits)
    return _convertible(file, form, limits)


def area(file: BinaryIO) -> tuple[str, int]:
    """Return the format and the pixels that the header tells of; no pixels where it is no good.

    Args:
        file: Open for reading, at any position.
    """
    form = _kind(file) or _sendable_kind(file)
    if form is None:
        return "", 0
    try:
        width, height = opened(file, form).size
    except NotDecoded:
        return form, 0
    return form, width * height


def _sendable_kind(file: BinaryIO) -> str | None:
    with decoding():
        file.seek(0)
        head = file.read(_HEAD)
    kinds = (kind for magic, kind in _SENT if re.match(magic, head, re.DOTALL))
    return next(kinds, None)


def _kind(file: BinaryIO) -> str | None:
    """Return the format if it is one that is converted; of all others `inspect` knows better."""
    with decoding():
        file.seek(0)
        head = file.read(_HEAD)
    if head[4:8] == b"ftyp":
        return _kind_of_boxes(head)
    kinds = (kind for magic, kind in _KINDS if re.match(magic, head, re.DOTALL))
    return next(kinds, None)


def _kind_of_boxes(head: bytes) -> str | None:
    length = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, length, 4))]
    return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), None)


# --- JPEG, PNG, WebP ------------------------------------------------------------------------


def _sendable(file: BinaryIO, limits: Limits) -> Look:
    shrinks = limits.oversize == "shrink"
    most = limits.max_pixels * _BYTES_A_PIXEL + _ROOM if shrinks else limits.max_upload_bytes
    found = pictures.inspect(file, pictures.Limits(most, limits.max_pixels))
    size = file.seek(0, os.SEEK_END)
    try:
        image = opened(file, found.format)
        converted = size > limits.max_upload_bytes or _is_odd(image, file)
        frames = 2 if "mp" in image.info else 1
        turned = orientation(image) in _SIDEWAYS
        transparent = image.has_transparency_data and _is_transparent(image)
    except NotDecoded as error:
        # Its pixels are whole; what is around them keeps Pillow from opening it. The API may.
        if size > limits.max_upload_bytes:
            raise TooLarge(f"the file is too large and cannot be converted: {error}") from error
        return Look(found, needs_conversion=False, transparent=False)
    if turned:
        found = Picture(found.sha256, found.format, found.height, found.width)
    return Look(found, converted, transparent, frames)


def _is_odd(image: Image.Image, file: BinaryIO) -> bool:
    """Tell whether anything about a whole JPEG, PNG or WebP keeps it from being sent as it is."""
    if orientation(image) != 1 or "mp" in image.info or image.mode in ("CMYK", "I", "I;16"):
        return True
    if image.format == "PNG":
        file.seek(24)
        if file.read(1) == b"\x10":
            return True
    profile = colour.profile_of(image)
    return profile is not None and not colour.is_srgb(profile)


def _is_transparent(image: Image.Image) -> bool:
    with decoding():
        image.load()
        alpha = plain(image).getchannel("A")
    clear = sum(alpha.histogram()[:128])
    return clear >= _TRANSPARENT * image.width * image.height


# --- what is converted ----------------------------------------------------------------------


def _convertible(file: BinaryIO, form: str, limits: Limits) -> Look:
    with decoding():
        size = file.seek(0, os.SEEK_END)
    if size > limits.max_pixels * _BYTES_A_PIXEL + _ROOM:
        raise TooLarge(f"the file has {size / 1e6:.0f} MB, more than the pixels that are taken")
    try:
        return _decoded(file, size, form, limits)
    except NotDecoded as error:
        if _is_cut_off(file, size, form):
            raise Truncated(f"the {form} is cut off: {error}") from error
        raise NotAnImage(f"the {form} is damaged: {error}") from error


def _decoded(file: BinaryIO, size: int, form: str, limits: Limits) -> Look:
    if form in ("HEIF", "AVIF") and (end := _boxes_end(file, size)) > size:
        raise Truncated(f"the {form} is cut off: it lacks {counted(end - size, 'byte')}")
    image = opened(file, form)
    _refuse_many(image.size, limits.max_pixels)
    _refuse_kinds(image, form, file)
    frames = _frames(image, form)
    with decoding():
        image.load()
        if form in ("HEIF", "AVIF", "GIF") and _ends_unwritten(file, size, form):
            raise Truncated(f"the {form} was not written to its end")
        shown = plain(image)
        transparent = shown.mode in ("LA", "RGBA") and _is_transparent(shown)
    width, height = image.size
    if orientation(image) in _SIDEWAYS:
        width, height = height, width
    note = f"only the first of its {frames} pictures is used" if frames > 1 else ""
    picture = Picture(_sum(file), form, width, height)
    return Look(picture, needs_conversion=True, transparent=transparent, frames=frames, note=note)


def _refuse_many(size: tuple[int, int], most: int) -> None:
    if size[0] * size[1] > most:
        raise TooManyPixels(
            f"the picture has {size[0] * size[1] / 1e6:.1f} megapixels ({size[0]} x {size[1]}),"
            f" at most {most / 1e6:g} are taken"
        )


_DNG, _SUBFILE = 50706, 254


def _refuse_kinds(image: Image.Image, form: str, file: BinaryIO) -> None:
    if form != "TIFF":
        return
    tags: Any = getattr(image, "tag_v2", {})
    file.seek(8)
    if _DNG in tags or tags.get(_SUBFILE, 0) & 1 or file.read(2) == b"CR":
        raise UnsupportedFormat("the file is a camera's RAW; develop it and save it as JPEG")
    if image.mode in ("I", "F"):
        raise UnsupportedFormat("the TIFF has 32 bits a channel; save it with 8 or 16")


def _frames(image: Image.Image, form: str) -> int:
    with decoding():
        frames = int(getattr(image, "n_frames", 1))
    if frames > 1 and form in ("GIF", "AVIF"):
        raise Animated(f"the {form} is animated: it has {frames} frames")
    return frames


def _sum(file: BinaryIO) -> str:
    digest = sha256()
    file.seek(0)
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()


# --- is it cut off? -------------------------------------------------------------------------


def _boxes_end(file: BinaryIO, size: int) -> int:
    """Return where the last box of a HEIF or AVIF ends, by what the boxes say."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length == 0:  # up to the end, wherever that is
            return size
        at += max(length, 8)
    return at


def _is_cut_off(file: BinaryIO, size: int, form: str) -> bool:
    """Tell whether a picture that cannot be decoded is too short, or is not written to its end."""
    if _ends_unwritten(file, size, form):
        return True
    match form:
        case "BMP":
            file.seek(2)
            return int.from_bytes(file.read(4), "little") > size
        case "TIFF":
            return _tiff_end(file) > size
        case _:
            return False


_GIF_END = b"\0;"  # the end of the data, and of the file
_ZEROS = 4096  # copiers do not write in smaller pieces


def _ends_unwritten(file: BinaryIO, size: int, form: str) -> bool:
    file.seek(max(0, size - _ZEROS))
    tail = file.read(_ZEROS)
    return not any(tail) or (form == "GIF" and not tail.rstrip(b"\0").endswith(_GIF_END))


def _tiff_end(file: BinaryIO) -> int:
    """Return how far the first directory of a TIFF, and the pixels it names, reach."""
    file.seek(0)
    head = file.read(8)
    order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
    at = int.from_bytes(head[4:8], order)
    file.seek(at)
    entries = int.from_bytes(file.read(2), order)
    return max(at + 2 + 12 * entries, *_strips(file, at), 0)


def _strips(file: BinaryIO, directory: int) -> Iterator[int]:
    with suppress(NotDecoded), decoding():
        from PIL.TiffImagePlugin import ImageFileDirectory_v2  # noqa: PLC0415 - slow, and rare

        file.seek(0)
        tags = ImageFileDirectory_v2(file.read(8))
        file.seek(directory)
        tags.load(file)
        for starts, counts in ((273, 279), (324, 325)):
            pairs = zip(tags.get(starts, ()), tags.get(counts, ()), strict=False)
            yield from (start + count for start, count in pairs)
