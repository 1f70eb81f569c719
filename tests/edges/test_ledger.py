"""What the ledger keeps, on a real disk: through kills, damage, a full disk, other processes."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bgremover.core.budget import Budget
from bgremover.core.codec import encode
from bgremover.core.errors import (
    Billed,
    DiskFailed,
    DiskFull,
    FolderLost,
    LedgerDamaged,
    LocalFault,
    NoPermission,
    SetupError,
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
    Picture,
    Quarantined,
    Queued,
    Released,
    Saved,
    State,
    Submitting,
    finished,
)
from bgremover.edges.ledger import (
    _MIGRATIONS,
    FILE_NAME,
    SCHEMA_VERSION,
    Call,
    CallTerms,
    Failure,
    Intent,
    Ledger,
    Scribe,
    Spend,
    existing_ledger,
    migrate,
    replacement,
    salvage,
)
from tests import fakes
from tests.apart import NOBODY, apart, open_to_all, remount
from tests.fakes import NOON, RECEIPT, a_job

DAY = "2026-01-01"
FREE = Budget(None, None)
TERMS = CallTerms(10_000, FREE, DAY)
SHA = "5a" * 32
PAGE = 4096

Open = Callable[[], Ledger]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(Ledger(tmp_path)) as opened:
        yield opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE_NAME


def looked_into(folder: Path, work: Callable[[Ledger], object] = Ledger.totals) -> None:
    """Do what `work` does as a command does it that looks something up."""
    with existing_ledger(folder) as ledger:
        if ledger is not None:
            work(ledger)


def pictured(sha256: str = SHA, **changes: Any) -> Job:  # noqa: ANN401 - the fields of Job
    return a_job(picture=Picture(sha256, "JPEG", 10, 10), **changes)


def saved(output: str = "a.png", **changes: Any) -> Saved:  # noqa: ANN401 - the fields of Saved
    return replace(Saved(output, "c0ffee", 12, RECEIPT, filed=True), **changes)


def quarantined(code: str = "truncated") -> Quarantined:
    return Quarantined(code, "{}", "a.jpg", filed=True)


def put(ledger: Ledger, *jobs: Job, now: float = NOON) -> None:
    with ledger.transaction():
        for job in jobs:
            ledger.put(job, now)


def pay(ledger: Ledger, job: Job, terms: CallTerms = TERMS, billed: Billed = Billed.YES) -> int:
    """Write intent and end of a call; return its number."""
    with ledger.transaction():
        intent = ledger.begin_call(job, terms, NOON)
        assert intent.call_id is not None
        ledger.end_call(
            intent.call_id, billed=billed, outcome="x", status=200, request_id="r", seconds=1.5
        )
    return intent.call_id


# --- jobs -------------------------------------------------------------------------------------


def test_a_new_ledger_knows_nothing(ledger: Ledger) -> None:
    assert ledger.unfinished() == []
    assert ledger.done_at("a.jpg") is None
    assert list(ledger.saved()) == []
    assert list(ledger.calls()) == []
    assert ledger.sequence() == 0
    assert ledger.call(1) is None
    assert ledger.last_call("x") is None
    assert ledger.spend(DAY) == Spend(0, 0, 0, 0, 0)
    assert ledger.totals() == {"saved": 0, "reused": 0, "quarantined": 0}
    assert ledger.check() == []


def test_what_is_put_is_found_until_it_is_forgotten(ledger: Ledger) -> None:
    put(ledger, a_job())
    assert ledger.unfinished() == [a_job()]
    with ledger.transaction():
        ledger.forget(a_job().id)
    assert ledger.unfinished() == []


def test_unfinished_jobs_come_in_the_order_of_their_latest_change(ledger: Ledger) -> None:
    one, two, three = (a_job(id=name, path=name) for name in ("one", "two", "three"))
    put(ledger, one, two, three)
    parked = replace(one, state=Deferred(NOON, Queued(), "throttled"))
    put(ledger, parked)
    assert ledger.unfinished() == [two, three, parked]
    put(ledger, replace(two, state=saved()))
    assert ledger.unfinished() == [three, parked]


def test_the_sequence_grows_with_each_change_and_never_shrinks(ledger: Ledger) -> None:
    put(ledger, a_job(), a_job(), a_job(id="b"))
    assert ledger.sequence() == 3
    with ledger.transaction():
        ledger.forget("b")
    assert ledger.sequence() == 3
    put(ledger, a_job(id="b"))
    assert ledger.sequence() == 4


def test_the_latest_finished_job_of_a_path_is_found(ledger: Ledger) -> None:
    put(
        ledger,
        a_job(id="1", state=quarantined()),
        a_job(id="2", state=saved()),
        a_job(id="3"),
        a_job(id="4", path="other.jpg", state=saved()),
    )
    found = ledger.done_at("shoes/IMG_1.jpg")
    assert found is not None
    assert found.id == "2"
    assert ledger.done_at("IMG_1.jpg") is None


def staying(job: Job) -> Kept:
    return Kept(job.path, job.identity)


ELSEWHERE = Home("/photos", "/photos/out")


def test_homes_do_not_see_each_other(ledger: Ledger) -> None:
    here = a_job(id="here", state=saved())
    there = a_job(id="there", state=saved(), home=ELSEWHERE)
    put(ledger, here, there, a_job(id="busy", home=ELSEWHERE))
    assert ledger.done_at(here.path) == here
    assert ledger.done_at(here.path, ELSEWHERE) == there
    assert list(ledger.saved()) == [here]
    assert list(ledger.saved(ELSEWHERE)) == [there]
    assert ledger.kept(own=False) == [staying(here)]
    assert ledger.kept(own=True) == []
    put(ledger, replace(there, state=saved(left=True)), replace(here, state=saved(left=True)))
    assert ledger.kept(own=True) == [staying(here)]
    put(ledger, here)
    assert ledger.kept(own=True) == []
    assert ledger.unfinished() == []
    assert [job.id for job in ledger.unfinished(ELSEWHERE)] == ["busy"]
    assert ledger.unfinished(Home("/photos", "/photos")) == []


def test_totals_failures_and_deferred_are_counted(ledger: Ledger) -> None:
    put(ledger, *(a_job(id=f"s{n}", state=saved()) for n in range(3)))
    put(ledger, a_job(id="r", state=saved(reused=True)))
    put(ledger, a_job(id="q1", path="a\udce9.jpg", state=quarantined()), now=NOON + 1)
    put(ledger, a_job(id="q2", state=quarantined("empty")), now=NOON + 2)
    put(ledger, a_job(id="d", state=Deferred(NOON, Queued(), "throttled")))
    put(ledger, a_job(id="w", state=Submitting(1)))
    assert ledger.totals() == {"saved": 3, "reused": 1, "quarantined": 2}
    assert ledger.count_deferred() == 1
    assert ledger.failures() == [
        Failure("shoes/IMG_1.jpg", "empty", NOON + 2),
        Failure("a\udce9.jpg", "truncated", NOON + 1),
    ]
    assert len(ledger.failures(1)) == 1


# --- the same bytes again -----------------------------------------------------------------------


def test_cut_outs_of_the_same_bytes_are_found_newest_first(ledger: Ledger) -> None:
    old = pictured(id="old", state=saved())
    new = pictured(id="new", state=saved("b.png"), home=ELSEWHERE)
    put(ledger, old, new)
    put(ledger, pictured("0f", id="other", state=saved()), pictured(id="q", state=quarantined()))
    assert ledger.cut_outs(SHA) == [new, old]
    assert ledger.cut_outs("00") == []


BOUND: list[State] = [
    Submitting(1),
    Accepted(RECEIPT),
    Paid(RECEIPT),
    Fetched(RECEIPT, "a.png", "c0", 1),
]
PARKED = [Deferred(NOON, one, "x") for one in BOUND if isinstance(one, Accepted | Paid | Fetched)]
LOOSE: list[State] = [Queued(), Deferred(NOON, Queued(), "x"), Released("x"), quarantined()]


@pytest.mark.parametrize("state", [*BOUND, *PARKED])
def test_bytes_that_are_being_paid_for_are_not_paid_for_twice(ledger: Ledger, state: State) -> None:
    put(ledger, pictured(id="first", state=state))
    with ledger.transaction():
        assert ledger.begin_call(pictured(id="second"), TERMS, NOON) == Intent(twin="first")
        assert ledger.begin_call(pictured("0f", id="third"), TERMS, NOON).call_id
        elsewhere = pictured(id="fourth", home=ELSEWHERE)
        assert ledger.begin_call(elsewhere, TERMS, NOON).call_id
    assert [job.id for job in ledger.unfinished()] == ["first", "third"]


@pytest.mark.parametrize("state", LOOSE)
def test_bytes_that_are_not_being_paid_for_may_be_paid_for(ledger: Ledger, state: State) -> None:
    put(ledger, pictured(id="first", state=state))
    with ledger.transaction():
        assert ledger.begin_call(pictured(id="second"), TERMS, NOON).call_id == 1


def test_a_cut_out_that_was_saved_since_one_looked_is_looked_at_again(ledger: Ledger) -> None:
    put(ledger, pictured(id="first", state=saved()))
    late = pictured(id="second", checked=ledger.sequence())
    put(ledger, pictured("0f", id="other", state=saved()))
    with ledger.transaction():
        assert ledger.begin_call(replace(late, checked=0), TERMS, NOON) == Intent(twin="first")
        assert ledger.begin_call(late, TERMS, NOON).call_id == 1


def test_receipts_of_another_home_can_be_used(ledger: Ledger) -> None:
    others = [
        pictured(id="paid", state=Paid(RECEIPT), home=ELSEWHERE),
        pictured(id="parked", state=PARKED[-1], home=ELSEWHERE),
        pictured(id="asked", state=Submitting(1), home=ELSEWHERE),
        pictured(id="here", state=Paid(replace(RECEIPT, link="here"))),
        pictured("0f", id="else", state=Paid(RECEIPT), home=ELSEWHERE),
    ]
    put(ledger, *others)
    assert ledger.receipts(SHA, CONFIGURED) == [RECEIPT, RECEIPT]
    assert ledger.receipts(SHA, ELSEWHERE) == [replace(RECEIPT, link="here")]


# --- money --------------------------------------------------------------------------------------


def test_an_intent_is_a_call_without_an_outcome(ledger: Ledger) -> None:
    with ledger.transaction():
        intent = ledger.begin_call(pictured(path="caf\udce9.jpg"), TERMS, NOON)
    assert intent == Intent(call_id=1)
    under_way = Call(1, a_job().id, "caf\udce9.jpg", NOON, DAY, 0.01, None, None, None, None)
    assert ledger.call(1) == ledger.last_call(a_job().id) == under_way
    (job,) = ledger.unfinished()
    assert job.state == Submitting(1)


def test_a_call_is_completed_and_the_second_time_leaves_what_it_does_not_know(
    ledger: Ledger,
) -> None:
    number = pay(ledger, pictured(), billed=Billed.NO)
    with ledger.transaction():
        ledger.end_call(
            number,
            billed=Billed.YES,
            outcome="paid",
            status=None,
            request_id=None,
            seconds=None,
        )
    call = ledger.call(number)
    assert call is not None
    assert (call.billed, call.outcome, call.status, call.request_id) == (
        Billed.YES,
        "paid",
        200,
        "r",
    )


def test_the_latest_call_of_a_job_and_the_calls_of_a_month(ledger: Ledger) -> None:
    pay(ledger, pictured(id="a"), CallTerms(10_000, FREE, "2025-12-31"))
    put(ledger, pictured(id="a"))
    pay(ledger, pictured(id="a"), CallTerms(10_000, FREE, "2026-01-31"))
    pay(ledger, pictured("0f", id="b"), CallTerms(10_000, FREE, "2026-02-01"))
    last = ledger.last_call("a")
    assert last is not None
    assert last.id == 2
    assert [call.id for call in ledger.calls()] == [1, 2, 3]
    assert [call.id for call in ledger.calls("2026-01")] == [2]
    assert list(ledger.calls("2026-1")) == []


@pytest.mark.parametrize(
    ("budget", "spent", "wanted"),
    [
        (Budget(None, None), 10**9, None),
        (Budget(30_000, None), 20_000, None),
        (Budget(30_000, None), 20_001, "day"),
        (Budget(None, 30_000), 20_001, "month"),
    ],
)
def test_the_budget_is_asked_before_each_call(
    ledger: Ledger, budget: Budget, spent: int, wanted: str | None
) -> None:
    pay(ledger, pictured(id="a"), CallTerms(spent, FREE, DAY))
    put(ledger, pictured("0f", id="a"))
    with ledger.transaction():
        intent = ledger.begin_call(pictured("1f", id="b"), CallTerms(10_000, budget, DAY), NOON)
    assert intent.reached == wanted
    assert (intent.call_id is None) == (wanted is not None)
    assert len(list(ledger.calls())) == (1 if wanted else 2)


def test_what_is_unknown_or_under_way_counts_as_spent_and_so_do_days_to_come(
    ledger: Ledger,
) -> None:
    for number, (billed, day) in enumerate(
        [
            (Billed.YES, "2026-01-14"),
            (Billed.UNKNOWN, "2026-01-15"),
            (Billed.NO, "2026-01-15"),
            (None, "2026-01-15"),
            (Billed.YES, "2026-02-01"),
        ]
    ):
        terms = CallTerms(10**number, FREE, day)
        job = pictured(f"{number:x}", id=str(number))
        if billed is None:
            with ledger.transaction():
                ledger.begin_call(job, terms, NOON)
        else:
            pay(ledger, job, terms, billed)
    assert ledger.spent_since("2026-01-15") == 10 + 1000 + 10_000
    assert ledger.spent_since("2026-01") == 1 + 10 + 1000 + 10_000
    assert ledger.spent_since("2026-03") == 0
    assert ledger.spend("2026-01-15") == Spend(0.00101, 0.001011, 0.011011, 2, 1, 1)


def test_the_calls_of_a_job_that_was_forgotten_stay(ledger: Ledger) -> None:
    pay(ledger, pictured())
    with ledger.transaction():
        ledger.forget(a_job().id)
    assert ledger.spend(DAY).today_usd == 0.01


# --- names --------------------------------------------------------------------------------------


def reserved(ledger: Ledger, job: Job, *names: str, taken: Sequence[str] = ()) -> str:
    with ledger.transaction():
        return ledger.reserve(job, names, lambda name: name in taken)


def test_a_job_keeps_the_name_it_has_reserved(ledger: Ledger) -> None:
    put(ledger, a_job())
    assert reserved(ledger, a_job(), "a.png") == "a.png"
    assert reserved(ledger, a_job(), "b.png", taken=["a.png"]) == "a.png"


@pytest.mark.parametrize("spelt", ["a.png", "A.PNG", "A.png"])
def test_a_name_belongs_to_one_job_however_it_is_spelt(ledger: Ledger, spelt: str) -> None:
    one, two = a_job(id="1"), a_job(id="2")
    put(ledger, one, two)
    assert reserved(ledger, one, "a.png") == "a.png"
    assert reserved(ledger, two, spelt, "a-2.png") == "a-2.png"
    elsewhere = a_job(id="3", home=ELSEWHERE)
    assert reserved(ledger, elsewhere, spelt) == spelt


def test_two_spellings_of_one_letter_are_one_name(ledger: Ledger) -> None:
    one, two = a_job(id="1"), a_job(id="2")
    put(ledger, one, two)
    assert reserved(ledger, one, "caf\u00e9.png") == "caf\u00e9.png"
    assert reserved(ledger, two, "cafe\u0301.png", "b.png") == "b.png"


def test_names_that_are_no_utf8_can_be_reserved(ledger: Ledger) -> None:
    put(ledger, a_job())
    assert reserved(ledger, a_job(), "caf\udce9\n.png") == "caf\udce9\n.png"


def test_a_name_that_is_taken_on_the_disk_is_not_reserved(ledger: Ledger) -> None:
    put(ledger, a_job())
    assert reserved(ledger, a_job(), "a.png", "b.png", taken=["a.png"]) == "b.png"


def test_a_name_is_free_again_when_its_job_is_finished_and_the_file_is_gone(ledger: Ledger) -> None:
    one, two = a_job(id="1"), a_job(id="2")
    put(ledger, one, two)
    assert reserved(ledger, one, "a.png") == "a.png"
    put(ledger, replace(one, state=saved()))
    assert reserved(ledger, two, "a.png", "b.png", taken=["a.png"]) == "b.png"
    with ledger.transaction():
        ledger.unreserve("2")
    assert reserved(ledger, two, "a.png", "b.png") == "a.png"


def test_the_names_of_jobs_that_were_never_recorded_are_told_and_freed(ledger: Ledger) -> None:
    known, lost = a_job(id="known"), a_job(id="lost")
    put(ledger, known)
    reserved(ledger, known, "a.png")
    reserved(ledger, lost, "b\udce9.png")
    with ledger.transaction():
        assert ledger.orphans() == [("b\udce9.png", "lost")]
        assert ledger.orphans() == []
    assert reserved(ledger, known, "x.png") == "a.png"


# --- runs ---------------------------------------------------------------------------------------


def test_it_is_known_whether_the_run_before_ended_by_itself(tmp_path: Path) -> None:
    def run(*, ends: bool) -> bool:
        with closing(Ledger(tmp_path)) as ledger, ledger.transaction():
            clean = ledger.begin_run()
            if ends:
                ledger.end_run()
        return clean

    assert [run(ends=ends) for ends in (True, True, False, False, True, True)] == [
        *(True, True, True),
        *(False, False, True),
    ]


# --- what is put in comes back ------------------------------------------------------------------


def by_rows(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs a ledger holds after these changes, oldest change first."""
    rows: dict[str, Job] = {}
    for job in jobs:
        rows.pop(job.id, None)
        rows[job.id] = job
    return list(rows.values())


@given(st.lists(fakes.jobs, max_size=8))
@example([a_job(), pictured(state=saved()), pictured(id="b", state=saved(), home=ELSEWHERE)])
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_put_in_comes_back_after_a_reopen(jobs: list[Job]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with closing(Ledger(Path(folder))) as ledger:
            put(ledger, *jobs)
        rows = by_rows(jobs)
        with closing(Ledger(Path(folder))) as ledger:
            assert ledger.sequence() == len(jobs)
            for home in {job.home for job in rows}:
                mine = [job for job in rows if job.home == home]
                assert ledger.unfinished(home) == [one for one in mine if not finished(one.state)]
                kept = [job for job in mine if isinstance(job.state, Saved)]
                assert sorted(ledger.saved(home), key=repr) == sorted(kept, key=repr)
                for path in {job.path for job in mine}:
                    done = [one for one in mine if one.path == path and finished(one.state)]
                    assert ledger.done_at(path, home) == (done[-1] if done else None)
            for sha256 in {job.picture.sha256 for job in rows if job.picture}:
                assert ledger.cut_outs(sha256) == [
                    job
                    for job in reversed(rows)
                    if isinstance(job.state, Saved) and job.picture and job.picture.sha256 == sha256
                ]


calls = st.builds(
    Call,
    id=st.integers(1, 2**62),
    job_id=fakes.texts,
    path=fakes.paths,
    started_at=fakes.moments,
    day=st.dates().map(str),
    usd=st.integers(0, 10**9).map(lambda micro: micro / 1_000_000),
    billed=st.none() | st.sampled_from(Billed),
    outcome=st.none() | fakes.texts,
    status=st.none() | st.integers(100, 599),
    request_id=st.none() | fakes.texts,
)


@given(
    st.lists(fakes.jobs, max_size=5, unique_by=lambda job: job.id),
    st.lists(calls, max_size=5, unique_by=lambda call: call.id),
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_restored_and_salvaged_is_the_same(jobs: list[Job], paid: list[Call]) -> None:
    small = [replace(call, id=number) for number, call in enumerate(paid, 1)]
    with tempfile.TemporaryDirectory() as folder:
        with closing(Ledger(Path(folder))) as ledger, ledger.transaction():
            ledger.restore(jobs, small)
        found = salvage(Path(folder) / FILE_NAME)
    assert found.jobs == tuple(replace(job, checked=0) for job in jobs)
    assert found.calls == tuple(small)
    assert found.lost == 0


# --- together, or not at all --------------------------------------------------------------------


def test_a_transaction_that_fails_leaves_nothing(ledger: Ledger) -> None:
    with contextlib.suppress(ZeroDivisionError), ledger.transaction():
        ledger.put(a_job(), NOON)
        raise ZeroDivisionError
    assert ledger.unfinished() == []
    put(ledger, a_job())
    assert ledger.unfinished() == [a_job()]


def test_a_savepoint_that_fails_leaves_the_transaction_alone(ledger: Ledger) -> None:
    with ledger.transaction():
        ledger.put(a_job(id="1"), NOON)
        with contextlib.suppress(ZeroDivisionError), ledger.savepoint():
            ledger.put(a_job(id="2"), NOON)
            raise ZeroDivisionError
        with ledger.savepoint():
            ledger.put(a_job(id="3"), NOON)
    assert [job.id for job in ledger.unfinished()] == ["1", "3"]


@pytest.mark.parametrize(("durable", "level"), [(True, 2), (False, 1)])
def test_a_durable_transaction_waits_for_the_disk(
    ledger: Ledger, durable: bool, level: int
) -> None:
    for _ in range(2):
        with ledger.transaction(durable=not durable):
            ledger.put(a_job(), NOON)
        with ledger.transaction(durable=durable):
            assert ledger._db.execute("PRAGMA synchronous").fetchone() == (level,)
    assert ledger._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


# --- kills --------------------------------------------------------------------------------------

WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from bgremover.core.job import Paid
from bgremover.edges.ledger import Ledger
from tests.edges.test_ledger import NOON, RECEIPT, TERMS, pictured
ledger = Ledger(Path(sys.argv[1]))
for number in range(1_000_000):
    job = pictured(f"{number:064x}", id=str(number))
    with ledger.transaction(durable=sys.argv[2] == "durable"):
        call = ledger.begin_call(job, TERMS, NOON).call_id
    with ledger.transaction(durable=sys.argv[2] == "durable"):
        ledger.put(replace(job, state=Paid(replace(RECEIPT, request_id=str(number)))), NOON)
    print(number, flush=True)
"""


def writing(command: list[str]) -> "subprocess.Popen[str]":
    repository = Path(__file__).parents[2]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=repository)


@pytest.mark.parametrize("durable", ["durable", "not durable"])
def test_receipts_survive_a_kill(tmp_path: Path, durable: str) -> None:
    known = 0
    for least in (1, 7, 40):
        command = [sys.executable, "-c", WRITER, str(tmp_path / str(least)), durable]
        (tmp_path / str(least)).mkdir()
        with writing(command) as writer:
            assert writer.stdout is not None
            for _ in range(least):
                known = int(writer.stdout.readline())
            writer.kill()
            rest = writer.stdout.read().split("\n")
        assert writer.returncode == -signal.SIGKILL
        known = max([known, *(int(line) for line in rest[:-1])])
        with closing(Ledger(tmp_path / str(least))) as ledger:
            assert ledger.check() == []
            receipts = {job.id for job in ledger.unfinished() if isinstance(job.state, Paid)}
            assert receipts >= {str(number) for number in range(known + 1)}
            assert len(list(ledger.calls())) >= known + 1


def test_what_a_kill_left_in_the_log_is_seen_by_who_looks_something_up(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path), "durable"]
    with writing(command) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.kill()
    assert (tmp_path / f"{FILE_NAME}-wal").stat().st_size > 0
    with existing_ledger(tmp_path) as ledger:
        assert ledger is not None
        assert ledger.unfinished()[0].id == "0"


def test_a_log_that_was_cut_off_or_spoilt_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path), "durable"]
    with writing(command) as writer:
        assert writer.stdout is not None
        for _ in range(20):
            writer.stdout.readline()
        writer.kill()
    log = tmp_path / f"{FILE_NAME}-wal"
    os.truncate(log, log.stat().st_size - 5000)
    (tmp_path / f"{FILE_NAME}-shm").write_bytes(b"\xaa" * 32_768)
    with closing(Ledger(tmp_path)) as ledger:
        assert ledger.check() == []
        assert len(ledger.unfinished()) >= 15


# --- files and rights ---------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_nobody_else_may_read_it(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with closing(Ledger(tmp_path)) as ledger:
            put(ledger, a_job())
            names = os.listdir(tmp_path)
            assert set(names) == {FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm"}
            for name in names:
                assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600, name
    finally:
        os.umask(before)


def test_after_closing_one_file_holds_all(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path)) as ledger:
        put(ledger, a_job())
    assert os.listdir(tmp_path) == [FILE_NAME]


def test_a_state_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FolderLost, match="opening the ledger"):
        Ledger(tmp_path / "none")
    with existing_ledger(tmp_path / "none") as ledger:
        assert ledger is None


def test_a_folder_in_its_place_is_told(tmp_path: Path, path: Path) -> None:
    path.mkdir()
    with pytest.raises(DiskFailed, match="Is a directory"):
        Ledger(tmp_path)
    with pytest.raises(DiskFailed, match="Is a directory"), existing_ledger(tmp_path):
        pass
    with pytest.raises(DiskFailed, match="unable to open"):
        salvage(path)


def test_another_user_is_told_that_it_may_not_be_opened() -> None:
    with open_to_all() as folder:
        with closing(Ledger(folder)) as ledger:
            put(ledger, a_job())

        def piece() -> None:
            with pytest.raises(NoPermission, match="opening the ledger"):
                Ledger(folder)
            with pytest.raises(NoPermission), existing_ledger(folder):
                pass

        apart(piece, uid=NOBODY)


def test_looking_something_up_makes_no_ledger(tmp_path: Path, path: Path) -> None:
    with existing_ledger(tmp_path) as ledger:
        assert ledger is None
    path.touch()  # a start that was killed at once
    with existing_ledger(tmp_path) as ledger:
        assert ledger is None
    assert path.stat().st_size == 0


# --- the disk -----------------------------------------------------------------------------------


def test_a_full_disk_is_told_loses_nothing_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()

    def fill(ledger: Ledger) -> int:
        for number in range(10_000):
            try:
                put(ledger, a_job(id=str(number), path="x" * 1000))
            except DiskFull:
                return number
        raise AssertionError("it was never full")

    def piece() -> None:
        (disk / "ballast").write_bytes(bytes(512 * 1024))
        with closing(Ledger(disk)) as ledger:
            count = fill(ledger)
            assert count > 10
            assert [job.id for job in ledger.unfinished()] == [str(n) for n in range(count)]
            (disk / "ballast").unlink()
            put(ledger, a_job(id="more"))
        with closing(Ledger(disk)) as ledger:
            assert len(ledger.unfinished()) == count + 1
            assert ledger.check() == []

    apart(piece, mounts={disk: "size=1m"})


def test_without_room_for_a_new_ledger_that_is_told_and_a_later_start_succeeds(
    tmp_path: Path,
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()

    def begins() -> bool:
        try:
            Ledger(disk).close()
        except (DiskFull, DiskFailed):
            return False
        return True

    def piece() -> None:
        with open(disk / "ballast", "wb", buffering=0) as ballast:
            with contextlib.suppress(OSError):
                while ballast.write(bytes(4096)):
                    pass
            sizes = range(ballast.tell(), 0, -4096)
            outcomes = [(ballast.truncate(size), begins())[1] for size in sizes]
        assert outcomes == sorted(outcomes)
        assert 3 < outcomes.index(True) < 40

    apart(piece, mounts={disk: "size=512k"})


def test_a_disk_that_is_mounted_read_only_is_told(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()

    def piece() -> None:
        Ledger(disk).close()
        remount(disk, "ro")
        for _ in range(2):
            with pytest.raises(LocalFault) as told:
                Ledger(disk)
            assert told.value.code == "read_only"
            assert str(disk) in told.value.message

    apart(piece, mounts={disk: "size=1m"})


def test_an_end_of_room_for_files_is_told(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()

    def piece() -> None:
        with pytest.raises(DiskFull):
            Ledger(disk)

    apart(piece, mounts={disk: "size=1m,nr_inodes=1"})


# --- other processes ----------------------------------------------------------------------------

HOLDER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
db.execute("ROLLBACK")
"""


@contextlib.contextmanager
def held(path: Path) -> Iterator[Callable[[], None]]:
    """Let another process hold the ledger; yield what makes it let go."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        stdin = holder.stdin

        def let_go() -> None:
            stdin.write("go\n")
            stdin.flush()

        yield let_go


def test_a_ledger_that_another_process_holds_for_long_is_told(ledger: Ledger, path: Path) -> None:
    put(ledger, a_job(id="before"))
    with held(path) as let_go:
        ledger._db.execute("PRAGMA busy_timeout = 20")
        with pytest.raises(DiskFailed, match="database is locked"):
            put(ledger, a_job(id="now"))
        assert [job.id for job in ledger.unfinished()] == ["before"]  # reading goes on
        let_go()
    put(ledger, a_job(id="after"))
    assert [job.id for job in ledger.unfinished()] == ["before", "after"]


def test_a_ledger_that_another_process_holds_for_a_moment_is_waited_for(
    ledger: Ledger, path: Path
) -> None:
    with held(path) as let_go:
        writer = threading.Thread(target=put, args=(ledger, a_job()))
        writer.start()
        let_go()
        writer.join(20)
    assert ledger.unfinished() == [a_job()]


def test_who_looks_something_up_beside_the_daemon_sees_what_is_committed(
    ledger: Ledger, tmp_path: Path
) -> None:
    put(ledger, a_job(id="1"))
    with existing_ledger(tmp_path) as other:
        assert other is not None
        with ledger.transaction():
            ledger.put(a_job(id="2"), NOON)
            assert [job.id for job in other.unfinished()] == ["1"]
        assert [job.id for job in other.unfinished()] == ["1", "2"]


OPENER = """
import sys
from pathlib import Path
from bgremover.edges.ledger import Ledger
sys.stdin.readline()
Ledger(Path(sys.argv[1])).close()
"""


def test_many_processes_may_make_it_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPENER, str(tmp_path)]
    pipe = subprocess.PIPE
    with contextlib.ExitStack() as stack:
        crowd = [
            stack.enter_context(subprocess.Popen(command, stdin=pipe, stderr=pipe, text=True))
            for _ in range(4)
        ]
        for one in crowd:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        told = [one.communicate(timeout=60)[1] for one in crowd]
    assert told == [""] * 4
    with closing(Ledger(tmp_path)) as ledger:
        assert ledger.check() == []


# --- schemas ------------------------------------------------------------------------------------


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path, path: Path) -> None:
    Ledger(tmp_path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 999")
        db.execute("DROP TABLE names")
    before = path.read_bytes()
    for opened in (Ledger, looked_into):
        with pytest.raises(SetupError) as told:
            opened(tmp_path)
        assert "newer bgremover (schema 999, this one knows" in told.value.message
        assert "install that version again, or restore a backup from before" in told.value.message
    assert path.read_bytes() == before


def test_it_has_the_newest_schema(tmp_path: Path, path: Path) -> None:
    Ledger(tmp_path).close()
    assert version_of(path) == SCHEMA_VERSION


def test_a_ledger_of_the_first_schema_knows_which_originals_stay(
    tmp_path: Path, path: Path
) -> None:
    stays, gone = (a_job(id=str(left), state=saved(left=left)) for left in (True, False))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        assert migrate(db, _MIGRATIONS[:1]) == 1
        for job in (stays, gone):
            db.execute(
                "INSERT INTO jobs VALUES (NULL, ?, ?, ?, 'saved', 1, 0, 0, NULL, NULL, 0, ?)",
                (job.id, b"\0", b"a.jpg", encode(job)),
            )
    with closing(Ledger(tmp_path)) as ledger:
        assert ledger.kept(own=True) == [staying(stays)]
        assert {job.id for job in ledger.saved()} == {stays.id, gone.id}


STEPS = (
    "CREATE TABLE t (a INTEGER);\nINSERT INTO t VALUES (1);\n",
    "ALTER TABLE t ADD COLUMN b INTEGER NOT NULL DEFAULT 7;\n",
    "CREATE INDEX t_b ON t (b);\nINSERT INTO t VALUES (2, 8);\n",
)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "db", isolation_level=None)) as opened:
        yield opened


@pytest.mark.parametrize("older", range(4))
def test_an_older_schema_is_brought_up_step_by_step(db: sqlite3.Connection, older: int) -> None:
    assert migrate(db, STEPS[:older]) == older
    assert migrate(db, STEPS) == 3
    assert db.execute("SELECT a, b FROM t ORDER BY a").fetchall() == [(1, 7), (2, 8)]
    assert migrate(db, STEPS) == 3
    assert migrate(db, STEPS[:1]) == 3
    assert db.execute("SELECT count(*) FROM t").fetchone() == (2,)


def test_a_migration_that_fails_leaves_the_older_schema(db: sqlite3.Connection) -> None:
    migrate(db, STEPS[:1])
    broken = (*STEPS[:2], "CREATE TABLE more (a);\nCREATE TABLE t (again);\n")
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        migrate(db, broken)
    assert not db.in_transaction
    assert db.execute("PRAGMA user_version").fetchone() == (1,)
    assert db.execute("SELECT name FROM sqlite_schema").fetchall() == [("t",)]
    assert migrate(db, STEPS) == 3


class Raced(tuple[str, ...]):
    """Migrations that another process does right after this one has read the schema."""

    __slots__ = ()
    other: Callable[[], object] = staticmethod(lambda: None)

    def __len__(self) -> int:
        type(self).other()
        return super().__len__()


def test_a_migration_that_another_process_does_meanwhile_is_not_done_twice(
    db: sqlite3.Connection, tmp_path: Path
) -> None:
    def other() -> None:
        with closing(sqlite3.connect(tmp_path / "db", isolation_level=None)) as quicker:
            migrate(quicker, STEPS)

    Raced.other = staticmethod(other)
    assert migrate(db, Raced(STEPS)) == 3
    assert db.execute("SELECT count(*) FROM t").fetchone() == (2,)


# --- damage -------------------------------------------------------------------------------------

ROWS = 300


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a ledger with `ROWS` images, each with its call."""
    folder = tmp_path_factory.mktemp("sound")
    with closing(Ledger(folder)) as ledger, ledger.transaction():
        for number in range(ROWS):
            job = pictured(f"{number:064x}", id=f"job{number}", path=f"{number}.jpg")
            call = ledger.begin_call(job, TERMS, NOON).call_id
            assert call is not None
            ledger.end_call(
                call, billed=Billed.YES, outcome="x", status=200, request_id="r", seconds=1.0
            )
            ledger.put(replace(job, state=saved(f"{number}.png")), NOON)
    return (folder / FILE_NAME).read_bytes()


def overwritten(page: int, byte: bytes, content: bytes) -> bytes:
    start = page * PAGE if page >= 0 else len(content) + page * PAGE
    return content[:start] + byte * PAGE + content[start + PAGE :]


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def a_page(content: bytes) -> bytes:
    return content[:PAGE]


def zeros(content: bytes) -> bytes:
    return bytes(len(content))


def prose(_: bytes) -> bytes:
    return b"Dear diary, " * 1000


def other_magic(content: bytes) -> bytes:
    return b"X" + content[1:]


@pytest.mark.parametrize("damage", [half, a_page, zeros, prose, other_magic])
def test_a_damaged_ledger_is_refused_with_its_remedy_and_left_alone(
    tmp_path: Path, path: Path, sound: bytes, damage: Callable[[bytes], bytes]
) -> None:
    path.write_bytes(damage(sound))
    for opened in (Ledger, looked_into):
        with pytest.raises(SetupError) as told:
            opened(tmp_path)
        assert told.value.message.startswith(f"{path} is damaged (")
        assert "Restore it from a backup, or run `bgremover rebuild`" in told.value.message
    assert path.read_bytes() == damage(sound)


def test_a_ledger_that_is_refused_is_not_left_open(tmp_path: Path, path: Path) -> None:
    path.write_bytes(prose(b""))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(SetupError) as told:
        Ledger(tmp_path)
    assert os.listdir("/proc/self/fd") == before
    assert told.value.__cause__ is not None


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION])
def test_somebody_elses_database_is_refused_and_left_alone(
    tmp_path: Path, path: Path, version: int
) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE bookmarks (url)")
        db.execute(f"PRAGMA user_version = {version}")
    before = path.read_bytes()
    with pytest.raises(SetupError, match="no ledger of bgremover"):
        Ledger(tmp_path)
    assert path.read_bytes() == before


def everything(ledger: Ledger) -> None:
    list(ledger.calls())
    list(ledger.saved())
    ledger.orphans()
    ledger.totals()
    ledger.failures()
    for number in range(ROWS):
        ledger.cut_outs(f"{number:064x}")
        ledger.done_at(f"{number}.jpg")
        ledger.last_call(f"job{number}")
    if damage := ledger.check():
        raise SetupError(f"is damaged: {damage}")


@pytest.mark.parametrize("byte", [b"\0", b"\xaa", b"\xff"])
def test_damage_to_any_page_is_told_as_what_it_is(
    tmp_path: Path, path: Path, sound: bytes, byte: bytes
) -> None:
    for page in range(len(sound) // PAGE):
        path.write_bytes(overwritten(page, byte, sound))
        with pytest.raises(SetupError, match="is damaged"):
            looked_into(tmp_path, everything)


def test_damage_that_is_met_while_writing_names_the_remedy(
    tmp_path: Path, path: Path, sound: bytes
) -> None:
    path.write_bytes(overwritten(1, b"\xaa", sound))  # the root of the jobs
    with closing(Ledger(tmp_path)) as ledger:
        with pytest.raises(LedgerDamaged, match=r"is damaged .*bgremover rebuild"):
            put(ledger, a_job())
        assert ledger.check()


def spoil(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(statement)


@pytest.mark.parametrize(
    ("statement", "lost"),
    [
        ("UPDATE jobs SET body = '{}' WHERE path = CAST('5.jpg' AS BLOB)", 1),
        ("UPDATE jobs SET body = '' WHERE seq % 2 = 0", ROWS),
        ("UPDATE jobs SET body = CAST(x'ff' AS TEXT) WHERE path = CAST('5.jpg' AS BLOB)", 1),
        ("UPDATE calls SET billed = 'maybe' WHERE id = 7", 1),
    ],
)
def test_rows_that_make_no_sense_are_damage_too(
    tmp_path: Path, path: Path, sound: bytes, statement: str, lost: int
) -> None:
    path.write_bytes(sound)
    spoil(path, statement)
    with pytest.raises(SetupError, match="is damaged"):
        looked_into(tmp_path, everything)
    with closing(Ledger(tmp_path)) as ledger, pytest.raises(LedgerDamaged, match="is damaged"):  # noqa: SIM117
        with ledger.transaction():
            everything(ledger)
    found = salvage(path)
    assert found.lost == lost
    assert len(found.jobs) + len(found.calls) == 2 * ROWS - lost


# --- salvage ------------------------------------------------------------------------------------


def test_a_sound_ledger_is_salvaged_whole(path: Path, sound: bytes) -> None:
    path.write_bytes(sound)
    found = salvage(path)
    assert (len(found.jobs), len(found.calls), found.lost) == (ROWS, ROWS, 0)
    assert found.jobs[7] == pictured(f"{7:064x}", id="job7", path="7.jpg", state=saved("7.png"))
    assert found.calls[7] == Call(
        *(8, "job7", "7.jpg", NOON, DAY, 0.01, Billed.YES, "x", 200, "r"),
    )


@pytest.mark.parametrize("byte", [b"\0", b"\xaa", b"\xff"])
def test_one_damaged_page_costs_what_it_held_and_no_more(
    path: Path, sound: bytes, byte: bytes
) -> None:
    """No page belongs to both tables; only their roots stand for much."""
    lost = []
    for page in range(1, len(sound) // PAGE):
        path.write_bytes(overwritten(page, byte, sound))
        found = salvage(path)
        assert len(found.jobs) == ROWS or len(found.calls) == ROWS
        missing = 2 * ROWS - len(found.jobs) - len(found.calls)
        assert found.lost == missing
        lost.append(missing)
    assert sum(missing > 100 for missing in lost) <= 2
    assert sum(missing > 0 for missing in lost) > 10


def test_what_is_left_of_a_file_without_its_end_is_salvaged(path: Path, sound: bytes) -> None:
    path.write_bytes(half(sound))
    found = salvage(path)
    assert len(found.jobs) > ROWS / 4
    assert len(found.calls) > ROWS / 4
    assert found.lost >= 2 * ROWS - len(found.jobs) - len(found.calls)


@pytest.mark.parametrize("damage", [a_page, zeros, prose, other_magic])
def test_of_what_is_no_database_nothing_is_salvaged(
    path: Path, sound: bytes, damage: Callable[[bytes], bytes]
) -> None:
    path.write_bytes(damage(sound))
    found = salvage(path)
    assert (found.jobs, found.calls) == ((), ())


def test_rows_that_only_the_log_holds_are_salvaged(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path), "durable"]
    with writing(command) as writer:
        assert writer.stdout is not None
        for _ in range(20):
            writer.stdout.readline()
        writer.kill()
    found = salvage(tmp_path / FILE_NAME)
    assert len(found.jobs) >= 20
    assert found.lost == 0


def test_a_restored_job_looks_again_for_earlier_cut_outs(ledger: Ledger) -> None:
    """Its number is of the other ledger, whose changes were counted differently."""
    put(ledger, pictured(id="first", state=saved()))
    with ledger.transaction():
        ledger.restore([pictured(id="late", checked=10**6)], [])
    (late,) = ledger.unfinished()
    with ledger.transaction():
        assert ledger.begin_call(late, TERMS, NOON) == Intent(twin="first")


# --- pruning and copies -------------------------------------------------------------------------


def test_pruning_keeps_the_money_and_the_totals(ledger: Ledger) -> None:
    with ledger.transaction():
        ledger.put(pictured(id="kept", state=saved()), NOON)
        ledger.put(pictured(id="gone", state=saved()), NOON)
        ledger.put(pictured(id="again", state=replace(saved(), reused=True)), NOON)
        ledger.put(pictured(id="bad", state=quarantined()), NOON)
        ledger.put(pictured(id="busy"), NOON)
        ledger.restore([], [a_call(1), a_call(2)])
        before = (ledger.totals(), ledger.spend(DAY), list(ledger.calls()))
        assert ledger.prune(["gone", "again", "bad", "busy", "never"]) == 3
        assert (ledger.totals(), ledger.spend(DAY), list(ledger.calls())) == before
    assert [one.job.id for one in ledger.finished_after(0, 10)] == ["kept"]
    assert [job.id for job in ledger.unfinished()] == ["busy"]
    with ledger.transaction():
        assert ledger.prune(["gone"]) == 0
        assert ledger.totals() == before[0]


def test_finished_jobs_come_page_by_page(ledger: Ledger) -> None:
    with ledger.transaction():
        for number in range(5):
            ledger.put(pictured(id=str(number), state=saved()), NOON + number)
        ledger.put(pictured(id="elsewhere", state=saved(), home=ELSEWHERE), NOON)
    assert [(one.at - NOON, one.same) for one in ledger.finished_after(0, 2)] == [(0, 5), (1, 5)]
    found, last = list[str](), 0
    while page := ledger.finished_after(last, 2):
        assert len(page) <= 2
        found += [one.job.id for one in page]
        last = page[-1].sequence
    assert found == ["0", "1", "2", "3", "4"]


def test_vacuum_gives_room_back(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path)) as ledger:
        with ledger.transaction():
            for number in range(2000):
                ledger.put(pictured(id=str(number), state=saved()), NOON)
        with ledger.transaction():
            assert ledger.prune(map(str, range(2000))) == 2000
        (before,) = ledger._db.execute("PRAGMA page_count").fetchone()
        ledger.vacuum()
        (after,) = ledger._db.execute("PRAGMA page_count").fetchone()
        assert after < before / 10
        assert ledger.check() == []


def test_a_copy_taken_while_another_writes_is_whole(tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    with closing(Ledger(tmp_path)) as ledger, closing(Ledger(tmp_path)) as reader:
        with ledger.transaction():
            ledger.put(pictured(id="before", state=saved()), NOON)
        with ledger.transaction():
            ledger.put(pictured(id="under way", state=saved()), NOON)
            reader.backup(copies / FILE_NAME)
    assert [path.name for path in copies.iterdir()] == [FILE_NAME]
    with closing(Ledger(copies)) as copy:
        assert [one.job.id for one in copy.finished_after(0, 10)] == ["before"]
        assert copy.check() == []


# --- growth -------------------------------------------------------------------------------------

MANY = 20_000
SCANNED = {"totals", "spend", "saved", "orphans", "calls"}
"""What reads every row, as it has to: sums and lists of all there is."""

ASKED: dict[str, Callable[[Ledger], object]] = {
    "unfinished": Ledger.unfinished,
    "done_at": lambda ledger: ledger.done_at("7.jpg"),
    "cut_outs": lambda ledger: ledger.cut_outs(SHA),
    "receipts": lambda ledger: ledger.receipts(SHA, ELSEWHERE),
    "begin_call": lambda ledger: ledger.begin_call(
        pictured(), CallTerms(10_000, Budget(10**12, 10**12), DAY), NOON
    ),
    "end_open_call": lambda ledger: ledger.end_open_call(pictured(id="job7")),
    "work_alone": lambda ledger: ledger.work_alone("7"),
    "alone": Ledger.alone,
    "call": lambda ledger: ledger.call(7),
    "last_call": lambda ledger: ledger.last_call("7"),
    "failures": Ledger.failures,
    "count_deferred": Ledger.count_deferred,
    "sequence": Ledger.sequence,
    "forget": lambda ledger: ledger.forget("7"),
    "reserve": lambda ledger: ledger.reserve(a_job(), ["x.png"], lambda _: False),
    "unreserve": lambda ledger: ledger.unreserve("7"),
    "begin_run": Ledger.begin_run,
    "end_run": Ledger.end_run,
    "totals": Ledger.totals,
    "spend": lambda ledger: ledger.spend(DAY),
    "saved": lambda ledger: list(ledger.saved()),
    "kept": lambda ledger: ledger.kept(own=True),
    "calls": lambda ledger: list(ledger.calls("2026-01")),
    "orphans": Ledger.orphans,
    "finished_after": lambda ledger: ledger.finished_after(7, 10),
    "prune": lambda ledger: ledger.prune(["7"]),
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    folder = tmp_path_factory.mktemp("large")
    with closing(Ledger(folder)) as ledger:
        with ledger.transaction():
            for number in range(MANY):
                state: State = saved() if number % 10 else quarantined()
                job = pictured(f"{number:064x}", id=str(number), path=f"{number}.jpg", state=state)
                ledger.put(job, NOON + number)
            ledger.restore([], map(a_call, range(1, MANY)))
        yield ledger


def a_call(number: int) -> Call:
    day = f"2026-{1 + number % 12:02}-01"
    return Call(number, str(number), "x", NOON, day, 0.01, Billed.YES, "paid", 200, "r")


def plan(ledger: Ledger, work: Callable[[Ledger], object]) -> list[str]:
    """Return how SQLite goes about what `work` asks it."""
    statements: list[str] = []
    with contextlib.suppress(ZeroDivisionError), ledger.transaction():
        ledger._db.set_trace_callback(statements.append)
        work(ledger)
        ledger._db.set_trace_callback(None)
        raise ZeroDivisionError  # nothing of it is kept
    return [
        str(step[3])
        for statement in statements
        if not statement.startswith("--")
        for step in ledger._db.execute(f"EXPLAIN QUERY PLAN {statement}")
    ]


def reads_all(step: str) -> bool:
    """Tell whether a step grows with the ledger: the failures are read from the newest on."""
    in_order = "USING INDEX jobs_failures"
    return step.startswith("SCAN") and in_order not in step and "sqlite_sequence" not in step


@pytest.mark.parametrize("name", ASKED)
def test_what_is_asked_often_is_found_by_an_index(large: Ledger, name: str) -> None:
    steps = plan(large, ASKED[name])
    assert bool([step for step in steps if reads_all(step)]) == (name in SCANNED), steps


def test_every_question_is_among_those() -> None:
    silent = {"close", "transaction", "savepoint", "put", "end_call", "restore", "check"}
    silent |= {"vacuum", "backup"}  # they read every page
    public = {name for name in vars(Ledger) if not name.startswith("_")}
    assert public - silent - {"spent_since"} == ASKED.keys()


# --- the scribe ---------------------------------------------------------------------------------


def scribing(folder: Path, piece: Callable[[Scribe, Ledger], Any]) -> Any:  # noqa: ANN401
    async def main() -> object:
        ledger = Ledger(folder)
        scribe = Scribe(ledger)
        try:
            return await asyncio.wait_for(piece(scribe, ledger), 30)
        finally:
            await scribe.aclose()

    return asyncio.run(main())


def writes(name: str) -> Callable[[Ledger], str]:
    def work(ledger: Ledger) -> str:
        ledger.put(a_job(id=name, path=name), NOON)
        return name

    return work


def kept(folder: Path) -> list[str]:
    with closing(Ledger(folder)) as ledger:
        return [job.id for job in ledger.unfinished()]


def test_many_tasks_write_at_once_in_few_commits(tmp_path: Path) -> None:
    names = [str(number) for number in range(500)]
    commits: list[str] = []

    async def piece(scribe: Scribe, ledger: Ledger) -> list[str]:
        ledger._db.set_trace_callback(lambda text: commits.append(text) if text == "COMMIT" else 0)
        return await asyncio.gather(*(scribe.do(writes(name)) for name in names))

    assert scribing(tmp_path, piece) == names
    assert kept(tmp_path) == names
    assert 1 <= len(commits) < 20


@pytest.mark.parametrize("error", [ValueError, KeyError, OSError, sqlite3.IntegrityError])
def test_a_wish_that_fails_undoes_itself_alone(tmp_path: Path, error: type[Exception]) -> None:
    def fails(ledger: Ledger) -> None:
        writes("bad")(ledger)
        raise error("no")

    async def piece(scribe: Scribe, _: Ledger) -> object:
        wishes = (scribe.do(writes("a")), scribe.do(fails), scribe.do(writes("b")))
        return await asyncio.gather(*wishes, return_exceptions=True)

    first, failed, last = scribing(tmp_path, piece)
    assert (first, last) == ("a", "b")
    assert type(failed) is error
    assert kept(tmp_path) == ["a", "b"]


def test_a_disk_that_fails_fails_all_wishes_and_records_none(tmp_path: Path) -> None:
    def fails(_: Ledger) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error

    async def piece(scribe: Scribe, _: Ledger) -> object:
        wishes = (scribe.do(writes("a")), scribe.do(fails), scribe.do(writes("b")))
        told = await asyncio.gather(*wishes, return_exceptions=True)
        assert await scribe.do(writes("later")) == "later"
        return told

    assert [type(one) for one in scribing(tmp_path, piece)] == [DiskFailed] * 3
    assert kept(tmp_path) == ["later"]


def test_one_durable_wish_makes_its_company_durable(tmp_path: Path) -> None:
    levels: list[int] = []

    def look(ledger: Ledger) -> None:
        levels.append(ledger._db.execute("PRAGMA synchronous").fetchone()[0])

    async def piece(scribe: Scribe, _: Ledger) -> None:
        await scribe.do(look, durable=False)
        await asyncio.gather(scribe.do(look, durable=False), scribe.do(look))
        await scribe.do(look, durable=False)

    scribing(tmp_path, piece)
    assert levels == [1, 2, 2, 1]


def test_who_no_longer_waits_disturbs_nobody(tmp_path: Path) -> None:
    entered, release = threading.Event(), threading.Event()

    def slow(ledger: Ledger) -> None:
        entered.set()
        assert release.wait(20)
        writes("slow")(ledger)

    async def piece(scribe: Scribe, _: Ledger) -> None:
        waiting = asyncio.create_task(scribe.do(slow))
        await asyncio.to_thread(entered.wait, 20)
        other = asyncio.create_task(scribe.do(writes("other")))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        release.set()
        assert await other == "other"

    scribing(tmp_path, piece)
    assert kept(tmp_path) == ["slow", "other"]


def test_the_end_waits_for_what_was_asked_for(tmp_path: Path) -> None:
    async def main() -> None:
        scribe = Scribe(Ledger(tmp_path))
        wishes = [asyncio.create_task(scribe.do(writes(str(number)))) for number in range(50)]
        await asyncio.sleep(0)
        await scribe.aclose()
        assert await asyncio.gather(*wishes) == [str(number) for number in range(50)]

    asyncio.run(main())
    assert len(kept(tmp_path)) == 50


def test_who_asks_after_the_end_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        scribe = Scribe(Ledger(tmp_path))
        await scribe.aclose()
        with pytest.raises(RuntimeError, match="shutdown"):
            await asyncio.wait_for(scribe.do(writes("late")), 20)

    asyncio.run(main())


# --- in place of another ledger -----------------------------------------------------------------


def test_a_new_ledger_takes_the_place_of_the_old_one_with_the_moments_it_tells(
    tmp_path: Path,
) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"damaged")
    (tmp_path / f"{FILE_NAME}-wal").write_bytes(b"of the old one")
    failed = a_job(state=Quarantined("rejected", "{}", "a.jpg", filed=True), claimed_at=NOON - 5)
    with replacement(tmp_path) as ledger:
        ledger.restore([failed], [])
        assert (tmp_path / FILE_NAME).read_bytes() == b"damaged"
    with closing(Ledger(tmp_path)) as ledger:
        assert [found.at for found in ledger.failures()] == [NOON - 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE_NAME]


def test_a_new_ledger_that_cannot_be_filled_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"damaged")
    with pytest.raises(RuntimeError), replacement(tmp_path):
        raise RuntimeError
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"damaged"]


def test_who_was_worked_on_alone_is_known_after_a_death(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path)) as ledger:
        assert ledger.alone() is None
        ledger.work_alone("7")
    with closing(Ledger(tmp_path)) as ledger:
        assert ledger.alone() == "7"
        ledger.work_alone(None)
        assert ledger.alone() is None
