"""Colour profiles, written from the ICC specification, and the arithmetic to check them by."""

import math
import struct
from collections.abc import Sequence
from itertools import product

_D50 = (0.9642, 1.0, 0.8249)

Triple = tuple[float, float, float]

# Columns: what red, green and blue at full strength are in XYZ, adapted to D50.
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
PROPHOTO = ((0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.0), (0.03134, 0.00009, 0.82491))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))


def rgb_profile(columns: Sequence[Triple], gamma: float) -> bytes:
    """Return a profile of RGB colours with one gamma."""
    curve = _curve(gamma)
    named = {b"rXYZ": columns[0], b"gXYZ": columns[1], b"bXYZ": columns[2], b"wtpt": _D50}
    tags = {name: _xyz(value) for name, value in named.items()}
    return _file(
        b"mntr", b"RGB ", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    )


def grey_profile(gamma: float) -> bytes:
    return _file(b"mntr", b"GRAY", b"XYZ ", {b"wtpt": _xyz(_D50), b"kTRC": _curve(gamma)})


def _ink(cyan: int, magenta: int, yellow: int, black: int) -> Triple:
    light = 100.0 - 30 * cyan - 30 * magenta - 8 * yellow
    mixed = (light, 30.0 * (magenta - cyan), 40.0 * yellow - 25.0 * cyan)
    return (0.0, 0.0, 0.0) if black else mixed


MIXTURES = list(product((0, 1), repeat=4))
INKS = {inks: _ink(*inks) for inks in MIXTURES}
"""Lab of the sixteen mixtures of full inks."""


def cmyk_profile() -> bytes:
    """Return a profile of four inks: a table of their sixteen full mixtures."""
    identity = bytes(range(256))
    labs = (INKS[inks] for inks in MIXTURES)
    table = bytes(round(v) for light, a, b in labs for v in (light * 2.55, a + 128, b + 128))
    matrix = struct.pack(">9i", *(65536 * (index % 4 == 0) for index in range(9)))
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + matrix + identity * 4 + table + identity * 3
    return _file(b"prtr", b"CMYK", b"Lab ", {b"wtpt": _xyz(_D50), b"A2B0": lut})


def _file(kind: bytes, space: bytes, between: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = b"a profile of the tests"
    tags = {b"desc": _desc(text), b"cprt": b"text" + bytes(4) + b"none\0", **tags}
    at = 128 + 4 + 12 * len(tags)
    directory, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        directory += name + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", at + len(body), bytes(4), 0x02400000, kind, space, between)
    head += bytes(12) + b"acsp" + bytes(28) + _s15(_D50) + bytes(48)
    return head[:128] + directory + body


def _desc(text: bytes) -> bytes:
    return b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text + b"\0" + bytes(78)


def _s15(values: Sequence[float]) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def _xyz(values: Triple) -> bytes:
    return b"XYZ " + bytes(4) + _s15(values)


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)


# --- the reference --------------------------------------------------------------------------


def lab_of(colour: Sequence[int], columns: Sequence[Triple], gamma: float | None) -> Triple:
    """Return the Lab of an RGB colour of 8 bits; gamma None is the curve of sRGB."""
    linear = [_linear(value / 255, gamma) for value in colour]
    xyz = [sum(linear[i] * columns[i][axis] for i in range(3)) for axis in range(3)]
    x, y, z = (_f(value / white) for value, white in zip(xyz, _D50, strict=True))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def _linear(value: float, gamma: float | None) -> float:
    if gamma is not None:
        return float(value**gamma)
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def _f(value: float) -> float:
    return value ** (1 / 3) if value > 0.008856 else 7.787 * value + 16 / 116


def srgb_lab(colour: Sequence[int]) -> Triple:
    return lab_of(colour, SRGB, None)


def delta_e(one: Triple, other: Triple) -> float:
    return math.dist(one, other)
