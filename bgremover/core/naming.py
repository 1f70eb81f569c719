"""Names: where a cut-out goes, what it is called when the name is taken, how names are shown.

Paths are relative, with "/" between the parts and surrogate escapes for bytes that are no UTF-8,
as `os.fsdecode` gives them.
"""

import hashlib
import itertools
import unicodedata
from collections.abc import Iterator

MAX_NAME_BYTES = 255
"""The longest name that Linux file systems take (NAME_MAX)."""


def output_path(path: str, suffix: str = ".png") -> str:
    """Return where the cut-out of the inbox path `path` goes: the mirrored path as a PNG."""
    folder, stem, _ = split(path)
    return folder + _fitted(stem, "", suffix, MAX_NAME_BYTES)


def candidates(path: str, max_bytes: int = MAX_NAME_BYTES) -> Iterator[str]:
    """Yield the names to try, without end: `a/b.png`, `a/b-2.png`, `a/b-3.png`, ...

    Args:
        path: The name that is wished for.
        max_bytes: The longest name; longer ones are cut at a character and get a short hash.
    """
    folder, stem, suffix = split(path)
    yield folder + _fitted(stem, "", suffix, max_bytes)
    for number in itertools.count(2):
        yield folder + _fitted(stem, f"-{number}", suffix, max_bytes)


def split(path: str) -> tuple[str, str, str]:
    """Return folder (with its "/"), stem and suffix (with its dot) of `path`."""
    folder, slash, name = path.rpartition("/")
    stem, dot, suffix = name.rpartition(".")
    if not stem:
        return folder + slash, name, ""
    return folder + slash, stem, dot + suffix


def fold(path: str) -> str:
    """Return what two names have in common that a file system may take for the same.

    Case-insensitive and normalizing file systems (SMB, APFS, ext4 with casefold) do.
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def counted(number: int, thing: str, things: str = "") -> str:
    """Return "1 image", "0 images" or "1,234 images".

    Args:
        number: How many.
        thing: What one of them is called.
        things: What several are called, where an "s" does not make it.
    """
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def printable(path: str) -> str:
    """Return `path` as it can be shown: in a log line, in JSON, on a terminal.

    Control characters, line ends, escape sequences, direction overrides and bytes that are no
    UTF-8 are written as escapes; everything else stays as it is.
    """
    if path.isprintable():
        return path
    return "".join(char if char.isprintable() else _escaped(char) for char in path)


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # noqa: PLR2004 - the range of surrogateescape, PEP 383
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def _fitted(stem: str, number: str, suffix: str, max_bytes: int) -> str:
    name = stem + number + suffix
    if _size(name) <= max_bytes:
        return name
    if _size(suffix) > max_bytes // 2:
        return _fitted(stem + suffix, number, "", max_bytes)
    mark = "~" + hashlib.sha256(_bytes(stem)).hexdigest()[:8]
    return _cut(stem, max_bytes - _size(mark + number + suffix)) + mark + number + suffix


def _cut(text: str, max_bytes: int) -> str:
    while _size(text) > max_bytes:
        text = text[: min(len(text) - 1, max_bytes)]
    return text


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _size(text: str) -> int:
    return len(_bytes(text))
