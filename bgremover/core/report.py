"""The error JSON that lies beside an image in quarantine (schema bgremover.error/1)."""

import base64
import json
import re
import time
from typing import Any

from bgremover.core.errors import Billed, FileFault, HttpAnswer
from bgremover.core.job import Attempt, Job
from bgremover.core.naming import printable

SCHEMA = "bgremover.error/1"

# With or without its scheme, with slashes as they are or as JSON may escape them.
_SIGNED_LINK = re.compile(r"((?:\\?/){2}[^\s\"<>?]+)\?[^\s\"<>]*")


def error_report(
    job: Job, fault: FileFault, *, at: float, version: str, price_usd: float
) -> dict[str, Any]:
    """Return what is told about a quarantined image.

    Args:
        job: The image with all its attempts.
        fault: Why it is quarantined.
        at: When, Unix time.
        version: Of this program.
        price_usd: What one call costs.
    """
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "file": printable(job.path),
        "code": fault.code,
        "message": scrub(fault.message),
        "hint": fault.hint,
        "quarantined_at": utc(at),
        "job_id": job.id,
        "bgremover_version": version,
        "billed": _billed(job, fault).value,
        "charges": {
            "billed": job.billed_calls,
            "unknown": job.unknown_calls,
            "usd": round(job.billed_calls * price_usd, 6),
        },
        "http": _http(fault.http),
        "attempts": [_attempt(attempt) for attempt in job.attempts],
        "source": _source(job),
    }
    if printable(job.path) != job.path:
        raw = job.path.encode("utf-8", "surrogateescape")
        report["file_b64"] = base64.b64encode(raw).decode("ascii")
    return report


def render(report: dict[str, Any]) -> bytes:
    """Return the report as the bytes of its file."""
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # a lone surrogate: JSON has the same escape


def scrub(text: str) -> str:
    """Return `text` without the queries of links: a signed link is a secret."""
    return _SIGNED_LINK.sub(r"\1?...", text)


def utc(moment: float) -> str:
    """Return Unix time as UTC ISO 8601 with seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def _billed(job: Job, fault: FileFault) -> Billed:
    known = {fault.billed, *(attempt.billed for attempt in job.attempts)}
    if Billed.YES in known:
        return Billed.YES
    return Billed.UNKNOWN if Billed.UNKNOWN in known else Billed.NO


def _http(answer: HttpAnswer | None) -> dict[str, Any] | None:
    if answer is None:
        return None
    return {
        "status": answer.status,
        "request_id": answer.request_id,
        "reject_reason": scrub(answer.reject_reason) if answer.reject_reason else None,
        "body": scrub(answer.body),
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "at": utc(attempt.at),
        "outcome": attempt.outcome,
        "status": attempt.status,
        "request_id": attempt.request_id,
        "seconds": attempt.seconds,
    }


def _source(job: Job) -> dict[str, Any]:
    picture = job.picture
    return {
        "bytes": job.identity.size,
        "sha256": picture.sha256 if picture else None,
        "format": picture.format if picture else None,
        "width": picture.width if picture else None,
        "height": picture.height if picture else None,
    }
