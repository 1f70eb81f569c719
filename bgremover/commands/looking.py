"""`status` and `health`: how things stand, without a hand in them.

`health` runs every half minute: what only `status` needs is imported when it needs it.
"""

# ruff: noqa: PLC0415 - health has to be quick

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bgremover.cli import Exit
from bgremover.core.errors import LocalFault, NoPermission, SetupError, hint_of
from bgremover.core.naming import counted, printable
from bgremover.edges.supervisor import ask_status
from bgremover.reading import load_settings
from bgremover.settings import Settings

if TYPE_CHECKING:  # `health` needs no database
    from bgremover.edges.ledger import Ledger

ASK_SECONDS = 5.0
"""How long the daemon may take to answer."""
COUNT_SECONDS = 5.0
"""How long the quarantine may take to be counted."""

_COLOURS = {"running": "green", "paused": "yellow", "stopped": "red"}

# --- health --------------------------------------------------------------------------------


def health(config: str | None, *, strict: bool) -> Exit:
    """Say whether the daemon lives and its loop turns; return the exit code.

    Args:
        config: The configuration file, if one is named.
        strict: Whether a pause counts as ill.

    Raises:
        SetupError: The configuration is wrong.
    """
    state = _settings(config).folders.state
    try:
        live = ask_status(Path(state), ASK_SECONDS)
    except (TimeoutError, LocalFault) as error:
        return _ill(str(error))
    if live is None:
        return _ill(f"no daemon runs with the state folder {printable(str(state))}")
    if live["ailment"]:
        return _ill(live["ailment"])
    if live["pause"]:
        words = f"paused: {_reason(live['pause'])}"
        return _ill(words) if strict else _well(words)
    return _well("running")


def _ill(why: str) -> Exit:
    click.echo(f"bgremover: {' '.join(why.split())}", err=True)
    return Exit.SOME_FAILED


def _well(words: str) -> Exit:
    click.echo(words)
    return Exit.DONE


def _settings(config: str | None) -> Settings:
    return load_settings(config, os.environ, Path.cwd())


def _reason(pause: dict[str, str]) -> str:
    return f"{pause['reason'].replace('_', ' ')} ({printable(pause['detail'])})"


def troubles(live: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what keeps a running daemon from its work: what it is, and what to do.

    Args:
        live: What the daemon told.
    """
    if pause := live["pause"]:
        since = _local(datetime.fromisoformat(pause["since"]))
        yield f"paused since {since}: {_reason(pause)}", hint_of(pause["reason"])
    if live["ailment"]:
        yield printable(live["ailment"]), "Its log says more."


# --- status --------------------------------------------------------------------------------


def status(config: str | None, *, as_json: bool) -> Exit:
    """Print state, queue, spend and the latest failures; return the exit code.

    Args:
        config: The configuration file, if one is named.
        as_json: Whether one JSON document is wanted instead of words.

    Raises:
        SetupError: The configuration is wrong, or another user's state is asked for.
        LocalFault: The ledger cannot be read.
    """
    settings = _settings(config)
    try:
        with _as_its_user():
            live = ask_status(Path(settings.folders.state), ASK_SECONDS)
            document = standing(settings, live)
    except TimeoutError as error:
        return _ill(f"{error}. Look at its log; restart it if it stays so")
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        for line in _words(document, live or {}, settings, time.time()):
            click.echo(line)
    return Exit.DONE


@contextlib.contextmanager
def _as_its_user() -> Iterator[None]:
    try:
        yield
    except NoPermission as fault:
        raise SetupError(
            f"{fault.message}. The state belongs to the user that runs bgremover: ask as that user"
        ) from fault


def standing(settings: Settings, live: dict[str, Any] | None) -> dict[str, Any]:
    """Return what `status --json` shows.

    Args:
        settings: The configuration.
        live: What the running daemon told; None when none runs.

    Raises:
        SetupError: The ledger is damaged, or of a newer version.
        LocalFault: The ledger cannot be read.
    """
    from bgremover.edges.ledger import existing_ledger
    from bgremover.timing import Clock

    with existing_ledger(Path(settings.folders.state)) as ledger:
        now = {
            "state": live["state"] if live else "stopped",
            "pause": live["pause"] if live else None,
            "queue": live["queue"] if live else _queue_at_rest(settings, ledger),
        }
        return {**now, **_recorded(ledger, Clock().local_day())}


def _recorded(ledger: "Ledger | None", day: str) -> dict[str, Any]:
    from bgremover.edges.ledger import record_of

    if ledger is None:
        nothing = {
            "today_usd": 0.0,
            "month_usd": 0.0,
            "total_usd": 0.0,
            "billed": 0,
            "unknown": 0,
            "under_way": 0,
        }
        totals = {"saved": 0, "reused": 0, "quarantined": 0}
        return {"totals": totals, "spend": nothing, "latest_failures": []}
    return record_of(ledger, day)


def _queue_at_rest(settings: Settings, ledger: "Ledger | None") -> dict[str, int]:
    deferred = ledger.count_deferred() if ledger else 0
    waiting = held = 0
    try:
        waiting, held = _count_waiting(settings, ledger)
    except LocalFault as fault:
        click.echo(f"bgremover: warning: {fault.message}: nothing is counted there", err=True)
    return {"waiting": waiting, "in_flight": 0, "deferred": deferred, "held": held}


def _count_waiting(settings: Settings, ledger: "Ledger | None") -> tuple[int, int]:
    from bgremover.core.job import CONFIGURED, Deferred, Identity
    from bgremover.wiring import Work, open_inbox

    folders = settings.folders
    parked: set[str] = set()
    kept: dict[str, Identity] = {}
    if ledger is not None:
        unfinished = ledger.unfinished(CONFIGURED)
        parked = {job.path for job in unfinished if isinstance(job.state, Deferred)}
        if settings.originals == "keep":
            kept = {one.path: one.identity for one in ledger.kept(CONFIGURED, own=False)}
    waiting = 0

    def count(path: str, identity: Identity) -> bool:
        nonlocal waiting
        before = kept.get(path)
        done = before is not None and before.same_content(identity)
        waiting += not done and path not in parked
        return True

    work = Work(Path(folders.inbox), settings.originals, watch=False)
    held = open_inbox(settings, work).sweep(count, 0).held
    return waiting, held


def in_quarantine(settings: Settings) -> int | None:
    """Return how many images lie in quarantine; None where the disk does not tell in time.

    A share that hangs must not keep `status` from telling the rest.
    """
    from bgremover.commands.care import names_in

    told: list[int] = []

    def count() -> None:
        with contextlib.suppress(LocalFault):
            told.append(len(names_in(os.path.realpath(settings.folders.quarantine))))

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    thread.join(COUNT_SECONDS)
    return told[0] if told else None


# --- in words ------------------------------------------------------------------------------


def _words(
    document: dict[str, Any], live: dict[str, Any], settings: Settings, now: float
) -> Iterator[str]:
    yield _headline(document["state"], live)
    if live.get("ailment"):
        yield _row("trouble", printable(live["ailment"]))
    if document["pause"]:
        yield from _pause_lines(document["pause"], now)
    if document["state"] == "stopped":
        yield _row("what to do", "`bgremover run` starts it")
    yield ""
    queue = document["queue"]
    yield _row(
        "queue",
        f"{queue['waiting']:,} waiting, {queue['in_flight']} in flight, "
        f"{queue['deferred']:,} deferred",
    )
    if held := queue.get("held", 0):
        files = counted(held, "file")
        yield _row("held", f"{files}: a .bgremover.yaml is wrong; `bgremover plan` says how")
    totals = document["totals"]
    yield _row(
        "images",
        f"{totals['saved']:,} cut out, {totals['reused']:,} served from earlier cut-outs, "
        f"{totals['quarantined']:,} quarantined so far",
    )
    there = in_quarantine(settings)
    if there is not None:
        yield _row("quarantine", f"{counted(there, 'image')} there now")
    yield from _spend_lines(document["spend"], settings)
    yield from _failure_lines(document["latest_failures"])


def _row(name: str, text: str) -> str:
    return f"{name:<12}{text}"


def _headline(state: str, live: dict[str, Any]) -> str:
    pid = f" (pid {live['pid']})" if live else ""
    return f"bgremover is {click.style(state, fg=_COLOURS[state], bold=True)}{pid}"


def _pause_lines(pause: dict[str, str], now: float) -> Iterator[str]:
    since, probe = map(datetime.fromisoformat, (pause["since"], pause["next_probe_at"]))
    yield _row("reason", _reason(pause))
    yield _row("since", f"{_local(since)}, {_span(now - since.timestamp())} ago")
    yield _row("next probe", f"{_local(probe)}, {_until(probe.timestamp() - now)}")
    if hint := hint_of(pause["reason"]):
        yield _row("what to do", hint)


def _until(seconds: float) -> str:
    return f"in {_span(seconds)}" if seconds > 0 else "due now"


def _span(seconds: float) -> str:
    for size, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"


def _local(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def _spend_lines(spend: dict[str, Any], settings: Settings) -> Iterator[str]:
    budget = settings.budget
    yield _row(
        "spend",
        f"${spend['today_usd']:.2f}{_of(budget.per_day_usd)} today, "
        f"${spend['month_usd']:.2f}{_of(budget.per_month_usd)} this month, "
        f"${spend['total_usd']:.2f} in all",
    )
    words = f"calls: {spend['billed']:,} billed, {spend['unknown']:,} may have been billed"
    if under_way := spend.get("under_way", 0):
        words += f", {under_way:,} not known to have ended"
    yield _row("", words)


def _of(budget: float | None) -> str:
    return "" if budget is None else f" of ${budget:.2f}"


def _failure_lines(failures: list[dict[str, str]]) -> Iterator[str]:
    if not failures:
        return
    yield ""
    yield "Latest failures; the error JSON beside each in quarantine says more:"
    width = max(len(failure["code"]) for failure in failures)
    for failure in failures:
        when = _local(datetime.fromisoformat(failure["at"]))
        yield f"  {when}  {failure['code']:<{width}}  {failure['file']}"
