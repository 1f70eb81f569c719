"""`check`, `retry`, `init` and `schema`: what is done by hand, beside the work itself."""

import asyncio
import base64
import contextlib
import fnmatch
import itertools
import json
import os
import sqlite3
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bgremover.cli import Exit
from bgremover.commands.common import settings_from
from bgremover.commands.looking import ASK_SECONDS, troubles
from bgremover.commands.outlets import outlets
from bgremover.core.answer import Quote
from bgremover.core.budget import micro
from bgremover.core.errors import (
    AccountFault,
    BgremoverError,
    LocalFault,
    SetupError,
    Withdrawn,
    local_fault,
)
from bgremover.core.ignoring import Ignore
from bgremover.core.naming import MAX_NAME_BYTES, candidates, counted, printable
from bgremover.door import door_check, prepare_folders
from bgremover.edges.folders import REPORT, Folders
from bgremover.edges.inbox import Inbox
from bgremover.edges.ledger import FILE_NAME, damaged, existing_ledger
from bgremover.edges.supervisor import ask_status
from bgremover.findings import Finding
from bgremover.key import KeySource, find_key_source
from bgremover.reading import parse_settings
from bgremover.settings import Settings, example_text, json_schema
from bgremover.timing import Clock
from bgremover.wiring import Work, open_api, open_folders, open_inbox

# --- retry ---------------------------------------------------------------------------------

_MOST_NUMBERS = 1000
"""How far `-2`, `-3`, ... is undone when an image goes back under its old name."""

_LONGEST_REPORT = 1_000_000


@dataclass(frozen=True, slots=True)
class Held:
    """An image in quarantine.

    Args:
        name: Its path there.
        path: The path in the inbox that it had.
        code: Why it is there; None without a readable report.
    """

    name: str
    path: str
    code: str | None


def retry(config: str | None, names: Iterable[str], *, everything: bool, code: str | None) -> Exit:
    """Move images from quarantine back into the inbox; return the exit code.

    Args:
        config: The configuration file, if one is named.
        names: Paths or globs inside the quarantine folder.
        everything: Whether all images there are meant.
        code: Narrows the choice to what was quarantined under this code.

    Raises:
        SetupError: The configuration is wrong.
        LocalFault: A folder does not let it; what is not told yet is where it was.
    """
    settings = settings_from(config)
    root = os.path.realpath(settings.folders.quarantine)
    asked = [_below(root, name) for name in names]
    held = held_in(root)
    chosen = [one for one in held if _is_meant(one, asked, everything=everything, code=code)]
    missing = [name for name in asked if not any(_matches(one.name, name) for one in held)]
    for name in missing:
        click.echo(f"nothing matches {printable(name)}", err=True)
    if not chosen and not missing:
        click.echo(f"nothing in quarantine{f' has the code {code}' if code else ''}", err=True)
    back = _move_back(settings, chosen) if chosen else 0
    return Exit.DONE if chosen and back == len(chosen) and not missing else Exit.SOME_FAILED


def _move_back(settings: Settings, chosen: list[Held]) -> int:
    work = Work(Path(settings.folders.inbox), settings.originals, watch=False)
    folders = open_folders(settings, open_inbox(settings, work))
    back = sum(_release(folders, one) for one in chosen)
    price = back * settings.api.price_usd
    images = counted(back, "image")
    click.echo(f"{images} moved back to the inbox; cutting out costs at most ${price:.2f}.")
    return back


def _release(folders: Folders, one: Held) -> bool:
    try:
        path = folders.release(one.name, one.path, uuid.uuid4().hex)
    except Withdrawn as fault:
        click.echo(f"left  {printable(one.name)}: {fault.message}", err=True)
        return False
    renamed = "" if path == one.name else f" as {printable(path)}"
    click.echo(f"back  {printable(one.name)}{renamed}")
    return True


def held_in(root: str) -> list[Held]:
    """Return the images in a quarantine folder, by name.

    Raises:
        LocalFault: It cannot be listed.
    """
    return [_held(root, name) for name in names_in(root)]


def names_in(root: str) -> list[str]:
    """Return the names of the images in a quarantine folder, sorted.

    Raises:
        LocalFault: It cannot be listed.
    """
    try:
        os.scandir(root).close()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise local_fault(error, f"listing the quarantine {root}") from error
    sweep = Inbox(root, Ignore(), leases=False).sweep(lambda _path, _identity: False, sys.maxsize)
    files = {sighting.path for sighting in sweep.sightings}
    return [name for name in sorted(files) if _is_image(name, files)]


def _is_image(name: str, files: set[str]) -> bool:
    # An image may itself be called something.error.json; it has a report of its own then.
    return not name.endswith(REPORT) or name + REPORT in files


def _held(root: str, name: str) -> Held:
    report = _read_report(os.path.join(root, name + REPORT))
    code = report.get("code")
    return Held(name, old_path(name, report), code if isinstance(code, str) else None)


def _read_report(path: str) -> Mapping[str, object]:
    try:
        with open(path, "rb") as file:
            report = json.loads(file.read(_LONGEST_REPORT))
    except (OSError, ValueError, RecursionError):
        return {}  # an image without a readable report is an image all the same
    return report if isinstance(report, dict) else {}


def old_path(name: str, report: Mapping[str, object]) -> str:
    """Return the path in the inbox that a quarantined image had.

    The report is believed only where it explains the name: others may write into the quarantine.

    Args:
        name: In quarantine.
        report: Its error JSON; may be empty.
    """
    for told in _told_paths(report):
        try:
            explained = itertools.islice(
                candidates(told, MAX_NAME_BYTES - len(REPORT)), _MOST_NUMBERS
            )
            if name in explained:
                return told
        except UnicodeEncodeError:
            continue  # no name of a file: JSON may hold halves of characters
    return name


def _told_paths(report: Mapping[str, object]) -> Iterator[str]:
    raw, shown = report.get("file_b64"), report.get("file")
    if isinstance(raw, str):
        with contextlib.suppress(ValueError):
            yield os.fsdecode(base64.b64decode(raw, validate=True))
    if isinstance(shown, str):
        yield shown


def _below(root: str, name: str) -> str:
    """Return what was asked for as a path in quarantine: a shell completes paths from here."""
    name = name.removesuffix(REPORT)
    if not (os.path.isabs(name) or os.path.lexists(name)):
        return name
    folder, base = os.path.split(name)
    inside = os.path.relpath(os.path.join(os.path.realpath(folder), base), root)
    return name if inside.split("/")[0] == ".." else inside


def _is_meant(one: Held, names: list[str], *, everything: bool, code: str | None) -> bool:
    named = everything or not names or any(_matches(one.name, name) for name in names)
    return named and code in (None, one.code)


def _matches(name: str, wanted: str) -> bool:
    folder = wanted.rstrip("/") + "/"
    return name == wanted or name.startswith(folder) or fnmatch.fnmatchcase(name, wanted)


# --- check ---------------------------------------------------------------------------------

_FOLDERS = ("inbox", "outbox", "quarantine", "archive", "state")
_FROM_ENVIRONMENT = (
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)


@dataclass(slots=True)
class Sheet:
    """What `check` has found so far; every line is printed as it is found."""

    errors: int = 0
    warnings: int = 0
    code: Exit = Exit.DONE

    def good(self, where: str, what: str) -> None:
        """Print what is right."""
        _print_mark("ok", "green", f"{where}: {printable(what)}")

    def take(self, finding: Finding, code: Exit = Exit.SETUP) -> None:
        """Print and count what is not right; an error makes `code` the exit code, or a worse."""
        if finding.level == "error":
            self.errors += 1
            self.code = max(self.code, code)
            _print_mark("error", "red", f"{finding.where}: {finding.what}")
        else:
            self.warnings += 1
            _print_mark("warning", "yellow", f"{finding.where}: {finding.what}")
        if finding.remedy:
            click.echo(f"{'':<9}{finding.remedy}")

    def fault(self, where: str, fault: BgremoverError, remedy: str = "") -> None:
        """Print and count an error of the set-up."""
        self.take(Finding("error", where, fault.message, fault.hint or remedy))

    def end(self) -> Exit:
        """Print the sum and return the exit code."""
        sums = ((self.errors, "error"), (self.warnings, "warning"))
        words = ", ".join(counted(n, name) for n, name in sums if n)
        click.echo(f"{words}." if words else "All is well.")
        return self.code


def _print_mark(mark: str, colour: str, text: str) -> None:
    click.echo(click.style(f"{mark:<9}", fg=colour) + text)


def check(config: str | None, *, online: bool) -> Exit:
    """Print everything that is wrong with the configuration and the set-up, and what is right.

    Args:
        config: The configuration file, if one is named.
        online: Whether the API is asked if it takes the key; it charges nothing for that.

    Returns:
        The exit code.
    """
    sheet = Sheet()
    try:
        settings = settings_from(config)
    except SetupError as fault:
        _take_mistakes(sheet, fault)
        return sheet.end()
    sheet.good("configuration", _source(settings))
    _check_folders(sheet, settings)
    _check_ledger(sheet, settings)
    live = _check_daemon(sheet, settings)
    sheet.good("api.base_url", f"{settings.api.base_url} ({settings.api.flow})")
    for line in network_lines(settings, os.environ):
        sheet.good("network", line)
    address = settings.http.listen
    # One that does not answer may listen there.
    ours = live is not None and live.get("listen", address) == address
    for outlet in outlets(settings, listening=ours):
        if isinstance(outlet, Finding):
            sheet.take(outlet)
        else:
            sheet.good(*outlet)
    key = _check_key(sheet, settings)
    if key is not None:
        _check_api(sheet, settings, key, online=online)
    return sheet.end()


def _take_mistakes(sheet: Sheet, fault: SetupError) -> None:
    head, *mistakes = fault.message.splitlines()
    if mistakes:
        click.echo(head)
    for mistake in mistakes or [head]:
        sheet.take(Finding("error", "configuration", mistake.strip(), ""))


def _source(settings: Settings) -> str:
    source = settings.source
    return str(source) if source else "no file: defaults and the environment"


def _check_folders(sheet: Sheet, settings: Settings) -> None:
    findings = door_check(settings)
    for finding in findings:
        sheet.take(finding)
    told = {finding.where for finding in findings}
    for name in _FOLDERS:
        where, path = f"folders.{name}", Path(getattr(settings.folders, name))
        if where not in told:
            sheet.good(where, f"{path}{'' if path.exists() else ' (made at the first start)'}")


def _check_ledger(sheet: Sheet, settings: Settings) -> None:
    path = Path(settings.folders.state) / FILE_NAME
    try:
        with existing_ledger(path.parent) as ledger:
            damage = ledger.check() if ledger else []
    except BgremoverError as fault:
        sheet.fault("ledger", fault, "Nothing was changed.")
        return
    if damage:
        sheet.fault("ledger", damaged(path, sqlite3.DatabaseError("; ".join(damage))))
    elif ledger is None:
        sheet.good("ledger", f"{path} is made at the first start")
    else:
        sheet.good("ledger", f"{path} is whole")


def _check_daemon(sheet: Sheet, settings: Settings) -> dict[str, Any] | None:
    """Return what the running daemon says: {} when it does not answer, None when none runs."""
    try:
        live = ask_status(Path(settings.folders.state), ASK_SECONDS)
    except TimeoutError as error:
        remedy = "Look at its log; restart it if it stays so."
        sheet.take(Finding("warning", "daemon", str(error), remedy))
        return {}
    except LocalFault as fault:
        remedy = "Ask as the user that runs bgremover."
        sheet.take(Finding("warning", "daemon", fault.message, remedy))
        return {}
    if live is None:
        sheet.good("daemon", "none runs now")
        return None
    for what, remedy in troubles(live):
        sheet.take(Finding("warning", "daemon", what, remedy))
    if not (live["pause"] or live["ailment"]):
        sheet.good("daemon", f"running, pid {live['pid']}")
    return live


def network_lines(settings: Settings, env: Mapping[str, str]) -> list[str]:
    """Return what settings and environment say about the way to the API, without credentials."""
    api, lines = settings.api, list[str]()
    if api.proxy is not None:
        lines.append(f"api.proxy: {_shown_proxy(api.proxy.get_secret_value())}")
    if api.ca_bundle is not None:
        lines.append(f"api.ca_bundle: {printable(str(api.ca_bundle))}")
    # What a setting says outdoes the environment.
    left = [
        name
        for name in _FROM_ENVIRONMENT
        if not (api.ca_bundle if name.startswith("SSL_") else api.proxy)
    ]
    names = [spelt for name in left for spelt in (name, name.lower())]
    return lines + [
        f"{name} from the environment: {_shown_proxy(env[name])}" for name in names if env.get(name)
    ]


def _shown_proxy(address: str) -> str:
    return printable(address.rpartition("@")[2])


def _check_key(sheet: Sheet, settings: Settings) -> KeySource | None:
    try:
        key = find_key_source(settings, os.environ)
        key.read()
    except SetupError as fault:
        sheet.fault("key", fault)
        return None
    sheet.good("key", key.describe())
    for finding in key.findings():
        sheet.take(finding)
    return key


def _check_api(sheet: Sheet, settings: Settings, key: KeySource, *, online: bool) -> None:
    try:
        quote = asyncio.run(_ask_price(settings, key, online=online))
    except SetupError as fault:
        sheet.fault("network", fault, "Correct api.proxy, api.ca_bundle, or the environment.")
    except AccountFault as fault:
        sheet.fault("api", fault)
    except BgremoverError as fault:
        remedy = "Try again; if it stays so, check the network and api.base_url."
        sheet.take(Finding("error", "api", fault.message, remedy), Exit.UNAVAILABLE)
    else:
        if quote is not None:
            _compare_price(sheet, settings, quote)


async def _ask_price(settings: Settings, key: KeySource, *, online: bool) -> Quote | None:
    # Built even where nothing is asked: it refuses proxies and CA bundles that cannot be used.
    api = open_api(settings, key, Clock())
    try:
        return await api.prove_key() if online else None
    finally:
        await api.aclose()


def _compare_price(sheet: Sheet, settings: Settings, quote: Quote) -> None:
    price = settings.api.price_usd
    about = "" if quote.exact else ", by the API's estimate"
    sheet.good("api", f"the key is accepted; an image costs ${quote.usd:g}{about}")
    if micro(quote.usd) != micro(price):
        sheet.take(
            Finding(
                "warning",
                "api.price_usd",
                f"the API asks ${quote.usd:g} for an image, spend is counted with ${price:g}",
                f"Set api.price_usd to {quote.usd:g}.",
            )
        )


# --- init and schema -----------------------------------------------------------------------


def init(folder: Path) -> Exit:
    """Write config.yaml and make the folders; print what comes next.

    Args:
        folder: Where; it is made if need be.

    Returns:
        The exit code.

    Raises:
        SetupError: There is a config.yaml already, or a folder cannot be made.
        LocalFault: This machine does not let it be written.
    """
    base = Path(os.path.abspath(folder))
    path, text = base / "config.yaml", example_text()
    if os.path.lexists(path):
        raise SetupError(
            f"{path} is there already and was left as it is. Choose another folder, or move it away"
        )
    settings = parse_settings(text, {}, base)
    prepare_folders(settings)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise local_fault(error, f"writing {path}") from error
    click.echo(
        f"Wrote {path} and made the folders.\n\n"
        "Next:\n"
        "  1. Give it your key: export IDEOGRAM_API_KEY=..., or put the key into a file that only\n"
        "     you may read and name the file in api.key_file.\n"
        f"  2. bgremover check --online -c {path}\n"
        "     finds mistakes and proves the key without paying.\n"
        f"  3. bgremover run -c {path}\n"
        f"     and drop images into {settings.folders.inbox}"
    )
    return Exit.DONE


def schema() -> Exit:
    """Print the JSON Schema of the configuration; return the exit code."""
    click.echo(json.dumps(json_schema(), indent=2))
    return Exit.DONE
