"""`explain`: why a file is taken or not, and what it waits for. Changes nothing.

Found out from the settings, the ledger and the file itself, with the parts that decide it in the
daemon; a running daemon is only asked whether it pauses.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click

from bgremover.cli import Exit
from bgremover.commands.common import settings_from
from bgremover.commands.looking import ASK_SECONDS
from bgremover.core.errors import (
    BgremoverError,
    Blocked,
    EmptyImage,
    FileFault,
    LocalFault,
    SetupError,
    Truncated,
    Vanished,
    Withdrawn,
)
from bgremover.core.job import CONFIGURED, Deferred, Job, Quarantined, Receipt, Saved
from bgremover.core.naming import counted, printable
from bgremover.core.report import utc
from bgremover.edges import mounts
from bgremover.edges.folders import Folders
from bgremover.edges.inbox import Inbox, Sighting
from bgremover.edges.ledger import Ledger, existing_ledger
from bgremover.edges.supervisor import ask_status
from bgremover.settings import Settings
from bgremover.studio import intake
from bgremover.timing import Clock
from bgremover.wiring import Work, limits, open_folders, open_inbox


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a file: in a word or two, and why."""

    answer: str
    why: str


def explain(config: str | None, path: Path) -> Exit:
    """Print why a file is taken or not; return the exit code.

    Args:
        config: The configuration file, if one is named.
        path: The file: as the shell knows it, or as it is called below the inbox.

    Raises:
        SetupError: The configuration is wrong, the path lies outside of the inbox, or the ledger
            is damaged.
        LocalFault: The ledger cannot be read.
    """
    settings = settings_from(config)
    inbox = open_inbox(settings, Work(Path(settings.folders.inbox), settings.originals))
    name = _inside(inbox.root, path)
    with existing_ledger(Path(settings.folders.state)) as ledger:
        verdict = Case(settings, inbox, ledger, Clock()).verdict(name)
    click.echo(printable(name))
    _row(verdict.answer, verdict.why)
    for title, text in _around(settings, inbox, name):
        _row(title, text)
    return Exit.DONE


def _row(title: str, text: str) -> None:
    click.echo(f"  {title:<14}{printable(text)}")


def _inside(root: str, path: Path) -> str:
    """Return a path as it is called below the inbox; its last name is not followed if a link."""
    absolute = os.path.abspath(path)
    real = os.path.join(os.path.realpath(os.path.dirname(absolute)), os.path.basename(absolute))
    there = os.path.lexists(absolute)
    for whole in (absolute, real):
        if whole.startswith(os.path.join(root, "")):
            return whole[len(os.path.join(root, "")) :]
    if path.is_absolute() or there:
        raise SetupError(f"{printable(str(path))} does not lie in the inbox, {printable(root)}.")
    return os.path.normpath(path)


# --- the file ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """What is known when a file is judged: the settings, the inbox, the ledger, both clocks."""

    settings: Settings
    inbox: Inbox
    ledger: Ledger | None
    clock: Clock

    def verdict(self, path: str) -> Verdict:
        """Return what becomes of the file at `path` below the inbox."""
        try:
            self.inbox.root_identity()
            return (
                self._under_way(path)
                or self._left_alone(path)
                or self._no_image(path)
                or self._done(path)
                or self._waits(path)
                or self._bad(path)
                or Verdict("is taken", self._price(path))
            )
        except LocalFault as fault:
            return Verdict("waits", f"{fault.message}. {fault.hint}")
        except Blocked as fault:
            return Verdict("waits", f"{fault.message}. {fault.hint}")
        except Withdrawn as fault:
            return self._gone(path, fault)

    def _under_way(self, path: str) -> Verdict | None:
        unfinished = self.ledger.unfinished(CONFIGURED) if self.ledger else []
        job = next((one for one in unfinished if one.path == path), None)
        if job is None:
            return None
        match job.state:
            case Deferred(until=until, reason=reason) if until > self.clock.wall():
                return Verdict("waits", f"claimed, and put off until {utc(until)}: {reason}")
            case Deferred(until=until, reason=reason):
                words = f"claimed, and was put off until {utc(until)}: {reason}"
                return Verdict("waits", f"{words}; it goes on as soon as the daemon comes to it")
            case state:
                calls = f"{counted(len(job.attempts), 'call')} so far"
                return Verdict(
                    "is worked on", f"claimed at {utc(job.claimed_at)}; {state.kind}, {calls}"
                )

    def _left_alone(self, path: str) -> Verdict | None:
        *folders, name = path.split("/")
        above = ""
        for folder in folders:
            held = self.inbox.terms(above + folder)
            if held.held is not None:
                return Verdict("is held", held.held)
            if rule := held.why_folder(folder, above + folder):
                return Verdict("is left alone", f"the folder {above}{folder} is ignored: {rule}")
            if not self.settings.watch.recursive:
                return Verdict("is left alone", "sub-folders do not count: watch.recursive is off")
            above += folder + "/"
        held = self.inbox.terms(path)
        if held.held is not None:
            return Verdict("is held", held.held)
        rule = held.why_file(name, path)
        return Verdict("is left alone", f"the name is ignored: {rule}") if rule else None

    def _no_image(self, path: str) -> Verdict | None:
        with self.inbox.holding(path) as (folder, name):
            try:
                mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            except FileNotFoundError as error:
                raise Vanished(f"{printable(path)} is not there") from error
        if stat.S_ISREG(mode):
            return None
        if stat.S_ISDIR(mode):
            return Verdict("is a folder", "what lies in it is taken; ask for a file")
        if stat.S_ISLNK(mode):
            return Verdict("is left alone", "it is a symbolic link, and links are never followed")
        return Verdict("is left alone", "it is no regular file")

    def _done(self, path: str) -> Verdict | None:
        job = self.ledger.done_at(path) if self.ledger else None
        one = self._sighting(path)
        if job is None or one is None or not job.identity.same_content(one.identity):
            return None
        kept = self._originals(path) == "keep"
        match job.state:
            case Saved(output=output, left=left) if left or kept:
                return Verdict(
                    "is done", f"this very file was cut out before, as {output}, and stays"
                )
            case Quarantined(code=code, left=True):
                return Verdict(
                    "is done", f"it failed ({code}) and could not be moved to quarantine"
                )
            case _:
                return None

    def _waits(self, path: str) -> Verdict | None:
        one = self._sighting(path)
        if one is None:
            raise Vanished(f"{printable(path)} is not there")
        if one.closed is False:
            return Verdict("waits", "a program has it open for writing")
        quiet = self.clock.wall() - one.identity.ctime_ns / 1e9
        settle = self.settings.watch.settle_seconds
        if 0 <= quiet < settle and not one.whole:
            return Verdict(
                "waits", f"it changed {quiet:.1f} s ago; watch.settle_seconds is {settle:g}"
            )
        return None

    def _bad(self, path: str) -> Verdict | None:
        try:
            with self.inbox.open(path) as file:
                intake.look(file, limits(self.settings))
        except (Truncated, EmptyImage) as fault:
            minutes = self.settings.watch.incomplete_minutes
            if self._unchanged_for(path) > minutes * 60:
                words = f"{fault.message}, and it was unchanged for more than {minutes:g} minutes"
                return Verdict("fails", f"{words}: it goes to quarantine as {fault.code}")
            words = f"{fault.message}. It is given {minutes:g} minutes without a change"
            return Verdict("waits", f"{words}, then goes to quarantine as {fault.code}")
        except FileFault as fault:
            return Verdict("fails", f"it goes to quarantine as {fault.code}: {fault.message}")
        return None

    def _unchanged_for(self, path: str) -> float:
        """Return for how many seconds; 0 where change times are of another machine's clock."""
        one = self._sighting(path)
        if one is None or not self.inbox.leases:
            return 0.0
        return self.clock.wall() - one.identity.ctime_ns / 1e9

    def _price(self, path: str) -> str:
        with self.inbox.open(path) as file:
            sha256 = intake.look(file, limits(self.settings)).picture.sha256
        folders = open_folders(self.settings, self.inbox)
        jobs = self.ledger.cut_outs(sha256) if self.ledger else []
        kept = self.ledger.receipts(sha256, CONFIGURED) if self.ledger else []
        if any(self._serves(job, folders) for job in jobs) or any(map(self._lives, kept)):
            return "it costs nothing: a cut-out of the same bytes is there or is paid for"
        price = self.settings.api.price_usd
        return (
            f"nothing keeps it from being cut out, for ${price:.2f}; then: {self._originals(path)}"
        )

    def _serves(self, job: Job, folders: Folders) -> bool:
        match job.state:
            case Saved(output=output, sha256=sha256, size=size, receipt=receipt):
                outbox = job.home.outbox or os.path.realpath(self.settings.folders.outbox)
                there = folders.verify_published(os.path.join(outbox, output), sha256, size)
                return there or self._lives(receipt)
            case _:
                return False

    def _lives(self, receipt: Receipt | None) -> bool:
        return bool(receipt and receipt.link and receipt.expires_at > self.clock.wall())

    def _gone(self, path: str, fault: Withdrawn) -> Verdict:
        job = self.ledger.done_at(path) if self.ledger else None
        match job.state if job else None:
            case Saved(output=output):
                return Verdict(
                    "is done", f"it is not in the inbox any more; it was cut out as {output}"
                )
            case Quarantined(code=code, name=name):
                place = os.path.join(os.path.realpath(self.settings.folders.quarantine), name)
                if not name or not os.path.lexists(place):
                    gone = f"with {code}; it is neither in the inbox nor in quarantine any more"
                    return Verdict("has failed", gone)
                return Verdict("has failed", f"it lies in quarantine ({code}): {place}")
            case _:
                return Verdict("is not known", f"{fault.message}, and nothing is recorded of it")

    def _originals(self, path: str) -> str:
        return self.inbox.terms(path).originals or self.settings.originals

    def _sighting(self, path: str) -> Sighting | None:
        return next(iter(self.inbox.look([path], leases=True)), None)


# --- what is around it ---------------------------------------------------------------------


def _around(settings: Settings, inbox: Inbox, path: str) -> Iterator[tuple[str, str]]:
    yield from _daemon(settings)
    below = mounts.mounts_under(os.path.join(inbox.root, path), mounts.read_mounts())
    watch = settings.watch
    if below and not mounts.trustworthy(below[0].fs_type):
        words = f"changes made elsewhere make no events; swept every {watch.poll_seconds:g} s"
        yield below[0].fs_type, words
    with suppress(BgremoverError):
        held = inbox.terms(path)
        if held.base or held.originals:
            originals = held.originals or settings.originals
            yield "terms", f"a .bgremover.yaml counts here; originals: {originals}"
        if said := held.output.said():
            yield "output", "; ".join(f"{key}: {_shown(said[key])}" for key in said)


def _shown(value: object) -> str:
    return f"[{', '.join(value)}]" if isinstance(value, tuple) else str(value)


def _daemon(settings: Settings) -> Iterator[tuple[str, str]]:
    try:
        live = ask_status(Path(settings.folders.state), ASK_SECONDS)
    except (TimeoutError, LocalFault) as error:
        yield "daemon", str(error)
        return
    if live is None:
        yield "daemon", "none runs: nothing is taken until `bgremover run` or `bgremover once`"
    elif live["pause"]:
        pause = live["pause"]
        yield "daemon", f"the line is paused: {pause['reason']} ({pause['detail']})"
    elif live["ailment"]:
        yield "daemon", live["ailment"]
    else:
        yield "daemon", f"runs; waiting: {counted(live['queue']['waiting'], 'file')}"
