"""`rebuild`: a new ledger in place of a damaged one, from its rests and from the folders."""

import hashlib
import os
import shutil
import sys
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
from bgremover.wiring import Work, limits, open_inbox

_TAILS = ("", "-wal", "-shm")


def rebuild(config: str | None) -> Exit:
    """Put a new ledger in place of a damaged one, of which a copy is kept; return the exit code.

    Args:
        config: The configuration file, if one is named.

    Raises:
        SetupError: The configuration is wrong.
        AlreadyRunning: A daemon uses the ledger.
        LocalFault: The state folder cannot be written, or the inbox cannot be looked at: what it
            keeps would be paid for again.
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
        pairs = list(found_pairs(settings))
        aside = _copy_aside(state)
        _tell(settings, aside, *_fill(settings, aside, pairs))
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


def _fill(
    settings: Settings, aside: Path, pairs: list["Pair"]
) -> tuple[Salvaged, int, list["Pair"]]:
    kept = salvage(aside / FILE_NAME)
    known = {job.picture.sha256 for job in kept.jobs if job.picture}
    jobs = [job for pair in pairs if (job := _job(settings, pair)) is not None]
    fresh = [job for job in jobs if job.picture and job.picture.sha256 not in known]
    with replacement(Path(settings.folders.state)) as ledger:
        ledger.restore([*kept.jobs, *fresh], kept.calls)
    known |= {job.picture.sha256 for job in fresh if job.picture}
    return kept, len(fresh), [pair for pair in pairs if not pair.output and _sum(pair) not in known]


@dataclass(frozen=True, slots=True)
class Pair:
    """An original and its cut-out by their paths in the folders; None where that is not sure.

    `root` is the folder that the original lies in.
    """

    root: Path
    original: str
    output: str | None


def found_pairs(settings: Settings) -> Iterator[Pair]:
    """Yield each finished original with the cut-out that is certainly its own.

    Certain is only what one original alone can have made: `a.jpg` beside `a.png` share the name
    of their cut-out, and so do `a.png` and a later `a-2.png`. What stays in the inbox may have
    been written to since, or may only wait there.

    Raises:
        LocalFault: The inbox cannot be looked at.
    """
    kept, waiting = _in_inbox(settings)
    originals = [(settings.folders.archive, path) for path in _archived(settings)]
    originals += [(settings.folders.inbox, path) for path in kept]
    claims = Counter(output_path(path) for _, path in originals)
    outbox = settings.folders.outbox
    for root, path in originals:
        output = output_path(path)
        first, second, *_ = (name for name, _ in zip(candidates(output), range(2), strict=False))
        alone = claims[output] == 1 and not os.path.lexists(outbox / second)
        if os.path.isfile(outbox / first):
            sure = alone and (root != settings.folders.inbox or _older(root / path, outbox / first))
            yield Pair(root, path, output if sure else None)
    for path in waiting:
        output = output_path(path)
        if not claims[output] and os.path.isfile(outbox / output):
            yield Pair(settings.folders.inbox, path, None)


def _archived(settings: Settings) -> list[str]:
    if settings.originals == "keep":
        return []  # there is no archive
    root = str(settings.folders.archive)
    found = (
        os.path.relpath(os.path.join(folder, name), root)
        for folder, _, names in os.walk(root)
        for name in names
        if not name.startswith(".") and os.path.isfile(os.path.join(folder, name))
    )
    return sorted(found)


def _in_inbox(settings: Settings) -> tuple[list[str], list[str]]:
    """Return what the inbox keeps by its terms, and what else lies there."""
    inbox = open_inbox(settings, Work(Path(settings.folders.inbox), settings.originals))
    seen = inbox.sweep(lambda _path, _identity: False, sys.maxsize)
    for path, why in seen.odd:
        click.echo(f"{printable(path)}: {why}", err=True)
    paths = sorted(sighting.path for sighting in seen.sightings)
    kept = inbox.keeping(paths, settings.originals)
    return [path for path in paths if path in kept], [path for path in paths if path not in kept]


def _older(original: Path, cut_out: Path) -> bool:
    try:
        return original.stat().st_mtime_ns <= cut_out.stat().st_mtime_ns
    except OSError:
        return False


def _sum(pair: Pair) -> str:
    try:
        with (pair.root / pair.original).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _job(settings: Settings, pair: Pair) -> Job | None:
    if pair.output is None:
        return None
    try:
        with (pair.root / pair.original).open("rb") as original:
            identity = Identity.of(os.fstat(original.fileno()))
            picture = intake.look(original, limits(settings)).picture
        with (settings.folders.outbox / pair.output).open("rb") as cut_out:
            sha256 = hashlib.file_digest(cut_out, "sha256").hexdigest()
            size = os.fstat(cut_out.fileno()).st_size
    except (BgremoverError, OSError) as error:
        click.echo(f"left out: {printable(pair.original)}: {error}", err=True)
        return None
    left = settings.originals != "keep" and pair.root == settings.folders.inbox
    state = Saved(pair.output, sha256, size, filed=True, left=left)
    return Job(uuid.uuid4().hex, pair.original, identity, identity.mtime_ns / 1e9, state, picture)


def _tell(settings: Settings, aside: Path, kept: Salvaged, fresh: int, unsure: list[Pair]) -> None:
    click.echo(
        f"The damaged ledger lies in {aside}.\n"
        f"Saved from it: {counted(len(kept.jobs), 'image')}, {counted(len(kept.calls), 'call')}; "
        f"beyond reading: {counted(kept.lost, 'row')}.\n"
        f"Found in the folders: {counted(fresh, 'more image', 'more images')} with cut-outs."
    )
    inbox = settings.folders.inbox
    _list(
        [pair.original for pair in unsure if pair.root != inbox],
        "Sharing the name of a cut-out: {}; dropped again, each would be paid for again:",
    )
    _list(
        [pair.original for pair in unsure if pair.root == inbox],
        "Lying in the inbox with a cut-out of their name that may be another's: {}; where it is "
        "their own, take them out before the next run, or each is paid for again:",
    )


def _list(paths: list[str], words: str) -> None:
    if paths:
        click.echo(words.format(counted(len(paths), "original")))
        for path in paths:
            click.echo(f"  {printable(path)}")
