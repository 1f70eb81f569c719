"""`render`: renditions of cut-outs that are there already, for nothing."""

import asyncio
import contextlib
import fnmatch
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import click

from bgremover.affinity import Affinity
from bgremover.cli import Exit
from bgremover.commands.common import settings_from
from bgremover.core.errors import BgremoverError, SetupError, Vanished, Withdrawn
from bgremover.core.job import Job, Saved
from bgremover.core.naming import counted, printable
from bgremover.core.recipe import Recipe, target_of
from bgremover.core.terms import FolderTerms
from bgremover.edges.folders import Folders, digest
from bgremover.edges.inbox import Inbox
from bgremover.edges.ledger import existing_ledger
from bgremover.renditions import Renderer, recipes_of
from bgremover.settings import Settings
from bgremover.wiring import Work, open_folders, open_inbox, output_terms, workshop

_NAME_THEM = "name cut-outs by their path in the outbox, as 'shoes/*.png'"


def render(config: str | None, names: tuple[str, ...], *, missing: bool) -> Exit:
    """Make renditions of the cut-outs in the outbox; return the exit code.

    Args:
        config: The configuration file, if one is named.
        names: Globs of cut-outs, as their paths in the outbox; none: all.
        missing: Whether only renditions are made whose name nothing has.

    Raises:
        SetupError: The configuration is wrong, or nothing asks for renditions.
        LocalFault: This machine cannot do it now.
    """
    settings = settings_from(config)
    jobs, missed = _chosen(settings, names)
    for name in missed:
        click.echo(f"nothing matches {printable(name)}: {_NAME_THEM}", err=True)
    if missed and not jobs:
        return Exit.SOME_FAILED
    work = Work(Path(settings.folders.inbox), settings.originals, watch=False)
    inbox = open_inbox(settings, work)
    asked = [(job, _terms(inbox, job.path)) for job in jobs]
    if not settings.output.renditions and not any(one.output.renditions for _, one in asked):
        raise SetupError(
            "output.renditions: is empty, so there is nothing to make. Name presets or recipes, as "
            "[amazon, thumb], for all or in the .bgremover.yaml of a folder."
        )
    folders = open_folders(settings, inbox)
    done = asyncio.run(_render(settings, inbox, folders, asked, missing=missing))
    return Exit.SOME_FAILED if missed else done


def _terms(inbox: Inbox, path: str) -> FolderTerms:
    """Return what holds for an original; of its folders those count that are still there."""
    while True:
        try:
            return inbox.terms(path)
        except Withdrawn:
            path = path.rpartition("/")[0]


def _chosen(settings: Settings, names: tuple[str, ...]) -> tuple[list[Job], list[str]]:
    """Return the jobs whose cut-outs are meant, and the names that match none."""
    with existing_ledger(Path(settings.folders.state)) as ledger:
        saved = [job for job in ledger.saved() if _is_there(settings, job)] if ledger else []
    missed = [name for name in names if not any(_matches(job, name) for job in saved)]
    jobs = [job for job in saved if not names or any(_matches(job, name) for name in names)]
    return jobs, missed


def _is_there(settings: Settings, job: Job) -> bool:
    """Tell whether a job is done and nobody has taken its cut-out."""
    if not isinstance(job.state, Saved) or not job.state.filed:
        return False
    return (settings.folders.outbox / job.state.output).is_file()


def _matches(job: Job, name: str) -> bool:
    return isinstance(job.state, Saved) and fnmatch.fnmatchcase(job.state.output, name)


@dataclass(slots=True)
class _Tally:
    made: int = 0
    there: int = 0
    cut_outs: int = 0
    failed: int = 0


async def _render(
    settings: Settings,
    inbox: Inbox,
    folders: Folders,
    asked: list[tuple[Job, FolderTerms]],
    *,
    missing: bool,
) -> Exit:
    renderer, tally = Renderer(workshop(settings, Affinity(wanted=False)), folders), _Tally()
    for job, held in asked:
        output = job.state.output if isinstance(job.state, Saved) else ""
        notes = [held.held] if held.held is not None else []
        recipes = () if notes else recipes_of(held.output.over(output_terms(settings)))
        if missing:
            recipes = tuple(_missing(settings, recipes, output))
        made = await renderer.make(job, output, _original(inbox, folders, job), recipes)
        tally.cut_outs += 1
        tally.made += made.fresh
        tally.there += len(made.outputs) - made.fresh
        for note in (*notes, *made.notes):
            click.echo(f"{printable(output)}: {printable(note)}", err=True)
        tally.failed += bool(notes) or len(made.outputs) < len(recipes)
    renditions, cut_outs = counted(tally.made, "rendition"), counted(tally.cut_outs, "cut-out")
    there = f", {tally.there:,} there already" if tally.there else ""
    click.echo(f"{renditions} made of {cut_outs}{there}. Nothing was sent.")
    return Exit.SOME_FAILED if tally.failed else Exit.DONE


def _missing(settings: Settings, recipes: tuple[Recipe, ...], output: str) -> Iterator[Recipe]:
    for recipe in recipes:
        if not os.path.lexists(settings.folders.outbox / target_of(recipe, output)):
            yield recipe


def _original(
    inbox: Inbox, folders: Folders, job: Job
) -> Callable[[], AbstractContextManager[BinaryIO]]:
    """Return what opens the very original, wherever it went: it is known by its bytes."""

    @contextmanager
    def opened() -> Iterator[BinaryIO]:
        sha256 = job.picture.sha256 if job.picture else ""
        file = _in_inbox(inbox, job.path, sha256, job.identity.size)
        file = file or folders.archived(job.path, sha256, job.identity.size)
        if file is None:
            name = printable(job.path)
            raise Vanished(f"the original {name} is gone, is another file now, or may not be read")
        with file:
            yield file

    return opened


def _in_inbox(inbox: Inbox, path: str, sha256: str, size: int) -> BinaryIO | None:
    with contextlib.suppress(BgremoverError, OSError), contextlib.ExitStack() as stack:
        file = stack.enter_context(inbox.open(path))
        if os.fstat(file.fileno()).st_size != size:
            return None
        if digest(file) == sha256:
            file.seek(0)
            stack.pop_all()
            return file
    return None
