"""Blame and verdict of every fault as one table, then the rules that count."""

import errno
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from bgremover.core import errors, pacing
from bgremover.core.answer import check_link, read_generation, read_submission
from bgremover.core.errors import (
    AccountFault,
    AlreadyRunning,
    Animated,
    AttemptsExhausted,
    BadResult,
    BgremoverError,
    Billed,
    Blame,
    Blocked,
    BrokenResult,
    BudgetReached,
    ContractChanged,
    CrashLoop,
    DiskFailed,
    DiskFull,
    EmptyImage,
    EndpointMoved,
    FileFault,
    FolderLost,
    Forbidden,
    GenerationFailed,
    InternalFault,
    KeyRefused,
    LedgerDamaged,
    LinkExpired,
    LinkFailed,
    LinkRefused,
    LocalFault,
    NoPermission,
    NotAnImage,
    NoUsableAnswer,
    PaymentRequired,
    ReadOnlyDisk,
    Rejected,
    Replaced,
    ServerFailed,
    ServiceFault,
    SetupError,
    Throttled,
    TooLarge,
    TooManyOpenFiles,
    TooManyPixels,
    Truncated,
    UnknownCharge,
    Unreachable,
    Unreadable,
    Unsafe,
    UnsupportedFormat,
    Vanished,
    Withdrawn,
    local_fault,
)
from bgremover.core.job import (
    Accepted,
    Attempt,
    Deferred,
    Fetched,
    Identity,
    Job,
    Paid,
    Quarantined,
    Queued,
    Receipt,
    Released,
    Saved,
    State,
    Submitting,
)
from bgremover.core.verdict import (
    BROKEN_FETCHES,
    CRASHES,
    DOUBT,
    Defer,
    LetGo,
    Quarantine,
    Rules,
    Verdict,
    backoff,
    crash_loop,
    deadly,
    judge,
    resume_point,
    suspect,
    tolerance,
)

PACE = pacing.Pace(workers=10, base_seconds=2.0, cap_seconds=300.0)
RULES = Rules(max_attempts=5, base_seconds=2.0, cap_seconds=300.0)
RECEIPT = Receipt("gen-1", "https://ideogram.ai/x.png", 90_000.0, "req-1")
WORKING = replace(pacing.opened(PACE), limit=8, threshold=10, proven=True)
Raise = Callable[[], BgremoverError]


def image(state: State | None = None, **fields: object) -> Job:
    job = Job("a", "a.jpg", Identity(1, 2, 3, 4, 5), 0.0, state or Submitting(1))
    return replace(job, **fields)  # type: ignore[arg-type]


def attempt(outcome: str, billed: Billed = Billed.NO) -> Attempt:
    return Attempt(1, 0.0, outcome, None, None, 1.0, billed)


def fails(
    line: pacing.Line, fault: BgremoverError, name: str = "a", *, at: float = 100.0
) -> pacing.Line:
    return pacing.failed(line, name, fault, PACE, started=at - 1, now=at, chance=0.5)


def succeeds(line: pacing.Line, name: str, *, at: float) -> pacing.Line:
    return pacing.succeeded(line, name, PACE, full=False, started=at - 1, now=at)


def proven_by(count: int) -> pacing.Line:
    line = WORKING
    for number in range(count):
        line = succeeds(line, f"good-{number}", at=number / 1000)
    return line


# --- the table ------------------------------------------------------------------------------


def answered(status: int, body: bytes = b"{}", seconds: float = 3.0, **headers: str) -> Raise:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda: caught(lambda: read_submission(status, named, body, now=0.0, seconds=seconds))


def polled(status: int, body: bytes = b"{}") -> Raise:
    return lambda: caught(lambda: read_generation(status, {}, body, now=0.0))


def linked(link: str) -> Raise:
    return lambda: caught(lambda: check_link(link, "https://api.ideogram.ai", ["ideogram.ai"]))


def caught(call: Callable[[], object]) -> BgremoverError:
    with pytest.raises(BgremoverError) as raised:
        call()
    return raised.value


def said(number: int) -> Raise:
    return lambda: local_fault(OSError(number, "said so"), "saving into /srv/outbox")


def paid(kind: type[ServiceFault]) -> Raise:
    return lambda: kind("after the money", billed=Billed.YES)


@dataclass(frozen=True)
class Row:
    """A fault of the catalogue, whom it blames, what happens to the image and to the line."""

    number: str
    show: Raise
    kind: type[BgremoverError]
    blame: Blame
    image: str
    line: str
    state: State = Submitting(1)  # noqa: RUF009 - frozen


F, S, A, L = Blame.FILE, Blame.SERVICE, Blame.ACCOUNT, Blame.LOCAL
QUEUED, PAID, ACCEPTED = Queued(), Paid(RECEIPT), Accepted(RECEIPT)
FETCHED = Fetched(RECEIPT, "a.png", "sha", 7)
UNSAFE = b'{"data": [{"is_image_safe": false, "url": null}]}'

ROWS = [
    # input: nothing was asked of the API
    Row("I5", lambda: EmptyImage("0 bytes"), EmptyImage, F, "quarantine", "runs", QUEUED),
    Row("I5", lambda: NotAnImage("text"), NotAnImage, F, "quarantine", "runs", QUEUED),
    Row("I5", lambda: UnsupportedFormat("BMP"), UnsupportedFormat, F, "quarantine", "runs", QUEUED),
    Row("I5", lambda: Truncated("cut off"), Truncated, F, "quarantine", "runs", QUEUED),
    Row("I5", lambda: Animated("9 frames"), Animated, F, "quarantine", "runs", QUEUED),
    Row("I6", lambda: TooManyPixels("4 Gpixel"), TooManyPixels, F, "quarantine", "runs", QUEUED),
    Row("I7", lambda: TooLarge("30 MB"), TooLarge, F, "quarantine", "runs", QUEUED),
    Row("I9", lambda: Replaced("a link"), Replaced, F, "let go", "runs", QUEUED),
    Row("I12", lambda: Replaced("other bytes"), Replaced, F, "let go", "runs"),
    Row("I12", lambda: Vanished("deleted"), Vanished, F, "let go", "runs"),
    Row("I12", lambda: Blocked("EACCES"), Blocked, F, "let go", "runs", QUEUED),
    Row("I12", lambda: Unreadable("EIO"), Unreadable, F, "quarantine", "runs", QUEUED),
    # this machine
    Row("F1", said(errno.ENOSPC), DiskFull, L, "defer", "pauses", QUEUED),
    Row("F2", said(errno.ENOSPC), DiskFull, L, "defer", "pauses", PAID),
    Row("F2", said(errno.ENOSPC), DiskFull, L, "defer", "pauses", FETCHED),
    Row("F4", said(errno.EDQUOT), DiskFull, L, "defer", "pauses", PAID),
    Row("F4", said(errno.EROFS), ReadOnlyDisk, L, "defer", "pauses", PAID),
    Row("F5", said(errno.EIO), DiskFailed, L, "defer", "pauses", PAID),
    Row("F7", said(errno.EACCES), NoPermission, L, "defer", "pauses", Quarantined("empty", "{}")),
    Row("F8", said(errno.ENOSPC), DiskFull, L, "defer", "pauses"),
    Row("F8", lambda: LedgerDamaged("x"), LedgerDamaged, L, "defer", "pauses", PAID),
    Row("F9", said(errno.ENOENT), FolderLost, L, "defer", "pauses", QUEUED),
    Row("F12", said(errno.ESTALE), DiskFailed, L, "defer", "pauses", FETCHED),
    Row("F12", said(errno.EMFILE), TooManyOpenFiles, L, "defer", "pauses", QUEUED),
    Row("F12", said(errno.ENOMEM), TooManyOpenFiles, L, "defer", "pauses", PAID),
    # the API
    Row("A1", answered(400), Rejected, F, "quarantine", "runs"),
    Row("A1", answered(413), Rejected, F, "quarantine", "runs"),
    Row("A1", answered(415), Rejected, F, "quarantine", "runs"),
    Row("A1", answered(422), Unsafe, F, "quarantine", "runs"),
    Row("A1", answered(200, UNSAFE), Unsafe, F, "quarantine", "runs"),
    Row("A2", answered(401), KeyRefused, A, "defer", "pauses"),
    Row("A2", answered(402), PaymentRequired, A, "defer", "pauses"),
    Row("A2", answered(403), Forbidden, A, "defer", "pauses"),
    Row("A2", polled(401), KeyRefused, A, "defer", "pauses", ACCEPTED),
    Row("A2", answered(301), EndpointMoved, A, "defer", "pauses"),
    Row("A2", answered(308), EndpointMoved, A, "defer", "pauses"),
    Row("A2", answered(404), EndpointMoved, A, "defer", "pauses"),
    Row("A2", answered(405), EndpointMoved, A, "defer", "pauses"),
    Row("A2", answered(410), EndpointMoved, A, "defer", "pauses"),
    Row("A3", answered(408), Throttled, S, "defer", "slows"),
    Row("A3", answered(425), Throttled, S, "defer", "slows"),
    Row("A3", answered(429), Throttled, S, "defer", "slows"),
    Row("A3", answered(503, retry_after="9"), Throttled, S, "defer", "slows"),
    Row("A3", polled(429), Throttled, S, "defer", "slows", ACCEPTED),
    Row("A4", answered(409), ServerFailed, S, "defer", "runs"),
    Row("A5", answered(500), ServerFailed, S, "defer", "runs"),
    Row("A5", answered(502), ServerFailed, S, "defer", "runs"),
    Row("A5", answered(503), ServerFailed, S, "defer", "slows"),
    Row("A5", answered(504), ServerFailed, S, "defer", "runs"),
    Row("A5", polled(200, b'{"status": "failed"}'), GenerationFailed, S, "defer", "runs", QUEUED),
    Row("A6", answered(200, b"<html>"), NoUsableAnswer, S, "defer", "runs"),
    Row("A6", answered(200, b'{"data": []}'), NoUsableAnswer, S, "defer", "runs"),
    Row("A6", answered(511), Unreachable, S, "defer", "runs"),
    Row("A7", answered(504, seconds=265.0), NoUsableAnswer, S, "defer", "runs"),
    Row("A7", answered(524), NoUsableAnswer, S, "defer", "runs"),
    Row("A7", lambda: NoUsableAnswer("timed out"), NoUsableAnswer, S, "defer", "runs"),
    Row("A7", polled(404), NoUsableAnswer, S, "defer", "runs", ACCEPTED),
    Row("A9", linked("http://127.0.0.1/"), LinkRefused, S, "defer", "runs", PAID),
    Row("A10", paid(LinkFailed), LinkFailed, S, "defer", "runs", PAID),
    Row("A10", polled(500), LinkFailed, S, "defer", "runs", ACCEPTED),
    Row("A10", paid(LinkExpired), LinkExpired, S, "defer", "runs", PAID),
    Row("A11", paid(BrokenResult), BrokenResult, S, "defer", "runs", PAID),
    # the way to it
    Row("N1", lambda: Unreachable("no such host"), Unreachable, S, "defer", "runs"),
    Row("N2", lambda: Unreachable("refused"), Unreachable, S, "defer", "runs"),
    Row("N5", lambda: Unreachable("certificate expired"), Unreachable, S, "defer", "runs"),
    # verdicts that come back as faults, and the program itself
    Row("A1", lambda: ContractChanged("5 in a row"), ContractChanged, A, "defer", "pauses"),
    Row("A7", lambda: UnknownCharge("twice"), UnknownCharge, F, "quarantine", "runs", QUEUED),
    Row("A5", lambda: AttemptsExhausted("3 times"), AttemptsExhausted, F, "quarantine", "runs"),
    Row("A11", lambda: BadResult("3 times"), BadResult, F, "quarantine", "runs", PAID),
    Row("P7", lambda: CrashLoop("3 times"), CrashLoop, F, "quarantine", "runs", QUEUED),
    Row("P7", lambda: InternalFault("KeyError"), InternalFault, S, "defer", "runs", QUEUED),
    Row("O", lambda: BudgetReached("day", resumes_in=9.0), BudgetReached, A, "defer", "pauses"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.number}-{row.kind.code}")
def test_blame_and_verdict(row: Row) -> None:
    fault = row.show()
    assert type(fault) is row.kind
    assert blame_of(fault) is row.blame
    line = fails(WORKING, fault)
    decision = judge(image(row.state, faults=1), fault, line, RULES, 0.5)
    assert told(decision) == row.image
    assert effect(line) == row.line
    match row.blame:
        case Blame.FILE:
            assert not isinstance(decision, Defer)
        case Blame.SERVICE:
            assert isinstance(decision, Defer)
            assert decision.faults == 1
        case Blame.ACCOUNT | Blame.LOCAL:
            assert isinstance(decision, Defer)
            assert line.pause is not None
            assert line.pause.blame is row.blame
            assert line.pause.reason == row.kind.code


def blame_of(fault: BgremoverError) -> Blame:
    assert isinstance(fault, FileFault | Withdrawn | ServiceFault | AccountFault | LocalFault)
    return fault.blame


def told(decision: Verdict) -> str:
    match decision:
        case Defer():
            return "defer"
        case Quarantine():
            return "quarantine"
        case LetGo():
            return "let go"


def effect(line: pacing.Line) -> str:
    if line.pause is not None:
        return "pauses"
    return "slows" if line.limit < WORKING.limit else "runs"


def test_every_fault_has_a_row() -> None:
    def leaves(kind: type[BgremoverError]) -> set[type[BgremoverError]]:
        below = [leaves(child) for child in kind.__subclasses__() if is_ours(child)]
        return set().union(*below) if below else {kind}

    never_judged = {SetupError, AlreadyRunning}  # with these the program does not start
    assert {row.kind for row in ROWS} == leaves(BgremoverError) - never_judged


def is_ours(kind: type[object]) -> bool:
    return inspect.getmodule(kind) is errors


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.image == "quarantine"], ids=lambda row: row.kind.code
)
def test_what_is_quarantined_keeps_its_own_reason(row: Row) -> None:
    fault = row.show()
    decision = judge(image(row.state), fault, fails(WORKING, fault), RULES, 0.0)
    assert decision == Quarantine(fault)  # type: ignore[arg-type]  # the table says a FileFault


# --- where an image goes on -----------------------------------------------------------------

PAID_STATES: list[Accepted | Paid | Fetched | Saved | Quarantined] = [
    ACCEPTED,
    PAID,
    FETCHED,
    Saved("a.png", "sha", 7, RECEIPT),
    Quarantined("unsafe", "{}"),
]


@pytest.mark.parametrize("state", PAID_STATES, ids=lambda state: state.kind)
def test_an_image_goes_on_from_what_was_paid_for(
    state: Accepted | Paid | Fetched | Saved | Quarantined,
) -> None:
    assert resume_point(state) == state
    assert resume_point(Deferred(5.0, state, "throttled")) == state


@pytest.mark.parametrize("state", [QUEUED, Submitting(3), Released("vanished")])
def test_what_was_not_paid_for_is_sent_again(state: State) -> None:
    assert resume_point(state) == QUEUED


held = st.sampled_from(
    [row for row in ROWS if row.blame in (Blame.ACCOUNT, Blame.LOCAL, Blame.SERVICE)]
)
with_receipt = st.sampled_from(PAID_STATES[:3])


@given(row=held, state=with_receipt, chance=st.floats(0, 1, exclude_max=True))
def test_no_fault_of_others_costs_a_receipt(
    row: Row, state: Accepted | Paid | Fetched, chance: float
) -> None:
    fault = row.show()
    assume(not isinstance(fault, LinkExpired))  # a dead link is no receipt any more
    decision = judge(image(state), fault, fails(WORKING, fault), RULES, chance)
    if isinstance(decision, Defer):
        assert resume_point(decision.resume) == decision.resume
        assert type(decision.resume) is type(state)
        assert decision.resume.receipt == state.receipt
    else:
        assert isinstance(fault, BrokenResult)


# --- nothing but the file's faults moves the file -------------------------------------------

chances = st.floats(0, 1, exclude_max=True)
states = st.sampled_from([QUEUED, Submitting(1), *PAID_STATES])
attempts = st.lists(
    st.builds(
        attempt,
        st.sampled_from(["paid", "server_failed", "throttled", "key_refused", "killed"]),
        st.sampled_from(list(Billed)),
    ),
    max_size=6,
).map(tuple)
jobs = st.builds(image, states, attempts=attempts, faults=st.integers(0, 9))
lines = st.sampled_from(
    [
        WORKING,
        pacing.opened(PACE),
        proven_by(100),
        fails(WORKING, KeyRefused("401")),
        fails(WORKING, DiskFull("full")),
        fails(fails(fails(WORKING, NoUsableAnswer("")), NoUsableAnswer("")), NoUsableAnswer("")),
    ]
)


@given(
    job=jobs,
    line=lines,
    row=st.sampled_from([row for row in ROWS if row.blame in (Blame.ACCOUNT, Blame.LOCAL)]),
    chance=chances,
)
def test_account_and_machine_never_move_or_count_against_an_image(
    job: Job, line: pacing.Line, row: Row, chance: float
) -> None:
    fault = row.show()
    decision = judge(job, fault, fails(line, fault), RULES, chance)
    assert isinstance(decision, Defer)
    assert decision.faults == job.faults
    assert decision.resume == resume_point(job.state)
    assert 0 <= decision.seconds <= RULES.cap_seconds


@given(
    job=jobs,
    row=st.sampled_from([row for row in ROWS if row.blame is Blame.SERVICE]),
    count=st.integers(1, 60),
    chance=chances,
)
def test_an_outage_counts_against_no_image(job: Job, row: Row, count: int, chance: float) -> None:
    assume(row.kind not in (BrokenResult, LinkExpired))  # these are about one paid result
    fault, line = row.show(), WORKING
    for number in range(count):
        line = fails(line, fault, at=100.0 + 500 * number)
        decision = judge(job, fault, line, RULES, chance)
        assert isinstance(decision, Defer)
        assert decision.faults == job.faults


@given(
    job=jobs,
    line=lines,
    row=st.sampled_from(ROWS),
    chance=chances,
)
def test_every_verdict_is_sensible(job: Job, line: pacing.Line, row: Row, chance: float) -> None:
    fault = row.show()
    decision = judge(job, fault, fails(line, fault), RULES, chance)
    match decision:
        case Defer(seconds=seconds, reason=reason):
            assert 0 <= seconds <= 3600
            assert reason in {fault.code, "contract_changed"}
        case Quarantine(fault=reason):
            assert reason.blame is Blame.FILE
        case LetGo():
            assert isinstance(fault, Withdrawn)


# --- failures of the service ----------------------------------------------------------------


def fate(line: pacing.Line, fault: BgremoverError, job: Job | None = None) -> Verdict:
    return judge(job or image(), fault, line, RULES, 0.5)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (ServerFailed("500"), "attempts_exhausted"),
        (GenerationFailed("no reason"), "attempts_exhausted"),
        (InternalFault("KeyError"), "crash_loop"),
    ],
)
def test_the_third_failure_is_the_last_while_all_others_succeed(
    fault: ServiceFault, code: str
) -> None:
    line = fails(proven_by(50), fault, at=101.0)
    assert isinstance(fate(line, fault), Defer)
    line = fails(succeeds(line, "b", at=102.0), fault, at=103.0)
    assert isinstance(fate(line, fault), Defer)
    line = fails(succeeds(line, "c", at=104.0), fault, at=105.0)
    decision = fate(line, fault)
    assert isinstance(decision, Quarantine)
    assert decision.fault.code == code


def test_without_any_other_success_nothing_counts() -> None:
    fault, line = ServerFailed("500"), proven_by(50)
    for number in range(100):
        line = fails(line, fault, at=200.0 + 60 * number)
        decision = fate(line, fault)
        assert isinstance(decision, Defer)
        assert decision.faults == 0


def test_a_success_that_came_before_does_not_count() -> None:
    line = succeeds(WORKING, "b", at=10.0)
    line = fails(fails(line, ServerFailed("500"), at=20.0), ServerFailed("500"), at=30.0)
    assert not pacing.others_succeeded(line, "a")
    assert pacing.others_succeeded(succeeds(line, "b", at=31.0), "a")


def test_an_images_own_success_makes_a_new_beginning() -> None:
    fault, line = ServerFailed("500"), proven_by(50)
    for number in range(8):
        line = fails(line, fault, at=100.0 + 10 * number)
        assert isinstance(fate(line, fault), Defer)
        if number % 2:
            line = succeeds(line, "a", at=105.0 + 10 * number)
        line = succeeds(line, "b", at=106.0 + 10 * number)


def test_what_was_counted_on_the_way_into_an_outage_is_forgotten() -> None:
    fault = ServerFailed("500")
    line = fails(proven_by(50), fault, at=100.0)
    line = fails(succeeds(line, "b", at=101.0), fault, at=102.0)
    while line.pause is None:
        line = fails(line, fault, name="c", at=103.0)
    line = succeeds(line, "d", at=line.pause.next_probe_at + 3)
    assert line.pause is None
    for number in range(2):
        line = fails(succeeds(line, "e", at=9000.0 + number), fault, at=9000.5 + number)
        assert isinstance(fate(line, fault, image(faults=2)), Defer)


def test_a_probe_that_fails_is_not_held_against_its_image() -> None:
    fault = ServerFailed("500")
    line = succeeds(fails(proven_by(200), fault, at=100.0), "b", at=101.0)
    line = fails(line, KeyRefused("401"), name="c", at=102.0)
    for _ in range(9):
        assert line.pause is not None
        line = fails(line, fault, at=line.pause.next_probe_at + 1)
        decision = fate(line, fault)
        assert isinstance(decision, Defer)
        assert decision.faults == 0
    assert pacing.others_succeeded(line, "a")
    assert pacing.failure_rate(line, "a") == 0.0


def test_other_faults_on_the_way_do_not_count_against_the_image() -> None:
    line = proven_by(50)
    for number, fault in enumerate(
        [Unreachable("refused"), Throttled("429"), LinkFailed("502"), ServerFailed("500")]
    ):
        line = fails(succeeds(line, "b", at=100.0 + number), fault, at=100.5 + number)
        decision = fate(line, fault)
        assert isinstance(decision, Defer)
        assert decision.faults == 0


def test_an_image_is_given_more_attempts_while_others_fail_too() -> None:
    fault, line, calls = ServerFailed("500"), WORKING, 0
    for number in range(100):
        line = fails(line, fault, name=f"other-{number}", at=2.0 * number)
        line = succeeds(line, f"good-{number}", at=2.0 * number + 1)
    while isinstance(fate(line, fault), Defer):
        calls += 1
        line = succeeds(fails(line, fault, at=300.0 + calls), "b", at=300.5 + calls)
    assert calls == tolerance(0.5, RULES.max_attempts)


@pytest.mark.parametrize(
    ("rate", "failures"),
    [(0.0, 3), (0.02, 3), (0.021, 5), (0.03, 5), (0.11, 8), (0.5, 24), (0.9, 153), (1.0, 1000)],
)
def test_how_many_failures_are_bad_luck(rate: float, failures: int) -> None:
    assert tolerance(rate, 5) == failures


def test_a_setting_of_fewer_attempts_is_obeyed_while_all_is_well() -> None:
    assert tolerance(0.0, 2) == 2


@given(rate=st.floats(0, 1), attempts=st.integers(1, 50))
@example(rate=1 - 1e-16, attempts=5)
def test_a_row_of_failures_is_never_taken_for_poison_if_luck_explains_it(
    rate: float, attempts: int
) -> None:
    failures = tolerance(rate, attempts)
    assert failures >= 1
    if rate > 0.02:
        assert failures >= attempts
        assert failures >= 1000 or rate**failures <= DOUBT * 1.001


# --- waiting --------------------------------------------------------------------------------


@given(
    tries=st.integers(-5, 10_000),
    base=st.floats(0, 1e4),
    cap=st.floats(0, 1e6),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_a_back_off_lies_between_nothing_and_the_cap(
    tries: int, base: float, cap: float, chance: float
) -> None:
    assert 0 <= backoff(tries, Rules(5, base, cap), chance) <= cap


def test_the_back_off_doubles_and_the_jitter_is_full() -> None:
    assert [backoff(tries, RULES, 0.5) for tries in range(1, 11)] == [
        *(1, 2, 4, 8, 16, 32, 64, 128),
        *(150, 150),
    ]
    assert backoff(8, RULES, 0.0) == 0.0


@pytest.mark.parametrize("fault", [Unreachable("refused"), ServerFailed("500"), LinkFailed("502")])
def test_an_image_waits_longer_each_time(fault: ServiceFault) -> None:
    line, waits = proven_by(50), []
    for number in range(4):
        line = fails(succeeds(line, "b", at=100.0 + number), fault, at=100.0 + number)
        decision = fate(line, fault, image(PAID))
        if isinstance(decision, Defer):
            waits.append(decision.seconds)
    assert waits == [1, 2, 4, 8][: len(waits)]
    assert len(waits) >= 2


def test_a_throttled_image_waits_with_the_line_alone() -> None:
    fault = Throttled("429", retry_after=40.0)
    assert fate(fails(WORKING, fault), fault) == Defer(40.0, QUEUED, "throttled", 0)
    assert fate(WORKING, Throttled("429")) == Defer(0.0, QUEUED, "throttled", 0)


@pytest.mark.parametrize("fault", [Throttled("429", retry_after=40.0), KeyRefused("401")])
def test_polls_do_not_wait_for_the_line_and_so_wait_by_themselves(fault: BgremoverError) -> None:
    for chance in (0.0, 0.99):
        decision = judge(image(ACCEPTED), fault, fails(WORKING, fault), RULES, chance)
        assert isinstance(decision, Defer)
        least = 40.0 if isinstance(fault, Throttled) else RULES.base_seconds
        assert decision.seconds >= least


# --- refusals in a row ----------------------------------------------------------------------


def test_the_fifth_image_refused_in_a_row_is_kept() -> None:
    line, verdicts = WORKING, []
    for number in range(6):
        fault = Rejected("400")
        line = fails(line, fault, name=f"{number}", at=100.0)
        verdicts.append(told(fate(line, fault, image(Submitting(1), id=f"{number}"))))
    assert verdicts == ["quarantine"] * 4 + ["defer"] * 2
    assert line.pause is not None
    assert line.pause.reason == "contract_changed"
    assert line.pause.blame is Blame.ACCOUNT


def test_a_success_between_refusals_keeps_the_line_running() -> None:
    line = WORKING
    for number in range(20):
        line = fails(line, Rejected("400"), name=f"{number}")
        if number % 4 == 3:
            line = succeeds(line, "b", at=101.0)
        assert line.pause is None


def test_the_same_image_refused_again_is_one_image() -> None:
    line = WORKING
    for _ in range(9):
        line = fails(line, Rejected("400"))
    assert line.pause is None


# --- results --------------------------------------------------------------------------------


def test_three_broken_fetches_are_a_bad_result_that_was_paid_for() -> None:
    fault = BrokenResult("no end", billed=Billed.YES)
    job, waits = image(PAID), []
    for _ in range(BROKEN_FETCHES - 1):
        decision = fate(fails(WORKING, fault), fault, job)
        assert isinstance(decision, Defer)
        waits.append(decision.seconds)
        job = replace(job, state=decision.resume)
    assert waits == [1.0, 2.0]
    decision = fate(fails(WORKING, fault), fault, job)
    assert isinstance(decision, Quarantine)
    assert isinstance(decision.fault, BadResult)
    assert decision.fault.billed is Billed.YES


def test_an_expired_link_is_paid_for_once_more_and_never_a_third_time() -> None:
    fault = LinkExpired("404", billed=Billed.YES)
    once = image(PAID, attempts=(attempt("paid", Billed.YES),))
    decision = fate(fails(WORKING, fault), fault, once)
    assert decision == Defer(0.0, QUEUED, "link_expired", 0)
    twice = replace(once, attempts=2 * once.attempts)
    decision = fate(fails(WORKING, fault), fault, twice)
    assert isinstance(decision, Quarantine)
    assert isinstance(decision.fault, BadResult)
    assert decision.fault.billed is Billed.YES


def test_while_no_result_can_be_fetched_none_is_given_up() -> None:
    fault, line = BrokenResult("a page", billed=Billed.YES), WORKING
    for number in range(100):
        line = fails(line, fault, name=f"{number}")
    assert line.pause is not None
    almost = image(Paid(RECEIPT, broken=BROKEN_FETCHES - 1))
    decision = fate(line, fault, almost)
    assert isinstance(decision, Defer)
    assert decision.resume == almost.state


# --- unknown charges ------------------------------------------------------------------------


@pytest.mark.parametrize("sent_before", [0, 1, 5])
def test_an_unknown_charge_puts_the_image_off_and_the_next_step_decides(sent_before: int) -> None:
    unknown = attempt("no_usable_answer", Billed.UNKNOWN)
    job = image(attempts=(unknown,) * (sent_before + 1))
    fault = NoUsableAnswer("timed out")
    decision = fate(fails(WORKING, fault), fault, job)
    assert isinstance(decision, Defer)
    assert decision.resume == QUEUED
    final = UnknownCharge("asked too often", billed=Billed.UNKNOWN)
    assert fate(fails(WORKING, final), final, job) == Quarantine(final)


def test_if_everything_is_unknown_at_once_it_is_an_outage() -> None:
    line = WORKING
    for number in range(3):
        assert line.pause is None
        line = fails(line, NoUsableAnswer("timed out"), name=f"{number}")
    assert line.pause is not None
    assert line.pause.reason == "no_usable_answer"
    assert line.pause.blame is Blame.SERVICE


# --- crashes --------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [QUEUED, Submitting(1), PAID])
def test_an_image_that_killed_the_program_too_often_is_a_crash_loop(state: State) -> None:
    assert not crash_loop(image(state, crashes=CRASHES - 1))
    assert crash_loop(image(state, crashes=CRASHES))


@pytest.mark.parametrize("state", PAID_STATES[3:])
def test_what_has_come_to_its_end_is_no_crash_loop(state: State) -> None:
    assert not crash_loop(image(state, crashes=CRASHES))


@pytest.mark.parametrize("state", [FETCHED, Deferred(0.0, FETCHED, "disk_full")])
def test_a_cut_out_that_is_made_is_filed_whatever_happened_over_it(state: State) -> None:
    assert suspect(image(state, crashes=CRASHES))
    assert not crash_loop(image(state, crashes=CRASHES))
    assert deadly(image(state, crashes=CRASHES))
    assert not deadly(image(state, crashes=CRASHES - 1))
