"""What is told to whom: happenings in, few messages out.

A message about a kind of happening waits a moment for more of the same, then no other of that kind
comes before `quiet` seconds have passed: 500 failures are one message, and 500 more a second one.
What is bad or good for the whole line is told at once, but for the same quiet time.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, assert_never

from bgremover.core.job import Job, Quarantined, Saved
from bgremover.core.naming import counted, printable
from bgremover.core.report import scrub, utc
from bgremover.core.review import review_path

SCHEMA = "bgremover.notice/1"

Kind = Literal["saved", "quarantined", "paused", "resumed", "budget", "lost", "restored", "digest"]

GATHER_SECONDS = 10.0
"""How long the first image of a message waits for others."""

MOST_FILES = 10
"""Names that a message holds at most."""

_OF_IMAGES = frozenset({"saved", "quarantined"})


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing that happened.

    Args:
        kind: What.
        at: When, Unix time.
        file: The image, relative to the inbox; printable.
        output: Its cut-out, relative to the outbox; printable.
        code: Why it was quarantined, or the reason of the pause.
        detail: The same in words; of a cut-out, what is not plausible about it.
        hint: What to do.
        job: Of the image.
        aside: Whether the cut-out was put aside for a person to look at: no command gets it.
        figures: Sums of the day, for the digest.
    """

    kind: Kind
    at: float
    file: str = ""
    output: str = ""
    code: str = ""
    detail: str = ""
    hint: str = ""
    job: str = ""
    aside: bool = False
    figures: Mapping[str, float] = field(default_factory=dict)


def of_job(job: Job, at: float) -> Happening | None:
    """Return what a job that has come to rest means for others; None for nothing."""
    match job.state:
        case Saved(output=output, doubts=doubts):
            return Happening(
                "saved",
                at,
                file=printable(job.path),
                output=printable(output),
                detail="; ".join(doubts),
                job=job.id,
                # The inbox may have a folder of that name too.
                aside=bool(doubts) and output.startswith(review_path("")),
            )
        case Quarantined(code=code):
            return Happening("quarantined", at, file=printable(job.path), code=code, job=job.id)
        case _:
            return None


@dataclass(frozen=True, slots=True)
class Condition:
    """What holds for the whole line at one moment: the pause, and whether the inbox is lost."""

    pause: str | None = None
    detail: str = ""
    hint: str = ""
    lost: bool = False


def changes(before: Condition, now: Condition, at: float) -> list[Happening]:
    """Return what has changed for the line between two looks."""
    return [*_line_changes(before, now, at), *_inbox_changes(before, now, at)]


def _line_changes(before: Condition, now: Condition, at: float) -> Iterable[Happening]:
    # The pause of a lost inbox is told as what it is.
    was, is_ = (None if one.pause == "folder_lost" else one.pause for one in (before, now))
    if is_ is not None and is_ != was:
        kind: Kind = "budget" if is_ == "budget_reached" else "paused"
        yield Happening(kind, at, code=is_, detail=scrub(now.detail), hint=now.hint)
    elif is_ is None and was is not None and not now.lost:
        yield Happening("resumed", at, code=was)


def _inbox_changes(before: Condition, now: Condition, at: float) -> Iterable[Happening]:
    if now.lost and not before.lost:
        yield Happening("lost", at, code="folder_lost", hint="Bring the inbox back.")
    elif before.lost and not now.lost:
        yield Happening("restored", at)


@dataclass(frozen=True, slots=True)
class Message:
    """Happenings of one kind, told together.

    Args:
        kind: Of what.
        count: How many.
        first: The first of them.
        last_at: When the last of them was, Unix time.
        files: Their images, at most `MOST_FILES`.
        codes: How often each code.
    """

    kind: Kind
    count: int
    first: Happening
    last_at: float
    files: tuple[str, ...]
    codes: Mapping[str, int]

    @property
    def title(self) -> str:
        """The message in one line."""
        return f"bgremover: {_sentence(self)}"

    @property
    def text(self) -> str:
        """The message in full: what happened, which files, what to do."""
        more = self.count - len(self.files)
        files = [f"  {name}" for name in self.files] if self.kind in _OF_IMAGES else []
        rest = [f"  and {more:,} more"] if files and more > 0 else []
        return "\n".join(filter(None, [_sentence(self), *files, *rest, self.first.hint]))

    def document(self) -> dict[str, Any]:
        """Return the message as data (schema bgremover.notice/1)."""
        first = self.first
        return {
            "schema": SCHEMA,
            "event": self.kind,
            "count": self.count,
            "first_at": utc(first.at),
            "last_at": utc(self.last_at),
            "title": self.title,
            "text": self.text,
            "files": list(self.files),
            "codes": dict(self.codes),
            "detail": first.detail,
            "hint": first.hint,
            "figures": dict(first.figures),
        }


def _sentence(message: Message) -> str:
    first, count = message.first, message.count
    images = counted(count, "image")
    reason = first.code.replace("_", " ")
    match message.kind:
        case "saved":
            return f"{images} cut out"
        case "quarantined":
            codes = ", ".join(f"{code} {many:,}" for code, many in message.codes.items())
            return f"{images} quarantined: {codes}"
        case "paused" | "budget":
            return f"paused: {reason}" + (f" ({first.detail})" if first.detail else "")
        case "resumed":
            return f"works again after the pause: {reason}"
        case "lost":
            return "the inbox is lost"
        case "restored":
            return "the inbox is back"
        case "digest":
            figures = first.figures
            return (
                f"the last day: {figures.get('saved', 0):,.0f} cut out, "
                f"{figures.get('reused', 0):,.0f} served from earlier cut-outs, "
                f"{figures.get('quarantined', 0):,.0f} quarantined; "
                f"${figures.get('month_usd', 0):.2f} this month"
            )
        case _:
            assert_never(message.kind)


@dataclass(frozen=True, slots=True)
class _Gathered:
    """Happenings of one kind that were not told yet; `since` is of the steady clock."""

    since: float
    message: Message


@dataclass(frozen=True, slots=True)
class Desk:
    """What waits to be told, and when each kind was told last, by the steady clock.

    Args:
        quiet: Seconds between two messages of one kind.
    """

    quiet: float
    waiting: Mapping[Kind, _Gathered] = field(default_factory=dict)
    told: Mapping[Kind, float] = field(default_factory=dict)


def gathered(desk: Desk, happening: Happening, now: float) -> Desk:
    """Return the desk with one more happening; `now` is of the steady clock."""
    before = desk.waiting.get(happening.kind)
    if before is None:
        entry = _Gathered(now, _message(happening))
    else:
        entry = replace(before, message=_joined(before.message, happening))
    return replace(desk, waiting={**desk.waiting, happening.kind: entry})


def _message(happening: Happening) -> Message:
    files = (happening.file,) if happening.file else ()
    codes = {happening.code: 1} if happening.code else {}
    return Message(happening.kind, 1, happening, happening.at, files, codes)


def _joined(message: Message, happening: Happening) -> Message:
    files = message.files
    if happening.file and len(files) < MOST_FILES:
        files = (*files, happening.file)
    codes = Counter(message.codes)
    if happening.code:
        codes[happening.code] += 1
    # Of a whole line the newest counts: why it pauses now.
    first = message.first if happening.kind in _OF_IMAGES else happening
    return replace(
        message,
        count=message.count + 1,
        first=first,
        last_at=happening.at,
        files=files,
        codes=dict(codes),
    )


def due(desk: Desk, now: float) -> tuple[Desk, list[Message]]:
    """Return the messages whose time has come, in the order in which they began, and the rest."""
    ready = [kind for kind in desk.waiting if _moment(desk, kind) <= now]
    ready.sort(key=lambda kind: desk.waiting[kind].since)
    waiting = {kind: one for kind, one in desk.waiting.items() if kind not in ready}
    told = {**desk.told, **dict.fromkeys(ready, now)}
    messages = [desk.waiting[kind].message for kind in ready]
    return replace(desk, waiting=waiting, told=told), messages


def next_moment(desk: Desk) -> float | None:
    """Return when the next message is due, by the steady clock; None when none waits."""
    return min((_moment(desk, kind) for kind in desk.waiting), default=None)


def _moment(desk: Desk, kind: Kind) -> float:
    begun = desk.waiting[kind].since + (GATHER_SECONDS if kind in _OF_IMAGES else 0.0)
    last = desk.told.get(kind)
    return begun if last is None else max(begun, last + desk.quiet)
