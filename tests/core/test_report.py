"""The error JSON beside a quarantined image: what it tells, and what it must never tell."""

import base64
import json
import os
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bgremover.core.errors import BadResult, Billed, FileFault, HttpAnswer, Truncated, UnknownCharge
from bgremover.core.job import Job, Paid, Picture
from bgremover.core.report import SCHEMA, error_report, render, scrub, utc
from tests.fakes import LINK, NOON, RECEIPT, a_job, an_attempt, jobs

FAULT = Truncated("the JPEG ends after 1,000 bytes")
REFUSED = HttpAnswer(422, "req-9", "unsafe", "the safety check refused it")

CONTRACT: dict[str, Any] = {
    "schema": None,
    "file": None,
    "code": None,
    "message": None,
    "hint": None,
    "quarantined_at": None,
    "job_id": None,
    "bgremover_version": None,
    "billed": None,
    "charges": {"billed", "unknown", "usd"},
    "http": {"status", "request_id", "reject_reason", "body"},
    "attempts": {"number", "at", "outcome", "status", "request_id", "seconds"},
    "source": {"bytes", "sha256", "format", "width", "height"},
}
"""The keys that scripts rely on; None for a value that is no object."""


def report(job: Job, fault: FileFault = FAULT, price_usd: float = 0.01) -> dict[str, Any]:
    return error_report(job, fault, at=NOON, version="1.2.3", price_usd=price_usd)


def test_a_report_tells_the_whole_story() -> None:
    job = a_job(
        picture=Picture("5ec4e7", "JPEG", 800, 600),
        attempts=(an_attempt(), an_attempt(number=2, status=200, billed=Billed.YES)),
    )
    fault = BadResult("no alpha", billed=Billed.YES, http=REFUSED)
    assert report(job, fault) == {
        "schema": "bgremover.error/1",
        "file": "shoes/IMG_1.jpg",
        "code": "bad_result",
        "message": "no alpha",
        "hint": BadResult.hint,
        "quarantined_at": "2026-01-01T12:00:00Z",
        "job_id": "0a1b2c3d4e5f",
        "bgremover_version": "1.2.3",
        "billed": "yes",
        "charges": {"billed": 1, "unknown": 0, "usd": 0.01},
        "http": {
            "status": 422,
            "request_id": "req-9",
            "reject_reason": "unsafe",
            "body": "the safety check refused it",
        },
        "attempts": [
            {
                "number": 1,
                "at": "2026-01-01T12:00:00Z",
                "outcome": "server_failed",
                "status": 503,
                "request_id": "req-1",
                "seconds": 1.2,
            },
            {
                "number": 2,
                "at": "2026-01-01T12:00:00Z",
                "outcome": "server_failed",
                "status": 200,
                "request_id": "req-1",
                "seconds": 1.2,
            },
        ],
        "source": {
            "bytes": 3000,
            "sha256": "5ec4e7",
            "format": "JPEG",
            "width": 800,
            "height": 600,
        },
    }


def test_what_was_never_asked_or_found_out_is_null() -> None:
    told = report(a_job())
    assert told["http"] is None
    assert told["attempts"] == []
    nothing = {"sha256": None, "format": None, "width": None, "height": None}
    assert told["source"] == {"bytes": 3000, **nothing}


@given(jobs, st.none() | st.just(REFUSED))
@example(a_job(attempts=(an_attempt(),)), REFUSED)
@example(a_job(path=os.fsdecode(b"caf\xe9.jpg")), None)
def test_the_keys_are_those_of_the_contract_in_its_order(job: Job, http: HttpAnswer | None) -> None:
    told = report(job, Truncated("cut off", http=http))
    named = "file_b64" in told
    assert list(told) == [*CONTRACT, "file_b64"] if named else list(CONTRACT)
    assert told["schema"] == SCHEMA
    for key, keys in CONTRACT.items():
        found = told[key] if isinstance(told[key], list) else [told[key]]
        for one in found:
            assert set(one) == keys if isinstance(one, dict) else keys is None or one is None


# --- names ----------------------------------------------------------------------------------


def test_a_name_that_is_no_utf8_is_told_byte_by_byte_too() -> None:
    told = report(a_job(path=os.fsdecode(b"shoes/caf\xe9.jpg")))
    assert told["file"] == "shoes/caf\\xe9.jpg"
    assert base64.b64decode(told["file_b64"]) == b"shoes/caf\xe9.jpg"


@pytest.mark.parametrize("path", ["shoes/IMG_1.jpg", "\u00fcber/\U0001f600.png"])
def test_a_name_that_is_utf8_needs_no_bytes(path: str) -> None:
    assert "file_b64" not in report(a_job(path=path))


@given(jobs)
@example(a_job(path="\x1b[31m\n\u202e.jpg"))
def test_a_name_is_shown_without_harm_and_can_always_be_found_again(job: Job) -> None:
    told = report(job)
    assert told["file"].isprintable()
    if "file_b64" in told:
        assert os.fsdecode(base64.b64decode(told["file_b64"])) == job.path
    else:
        assert job.path.encode()


# --- money ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "fault", "billed", "charges"),
    [
        ([], Billed.NO, "no", (0, 0, 0.0)),
        ([Billed.NO, Billed.NO], Billed.NO, "no", (0, 0, 0.0)),
        ([Billed.YES], Billed.NO, "yes", (1, 0, 0.01)),
        ([], Billed.YES, "yes", (0, 0, 0.0)),
        ([Billed.UNKNOWN], Billed.NO, "unknown", (0, 1, 0.0)),
        ([], Billed.UNKNOWN, "unknown", (0, 0, 0.0)),
        ([Billed.UNKNOWN, Billed.YES, Billed.YES], Billed.NO, "yes", (2, 1, 0.02)),
        ([Billed.UNKNOWN, Billed.UNKNOWN], Billed.UNKNOWN, "unknown", (0, 2, 0.0)),
    ],
)
def test_what_is_said_about_the_money(
    calls: list[Billed], fault: Billed, billed: str, charges: tuple[int, int, float]
) -> None:
    job = a_job(attempts=tuple(an_attempt(billed=one) for one in calls))
    told = report(job, UnknownCharge("no answer", billed=fault))
    assert told["billed"] == billed
    assert tuple(told["charges"].values()) == charges


@given(jobs, st.sampled_from(Billed))
@example(a_job(), Billed.UNKNOWN)
@example(a_job(), Billed.NO)
def test_no_charge_that_may_be_is_called_none(job: Job, billed: Billed) -> None:
    told = report(job, Truncated("cut off", billed=billed))["billed"]
    known = {billed, *(attempt.billed for attempt in job.attempts)}
    assert (told == "no") is (known == {Billed.NO})
    assert (told == "yes") is (Billed.YES in known)


def test_amounts_are_told_without_the_noise_of_floats() -> None:
    job = a_job(attempts=tuple(an_attempt(billed=Billed.YES) for _ in range(3)))
    assert report(job, price_usd=0.1)["charges"]["usd"] == 0.3


# --- secrets --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        (
            f"fetching {LINK} failed",
            "fetching https://ideogram.ai/api/images/ephemeral/x.png?... failed",
        ),
        ('{"url": "https://h/x?sig=1", "a": 2}', '{"url": "https://h/x?...", "a": 2}'),
        ('{"url": "https:\\/\\/h\\/x?sig=1"}', '{"url": "https:\\/\\/h\\/x?..."}'),
        ("HTTPS://H/x?sig=1", "HTTPS://H/x?..."),
        ("//h/x?sig=1", "//h/x?..."),
        ("https://h/x?o='a'&sig=1", "https://h/x?..."),
        ("https://h/o'a?sig=1", "https://h/o'a?..."),
        ("http://h?sig=1 and https://i/y?sig=2", "http://h?... and https://i/y?..."),
        ("<a href=https://h/x?sig=1>", "<a href=https://h/x?...>"),
        ("https://h/x", "https://h/x"),
        ("What? https://h/x", "What? https://h/x"),
        ("is 1/2?yes", "is 1/2?yes"),
        ("", ""),
    ],
)
def test_the_query_of_a_link_is_a_secret(text: str, scrubbed: str) -> None:
    assert scrub(text) == scrubbed


url_text = st.text("abcXYZ019-._~!$&'()*+,;=:@%/?", max_size=30)


@given(st.text(max_size=20), url_text, url_text, st.sampled_from(["", " ", "\n", '"', ">", " b"]))
@example("", "o'a", "", "")
@example("https://h/", "", "?exp=1&", " and so on")
def test_no_signature_is_ever_told(before: str, path: str, query: str, after: str) -> None:
    told = scrub(f"{before}https://ideogram.ai/{path}?{query}&sig=5ec4e7{after}")
    assert "5ec4e7" not in told


@given(jobs)
@example(a_job(state=Paid(RECEIPT)))
def test_no_report_holds_a_signed_link_wherever_it_was_met(job: Job) -> None:
    http = HttpAnswer(500, None, f"see {LINK}", f'{{"url": "{LINK}"}}')
    told = render(report(replace(job, state=Paid(RECEIPT)), BadResult(f"of {LINK}", http=http)))
    assert b"sig=" not in told
    assert b"exp=" not in told
    assert b"ephemeral/x.png" in told


# --- the file -------------------------------------------------------------------------------


@given(jobs, st.text())
@example(a_job(), "\ud800 and \x00")
@example(a_job(), "h\u00fcbsch")
def test_a_report_can_always_be_written_and_read(job: Job, message: str) -> None:
    told = report(job, Truncated(message, http=HttpAnswer(400, message, message, message)))
    written = render(told)
    assert written.endswith(b"}\n")
    assert json.loads(written.decode("utf-8")) == told


def test_a_report_is_written_for_people() -> None:
    written = render(report(a_job(), Truncated("h\u00fcbsch"))).decode()
    assert '\n  "message": "h\u00fcbsch",\n' in written


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (NOON, "2026-01-01T12:00:00Z"),
        (NOON + 0.999, "2026-01-01T12:00:00Z"),
        (1_782_910_800, "2026-07-01T13:00:00Z"),
    ],
)
def test_moments_are_utc_to_the_second(moment: float, text: str) -> None:
    assert utc(moment) == text
