"""What the stand-in knows: the oracle of tests on money, and the results it has made."""

import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bgremover.core.errors import SetupError
from bgremover.sandbox.faults import Script

Outcome = Literal["pending", "completed", "withheld", "failed"]


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a result lies in `Results`, in bytes."""

    offset: int
    length: int


class Results:
    """Finished pictures, in a file without a name: gone with the process, however it ends.

    Raises:
        SetupError: No folder for temporary files can be written to.
    """

    def __init__(self) -> None:
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise SetupError(
                f"the stand-in has nowhere to keep its results: {error.strerror or error}. Name a "
                "folder that may be written to in $TMPDIR."
            ) from error
        self._end = 0

    def put(self, content: bytes) -> Slot:
        """Keep `content`; return where."""
        slot = Slot(self._end, len(content))
        self._end += len(content)
        os.pwrite(self._file.fileno(), content, slot.offset)
        return slot

    def get(self, slot: Slot) -> bytes:
        """Return what `put` was given."""
        return os.pread(self._file.fileno(), slot.length, slot.offset)

    def close(self) -> None:
        """Forget everything."""
        self._file.close()


@dataclass(frozen=True, slots=True)
class Generation:
    """One image that is, or was, worked on. `created` is Unix time."""

    id: str
    file: str
    sha256: str
    request_id: str
    created: float
    slot: Slot
    outcome: Outcome = "pending"


@dataclass(frozen=True, slots=True)
class Payment:
    """One POST that was billed. `at` is Unix time, `sha256` that of the uploaded image."""

    at: float
    file: str
    sha256: str
    request_id: str
    generation_id: str
    outcome: Outcome


@dataclass(slots=True)
class SandboxState:
    """What has happened so far. Written by the server's thread alone, readable from any.

    `submissions` counts POSTs with a valid key that were no dry runs, `in_flight` images that
    are being worked on, `answers` the API's answers as "METHOD STATUS".
    """

    price_usd: float
    payments: list[Payment] = field(default_factory=list)
    generations: dict[str, Generation] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    script: Script = field(default_factory=Script)
    submissions: int = 0
    dry_runs: int = 0
    polls: int = 0
    downloads: int = 0
    in_flight: int = 0
    in_flight_max: int = 0

    def begin(self) -> None:
        """Count one more image in flight."""
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)

    def end(self) -> None:
        """Count one image less in flight."""
        self.in_flight -= 1

    def paid_twice(self) -> list[str]:
        """Return the SHA-256 sums of all images that were billed more than once."""
        counts = Counter(payment.sha256 for payment in tuple(self.payments))
        return sorted(sha256 for sha256, count in counts.items() if count > 1)

    def report(self) -> Mapping[str, Any]:
        """Return it all as JSON-ready data."""
        payments = [asdict(payment) for payment in tuple(self.payments)]
        return {
            "payments": payments,
            "paid_twice": self.paid_twice(),
            "usd": round(len(payments) * self.price_usd, 6),
            "submissions": self.submissions,
            "dry_runs": self.dry_runs,
            "polls": self.polls,
            "downloads": self.downloads,
            "in_flight": self.in_flight,
            "in_flight_max": self.in_flight_max,
            "answers": dict(self.answers),
        }
