"""The one record of an image's way, its states and its only legal moves."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from bgremover.core.errors import Billed
from bgremover.core.terms import OutputTerms

if TYPE_CHECKING:  # core touches no disk: this names a type
    import os


@dataclass(frozen=True, slots=True)
class Identity:
    """What `stat` says a file is. Equal identities mean: not touched in between.

    Sizes in bytes, times in nanoseconds since the epoch, as the file system gives them.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, found: "os.stat_result") -> "Identity":
        """Return the identity in what `stat` said."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def same_content(self, other: "Identity") -> bool:
        """Tell whether `other` is the same file with the same bytes.

        The change time is left out: a chmod or a new hard link alters it and no byte.
        """
        return (self.inode, self.size, self.mtime_ns) == (other.inode, other.size, other.mtime_ns)


@dataclass(frozen=True, slots=True)
class Picture:
    """What a look at the original found.

    Args:
        sha256: Of the file, hexadecimal.
        format: Pillow's name, as JPEG.
        width: In pixels, upright.
        height: The same.
        converted: Whether the upload is made from it; else the file is sent byte for byte.
        transparent: Whether it has a background no more.
        note: What a person should know; empty if nothing.
    """

    sha256: str
    format: str
    width: int
    height: int
    converted: bool = False
    transparent: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the API gave for the money. `expires_at` is Unix time in seconds.

    `link` is a secret: whoever has it can fetch the result. It is None while an asynchronous
    generation runs.
    """

    generation_id: str | None
    link: str | None
    expires_at: float
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call that was made for an image. `at` is Unix time, `seconds` its duration."""

    number: int
    at: float
    outcome: str
    status: int | None
    request_id: str | None
    seconds: float
    billed: Billed


@dataclass(frozen=True, slots=True)
class Queued:
    """Claimed; nothing was asked of the API yet, or all that was asked certainly did not run."""

    kind: Literal["queued"] = "queued"


@dataclass(frozen=True, slots=True)
class Submitting:
    """The intent is written: a POST may be on its way. Found at start-up: an unknown charge."""

    call_id: int
    kind: Literal["submitting"] = "submitting"


@dataclass(frozen=True, slots=True)
class Accepted:
    """An asynchronous generation runs at the API; it is polled, never submitted again."""

    receipt: Receipt
    polls: int = 0
    kind: Literal["accepted"] = "accepted"


@dataclass(frozen=True, slots=True)
class Paid:
    """The receipt is on disk: from here on everything is free until the link expires."""

    receipt: Receipt
    broken: int = 0
    kind: Literal["paid"] = "paid"


@dataclass(frozen=True, slots=True)
class Fetched:
    """The cut-out lies beside its reserved name `output`, about to be published.

    `notes` say what was not done as asked; `doubts` why a person should look, as "code: words";
    `review` is the JSON that tells them, if the cut-out is put aside for that.
    """

    receipt: Receipt
    output: str
    sha256: str
    size: int
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    review: str = ""
    kind: Literal["fetched"] = "fetched"


@dataclass(frozen=True, slots=True)
class Deferred:
    """Parked until the Unix time `until`, then `resume` goes on where it was."""

    until: float
    resume: "Queued | Accepted | Paid | Fetched | Saved | Quarantined"
    reason: str
    kind: Literal["deferred"] = "deferred"


@dataclass(frozen=True, slots=True)
class Saved:
    """The cut-out is durable. `filed` once the original has been archived, kept or deleted.

    `left` when the original had to stay in the inbox, `renditions` where else it was put.

    The receipt stays: while its link lives, a cut-out that was moved away is free to fetch again.
    """

    output: str
    sha256: str
    size: int
    receipt: Receipt | None = None
    reused: bool = False
    filed: bool = False
    left: bool = False
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    review: str = ""
    renditions: tuple[str, ...] = ()
    kind: Literal["saved"] = "saved"


@dataclass(frozen=True, slots=True)
class Quarantined:
    """It cannot be cut out. `filed` once original and error JSON lie in quarantine as `name`.

    `left` when the original had to stay in the inbox. `receipt` when the reason is not what was
    paid for: dropped again, the image is served with it.
    """

    code: str
    report: str
    name: str = ""
    filed: bool = False
    left: bool = False
    receipt: Receipt | None = None
    kind: Literal["quarantined"] = "quarantined"


@dataclass(frozen=True, slots=True)
class Released:
    """Let go: the original was withdrawn, or belongs to a sweep again."""

    reason: str
    kind: Literal["released"] = "released"


State = Queued | Submitting | Accepted | Paid | Fetched | Deferred | Saved | Quarantined | Released

MOVES: dict[type[State], tuple[type[State], ...]] = {
    Queued: (Queued, Submitting, Paid, Fetched, Deferred, Saved, Quarantined, Released),
    Submitting: (Accepted, Paid, Queued, Deferred, Quarantined, Released),
    Accepted: (Accepted, Paid, Deferred, Quarantined),
    Paid: (Paid, Fetched, Deferred, Quarantined),
    Fetched: (Saved, Paid, Deferred, Quarantined),
    Deferred: (Queued, Accepted, Paid, Fetched, Deferred, Saved, Quarantined, Released),
    Saved: (Saved, Deferred),
    Quarantined: (Quarantined, Deferred),
    Released: (),
}


@dataclass(frozen=True, slots=True)
class Home:
    """Which inbox and outbox an image belongs to: real paths, empty for the configured ones."""

    inbox: str = ""
    outbox: str = ""


CONFIGURED = Home()


@dataclass(frozen=True, slots=True)
class Job:
    """One image's way from claim to rest.

    `path` is relative to the inbox, with "/" and surrogate escapes for bytes that are no UTF-8.
    `faults` counts what speaks against the image itself, `crashes` the kills in a row that it was
    in flight at without having come further.
    `taken`, in the ledger only, says that a step has begun which may kill the program.
    `checked` is the ledger's sequence number at the moment it was last asked for an earlier
    cut-out of the same bytes.
    `terms` are what its cut-out is made by: what its folder asked for when it was last looked at
    before the money. From there on they stay, whatever is written into the folder meanwhile. Of
    one that is served with an earlier cut-out they are what that was made by.
    """

    id: str
    path: str
    identity: Identity
    claimed_at: float
    state: State
    picture: Picture | None = None
    attempts: tuple[Attempt, ...] = ()
    faults: int = 0
    crashes: int = 0
    checked: int = 0
    taken: bool = False
    home: Home = CONFIGURED
    terms: OutputTerms | None = None

    def to(self, state: State) -> "Job":
        """Return this job in `state`.

        Raises:
            ValueError: The move is not one of `MOVES`; a bug, never a user's mistake.
        """
        if type(state) not in MOVES[type(self.state)]:
            raise ValueError(f"job {self.id}: {self.state.kind} cannot become {state.kind}")
        advanced = isinstance(state, Accepted | Paid | Fetched) and state.kind != self.state.kind
        return replace(self, state=state, crashes=0 if advanced else self.crashes)

    @property
    def billed_calls(self) -> int:
        """How many calls of this image were certainly charged."""
        return sum(attempt.billed is Billed.YES for attempt in self.attempts)

    @property
    def unknown_calls(self) -> int:
        """How many calls of this image may have been charged."""
        return sum(attempt.billed is Billed.UNKNOWN for attempt in self.attempts)


def receipt_of(state: State) -> Receipt | None:
    """Return the receipt of a result that is still to be had, if `state` holds one."""
    match state:
        case Paid(receipt=receipt) | Fetched(receipt=receipt):
            return receipt
        case Quarantined(receipt=kept):
            return kept
        case Deferred(resume=resume):
            return receipt_of(resume)
        case _:
            return None


def at_rest(state: State) -> bool:
    """Tell whether no worker has anything to do for a job in `state` now."""
    match state:
        case Saved(filed=filed) | Quarantined(filed=filed):
            return filed
        case Deferred() | Released():
            return True
        case _:
            return False


@dataclass(frozen=True, slots=True)
class Kept:
    """An original that stays in the inbox though its cut-out was saved.

    Args:
        path: Relative to the inbox.
        identity: As it was cut out.
    """

    path: str
    identity: Identity


def finished(state: State) -> bool:
    """Tell whether the job's way has ended."""
    return at_rest(state) and not isinstance(state, Deferred)
