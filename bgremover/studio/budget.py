"""How much memory picture work takes, so that no more of it runs side by side than there is room.

Measured as the growth of the peak resident size (VmHWM) on pictures of 60 megapixels, rounded up;
tests/studio/test_budget.py measures again. A bitmap in memory is 4 bytes a pixel, whatever its
colours; what is above that are copies, turns and the decoders' own.
"""

import math
from typing import Literal

from bgremover.core.recipe import PRESETS, Box, Recipe, Size, plan

Work = Literal["look", "upload", "finish"]

_FIXED = 12_000_000  # bytes: file buffers, strips, what is not given back between two pictures
_ALPHA, _BITMAP = 1, 4  # bytes a pixel

# Bytes for each pixel of the original. WebP is decoded through two canvases of its own, HEIF and
# AVIF through planes; a progressive JPEG keeps the coefficients of all its pixels.
_LOOK = {"JPEG": 7, "PNG": 6, "TIFF": 9, "BMP": 5, "GIF": 6, "WEBP": 18, "AVIF": 10, "HEIF": 9}
_UPLOAD = {"JPEG": 11, "PNG": 11, "TIFF": 12, "BMP": 10, "GIF": 11, "WEBP": 18, "AVIF": 14}
_UPLOAD |= {"HEIF": 14}
_DECODE = {"JPEG": 10, "PNG": 10, "TIFF": 10, "BMP": 9, "GIF": 9, "WEBP": 18, "AVIF": 11}
_DECODE |= {"HEIF": 11}
_KEPT = {"AVIF": 3, "HEIF": 5}  # what the decoder holds on to while its picture is used
_UNKNOWN = 18  # no format takes more


_LOSSY_ALPHA = 36  # bytes a pixel of noise: an upload that is not opaque may be a lossy WebP


def estimate(
    work: Work, form: str, pixels: int, result_pixels: int = 0, *, transparent: bool = False
) -> int:
    """Return the bytes of memory that work on an original takes at most.

    Args:
        work: look: `intake.look`. upload: `upload.prepare`. finish: `finish.finish`.
        form: The format of the original; one that is not known yet may be any.
        pixels: Width times height of the original.
        result_pixels: The same of the result; for `finish`.
        transparent: Whether part of the original is transparent; for `upload`.
    """
    match work:
        case "look":
            return _FIXED + _LOOK.get(form, _UNKNOWN) * pixels
        case "upload":
            packing = _LOSSY_ALPHA if transparent else 0
            return _FIXED + (_UPLOAD.get(form, _UNKNOWN) + packing) * pixels
        case "finish":
            held = (_BITMAP + _ALPHA + _KEPT.get(form, 0)) * pixels + _BITMAP * result_pixels
            return _FIXED + max(_DECODE.get(form, _UNKNOWN) * pixels, held)


# Bytes for each pixel of the picture that is written, besides what it is drawn from.
_WRITING = {"jpeg": 4, "png": 4, "tiff": 8, "webp": 15, "avif": 24}


def rendering(recipe: Recipe, master: Size, form: str = "", subject: Box | None = None) -> int:
    """Return the bytes of memory that a rendition takes at most.

    Args:
        recipe: What is drawn.
        master: Width and height of the cut-out, in pixels.
        form: The format of the original, for recipes that show it.
        subject: What of the cut-out is not transparent; where it is not known, as much as can be.
    """
    pixels = master[0] * master[1]
    shown = _DECODE.get(form, _UNKNOWN) * pixels if recipe.show == "original" else 0
    canvas = math.prod(plan(recipe, master, subject).canvas)
    drawn = _BITMAP * canvas + _WRITING[recipe.format] * canvas
    return _FIXED + 11 * pixels + shown + drawn


def most_of_rendering(memory: int, master: Size, form: str = "") -> int:
    """Return the bytes of memory that a rendition may take.

    Whoever may drop images may write recipes. What a preset takes is no more than the picture
    asks for, and pictures are worked on that take more than there is.

    Args:
        memory: How much all work on pictures may take.
        master: Width and height of the cut-out, in pixels.
        form: The format of the original.
    """
    return max(memory, *(rendering(preset, master, form) for preset in PRESETS.values()))
