"""The memory that picture work takes stays within its estimate, in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from bgremover.core.recipe import PRESETS, recipe_of
from bgremover.studio.budget import Work, estimate, most_of_rendering, rendering
from tests.studio.profiles import P3, rgb_profile
from tests.studio.scenes import encoded, heic, scene

SIDE = (3000, 2000)
PIXELS = SIDE[0] * SIDE[1]
FORMS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "AVIF", "HEIF")
LARGE = (9000, 6667)

PROGRAM = """
import importlib, sys
from bgremover.core.job import Picture
from bgremover.core.recipe import recipe_of
from bgremover.studio import finish, intake, opening, render, upload

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

work, form, width, height, original, result, output = sys.argv[1:]
for module, _ in opening._PLUGINS.values():
    importlib.import_module(module)
found = intake.Look(Picture("", form, int(width), int(height)), True, False)
before = peak()
with open(original, "rb") as file, open(result, "rb") as cut, open(output, "wb") as into:
    match work:
        case "look":
            intake.look(file, intake.Limits(3_000_000))
        case "upload":
            upload.prepare(file, found, upload.Options(3_000_000), into)
        case "finish":
            finish.finish(file, form, cut, into, finish.Options())
        case line:
            render.render(render.Sources(cut, file, form), recipe_of(line), into)
print(peak() - before)
"""


def growth(work: str, form: str, size: tuple[int, int], files: tuple[Path, Path]) -> int:
    """Return by how many bytes the peak of a process grows."""
    output = files[0].with_suffix(".out")
    arguments = [work, form, *map(str, size), *map(str, files), str(output)]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, *arguments],
        capture_output=True,
        check=True,
        text=True,
    )
    return int(run.stdout)


def written(
    folder: Path, form: str, size: tuple[int, int], profile: bytes | None = None
) -> tuple[Path, Path]:
    given = scene((600, 400))
    photo = given.photo.resize(size, Image.Resampling.BICUBIC)
    original, result = folder / form, folder / "result"
    if form == "HEIF":
        original.write_bytes(heic(photo, 50))
    else:
        plain = photo.quantize(64) if form == "GIF" else photo
        options = {"progressive": True, "subsampling": 0} if form == "JPEG" else {}
        original.write_bytes(encoded(plain, form, icc_profile=profile, **options))
    photo.putalpha(given.alpha.resize(size))
    photo.save(result, "PNG", compress_level=1, icc_profile=profile)
    return original, result


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
def test_work_stays_within_its_estimate(form: str, tmp_path: Path) -> None:
    files = written(tmp_path, form, SIDE)
    works: tuple[Work, ...] = ("look", "upload", "finish")
    for work in works:
        most = estimate(work, form, PIXELS, PIXELS)
        assert growth(work, form, SIDE, files) <= most, work


@pytest.mark.parametrize(
    "form", ["WEBP", *(pytest.param(form, marks=pytest.mark.long) for form in ("PNG", "TIFF"))]
)
def test_an_upload_that_is_not_opaque_stays_within_its_estimate(form: str, tmp_path: Path) -> None:
    original = tmp_path / form
    image = Image.merge("RGBA", [Image.effect_noise(SIDE, 80) for _ in range(4)])
    options = {"lossless": True, "quality": 0, "method": 0} if form == "WEBP" else {}
    original.write_bytes(encoded(image, form, **options))
    grown = growth("upload", form, SIDE, (original, original))
    assert estimate("upload", form, PIXELS) < grown, "the case is not one"
    assert grown <= estimate("upload", form, PIXELS, transparent=True)


def test_the_estimate_is_neither_too_low_nor_far_too_high(tmp_path: Path) -> None:
    most = estimate("finish", "JPEG", PIXELS, PIXELS)
    assert most / 2 <= growth("finish", "JPEG", SIDE, written(tmp_path, "JPEG", SIDE)) <= most


@pytest.mark.long
@pytest.mark.parametrize(
    "line", ["amazon", "webp", "mask", "crop", "thumb", "a format=tiff", "a format=avif"]
)
def test_a_rendition_stays_within_its_estimate(line: str, tmp_path: Path) -> None:
    files = written(tmp_path, "JPEG", SIDE)
    assert growth(line, "JPEG", SIDE, files) <= rendering(recipe_of(line), SIDE, "JPEG")


@pytest.mark.long
@pytest.mark.parametrize("work", ["finish", "webp"])
def test_wide_colours_take_no_more(work: str, tmp_path: Path) -> None:
    plain, wide = (
        growth(work, "JPEG", SIDE, written(tmp_path, "JPEG", SIDE, profile))
        for profile in (None, rgb_profile(P3, 2.2))
    )
    assert wide < plain + PIXELS


@pytest.mark.long
@pytest.mark.timeout(600)
def test_sixty_megapixels_take_less_than_a_nas_has(tmp_path: Path) -> None:
    files = written(tmp_path, "JPEG", LARGE)
    pixels = LARGE[0] * LARGE[1]
    stated: dict[Work, int] = {"look": 450, "upload": 700, "finish": 650}
    for work, most_mb in stated.items():
        most = estimate(work, "JPEG", pixels, pixels)
        assert growth(work, "JPEG", LARGE, files) <= min(most, most_mb * 1_000_000), work


def test_two_large_jobs_do_not_fit_into_the_default_budget() -> None:
    one = estimate("finish", "JPEG", 60_000_000, 60_000_000)
    assert one < 1_000_000_000 < 2 * one


CAMERAS = [(6000, 4000), (8192, 5464), (9504, 6336), (11648, 8736)]
"""24, 45, 60 and 102 megapixels."""


@pytest.mark.parametrize("size", CAMERAS)
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_made_of_any_picture(name: str, size: tuple[int, int]) -> None:
    for form in (*FORMS, ""):
        most = most_of_rendering(1_000_000_000, size, form)
        assert rendering(PRESETS[name], size, form) <= most


@pytest.mark.parametrize(
    ("line", "size", "room"),
    [
        ("a size=10000x10000 format=avif", (96, 72), False),
        ("a size=10000x10000 format=webp", (96, 72), False),
        ("a size=16000 format=png", (96, 72), False),
        ("a size=10000x10000 format=avif", CAMERAS[-1], False),
        ("a size=6000 format=avif", CAMERAS[0], False),
        ("a size=4000 format=avif", CAMERAS[0], True),
        ("a size=6000 format=png", CAMERAS[0], True),
        ("a format=avif", CAMERAS[0], True),
        ("a format=tiff", CAMERAS[-1], True),
        ("a format=avif", CAMERAS[-1], False),
        ("a fill=85% background=white name={stem}.jpg", CAMERAS[-1], True),
    ],
)
def test_a_recipe_may_take_what_there_is_or_what_a_preset_takes(
    line: str, size: tuple[int, int], room: bool
) -> None:
    most = most_of_rendering(1_000_000_000, size, "JPEG")
    assert (rendering(recipe_of(line), size, "JPEG") <= most) is room


def test_what_is_cut_off_takes_no_memory() -> None:
    recipe = recipe_of("a trim=true format=avif")
    whole = rendering(recipe, CAMERAS[1], "")
    assert rendering(recipe, CAMERAS[1], "", (0, 0, 4000, 2000)) < whole / 2


def test_a_format_that_is_not_known_is_taken_for_the_heaviest() -> None:
    works: tuple[Work, ...] = ("look", "upload", "finish")
    for work in works:
        heaviest = max(estimate(work, form, PIXELS, PIXELS) for form in FORMS)
        assert estimate(work, "", PIXELS, PIXELS) == heaviest
