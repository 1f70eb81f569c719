"""What an original is found to be, whatever it is made of: kinds, faults, bombs."""

import io
import struct
import time
import tracemalloc
from typing import Any

import pytest
from PIL import Image

from bgremover.core.errors import (
    Animated,
    EmptyImage,
    FileFault,
    NotAnImage,
    TooLarge,
    TooManyPixels,
    Truncated,
    UnsupportedFormat,
)
from bgremover.studio.intake import Limits, Look, look
from bgremover.studio.opening import NotDecoded, opened
from tests.edges.test_pictures import WHOLE, chunk
from tests.studio.profiles import P3, rgb_profile
from tests.studio.scenes import (
    TURNS,
    encoded,
    grey_of_16_bits,
    heic,
    scene,
    tiff_of_16_bits,
    turned,
)

SIZE = (97, 64)
PHOTO = scene(SIZE).photo
CUT = PHOTO.copy()
CUT.putalpha(scene(SIZE).alpha)
LIMITS = Limits(10_000_000, 1_000_000)
TWO: dict[str, Any] = {"save_all": True, "append_images": [PHOTO.transpose(Image.Transpose(1))]}


def seen(data: bytes, limits: Limits = LIMITS) -> Look:
    return look(io.BytesIO(data), limits)


def fault_of(data: bytes, limits: Limits = LIMITS) -> type[FileFault]:
    with pytest.raises(FileFault) as caught:
        seen(data, limits)
    return caught.type


AS_IT_IS = {
    "JPEG": encoded(PHOTO, "JPEG"),
    "PNG": encoded(PHOTO, "PNG"),
    "WEBP": encoded(PHOTO, "WEBP"),
    "grey JPEG": encoded(PHOTO.convert("L"), "JPEG"),
    "PNG of few colours": encoded(PHOTO.quantize(16), "PNG"),
}
CONVERTED = {
    "HEIF": heic(PHOTO),
    "AVIF": encoded(PHOTO, "AVIF"),
    "TIFF": encoded(PHOTO, "TIFF"),
    "TIFF of 16 bits": tiff_of_16_bits(PHOTO),
    "TIFF CMYK": encoded(PHOTO.convert("CMYK"), "TIFF"),
    "TIFF packed": encoded(PHOTO, "TIFF", compression="tiff_lzw"),
    "BMP": encoded(PHOTO, "BMP"),
    "GIF": encoded(PHOTO.quantize(), "GIF"),
    "JPEG CMYK": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "JPEG MPO": encoded(PHOTO, "MPO", **TWO),
    "JPEG of another profile": encoded(PHOTO, "JPEG", icc_profile=rgb_profile(P3, 2.2)),
    "PNG of 16 bits": encoded(grey_of_16_bits(PHOTO), "PNG"),
    "WEBP turned": turned(PHOTO, 3, "WEBP"),
}


@pytest.mark.parametrize("name", AS_IT_IS)
def test_what_can_be_sent_is_sent_as_it_is(name: str) -> None:
    found = seen(AS_IT_IS[name])
    assert not found.needs_conversion
    assert (found.picture.width, found.picture.height) == SIZE


@pytest.mark.parametrize("name", CONVERTED)
def test_what_cannot_be_sent_is_converted(name: str) -> None:
    found = seen(CONVERTED[name])
    assert found.needs_conversion
    assert found.picture.format == name.split(maxsplit=1)[0]
    assert (found.picture.width, found.picture.height) == SIZE
    assert not found.transparent


@pytest.mark.parametrize("name", WHOLE)
def test_all_that_can_be_sent_is_still_taken(name: str) -> None:
    seen(WHOLE[name])


def test_what_pillow_does_not_open_is_sent_as_it_is_if_it_fits() -> None:
    data = AS_IT_IS["PNG"]
    length = len(data) - 12
    odd = data[:33] + HOSTILE + data[33:]
    with pytest.raises(NotDecoded):
        opened(io.BytesIO(odd), "PNG")
    assert not seen(odd).needs_conversion
    assert fault_of(odd, Limits(length, 1_000_000)) is TooLarge


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_width_and_height_are_upright(form: str, turn: int) -> None:
    found = seen(turned(PHOTO, turn, form))
    assert (found.picture.width, found.picture.height) == SIZE
    assert found.needs_conversion is (turn != 1 or form == "TIFF")


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_seen(form: str) -> None:
    assert seen(encoded(CUT, form)).transparent


def test_a_transparent_colour_counts_and_a_stray_pixel_does_not() -> None:
    few = Image.new("P", SIZE)
    few.putpalette([0, 0, 0, 255, 0, 0])
    assert seen(encoded(few, "GIF", transparency=0)).transparent
    stray = PHOTO.convert("RGBA")
    stray.putpixel((3, 3), (0, 0, 0, 0))
    assert not seen(encoded(stray, "PNG")).transparent


def test_the_first_of_several_pages_is_used_and_that_is_told() -> None:
    found = seen(encoded(PHOTO, "TIFF", save_all=True, append_images=[PHOTO.convert("L")]))
    assert found.frames == 2
    assert "first of its 2" in found.note


@pytest.mark.parametrize("form", ["GIF", "AVIF", "PNG", "WEBP"])
def test_what_moves_is_refused(form: str) -> None:
    assert fault_of(encoded(PHOTO, form, **TWO)) is Animated


def test_an_empty_file_and_one_of_text_are_refused() -> None:
    assert fault_of(b"") is EmptyImage
    assert fault_of(b"GIF is a format, as every child knows") is NotAnImage


CUTTABLE = sorted(name for name in CONVERTED if name.split()[0] not in ("JPEG", "PNG", "WEBP"))


@pytest.mark.parametrize("percent", [20, 50, 80, 99])
@pytest.mark.parametrize("name", CUTTABLE)
def test_a_part_is_truncated(name: str, percent: int) -> None:
    data = CONVERTED[name]
    assert fault_of(data[: len(data) * percent // 100]) is Truncated


@pytest.mark.parametrize("name", ["HEIF", "AVIF", "GIF", "TIFF packed"])
def test_zeros_instead_of_the_end_are_truncated(name: str) -> None:
    data = CONVERTED[name]
    assert fault_of(data[: len(data) // 2] + bytes(9000)) is Truncated


@pytest.mark.parametrize("name", ["HEIF", "AVIF", "TIFF packed", "GIF"])
def test_damage_is_never_a_defect_of_this_program(name: str) -> None:
    data = CONVERTED[name]
    for at in range(12, len(data), max(1, len(data) // 60)):
        broken = data[:at] + bytes((data[at] ^ 0xFF,)) + data[at + 1 :]
        try:
            seen(broken)
        except FileFault:
            continue


@pytest.mark.parametrize("tag", [50706, 254])
def test_a_camera_s_raw_is_no_tiff(tag: int) -> None:
    info = {tag: 1}
    assert fault_of(encoded(PHOTO, "TIFF", tiffinfo=info)) is UnsupportedFormat


def test_32_bits_a_channel_are_refused() -> None:
    assert fault_of(encoded(PHOTO.convert("F"), "TIFF")) is UnsupportedFormat


# --- limits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*AS_IT_IS, *CONVERTED])
def test_too_many_pixels_are_refused(name: str) -> None:
    data = (AS_IT_IS | CONVERTED)[name]
    assert fault_of(data, Limits(10_000_000, SIZE[0] * SIZE[1] - 1)) is TooManyPixels


@pytest.mark.parametrize("oversize", ["shrink", "reject"])
def test_too_many_bytes_are_shrunk_or_refused(oversize: Any) -> None:  # noqa: ANN401 - a literal
    data = AS_IT_IS["JPEG"]
    limits = Limits(len(data) - 1, 1_000_000, oversize)
    if oversize == "reject":
        assert fault_of(data, limits) is TooLarge
    else:
        assert seen(data, limits).needs_conversion
    assert not seen(data, Limits(len(data), 1_000_000, oversize)).needs_conversion


def bmp_of(width: int, height: int) -> bytes:
    head = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    return head + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def gif_of(width: int, height: int) -> bytes:
    data = encoded(Image.new("L", (1, 1)), "GIF")
    size = struct.pack("<HH", width, height)
    at = data.index(b",") + 5
    return data[:6] + size + data[10:at] + size + data[at + 4 :]


def tiff_of(width: int, height: int) -> bytes:
    data = tiff_of_16_bits(Image.new("RGB", (2, 2)))
    for tag, value in ((256, width), (257, height)):
        entry = struct.pack("<HHII", tag, 3, 1, 2)
        data = data.replace(entry, struct.pack("<HHII", tag, 4, 1, value))
    return data


def resized(data: bytes) -> bytes:
    """Let the header of a HEIF or AVIF name a huge picture."""
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", 30_000, 30_000) + data[at + 8 :]


HOSTILE = chunk(b"iCCP", b"x\0\1" + bytes(9))
"""A colour profile in a packing that does not exist."""

BOMBS = {
    "BMP": bmp_of(30_000, 30_000),
    "GIF": gif_of(60_000, 60_000),
    "TIFF": tiff_of(60_000, 60_000),
}
LIES = {"AVIF": resized(CONVERTED["AVIF"]), "HEIF": resized(CONVERTED["HEIF"])}
"""Their headers name a picture that their data are not: their decoders see that by themselves."""


@pytest.mark.parametrize("name", [*BOMBS, *LIES])
def test_a_bomb_is_refused_from_its_header_fast_and_at_flat_memory(name: str) -> None:
    seen(CONVERTED[name])  # so that no import is timed
    tracemalloc.start()
    start = time.process_time()
    fault = fault_of((BOMBS | LIES)[name], Limits(10_000_000))
    seconds = time.process_time() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert fault is (NotAnImage if name in LIES else TooManyPixels)
    assert seconds < 0.1
    assert peak < 5_000_000
