"""Where a job of an earlier run goes on: a function of what the ledger says.

What lies in the folders is looked at by the steps themselves: each is safe to do again.
"""

from dataclasses import replace
from typing import assert_never

from bgremover.core.errors import Billed
from bgremover.core.job import (
    Accepted,
    Attempt,
    Deferred,
    Fetched,
    Job,
    Paid,
    Quarantined,
    Queued,
    Released,
    Saved,
    Submitting,
)

KILLED = "killed"


def recovered(job: Job, *, answered: bool, crashed: bool, at: float) -> Job:
    """Return `job` in the state in which it goes on.

    Args:
        job: The job as the ledger has it.
        answered: Whether the outcome of its latest call is known. A job found between intent and
            receipt is an unknown charge: the call may have run and been billed.
        crashed: Whether the earlier run was killed; counts against what was under way then.
        at: When the earlier run is known to have ended, Unix time; now will do.
    """
    waited = isinstance(job.state, Queued | Deferred) and not job.taken
    if crashed and not waited:
        job = replace(job, crashes=job.crashes + 1)
    job = replace(job, taken=False)
    match job.state:
        case Submitting():
            attempts = job.attempts if answered else (*job.attempts, _killed(job, at))
            return replace(job, state=Queued(), attempts=attempts, picture=None)
        case Queued():
            return replace(job, picture=None)
        case Accepted() | Paid() | Fetched() | Deferred() | Saved() | Quarantined() | Released():
            return job
        case _:
            assert_never(job.state)


def _killed(job: Job, at: float) -> Attempt:
    return Attempt(
        number=len(job.attempts) + 1,
        at=at,
        outcome=KILLED,
        status=None,
        request_id=None,
        seconds=0.0,
        billed=Billed.UNKNOWN,
    )
