"""`plan`: what `once` would do and what it would cost. Sends nothing, writes nothing."""

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.console import Console
from rich.progress import track

from bgremover.cli import Exit
from bgremover.commands.common import on_terminal, settings_from
from bgremover.commands.work import with_folders, works_from
from bgremover.core.budget import micro
from bgremover.core.errors import Blocked, FileFault, Withdrawn
from bgremover.core.job import Accepted, Deferred, Fetched, Home, Job, Paid, Receipt, Saved, State
from bgremover.core.naming import counted, printable
from bgremover.edges.folders import Folders
from bgremover.edges.inbox import Inbox, Sighting
from bgremover.edges.ledger import Ledger, existing_ledger
from bgremover.settings import Settings
from bgremover.studio import intake
from bgremover.timing import Clock
from bgremover.wiring import Work, limits, open_folders, open_inbox

LOOKERS = 4
"""Images that are inspected at a time."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one image is: its `sha256`, or why it cannot be sent; neither when it is gone.

    `passes` when it is transparent already and goes to the outbox without a call.
    """

    path: str
    sha256: str | None = None
    fault: FileFault | Blocked | None = None
    passes: bool = False


@dataclass(slots=True)
class Plan:
    """What `once` would do.

    Args:
        fresh: The bytes that would be paid for, by their SHA-256.
        done: Images whose cut-out is there, or is paid for and free to fetch.
        twins: Images with the same bytes as another one that would be paid for.
        unusable: What would fail: where and why.
        passing: Images that are transparent already and cost nothing.
        ignored: How many files are left alone for their name or their folder.
        held: How many files are not taken as long as a `.bgremover.yaml` is wrong.
        odd: What is left alone and deserves a word: where and why.
    """

    fresh: set[str] = field(default_factory=set)
    done: int = 0
    twins: int = 0
    unusable: list[tuple[str, str]] = field(default_factory=list)
    passing: int = 0
    ignored: int = 0
    held: int = 0
    odd: list[tuple[str, str]] = field(default_factory=list)

    def take(self, look: Look, past: "Past", shown: str) -> None:
        """Count an image; `shown` is what it is called."""
        if look.fault is not None:
            self.unusable.append((shown, f"{look.fault.code}: {look.fault.message}"))
        elif look.sha256 in self.fresh:
            self.twins += 1
        elif look.sha256 is not None and past.paid(look.sha256):
            self.done += 1
        elif look.sha256 is not None and look.passes:
            self.passing += 1
        elif look.sha256 is not None:
            self.fresh.add(look.sha256)


@dataclass(frozen=True, slots=True)
class Past:
    """What was paid for before.

    Args:
        ledger: None when nothing ever was.
        folders: Where cut-outs lie.
        outbox: Of the configuration.
        under_way: The bytes of images that are paid for and not yet saved, by their SHA-256.
        home: Of the images that are planned for.
        now: Unix time.
    """

    ledger: Ledger | None
    folders: Folders
    outbox: str
    under_way: frozenset[str]
    home: Home
    now: float

    def paid(self, sha256: str) -> bool:
        """Tell whether an image with these bytes costs nothing any more."""
        if sha256 in self.under_way:
            return True
        if self.ledger is None:
            return False
        return any(map(self._serves, self.ledger.cut_outs(sha256))) or any(
            map(self._lives, self.ledger.receipts(sha256, self.home))
        )

    def _lives(self, receipt: Receipt | None) -> bool:
        return bool(receipt and receipt.link and receipt.expires_at > self.now)

    def _serves(self, job: Job) -> bool:
        match job.state:
            case Saved(output=output, sha256=sha256, size=size, receipt=receipt):
                path = os.path.join(job.home.outbox or self.outbox, output)
                if self.folders.verify_published(path, sha256, size):
                    return True
                return self._lives(receipt)
            case _:
                return False


def plan(config: str | None, sources: Iterable[Path]) -> Exit:
    """Print what `once` would do and what it would cost; return the exit code.

    Args:
        config: The configuration file, if one is named.
        sources: Files and folders; none for the inbox.

    Raises:
        SetupError: The configuration is wrong, or the ledger is damaged.
        LocalFault: A folder cannot be read.
    """
    settings = settings_from(config)
    sources = tuple(sources)
    inbox = Path(settings.folders.inbox)
    if not sources and not inbox.exists():
        click.echo(f"The inbox {inbox} is not there yet: the first run makes it.")
        return Exit.DONE
    works = works_from(sources, inbox) if sources else [_own(settings)]
    state = with_folders(settings, inbox, inbox).folders.state if sources else None
    with existing_ledger(Path(state or settings.folders.state)) as ledger:
        _tell(_planned(settings, works, ledger), settings, ledger)
    return Exit.DONE


def _own(settings: Settings) -> Work:
    return Work(Path(settings.folders.inbox), settings.originals, watch=False)


def _planned(settings: Settings, works: list[Work], ledger: Ledger | None) -> Plan:
    planned = Plan()
    for work in works:
        inbox = open_inbox(settings, work)
        past = _past(settings, inbox, ledger, work.home)
        sightings = _sighted(planned, inbox, work, recursive=settings.watch.recursive)
        passes = settings.input.already_transparent == "pass"
        for look in _looks(inbox, sightings, limits(settings), passes=passes):
            planned.take(look, past, _shown(work, look.path))
    return planned


def _shown(work: Work, path: str) -> str:
    # The images of the inbox are called by their path in it, as everywhere; others by all of it.
    return printable(os.path.join(work.home.inbox, path))


def _past(settings: Settings, inbox: Inbox, ledger: Ledger | None, home: Home) -> Past:
    unfinished = ledger.unfinished(home) if ledger else []
    return Past(
        ledger,
        open_folders(settings, inbox),
        os.path.realpath(settings.folders.outbox),
        frozenset(job.picture.sha256 for job in unfinished if job.picture and _paid(job.state)),
        home,
        Clock().wall(),
    )


def _paid(state: State) -> bool:
    match state:
        case Accepted() | Paid() | Fetched():
            return True
        case Deferred(resume=resume):
            return _paid(resume)
        case _:
            return False


# --- looking -------------------------------------------------------------------------------


def _sighted(planned: Plan, inbox: Inbox, work: Work, *, recursive: bool) -> tuple[Sighting, ...]:
    """Return the files that would be taken; count the others."""
    if work.only is not None:
        sightings = inbox.look(work.only)
        planned.ignored += len(work.only) - len(sightings)
        return sightings
    sweep = inbox.sweep(lambda _path, _identity: False, sys.maxsize)
    planned.odd += [(_shown(work, path), why) for path, why in sweep.odd]
    there = _count_regular(inbox.root, recursive=recursive)
    planned.ignored += max(0, there - sweep.files - sweep.held)
    planned.held += sweep.held
    return sweep.sightings


def _count_regular(root: str, *, recursive: bool) -> int:
    count = 0
    for folder, folders, names in os.walk(root):
        count += sum(_is_regular(os.path.join(folder, name)) for name in names)
        if not recursive:
            folders.clear()
    return count


def _is_regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False  # gone meanwhile


def _looks(
    inbox: Inbox, sightings: tuple[Sighting, ...], most: intake.Limits, *, passes: bool
) -> Iterator[Look]:
    pool = ThreadPoolExecutor(LOOKERS, thread_name_prefix="look")
    try:
        yield from track(
            pool.map(lambda one: _look(inbox, one, most, passes=passes), sightings),
            "looking",
            total=len(sightings),
            console=Console(stderr=True),
            transient=True,
            disable=not on_terminal(),
        )
    finally:
        pool.shutdown(cancel_futures=True)


def _look(inbox: Inbox, one: Sighting, most: intake.Limits, *, passes: bool) -> Look:
    try:
        with inbox.open(one.path, one.identity) as original:
            found = intake.look(original, most)
            passing = passes and found.transparent
            return Look(one.path, sha256=found.picture.sha256, passes=passing)
    except (FileFault, Blocked) as fault:
        return Look(one.path, fault=fault)
    except Withdrawn:
        return Look(one.path)


# --- telling -------------------------------------------------------------------------------


def _tell(planned: Plan, settings: Settings, ledger: Ledger | None) -> None:
    images, price = len(planned.fresh), settings.api.price_usd
    _row("to cut out", f"{_images(images)}, ${images * price:.2f}")
    _row("done already", f"{_images(planned.done)}: cut out or paid for before")
    _row("twins", f"{_images(planned.twins)} with the same bytes as one of these: paid for once")
    if planned.passing:
        _row("transparent", f"{_images(planned.passing)} already: put into the outbox for nothing")
    _row("unusable", _images(len(planned.unusable)))
    for where, why in planned.unusable:
        click.echo(f"  {where}: {why}")
    _row("ignored", f"{counted(planned.ignored, 'file')}, for their name or their folder")
    if planned.held:
        _row("held", f"{counted(planned.held, 'file')}, until a .bgremover.yaml is mended")
    for where, why in planned.odd:
        click.echo(f"  {where}: {why}")
    for line in _budget_lines(settings, ledger, images):
        _row("budget", line)
    click.echo("Nothing was sent.")


def _images(number: int) -> str:
    return counted(number, "image")


def _row(name: str, text: str) -> None:
    click.echo(f"{name:<14}{text}")


def _budget_lines(settings: Settings, ledger: Ledger | None, images: int) -> Iterator[str]:
    day = Clock().local_day()
    budget = settings.budget
    price = micro(settings.api.price_usd)
    periods = (("today", day, budget.per_day_usd), ("this month", day[:7], budget.per_month_usd))
    for name, start, most in periods:
        if most is not None:
            left = max(0, micro(most) - (ledger.spent_since(start) if ledger else 0))
            enough = images if not price else min(images, left // price)
            yield f"${left / 1_000_000:.2f} left {name}: enough for {enough:,} of {images:,}"
