"""Large originals, as cameras make them: full size, in seconds, at a stated pace."""

import io
import time

import pytest
from PIL import Image, ImageChops

from bgremover.studio.finish import Options, finish
from bgremover.studio.intake import Limits, look
from bgremover.studio.opening import upright
from bgremover.studio.upload import Options as Terms
from bgremover.studio.upload import prepare
from tests.studio.scenes import encoded, furthest, scene, solid

pytestmark = pytest.mark.long

SIZE = (6000, 4000)
PACE_SECONDS = 2.0
"""What writing the cut-out of 24 megapixels may take of one core."""


def photograph() -> tuple[Image.Image, Image.Image]:
    """Return a grainy picture of 24 megapixels and its alpha."""
    small = scene((600, 400))
    grain = Image.merge("RGB", [Image.effect_noise(SIZE, 14) for _ in range(3)])
    photo = ImageChops.add(small.photo.resize(SIZE, Image.Resampling.BICUBIC), grain, 1, -128)
    return photo, small.alpha.resize(SIZE, Image.Resampling.BICUBIC)


def test_a_jpeg_of_forty_megabytes_is_sent_small_and_comes_out_whole() -> None:
    photo, alpha = photograph()
    data = encoded(photo, "JPEG", quality=100, subsampling=0)
    assert len(data) > 30_000_000
    data += b"\0" * max(0, 40_000_000 - len(data))
    found = look(io.BytesIO(data), Limits(10_000_000))
    assert found.needs_conversion
    upload = io.BytesIO()
    prepare(io.BytesIO(data), found, Terms(10_000_000), upload)
    assert upload.tell() <= 10_000_000
    cut = upright(upload, "JPEG").resize((1536, 1024))
    cut.putalpha(alpha.resize(cut.size))
    into = io.BytesIO()
    told = finish(io.BytesIO(data), "JPEG", io.BytesIO(encoded(cut, "PNG")), into, Options())
    assert ((told.width, told.height), told.notes) == (SIZE, ())
    image, original = upright(into, "PNG"), upright(io.BytesIO(data), "JPEG")
    assert furthest(image.convert("RGB"), original, solid(image.getchannel("A"))) == 0


def test_a_cut_out_of_24_megapixels_is_written_at_the_stated_pace() -> None:
    photo, alpha = photograph()
    original = encoded(photo, "JPEG", quality=92)
    photo.putalpha(alpha)
    result = encoded(photo.resize((1536, 1024)), "PNG")
    started = time.process_time()
    finish(io.BytesIO(original), "JPEG", io.BytesIO(result), io.BytesIO(), Options())
    whole = time.process_time() - started
    # Of the whole, decoding the original is not the writing's.
    started = time.process_time()
    upright(io.BytesIO(original), "JPEG")
    decoding = time.process_time() - started
    assert whole - decoding <= PACE_SECONDS, (whole, decoding)
