"""What is sent: untouched where possible, upright and in sRGB always, within the limit."""

import io
from typing import Literal

import pytest
from PIL import Image

from bgremover.core.errors import TooLarge
from bgremover.studio.colour import to_srgb
from bgremover.studio.intake import Limits, look
from bgremover.studio.opening import upright
from bgremover.studio.upload import Options, Prepared, prepare
from tests.studio.profiles import P3, rgb_profile
from tests.studio.scenes import (
    SIZE,
    TURNS,
    encoded,
    furthest,
    grey_of_16_bits,
    heic,
    scene,
    tiff_of_16_bits,
    turned,
)

SCENE = scene()
PHOTO = SCENE.photo
MANY = 10_000_000


def sent(
    data: bytes, most: int = MANY, oversize: Literal["shrink", "reject"] = "shrink"
) -> tuple[Prepared, bytes]:
    found = look(io.BytesIO(data), Limits(most, 1_000_000))
    into = io.BytesIO()
    told = prepare(io.BytesIO(data), found, Options(most, oversize), into)
    return told, into.getvalue()


def decoded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    assert "icc_profile" not in image.info
    assert image.getexif().get(0x0112, 1) == 1
    return image


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_what_can_be_sent_goes_byte_for_byte(form: str) -> None:
    data = encoded(PHOTO, form)
    told, upload = sent(data)
    assert upload == data
    assert told == Prepared(f"image/{form.lower()}", *SIZE, "")


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_all_eight_orientations_give_the_same_pixels(form: str, turn: int) -> None:
    told, upload = sent(turned(PHOTO, turn, form))
    assert decoded(upload).convert("RGB").tobytes() == PHOTO.tobytes()
    assert (told.width, told.height) == SIZE


LOSSLESS = {
    "TIFF": encoded(PHOTO, "TIFF"),
    "TIFF of 16 bits": tiff_of_16_bits(PHOTO),
    "BMP": encoded(PHOTO, "BMP"),
    "GIF": encoded(PHOTO.quantize(64), "GIF"),
    "PNG of another profile": encoded(PHOTO, "PNG", icc_profile=rgb_profile(P3, 2.2)),
    "PNG of 16 bits": encoded(grey_of_16_bits(PHOTO), "PNG"),
}
LOSSY = {
    "HEIF": heic(PHOTO),
    "AVIF": encoded(PHOTO, "AVIF"),
    "JPEG CMYK": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "JPEG turned": turned(PHOTO, 6, "JPEG"),
    "JPEG MPO": encoded(PHOTO, "MPO", save_all=True, append_images=[PHOTO.copy()]),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_lossless_picture_stays_lossless_while_it_fits(name: str) -> None:
    data = LOSSLESS[name]
    told, upload = sent(data)
    assert told.media_type == "image/png"
    reference = to_srgb(upright(io.BytesIO(data), name.split(maxsplit=1)[0]))
    assert furthest(decoded(upload).convert("RGB"), reference.convert("RGB")) == 0


@pytest.mark.parametrize("name", [*LOSSY])
def test_a_lossy_picture_is_sent_as_a_jpeg_of_high_quality(name: str) -> None:
    data = LOSSY[name]
    told, upload = sent(data)
    assert (told.media_type, told.note) == ("image/jpeg", "sent as a JPEG of quality 95")
    reference = to_srgb(upright(io.BytesIO(data), name.split(maxsplit=1)[0]))
    assert (told.width, told.height) == decoded(upload).size == reference.size == SIZE
    assert furthest(decoded(upload), reference) <= 40


def test_transparency_is_sent() -> None:
    cut = PHOTO.copy()
    cut.putalpha(SCENE.alpha)
    told, upload = sent(encoded(cut, "TIFF"))
    assert told.media_type == "image/png"
    assert furthest(decoded(upload), cut) == 0


def sizes() -> dict[int, int]:
    """Return the bytes of the upload at each quality."""
    full = {95: 0, 92: 0, 90: 2, 85: 2}
    return {q: len(encoded(PHOTO, "JPEG", quality=q, subsampling=s)) for q, s in full.items()}


@pytest.mark.parametrize(("better", "quality"), [(None, 95), (95, 92), (92, 90), (90, 85)])
def test_the_quality_is_lowered_before_the_size(better: int | None, quality: int) -> None:
    fits = sizes()
    most = fits[better] - 1 if better else fits[quality]
    told, upload = sent(encoded(PHOTO, "BMP"), most)
    assert told.note == f"sent as a JPEG of quality {quality}"
    assert decoded(upload).size == SIZE
    assert len(upload) <= most


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1, 0.02])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_then_the_size_is_lowered_no_further_than_needed(share: float, mode: str) -> None:
    picture = PHOTO.copy()
    if mode == "RGBA":
        picture.putalpha(SCENE.alpha)
        whole = len(encoded(picture, "WEBP", quality=85, method=2, exact=True))
    else:
        whole = sizes()[85]
    most = max(1500, int(whole * share))
    told, upload = sent(encoded(picture, "TIFF"), most)
    assert len(upload) <= most
    width, height = decoded(upload).size
    assert (told.width, told.height) == (width, height)
    assert width < SIZE[0]
    assert width / height == pytest.approx(SIZE[0] / SIZE[1], rel=0.03)
    assert "scaled from 480 x 360" in told.note
    assert len(upload) > most * 0.5


def test_nothing_is_given_up_when_that_is_not_wanted() -> None:
    most = sizes()[95] - 1
    with pytest.raises(TooLarge):
        sent(encoded(PHOTO, "BMP"), most, "reject")
    told, _ = sent(encoded(PHOTO, "BMP"), most + 1, "reject")
    assert "quality 95" in told.note


def test_a_jpeg_that_is_too_large_keeps_its_pixels() -> None:
    data = encoded(PHOTO, "JPEG", quality=100, subsampling=0)
    told, upload = sent(data, len(data) - 1)
    assert told.note == "sent as a JPEG of quality 95"
    assert len(upload) < len(data)
