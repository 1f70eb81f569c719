"""The cut-out at full size: whose pixels it has, what it hides, what it keeps of the metadata."""

import io
from typing import Any

import pytest
from PIL import ExifTags, Image, ImageChops, ImageCms, ImageStat

from bgremover.studio.colour import to_srgb
from bgremover.studio.finish import Finished, Options, anew, as_it_came, finish, packing, save_png
from bgremover.studio.metadata import Policy
from bgremover.studio.opening import NotDecoded, upright
from tests.studio.profiles import P3, cmyk_profile, rgb_profile
from tests.studio.scenes import (
    SIZE,
    TURNS,
    encoded,
    furthest,
    grey_of_16_bits,
    heic,
    result_of,
    scene,
    solid,
    tiff_of_16_bits,
    turned,
)

SCENE = scene()
HALF = (SIZE[0] // 2, SIZE[1] // 2)
PHOTO = encoded(SCENE.photo, "PNG")
RESULT = result_of(SCENE)
WIDE = rgb_profile(P3, 2.2)


def finished(
    original: bytes, form: str, result: bytes, options: Options | None = None
) -> tuple[Finished, Image.Image]:
    into = io.BytesIO()
    told = finish(io.BytesIO(original), form, io.BytesIO(result), into, options or Options())
    image = Image.open(into)
    image.load()
    assert (told.width, told.height) == image.size
    return told, image


def off(one: Image.Image, other: Image.Image, mask: Image.Image) -> float:
    difference = ImageChops.difference(one.convert("RGB"), other.convert("RGB"))
    return max(ImageStat.Stat(difference, mask=mask).mean)


def over_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, "white")
    return Image.composite(image.convert("RGB"), white, image.getchannel("A"))


# --- size and pixels ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SIZE, HALF, (160, 120), (479, 359), (960, 720), (161, 120)])
def test_it_has_the_size_and_inside_the_pixels_of_the_original(size: tuple[int, int]) -> None:
    told, image = finished(PHOTO, "PNG", result_of(SCENE, size))
    assert image.size == SIZE
    assert (told.notes, told.stats.matches) == ((), True)
    assert furthest(image.convert("RGB"), SCENE.photo, solid(image.getchannel("A"))) == 0


def test_inside_it_is_far_closer_than_an_enlarged_result_and_on_the_edge_no_worse() -> None:
    small = result_of(SCENE, HALF)
    _, image = finished(PHOTO, "PNG", small)
    enlarged = Image.open(io.BytesIO(small)).resize(SIZE, Image.Resampling.BICUBIC)
    truth = SCENE.subject.copy()
    truth.putalpha(SCENE.alpha)
    inside = solid(SCENE.alpha)
    edge = SCENE.alpha.point([0] + [255] * 253 + [0, 0])
    truth, image, enlarged = (over_white(one) for one in (truth, image, enlarged))
    assert off(image, truth, inside) * 4 <= off(enlarged, truth, inside)
    assert off(image, truth, edge) <= off(enlarged, truth, edge)


def test_no_seam_shows_where_tiles_meet() -> None:
    large = scene((1300, 700), soft=12)
    small = result_of(large, (650, 350))
    _, image = finished(encoded(large.photo, "PNG"), "PNG", small)
    whole = Image.open(io.BytesIO(small)).resize(large.photo.size, Image.Resampling.BICUBIC)
    thin = image.getchannel("A").point([0] * 20 + [255] * 180 + [0] * 56)
    assert furthest(image.convert("RGB"), whole.convert("RGB"), thin) <= 1


def test_a_half_transparent_edge_composes_over_white_without_a_fringe() -> None:
    _, image = finished(PHOTO, "PNG", RESULT)
    truth = SCENE.subject.copy()
    truth.putalpha(SCENE.alpha)
    thin = SCENE.alpha.point([0] * 20 + [255] * 180 + [0] * 56)
    assert thin.getbbox() is not None
    assert furthest(over_white(image), over_white(truth), thin) <= 2


def as_came(result: bytes) -> tuple[Finished, bytes]:
    into = io.BytesIO()
    told = as_it_came(SIZE, io.BytesIO(result), into)
    return told, into.getvalue()


@pytest.mark.parametrize("size", [SIZE, HALF])
@pytest.mark.parametrize("kept", [False, True])
def test_nothing_of_the_background_is_left_where_it_is_transparent(
    size: tuple[int, int], kept: bool
) -> None:
    leaky = SCENE.photo.copy()
    leaky.putalpha(SCENE.alpha)
    result = encoded(leaky.resize(size), "PNG")
    _, image = finished(PHOTO, "PNG", result)
    if kept:
        image = Image.open(io.BytesIO(as_came(result)[1]))
    clear = image.getchannel("A").point([255] + [0] * 255)
    assert clear.getbbox() is not None
    assert furthest(image.convert("RGB"), Image.new("RGB", image.size), clear) == 0


@pytest.mark.parametrize(("policy", "wide"), [("keep", True), ("safe", True), ("strip", False)])
def test_written_anew_it_has_the_same_pixels_and_other_metadata(policy: Policy, wide: bool) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "Anna"
    exif[ExifTags.Base.Model] = "X100"
    photo = encoded(SCENE.photo, "PNG", exif=exif.tobytes(), icc_profile=WIDE)
    _, first = finished(photo, "PNG", result_of(SCENE, HALF), Options("keep"))
    earlier = io.BytesIO()
    first.save(earlier, "PNG", exif=first.info["exif"], icc_profile=WIDE)
    into = io.BytesIO()
    told = anew(io.BytesIO(photo), "PNG", earlier, into, Options(policy))
    image = Image.open(into)
    shown = to_srgb(first)  # a wide profile is kept, and the pixels with it
    assert furthest(to_srgb(image.copy()), shown) == 0
    assert ("icc_profile" in image.info) is wide
    kept = {"keep": {"Anna", "X100"}, "safe": {"Anna"}, "strip": set()}[policy]
    assert {value for value in image.getexif().values() if isinstance(value, str)} == kept
    assert told.stats.original == told.stats.result == SIZE
    assert told.notes == ()


def test_written_anew_a_result_of_another_shape_is_told_again() -> None:
    earlier = io.BytesIO(result_of(SCENE, (300, 100)))
    told = anew(io.BytesIO(PHOTO), "PNG", earlier, io.BytesIO(), Options())
    assert (told.stats.original, told.stats.result) == (SIZE, (300, 100))
    assert "another shape" in told.notes[0]


def test_written_anew_without_its_original_it_has_no_metadata() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "Anna"
    photo = io.BytesIO(encoded(SCENE.photo, "PNG", exif=exif.tobytes()))
    earlier, into = io.BytesIO(), io.BytesIO()
    finish(photo, "PNG", io.BytesIO(RESULT), earlier, Options())
    assert dict(Image.open(earlier).getexif()) != {}
    anew(None, "", earlier, into, Options("keep"))
    assert dict(Image.open(into).getexif()) == {}
    assert furthest(Image.open(into), Image.open(earlier)) == 0


def test_written_anew_beside_an_original_that_cannot_be_decoded_it_keeps_its_pixels() -> None:
    into = io.BytesIO()
    broken = io.BytesIO(PHOTO[: len(PHOTO) // 2])
    told = anew(broken, "PNG", io.BytesIO(RESULT), into, Options())
    assert furthest(Image.open(into), Image.open(io.BytesIO(RESULT))) == 0
    assert told.stats.matches is None
    assert "the original cannot be decoded" in told.notes[0]
    with pytest.raises(NotDecoded):
        anew(io.BytesIO(PHOTO), "PNG", io.BytesIO(RESULT[: len(RESULT) // 2]), into, Options())


def test_the_result_is_kept_as_it_came_when_asked() -> None:
    clean = as_came(result_of(SCENE, HALF))[1]
    told, kept = as_came(clean)
    assert kept == clean
    assert (told.width, told.height) == HALF
    assert told.notes == ()


def test_a_result_is_finished_though_the_original_is_gone() -> None:
    into = io.BytesIO()
    told = finish(None, "PNG", io.BytesIO(result_of(SCENE, HALF)), into, Options())
    assert Image.open(into).size == HALF
    assert "is gone" in told.notes[0]


def test_a_result_that_shows_something_else_keeps_its_own_pixels() -> None:
    other = Image.new("RGB", SIZE, (0, 0, 255))
    other.putalpha(SCENE.alpha)
    told, image = finished(PHOTO, "PNG", encoded(other.resize(HALF), "PNG"))
    assert image.size == SIZE
    assert told.stats.matches is False
    assert "does not show" in told.notes[0]
    assert image.getpixel((240, 180)) == (0, 0, 255, 255)


def test_a_result_of_another_shape_is_not_stretched() -> None:
    told, image = finished(PHOTO, "PNG", result_of(SCENE, (200, 200)))
    assert image.size == (200, 200)
    assert "another shape" in told.notes[0]


def test_without_the_original_s_pixels_the_result_is_still_saved() -> None:
    told, image = finished(PHOTO[: len(PHOTO) // 2], "PNG", result_of(SCENE, HALF))
    assert image.size == HALF
    assert "cannot be decoded" in told.notes[0]


def test_a_result_that_cannot_be_decoded_is_told() -> None:
    with pytest.raises(NotDecoded):
        finished(PHOTO, "PNG", RESULT[: len(RESULT) // 2])


def test_transparency_that_was_there_stays() -> None:
    given = SCENE.photo.copy()
    given.putalpha(Image.new("L", SIZE, 255))
    given.paste((0, 0, 0, 0), (200, 150, 240, 190))
    _, image = finished(encoded(given, "PNG"), "PNG", RESULT)
    assert image.getpixel((220, 170)) == (0, 0, 0, 0)


def test_what_is_measured_of_it() -> None:
    stats = finished(PHOTO, "PNG", result_of(SCENE, HALF))[0].stats
    assert (stats.original, stats.result, stats.islands) == (SIZE, HALF, 1)
    assert stats.foreground == pytest.approx(ImageStat.Stat(SCENE.alpha).mean[0] / 255, abs=0.002)
    assert stats.borders == (0, 0, 0, 0)


def test_each_border_is_measured() -> None:
    alpha = Image.new("L", SIZE, 0)
    alpha.paste(255, (0, 0, SIZE[0] // 2, SIZE[1] // 4))
    cut = SCENE.photo.copy()
    cut.putalpha(alpha)
    stats = finished(PHOTO, "PNG", encoded(cut, "PNG"))[0].stats
    assert stats.borders == pytest.approx((0.5, 0, 0, 0.25), abs=0.01)


# --- kinds of originals ---------------------------------------------------------------------


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_all_eight_orientations_give_the_same_cut_out(turn: int, form: str) -> None:
    options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {}
    _, image = finished(turned(SCENE.photo, turn, form, **options), form, RESULT)
    _, expected = finished(PHOTO, "PNG", RESULT)
    assert image.tobytes() == expected.tobytes()
    assert image.getexif().get(0x0112, 1) == 1


ORIGINALS = {
    "JPEG": ("JPEG", encoded(SCENE.photo, "JPEG", quality=92)),
    "grey JPEG": ("JPEG", encoded(SCENE.photo.convert("L"), "JPEG")),
    "CMYK JPEG": ("JPEG", encoded(SCENE.photo.convert("CMYK"), "JPEG", icc_profile=cmyk_profile())),
    "TIFF of 16 bits": ("TIFF", tiff_of_16_bits(SCENE.photo)),
    "HEIC": ("HEIF", heic(SCENE.photo)),
    "AVIF": ("AVIF", encoded(SCENE.photo, "AVIF", quality=90)),
    "BMP": ("BMP", encoded(SCENE.photo, "BMP")),
    "GIF": ("GIF", encoded(SCENE.photo.quantize(64), "GIF")),
    "MPO": ("JPEG", encoded(SCENE.photo, "MPO", save_all=True, append_images=[SCENE.photo])),
    "grey PNG of 16 bits": ("PNG", encoded(grey_of_16_bits(SCENE.photo), "PNG")),
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_every_kind_comes_out_at_full_size_with_the_original_s_pixels(name: str) -> None:
    form, original = ORIGINALS[name]
    reference = to_srgb(upright(io.BytesIO(original), form)).convert("RGB")
    cut = reference.copy()
    cut.putalpha(SCENE.alpha)
    _, image = finished(original, form, encoded(cut.resize(HALF), "PNG"))
    assert image.size == SIZE
    assert furthest(image.convert("RGB"), reference, solid(image.getchannel("A"))) == 0


def test_the_high_byte_of_16_bits_is_what_counts() -> None:
    image = upright(io.BytesIO(tiff_of_16_bits(SCENE.photo)), "TIFF")
    assert furthest(image, SCENE.photo) == 0
    grey = encoded(grey_of_16_bits(SCENE.photo), "PNG")
    assert furthest(upright(io.BytesIO(grey), "PNG"), SCENE.photo.convert("L")) == 0


@pytest.mark.parametrize("policy", ["safe", "keep"])
@pytest.mark.parametrize("mode", ["RGB", "P"])
@pytest.mark.parametrize("turn", [1, 6])
def test_what_a_tiff_says_of_its_owner_is_kept_and_how_it_is_laid_out_is_not(
    turn: int, mode: str, policy: Policy
) -> None:
    tags = {315: "An Artist", 33432: "(c) An Owner"}
    method = TURNS[turn]
    picture = SCENE.photo if method is None else SCENE.photo.transpose(method)
    original = encoded(picture.convert(mode), "TIFF", tiffinfo={**tags, 274: turn})
    _, image = finished(original, "TIFF", RESULT, Options(metadata=policy))
    assert image.size == SIZE
    assert dict(image.getexif()) == {**tags, 274: 1}


# --- colour ---------------------------------------------------------------------------------


def srgb_of(image: Image.Image) -> Image.Image:
    source = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    target = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image.convert("RGB"), source, target)
    assert converted is not None
    return converted


def test_a_wide_profile_is_kept_with_its_pixels_and_the_edge_is_converted_to_it() -> None:
    _, image = finished(encoded(SCENE.photo, "PNG", icc_profile=WIDE), "PNG", RESULT)
    assert image.info["icc_profile"] == WIDE
    assert furthest(image.convert("RGB"), SCENE.photo, solid(image.getchannel("A"))) == 0
    thin = SCENE.alpha.point([0] * 20 + [255] * 180 + [0] * 56)
    gone = SCENE.subject
    assert off(srgb_of(image), gone, thin) < off(image, gone, thin) / 2


def test_without_metadata_a_wide_picture_becomes_srgb() -> None:
    original = encoded(SCENE.photo, "PNG", icc_profile=WIDE)
    reference = srgb_of(Image.open(io.BytesIO(original)))
    _, image = finished(original, "PNG", RESULT, Options(metadata="strip"))
    assert "icc_profile" not in image.info
    assert furthest(image.convert("RGB"), reference, solid(image.getchannel("A"))) <= 1


def test_a_damaged_profile_counts_as_none() -> None:
    _, image = finished(encoded(SCENE.photo, "PNG", icc_profile=WIDE[:200]), "PNG", RESULT)
    assert "icc_profile" not in image.info


# --- metadata -------------------------------------------------------------------------------


def told_everything() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 1
    exif[0x013B] = "An Artist"
    exif[0x8298] = "(c) An Owner"
    exif[0x010F] = "a maker"
    exif.get_ifd(0x8825)[1] = "N"
    return encoded(
        SCENE.photo, "JPEG", exif=exif.tobytes(), dpi=(300, 300), xmp=b"<x:xmpmeta/>", quality=95
    )


@pytest.mark.parametrize(
    ("policy", "artist", "maker", "gps", "dpi"),
    [
        ("safe", "An Artist", None, False, True),
        ("keep", "An Artist", "a maker", True, True),
        ("strip", None, None, False, False),
    ],
)
def test_what_is_kept_of_the_metadata(
    policy: Policy, artist: str | None, maker: str | None, gps: bool, dpi: bool
) -> None:
    _, image = finished(told_everything(), "JPEG", RESULT, Options(metadata=policy))
    exif = image.getexif()
    assert (exif.get(0x013B), exif.get(0x010F)) == (artist, maker)
    assert exif.get(0x8298) == ("(c) An Owner" if artist else None)
    assert bool(exif.get_ifd(0x8825)) is gps
    assert ("dpi" in image.info) is dpi
    assert exif.get(0x0112, 1) == 1
    assert ("xmp" in image.info) is (policy == "keep")


def with_a_thumbnail() -> bytes:
    """Write EXIF data by hand whose second directory holds a thumbnail."""
    thumbnail = encoded(SCENE.photo.resize((16, 12)), "JPEG")
    first = b"\x01\0" + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0" + (26).to_bytes(4, "little")
    second = (
        b"\x02\0"
         b"\x01\x02\x04\0\x01\0\0\0" + (56).to_bytes(4, "little")
        + b"\x02\x02\x04\0\x01\0\0\0" + len(thumbnail).to_bytes(4, "little")
        + bytes(4)
    )  # fmt: skip
    return b"Exif\0\0II*\0\x08\0\0\0" + first + second + thumbnail


@pytest.mark.parametrize("policy", ["safe", "keep"])
def test_a_thumbnail_is_never_kept_for_it_shows_the_background(policy: Policy) -> None:
    sideways = SCENE.photo.transpose(Image.Transpose.ROTATE_90)
    original = encoded(sideways, "JPEG", exif=with_a_thumbnail(), quality=95)
    assert Image.open(io.BytesIO(original)).getexif().get_ifd(ExifTags.IFD.IFD1)
    _, image = finished(original, "JPEG", RESULT, Options(metadata=policy))
    assert image.size == SIZE
    assert not image.getexif().get_ifd(ExifTags.IFD.IFD1)
    assert b"\xff\xd8\xff" not in image.info.get("exif", b"")


@pytest.mark.parametrize("policy", ["safe", "keep"])
def test_metadata_that_are_nonsense_stop_nothing(policy: Policy) -> None:
    broken = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x99\0" * 9
    _, image = finished(
        encoded(SCENE.photo, "JPEG", exif=broken), "JPEG", RESULT, Options(metadata=policy)
    )
    assert image.size == SIZE


# --- writing --------------------------------------------------------------------------------


def test_srgb_is_named_where_no_profile_is() -> None:
    into = io.BytesIO()
    save_png(Image.new("RGBA", (3, 3)), into, {})
    assert b"sRGB\0" in into.getvalue()


def test_smooth_pictures_are_packed_small_and_noisy_ones_fast() -> None:
    smooth = SCENE.photo.resize((1800, 1350), Image.Resampling.BICUBIC)
    noise = Image.merge("RGB", [Image.effect_noise((600, 600), 60) for _ in range(3)])
    assert (packing(smooth), packing(noise)) == (0, 3)
