"""`run` and `once`."""

import asyncio
import os
import resource
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import click
import structlog

from bgremover.cli import Exit
from bgremover.commands.common import (
    key_from,
    on_terminal,
    pass_the_door,
    settings_from,
    start_logging,
)
from bgremover.commands.reread import Reread
from bgremover.core.errors import SetupError
from bgremover.core.job import Home, Job, Quarantined, Saved
from bgremover.core.naming import counted, printable
from bgremover.daemon import Daemon, Parts
from bgremover.edges.inbox import ignore_sigio
from bgremover.edges.supervisor import StateLock
from bgremover.key import KeySource
from bgremover.settings import Settings
from bgremover.wiring import Work, build, count_files

log = structlog.get_logger()
ASK_ABOVE = 50


def run(config: str | None) -> int:
    """Watch until SIGTERM or SIGINT; return the exit code."""
    settings = settings_from(config)
    start_logging(settings)
    pass_the_door(settings)
    reread = Reread(config, settings, key_from(settings))
    ignore_sigio()
    leave_no_core()
    with StateLock(Path(settings.folders.state)):
        asyncio.run(_watch(reread))
    return Exit.DONE


async def _watch(reread: Reread) -> None:
    ended, before = False, None
    while not ended:
        settings, key = reread.settings, reread.key
        work = Work(Path(settings.folders.inbox), settings.originals)
        try:
            daemon = Daemon(build(settings, work, key), reread=reread)
            await daemon.run()
        except SetupError as fault:
            if before is None:
                raise
            hint = "the old settings stay in force; mend this and reload again"
            log.error("settings.refused", message=fault.message, hint=hint)  # noqa: TRY400
            (reread.settings, reread.key), before = before, None
            continue
        before = settings, key
        ended = daemon.interrupted or not daemon.anew


def once(config: str | None, *, ask: bool) -> int:
    """Work through the inbox; return the exit code."""
    settings = settings_from(config)
    start_logging(settings, bar=on_terminal())
    pass_the_door(settings)
    work = Work(Path(settings.folders.inbox), settings.originals, watch=False)
    with StateLock(Path(settings.folders.state)):
        return _once(settings, [work], key_from(settings), ask=ask)


def once_from(config: str | None, sources: Iterable[Path], dest: Path, *, ask: bool) -> int:
    """Work through files and folders, leave them untouched; return the exit code."""
    given = settings_from(config)
    works = works_from(sources, dest)
    settings = with_folders(given, works[0].inbox, dest)
    start_logging(settings, bar=on_terminal())
    for work in works:
        pass_the_door(with_folders(given, work.inbox, dest))
    with StateLock(Path(settings.folders.state)):
        return _once(settings, works, key_from(settings), ask=ask)


def works_from(sources: Iterable[Path], dest: Path) -> list[Work]:
    """Return what to work on: each folder by itself, files by the folder they lie in."""
    folders: dict[Path, set[str] | None] = {}
    for source in sources:
        if source.is_dir():
            folders[source.resolve()] = None
        elif (names := folders.setdefault(source.parent.resolve(), set())) is not None:
            names.add(source.name)
    return [
        Work(
            folder,
            "keep",
            quarantine=False,
            watch=False,
            home=Home(str(folder), str(dest.resolve())),
            only=None if names is None else frozenset(names),
        )
        for folder, names in folders.items()
    ]


def with_folders(settings: Settings, inbox: Path, outbox: Path) -> Settings:
    """Return the settings for a run outside the configured folders.

    The ledger stays where the configuration has it, or goes to the user's own state folder, so
    that a second run knows what was paid for.
    """
    state = settings.folders.state
    if "state" not in settings.folders.model_fields_set:
        home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        state = Path(home) / "bgremover"
    folders = settings.folders.model_copy(
        update={
            "inbox": inbox,
            "outbox": outbox.resolve(),
            "quarantine": state / "quarantine",
            "archive": state / "archive",
            "state": state / "ledger",
        }
    )
    return settings.model_copy(update={"folders": folders, "originals": "keep"})


def leave_no_core() -> None:
    """Keep the kernel from writing this process, and with it the key, to a file when it dies."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))


def run_daemon(
    settings: Settings, work: Work, key: KeySource, told: Callable[[Job], None] | None
) -> tuple[Parts, bool]:
    """Run the daemon to its end.

    Returns:
        Its parts, to be asked what became of everything, and whether a signal ended it.
    """
    ignore_sigio()
    leave_no_core()

    async def main() -> tuple[Parts, bool]:
        parts = build(settings, work, key, told)
        daemon = Daemon(parts, until_idle=not work.watch)
        await daemon.run()
        return parts, daemon.interrupted

    return asyncio.run(main())


# --- once ----------------------------------------------------------------------------------


class Bar(Protocol):
    """Shows how far a run is."""

    def advance(self) -> None:
        """One more image has come to rest."""
        ...


@dataclass(slots=True)
class Outcome:
    """What became of the images of a run."""

    total: int = 0
    interrupted: bool = False
    saved: int = 0
    reused: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    held: int = 0
    pause: str | None = None
    usd: float = 0.0

    def take(self, job: Job, price_usd: float) -> None:
        """Count a job that has come to rest."""
        self.usd += job.billed_calls * price_usd
        match job.state:
            case Saved(reused=True):
                self.reused += 1
            case Saved():
                self.saved += 1
            case Quarantined(code=code):
                self.failed.append((job.path, code))
            case _:
                pass

    @property
    def stopped(self) -> bool:
        """Whether the run ended before the work did."""
        return self.interrupted or self.pause is not None

    @property
    def remaining(self) -> int:
        """How many images still lie where they were."""
        done = self.saved + self.reused + len(self.failed)
        return max(0, self.total - done) if self.stopped else len(self.left) + self.held

    @property
    def code(self) -> Exit:
        """The exit code."""
        if self.interrupted:
            return Exit.INTERRUPTED
        if self.pause is not None:
            return Exit.UNAVAILABLE
        return Exit.SOME_FAILED if self.failed or self.left or self.held else Exit.DONE


def _once(settings: Settings, works: list[Work], key: KeySource, *, ask: bool) -> int:
    total = sum(count_files(settings, work) for work in works)
    if ask and total > ASK_ABOVE and on_terminal():
        price = total * settings.api.price_usd
        words = f"{counted(total, 'image')}, at most ${price:.2f}. Go on?"
        click.confirm(words, abort=True, err=True)
    outcome = Outcome(total)
    with progress(total) as bar:

        def told(job: Job) -> None:
            outcome.take(job, settings.api.price_usd)
            bar.advance()

        for work in works:
            parts, outcome.interrupted = run_daemon(settings, work, key, told)
            _take_end(outcome, parts)
            if outcome.stopped:
                break
    tell(outcome)
    return outcome.code


def _take_end(outcome: Outcome, parts: Parts) -> None:
    outcome.left += parts.intake.left
    outcome.held += parts.intake.held
    pause = parts.dispatcher.line.pause
    if pause is not None:
        outcome.pause = f"{pause.reason.replace('_', ' ')}: {pause.detail}"


def tell(outcome: Outcome) -> None:
    """Print what became of the images, on stdout."""
    click.echo(
        f"{outcome.saved} cut out, {outcome.reused} served from earlier cut-outs, "
        f"{len(outcome.failed)} failed, {outcome.remaining} left. Spent ${outcome.usd:.2f}."
    )
    for path, code in outcome.failed:
        click.echo(f"  failed  {printable(path)}: {code}")
    for path in () if outcome.stopped else outcome.left:
        click.echo(f"  left    {printable(path)}: not whole yet")
    if outcome.held:
        held = counted(outcome.held, "file")
        click.echo(f"  held    {held}, until the .bgremover.yaml that the log names is mended")
    if outcome.interrupted:
        click.echo(
            "Interrupted, the rest stays where it is; the next run goes on from here. A call that "
            "was under way\nmay have been billed: `bgremover status` tells."
        )
    if outcome.pause is not None:
        click.echo(f"Stopped, the rest stays where it is: {outcome.pause}")


class _NoBar:
    def advance(self) -> None:
        return


def progress(total: int) -> AbstractContextManager[Bar]:
    """Return a progress bar on a terminal; otherwise nothing: there the log tells it in lines."""
    if not on_terminal():
        return nullcontext(_NoBar())
    from bgremover.commands.bar import RichBar  # noqa: PLC0415 - rich is for terminals only

    return RichBar(total)
