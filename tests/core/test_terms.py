"""What holds in a folder: its own file, those above it, the configuration."""

import pytest

from bgremover.core.ignoring import Ignore
from bgremover.core.terms import FolderTerms, Override

GIVEN = FolderTerms(Ignore(("*.psd",)))


def test_a_folder_without_a_file_of_its_own_is_like_the_one_above() -> None:
    assert GIVEN.below("shoes/", Override()) == GIVEN


def test_key_by_key_the_innermost_file_counts() -> None:
    shoes = GIVEN.below("shoes/", Override("keep", Ignore(("*.png",))))
    red = shoes.below("shoes/red/", Override("delete"))
    blue = shoes.below("shoes/blue/", Override(ignore=Ignore()))
    assert [one.originals for one in (GIVEN, shoes, red, blue)] == [None, "keep", "delete", "keep"]
    assert GIVEN.leaves_file("a.psd", "a.psd")
    assert not shoes.leaves_file("a.psd", "shoes/a.psd")
    assert red.leaves_file("a.png", "shoes/red/a.png")
    assert not blue.leaves_file("a.png", "shoes/blue/a.png")


@pytest.mark.parametrize(
    ("glob", "path", "left"),
    [
        ("raw/*", "shoes/raw/a.jpg", True),
        ("raw/*", "shoes/x/raw/a.jpg", False),
        ("shoes/raw/*", "shoes/raw/a.jpg", False),
        ("/a.jpg", "shoes/a.jpg", True),
        ("*.jpg", "shoes/x/y/a.jpg", True),
    ],
)
def test_globs_are_relative_to_the_folder_of_their_file(glob: str, path: str, left: bool) -> None:
    shoes = GIVEN.below("shoes/", Override(ignore=Ignore((glob,))))
    assert shoes.leaves_file(path.rpartition("/")[2], path) is left


def test_the_built_in_list_counts_everywhere() -> None:
    shoes = GIVEN.below("shoes/", Override(ignore=Ignore()))
    assert shoes.leaves_file("a.part", "shoes/a.part")
    assert shoes.leaves_folder("@eaDir", "shoes/@eaDir")
    assert shoes.why_folder("@eaDir", "shoes/@eaDir") == "@eaDir of the built-in list"


def test_a_wrong_file_holds_all_below_and_the_outermost_is_named() -> None:
    shoes = GIVEN.below("shoes/", Override(wrong="no YAML"))
    assert shoes.held == "shoes/.bgremover.yaml: no YAML"
    assert shoes.below("shoes/red/", Override("keep")).held == shoes.held
    assert shoes.below("shoes/red/", Override(wrong="other")).held == shoes.held
    assert GIVEN.held is None


def test_it_names_the_rule_of_the_folder() -> None:
    shoes = GIVEN.below("shoes/", Override(ignore=Ignore(("raw/*",))))
    assert shoes.why_file("a.jpg", "shoes/raw/a.jpg") == "raw/* of watch.ignore"
    assert shoes.why_file("a.jpg", "shoes/a.jpg") is None
