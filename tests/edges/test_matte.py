import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from bgremover.sandbox.matte import NotAnImage, cut_out, cut_png
from bgremover.sandbox.samples import SIZE, write_broken, write_samples

RED = (200, 30, 40)
BLUE = (30, 60, 160)


def gradient(size: tuple[int, int]) -> Image.Image:
    ramp = Image.linear_gradient("L").resize(size)
    bright, dim = Image.new("RGB", size, (250, 240, 225)), Image.new("RGB", size, (190, 200, 215))
    return Image.composite(bright, dim, ramp)


def grainy(size: tuple[int, int]) -> Image.Image:
    return Image.effect_noise(size, 4).point([value // 2 + 160 for value in range(256)])


def with_subject(picture: Image.Image, colour: tuple[int, int, int] = RED) -> Image.Image:
    picture = picture.convert("RGB").resize((1200, 900))
    ImageDraw.Draw(picture).ellipse((400, 250, 800, 650), fill=colour)
    return picture.resize((600, 450), Image.Resampling.LANCZOS)


@pytest.mark.parametrize(
    "background",
    [
        Image.new("RGB", (600, 450), "white"),
        Image.new("RGB", (600, 450), (20, 90, 60)),
        gradient((600, 450)),
        gradient((600, 450)).rotate(180),
        grainy((600, 450)),
    ],
    ids=["white", "green", "gradient", "gradient upside down", "grainy"],
)
def test_subject_is_opaque_and_background_transparent(background: Image.Image) -> None:
    alpha = cut_out(with_subject(background)).getchannel("A")
    assert alpha.crop((235, 160, 365, 290)).getextrema() == (255, 255)
    for corner in ((0, 0, 600, 110), (0, 340, 600, 450), (0, 0, 180, 450), (420, 0, 600, 450)):
        assert alpha.crop(corner).getextrema() == (0, 0)


def test_edge_is_soft_and_keeps_to_the_outline() -> None:
    alpha = cut_out(with_subject(Image.new("RGB", (600, 450), "white"))).getchannel("A")
    row = [alpha.getpixel((x, 225)) for x in range(600)]
    between = [x for x, value in enumerate(row) if value not in (0, 255)]
    assert between
    assert all(min(abs(x - 200), abs(x - 400)) <= 4 for x in between)


def test_nothing_of_the_background_is_left_under_what_is_transparent() -> None:
    result = cut_out(with_subject(gradient((600, 450))))
    hidden = result.getchannel("A").point([255] + [0] * 255)
    seen = Image.composite(result.convert("RGB"), Image.new("RGB", result.size), hidden)
    assert seen.getbbox() is None


def test_edge_has_the_colour_of_the_subject_and_no_fringe() -> None:
    result = cut_out(with_subject(Image.new("RGB", (600, 450), "white")))
    shown = Image.alpha_composite(Image.new("RGBA", result.size, "black"), result)
    green = shown.getchannel("G").histogram()
    assert not any(green[60:]), "white would shine through on black"


def test_patch_of_background_colour_inside_stays_and_a_large_hole_goes() -> None:
    picture = with_subject(Image.new("RGB", (600, 450), "white"))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((240, 180, 250, 190), fill="white")
    draw.ellipse((280, 200, 360, 280), fill="white")
    alpha = cut_out(picture).getchannel("A")
    assert alpha.getpixel((245, 185)) == 255
    assert alpha.getpixel((320, 240)) == 0


def test_subject_that_touches_the_border_a_little_is_kept() -> None:
    picture = Image.new("RGB", (600, 450), (230, 230, 235))
    ImageDraw.Draw(picture).rectangle((290, 100, 305, 450), fill=BLUE)
    alpha = cut_out(picture).getchannel("A")
    assert alpha.getpixel((297, 447)) == 255
    assert alpha.getpixel((100, 447)) == 0


def test_what_was_transparent_stays_transparent() -> None:
    picture = with_subject(Image.new("RGB", (600, 450), "white")).convert("RGBA")
    picture.paste((0, 0, 0, 0), (300, 0, 600, 450))
    alpha = cut_out(picture).getchannel("A")
    assert alpha.crop((300, 0, 600, 450)).getextrema() == (0, 0)
    assert alpha.getpixel((250, 225)) == 255


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 900), (700, 1), (37, 41)])
def test_any_mode_and_size_gives_rgba_of_that_size(mode: str, size: tuple[int, int]) -> None:
    result = cut_out(Image.new(mode, size))
    assert (result.mode, result.size) == ("RGBA", size)


def test_twelve_megapixels_take_no_more_than_seconds() -> None:
    picture = with_subject(gradient((600, 450))).resize((4000, 3000))
    began = time.process_time()
    cut_out(picture)
    assert time.process_time() - began < 10


# --- cut_png ----------------------------------------------------------------------------------


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_upload_becomes_a_png_of_the_same_size(kind: str) -> None:
    with Image.open(io.BytesIO(cut_png(encoded(with_subject(gradient((60, 45))), kind)))) as result:
        assert (result.format, result.mode, result.size) == ("PNG", "RGBA", (600, 450))
        assert result.getchannel("A").getextrema() == (0, 255)


def test_photograph_on_its_side_is_set_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(with_subject(gradient((60, 45))), "JPEG", exif=exif)
    with Image.open(io.BytesIO(cut_png(data))) as result:
        assert result.size == (450, 600)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: b"",
        lambda _: b"no image at all",
        lambda data: data[: len(data) // 2],
        lambda _: encoded(Image.new("RGB", (9, 9)), "GIF"),
        lambda _: encoded(Image.new("RGB", (9, 9)), "BMP"),
    ],
    ids=["empty", "text", "truncated", "GIF", "BMP"],
)
def test_what_is_no_whole_jpeg_png_or_webp_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(NotAnImage):
        cut_png(spoil(encoded(with_subject(gradient((60, 45))), "JPEG")))


# --- samples ----------------------------------------------------------------------------------


def test_samples_are_one_of_each_kind_and_cut_out_well(tmp_path: Path) -> None:
    paths = write_samples(tmp_path / "samples")
    kinds = set()
    for path in paths:
        with Image.open(path) as picture:
            kinds.add(picture.format)
            assert picture.size == SIZE
            alpha = cut_out(picture).getchannel("A")
        assert alpha.getpixel((5, 5)) == alpha.getpixel((1195, 895)) == 0
        assert alpha.getpixel((550, 560)) == 255
        assert 0.15 < alpha.histogram()[255] / (SIZE[0] * SIZE[1]) < 0.6
    assert kinds == {"JPEG", "PNG", "WEBP"}


def test_broken_sample_begins_like_a_jpeg_and_cannot_be_decoded(tmp_path: Path) -> None:
    data = write_broken(tmp_path).read_bytes()
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "JPEG"
    with pytest.raises(NotAnImage):
        cut_png(data)
