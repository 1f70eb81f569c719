"""Colours are converted by their profiles, never dropped: what is sent and sold is sRGB."""

import io
from contextlib import suppress
from functools import cache

from PIL import Image, ImageChops, ImageCms

_SAME = 2  # levels: a profile that moves no colour further is sRGB
_CUBE = (0, 32, 64, 96, 128, 160, 192, 224, 255)
_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION

Profile = ImageCms.ImageCmsProfile


@cache
def srgb() -> Profile:
    """Return the profile of sRGB."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@cache
def srgb_bytes() -> bytes:
    """Return the profile of sRGB as a file holds it."""
    profile = srgb().tobytes()
    # The moment of its making and an id that depends on it (ICC.1:2010, 7.2): with them the same
    # picture would be another file each time.
    return profile[:24] + bytes(12) + profile[36:84] + bytes(16) + profile[100:]


def profile_of(image: Image.Image) -> Profile | None:
    """Return the profile of a picture, if it has one that is usable and of its kind of colours."""
    mode = {"LA": "L", "RGBA": "RGB"}.get(image.mode, image.mode)
    data = image.info.get("icc_profile")
    with suppress(Exception):  # a damaged profile counts as none
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data)) if data else None
        if profile is not None:
            _transform(profile, mode)  # proves that it can be used, on colours of this kind
            return profile
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")) if mode == "LAB" else None


def is_srgb(profile: Profile | None) -> bool:
    """Tell whether a profile leaves RGB colours as they are; a picture without one is sRGB."""
    if profile is None:
        return True
    if profile.profile.xcolor_space != "RGB ":
        return False
    cube = _cube()
    moved = _converted(cube, profile, "RGB")
    return all(high <= _SAME for _, high in _extrema(ImageChops.difference(cube, moved)))


def to_srgb(image: Image.Image) -> Image.Image:
    """Return a picture in sRGB.

    Args:
        image: As `opening.upright` gives it. May be changed in place: use only what is returned.

    Returns:
        Mode RGB, or RGBA where it has alpha; no profile in its `info`.
    """
    info = {name: value for name, value in image.info.items() if name != "icc_profile"}
    profile = profile_of(image)
    if profile is None or is_srgb(profile):
        image = image.convert(_PLAIN[image.mode]) if image.mode in _PLAIN else image
    else:
        image = _managed(image, profile)
    image.info = info
    return image


_PLAIN = {"L": "RGB", "LA": "RGBA", "CMYK": "RGB"}


def _managed(image: Image.Image, profile: Profile) -> Image.Image:
    if image.mode == "RGBA":  # in place, and alpha stays
        ImageCms.applyTransform(image, _transform(profile, "RGBA", "RGBA"), inPlace=True)
        return image
    if image.mode != "LA":
        return _converted(image, profile, image.mode)
    alpha = image.getchannel("A")
    colours = _converted(image.convert("L"), profile, "L")
    colours.putalpha(alpha)
    return colours


def from_srgb(profile: Profile) -> ImageCms.ImageCmsTransform:
    """Return what brings RGB pixels from sRGB into the colours of `profile`."""
    return ImageCms.buildTransform(srgb(), profile, "RGB", "RGB", _INTENT, _FLAGS)


def _converted(colours: Image.Image, profile: Profile, mode: str) -> Image.Image:
    transform = _transform(profile, mode)
    if mode == "RGB" and colours is not _cube():
        ImageCms.applyTransform(colours, transform, inPlace=True)
        return colours
    result = ImageCms.applyTransform(colours, transform)
    assert result is not None  # noqa: S101 - not in place
    return result


def _transform(profile: Profile, mode: str, into: str = "RGB") -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(profile, srgb(), mode, into, _INTENT, _FLAGS)


@cache
def _cube() -> Image.Image:
    """Return the RGB colours by which profiles are compared."""
    colours = bytes(v for r in _CUBE for g in _CUBE for b in _CUBE for v in (r, g, b))
    return Image.frombytes("RGB", (len(_CUBE) ** 2, len(_CUBE)), colours)


def _extrema(image: Image.Image) -> list[tuple[int, int]]:
    return [band.getextrema() for band in image.split()]  # type: ignore[misc]
