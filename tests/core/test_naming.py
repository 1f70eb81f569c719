"""Where a cut-out goes, what it is called when the name is taken, how names are shown."""

import itertools
import os
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bgremover.core.naming import (
    MAX_NAME_BYTES,
    candidates,
    counted,
    fold,
    output_path,
    printable,
    split,
)
from tests.fakes import names, paths

LONG = "é" * 200
LONG_HIDDEN = "." + "x" * 300
NOT_UTF8 = os.fsdecode(b"caf\xe9")
LONGEST = st.sampled_from([MAX_NAME_BYTES, MAX_NAME_BYTES - len(".error.json"), 64])
wild = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)


def first(path: str, count: int, max_bytes: int = MAX_NAME_BYTES) -> list[str]:
    return list(itertools.islice(candidates(path, max_bytes), count))


def size(path: str) -> int:
    return len(os.fsencode(path.rpartition("/")[2]))


# --- outputs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "output"),
    [
        ("IMG_1.jpg", "IMG_1.png"),
        ("IMG_1.png", "IMG_1.png"),
        ("shoes/red/IMG_1.JPEG", "shoes/red/IMG_1.png"),
        ("shoes.2026/IMG_1", "shoes.2026/IMG_1.png"),
        ("a.b.c.webp", "a.b.c.png"),
        (".hidden", ".hidden.png"),
        ("a.", "a.png"),
        ("-rf.jpg", "-rf.png"),
        ("..jpg", "..png"),
        ("a\nb.jpg", "a\nb.png"),
        (f"{NOT_UTF8}.jpg", f"{NOT_UTF8}.png"),
    ],
)
def test_a_cut_out_mirrors_its_original_as_a_png(path: str, output: str) -> None:
    assert output_path(path) == output


def test_another_suffix_may_be_asked_for() -> None:
    assert output_path("a/b.jpg", ".webp") == "a/b.webp"


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("a/b/c.tar.gz", ("a/b/", "c.tar", ".gz")),
        ("c", ("", "c", "")),
        ("a.b/c", ("a.b/", "c", "")),
        (".c", ("", ".c", "")),
        ("a/.c.jpg", ("a/", ".c", ".jpg")),
        ("c.", ("", "c", ".")),
    ],
)
def test_a_path_is_folder_stem_and_suffix(path: str, parts: tuple[str, str, str]) -> None:
    assert split(path) == parts


@given(paths)
@example("a.jpg")
@example(f"a/{LONG}.jpg")
def test_an_output_stays_in_its_folder_is_a_png_and_fits(path: str) -> None:
    output = output_path(path)
    assert output.rpartition("/")[0] == path.rpartition("/")[0]
    assert output.endswith(".png")
    assert size(output) <= MAX_NAME_BYTES


# --- candidates -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "wished"),
    [
        ("a/b.png", ["a/b.png", "a/b-2.png", "a/b-3.png"]),
        ("b", ["b", "b-2", "b-3"]),
        ("b-2.png", ["b-2.png", "b-2-2.png", "b-2-3.png"]),
        (".b", [".b", ".b-2", ".b-3"]),
        ("a.b/c.", ["a.b/c.", "a.b/c-2.", "a.b/c-3."]),
    ],
)
def test_taken_names_are_numbered_before_the_suffix(path: str, wished: list[str]) -> None:
    assert first(path, 3) == wished


@given(paths, LONGEST)
@example(f"a/{LONG}.png", MAX_NAME_BYTES)
@example("a." + LONG, MAX_NAME_BYTES)
@example(LONG_HIDDEN, MAX_NAME_BYTES)
@example("😀" * 100, 64)
def test_candidates_fit_differ_and_stay_in_their_folder(path: str, max_bytes: int) -> None:
    found = first(path, 30, max_bytes)
    assert all(size(name) <= max_bytes for name in found)
    assert len(set(found)) == len(found)
    assert {name.rpartition("/")[0] for name in found} == {path.rpartition("/")[0]}


@given(paths, LONGEST)
@example(f"a/{LONG}{NOT_UTF8}.png", MAX_NAME_BYTES)
@example(NOT_UTF8 * 60 + ".png", MAX_NAME_BYTES)
def test_candidates_are_names_that_the_disk_gives_back_as_they_are(
    path: str, max_bytes: int
) -> None:
    for name in first(path, 3, max_bytes):
        assert os.fsdecode(os.fsencode(name)) == name


@given(wild, LONGEST)
@example("a" + LONG + ".png", MAX_NAME_BYTES)
@example("😀" * 100, 64)
def test_a_long_name_is_cut_at_a_character(name: str, max_bytes: int) -> None:
    shortened = first(name, 1, max_bytes)[0]
    assert shortened.encode()  # UTF-8 in, UTF-8 out
    if shortened != name:
        parts = re.fullmatch(r"(.*)~[0-9a-f]{8}(.*)", shortened, re.DOTALL)
        assert parts is not None
        assert name.startswith(parts[1])
        assert name.endswith(parts[2])


def test_a_name_that_fits_to_the_byte_is_kept_and_one_byte_more_is_cut() -> None:
    fits = "x" * 251 + ".png"
    assert first(fits, 1) == [fits]
    (cut,) = first("x" + fits, 1)
    assert (size(cut), cut[:242], cut[242], cut[-4:]) == (255, "x" * 242, "~", ".png")


def test_long_names_that_begin_alike_are_told_apart() -> None:
    assert first(LONG + "1.png", 1) != first(LONG + "2.png", 1)


def test_the_same_long_name_always_gives_the_same_candidates() -> None:
    assert first(LONG, 5) == first(LONG, 5)


def test_a_long_suffix_does_not_crowd_out_the_stem_or_the_number() -> None:
    one, two = first("stem." + "s" * 250, 2)
    assert one.startswith("stem.s")
    assert two.startswith("stem.s")
    assert two.endswith("-2")


# --- names that a file system may take for the same -----------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Foo.png", "foo.PNG"),
        ("A/b.png", "a/B.png"),
        ("\u00e9.png", "e\u0301.png"),
        ("\u00c9.png", "e\u0301.png"),
        ("stra\u00dfe.png", "STRASSE.png"),
        ("\u03a3.png", "\u03c2.png"),
        ("\u212b.png", "\u00e5.png"),
    ],
)
def test_names_that_some_file_system_takes_for_the_same_fold_alike(one: str, other: str) -> None:
    assert fold(one) == fold(other)


@pytest.mark.parametrize(
    ("one", "other"), [("a.png", "a-2.png"), ("a.png", "\u00e4.png"), ("a/b.png", "ab.png")]
)
def test_other_names_fold_differently(one: str, other: str) -> None:
    assert fold(one) != fold(other)


@given(paths)
@example("\u0345\u0300")
@example("\u1fb3\u0301")
@example(NOT_UTF8)
def test_folding_twice_is_folding_once(path: str) -> None:
    assert fold(fold(path)) == fold(path)


@given(wild)
@example("\u1e69")
def test_the_normal_form_of_a_name_makes_no_difference(name: str) -> None:
    assert fold(unicodedata.normalize("NFD", name)) == fold(unicodedata.normalize("NFC", name))


# --- what is shown --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("shoes/IMG 1 (2).jpg", "shoes/IMG 1 (2).jpg"),
        ("überraschung/日本/😀.png", "überraschung/日本/😀.png"),
        ("a\nb\r\t.png", "a\\nb\\r\\t.png"),
        ("\x1b[31mred\x1b[0m.png", "\\x1b[31mred\\x1b[0m.png"),
        ("\x9b31m.png", "\\x9b31m.png"),
        ("\x7f\x00", "\\x7f\\x00"),
        ("gpj.\u202exyz", "gpj.\\u202exyz"),
        ("a\u2028b", "a\\u2028b"),
        ("a\u00a0b", "a\\xa0b"),
        ("\U000e0001", "\\U000e0001"),
        (f"{NOT_UTF8}.png", "caf\\xe9.png"),
        ("", ""),
    ],
)
def test_what_cannot_be_shown_is_written_as_an_escape(path: str, shown: str) -> None:
    assert printable(path) == shown


@given(st.text() | paths)
@example("\ud800")
@example("\x1b")
def test_what_is_shown_is_one_line_of_harmless_utf8(path: str) -> None:
    shown = printable(path)
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert not any(unicodedata.category(char)[0] == "C" for char in shown)
    assert len(shown.splitlines()) <= 1


@given(st.text() | paths)
@example("shoes/IMG_1.jpg")
@example("a\nb")
def test_what_can_be_shown_is_left_as_it_is(path: str) -> None:
    assert (printable(path) == path) is path.isprintable()


@given(names)
def test_a_shown_name_can_be_shown_again(name: str) -> None:
    assert printable(printable(name)) == printable(name)


@pytest.mark.parametrize(
    ("number", "words", "told"),
    [
        (0, ("image",), "0 images"),
        (1, ("image",), "1 image"),
        (2, ("image",), "2 images"),
        (12_345, ("file",), "12,345 files"),
        (1, ("address", "addresses"), "1 address"),
        (3, ("address", "addresses"), "3 addresses"),
    ],
)
def test_one_thing_is_not_called_as_several_are(
    number: int, words: tuple[str, ...], told: str
) -> None:
    assert counted(number, *words) == told
