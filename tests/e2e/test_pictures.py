"""Pictures through the real program: any kind in, full size out, renditions, review."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pillow_heif
import pytest
from PIL import Image, ImageChops, ImageDraw

from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox
from tests.site import KEY, Site

SIZE = (640, 480)
TURN = 0x0112  # EXIF: Orientation


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with RunningSandbox(SandboxOptions(key=KEY)) as running:
        yield running


def site_of(tmp_path: Path, sandbox: RunningSandbox, **settings: Any) -> Site:  # noqa: ANN401 - YAML
    output = {"resolution": "original", "review": "warn", **settings.pop("output", {})}
    return Site(tmp_path, sandbox.url, output=output, **settings)


def scene(number: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    """Draw a subject with a pattern inside on a plain background."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    width, height = size
    draw.ellipse((width // 4, height // 8, width * 3 // 4, height * 7 // 8), fill=(180, 60, 40))
    for x in range(width * 3 // 8, width * 5 // 8, 4):
        shade = (x * 7 + number * 31) % 160
        draw.line((x, height // 3, x, height * 2 // 3), fill=(shade, 90, 160 - shade))
    return image


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:  # noqa: ANN401 - Pillow's
    buffer = io.BytesIO()
    if kind == "HEIF":
        pillow_heif.from_pillow(image).save(buffer, quality=-1)
    else:
        image.save(buffer, kind, **options)
    return buffer.getvalue()


def saved(site: Site, name: str) -> Image.Image:
    image = Image.open(site.outbox / name)
    image.load()
    return image


def inside(image: Image.Image) -> Image.Image:
    width, height = image.size
    box = (width * 3 // 8, height // 3, width * 5 // 8, height * 2 // 3)
    return image.convert("RGB").crop(box)


def test_every_kind_of_picture_comes_back_at_full_size_with_its_own_pixels(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = site_of(tmp_path, sandbox)
    kinds = {"a.heic": "HEIF", "b.tif": "TIFF", "c.bmp": "BMP", "d.gif": "GIF", "e.png": "PNG"}
    for number, (name, kind) in enumerate(kinds.items()):
        site.drop(name, encoded(scene(number), kind))
    done = site.command("once")
    assert done.returncode == 0, done.stdout + done.stderr
    for number, (name, kind) in enumerate(kinds.items()):
        image = saved(site, name[:1] + ".png")
        assert image.size == SIZE
        assert image.getchannel("A").getextrema() == (0, 255)
        if kind in ("TIFF", "BMP", "PNG"):
            assert ImageChops.difference(inside(image), inside(scene(number))).getbbox() is None
    assert {payment.file for payment in sandbox.state.payments} == {
        f"{name[:1]}.png" if kind != "HEIF" else "a.jpg" for name, kind in kinds.items()
    }


def test_what_was_left_out_or_sent_otherwise_is_told(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = site_of(tmp_path, sandbox)
    pages = [scene(number) for number in range(3)]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    site.drop("pages.tif", buffer.getvalue())
    done = site.command("once")
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    (sent,) = [line for line in lines if line["event"] == "image.submitted"]
    (kept,) = [line for line in lines if line["event"] == "image.saved"]
    assert "sent as a PNG" in sent["note"]
    assert "3" in kept["notes"][0]


def test_a_picture_that_lies_on_its_side_comes_back_upright(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = site_of(tmp_path, sandbox)
    exif = Image.Exif()
    exif[TURN] = 6
    lying = scene().transpose(Image.Transpose.ROTATE_90)
    site.drop("a.png", encoded(lying, "PNG", exif=exif))
    assert site.command("once").returncode == 0
    image = saved(site, "a.png")
    assert image.size == SIZE
    assert ImageChops.difference(inside(image), inside(scene())).getbbox() is None


def test_a_file_that_is_too_large_is_sent_smaller_and_comes_back_whole(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = site_of(tmp_path, sandbox, api={"max_upload_mb": 0.05})
    large = encoded(scene(size=(1600, 1200)), "BMP")
    site.drop("a.bmp", large)
    assert site.command("once").returncode == 0
    assert saved(site, "a.png").size == (1600, 1200)
    rejecting = site_of(
        tmp_path / "other", sandbox, api={"max_upload_mb": 0.05}, input={"oversize": "reject"}
    )
    noisy = Image.effect_noise((900, 900), 80).convert("RGB")
    rejecting.drop("b.png", encoded(noisy, "PNG"))
    assert rejecting.command("once").returncode == 1
    report = json.loads((rejecting.quarantine / "b.png.error.json").read_text())
    assert report["code"] == "too_large"


def test_what_is_transparent_already_costs_nothing_when_asked(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = site_of(tmp_path, sandbox, input={"already_transparent": "pass"})
    cut = scene().convert("RGBA")
    mask = Image.new("L", SIZE)
    ImageDraw.Draw(mask).ellipse((160, 60, 480, 420), fill=255)
    cut.putalpha(mask)
    site.drop("cut.png", encoded(cut, "PNG"))
    site.drop("whole.png", encoded(scene(1), "PNG"))
    planned = site.command("plan").stdout
    assert "to cut out    1 image, $0.01" in planned
    assert "transparent   1 image already" in planned
    assert site.command("once").returncode == 0
    assert [payment.file for payment in sandbox.state.payments] == ["whole.png"]
    image = saved(site, "cut.png")
    assert ImageChops.difference(image.getchannel("A"), mask).getbbox() is None
    assert site.files(site.archive) == {"cut.png", "whole.png"}
    status = json.loads(site.command("status", "--json").stdout)
    assert status["spend"]["billed"] == 1
    assert status["totals"]["saved"] == 2


def test_renditions_lie_beside_the_cut_out_and_can_be_made_later_for_nothing(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = site_of(tmp_path, sandbox, output={"renditions": ["amazon", "mask", "crop"]})
    site.drop("shoes/a.jpg", encoded(scene(), "JPEG", quality=95))
    assert site.command("once").returncode == 0
    made = {"shoes/a.png", "shoes/a-amazon.jpg", "shoes/a-mask.png"}
    (crop,) = site.files(site.outbox) - made
    assert crop.startswith("shoes/a-crop")
    amazon = saved(site, "shoes/a-amazon.jpg")
    assert (amazon.size, amazon.getpixel((0, 0))) == ((2000, 2000), (255, 255, 255))
    before = (site.outbox / "shoes/a-mask.png").read_bytes()
    (site.outbox / crop).unlink()
    done = site.command("render", "--missing")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1 rendition made of 1 cut-out. Nothing was sent.\n"
    assert site.files(site.outbox) == {*made, crop}
    again = site.command("render", "shoes/*.png")
    assert again.stdout == "0 renditions made of 1 cut-out, 3 there already. Nothing was sent.\n"
    none = site.command("render", "shoes/*.jpg")
    assert (none.returncode, none.stdout) == (1, "")
    assert "nothing matches shoes/*.jpg" in none.stderr
    some = site.command("render", "hats/*", "shoes/*")
    assert (some.returncode, some.stdout) == (1, again.stdout)
    assert "nothing matches hats/*" in some.stderr
    assert site.files(site.outbox) == {*made, crop}
    assert (site.outbox / "shoes/a-mask.png").read_bytes() == before
    assert len(sandbox.state.payments) == 1


def test_a_rendition_never_takes_the_name_of_something_else(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = site_of(tmp_path, sandbox, output={"renditions": ["mask"]})
    site.outbox.mkdir()
    (site.outbox / "a-mask.png").write_bytes(b"somebody's")
    site.drop("a.jpg", encoded(scene(), "JPEG"))
    assert site.command("once").returncode == 0
    assert (site.outbox / "a-mask.png").read_bytes() == b"somebody's"
    assert site.files(site.outbox) == {"a.png", "a-mask.png", "a-mask-2.png"}


def test_all_renditions_or_none_and_the_cut_out_in_any_case(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    lines = ["mask", f"back size=200 background={tmp_path / 'gone.jpg'}"]
    site = site_of(tmp_path, sandbox, output={"renditions": lines})
    site.drop("a.jpg", encoded(scene(), "JPEG"))
    done = site.command("once")
    assert done.returncode == 0
    assert "no renditions" in done.stderr
    assert site.files(site.outbox) == {"a.png"}
    assert list(site.outbox.glob(".*")) == []
    assert site.files(site.archive) == {"a.jpg"}


def test_a_doubtful_result_is_put_aside_with_the_reasons(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = site_of(tmp_path, sandbox, output={"review": "move"})
    tiny = Image.new("RGB", SIZE, "white")
    ImageDraw.Draw(tiny).ellipse((310, 230, 330, 250), fill=(180, 60, 40))
    site.drop("shoes/tiny.png", encoded(tiny, "PNG"))
    site.drop("good.png", encoded(scene(), "PNG"))
    assert site.command("once").returncode == 0
    assert site.files(site.outbox) == {
        "good.png",
        "_review/shoes/tiny.png",
        "_review/shoes/tiny.png.review.json",
    }
    report = json.loads((site.outbox / "_review/shoes/tiny.png.review.json").read_text())
    assert report["doubts"][0]["code"] == "little_left"
    site.drop("again.png", encoded(tiny, "PNG"))
    assert site.command("once").returncode == 0
    assert len(sandbox.state.payments) == 2
