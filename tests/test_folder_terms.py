"""What a `.bgremover.yaml` may say, and what whoever may drop images may not ask for."""

import pytest

from bgremover.core.ignoring import Ignore
from bgremover.core.terms import OutputTerms, Override, OwnOutput
from bgremover.reading import FOLDER_KEYS, parse_override
from bgremover.settings import Settings, keys

BACKDROP = "/srv/backdrops/wood.jpg"
GIVEN = Settings(
    output={"renditions": ["amazon", f"wood size=800 background={BACKDROP}"]},
    input={"max_megapixels": 50},
)


def read(text: str) -> Override:
    return parse_override(text, GIVEN)


def test_it_takes_every_key_of_output_and_what_it_took_before() -> None:
    output = {key for key in keys() if key.startswith("output.")}
    assert set(FOLDER_KEYS) == {"originals", "watch.ignore", *output}
    text = """
originals: keep
watch: {ignore: ["*.png"]}
output: {resolution: result, metadata: strip, review: move, renditions: [thumb, mask]}
"""
    own = OwnOutput("result", "strip", "move", ("thumb", "mask"))
    assert read(text) == Override("keep", Ignore(("*.png",)), own)
    assert own.over(OutputTerms()) == OutputTerms("result", "strip", "move", ("thumb", "mask"))


def test_what_it_does_not_say_is_left_to_those_above() -> None:
    assert read("") == Override()
    assert read("output:") == Override()
    assert read("output: {review: off}").output == OwnOutput(review="off")
    assert read("output: {renditions: []}").output == OwnOutput(renditions=())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("output: {resolution: huge}", "output.resolution (line 1): huge will not do."),
        ("\noutput: {metadata: all}", "output.metadata (line 2): all will not do."),
        ("output: {resolutions: result}", "output.resolutions (line 1): there is no such key."),
        ("output: {renditions: [amazone]}", "no preset"),
        ("output: {renditions: ['a name=../{stem}.png']}", "is no name below the outbox"),
        ("output: {renditions: ['a name=/etc/{stem}.png']}", "is no name below the outbox"),
        ("output: {renditions: [webp, 'a name={stem}.webp']}", "Give a another name="),
        ("output: {renditions: null}", "null will not do"),
        (
            "output: {renditions: ['a background=/etc/shadow']}",
            'a: a folder cannot name an image as its background, "/etc/shadow". Take a colour, or',
        ),
        ("output: {renditions: ['a background=../x.jpg']}", "cannot name an image"),
        ("output: {renditions: ['a size=8000']}", "a: it has more than 50 megapixels"),
        ("output: {renditions: ['a longest=8000']}", "a: it has more than 50 megapixels"),
        (f"output: {{renditions: {[f'a{n} size=9' for n in range(21)]}}}", "more than 20"),
        ("queue: {workers: 9}", "A folder can have originals, watch.ignore, output.resolution, "),
    ],
)
def test_a_mistake_says_where_it_is_and_what_to_do(text: str, words: str) -> None:
    told = read(text)
    assert told.wrong is not None
    assert words in told.wrong
    assert told.output == OwnOutput()


@pytest.mark.parametrize(
    "line",
    [
        "a size=7071",
        "a size=16000x3000",
        f"hero longest=2000 background={BACKDROP}",
        "a background=#f0f0f0",
    ],
)
def test_what_harms_nobody_is_taken(line: str) -> None:
    assert read(f"output: {{renditions: ['{line}']}}").output.renditions == (line,)


def test_twenty_renditions_are_not_too_many() -> None:
    lines = tuple(f"a{number} size=9" for number in range(20))
    assert read(f"output: {{renditions: {list(lines)}}}").output.renditions == lines


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("output: {renditions: ['a name={stem}" + "{" * 60_000 + ".png']}", "1000 characters"),
        (f"watch: {{ignore: ['x/{'[' * 60_000}']}}", "more than 500 characters. Shorten it."),
        (f"watch: {{ignore: {[f'a{number}' for number in range(101)]}}}", "more than 100 globs"),
    ],
)
def test_a_file_that_would_keep_the_program_busy_is_refused(text: str, words: str) -> None:
    told = read(text).wrong
    assert told is not None
    assert words in told


def test_of_many_mistakes_the_first_are_told() -> None:
    told = read("\n".join(f"key{number}: x" for number in range(3_000))).wrong
    assert told is not None
    assert "key4 (line 5)" in told
    assert "key5" not in told
    assert told.endswith("And 2995 more.")
