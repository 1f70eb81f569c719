"""`report`: every charge, for whoever pays the bill."""

import csv
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from bgremover.cli import Exit
from bgremover.core.errors import Billed
from bgremover.core.naming import printable
from bgremover.core.report import utc
from bgremover.edges.ledger import Call, existing_ledger
from bgremover.reading import load_settings

_MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")
_WIDE = 300
_COLUMNS = ("at", "day", "file", "outcome", "status", "billed", "usd", "request_id", "job")


def report(config: str | None, *, month: str | None, as_csv: bool) -> Exit:
    """Print every call that was charged, or may have been; return the exit code.

    Args:
        config: The configuration file, if one is named.
        month: A local month, YYYY-MM; None: all.
        as_csv: Whether CSV is wanted instead of a table.

    Raises:
        SetupError: The configuration is wrong, or the ledger is damaged.
        LocalFault: The ledger cannot be read.
    """
    if month is not None and not _MONTH.fullmatch(month):
        raise click.UsageError("--month takes a month as YYYY-MM, for example 2026-01")
    settings = load_settings(config, os.environ, Path.cwd())
    with existing_ledger(Path(settings.folders.state)) as ledger:
        calls = list(charges(ledger.calls(month))) if ledger else []
    if as_csv:
        click.echo(_csv(calls), nl=False)
    else:
        _tell(calls)
    return Exit.DONE


def charges(calls: Iterable[Call]) -> Iterator[Call]:
    """Yield the calls that cost money, or may have: unknown ones and those under way."""
    return (call for call in calls if call.billed is not Billed.NO)


def _cells(call: Call) -> tuple[str, ...]:
    return (
        utc(call.started_at),
        call.day,
        printable(call.path),
        call.outcome or "under way",
        "" if call.status is None else str(call.status),
        call.billed.value if call.billed else "under way",
        f"{call.usd:.6f}".rstrip("0").ljust(4, "0"),
        call.request_id or "",
        call.job_id,
    )


def _csv(calls: Iterable[Call]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(_cells(call) for call in calls)
    return text.getvalue()


def _console() -> Console:
    # Not folded in a pipe, where nobody sees a width.
    width = None if sys.stdout.isatty() else _WIDE
    return Console(markup=False, highlight=False, width=width)


def _tell(calls: list[Call]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in _COLUMNS[:-1]:
        table.add_column(column, overflow="fold", no_wrap=column in ("at", "day", "usd"))
    for call in calls:
        table.add_row(*_cells(call)[:-1])
    if calls:
        _console().print(table)
    billed = [call.usd for call in calls if call.billed is Billed.YES]
    open_ones = [call.usd for call in calls if call.billed is not Billed.YES]
    line = f"{len(billed)} billed, ${sum(billed):.2f}"
    if open_ones:
        line += f"; {len(open_ones)} unknown or under way, at most ${sum(open_ones):.2f} more"
    click.echo(line)
