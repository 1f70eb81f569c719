"""What many tests build: jobs, and the hypothesis strategies for every job there can be."""

import os
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from bgremover.core.errors import Billed
from bgremover.core.job import (
    Accepted,
    Attempt,
    Deferred,
    Fetched,
    Home,
    Identity,
    Job,
    Paid,
    Picture,
    Quarantined,
    Queued,
    Receipt,
    Released,
    Saved,
    State,
    Submitting,
)
from bgremover.core.terms import OutputTerms

NOON = 1_767_268_800.0
"""2026-01-01T12:00:00Z."""

LINK = "https://ideogram.ai/api/images/ephemeral/x.png?exp=1767355200&sig=5ec4e7"
RECEIPT = Receipt("gen-1", LINK, NOON + 86_400, "req-1")


def a_job(**changes: Any) -> Job:  # noqa: ANN401 - the fields of Job
    """Build a job that was just claimed, but for `changes`."""
    job = Job(
        id="0a1b2c3d4e5f",
        path="shoes/IMG_1.jpg",
        identity=Identity(device=1, inode=2, size=3000, mtime_ns=4, ctime_ns=5),
        claimed_at=NOON,
        state=Queued(),
    )
    return replace(job, **changes)


def an_attempt(**changes: Any) -> Attempt:  # noqa: ANN401 - the fields of Attempt
    """Build a call that failed and cost nothing, but for `changes`."""
    attempt = Attempt(1, NOON, "server_failed", 503, "req-1", 1.2, Billed.NO)
    return replace(attempt, **changes)


# --- strategies -----------------------------------------------------------------------------

names = st.one_of(
    st.binary(min_size=1, max_size=255).map(lambda raw: raw.replace(b"/", b"_")),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1).map(
        lambda text: text.encode()[:255]
    ),
).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"_")))
"""Names as `os.fsdecode` gives them: any bytes but NUL and "/"."""

paths = st.lists(names, min_size=1, max_size=4).map("/".join)
moments = st.floats(min_value=0, max_value=4e9)
counts = st.integers(min_value=0, max_value=2**63 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]))

receipts = st.builds(Receipt, st.none() | texts, st.none() | texts, moments, st.none() | texts)
identities = st.builds(Identity, counts, counts, counts, counts, counts)
attempts = st.builds(
    Attempt,
    number=counts,
    at=moments,
    outcome=texts,
    status=st.none() | st.integers(100, 599),
    request_id=st.none() | texts,
    seconds=moments,
    billed=st.sampled_from(Billed),
)

_SAVED = st.builds(
    Saved, paths, texts, counts, st.none() | receipts, st.booleans(), st.booleans(), st.booleans()
)
_QUARANTINED = st.builds(Quarantined, texts, texts, paths, st.booleans(), st.booleans())
_RESUMED = (
    st.builds(Queued),
    st.builds(Accepted, receipts, counts),
    st.builds(Paid, receipts, counts),
    st.builds(Fetched, receipts, paths, texts, counts),
    _SAVED,
    _QUARANTINED,
)
states: st.SearchStrategy[State] = st.one_of(
    *_RESUMED,
    st.builds(Submitting, counts),
    st.builds(Deferred, moments, st.one_of(*_RESUMED), texts),
    st.builds(Released, texts),
)

jobs = st.builds(
    Job,
    id=texts,
    path=paths,
    identity=identities,
    claimed_at=moments,
    state=states,
    picture=st.none() | st.builds(Picture, texts, texts, counts, counts),
    attempts=st.lists(attempts, max_size=4).map(tuple),
    faults=counts,
    crashes=counts,
    checked=counts,
    home=st.builds(Home, paths, paths),
    terms=st.none() | st.builds(OutputTerms, renditions=st.lists(texts).map(tuple)),
)
