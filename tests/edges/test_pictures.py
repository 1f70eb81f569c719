"""Originals before they are paid for, results before they are kept: drawn here, then damaged."""

import errno
import hashlib
import io
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from bgremover.core.errors import (
    Animated,
    BgremoverError,
    Blocked,
    BrokenResult,
    DiskFailed,
    EmptyImage,
    FileFault,
    NotAnImage,
    TooLarge,
    TooManyOpenFiles,
    TooManyPixels,
    Truncated,
    Unreadable,
    UnsupportedFormat,
)
from bgremover.core.job import Picture
from bgremover.edges.pictures import (
    MEDIA_TYPES,
    Limits,
    Result,
    inspect,
    verify_result,
    whole,
)
from tests.bombs import zlib_of_zeros

LIMITS = Limits(10_000_000)
SIZE = (61, 47)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:  # noqa: ANN401 - Pillow's
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def drawn(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    image = Image.effect_noise(size, 60).convert("RGB")
    ImageDraw.Draw(image).rectangle((5, 5, 40, 30), fill=(200, 0, 9))
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.linear_gradient("L").resize(size))
    return image.convert(mode)


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a maker"
    return exif


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = chunk(b"IEND")


def header(width: int, height: int, *rest: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, *(rest or (8, 6, 0, 0, 0))))


def png(*chunks: bytes) -> bytes:
    return SIGNATURE + b"".join(chunks) + END


def rgba_png(raw: bytes, width: int = 2, height: int = 2) -> bytes:
    return png(header(width, height), chunk(b"IDAT", zlib.compress(raw)))


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def after_soi(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP"
    for kind, data in chunks:
        body += kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def replaced(data: bytes, at: int, new: bytes) -> bytes:
    at %= len(data)
    return data[:at] + new + data[at + len(new) :]


JPEG = encoded(drawn(), "JPEG")
PROGRESSIVE = encoded(drawn(), "JPEG", progressive=True, quality=95, subsampling=0)
MPO = encoded(drawn(), "MPO", save_all=True, append_images=[drawn()])
PNG = encoded(drawn("RGBA"), "PNG")
WEBP = encoded(drawn(), "WEBP")
LOSSLESS = encoded(drawn("RGBA"), "WEBP", lossless=True)
APNG = encoded(drawn(), "PNG", save_all=True, append_images=[drawn("L").convert("RGB")])
MOVING = encoded(drawn(), "WEBP", save_all=True, append_images=[drawn("L").convert("RGB")])
# The picture of its thumbnail ends inside the header of the picture.
THUMBNAIL = after_soi(JPEG, segment(0xE1, b"Exif\0\0" + encoded(drawn(size=(9, 9)), "JPEG")))

BY_FORM = {"JPEG": JPEG, "PNG": PNG, "WEBP": WEBP}
WHOLE = {
    "JPEG": JPEG,
    "JPEG grey": encoded(drawn("L"), "JPEG"),
    "JPEG CMYK": encoded(drawn("CMYK"), "JPEG"),
    "JPEG progressive": PROGRESSIVE,
    "JPEG with restarts": encoded(drawn(), "JPEG", restart_marker_blocks=1),
    "JPEG turned by its EXIF": encoded(drawn(), "JPEG", exif=rotated(), comment=b"a comment"),
    "JPEG with a thumbnail": THUMBNAIL,
    "JPEG whose EXIF is damaged": after_soi(JPEG, segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff")),
    "JPEG whose MPF is damaged": after_soi(JPEG, segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff")),
    "JPEG with padding": after_soi(JPEG, b"\xff\xff\xff"),
    # Its end marker lies across the border of two pieces that are read.
    "JPEG of two pieces": after_soi(JPEG, segment(0xFE, bytes(65_535 - len(JPEG)))),
    "MPO": MPO,
    "PNG RGBA": PNG,
    "PNG RGB": encoded(drawn(), "PNG"),
    "PNG grey": encoded(drawn("L"), "PNG"),
    "PNG grey and alpha": encoded(drawn("LA"), "PNG"),
    "PNG black and white": encoded(drawn("1"), "PNG"),
    "PNG palette": encoded(drawn().quantize(16), "PNG", transparency=0),
    "PNG 16 bits": encoded(drawn("L").convert("I;16"), "PNG"),
    "PNG with an animation of one frame": png(
        header(1, 1), chunk(b"acTL", b"\0\0\0\1" * 2), chunk(b"IDAT", zlib.compress(bytes(5)))
    ),
    "PNG with more data than pixels": rgba_png(bytes(18 + 300_000)),
    "WebP": WEBP,
    "WebP lossless": LOSSLESS,
    "WebP alpha": encoded(drawn("RGBA"), "WEBP"),
    "WebP EXIF": encoded(drawn(), "WEBP", exif=rotated()),
}


def look(data: bytes, limits: Limits = LIMITS) -> Picture:
    return inspect(io.BytesIO(data), limits)


def fault_of(data: bytes, limits: Limits = LIMITS) -> BgremoverError:
    with pytest.raises(BgremoverError) as caught:
        look(data, limits)
    return caught.value


def verdict_on(data: bytes) -> str:
    with pytest.raises(BrokenResult) as caught:
        verify_result(io.BytesIO(data), 50)
    return caught.value.message


# --- what can be sent -----------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_picture_passes(name: str) -> None:
    form = {"J": "JPEG", "M": "JPEG", "P": "PNG", "W": "WEBP"}[name[0]]
    data = WHOLE[name]
    picture = look(data)
    assert picture.format == form
    assert picture.sha256 == hashlib.sha256(data).hexdigest()
    with Image.open(io.BytesIO(data)) if "damaged" not in name else drawn() as image:
        assert (picture.width, picture.height) == image.size


def test_every_format_that_passes_has_a_media_type() -> None:
    assert {look(data).format for data in WHOLE.values()} == set(MEDIA_TYPES)


def test_the_position_of_the_file_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "named.txt"
    path.write_bytes(JPEG)
    with path.open("rb", buffering=0) as file:
        file.seek(100)
        assert inspect(file, LIMITS) == inspect(file, LIMITS) == look(JPEG)


def test_a_camera_may_append_what_it_likes() -> None:
    for name, data in WHOLE.items():
        for trailer in (b"\0", bytes(5_000), b"\xff\xd8\xff", MPO, b"text"):
            assert look(data + trailer).width == look(data).width, name


@pytest.mark.parametrize("side", [1, 7, 8, 9, 17])
@pytest.mark.parametrize("form", BY_FORM)
def test_small_pictures_pass(form: str, side: int) -> None:
    data = encoded(Image.new("RGB", (side, 1)), form)
    assert (look(data).width, look(data).height) == (side, 1)


# --- PNG by hand: every colour, depth and interlacing ---------------------------------------

PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
KINDS = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 2), (3, 4)]
KINDS += [(3, 8), (4, 8), (4, 16), (6, 8), (6, 16)]
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def rows(width: int, height: int, bits: int, interlaced: int) -> list[bytes]:
    grids = (*PASSES, (0, 1, 1, 2)) if interlaced else ((0, 0, 1, 1),)
    made = []
    for left, top, right, down in grids:
        across = len(range(left, width, right))
        empty = bytes((across * bits + 7) // 8)
        made += [bytes([row % 5]) + empty for row in range(top, height, down) if across]
    return made


def built(
    size: tuple[int, int], kind: tuple[int, int], interlaced: int, cut: int, missing: int = 0
) -> bytes:
    colour, depth = kind
    raw = rows(*size, depth * CHANNELS[colour], interlaced)
    data = zlib.compress(b"".join(raw[: len(raw) - missing]))
    palette = chunk(b"PLTE", bytes(6)) if colour == 3 else b""
    parts = [chunk(b"IDAT", data[at : at + cut]) for at in range(0, len(data), cut)]
    return png(header(*size, depth, colour, 0, 0, interlaced), palette, *parts)


HAND_MADE = st.tuples(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(KINDS),
    st.integers(0, 1),
    st.integers(1, 100),
)


@given(HAND_MADE)
def test_every_kind_of_png_passes_as_pillow_reads_it(
    made: tuple[tuple[int, int], tuple[int, int], int, int],
) -> None:
    data = built(*made)
    assert (look(data).width, look(data).height) == made[0]
    with Image.open(io.BytesIO(data)) as image:
        image.load()


@given(HAND_MADE)
def test_a_png_that_lacks_a_row_is_damaged(
    made: tuple[tuple[int, int], tuple[int, int], int, int],
) -> None:
    fault = fault_of(built(*made, missing=1))
    assert isinstance(fault, NotAnImage)
    assert "it lacks 1 row of pixels" in fault.message


# --- what cannot be sent --------------------------------------------------------------------

SOF = JPEG.index(b"\xff\xc0")
LONG = replaced(PNG, 8, b"\xff")
NO_PALETTE = png(header(1, 1, 8, 3, 0, 0, 0), chunk(b"IDAT", zlib.compress(b"\0\0")))
SPLIT = zlib.compress(bytes(5))
BAD: dict[str, tuple[bytes, type[FileFault], str]] = {
    "nothing": (b"", EmptyImage, "0 bytes"),
    "text": (b"BM and RIFF are words, too", NotAnImage, '"BM and RIFF "'),
    "web page": (b"<!DOCTYPE html><p>not found", NotAnImage, "no known picture"),
    "sound": (riff((b"data", b"x"))[:8] + b"WAVEfmt ", NotAnImage, '"RIFF'),
    "film": (b"\0\0\0\x18ftypisom" + bytes(40), NotAnImage, "no known picture"),
    "zeros": (bytes(5_000), Truncated, "its 5000 bytes begin with b''"),
    "one byte of a JPEG": (JPEG[:1], Truncated, "its 1 bytes begin with"),
    "four bytes of a PNG, then zeros": (PNG[:4] + bytes(50), Truncated, "its 54 bytes begin with"),
    "six bytes of a WebP": (WEBP[:6], Truncated, "its 6 bytes begin with"),
    "APNG": (APNG, Animated, "2 frames"),
    "moving WebP": (MOVING, Animated, "more than one frame"),
    "moving WebP with an odd chunk": (
        replaced(MOVING[:30], 4, struct.pack("<I", len(MOVING) + 2))
        + (b"ICCP" + struct.pack("<I", 1) + b"x\0" + MOVING[30:]),
        Animated,
        "more than one frame",
    ),
    "JPEG without a scan": (JPEG[:SOF] + b"\xff\xd9", NotAnImage, "marker D9"),
    "JPEG without a frame": (
        JPEG[:SOF] + JPEG[SOF + 19 :],
        NotAnImage,
        "damaged: it has no frame header",
    ),
    "JPEG of no height": (replaced(JPEG, SOF + 5, b"\0\0"), NotAnImage, "61 x 0"),
    "JPEG with a short frame": (JPEG[:2] + segment(0xC0, b"\x08"), NotAnImage, "too short"),
    "JPEG with a short segment": (after_soi(JPEG, b"\xff\xe0\0\1"), NotAnImage, "segment of 1"),
    "JPEG without its tables": (
        JPEG[: JPEG.index(b"\xff\xdb")] + JPEG[SOF:],
        NotAnImage,
        "the JPEG is damaged: ",
    ),
    "JPEG that begins again": (JPEG[:-2] + JPEG, NotAnImage, "marker D8"),
    "JPEG of 12 bits": (replaced(JPEG, SOF + 4, b"\x0c"), UnsupportedFormat, "12 bits"),
    "JPEG lossless": (replaced(JPEG, SOF + 1, b"\xc3"), UnsupportedFormat, "SOF3"),
    "JPEG with two channels": (replaced(JPEG, SOF + 9, b"\2"), UnsupportedFormat, "2 channels"),
    "JPEG with too many scans": (
        PROGRESSIVE[:-2] + PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2] * 100 + b"\xff\xd9",
        NotAnImage,
        "more than 64 scans",
    ),
    "JPEG with too many segments": (
        after_soi(JPEG, b"\xff\xfe\0\2" * 5_001),
        NotAnImage,
        "more than 5000 segments",
    ),
    "PNG with a bad sum in its data": (
        replaced(PNG, -13, b"?"),
        NotAnImage,
        "the PNG is damaged: the checksum of chunk IDAT is wrong",
    ),
    "PNG with a bad sum at its end": (replaced(PNG, -1, b"?"), NotAnImage, "IEND is wrong"),
    "PNG that cannot be unpacked": (
        png(header(1, 1), chunk(b"IDAT", b"nonsense")),
        NotAnImage,
        "cannot be unpacked",
    ),
    "PNG whose data have a bad sum": (
        png(header(1, 1), chunk(b"IDAT", SPLIT[:-1] + b"?")),
        NotAnImage,
        "cannot be unpacked",
    ),
    "PNG with an odd filter": (rgba_png(bytes(9) + b"\5" + bytes(8)), NotAnImage, "a filter"),
    "PNG without pixels": (png(header(1, 1)), NotAnImage, "1 row of"),
    "PNG without a palette": (NO_PALETTE, NotAnImage, "no palette"),
    "PNG without a header": (png(), NotAnImage, "does not begin with a header"),
    "PNG with a short header": (png(chunk(b"IHDR", bytes(12))), NotAnImage, "header"),
    "PNG of no size": (png(header(0, 1)), NotAnImage, "0 x 1"),
    "PNG of no colour": (png(header(1, 1, 8, 5, 0, 0, 0)), NotAnImage, "does not exist"),
    "PNG of no depth": (png(header(1, 1, 4, 2, 0, 0, 0)), NotAnImage, "does not exist"),
    "PNG of no interlacing": (png(header(1, 1, 8, 2, 0, 0, 2)), NotAnImage, "does not exist"),
    "PNG with two headers": (png(header(1, 1), header(1, 1)), NotAnImage, "chunk IHDR that no"),
    "PNG with an unknown chunk": (png(header(1, 1), chunk(b"HARD")), NotAnImage, "chunk HARD"),
    "PNG with a long chunk": (LONG, NotAnImage, "no chunk where one should be"),
    "PNG with scattered data": (
        png(
            header(1, 1),
            chunk(b"IDAT", SPLIT[:5]),
            chunk(b"tIME", bytes(7)),
            chunk(b"IDAT", SPLIT[5:]),
        ),
        NotAnImage,
        "do not follow each other",
    ),
    "PNG with too many chunks": (
        png(header(1, 1), chunk(b"teXt") * 100_000),
        NotAnImage,
        "more than 100000 chunks",
    ),
    "WebP without a picture": (riff((b"EXIF", b"x" * 40)), NotAnImage, "begin with a picture"),
    "WebP with a damaged frame": (
        replaced(WEBP, 23, b"???"),
        NotAnImage,
        "does not begin with a picture",
    ),
    "WebP with no data": (
        riff((b"VP8 ", WEBP[20:30])),
        NotAnImage,
        "the WEBP is damaged: ",
    ),
    "WebP with too many chunks": (
        riff((WEBP[12:16], WEBP[20:]), *[(b"junk", b"")] * 1_000),
        NotAnImage,
        "more than 1000 chunks",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_sent_gets_its_fault(name: str) -> None:
    data, expected, words = BAD[name]
    fault = fault_of(data)
    assert type(fault) is expected, fault.message
    assert words in fault.message


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (encoded(drawn("P"), "GIF"), "a GIF"),
        (encoded(drawn(), "TIFF"), "a TIFF"),
        (b"MM\0*\0\0\0\x08", "a TIFF"),
        (b"MM\0+\0\x08\0\0", "a TIFF"),
        (encoded(drawn(), "BMP"), "a BMP"),
        (encoded(drawn(), "ICO"), "an icon"),
        (encoded(drawn(), "PDF"), "a PDF"),
        (encoded(drawn(), "EPS"), "a PostScript"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "a HEIC or AVIF"),
        (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif", "an AVIF"),
        (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", "RAW"),
        (b"FUJIFILMCCD-RAW 0201", "RAW"),
        (b"IIRO\x08\0\0\0", "RAW"),
        (b"IIU\0\x18\0\0\0", "RAW"),
        (b"8BPS\0\1", "a Photoshop file"),
        (b"\xff\x0a\xfa\x7f", "a JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000"),
        (SIGNATURE + b"\0\0\0\4CgBI", "a PNG in Apple's own variant"),
        (b"<svg xmlns='x'/>", "an SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- c -->\n<svg>", "an SVG"),
    ],
)
def test_other_pictures_are_named(head: bytes, kind: str) -> None:
    for data in (head, head + bytes(100)):
        fault = fault_of(data)
        assert isinstance(fault, UnsupportedFormat)
        assert f"the file is {kind}" in fault.message.replace("a camera's RAW", kind)


def test_the_bytes_are_counted_before_anything_is_decoded() -> None:
    fault = fault_of(JPEG[:-9], Limits(1_000))
    assert isinstance(fault, TooLarge)
    assert "at most 0.001 are taken" in fault.message
    assert look(JPEG, Limits(len(JPEG))).format == "JPEG"


@pytest.mark.parametrize("data", [JPEG, PNG, WEBP, LOSSLESS, encoded(drawn("RGBA"), "WEBP")])
def test_the_pixels_are_limited(data: bytes) -> None:
    pixels = SIZE[0] * SIZE[1]
    assert look(data, Limits(10**6, pixels)).width == SIZE[0]
    fault = fault_of(data[:700], Limits(10**6, pixels - 1))
    assert isinstance(fault, TooManyPixels)
    assert "(61 x 47)" in fault.message


# --- cut off --------------------------------------------------------------------------------

CUTTABLE = {name: data for name, data in WHOLE.items() if name != "MPO"}


@pytest.mark.parametrize("percent", [1, 50, 99])
@pytest.mark.parametrize("name", CUTTABLE)
def test_a_part_is_truncated(name: str, percent: int) -> None:
    data = CUTTABLE[name]
    part = data[: max(1, len(data) * percent // 100)]
    assert isinstance(fault_of(part), Truncated)
    assert whole(io.BytesIO(part)) is not True


@given(st.sampled_from(sorted(CUTTABLE)), st.floats(0, 1, exclude_max=True))
def test_any_part_is_truncated(name: str, share: float) -> None:
    data = CUTTABLE[name]
    part = data[: int(len(data) * share)]
    assert isinstance(fault_of(part), Truncated if part else EmptyImage)


@given(st.sampled_from([JPEG, PROGRESSIVE, THUMBNAIL, PNG]), st.floats(0, 1), st.integers(16, 9999))
def test_zeros_instead_of_the_end_are_truncated(data: bytes, share: float, zeros: int) -> None:
    part = data[: int((len(data) - 2) * share)]
    assert isinstance(fault_of(part + bytes(zeros)), Truncated)


def test_an_mpo_is_whole_once_its_first_picture_is() -> None:
    second = MPO.index(b"\xff\xd9") + 2
    assert isinstance(fault_of(MPO[: second - 1]), Truncated)
    assert look(MPO[:second]).format == "JPEG"
    assert look(MPO[: second + 100]).format == "JPEG"


@pytest.mark.parametrize("options", [{"quality": 80}, {"lossless": True}])
@pytest.mark.parametrize("percent", [5, 30, 60])
def test_a_webp_whose_end_was_never_written_is_truncated(
    options: dict[str, Any], percent: int
) -> None:
    data = encoded(drawn(size=(300, 300)), "WEBP", **options)
    assert look(data).width == 300
    part = data[: len(data) * percent // 100]
    assert isinstance(fault_of(part + bytes(len(data) - len(part))), Truncated)


def test_an_even_background_may_end_in_zeros() -> None:
    # The fastest method spends bits, all of them zero, where nothing is to be seen.
    flat = Image.new("RGB", (1500, 1500), (128, 10, 200))
    data = encoded(flat, "WEBP", quality=100, method=0)
    assert data.endswith(bytes(4096))
    assert look(data).width == 1500


# --- bombs ----------------------------------------------------------------------------------

BLANK = zlib_of_zeros(6251 * 50_000)
HUGE = {
    "PNG of 2.5 Gpixel": png(header(50_000, 50_000, 1, 0, 0, 0, 0), chunk(b"IDAT", BLANK)),
    "JPEG header": replaced(JPEG, SOF + 5, b"\xff\xff\xff\xff"),
    "WebP header": replaced(encoded(drawn("RGBA"), "WEBP"), 24, b"\xff" * 6),
    "WebP lossless header": replaced(LOSSLESS, 21, b"\xff\xff\xff\x0f"),
}


def least_work(call: Callable[[], object]) -> float:
    """Return the CPU seconds that a call takes in this thread: no more is added by others."""
    spent = []
    for _ in range(3):
        began = time.thread_time()
        call()
        spent.append(time.thread_time() - began)
    return min(spent)


@pytest.mark.parametrize("name", HUGE)
def test_a_bomb_is_refused_from_its_header(name: str) -> None:
    assert len(HUGE[name]) < 310_000
    assert least_work(lambda: fault_of(HUGE[name])) < 0.1
    fault = fault_of(HUGE[name])
    assert isinstance(fault, TooManyPixels)
    assert "at most 100 are taken" in fault.message


def test_what_comes_after_the_last_row_is_not_unpacked() -> None:
    bomb = png(header(1, 1), chunk(b"IDAT", BLANK))
    assert look(bomb).width == 1
    assert least_work(lambda: look(bomb)) < 0.1


PEAK = """
import resource, sys
from bgremover.edges import pictures
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pictures.inspect(open(sys.argv[1], "rb"), pictures.Limits(10**7))
before = peak()
for path in sys.argv[2:]:
    try:
        print(pictures.inspect(open(path, "rb"), pictures.Limits(10**7)).width)
    except pictures.TooManyPixels as fault:
        print(fault.code)
print((peak() - before) // 1024)
"""


def test_memory_stays_flat(tmp_path: Path) -> None:
    allowed = png(header(10_000, 9_000), chunk(b"IDAT", zlib_of_zeros(40_001 * 9_000)))
    # A few bytes that would be 1.4 GB for a decoder.
    empty = encoded(Image.new("RGB", (1, 1)), "WEBP", lossless=True)
    wide = replaced(empty, 21, struct.pack("<I", 9_999 | 8_999 << 14))
    paths = []
    for number, data in enumerate((JPEG, *HUGE.values(), allowed, wide)):
        paths.append(str(tmp_path / str(number)))
        Path(paths[-1]).write_bytes(data)
    program = [sys.executable, "-c", PEAK, *paths]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run(program, env=here, capture_output=True, text=True, check=True).stdout
    *codes, megabytes = output.split()
    assert codes == ["too_many_pixels"] * 4 + ["10000"] * 2
    assert int(megabytes) < 10


# --- reading --------------------------------------------------------------------------------


class BadDisk(io.BytesIO):
    """A file with one block that cannot be read; what lies before it is given, as a disk does."""

    def __init__(self, data: bytes, number: int, position: int) -> None:
        super().__init__(data)
        self.number = number
        self.position = position

    def read(self, size: int | None = -1, /) -> bytes:
        before = self.position - self.tell()
        if before < 0:
            return super().read(size)
        if before == 0 or size is None or size < 0:
            raise OSError(self.number, os.strerror(self.number))
        return super().read(min(size, before))


@pytest.mark.parametrize("position", [0, 1024])
@pytest.mark.parametrize("data", [JPEG, PNG, WEBP])
@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EIO, DiskFailed),
        (errno.ESTALE, DiskFailed),
        (errno.ENOMEM, TooManyOpenFiles),
        (errno.EMFILE, TooManyOpenFiles),
        (errno.EACCES, Blocked),
        (errno.EBADMSG, Unreadable),
        (errno.EUCLEAN, Unreadable),
    ],
)
def test_a_failing_read_is_not_blamed_on_the_picture(
    number: int, expected: type[BgremoverError], data: bytes, position: int
) -> None:
    with pytest.raises(expected) as caught:
        inspect(BadDisk(data, number, position), LIMITS)
    assert "the original" in caught.value.message
    assert os.strerror(number) in caught.value.message


@pytest.mark.parametrize("position", [0, 4096])
def test_a_failing_read_is_not_blamed_on_the_result(position: int) -> None:
    with pytest.raises(DiskFailed, match="reading the result"):
        verify_result(BadDisk(PNG, errno.EIO, position), 50)


def test_a_failing_read_is_told_by_the_quick_look_too() -> None:
    with pytest.raises(DiskFailed, match="reading the original"):
        whole(BadDisk(PNG, errno.EIO, 0))


def test_threads_get_their_own_answers_and_a_fault_blocks_nobody() -> None:
    broken, answers = BAD["JPEG without its tables"][0], dict[int, object]()

    def work(number: int) -> None:
        data = [JPEG, broken, WEBP, encoded(drawn(), "WEBP")][number % 4]
        answers[number] = fault_of(data).code if data is broken else look(data).format

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert [answers[number] for number in range(8)] == ["JPEG", "not_an_image", "WEBP", "WEBP"] * 2


# --- results --------------------------------------------------------------------------------


def with_hole(mode: str, at: tuple[int, int]) -> Image.Image:
    image = Image.new("RGBA", SIZE, (10, 20, 30, 255))
    image.putpixel(at, (0, 0, 0, 254))
    return image.convert(mode)


OPAQUE = Image.new("RGBA", SIZE, (10, 20, 30, 255))
KEYED_16 = png(
    header(2, 1, 16, 0, 0, 0, 0),
    chunk(b"tRNS", b"\1\2"),
    chunk(b"IDAT", zlib.compress(b"\0\xff\xff\1\2")),
)
GOOD = {
    "the corner": encoded(with_hole("RGBA", (0, 0)), "PNG"),
    "a later pixel": encoded(with_hole("RGBA", (60, 46)), "PNG"),
    "grey": encoded(with_hole("LA", (3, 3)), "PNG"),
    "all of it": encoded(Image.new("RGBA", SIZE), "PNG"),
    "a palette": encoded(drawn().quantize(16), "PNG", transparency=bytes([200] * 16)),
    "a colour": encoded(OPAQUE.convert("RGB"), "PNG", transparency=(10, 20, 30)),
    "a shade": encoded(OPAQUE.convert("L"), "PNG", transparency=18),
    "a shade of 16 bits": KEYED_16,
    "16 bits": png(
        header(1, 1, 16, 6, 0, 0, 0), chunk(b"IDAT", zlib.compress(bytes(7) + b"\xff\xfe"))
    ),
    "16 bits and grey": png(
        header(1, 1, 16, 4, 0, 0, 0), chunk(b"IDAT", zlib.compress(bytes(3) + b"\xfe\xff"))
    ),
    "interlaced": built((40, 30), (6, 8), 1, 50),
    "trailing bytes": encoded(with_hole("RGBA", (0, 0)), "PNG") + b"more",
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_result_is_kept(name: str, tmp_path: Path) -> None:
    path = tmp_path / "result"
    with path.open("w+b", buffering=0) as file:
        file.write(GOOD[name])
        result = verify_result(file, 50)
    with Image.open(path) as image:
        size = image.size
    assert result == Result(*size)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no PNG: it begins with b''"),
        (b"<html>", "no PNG: it begins with b'<html>'"),
        (JPEG, "no PNG"),
        (WEBP, "no PNG"),
        (SIGNATURE, "cut off: it ends without an end chunk"),
        (PNG[:100], "cut off: it ends in the middle of chunk IDAT"),
        (PNG[:-12], "cut off: it ends without an end chunk"),
        (PNG[:-1], "cut off: the checksum of chunk IEND is missing"),
        (replaced(PNG, 100, b"??"), "damaged: "),
        (replaced(PNG, -13, b"?"), "damaged: the checksum of chunk IDAT is wrong"),
        (rgba_png(bytes(9)), "damaged: it lacks 1 row of pixels"),
        (encoded(drawn(), "PNG"), "no transparency: the PNG has no alpha channel"),
        (encoded(drawn("L"), "PNG"), "no transparency: the PNG has no alpha channel"),
        (encoded(OPAQUE, "PNG"), "no transparency: every pixel is opaque"),
        (encoded(OPAQUE.convert("LA"), "PNG"), "every pixel is opaque"),
        (encoded(drawn().quantize(8), "PNG", transparency=b"\xff" * 8), "every pixel is opaque"),
        (encoded(OPAQUE.convert("RGB"), "PNG", transparency=(1, 2, 3)), "every pixel is opaque"),
        (HUGE["PNG of 2.5 Gpixel"], "2500.0 megapixels (50000 x 50000), at most 50 are taken"),
    ],
)
def test_a_bad_result_is_not_kept(data: bytes, words: str) -> None:
    assert words in verdict_on(data)


@given(st.integers(0, SIZE[0] - 1), st.integers(0, SIZE[1] - 1))
def test_one_transparent_pixel_is_enough(x: int, y: int) -> None:
    data = encoded(with_hole("RGBA", (x, y)), "PNG", compress_level=1)
    assert verify_result(io.BytesIO(data), 50).width == SIZE[0]


# --- the quick look -------------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE)
def test_the_end_of_a_whole_picture_shows(name: str) -> None:
    assert whole(io.BytesIO(WHOLE[name])) is True


@given(st.sampled_from([JPEG, PNG, WEBP]), st.floats(0, 1), st.integers(100, 9999))
def test_the_end_of_a_part_does_not_show(data: bytes, share: float, zeros: int) -> None:
    part = data[: 12 + int((len(data) - 13) * share)]
    assert whole(io.BytesIO(part)) is False
    # The whole length, but not written to the end.
    unwritten = part[: len(data) - 100] + bytes(max(100, len(data) - len(part)))
    assert whole(io.BytesIO(unwritten)) is False
    assert whole(io.BytesIO(part + bytes(zeros))) is False


@pytest.mark.parametrize("data", [b"", b"text", bytes(99), encoded(drawn("P"), "GIF"), JPEG[:2]])
def test_nothing_can_be_told_of_other_files(data: bytes) -> None:
    assert whole(io.BytesIO(data)) is None


class Counted(io.BytesIO):
    """Counts the bytes that are read."""

    total = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.total += len(data)
        return data


def test_the_quick_look_reads_next_to_nothing() -> None:
    file = Counted(PNG + bytes(10**6))
    assert whole(file) is False
    assert file.total < 1000


# --- hostile bytes --------------------------------------------------------------------------

SEEDS = [
    *(JPEG, PROGRESSIVE, MPO, WHOLE["JPEG turned by its EXIF"], WHOLE["JPEG CMYK"]),
    *(PNG, APNG, WHOLE["PNG palette"], WHOLE["PNG 16 bits"]),
    *(WEBP, LOSSLESS, MOVING, WHOLE["WebP alpha"], WHOLE["WebP EXIF"]),
]
NUMBERS = (b"\0\0\0\0", b"\0\0\0\1", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff")
EDITS = st.tuples(
    st.one_of(st.integers(0, 200), st.integers(0, 5_000)),
    st.integers(0, 30),
    st.one_of(st.binary(max_size=8), st.sampled_from(NUMBERS)),
)


def edited(seed: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for at, gone, new in edits:
        seed = seed[:at] + new + seed[at + gone :]
    return seed


def mended(data: bytes) -> bytes:
    """Set the checksums of a PNG right, so that damage reaches what lies behind them."""
    at, made = 8, data[:8]
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        made += chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length])
        at += 12 + length
    return made if data.startswith(SIGNATURE) else data


HOSTILE = st.builds(edited, st.sampled_from(SEEDS), st.lists(EDITS, min_size=1, max_size=4))
FEW_PIXELS = Limits(10**6, 10**6)


def outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except (FileFault, BrokenResult) as fault:
        return fault.code
    return "good"


@given(HOSTILE)
def test_hostile_bytes_end_in_a_picture_or_in_a_fault_of_the_file(data: bytes) -> None:
    for given_data in (data, mended(data)):
        file = io.BytesIO(given_data)
        codes = {outcome(partial(inspect, file, FEW_PIXELS))}
        codes.add(outcome(partial(verify_result, file, 1)))
        whole(file)
        assert codes <= {
            *("good", "empty", "not_an_image", "unsupported_format", "truncated", "animated"),
            *("too_many_pixels", "broken_result"),
        }


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_fault_of_the_file(data: bytes) -> None:
    assert outcome(lambda: inspect(io.BytesIO(data), LIMITS)) != "good"


def test_hostile_bytes_reach_every_decoder() -> None:
    reached = {
        fault_of(edited(seed, [edit])).message
        for seed, edit in (
            (JPEG, (JPEG.index(b"\xff\xdb") + 4, 1, b"\x0f")),
            (WEBP, (28, 0, bytes(90))),
            (LOSSLESS, (60, 40, b"\xff" * 40)),
        )
    }
    assert all("damaged: " in message for message in reached), reached
