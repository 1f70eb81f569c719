"""The ledger: what was claimed, paid and saved, in SQLite on a local disk.

`jobs` holds each image's record, whole, as JSON; its `seq` grows with each change. `calls` holds
one row for each POST: written before the first byte (the intent), completed with its outcome; a
row without an outcome may have been billed. `names` holds which original owns which name in the
outbox, `meta` whether the latest run has ended by itself.

WAL with `synchronous=FULL`: a transaction that returned survives a power cut. All work goes
through one thread which commits whatever has gathered while it was busy in one transaction
(group commit), so that ten workers do not cost ten fsyncs.
"""

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from bgremover.core.budget import Budget, Period, reached
from bgremover.core.codec import decode, decode_kept, encode
from bgremover.core.errors import (
    Billed,
    DiskFailed,
    DiskFull,
    LedgerDamaged,
    LocalFault,
    ReadOnlyDisk,
    SetupError,
    local_fault,
)
from bgremover.core.job import (
    CONFIGURED,
    Accepted,
    Deferred,
    Fetched,
    Home,
    Job,
    Kept,
    Paid,
    Quarantined,
    Receipt,
    Saved,
    State,
    Submitting,
    finished,
    receipt_of,
)
from bgremover.core.naming import fold, printable
from bgremover.core.report import utc

FILE_NAME = "ledger.sqlite3"

T = TypeVar("T")

_FIRST = """
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    home BLOB NOT NULL,
    path BLOB NOT NULL,
    kind TEXT NOT NULL,
    finished INTEGER NOT NULL,
    bound INTEGER NOT NULL,
    reused INTEGER NOT NULL,
    sha256 TEXT,
    code TEXT,
    updated_at REAL NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX jobs_unfinished ON jobs (finished) WHERE finished = 0;
CREATE INDEX jobs_sha256 ON jobs (sha256) WHERE sha256 IS NOT NULL;
CREATE INDEX jobs_path ON jobs (path, home);
CREATE INDEX jobs_failures ON jobs (updated_at) WHERE kind = 'quarantined';
CREATE TABLE calls (
    id INTEGER PRIMARY KEY,
    job_id TEXT NOT NULL,
    path BLOB NOT NULL,
    started_at REAL NOT NULL,
    day TEXT NOT NULL,
    micro_usd INTEGER NOT NULL,
    billed TEXT,
    outcome TEXT,
    status INTEGER,
    request_id TEXT,
    seconds REAL
) STRICT;
CREATE INDEX calls_day ON calls (day, billed, micro_usd);
CREATE INDEX calls_open ON calls (id) WHERE billed IS NULL;
CREATE INDEX calls_job ON calls (job_id);
CREATE TABLE names (
    key BLOB PRIMARY KEY,
    output BLOB NOT NULL,
    job_id TEXT NOT NULL
) STRICT;
CREATE INDEX names_job ON names (job_id);
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""

_STAYING = """
ALTER TABLE jobs ADD COLUMN stays INTEGER NOT NULL DEFAULT 0;
UPDATE jobs SET stays = 1 WHERE kind = 'saved' AND instr(body, '"left":true');
CREATE INDEX jobs_staying ON jobs (home) WHERE stays = 1;
"""

_MIGRATIONS = (_FIRST, _STAYING)
"""The n-th brings a ledger of schema n-1 to schema n. What was released is never changed.

Each statement ends with its line.
"""

SCHEMA_VERSION = len(_MIGRATIONS)


@dataclass(frozen=True, slots=True)
class Call:
    """One POST. `billed` is None while it is under way; `day` is the local day it began on."""

    id: int
    job_id: str
    path: str
    started_at: float
    day: str
    usd: float
    billed: Billed | None
    outcome: str | None
    status: int | None
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Spend:
    """What was spent, in USD. Calls under way and unknown charges count as spent."""

    today_usd: float
    month_usd: float
    total_usd: float
    billed: int
    unknown: int
    under_way: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """One quarantined image, for `status`. `at` is Unix time."""

    file: str
    code: str
    at: float


@dataclass(frozen=True, slots=True)
class Finished:
    """A job whose way has ended.

    Args:
        sequence: Its place in the order of changes.
        at: When it ended, Unix time.
        same: How many jobs have its path, itself included.
        job: Itself.
    """

    sequence: int
    at: float
    same: int
    job: Job


@dataclass(frozen=True, slots=True)
class CallTerms:
    """What a call costs, what may be spent, and the local day (YYYY-MM-DD) it counts for.

    `price` is in millionths of a US dollar.
    """

    price: int
    budget: Budget
    day: str


@dataclass(frozen=True, slots=True)
class Intent:
    """The answer to the wish to call: the call's number, or why it must wait.

    Exactly one is set: `call_id`; or `twin`, a job with the same bytes that is being paid for, or
    was saved since this one looked for an earlier cut-out; or `reached`, the budget that leaves
    no room.
    """

    call_id: int | None = None
    twin: str | None = None
    reached: Period | None = None


class Ledger:
    """The database itself. One connection, used by one thread at a time.

    Args:
        folder: The state folder; must exist, on a local file system.

    Raises:
        SetupError: The ledger was written by a newer version, or is damaged.
        LocalFault: The disk does not let it be opened.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._durable = True
        with _translated(self._path):
            _create_private(self._path)
            self._db = sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False, timeout=10
            )
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> None:
        try:
            _refuse_other_databases(self._db)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            version = migrate(self._db, _MIGRATIONS)
        except sqlite3.DatabaseError as error:
            if _is_damage(error):
                raise damaged(self._path, error) from error
            raise
        if version > SCHEMA_VERSION:
            raise SetupError(
                f"{self._path} was written by a newer bgremover (schema {version}, this one knows "
                f"{SCHEMA_VERSION}): install that version again, or restore a backup from before. "
                "Another folders.state knows nothing of what was paid for"
            )

    def close(self) -> None:
        """Close the database; the write-ahead log is folded in."""
        self._db.close()

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[None]:
        """Do what is done inside together, or not at all.

        Args:
            durable: Whether the commit waits for the disk (see SQLite's PRAGMA synchronous).

        Raises:
            LocalFault: The disk did not take it.
        """
        with _translated(self._path):
            if durable is not self._durable:
                self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._durable = durable
            with _immediate(self._db):
                yield

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo what is done inside if it raises, and leave the transaction around it alone."""
        self._db.execute("SAVEPOINT one")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK TO one")
            self._db.execute("RELEASE one")
            raise
        self._db.execute("RELEASE one")

    def put(self, job: Job, now: float) -> None:
        """Record `job` as it is now, in place of what was recorded of it before."""
        self._db.execute(
            "INSERT OR REPLACE INTO jobs (id, home, path, kind, finished, bound, reused, stays, "
            "sha256, code, updated_at, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                job.id,
                _home(job.home),
                os.fsencode(job.path),
                job.state.kind,
                finished(job.state),
                _bound(job.state),
                isinstance(job.state, Saved) and job.state.reused,
                isinstance(job.state, Saved) and job.state.left,
                job.picture.sha256 if job.picture else None,
                job.state.code if isinstance(job.state, Quarantined) else None,
                now,
                encode(job),
            ),
        )

    def forget(self, job_id: str) -> None:
        """Remove a job that was let go of. Its calls stay: they are money."""
        self._db.execute("DELETE FROM jobs WHERE id = ?", (job_id,))

    def unfinished(self, home: Home = CONFIGURED) -> list[Job]:
        """Return every job of this home whose way has not ended, oldest change first."""
        rows = self._db.execute(
            "SELECT body FROM jobs WHERE finished = 0 AND home = ? ORDER BY seq", (_home(home),)
        )
        return [_job(body) for (body,) in rows]

    def done_at(self, path: str, home: Home = CONFIGURED) -> Job | None:
        """Return the latest finished job of this inbox path, if any."""
        row = self._db.execute(
            "SELECT body FROM jobs WHERE path = ? AND home = ? AND finished = 1 "
            "ORDER BY seq DESC LIMIT 1",
            (os.fsencode(path), _home(home)),
        ).fetchone()
        return _job(row[0]) if row else None

    def saved(self, home: Home = CONFIGURED) -> Iterator[Job]:
        """Yield every job of this home whose cut-out was saved."""
        rows = self._db.execute(
            "SELECT body FROM jobs WHERE kind = 'saved' AND home = ?", (_home(home),)
        )
        for (body,) in rows:
            yield _job(body)

    def kept(self, home: Home = CONFIGURED, *, own: bool) -> list[Kept]:
        """Return what stays in the inbox of this home though its cut-out was saved.

        Args:
            home: Whose.
            own: Only what had to stay where others are moved away; else all.
        """
        query = "SELECT body FROM jobs WHERE kind = 'saved' AND home = ?"
        if own:
            query = "SELECT body FROM jobs WHERE stays = 1 AND home = ?"
        rows = self._db.execute(query, (_home(home),))
        return [_read(decode_kept, body) for (body,) in rows]

    def sequence(self) -> int:
        """Return the number of the latest change of any job."""
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'jobs'").fetchone()
        return int(row[0]) if row else 0

    def cut_outs(self, sha256: str) -> list[Job]:
        """Return the saved jobs of an original with these bytes, newest first."""
        rows = self._db.execute(
            "SELECT body FROM jobs WHERE sha256 = ? AND kind = 'saved' ORDER BY seq DESC",
            (sha256,),
        )
        return [_job(body) for (body,) in rows]

    def receipts(self, sha256: str, home: Home) -> list[Receipt]:
        """Return the receipts of images with these bytes that nobody goes on with.

        Their own run was interrupted, or they are in quarantine for another reason.

        Args:
            sha256: Of the original.
            home: The home that runs now; those of another one do not go on meanwhile.
        """
        rows = self._db.execute(
            "SELECT body FROM jobs WHERE sha256 = ? AND ((bound = 1 AND home <> ?) "
            "OR kind = 'quarantined') ORDER BY seq DESC",
            (sha256, _home(home)),
        )
        found = [receipt_of(_job(body).state) for (body,) in rows]
        return [receipt for receipt in found if receipt is not None]

    def begin_call(self, job: Job, terms: CallTerms, now: float) -> Intent:
        """Write the intent of a POST, unless it must wait.

        Args:
            job: The image, with its picture.
            terms: Price, budget and local day.
            now: Unix time.
        """
        if twin := self._twin(job):
            return Intent(twin=twin)
        if period := self._reached(terms):
            return Intent(reached=period)
        cursor = self._db.execute(
            "INSERT INTO calls (job_id, path, started_at, day, micro_usd) VALUES (?, ?, ?, ?, ?)",
            (job.id, os.fsencode(job.path), now, terms.day, terms.price),
        )
        call_id = cursor.lastrowid or 0
        self.put(replace(job, state=Submitting(call_id)), now)
        return Intent(call_id=call_id)

    def _reached(self, terms: CallTerms) -> Period | None:
        budget = terms.budget
        if budget.per_day is None and budget.per_month is None:
            return None
        return reached(
            budget,
            today=self.spent_since(terms.day),
            month=self.spent_since(terms.day[:7]),
            price=terms.price,
        )

    def _twin(self, job: Job) -> str | None:
        row = self._db.execute(
            "SELECT id FROM jobs WHERE sha256 = ? AND id <> ? "
            "AND ((bound = 1 AND home = ?) OR (kind = 'saved' AND seq > ?)) LIMIT 1",
            (job.picture.sha256 if job.picture else None, job.id, _home(job.home), job.checked),
        ).fetchone()
        return str(row[0]) if row else None

    def spent_since(self, start: str) -> int:
        """Return what was spent from a local day (YYYY-MM-DD) or month (YYYY-MM) on.

        Calls under way and unknown charges count. Days to come count too: a clock that was set
        back must not open the budget again.

        Returns:
            Millionths of a US dollar.
        """
        row = self._db.execute(
            "SELECT coalesce(sum(micro_usd), 0) FROM calls "
            "WHERE day >= ? AND (billed IS NULL OR billed <> 'no')",
            (start,),
        ).fetchone()
        return int(row[0])

    def end_call(
        self,
        call_id: int,
        *,
        billed: Billed,
        outcome: str,
        status: int | None,
        request_id: str | None,
        seconds: float | None,
    ) -> None:
        """Complete a call with its outcome. A second completion leaves what it does not know.

        An asynchronous generation is completed twice: when it was accepted, and when it ended.
        """
        self._db.execute(
            "UPDATE calls SET billed = ?, outcome = ?, status = coalesce(?, status), "
            "request_id = coalesce(?, request_id), seconds = coalesce(?, seconds) WHERE id = ?",
            (billed.value, outcome, status, request_id, seconds, call_id),
        )

    def end_open_call(self, job: Job) -> None:
        """Complete the call of a job whose answer came while the ledger could not be written."""
        row = self._db.execute(
            "SELECT id, started_at FROM calls WHERE job_id = ? AND billed IS NULL "
            "ORDER BY id DESC LIMIT 1",
            (job.id,),
        ).fetchone()
        told = job.attempts[-1] if job.attempts else None
        if row is None or told is None or told.at != row[1] or told.outcome == "accepted":
            return
        self.end_call(
            row[0],
            billed=told.billed,
            outcome=told.outcome,
            status=told.status,
            request_id=told.request_id,
            seconds=told.seconds,
        )

    def call(self, call_id: int) -> Call | None:
        """Return one call."""
        return next(self._calls("WHERE id = ?", (call_id,)), None)

    def last_call(self, job_id: str) -> Call | None:
        """Return the latest call of a job."""
        return next(self._calls("WHERE job_id = ? ORDER BY id DESC LIMIT 1", (job_id,)), None)

    def calls(self, month: str | None = None) -> Iterator[Call]:
        """Yield all calls, oldest first; with `month` (YYYY-MM), those of that local month."""
        if month is None:
            return self._calls("ORDER BY id", ())
        return self._calls("WHERE substr(day, 1, 7) = ? ORDER BY id", (month,))

    def _calls(self, where: str, values: tuple[object, ...]) -> Iterator[Call]:
        rows = self._db.execute(f"SELECT {_CALL} FROM calls {where}", values)  # noqa: S608 - `where` is one of the literals above
        return map(_call, rows)

    def spend(self, day: str) -> Spend:
        """Return what was spent on this local day (YYYY-MM-DD), in its month and in all."""
        row = self._db.execute(
            "SELECT coalesce(sum(micro_usd) FILTER (WHERE day = :day), 0), "
            "coalesce(sum(micro_usd) FILTER (WHERE substr(day, 1, 7) = substr(:day, 1, 7)), 0), "
            "coalesce(sum(micro_usd), 0), "
            "count(*) FILTER (WHERE billed = 'yes'), "
            "count(*) FILTER (WHERE billed = 'unknown'), count(*) FILTER (WHERE billed IS NULL) "
            "FROM calls WHERE billed IS NULL OR billed <> 'no'",
            {"day": day},
        ).fetchone()
        today, month, total, *counts = row
        return Spend(today / 1e6, month / 1e6, total / 1e6, *counts)

    def totals(self) -> dict[str, int]:
        """Return how many images were saved, reused and quarantined."""
        row = self._db.execute(
            "SELECT count(*) FILTER (WHERE kind = 'saved' AND NOT reused), "
            "count(*) FILTER (WHERE kind = 'saved' AND reused), "
            "count(*) FILTER (WHERE kind = 'quarantined') FROM jobs"
        ).fetchone()
        kinds = ("saved", "reused", "quarantined")
        return {kind: count + self._pruned(kind) for kind, count in zip(kinds, row, strict=True)}

    def _pruned(self, kind: str) -> int:
        row = self._db.execute(
            "SELECT value FROM meta WHERE key = ?", (f"pruned_{kind}",)
        ).fetchone()
        return int(row[0]) if row else 0

    def finished_after(self, sequence: int, limit: int, home: Home = CONFIGURED) -> list[Finished]:
        """Return finished jobs in the order of their last change, a page at a time.

        Args:
            sequence: Of the last job of the page before; 0 for the first page.
            limit: How many.
            home: Whose.
        """
        rows = self._db.execute(
            "SELECT seq, updated_at, (SELECT count(*) FROM jobs AS other "
            "WHERE other.path = jobs.path AND other.home = jobs.home), body FROM jobs "
            "WHERE finished = 1 AND home = ? AND seq > ? ORDER BY seq LIMIT ?",
            (_home(home), sequence, limit),
        )
        return [Finished(number, at, same, _job(body)) for number, at, same, body in rows]

    def prune(self, jobs: Iterable[str]) -> int:
        """Forget finished jobs; `totals` goes on counting them, and their calls stay: money.

        Returns:
            How many were forgotten.
        """
        forgotten = 0
        for job_id in jobs:
            row = self._db.execute(
                "DELETE FROM jobs WHERE id = ? AND finished = 1 RETURNING kind, reused", (job_id,)
            ).fetchone()
            if row is not None:
                kind = "reused" if row[1] else row[0]
                self._db.execute(
                    "INSERT OR REPLACE INTO meta VALUES (?, ?)",
                    (f"pruned_{kind}", str(self._pruned(kind) + 1)),
                )
                self._db.execute("DELETE FROM names WHERE job_id = ?", (job_id,))
                forgotten += 1
        return forgotten

    def vacuum(self) -> None:
        """Give room that is no longer used back to the disk; not inside a transaction.

        Raises:
            LocalFault: The disk has no room for a second copy, or does not let it.
        """
        with _translated(self._path):
            self._db.execute("VACUUM")

    def backup(self, destination: Path) -> None:
        """Write a copy as it is at this moment, also while others write.

        Args:
            destination: A file that does not exist, or is empty.

        Raises:
            LocalFault: The disk does not take it.
        """
        with (
            _translated(destination),
            closing(sqlite3.connect(destination, isolation_level=None)) as copy,
        ):
            self._db.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, with nothing beside it

    def failures(self, limit: int = 10) -> list[Failure]:
        """Return the latest quarantined images, newest first."""
        rows = self._db.execute(
            "SELECT path, code, updated_at FROM jobs WHERE kind = 'quarantined' "
            "ORDER BY updated_at DESC LIMIT ?",
            (limit,),
        )
        return [Failure(os.fsdecode(path), code, at) for path, code, at in rows]

    def count_deferred(self) -> int:
        """Return how many images are put off."""
        (count,) = self._db.execute(
            "SELECT count(*) FROM jobs WHERE finished = 0 AND kind = 'deferred'"
        ).fetchone()
        return int(count)

    def reserve(self, job: Job, candidates: Iterable[str], taken: Callable[[str], bool]) -> str:
        """Reserve the first free name in the outbox for a job.

        Args:
            job: Who will own it; a name it owns already is returned again.
            candidates: The names in order of preference, endless.
            taken: Whether something lies under a name on the disk.
        """
        own = self._db.execute("SELECT output FROM names WHERE job_id = ?", (job.id,)).fetchone()
        if own:
            return os.fsdecode(own[0])
        return next(name for name in candidates if self._reserved(job, name, taken))

    def _reserved(self, job: Job, name: str, taken: Callable[[str], bool]) -> bool:
        if taken(name):
            return False
        # A name that was reserved by another job and is free on the disk is still the other's
        # while that job is under way; once it is finished, the user has removed the file.
        cursor = self._db.execute(
            "INSERT INTO names VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
            "output = excluded.output, job_id = excluded.job_id WHERE job_id NOT IN "
            "(SELECT id FROM jobs WHERE finished = 0)",
            (_key(job.home, name), os.fsencode(name), job.id),
        )
        return cursor.rowcount == 1

    def unreserve(self, job_id: str) -> None:
        """Give the reserved name of a job back: somebody else's file took it."""
        self._db.execute("DELETE FROM names WHERE job_id = ?", (job_id,))

    def orphans(self) -> list[tuple[str, str]]:
        """Return the names whose job was never recorded, as (output, job id), and free them."""
        rows = self._db.execute(
            "DELETE FROM names WHERE job_id NOT IN (SELECT id FROM jobs) RETURNING output, job_id"
        ).fetchall()
        return [(os.fsdecode(output), job_id) for output, job_id in rows]

    def work_alone(self, job_id: str | None) -> None:
        """Note that this job alone is worked on now; None: that the next may be several again."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('alone', ?)", (job_id or "",))

    def alone(self) -> str | None:
        """Return the job that alone was worked on when the last run ended, if one was."""
        row = self._db.execute("SELECT value FROM meta WHERE key = 'alone'").fetchone()
        return row[0] or None if row else None

    def begin_run(self) -> bool:
        """Note that a run begins, and tell whether the one before ended by itself."""
        row = self._db.execute("SELECT value FROM meta WHERE key = 'running'").fetchone()
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('running', 'yes')")
        return row is None or row[0] == "no"

    def end_run(self) -> None:
        """Note that the run ended by itself."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('running', 'no')")

    def restore(self, jobs: Iterable[Job], calls: Iterable[Call]) -> None:
        """Put what was salvaged from another ledger into this one, calls under their numbers."""
        for job in jobs:
            # Changes are counted anew here: nothing was looked for since any of them.
            self.put(replace(job, checked=0), _last_moment(job))
        self._db.executemany(
            f"INSERT OR IGNORE INTO calls ({_CALL}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - our own names
            [_row(call) for call in calls],
        )

    def check(self) -> list[str]:
        """Return what SQLite finds damaged; empty when all is well."""
        try:
            rows = self._db.execute("PRAGMA quick_check").fetchall()
        except sqlite3.DatabaseError as error:
            if _is_damage(error):
                return [str(error)]
            raise
        return [text for (text,) in rows if text != "ok"]


def _last_moment(job: Job) -> float:
    return max([job.claimed_at, *(attempt.at for attempt in job.attempts)])


def migrate(db: sqlite3.Connection, migrations: Sequence[str]) -> int:
    """Bring a database to the newest schema, in one transaction.

    Args:
        db: In autocommit mode.
        migrations: The n-th brings a database of schema n-1 to schema n.

    Returns:
        The schema it has now; a newer one than the migrations know is left alone.

    Raises:
        sqlite3.DatabaseError: It cannot be written, is damaged, or is no ledger.
    """
    if _schema(db) < len(migrations):
        with _immediate(db):
            # Asked again: another process may have been quicker.
            for number in range(_schema(db), len(migrations)):
                for statement in migrations[number].split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {number + 1}")
    return _schema(db)


def record_of(ledger: Ledger, day: str) -> dict[str, Any]:
    """Return what `status --json` shows of the ledger.

    Args:
        ledger: It.
        day: The local day (YYYY-MM-DD) that counts as today.
    """
    spend = ledger.spend(day)
    return {
        "totals": ledger.totals(),
        "spend": {
            "today_usd": spend.today_usd,
            "month_usd": spend.month_usd,
            "total_usd": spend.total_usd,
            "billed": spend.billed,
            "unknown": spend.unknown,
            "under_way": spend.under_way,
        },
        "latest_failures": [
            {"file": printable(failure.file), "code": failure.code, "at": utc(failure.at)}
            for failure in ledger.failures()
        ],
    }


def _schema(db: sqlite3.Connection) -> int:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return int(version)


@contextmanager
def _immediate(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _refuse_other_databases(db: sqlite3.Connection) -> None:
    """Refuse what is sound and of somebody else, before anything is written into it."""
    db.execute("BEGIN")  # both questions are about the same moment
    version, rows = _schema(db), db.execute("SELECT name FROM sqlite_schema").fetchall()
    db.execute("COMMIT")
    lacking = {"jobs", "calls", "names", "meta"} - {name for (name,) in rows}
    if (rows and not version) or (lacking and 0 < version <= SCHEMA_VERSION):
        raise _Damage("a database, but no ledger of bgremover")


class _Damage(sqlite3.DatabaseError):
    """What SQLite takes for sound cannot be what was written."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


@contextmanager
def existing_ledger(folder: Path) -> Iterator[Ledger | None]:
    """Open the ledger to look something up, also beside a running daemon.

    Args:
        folder: The state folder; need not exist.

    Yields:
        The ledger for the length of the `with`; None where there is none yet: none is made.

    Raises:
        SetupError: It was written by a newer version, or is damaged; also while it is read.
        LocalFault: This user may not open it, or the disk does not let it be read.
    """
    path = folder / FILE_NAME
    if not _has_content(path):
        yield None
        return
    try:
        with closing(Ledger(folder)) as ledger:
            yield ledger
    except sqlite3.Error as error:
        raise damaged(path, error) if _is_damage(error) else _fault(path, error) from error


@contextmanager
def replacement(folder: Path) -> Iterator[Ledger]:
    """Fill a new ledger beside the one in `folder`, and put it in its place at the end.

    Until then, and when anything is raised, the old one stays as it is. A kill between the last
    two steps leaves the old one without its write-ahead log: keep a copy of both.

    Args:
        folder: The state folder; its lock is held.

    Yields:
        The new ledger, in one transaction.

    Raises:
        LocalFault: The disk did not take it.
    """
    beside, path = folder / "rebuilding", folder / FILE_NAME
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with _translated(path):
            beside.mkdir(mode=0o700)
            with closing(Ledger(beside)) as ledger, ledger.transaction():
                yield ledger
            # A log of the old ledger must not be taken for one of the new.
            for tail in ("-wal", "-shm"):
                path.with_name(FILE_NAME + tail).unlink(missing_ok=True)
            (beside / FILE_NAME).replace(path)
            _sync_folder(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _has_content(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise local_fault(error, f"opening the ledger {path}") from error
    try:
        return os.fstat(descriptor).st_size > 0
    finally:
        os.close(descriptor)


def _job(body: str) -> Job:
    return _read(decode, body)


def _read(decoder: Callable[[str], T], body: str) -> T:
    try:
        return decoder(body)
    except ValueError as error:
        raise _Damage(str(error)) from error


_CALL = "id, job_id, path, started_at, day, micro_usd, billed, outcome, status, request_id"


_BILLED = {None, *(billed.value for billed in Billed)}


def _call(row: tuple[Any, ...]) -> Call:
    number, job_id, path, started, day, micro, billed, outcome, status, request = row
    if billed not in _BILLED:
        raise _Damage(f"call {number} cannot be billed {billed!r}")
    return Call(
        id=number,
        job_id=job_id,
        path=os.fsdecode(path),
        started_at=started,
        day=day,
        usd=micro / 1_000_000,
        billed=Billed(billed) if billed else None,
        outcome=outcome,
        status=status,
        request_id=request,
    )


def _row(call: Call) -> tuple[object, ...]:
    return (
        call.id,
        call.job_id,
        os.fsencode(call.path),
        call.started_at,
        call.day,
        round(call.usd * 1_000_000),
        call.billed.value if call.billed else None,
        call.outcome,
        call.status,
        call.request_id,
    )


@dataclass(frozen=True, slots=True)
class Salvaged:
    """What can still be read of a damaged ledger. `lost` counts the rows that cannot, at most."""

    jobs: tuple[Job, ...]
    calls: tuple[Call, ...]
    lost: int


def salvage(path: Path) -> Salvaged:
    """Read a damaged ledger row by row, and leave out what cannot be read.

    Args:
        path: The database file; its write-ahead log lies beside it.
    """
    with _translated(path), closing(sqlite3.connect(path, isolation_level=None)) as db:
        # A file whose end is missing would be refused whole.
        db.execute("PRAGMA writable_schema = ON")
        jobs = [_job_or_none(row) for row in _readable(db, _JOBS)]
        calls = [_call_or_none(row) for row in _readable(db, _CALLS)]
    found = tuple(job for job in jobs if job is not None)
    paid = tuple(call for call in calls if call is not None)
    return Salvaged(found, paid, len(jobs) + len(calls) - len(found) - len(paid))


@dataclass(frozen=True, slots=True)
class _Table:
    """A table to salvage: its key and what is wanted, and where else its keys can be read.

    Args:
        keys: Queries for all keys, by indexes that hold them once more.
        last: Queries for the last key.
    """

    row: str
    keys: tuple[str, ...]
    last: tuple[str, ...]


_JOBS = _Table(
    "SELECT body FROM jobs WHERE seq = ?",
    ("SELECT seq FROM jobs INDEXED BY jobs_path",),
    ("SELECT max(seq) FROM jobs", "SELECT seq FROM sqlite_sequence WHERE name = 'jobs'"),
)
_CALLS = _Table(
    f"SELECT {_CALL} FROM calls WHERE id = ?",  # noqa: S608 - our own names
    ("SELECT id FROM calls INDEXED BY calls_job", "SELECT id FROM calls INDEXED BY calls_day"),
    ("SELECT max(id) FROM calls",),
)


def _readable(db: sqlite3.Connection, table: _Table) -> Iterator[tuple[Any, ...] | None]:
    # By the number of the row: each look-up goes its own way through the tree, past the damage.
    known = set(next(filter(None, (_asked(db, query) for query in table.keys)), ()))
    last = max(known.union(*(_asked(db, query) for query in table.last)), default=0)
    for number in range(1, last + 1):
        try:
            row = db.execute(table.row, (number,)).fetchone()
        except sqlite3.DatabaseError:
            if not known or number in known:
                yield None
        else:
            if row is not None:
                yield row


def _asked(db: sqlite3.Connection, query: str) -> list[int]:
    try:
        return [number for (number,) in db.execute(query) if isinstance(number, int)]
    except sqlite3.DatabaseError:
        return []


def _job_or_none(row: tuple[Any, ...] | None) -> Job | None:
    try:
        return decode(row[0]) if row else None
    except ValueError:
        return None


def _call_or_none(row: tuple[Any, ...] | None) -> Call | None:
    try:
        return _call(row) if row else None
    except (TypeError, ValueError, _Damage):
        return None


@dataclass(frozen=True, slots=True)
class _Wish(Generic[T]):
    work: Callable[[Ledger], T]
    answer: "asyncio.Future[T]"
    durable: bool


class Scribe:
    """Gives the ledger to many tasks: one thread, and one commit for all that has gathered.

    Args:
        ledger: Opened; closed by `aclose`.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._wishes: list[_Wish[Any]] = []
        self._writing: asyncio.Task[None] | None = None

    async def do(self, work: Callable[[Ledger], T], *, durable: bool = True) -> T:
        """Run `work` on the ledger and return its answer once it is durable.

        Args:
            work: What to do.
            durable: Without it, the answer does not wait for the disk: what was written survives
                a kill, and a power cut only once a later durable wish was answered.

        Raises:
            LocalFault: The disk did not take it; nothing of `work` is recorded.
        """
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._wishes.append(_Wish(work, answer, durable))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all())
        return await answer

    async def vacuum(self) -> None:
        """Give room that is no longer used back to the disk; wishes wait meanwhile.

        Raises:
            LocalFault: The disk does not let it.
        """
        await asyncio.get_running_loop().run_in_executor(self._thread, self._ledger.vacuum)

    async def _write_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._wishes:
            wishes, self._wishes = self._wishes, []
            try:
                outcomes = await loop.run_in_executor(self._thread, self._write, wishes)
            except Exception as error:  # noqa: BLE001 - nobody may wait for ever
                outcomes = [error] * len(wishes)
            for wish, outcome in zip(wishes, outcomes, strict=True):
                _settle(wish.answer, outcome)
        self._writing = None

    def _write(self, wishes: list[_Wish[Any]]) -> list[Any]:
        try:
            durable = any(wish.durable for wish in wishes)
            with self._ledger.transaction(durable=durable):
                return [self._one(wish) for wish in wishes]
        except LocalFault as fault:
            return [fault] * len(wishes)

    def _one(self, wish: _Wish[Any]) -> Any:  # noqa: ANN401 - the answer's type is the wish's
        try:
            with self._ledger.savepoint():
                return wish.work(self._ledger)
        except sqlite3.IntegrityError as error:  # a defect of the one who asked, not of the disk
            return error
        except sqlite3.Error:
            raise
        except Exception as error:  # noqa: BLE001 - handed to the task that asked
            return error

    async def aclose(self) -> None:
        """Finish what was asked for and close the ledger."""
        if self._writing is not None:
            await self._writing
        await asyncio.get_running_loop().run_in_executor(self._thread, self._ledger.close)
        self._thread.shutdown()


def _settle(answer: "asyncio.Future[Any]", outcome: object) -> None:
    if answer.done():
        return
    if isinstance(outcome, BaseException):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)


def _bound(state: State) -> bool:
    match state:
        case Submitting() | Accepted() | Paid() | Fetched():
            return True
        case Deferred(resume=resume):
            return _bound(resume)
        case _:
            return False


def _home(home: Home) -> bytes:
    return os.fsencode(f"{home.inbox}\0{home.outbox}")


def _key(home: Home, name: str) -> bytes:
    # A file system may take two spellings for one name, so that reservations must as well.
    return os.fsencode(f"{home.outbox}\0{fold(name)}")


def _create_private(path: Path) -> None:
    # The ledger holds signed links: nobody else may read it, nor its -wal and -shm, which SQLite
    # creates with the same mode.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.close(descriptor)


def _is_damage(error: sqlite3.Error) -> bool:
    # Without a code: text that is no UTF-8, which SQLite itself does not look at.
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return isinstance(error, sqlite3.OperationalError)
    return int(code) & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def damaged(path: Path, error: sqlite3.Error) -> SetupError:
    """Return the refusal to work with a damaged ledger, with its remedy."""
    return SetupError(
        f"{path} is damaged ({error}). Nothing was changed. Restore it from a backup, or run "
        "`bgremover rebuild`: it keeps a copy of the damaged file and makes a new ledger from "
        "what can still be read of it and from what lies in your folders"
    )


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise _fault(path, error) from error
    except OSError as error:
        raise local_fault(error, f"opening the ledger {path}") from error


def _fault(path: Path, error: sqlite3.Error) -> LocalFault:
    if _is_damage(error):
        return LedgerDamaged(damaged(path, error).message)
    message = f"writing the ledger {path}: {error}"
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_FULL:
            return DiskFull(message)
        case sqlite3.SQLITE_READONLY:
            return ReadOnlyDisk(message)
        case _:
            return DiskFailed(message)
