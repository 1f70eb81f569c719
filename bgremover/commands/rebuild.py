"""`rebuild`: a new ledger in place of a damaged one, from its rests and from the folders."""

import hashlib
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from bgremover.cli import Exit
from bgremover.commands.common import settings_from
from bgremover.core.errors import BgremoverError, SetupError, local_fault
from bgremover.core.job import Identity, Job, Saved
from bgremover.core.naming import candidates, counted, output_path, printable
from bgremover.edges.ledger import FILE_NAME, Salvaged, existing_ledger, replacement, salvage
from bgremover.edges.supervisor import StateLock
from bgremover.settings import Settings
from bgremover.studio import intake
from bgremover.wiring import limits

_TAILS = ("", "-wal", "-shm")


def rebuild(config: str | None) -> Exit:
    """Put a new ledger in place of a damaged one, of which a copy is kept; return the exit code.

    Args:
        config: The configuration file, if one is named.

    Raises:
        SetupError: The configuration is wrong.
        AlreadyRunning: A daemon uses the ledger.
        LocalFault: The state folder cannot be written.
    """
    settings = settings_from(config)
    state = Path(settings.folders.state)
    with StateLock(state):
        if not (state / FILE_NAME).exists():
            click.echo(f"There is no ledger in {state}: nothing to rebuild.")
            return Exit.DONE
        if _is_well(state):
            click.echo(f"The ledger in {state} is well: nothing to rebuild.")
            return Exit.DONE
        aside = _copy_aside(state)
        _tell(aside, *_fill(settings, aside))
    return Exit.DONE


def _is_well(state: Path) -> bool:
    try:
        with existing_ledger(state) as ledger:
            return ledger is None or not ledger.check()
    except SetupError as fault:
        if "was written by a newer bgremover" in fault.message:
            raise
        return False


def _copy_aside(state: Path) -> Path:
    aside = state / time.strftime("damaged-%Y%m%dT%H%M%SZ", time.gmtime())
    try:
        aside.mkdir(mode=0o700)
        for name in (FILE_NAME + tail for tail in _TAILS):
            if (state / name).exists():
                shutil.copy2(state / name, aside / name)
    except OSError as error:
        raise local_fault(error, f"copying the damaged ledger into {aside}") from error
    return aside


def _fill(settings: Settings, aside: Path) -> tuple[Salvaged, int, list[str]]:
    kept = salvage(aside / FILE_NAME)
    known = {job.picture.sha256 for job in kept.jobs if job.picture}
    pairs = list(found_pairs(settings))
    jobs = [job for pair in pairs if (job := _job(settings, pair)) is not None]
    fresh = [job for job in jobs if job.picture and job.picture.sha256 not in known]
    with replacement(Path(settings.folders.state)) as ledger:
        ledger.restore([*kept.jobs, *fresh], kept.calls)
    return kept, len(fresh), [pair.original for pair in pairs if pair.output is None]


@dataclass(frozen=True, slots=True)
class Pair:
    """An original and its cut-out by their paths in the folders; None where that is not sure."""

    original: str
    output: str | None


def found_pairs(settings: Settings) -> Iterator[Pair]:
    """Yield each finished original with the cut-out that is certainly its own.

    Certain is only what one original alone can have made: `a.jpg` beside `a.png` share the name
    of their cut-out, and so do `a.png` and a later `a-2.png`.
    """
    originals = _originals(settings)
    claims = Counter(output_path(path) for path in originals)
    outbox = settings.folders.outbox
    for path in originals:
        output = output_path(path)
        first, second, *_ = (name for name, _ in zip(candidates(output), range(2), strict=False))
        alone = claims[output] == 1 and not os.path.lexists(outbox / second)
        there = os.path.isfile(outbox / first)
        if there:
            yield Pair(path, output if alone else None)


def _originals(settings: Settings) -> list[str]:
    root = str(settings.folders.inbox if settings.originals == "keep" else settings.folders.archive)
    found = (
        os.path.relpath(os.path.join(folder, name), root)
        for folder, _, names in os.walk(root)
        for name in names
        if not name.startswith(".")
    )
    return sorted(found)


def _job(settings: Settings, pair: Pair) -> Job | None:
    if pair.output is None:
        return None
    root = settings.folders.inbox if settings.originals == "keep" else settings.folders.archive
    try:
        with (root / pair.original).open("rb") as original:
            identity = Identity.of(os.fstat(original.fileno()))
            picture = intake.look(original, limits(settings)).picture
        with (settings.folders.outbox / pair.output).open("rb") as cut_out:
            sha256 = hashlib.file_digest(cut_out, "sha256").hexdigest()
            size = os.fstat(cut_out.fileno()).st_size
    except (BgremoverError, OSError) as error:
        click.echo(f"left out: {printable(pair.original)}: {error}", err=True)
        return None
    state = Saved(pair.output, sha256, size, filed=True)
    return Job(uuid.uuid4().hex, pair.original, identity, identity.mtime_ns / 1e9, state, picture)


def _tell(aside: Path, kept: Salvaged, fresh: int, unsure: list[str]) -> None:
    click.echo(
        f"The damaged ledger lies in {aside}.\n"
        f"Saved from it: {counted(len(kept.jobs), 'image')}, {counted(len(kept.calls), 'call')}; "
        f"beyond reading: {counted(kept.lost, 'row')}.\n"
        f"Found in the folders: {counted(fresh, 'more image', 'more images')} with cut-outs."
    )
    if unsure:
        originals = counted(len(unsure), "original")
        click.echo(
            f"Sharing the name of a cut-out: {originals}; dropped again, each would be paid for "
            "again:"
        )
        for path in unsure:
            click.echo(f"  {printable(path)}")
