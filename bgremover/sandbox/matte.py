"""A simple matte for the stand-in: subject opaque, plain or smooth background transparent.

It is no replacement for the service: it tells subject from background by colour alone. The
background is interpolated from the image's borders; what differs from it is subject, and so is
what the subject encloses, unless that is a hole of some size.
"""

import io

from PIL import Image, ImageChops, ImageFilter, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP")

_MODEL = 256  # the longer side, in pixels, of the small copy on which regions are found
_NEAR, _FAR = 10, 44  # colour distances, 0 to 255: surely background, surely subject
_HOLE = 9  # pixels of the small copy: a smaller enclosed patch of background colour is subject
_MEDIAN = 15  # pixels of a border: a shorter stretch of subject on it is not taken for background
_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class NotAnImage(Exception):
    """The bytes are no JPEG, PNG or WebP that can be decoded to its end."""


def cut_png(data: bytes) -> bytes:
    """Cut out an uploaded image.

    Args:
        data: A JPEG, PNG or WebP.

    Returns:
        The cut-out as PNG, upright, of the same size.

    Raises:
        NotAnImage: It is none, or it is broken.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except _UNREADABLE as error:
        raise NotAnImage(str(error)) from error
    return encode_png(cut_out(upright))


def encode_png(image: Image.Image) -> bytes:
    """Return the image as PNG, encoded for speed."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def cut_out(image: Image.Image) -> Image.Image:
    """Make the background of an image transparent.

    Args:
        image: Any mode, any size. What is transparent already stays so.

    Returns:
        RGBA of the same size: a soft edge, and black wherever it is fully transparent.
    """
    given = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", given.size, "white"), given).convert("RGB")
    alpha = ImageChops.darker(_matte(flat), given.getchannel("A"))
    return _lay_out(flat, alpha)


def _matte(flat: Image.Image) -> Image.Image:
    scale = _MODEL / max(flat.size)
    width, height = (max(1, round(side * scale)) for side in flat.size)
    small = flat.resize((width, height), Image.Resampling.BOX)
    background = _background(small)
    ramp = _ramp(_distance(flat, background.resize(flat.size, Image.Resampling.BICUBIC)))
    outside = _outside(_distance(small, background).point(_below(_FAR)))
    reach = outside.filter(ImageFilter.MaxFilter(5)).resize(flat.size, Image.Resampling.BILINEAR)
    alpha = ImageChops.lighter(ramp, ImageOps.invert(reach))
    return ImageChops.darker(alpha, alpha.filter(ImageFilter.GaussianBlur(0.8)))


def _distance(one: Image.Image, other: Image.Image) -> Image.Image:
    red, green, blue = ImageChops.difference(one, other).split()
    return ImageChops.lighter(ImageChops.lighter(red, green), blue)


def _ramp(distance: Image.Image) -> Image.Image:
    slope = 255 / (_FAR - _NEAR)
    return distance.point([round(min(max((d - _NEAR) * slope, 0), 255)) for d in range(256)])


def _below(threshold: int) -> list[int]:
    return [255 if d < threshold else 0 for d in range(256)]


# --- the background ---------------------------------------------------------------------------


def _background(small: Image.Image) -> Image.Image:
    """Interpolate the borders across the image: a bilinearly blended Coons patch."""
    width, height = small.size
    top, bottom = (_border(small, (0, y, width, y + 1)) for y in (0, height - 1))
    left, right = (_border(small, (x, 0, x + 1, height)) for x in (0, width - 1))
    down = Image.linear_gradient("L").resize(small.size)
    across = Image.linear_gradient("L").transpose(Image.Transpose.ROTATE_90).resize(small.size)
    rows = _blend(top, bottom, down)
    columns = _blend(left, right, across)
    corners = _blend(_ends(top, across), _ends(bottom, across), down)
    correction = ImageChops.subtract(columns, corners, scale=1, offset=128)
    return ImageChops.add(rows, correction, scale=1, offset=-128)


def _border(small: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    strip = small.crop(box).filter(ImageFilter.MedianFilter(_MEDIAN))
    return strip.filter(ImageFilter.BoxBlur(4)).resize(small.size)


def _ends(row: Image.Image, across: Image.Image) -> Image.Image:
    first, last = (row.crop((x, 0, x + 1, 1)).resize(row.size) for x in (0, row.width - 1))
    return _blend(first, last, across)


def _blend(start: Image.Image, end: Image.Image, mask: Image.Image) -> Image.Image:
    return Image.composite(end, start, mask)


# --- the region -------------------------------------------------------------------------------


def _outside(candidates: Image.Image) -> Image.Image:
    """Keep the candidates that reach the border or surround a hole of some size."""
    frame = Image.new("L", candidates.size, 255)
    inner = (1, 1, candidates.width - 1, candidates.height - 1)
    if inner[2] > 1 and inner[3] > 1:
        frame.paste(0, inner)
    holes = candidates.filter(ImageFilter.MinFilter(_HOLE))
    return _flood(ImageChops.darker(ImageChops.lighter(frame, holes), candidates), candidates)


def _flood(seeds: Image.Image, allowed: Image.Image) -> Image.Image:
    """Grow the seeds as far as the allowed region is connected."""
    while True:
        grown = ImageChops.darker(seeds.filter(ImageFilter.MaxFilter(3)), allowed)
        if ImageChops.difference(grown, seeds).getbbox() is None:
            return grown
        seeds = grown


# --- the cut-out ------------------------------------------------------------------------------


def _lay_out(flat: Image.Image, alpha: Image.Image) -> Image.Image:
    visible = alpha.point([0] + [255] * 255)
    solid = alpha.point([0] * 255 + [255]).filter(ImageFilter.MinFilter(3))
    coloured = Image.composite(flat, _bled(flat, solid), solid)
    result = Image.composite(coloured, Image.new("RGB", flat.size), visible)
    result.putalpha(alpha)
    return result


def _bled(flat: Image.Image, solid: Image.Image) -> Image.Image:
    """Spread the subject's colour over its soft edge, where the background shines through.

    Blurring with premultiplied alpha lets only the solid part give colour.
    """
    subject = flat.copy()
    subject.putalpha(solid)
    spread = subject.convert("RGBa").filter(ImageFilter.BoxBlur(4)).convert("RGBA")
    reached = spread.getchannel("A").point([0] * 8 + [255] * 248)
    return Image.composite(spread.convert("RGB"), flat, reached)
