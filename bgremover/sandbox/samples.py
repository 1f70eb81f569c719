"""Sample pictures for the demo: three products as a shop would photograph them, drawn here."""

import math
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIZE = (1200, 900)
_SCALE = 2  # drawn larger and reduced: smooth edges
_CANVAS = (SIZE[0] * _SCALE, SIZE[1] * _SCALE)

_Colour = tuple[int, int, int]
_Draw = Callable[[ImageDraw.ImageDraw], None]


def write_samples(folder: Path) -> list[Path]:
    """Draw the sample pictures.

    Args:
        folder: Where to; made if it is not there.

    Returns:
        The three files: a JPEG, a PNG and a WebP.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in _PICTURES.items():
        path = folder / name
        draw().resize(SIZE, Image.Resampling.LANCZOS).save(path, quality=92)
        paths.append(path)
    return paths


def write_broken(folder: Path) -> Path:
    """Write `broken.jpg`: a JPEG that ends in the middle, as a cut-off transfer leaves it.

    Args:
        folder: Where to; made if it is not there.

    Returns:
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "broken.jpg"
    _mug().resize(SIZE, Image.Resampling.BILINEAR).save(path, quality=92)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


# --- brushes ----------------------------------------------------------------------------------


def _mask(draw: _Draw, soft: float = 0.0) -> Image.Image:
    mask = Image.new("L", _CANVAS, 0)
    draw(ImageDraw.Draw(mask))
    return mask.filter(ImageFilter.GaussianBlur(soft * _SCALE)) if soft else mask


def _gradient(size: tuple[int, int], start: _Colour, end: _Colour, *, across: bool) -> Image.Image:
    ramp = Image.linear_gradient("L")
    if across:
        ramp = ramp.transpose(Image.Transpose.ROTATE_90)
    mask = ramp.resize(size, Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", size, end), Image.new("RGB", size, start), mask)


def _fill(
    picture: Image.Image, mask: Image.Image, start: _Colour, end: _Colour, *, across: bool = False
) -> None:
    box = mask.getbbox()
    if box is not None:
        paint = _gradient((box[2] - box[0], box[3] - box[1]), start, end, across=across)
        picture.paste(paint, box, mask.crop(box))


def _glaze(picture: Image.Image, mask: Image.Image, colour: _Colour, strength: float) -> None:
    """Paint a colour, `strength` 0 to 1, through a mask."""
    picture.paste(colour, (0, 0), mask.point([round(value * strength) for value in range(256)]))


def _at(*points: float) -> list[float]:
    return [value * _SCALE for value in points]


def _ellipse(*box: float) -> _Draw:
    return lambda draw: draw.ellipse(_at(*box), fill=255)


def _polygon(*points: float) -> _Draw:
    return lambda draw: draw.polygon(_at(*points), fill=255)


def _rounded(radius: float, *box: float) -> _Draw:
    return lambda draw: draw.rounded_rectangle(_at(*box), radius=radius * _SCALE, fill=255)


def _line(width: float, *points: float) -> _Draw:
    return lambda draw: draw.line(
        _at(*points), fill=255, width=round(width * _SCALE), joint="curve"
    )


def _curve(*controls: float, steps: int = 48) -> list[float]:
    """Return points on the closed Catmull-Rom curve through the control points."""
    pairs = list(zip(controls[::2], controls[1::2], strict=True))
    count = len(pairs)
    points: list[float] = []
    for index in range(count):
        four = [pairs[(index + shift) % count] for shift in (-1, 0, 1, 2)]
        for step in range(steps):
            points += [_spline([p[axis] for p in four], step / steps) for axis in (0, 1)]
    return points


def _spline(p: list[float], t: float) -> float:
    return 0.5 * (
        2 * p[1]
        + (p[2] - p[0]) * t
        + (2 * p[0] - 5 * p[1] + 4 * p[2] - p[3]) * t**2
        + (3 * p[1] - p[0] - 3 * p[2] + p[3]) * t**3
    )


def _without(mask: Image.Image, hole: Image.Image) -> Image.Image:
    return ImageChops.subtract(mask, hole)


# --- pictures ---------------------------------------------------------------------------------


def _mug() -> Image.Image:
    picture = _gradient(_CANVAS, (246, 241, 234), (228, 218, 206), across=False)
    red, dark = (214, 72, 58), (138, 34, 32)
    handle = _without(
        _mask(_rounded(95, 690, 300, 920, 640)), _mask(_rounded(55, 690, 352, 868, 588))
    )
    _fill(picture, handle, (196, 60, 50), (128, 30, 30))
    body = _mask(_polygon(*_side(340, 220, 760, 745, 0.12)))
    _fill(picture, body, red, dark, across=True)
    _stripe(picture, body)
    _glaze(
        picture,
        ImageChops.darker(_mask(_rounded(30, 385, 300, 440, 680), 14), body),
        (255, 236, 226),
        0.55,
    )
    _fill(picture, _mask(_ellipse(340, 170, 760, 270)), (236, 110, 92), (188, 52, 46))
    _fill(picture, _mask(_ellipse(362, 182, 738, 260)), (92, 24, 22), (150, 44, 38))
    coffee = ImageChops.darker(
        _mask(_ellipse(376, 204, 724, 276)), _mask(_ellipse(362, 182, 738, 260))
    )
    _fill(picture, coffee, (60, 32, 20), (98, 58, 36))
    return picture


def _stripe(picture: Image.Image, body: Image.Image) -> None:
    band = _without(_mask(_ellipse(300, 490, 800, 630)), _mask(_ellipse(300, 440, 800, 580)))
    _fill(picture, ImageChops.darker(band, body), (44, 74, 104), (20, 36, 58), across=True)


def _side(left: float, top: float, right: float, bottom: float, round_: float) -> list[float]:
    """Return the outline of a cylinder from the side, its bottom curved towards the viewer."""
    half, depth = (right - left) / 2, (right - left) * round_
    angles = [math.pi * step / 60 for step in range(61)]
    curve = [
        value
        for angle in angles
        for value in (
            left + half + half * math.cos(angle),
            bottom - depth + depth * math.sin(angle) ** 0.8,
        )
    ]
    return [left, top, right, top, *curve]


def _plant() -> Image.Image:
    picture = _gradient(_CANVAS, (222, 234, 240), (196, 214, 226), across=True)
    for tip_x, tip_y, bend, shade in _LEAVES:
        _leaf(picture, tip_x, tip_y, bend, shade)
    pot = _mask(_polygon(430, 560, 770, 560, 725, 815, 475, 815))
    _fill(picture, pot, (226, 136, 88), (158, 78, 44), across=True)
    _fill(
        picture,
        _mask(_rounded(16, 408, 515, 792, 590)),
        (238, 152, 102),
        (176, 90, 52),
        across=True,
    )
    _glaze(picture, _mask(_rounded(10, 440, 530, 500, 575), 10), (255, 226, 200), 0.45)
    return picture


_LEAVES = (
    (330, 260, -60, 0),
    (870, 250, 60, 10),
    (250, 420, -40, -18),
    (950, 410, 40, -12),
    (470, 130, -50, 14),
    (730, 140, 50, 6),
    (600, 80, 10, 22),
)


def _leaf(picture: Image.Image, tip_x: float, tip_y: float, bend: float, shade: int) -> None:
    root_x, root_y = 600, 560
    mid_x, mid_y = (root_x + tip_x) / 2 + bend, (root_y + tip_y) / 2 - 20
    away_x, away_y = (root_y - tip_y) * 0.15, (tip_x - root_x) * 0.15
    outline = _curve(
        root_x,
        root_y,
        mid_x + away_x,
        mid_y + away_y,
        tip_x,
        tip_y,
        mid_x - away_x,
        mid_y - away_y,
    )
    leaf = _mask(_polygon(*outline))
    _fill(picture, leaf, (96 + shade, 168 + shade, 84), (26 + shade, 98 + shade, 52))
    vein = _mask(_line(4, root_x, root_y, mid_x, mid_y, tip_x, tip_y), 1)
    _glaze(picture, ImageChops.darker(vein, leaf), (206, 232, 170), 0.6)


def _sneaker() -> Image.Image:
    picture = _gradient(_CANVAS, (255, 214, 120), (250, 190, 84), across=False)
    tongue = _mask(_polygon(*_curve(400, 250, 440, 190, 500, 180, 560, 250, 640, 340, 480, 340)))
    _fill(picture, tongue, (240, 92, 78), (176, 48, 48))
    upper = _mask(_polygon(*_curve(*_UPPER)))
    _fill(picture, upper, (66, 120, 214), (28, 58, 136))
    toe = ImageChops.darker(_mask(_ellipse(850, 440, 1150, 720)), upper)
    _fill(picture, toe, (240, 244, 250), (196, 206, 222))
    heel = ImageChops.darker(_mask(_ellipse(30, 330, 240, 680)), upper)
    _fill(picture, heel, (240, 92, 78), (176, 48, 48))
    swoosh = _mask(_polygon(*_curve(360, 500, 480, 536, 640, 496, 770, 430, 680, 536, 510, 580)))
    _fill(picture, ImageChops.darker(swoosh, upper), (255, 255, 255), (216, 226, 244))
    _laces(picture)
    sole = _mask(_rounded(42, 92, 580, 1120, 668))
    _fill(picture, sole, (252, 252, 250), (206, 208, 214))
    _fill(picture, _mask(_rounded(14, 112, 640, 1100, 670)), (120, 84, 58), (84, 56, 40))
    return picture


_UPPER = (
    120, 600, 108, 440, 120, 290, 180, 240, 290, 268, 400, 230, 470, 210, 560, 280, 700, 385,
    860, 440, 1000, 470, 1062, 520, 1082, 590, 600, 630,
)  # fmt: skip


def _laces(picture: Image.Image) -> None:
    for step in range(5):
        x, y = 510 + 62 * step, 240 + 42 * step
        lace = _mask(_line(15, x - 46, y + 62, x + 22, y + 12))
        _fill(picture, lace, (255, 255, 255), (222, 226, 236))


_PICTURES: dict[str, Callable[[], Image.Image]] = {
    "mug.jpg": _mug,
    "plant.png": _plant,
    "sneaker.webp": _sneaker,
}
