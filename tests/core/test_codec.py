"""A job comes back from the ledger as it went in; what is damaged is said to be so."""

import json
import os
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bgremover.core.codec import decode, decode_kept, encode
from bgremover.core.errors import Billed
from bgremover.core.job import (
    Accepted,
    Deferred,
    Fetched,
    Home,
    Job,
    Kept,
    Paid,
    Picture,
    Quarantined,
    Queued,
    Released,
    Saved,
    State,
    Submitting,
)
from bgremover.core.terms import OutputTerms
from tests.fakes import NOON, RECEIPT, a_job, an_attempt, jobs

STATES: list[State] = [
    Queued(),
    Submitting(7),
    Accepted(RECEIPT, polls=3),
    Paid(RECEIPT, broken=2),
    Fetched(RECEIPT, "shoes/IMG_1.png", "5ec4e7", 4096),
    Deferred(NOON, Paid(RECEIPT), "link_failed"),
    Deferred(NOON, Quarantined("empty", "{}"), "no_permission"),
    Saved("shoes/IMG_1.png", "5ec4e7", 4096, RECEIPT, filed=True),
    Saved("shoes/IMG_1.png", "5ec4e7", 4096, None, reused=True, left=True),
    Quarantined("truncated", '{"code": "truncated"}', "shoes/IMG_1.jpg", filed=True),
    Released("vanished"),
]

FULL = a_job(
    path=os.fsdecode(b"caf\xe9/\n\xf0\x9f\x98\x80.jpg"),
    state=Deferred(NOON, Paid(RECEIPT, broken=1), "broken_result"),
    picture=Picture("5ec4e7", "JPEG", 800, 600),
    attempts=(an_attempt(), an_attempt(number=2, status=None, billed=Billed.UNKNOWN)),
    faults=1,
    crashes=2,
    checked=3,
    taken=True,
    home=Home("/srv/inbox", "/srv/outbox"),
    terms=OutputTerms("result", "keep", "move", ("amazon", "mask")),
)


def test_the_examples_hold_every_state() -> None:
    assert {type(state) for state in STATES} == set(get_args(State))


def test_the_full_example_leaves_nothing_at_its_default() -> None:
    claimed = a_job()
    same = {field.name for field in fields(Job) if _same(field.name, FULL, claimed)}
    assert same == {"id", "identity", "claimed_at"}


def _same(name: str, one: Job, other: Job) -> bool:
    return bool(getattr(one, name) == getattr(other, name))


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.kind)
def test_a_job_in_any_state_comes_back_as_it_went_in(state: State) -> None:
    job = replace(FULL, state=state)
    assert decode(encode(job)) == job
    assert type(decode(encode(job)).state) is type(state)


@given(jobs)
@example(FULL)
@example(a_job(attempts=(an_attempt(billed=Billed.YES),)))
def test_every_job_comes_back_as_it_went_in(job: Job) -> None:
    text = encode(job)
    assert decode(text) == job
    assert text.isascii()
    assert len(text.splitlines()) == 1


def test_the_kinds_of_the_states_are_part_of_the_format() -> None:
    kinds = {
        type(state).__name__: json.loads(encode(a_job(state=state)))["state"]["kind"]
        for state in STATES
    }
    assert kinds == {name: name.lower() for name in kinds}


# --- damage ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "1",
        "[]",
        "{}",
        '"job"',
        "not JSON",
        "\x00" * 100,
        "[" * 100_000,
        '{"state":' * 100_000,
        "9" * 5000,
    ],
    ids=lambda text: text[:12],
)
def test_what_is_no_job_is_said_to_be_damaged(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(text)


@given(jobs, st.data())
@example(FULL, None)
def test_a_job_that_is_cut_off_is_damaged(job: Job, data: st.DataObject | None) -> None:
    text = encode(job)
    end = data.draw(st.integers(0, len(text) - 1)) if data else len(text) - 1
    with pytest.raises(ValueError, match=r"."):
        decode(text[:end])


def _spoiled(value: Any) -> Iterator[Any]:  # noqa: ANN401 - JSON
    """Yield `value` with one of its objects, anywhere below, replaced by what it cannot be."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from ({**value, key: spoiled} for spoiled in _spoiled(item))
        yield {**value, "surplus": 1}
        yield []
        yield "text"
        yield 1
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from (
                [*value[:number], spoiled, *value[number + 1 :]] for spoiled in _spoiled(item)
            )
        yield 1


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.kind)
def test_a_part_that_cannot_be_is_damage(state: State) -> None:
    plain = json.loads(encode(replace(FULL, state=state)))
    spoiled = list(_spoiled(plain))
    assert len(spoiled) > 20
    for one in spoiled:
        with pytest.raises(ValueError, match=r"."):
            decode(json.dumps(one))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"kind":"paid"', '"kind":"lost"'),
        ('"kind":"paid"', '"kind":null'),
        ('"kind":"paid"', '"kind":["paid"]'),
        ('"kind":"paid",', ""),
        ('"billed":"no"', '"billed":"maybe"'),
        ('"billed":"no"', '"billed":null'),
        ('"device":1,', ""),
        ('"attempts"', '"attempt"'),
        ('"home"', '"house"'),
    ],
)
def test_a_value_that_is_not_known_is_damage(old: str, new: str) -> None:
    text = encode(FULL).replace('"broken":1,"kind":"paid"', '"kind":"paid","broken":1')
    assert old in text
    with pytest.raises(ValueError, match=r"."):
        decode(text.replace(old, new, 1))


def test_a_record_of_before_there_were_terms_is_read() -> None:
    plain = json.loads(encode(FULL))
    del plain["terms"]
    assert decode(json.dumps(plain)) == replace(FULL, terms=None)


@pytest.mark.parametrize("kind", [Accepted, Paid, Fetched])
def test_a_state_that_was_paid_for_needs_its_receipt(kind: type[State]) -> None:
    state = next(state for state in STATES if type(state) is kind)
    plain = json.loads(encode(a_job(state=state)))
    plain["state"]["receipt"] = None
    with pytest.raises(ValueError, match=r"."):
        decode(json.dumps(plain))


@given(jobs)
@example(FULL)
def test_what_a_start_must_know_is_what_all_of_it_says(job: Job) -> None:
    assert decode_kept(encode(job)) == Kept(job.path, job.identity)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"path": "a.jpg"}'])
def test_what_is_no_job_is_damage(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_kept(text)
