"""`render`: renditions of cut-outs that are there already, for nothing."""

import asyncio
import fnmatch
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import click

from bgremover.cli import Exit
from bgremover.commands.common import settings_from
from bgremover.core.errors import SetupError, Vanished
from bgremover.core.job import Job, Saved
from bgremover.core.naming import printable
from bgremover.core.recipe import Recipe, target_of
from bgremover.edges.ledger import existing_ledger
from bgremover.renditions import Renderer
from bgremover.settings import Settings
from bgremover.wiring import Work, open_folders, open_inbox, workshop


def render(config: str | None, names: tuple[str, ...], *, missing: bool) -> Exit:
    """Make renditions of the cut-outs in the outbox; return the exit code.

    Args:
        config: The configuration file, if one is named.
        names: Globs of cut-outs, as their paths in the outbox; none: all.
        missing: Whether only renditions are made whose name nothing has.

    Raises:
        SetupError: The configuration is wrong, or asks for no renditions.
        LocalFault: This machine cannot do it now.
    """
    settings = settings_from(config)
    if not settings.output.renditions:
        raise SetupError(
            "output.renditions: is empty, so there is nothing to make. Name presets or recipes, as "
            "[amazon, thumb]."
        )
    with existing_ledger(Path(settings.folders.state)) as ledger:
        jobs = [job for job in ledger.saved() if _is_wanted(job, names)] if ledger else []
    return asyncio.run(_render(settings, jobs, missing=missing))


def _is_wanted(job: Job, names: tuple[str, ...]) -> bool:
    if not isinstance(job.state, Saved) or not job.state.filed:
        return False
    output = job.state.output
    return not names or any(fnmatch.fnmatchcase(output, name) for name in names)


@dataclass(slots=True)
class _Tally:
    made: int = 0
    cut_outs: int = 0
    failed: int = 0


async def _render(settings: Settings, jobs: list[Job], *, missing: bool) -> Exit:
    work = Work(Path(settings.folders.inbox), settings.originals, watch=False)
    shop = workshop(settings)
    renderer = Renderer(shop, open_folders(settings, open_inbox(settings, work)))
    tally = _Tally()
    for job in jobs:
        output = job.state.output if isinstance(job.state, Saved) else ""
        if not (settings.folders.outbox / output).is_file():
            continue  # somebody has taken it
        wanted = _missing(settings, renderer.recipes, output) if missing else renderer.recipes
        recipes = tuple(wanted)
        made = await renderer.make(job, output, _original(settings, job), recipes)
        tally.cut_outs += 1
        tally.made += len(made.outputs)
        for note in made.notes:
            click.echo(f"{printable(output)}: {note}", err=True)
        tally.failed += len(made.outputs) < len(recipes)
    click.echo(f"{tally.made:,} renditions of {tally.cut_outs:,} cut-outs. Nothing was sent.")
    return Exit.SOME_FAILED if tally.failed else Exit.DONE


def _missing(settings: Settings, recipes: tuple[Recipe, ...], output: str) -> Iterator[Recipe]:
    for recipe in recipes:
        if not os.path.lexists(settings.folders.outbox / target_of(recipe, output)):
            yield recipe


def _original(settings: Settings, job: Job) -> Callable[[], AbstractContextManager[BinaryIO]]:
    """Return what opens the original where it went, if the very file still lies there."""
    folders = settings.folders
    root = folders.inbox if settings.originals == "keep" else folders.archive

    @contextmanager
    def opened() -> Iterator[BinaryIO]:
        try:
            file = (root / job.path).open("rb")
        except OSError as error:
            raise Vanished(f"the original {printable(job.path)} is gone") from error
        with file:
            if os.fstat(file.fileno()).st_size != job.identity.size:
                raise Vanished(f"{printable(job.path)} in {root} is another file now")
            yield file

    return opened
