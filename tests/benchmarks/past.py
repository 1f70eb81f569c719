"""A ledger with a past: what a daemon finds that has worked for years."""

import hashlib
import time
import uuid
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from bgremover.core.budget import Budget
from bgremover.core.errors import Billed
from bgremover.core.job import (
    Attempt,
    Fetched,
    Identity,
    Job,
    Paid,
    Picture,
    Queued,
    Receipt,
    Saved,
    Submitting,
)
from bgremover.edges.ledger import CallTerms, Ledger

_TERMS = CallTerms(10_000, Budget(None, None), "2026-01-01")
_LINK = "https://ideogram.ai/api/images/ephemeral/{}.png?exp=1767355200&sig=5ec4e7"


def write_past(state: Path, saved: int, under_way: int = 0, *, killed: bool = False) -> None:
    """Write a ledger.

    Args:
        state: The state folder; it is made.
        saved: How many images were cut out.
        under_way: How many more had not come so far, in turn at each point of their way.
        killed: Whether the last run did not end by itself.
    """
    state.mkdir(parents=True, mode=0o700)
    now = time.time()
    with closing(Ledger(state)) as ledger, ledger.transaction():
        ledger.begin_run()
        for number in range(saved):
            _save(ledger, _job(number, now), now)
        for number in range(saved, saved + under_way):
            _leave(ledger, _job(number, now), number % 4, now)
        if not killed:
            ledger.end_run()


def _job(number: int, now: float) -> Job:
    sha256 = hashlib.sha256(b"%d" % number).hexdigest()
    return Job(
        id=uuid.uuid5(uuid.NAMESPACE_OID, f"{number}").hex,
        path=f"shoes/{number // 1000:03}/IMG_{number:06}.jpg",
        identity=Identity(1, 1000 + number, 3_000_000, 10**18 + number, 10**18 + number),
        claimed_at=now,
        state=Queued(),
        picture=Picture(sha256, "JPEG", 2000, 1500),
    )


def _paid(ledger: Ledger, job: Job, now: float) -> tuple[Job, Receipt]:
    call = ledger.begin_call(job, _TERMS, now).call_id or 0
    request = f"req-{job.id}"
    ledger.end_call(
        call, billed=Billed.YES, outcome="paid", status=200, request_id=request, seconds=0.5
    )
    attempt = Attempt(1, now, "paid", 200, request, 0.5, Billed.YES)
    receipt = Receipt(None, _LINK.format(job.id), now + 86_400, request)
    return replace(job, attempts=(attempt,)), receipt


def _save(ledger: Ledger, job: Job, now: float) -> None:
    job, receipt = _paid(ledger, job, now)
    output = _reserved(ledger, job)
    sha256 = hashlib.sha256(output.encode()).hexdigest()
    saved = Saved(output, sha256, 400_000, receipt, filed=True)
    ledger.put(replace(job, state=saved), now)


def _reserved(ledger: Ledger, job: Job) -> str:
    return ledger.reserve(job, iter([job.path[:-3] + "png"]), lambda _: False)


def _leave(ledger: Ledger, job: Job, stage: int, now: float) -> None:
    """Leave a job behind as a kill does: taken up, sent, paid, fetched."""
    match stage:
        case 0:
            ledger.put(replace(job, picture=None, taken=True), now)
        case 1:
            call = ledger.begin_call(job, _TERMS, now).call_id or 0
            ledger.put(replace(job, state=Submitting(call)), now)
        case 2:
            job, receipt = _paid(ledger, job, now)
            ledger.put(replace(job, state=Paid(receipt)), now)
        case _:
            job, receipt = _paid(ledger, job, now)
            output = _reserved(ledger, job)
            ledger.put(replace(job, state=Fetched(receipt, output, "0" * 64, 400_000)), now)
