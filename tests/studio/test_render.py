"""Renditions as files: what marketplaces ask of them, and every word of a recipe once."""

import io
import math
import struct

import pytest
from PIL import Image, ImageChops, ImageDraw, ImageStat

from bgremover.core.errors import TooLarge
from bgremover.core.recipe import PRESETS, plan, recipe_of
from bgremover.studio.colour import srgb_bytes
from bgremover.studio.finish import Options, finish
from bgremover.studio.opening import NotDecoded
from bgremover.studio.render import Rendered, Sources, render
from tests.studio.profiles import P3, rgb_profile
from tests.studio.scenes import SIZE, encoded, furthest, result_of, scene

SCENE = scene()
SHOPS = ("amazon", "ebay", "shopify", "google")


def master(photo: Image.Image = SCENE.photo, **options: object) -> bytes:
    into = io.BytesIO()
    original = io.BytesIO(encoded(photo, "PNG", **options))
    finish(original, "PNG", io.BytesIO(result_of(SCENE)), into, Options())
    return into.getvalue()


MASTER = master()
CUT = Image.open(io.BytesIO(MASTER))
CUT.load()
SUBJECT = CUT.getchannel("A").point([0] * 32 + [255] * 224).getbbox() or (0, 0, 0, 0)


def rendered(line: str, cut: bytes = MASTER, **sources: object) -> tuple[Rendered, Image.Image]:
    files = {k: io.BytesIO(v) if isinstance(v, bytes) else v for k, v in sources.items()}
    into = io.BytesIO()
    told = render(Sources(io.BytesIO(cut), **files), recipe_of(line), into)  # type: ignore[arg-type]
    assert told.size == len(into.getvalue())
    image = Image.open(into)
    image.load()
    assert image.size == (told.width, told.height)
    return told, image


def corners(image: Image.Image) -> list[object]:
    width, height = image.size
    places = [(0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1)]
    return [image.getpixel(place) for place in places]


def box_of(image: Image.Image, ground: tuple[int, int, int] = (255, 255, 255)) -> tuple[int, ...]:
    """Return where a picture is not its background, a JPEG's ripples aside."""
    off = ImageChops.difference(image.convert("RGB"), Image.new("RGB", image.size, ground))
    red, green, blue = off.split()
    most = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    box = most.point([0] * 24 + [255] * 232).getbbox()
    assert box is not None
    return box


# --- marketplaces ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHOPS)
def test_a_marketplace_gets_pure_white_its_size_and_srgb(name: str) -> None:
    told, image = rendered(name)
    recipe = PRESETS[name]
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", recipe.size)
    assert corners(image) == [(255, 255, 255)] * 4
    assert image.info["icc_profile"] == srgb_bytes()
    assert recipe.max_bytes is not None
    assert told.size < recipe.max_bytes
    assert told.note == ""


@pytest.mark.parametrize(("name", "fill"), [("amazon", 0.85), ("google", 0.82), ("ebay", 0.9)])
def test_the_subject_fills_what_it_must_within_half_a_percent(name: str, fill: float) -> None:
    image = rendered(name)[1]
    left, top, right, bottom = box_of(image)
    assert max(right - left, bottom - top) / image.width == pytest.approx(fill, abs=0.005)
    assert left + right == pytest.approx(image.width, abs=10)
    assert top + bottom == pytest.approx(image.height, abs=10)


def test_all_of_one_shop_have_one_margin() -> None:
    image = rendered("shopify")[1]
    _, top, _, bottom = box_of(image)  # the subject is a little higher than wide
    assert top / 2048 == pytest.approx(0.05, abs=0.005)
    assert (2048 - bottom) / 2048 == pytest.approx(0.05, abs=0.005)


def test_google_keeps_the_iptc_data_of_the_original() -> None:
    data = b"\x1c\x02\x74\x00\x08(c) Mine"
    resource = b"8BIM" + struct.pack(">HHI", 0x0404, 0, len(data)) + data + bytes(len(data) % 2)
    body = b"Photoshop 3.0\0" + resource
    segment = b"\xff\xed" + struct.pack(">H", len(body) + 2) + body
    plain = encoded(SCENE.photo, "JPEG", xmp=b"<x:xmpmeta>made by AI</x:xmpmeta>")
    original = plain[:2] + segment + plain[2:]
    image = rendered("google", original=original, form="JPEG")[1]
    assert image.info["photoshop"][0x0404] == data
    assert b"made by AI" in image.info["xmp"]
    image = rendered("amazon", original=original, form="JPEG")[1]
    assert "photoshop" not in image.info
    assert "xmp" not in image.info


def test_a_wide_cut_out_is_converted_to_srgb() -> None:
    wide = master(icc_profile=rgb_profile(P3, 2.2))
    assert "icc_profile" in Image.open(io.BytesIO(wide)).info
    plain, converted = rendered("amazon")[1], rendered("amazon", wide)[1]
    assert converted.info["icc_profile"] == srgb_bytes()
    middle = (900, 900, 1100, 1100)
    assert furthest(plain.crop(middle), converted.crop(middle)) > 10


# --- the other presets ----------------------------------------------------------------------


def test_a_square_is_transparent_around_the_subject() -> None:
    image = rendered("square")[1]
    assert (image.format, image.mode, image.size) == ("PNG", "RGBA", (1200, 1200))
    assert corners(image) == [(0, 0, 0, 0)] * 4


def test_a_thumbnail_is_small() -> None:
    told, image = rendered("thumb")
    assert (image.format, max(image.size)) == ("WEBP", 320)
    assert told.size < 60_000


def test_a_mask_is_the_alpha_alone() -> None:
    image = rendered("mask")[1]
    assert image.mode == "L"
    assert image.tobytes() == CUT.getchannel("A").tobytes()


def test_a_crop_shows_the_original_with_its_background() -> None:
    image = rendered("crop", original=encoded(SCENE.photo, "PNG"), form="PNG")[1]
    expected = SCENE.photo.crop(SUBJECT)
    assert image.size == expected.size
    assert max(ImageStat.Stat(ImageChops.difference(image, expected)).mean) < 6
    assert image.getpixel((0, 0)) == pytest.approx((40, 160, 60), abs=8)


def test_a_crop_of_an_original_that_is_gone_is_told() -> None:
    with pytest.raises(NotDecoded):
        rendered("crop")


def test_a_webp_has_the_cut_out_s_size_and_transparency() -> None:
    image = rendered("webp")[1]
    assert (image.format, image.mode, image.size) == ("WEBP", "RGBA", SIZE)
    assert furthest(image.getchannel("A"), CUT.getchannel("A")) == 0


# --- every word -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "known"),
    [("png", "PNG"), ("webp", "WEBP"), ("jpeg", "JPEG"), ("avif", "AVIF"), ("tiff", "TIFF")],
)
@pytest.mark.parametrize("ground", ["transparent", "white"])
def test_every_format_is_written(form: str, known: str, ground: str) -> None:
    image = rendered(f"one format={form} background={ground}")[1]
    clear = ground == "transparent" and form != "jpeg"
    assert (image.format, image.mode) == (known, "RGBA" if clear else "RGB")
    if not clear:
        assert min(corners(image)[0]) >= 254  # type: ignore[call-overload]


def test_a_full_size_rendition_on_a_colour_is_the_cut_out_over_it() -> None:
    image = rendered("one format=png background=#c86432")[1]
    expected = Image.new("RGB", SIZE, (200, 100, 50))
    expected.paste(CUT, (0, 0), CUT)
    assert furthest(image, expected) == 0


def test_an_image_covers_the_picture_from_its_middle() -> None:
    wall = Image.new("RGB", (300, 100), (0, 0, 200))
    ImageDraw.Draw(wall).rectangle((100, 0, 199, 99), fill=(0, 200, 0))
    line = "one size=400 background=wall.png trim=true fill=20%"
    image = rendered(line, backdrop=encoded(wall, "PNG"), backdrop_form="PNG")[1]
    assert corners(image.crop((20, 20, 380, 380))) == [(0, 200, 0)] * 4


def test_a_missing_background_is_told() -> None:
    with pytest.raises(NotDecoded):
        rendered("one size=400 background=wall.png")


def test_a_soft_edge_is_not_cut_where_there_is_room_for_it() -> None:
    image = rendered("one trim=true margin=20")[1]
    alpha = image.getchannel("A")
    assert alpha.getbbox() != alpha.point([0] * 32 + [255] * 224).getbbox()
    left, top, right, bottom = SUBJECT
    around = (left - 8, top - 8, right + 8, bottom + 8)
    assert alpha.crop((12, 12, image.width - 12, image.height - 12)).tobytes() == (
        CUT.getchannel("A").crop(around).tobytes()
    )


@pytest.mark.parametrize("ground", ["white", "transparent"])
def test_a_shadow_lies_below_the_subject_and_not_in_the_corners(ground: str) -> None:
    words = f"one size=600 trim=true fill=60% background={ground} shadow="
    without, with_ = (rendered(words + shade)[1] for shade in ("none", "soft"))
    below = (300, box_of(without, (255, 255, 255) if ground == "white" else (0, 0, 0))[3] + 6)
    assert corners(with_) == corners(without)
    before, after = without.getpixel(below), with_.getpixel(below)
    assert isinstance(before, tuple)
    assert isinstance(after, tuple)
    if ground == "white":
        assert after[0] < before[0] - 10
    else:
        assert (before[3], after[:3]) == (0, (0, 0, 0))
        assert after[3] > 10
    assert furthest(with_.crop((290, 250, 310, 270)), without.crop((290, 250, 310, 270))) == 0


@pytest.mark.parametrize("form", ["jpeg", "webp", "png", "avif"])
@pytest.mark.parametrize("share", [0.7, 0.1])
def test_a_cap_is_kept_by_quality_first(form: str, share: float) -> None:
    whole = rendered(f"one format={form} background=white size=800")[0].size
    cap = int(whole * share)
    told, image = rendered(f"one format={form} background=white size=800 max_mb={cap / 1e6}")
    assert told.size <= cap
    assert told.note
    if form != "png" and share > 0.5:
        assert image.size == (800, 800)
        assert "quality" in told.note


def test_a_cap_that_cannot_be_kept_is_told() -> None:
    with pytest.raises(TooLarge):
        rendered("one size=800 max_mb=0.001 format=tiff")


@pytest.mark.parametrize("words", ["margin=45%", "fill=10%"])
def test_margins_do_not_make_more_pixels_of_it_than_it_may_have(words: str) -> None:
    into, recipe = io.BytesIO(), recipe_of(f"wide {words}")
    pixels = math.prod(plan(recipe, SIZE, SUBJECT).canvas)
    assert pixels > 90 * math.prod(SIZE)
    with pytest.raises(TooLarge, match=r"wide would have .* megapixels. Give its size"):
        render(Sources(io.BytesIO(MASTER)), recipe, into, pixels - 1)
    assert into.getvalue() == b""
    told = render(Sources(io.BytesIO(MASTER)), recipe_of(f"wide longest=900 {words}"), into, 1)
    assert max(told.width, told.height) <= 900


def test_an_empty_cut_out_can_be_rendered() -> None:
    empty = encoded(Image.new("RGBA", (30, 20)), "PNG")
    image = rendered("amazon", empty)[1]
    assert image.getextrema() == ((255, 255),) * 3


def test_copyright_goes_along_and_the_place_does_not() -> None:
    exif = Image.Exif()
    exif[0x8298] = "(c) Mine"
    exif.get_ifd(0x8825)[1] = "N"
    for line in ("amazon", "thumb", "square"):
        found = rendered(line, master(exif=exif.tobytes()))[1].getexif()
        assert found.get(0x8298) == "(c) Mine"
        assert not found.get_ifd(0x8825)
