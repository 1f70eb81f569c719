"""Opens originals and results: the one plugin that the content asks for, decoded, upright, plain.

Image.open is not used, for the reasons that `edges.pictures` gives: the caller has looked at the
header and knows the format and that the pixels are within the limits.
"""

import errno
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from PIL import Image

from bgremover.core.errors import local_fault

ORIENTATION = 0x0112
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_TURNED = range(2, 9)


class NotDecoded(Exception):
    """The decoder does not take the bytes."""


def opened(file: BinaryIO, form: str) -> Image.Image:
    """Read the header of a picture; decodes nothing yet.

    Args:
        file: The picture, open for reading, at any position.
        form: Its format, by its content: JPEG, PNG, WEBP, HEIF, AVIF, TIFF, BMP or GIF.

    Raises:
        NotDecoded: It is no such picture, or damaged.
        LocalFault: This machine cannot read it now, or has not the memory.
    """
    file.seek(0)
    with decoding():
        return _plugin(form)(file)


def upright(file: BinaryIO, form: str) -> Image.Image:
    """Decode the first picture of a file and turn it as its EXIF data ask.

    Args:
        file: The picture, open for reading, at any position.
        form: Its format, as for `opened`.

    Returns:
        Mode L, LA, RGB, RGBA, CMYK or LAB, 8 bits a channel, colours as they are stored; `info`
        as Pillow fills it.

    Raises:
        NotDecoded: It cannot be decoded.
        LocalFault: This machine cannot read it now, or has not the memory.
    """
    image = opened(file, form)
    with decoding():
        image.load()
        _carry_tags(image)
        return plain(_turned(image))


@contextmanager
def decoding() -> Iterator[None]:
    """Give all that a decoder raises on hostile bytes one name, and the machine's faults theirs."""
    try:
        yield
    except MemoryError as error:
        no_memory = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        raise local_fault(no_memory, "decoding a picture") from error
    except NotDecoded:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise local_fault(error, "reading a picture") from error
        raise NotDecoded(str(error) or type(error).__name__) from error


_TAGS = (270, 271, 272, 305, 306, 315, 33432)
"""What a TIFF may say besides how it is laid out: description, maker, artist, copyright, ..."""


def _carry_tags(image: Image.Image) -> None:
    """Keep what the directory of a TIFF says with its picture, as the EXIF data that it is."""
    with suppress(Exception):  # hostile metadata raise what they like
        tags = getattr(image, "tag_v2", {})
        exif = Image.Exif()
        exif.update({tag: tags[tag] for tag in _TAGS if tag in tags})
        if len(exif):
            image.info["exif"] = exif.tobytes()


@contextmanager
def working(doing: str) -> Iterator[None]:
    """Give the faults of this machine, out of memory or out of disk, their names."""
    try:
        yield
    except MemoryError as error:
        raise local_fault(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), doing) from error
    except OSError as error:
        if error.errno is None:
            raise
        raise local_fault(error, doing) from error


def orientation(image: Image.Image) -> int:
    """Return how a picture is stored, 1 to 8 as EXIF counts; 1, upright, where nothing says so."""
    with suppress(Exception):  # hostile metadata raise what they like
        found = image.getexif().get(ORIENTATION, 1)
        return found if found in _TURNED else 1
    return 1


def plain(image: Image.Image) -> Image.Image:
    """Return the picture in one of the modes that `upright` names."""
    match image.mode:
        case "L" | "LA" | "RGB" | "RGBA" | "CMYK" | "LAB":
            return _keyed(image)
        case "P" | "PA":
            return image.convert("RGBA" if image.has_transparency_data else "RGB")
        case "1":
            return image.convert("L")
        case mode if mode in _GREY_16:
            return _from_16_bits(image)
        case "I":
            return _from_16_bits(image)
        case _:
            return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _keyed(image: Image.Image) -> Image.Image:
    """Make alpha of the one transparent colour that a PNG may name."""
    if "transparency" not in image.info or image.mode not in ("L", "RGB"):
        return image
    return image.convert("LA" if image.mode == "L" else "RGBA")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Keep the high byte, as Pillow does for 16-bit colours; its own conversion cuts off at 255."""
    grey = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    grey.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return grey


def _turned(image: Image.Image) -> Image.Image:
    turn = orientation(image)
    return image if turn == 1 else image.transpose(_METHODS[turn])


_METHODS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_PLUGINS = {
    "JPEG": ("PIL.JpegImagePlugin", "JpegImageFile"),
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "WEBP": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "AVIF": ("PIL.AvifImagePlugin", "AvifImageFile"),
    "HEIF": ("pi_heif", "HeifImageFile"),
}


def _plugin(form: str) -> Callable[[BinaryIO], Image.Image]:
    # Imported when needed: each costs start-up time, and most runs need one or two.
    module, name = _PLUGINS[form]
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]
