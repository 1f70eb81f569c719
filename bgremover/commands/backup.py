"""`backup`: a copy of the ledger, also while the daemon runs."""

import contextlib
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import click

from bgremover.cli import Exit
from bgremover.commands.common import settings_from
from bgremover.core.errors import LocalFault, SetupError
from bgremover.core.naming import counted, printable
from bgremover.edges.ledger import FILE_NAME, Ledger, existing_ledger


def backup(config: str | None, destination: Path) -> Exit:
    """Write a copy of the ledger; return the exit code.

    Args:
        config: The configuration file, if one is named.
        destination: A new file, or a folder that gets one named after the moment.

    Raises:
        SetupError: There is no ledger, it is damaged, or the destination is taken.
        LocalFault: The disk does not take it.
    """
    state = Path(settings_from(config).folders.state)
    target = _target(destination)
    with existing_ledger(state) as ledger:
        if ledger is None:
            raise SetupError(
                f"there is no ledger in {printable(str(state))} to copy. Name the configuration "
                "with -c, or run bgremover first."
            )
        _write(ledger, target)
    size = target.stat().st_size
    click.echo(f"{printable(str(target))}: {counted(size, 'byte')}")
    click.echo(
        f"To go back to it: stop bgremover, put it into the state folder as {FILE_NAME}, and "
        f"remove {FILE_NAME}-wal and {FILE_NAME}-shm there."
    )
    return Exit.DONE


def _target(destination: Path) -> Path:
    if destination.is_dir():
        moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        destination = destination / f"bgremover-{moment}.sqlite3"
    if os.path.lexists(destination):
        raise SetupError(
            f"{printable(str(destination))} is there already. Nothing is overwritten: name "
            "another file, or a folder."
        )
    return destination


def _write(ledger: Ledger, target: Path) -> None:
    part = target.with_name(f".{target.name}.part")
    try:
        # Only for its owner: it holds links that fetch what was paid for.
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise _unwritable(target, error.strerror or str(error)) from error
    try:
        ledger.backup(part)
        _prove(part)
        _make_durable(part)
        _target(target)
        os.rename(part, target)
    except OSError as error:
        raise _unwritable(target, error.strerror or str(error)) from error
    except LocalFault as fault:
        raise _unwritable(target, fault.message) from fault
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


def _unwritable(target: Path, reason: str) -> LocalFault:
    # Not with the hint of its kind: those are for the folders that the daemon works in.
    return LocalFault(
        f"{printable(str(target))} cannot be written: {reason}. Name a file in a folder that "
        "exists, has room, and that this user may write to: bgremover backup DEST."
    )


def _prove(copy: Path) -> None:
    with closing(sqlite3.connect(copy)) as db:
        (found,) = db.execute("PRAGMA quick_check").fetchone()
    if found != "ok":
        raise SetupError(f"the copy is damaged: {found}. Try again, on another disk")


def _make_durable(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
