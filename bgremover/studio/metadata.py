"""What of an original's metadata goes into its cut-out.

`safe`, the default, keeps what a picture needs and what a photographer is owed, and nothing that
tells where or with what it was taken. Thumbnails are never kept: they show the background.
"""

from contextlib import suppress
from typing import Any, Literal

from PIL import Image

Policy = Literal["keep", "strip", "safe"]

_ARTIST, _COPYRIGHT, _ORIENTATION = 0x013B, 0x8298, 0x0112


# How the pixels of a TIFF lie in its file: not true of the cut-out.
_LAYOUT = (
    *(254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324),
    *(325, 330, 332, 338, 339, 347, 529, 530, 531, 532, 34675),
)


def kept_of(image: Image.Image, policy: Policy) -> dict[str, Any]:
    """Return what of the metadata is to be written: what `Image.save` calls dpi, exif and xmp.

    Args:
        image: The original, as `opening.upright` gives it.
        policy: keep: EXIF with GPS, XMP and resolution. safe: resolution, copyright and artist.
            strip: nothing.
    """
    if policy == "strip":
        return {}
    options: dict[str, Any] = {}
    if dpi := _dpi(image):
        options["dpi"] = dpi
    with suppress(Exception):  # hostile metadata raise what they like; then there are none
        exif = _kept(image) if policy == "keep" else _safe(image)
        if len(exif):
            options["exif"] = exif.tobytes()
    if policy == "keep" and isinstance(xmp := image.info.get("xmp"), bytes):
        options["xmp"] = xmp
    return options


def _safe(image: Image.Image) -> Image.Exif:
    given, exif = image.getexif(), Image.Exif()
    for tag in (_ARTIST, _COPYRIGHT):
        if value := given.get(tag):
            exif[tag] = value
    if len(exif):
        exif[_ORIENTATION] = 1
    return exif


def _kept(image: Image.Image) -> Image.Exif:
    # Written afresh, EXIF data have no second directory, where thumbnails lie.
    exif = image.getexif()
    for tag in _LAYOUT:
        exif.pop(tag, None)
    exif[_ORIENTATION] = 1
    return exif


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    with suppress(Exception):
        across, down = (float(value) for value in image.info["dpi"])
        if 1 <= across <= 100_000 and 1 <= down <= 100_000:  # noqa: PLR2004 - else nonsense
            return across, down
    return None
