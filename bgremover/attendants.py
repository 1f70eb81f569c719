"""What runs beside the work and never holds it up: the endpoint, messages, disks, housekeeping.

An attendant that fails is started again after a while; what it was about is lost, no image is.
"""

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import structlog
from pydantic import SecretStr

from bgremover.core.errors import hint_of
from bgremover.core.job import Job, Quarantined, Saved
from bgremover.core.naming import candidates, printable
from bgremover.core.notice import (
    Condition,
    Desk,
    Happening,
    Message,
    changes,
    due,
    gathered,
    of_job,
)
from bgremover.core.observed import Observed, Snapshot, Spending
from bgremover.core.report import utc
from bgremover.core.retention import DAY, Kept, Policy, expired
from bgremover.daemon import Standing
from bgremover.edges.keeper import archived, free_bytes, quarantined, remove, still_there
from bgremover.edges.ledger import Finished, Scribe, record_of
from bgremover.edges.notify import (
    AppriseChannel,
    Channel,
    Commands,
    Heartbeat,
    Hook,
    Target,
    Webhook,
    secret_from,
    tls_from,
)
from bgremover.settings import FolderSettings, Settings
from bgremover.timing import Clock

if TYPE_CHECKING:  # most run without a web server
    from bgremover.edges.web import Web

log = structlog.get_logger()

AGAIN_SECONDS = 30.0
"""How long an attendant that failed rests."""
DISK_SECONDS = 30.0
LOOK_SECONDS = 1.0
"""How often the line is looked at for messages; a pause that is shorter may go untold."""
END_SECONDS = 2.0


class Attendant(Protocol):
    """One that runs beside the work. `name` stands in the log."""

    name: str

    async def run(self) -> None:
        """Run until cancelled."""
        ...


class Listener(Protocol):
    """The endpoint: listens before the daemon says that it is ready."""

    def open(self) -> int:
        """Listen; raises SetupError."""
        ...

    def close(self) -> None:
        """Listen no more."""
        ...


class Attendants:
    """All of them, for the length of an `async with`.

    Args:
        crew: Who runs.
        listener: What is opened before anybody runs.
    """

    def __init__(self, crew: Iterable[Attendant] = (), listener: Listener | None = None) -> None:
        self._crew = tuple(crew)
        self._listener = listener
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Begin.

        Raises:
            SetupError: Nobody can listen where the settings say.
        """
        if self._listener is not None:
            self._listener.open()
        self._tasks = [asyncio.create_task(attended(one), name=one.name) for one in self._crew]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=END_SECONDS)
        if self._listener is not None:
            self._listener.close()


async def attended(one: Attendant, rest: float = AGAIN_SECONDS) -> None:
    """Run an attendant, and again after a rest of so many seconds when it fails."""
    while True:
        try:
            await one.run()
        except Exception:
            log.exception("attendant.failed", name=one.name, again_in_seconds=rest)
        await asyncio.sleep(rest)


# --- how things stand ----------------------------------------------------------------------


class Reporter:
    """Tells how things stand, from the live parts and the ledger.

    Args:
        standing: The live parts.
        scribe: The ledger.
        clock: Both clocks.
    """

    def __init__(self, standing: Standing, scribe: Scribe, clock: Clock) -> None:
        self._standing = standing
        self._scribe = scribe
        self._clock = clock

    async def status(self) -> dict[str, Any]:
        """Return what `status --json` shows.

        Raises:
            LocalFault: The ledger cannot be read.
        """
        day = self._clock.local_day()
        live = self._standing.live()
        kept = ("state", "pause", "queue")
        record = await self._scribe.do(lambda ledger: record_of(ledger, day), durable=False)
        return {**{key: live[key] for key in kept}, **record}

    def snapshot(self) -> Snapshot:
        """Return how things stand, without the money: that is for the ledger to tell."""
        standing, intake = self._standing, self._standing.intake
        dispatcher = standing.dispatcher
        pause = dispatcher.line.pause
        return Snapshot(
            waiting=dispatcher.waiting + intake.waiting,
            in_flight=dispatcher.in_flight,
            deferred=dispatcher.deferred,
            limit=int(dispatcher.line.limit),
            pause=pause.reason if pause else None,
            ailments=tuple(standing.ailments()),
            sweep_age=intake.sweep_age,
            sweeps=intake.sweeps,
            missed=intake.missed,
            oldest=intake.oldest_waiting_seconds,
            spending=None,
        )

    async def spending(self) -> Spending | None:
        """Return what the ledger says of the money; None when it does not tell."""
        day = self._clock.local_day()
        try:
            found = await self._scribe.do(lambda ledger: ledger.spend(day), durable=False)
        except Exception:  # noqa: BLE001 - a disk that fails is what metrics have to tell of
            return None
        return Spending(
            found.today_usd, found.month_usd, found.total_usd, found.billed, found.unknown
        )


class Disks:
    """Measures every so often how much room there is.

    Args:
        observed: Where it is noted.
        free: Gives the free bytes of a folder's disk, or None; may hang, so it runs in a thread.
        folders: Their paths, by what they are called.
    """

    name = "disks"

    def __init__(
        self, observed: Observed, free: Callable[[str], int | None], folders: dict[str, str]
    ) -> None:
        self._observed = observed
        self._free = free
        self._folders = folders

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            for name, folder in self._folders.items():
                self._observed.free[name] = await asyncio.to_thread(self._free, folder)
            await asyncio.sleep(DISK_SECONDS)


# --- messages ------------------------------------------------------------------------------


class Crier:
    """Notices what happens, and hands it to commands at once and to everybody else in messages.

    Args:
        condition: Says what holds for the whole line now.
        figures: Gives the sums for the digest.
        clock: Both clocks.
        commands: Takes each happening, but for cut-outs that were put aside.
        targets: Take each message.
        events: What the targets are told of.
        quiet: Seconds between two messages about the same.
        digest_at: Local time (HH:MM) of the digest; None for none.
    """

    name = "notify"

    def __init__(  # noqa: PLR0913 - all that a message depends on
        self,
        condition: Callable[[], Condition],
        figures: Callable[[], Awaitable[dict[str, float]]],
        clock: Clock,
        *,
        commands: Callable[[Happening], None],
        targets: Iterable[Callable[[Message], None]],
        events: Iterable[str],
        quiet: float,
        digest_at: str | None,
    ) -> None:
        self._condition = condition
        self._figures = figures
        self._clock = clock
        self._commands = commands
        self._targets = tuple(targets)
        self._events = frozenset(events)
        self._desk = Desk(quiet)
        self._before = Condition()
        self._digest_at = digest_at
        self._told_day = ""

    def told(self, job: Job) -> None:
        """Take a job that has come to rest; raises nothing, whatever comes of it."""
        try:
            happening = of_job(job, self._clock.wall())
            if happening is not None:
                self._happened(happening)
        except Exception:
            log.exception("attendant.failed", name=self.name, job=job.id)

    def _happened(self, happening: Happening) -> None:
        if not happening.aside:
            self._commands(happening)
        if self._targets and happening.kind in self._events:
            self._desk = gathered(self._desk, happening, self._clock.steady())

    async def run(self) -> None:
        """Look and tell until cancelled."""
        if self._digest_is_due():  # the one before this start was another run's
            self._told_day = self._today()
        while True:
            await self.turn()
            await asyncio.sleep(LOOK_SECONDS)

    async def turn(self) -> None:
        """Do once what is due now."""
        before, self._before = self._before, self._condition()
        for happening in changes(before, self._before, self._clock.wall()):
            self._happened(happening)
        await self._digest()
        self._desk, messages = due(self._desk, self._clock.steady())
        for message in messages:
            for target in self._targets:
                target(message)

    async def _digest(self) -> None:
        if not self._digest_is_due():
            return
        self._told_day = self._today()
        figures = await self._figures()
        self._happened(Happening("digest", self._clock.wall(), figures=figures))

    def _digest_is_due(self) -> bool:
        if self._digest_at is None or self._told_day == self._today():
            return False
        return time.strftime("%H:%M", time.localtime(self._clock.wall())) >= self._digest_at

    def _today(self) -> str:
        return self._clock.local_day()


def condition_of(standing: Standing) -> Condition:
    """Return what holds for the whole line now."""
    pause = standing.dispatcher.line.pause
    lost = standing.lookout.lost
    if pause is None:
        return Condition(lost=lost)
    return Condition(pause.reason, pause.detail, hint_of(pause.reason), lost)


class Day:
    """Counts of a day: what was counted since it was asked last.

    Args:
        observed: The counts of the run.
        reporter: Knows the money.
    """

    def __init__(self, observed: Observed, reporter: Reporter) -> None:
        self._observed = observed
        self._reporter = reporter
        self._before: dict[str, int] = {}

    async def figures(self) -> dict[str, float]:
        """Return the sums, and count from here on."""
        now = dict(self._observed.images)
        told: dict[str, float] = {
            name: now.get(name, 0) - self._before.get(name, 0)
            for name in ("saved", "reused", "quarantined")
        }
        self._before = now
        spending = await self._reporter.spending()
        if spending is not None:
            told["today_usd"] = spending.today_usd
            told["month_usd"] = spending.month_usd
        return told


# --- housekeeping --------------------------------------------------------------------------

KEEP_SECONDS = 3600.0
"""How often is looked for what was kept long enough."""
KEEP_FIRST_SECONDS = 60.0
"""A start has better things to do at first."""
PAGE = 500


@dataclass(frozen=True, slots=True)
class Housekeeping:
    """What is kept for how long, and where it lies.

    Args:
        archive: How much of the archive.
        quarantine: How much of the quarantine.
        ledger_days: For how long the ledger knows images whose files are gone.
        roots: The folders.
    """

    archive: Policy
    quarantine: Policy
    ledger_days: float | None
    roots: FolderSettings

    @property
    def keeps_all(self) -> bool:
        """Whether there is nothing to do, ever."""
        return self.archive.keeps_all and self.quarantine.keeps_all and self.ledger_days is None


@dataclass(slots=True)
class _Kept:
    """What was found in the folders."""

    archive: list[Kept] = field(default_factory=list)
    quarantine: list[Kept] = field(default_factory=list)

    @staticmethod
    def note(found: list[Kept], one: Kept | None) -> None:
        if one is not None:
            found.append(one)


class Keeper:
    """Removes every hour what was kept long enough.

    Args:
        plan: What is kept.
        scribe: The ledger: only what it names is removed.
        clock: Both clocks.
    """

    name = "keeper"

    def __init__(self, plan: Housekeeping, scribe: Scribe, clock: Clock) -> None:
        self._plan = plan
        self._scribe = scribe
        self._clock = clock

    async def run(self) -> None:
        """Keep house until cancelled."""
        await asyncio.sleep(KEEP_FIRST_SECONDS)
        while True:
            await self.turn()
            await asyncio.sleep(KEEP_SECONDS)

    async def turn(self) -> None:
        """Do it once, a page of the ledger at a time: it may know a million images."""
        kept, useless, last = _Kept(), list[str](), 0
        while page := await self._page(last):
            useless += await asyncio.to_thread(self._look_at, page, kept)
            last = page[-1].sequence
        await asyncio.to_thread(self._remove, kept)
        if useless:
            await self._prune(useless)

    async def _page(self, last: int) -> list[Finished]:
        return await self._scribe.do(
            lambda ledger: ledger.finished_after(last, PAGE), durable=False
        )

    def _look_at(self, page: list[Finished], kept: "_Kept") -> list[str]:
        """Note what lies in the folders; return the jobs that the ledger need not know."""
        plan, roots = self._plan, self._plan.roots
        for one in page:
            if not plan.archive.keeps_all:
                kept.note(kept.archive, archived(str(roots.archive), one.job, one.at, one.same))
            if not plan.quarantine.keeps_all:
                kept.note(kept.quarantine, quarantined(str(roots.quarantine), one.job, one.at))
        if plan.ledger_days is None:
            return []
        before = self._clock.wall() - plan.ledger_days * DAY
        return [one.job.id for one in page if one.at < before and not self._is_of_use(one.job)]

    def _remove(self, kept: "_Kept") -> None:
        plan, now = self._plan, self._clock.wall()
        for root, found, policy in (
            (plan.roots.archive, kept.archive, plan.archive),
            (plan.roots.quarantine, kept.quarantine, plan.quarantine),
        ):
            for one in expired(found, policy, now):
                self._remove_one(str(root), one)

    @staticmethod
    def _remove_one(root: str, one: Kept) -> None:
        told = log.bind(job=one.job, file=printable(one.name), folder=printable(root))
        try:
            if remove(root, one):
                told.info("retention.removed", bytes=one.size, kept_since=utc(one.at))
        except OSError as error:
            told.warning("retention.failed", why=error.strerror or str(error))

    async def _prune(self, useless: list[str]) -> None:
        forgotten = 0
        for start in range(0, len(useless), PAGE):
            page = useless[start : start + PAGE]
            forgotten += await self._forget(page)
        log.info("ledger.pruned", jobs=forgotten)
        await self._scribe.vacuum()

    async def _forget(self, page: list[str]) -> int:
        return await self._scribe.do(lambda ledger: ledger.prune(page))

    def _is_of_use(self, job: Job) -> bool:
        """Tell whether the record may still spare a call, or knows a file that lies somewhere."""
        roots, state = self._plan.roots, job.state
        places = [os.path.join(roots.inbox, job.path)]
        match state:
            case Saved(output=output, receipt=receipt):
                if receipt is not None and receipt.expires_at > self._clock.wall():
                    return True
                places.append(os.path.join(roots.outbox, output))
                places += [
                    os.path.join(roots.archive, name)
                    for name in itertools.islice(candidates(job.path), 2)
                ]
            case Quarantined(name=name) if name:
                places.append(os.path.join(roots.quarantine, name))
            case _:
                pass
        return still_there(places)


# --- all of them ---------------------------------------------------------------------------


def hire(
    settings: Settings, standing: Standing, scribe: Scribe, clock: Clock
) -> tuple[Attendants, Callable[[Job], None]]:
    """Return everybody that the settings ask for, and what has to be told of each job at rest.

    Args:
        settings: The configuration.
        standing: The live parts.
        scribe: The ledger.
        clock: Both clocks.

    Raises:
        SetupError: A secret cannot be read, or Apprise is asked for and not installed.
    """
    observed = standing.dispatcher.observed
    reporter = Reporter(standing, scribe, clock)
    folders = settings.folders
    places = {"outbox": str(folders.outbox), "state": str(folders.state)}
    crew: list[Attendant] = [Disks(observed, free_bytes, places)]
    if settings.notify.heartbeat_url is not None:
        crew.append(_heartbeat(settings, standing, settings.notify.heartbeat_url))
    targets, commands = _targets(settings, clock), _commands(settings)
    crier = Crier(
        lambda: condition_of(standing),
        Day(observed, reporter).figures,
        clock,
        commands=commands.put,
        targets=[target.put for target in targets],
        events=settings.notify.events,
        quiet=settings.notify.quiet_seconds,
        digest_at=settings.notify.digest_at,
    )
    crew += [crier, commands, *targets]
    plan = _housekeeping(settings)
    if not plan.keeps_all:
        crew.append(Keeper(plan, scribe, clock))
    listener = _web(settings, observed, reporter)
    return Attendants([*crew, *([listener] if listener else [])], listener), crier.told


def _web(settings: Settings, observed: Observed, reporter: Reporter) -> "Web | None":
    if settings.http.listen is None:
        return None
    from bgremover.edges.web import Source, Web  # noqa: PLC0415 - most run without a web server

    return Web(
        settings.http.listen,
        Source(observed, reporter.snapshot, reporter.spending, reporter.status),
    )


def _targets(settings: Settings, clock: Clock) -> list[Target]:
    notify, channels = settings.notify, list[Channel]()
    if notify.webhook_url is not None:
        secret = secret_from(notify.webhook_secret_file)
        url = notify.webhook_url.get_secret_value()
        channels.append(Webhook(url, secret, clock.wall, tls_from(settings.api.ca_bundle)))
    if notify.apprise:
        channels.append(AppriseChannel([url.get_secret_value() for url in notify.apprise]))
    return [Target(channel) for channel in channels]


def _commands(settings: Settings) -> Commands:
    notify = settings.notify
    wanted = {
        "saved": notify.on_saved,
        "quarantined": notify.on_quarantined,
        "paused": notify.on_paused,
        "budget": notify.on_paused,
        "resumed": notify.on_resumed,
        "lost": notify.on_lost,
        "restored": notify.on_restored,
    }
    timeout = notify.command_timeout_seconds
    hooks = {kind: Hook(command, timeout) for kind, command in wanted.items() if command}
    return Commands(hooks, settings.folders.outbox)


def _heartbeat(settings: Settings, standing: Standing, url: SecretStr) -> Heartbeat:
    return Heartbeat(
        url.get_secret_value(),
        settings.notify.heartbeat_seconds,
        lambda: not standing.ailments(),
        tls_from(settings.api.ca_bundle),
    )


def _housekeeping(settings: Settings) -> Housekeeping:
    keep = settings.retention
    return Housekeeping(
        Policy(keep.archive_days, keep.archive_files, _bytes(keep.archive_mb)),
        Policy(keep.quarantine_days, keep.quarantine_files, _bytes(keep.quarantine_mb)),
        keep.ledger_days,
        settings.folders,
    )


def _bytes(megabytes: float | None) -> int | None:
    return None if megabytes is None else round(megabytes * 1_000_000)
