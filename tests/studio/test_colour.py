"""Colours of any profile are converted, and checked against arithmetic of our own."""

import io
from itertools import product

import pytest
from PIL import Image

from bgremover.studio.colour import is_srgb, profile_of, srgb_bytes, to_srgb
from bgremover.studio.opening import upright
from tests.studio.profiles import (
    ADOBE,
    INKS,
    P3,
    PROPHOTO,
    SRGB,
    Triple,
    cmyk_profile,
    delta_e,
    grey_profile,
    lab_of,
    rgb_profile,
    srgb_lab,
)
from tests.studio.scenes import encoded

# Colours that lie within sRGB in each of the three larger spaces.
INSIDE = [c for c in product((70, 100, 130, 160), repeat=3) if max(c) - min(c) <= 30] + [
    (0, 0, 0),
    (255, 255, 255),
    (30, 30, 30),
]
WIDE = {"Display P3": (P3, 2.2), "Adobe RGB": (ADOBE, 2.2), "ProPhoto": (PROPHOTO, 1.8)}


def pixel(colour: int | tuple[int, ...], mode: str, profile: bytes, form: str) -> Image.Image:
    data = encoded(Image.new(mode, (3, 2), colour), form, icc_profile=profile)
    return to_srgb(upright(io.BytesIO(data), form))


def rgb(image: Image.Image) -> tuple[int, ...]:
    found = image.convert("RGB").getpixel((0, 0))
    assert isinstance(found, tuple)
    return found


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_wide_colour_is_within_2_of_the_reference(name: str, mode: str) -> None:
    columns, gamma = WIDE[name]
    profile = rgb_profile(columns, gamma)
    for colour in INSIDE:
        image = pixel((*colour, 200)[: len(mode)], mode, profile, "PNG")
        assert image.mode == mode
        assert delta_e(srgb_lab(rgb(image)), lab_of(colour, columns, gamma)) <= 2, colour


def test_dropping_the_profile_would_be_seen() -> None:
    off = [delta_e(srgb_lab(colour), lab_of(colour, PROPHOTO, 1.8)) for colour in INSIDE]
    assert max(off) > 10


@pytest.mark.parametrize("inks", [(0, 0, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 1, 0, 0)])
def test_a_mixture_of_inks_is_within_2_of_the_reference(inks: tuple[int, int, int, int]) -> None:
    colour = tuple(255 * ink for ink in inks)
    image = pixel(colour, "CMYK", cmyk_profile(), "TIFF")
    assert delta_e(srgb_lab(rgb(image)), INKS[inks]) <= 2


def test_inks_of_a_jpeg_are_not_taken_for_their_negatives() -> None:
    image = pixel((0, 0, 0, 0), "CMYK", cmyk_profile(), "JPEG")
    assert min(rgb(image)) >= 253


@pytest.mark.parametrize("value", [0, 40, 128, 200, 255])
def test_a_grey_of_a_profile_is_within_2_of_the_reference(value: int) -> None:
    image = pixel(value, "L", grey_profile(1.8), "PNG")
    reference: Triple = lab_of((value, value, value), SRGB, 1.8)
    assert delta_e(srgb_lab(rgb(image)), reference) <= 2


def test_srgb_is_recognised_by_what_it_does() -> None:
    image = Image.new("RGB", (1, 1))
    image.info["icc_profile"] = srgb_bytes()
    assert is_srgb(profile_of(image))
    image.info["icc_profile"] = rgb_profile(P3, 2.2)
    assert not is_srgb(profile_of(image))


@pytest.mark.parametrize("profile", [b"", b"no profile", cmyk_profile(), rgb_profile(P3, 2)[:150]])
def test_a_profile_that_does_not_fit_counts_as_none(profile: bytes) -> None:
    image = Image.new("RGB", (1, 1), (10, 200, 30))
    image.info["icc_profile"] = profile
    assert profile_of(image) is None
    assert rgb(to_srgb(image)) == (10, 200, 30)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK"])
def test_whatever_comes_out_has_red_green_and_blue(mode: str) -> None:
    image = to_srgb(Image.new(mode, (2, 2)))
    assert image.mode == ("RGBA" if "A" in mode else "RGB")
