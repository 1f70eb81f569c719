"""What holds in a folder: its own file, those above it, the configuration."""

import pytest

from bgremover.core.ignoring import Ignore
from bgremover.core.terms import FolderTerms, OutputTerms, Override, OwnOutput

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


def test_key_by_key_the_innermost_file_says_what_cut_outs_are_like() -> None:
    given = OutputTerms("original", "safe", "warn", ("amazon",))
    shoes = GIVEN.below("shoes/", Override(output=OwnOutput("result", renditions=("thumb",))))
    red = shoes.below("shoes/red/", Override("keep", output=OwnOutput(metadata="strip")))
    none = red.below("shoes/red/x/", Override(output=OwnOutput(review="off", renditions=())))
    held = shoes.below("shoes/blue/", Override(wrong="no YAML"))
    said = [one.output.over(given) for one in (GIVEN, shoes, red, none, held)]
    assert said == [
        given,
        OutputTerms("result", "safe", "warn", ("thumb",)),
        OutputTerms("result", "strip", "warn", ("thumb",)),
        OutputTerms("result", "strip", "off", ()),
        OutputTerms("result", "safe", "warn", ("thumb",)),
    ]
    assert none.output.said()["renditions"] == ()
    assert GIVEN.output.said() == {}


@pytest.mark.parametrize(
    ("made", "wanted", "serves"),
    [
        (OutputTerms(), OutputTerms(), True),
        (OutputTerms(), OutputTerms(renditions=("amazon",)), True),
        (OutputTerms(), OutputTerms("result"), False),
        (OutputTerms("result"), OutputTerms(), False),
        (OutputTerms(metadata="keep"), OutputTerms(metadata="strip"), False),
        (OutputTerms("result", "keep"), OutputTerms("result", "strip"), False),
        (OutputTerms(review="off"), OutputTerms(review="move"), False),
        (OutputTerms(review="warn"), OutputTerms(review="move"), True),
        (OutputTerms(review="move"), OutputTerms(review="off"), True),
    ],
)
def test_a_cut_out_serves_where_it_is_as_it_would_be_made(
    made: OutputTerms, wanted: OutputTerms, serves: bool
) -> None:
    assert made.serves(wanted) is serves


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
