"""A job as JSON text and back, as the ledger stores it.

JSON with ASCII escapes carries names that are no UTF-8 (lone surrogates) unharmed.
"""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, cast

from bgremover.core.errors import Billed
from bgremover.core.job import (
    Accepted,
    Attempt,
    Deferred,
    Fetched,
    Home,
    Identity,
    Job,
    Kept,
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

_STATES: dict[str, type[Any]] = {
    "queued": Queued,
    "submitting": Submitting,
    "accepted": Accepted,
    "paid": Paid,
    "fetched": Fetched,
    "deferred": Deferred,
    "saved": Saved,
    "quarantined": Quarantined,
    "released": Released,
}
_TUPLES = {"notes", "doubts", "renditions"}


def encode(job: Job) -> str:
    """Return `job` as one line of ASCII JSON."""
    return json.dumps(_plain(job), separators=(",", ":"))


def decode(text: str) -> Job:
    """Return the job that `encode` wrote.

    Raises:
        ValueError: The text is no job: the ledger is damaged.
    """
    try:
        return _job(json.loads(text))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a job: {error!r}") from error


def decode_kept(text: str) -> Kept:
    """Return of a saved job what a start must know, for a third of the time that all would take.

    Raises:
        ValueError: The text is no job: the ledger is damaged.
    """
    try:
        data = json.loads(text)
        return Kept(data["path"], Identity(**data["identity"]))
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not a job: {error!r}") from error


def _plain(value: object) -> object:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def _job(data: Mapping[str, Any]) -> Job:
    picture = data["picture"]
    return Job(
        **{
            **data,
            "identity": Identity(**data["identity"]),
            "state": _state(data["state"]),
            "picture": Picture(**picture) if picture is not None else None,
            "attempts": tuple(_attempt(item) for item in data["attempts"]),
            "home": Home(**data["home"]),
            "terms": _terms(data.get("terms")),  # older records have none
        }
    )


def _terms(data: Mapping[str, Any] | None) -> OutputTerms | None:
    if data is None:
        return None
    return OutputTerms(**{**data, "renditions": tuple(data["renditions"])})


def _attempt(data: Mapping[str, Any]) -> Attempt:
    return Attempt(**{**data, "billed": Billed(data["billed"])})


def _state(data: Mapping[str, Any]) -> State:
    kind, values = _STATES[data["kind"]], dict(data)
    if "receipt" in values and not (kind in (Saved, Quarantined) and values["receipt"] is None):
        values["receipt"] = Receipt(**values["receipt"])
    if "resume" in values:
        values["resume"] = _state(values["resume"])
    for name in _TUPLES & values.keys():
        values[name] = tuple(values[name])
    return cast("State", kind(**values))
