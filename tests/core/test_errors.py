"""The tree of faults: drawn as it is, every code once, a hint wherever a person can act."""

import errno
import inspect
import os
import re
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bgremover.core import errors
from bgremover.core.errors import (
    AccountFault,
    AlreadyRunning,
    BgremoverError,
    Billed,
    Blame,
    Blocked,
    BudgetReached,
    DiskFailed,
    DiskFull,
    FileFault,
    FolderLost,
    HttpAnswer,
    LocalFault,
    NoPermission,
    NoUsableAnswer,
    ReadOnlyDisk,
    ServiceFault,
    SetupError,
    Throttled,
    TooManyOpenFiles,
    Truncated,
    Withdrawn,
    local_fault,
)

QUARANTINE_CODES = {
    "empty",
    "not_an_image",
    "unsupported_format",
    "truncated",
    "animated",
    "too_many_pixels",
    "too_large",
    "unreadable",
    "rejected",
    "unsafe",
    "bad_result",
    "unknown_charge",
    "attempts_exhausted",
    "crash_loop",
}
"""What users' scripts know. A code may be added here; none may change or go."""

FAMILIES: dict[type[BgremoverError], Blame] = {
    FileFault: Blame.FILE,
    Withdrawn: Blame.FILE,
    ServiceFault: Blame.SERVICE,
    AccountFault: Blame.ACCOUNT,
    LocalFault: Blame.LOCAL,
}

BY_NUMBER: dict[int, type[LocalFault]] = {
    errno.ENOSPC: DiskFull,
    errno.EDQUOT: DiskFull,
    errno.EFBIG: DiskFull,
    errno.EROFS: ReadOnlyDisk,
    errno.EACCES: NoPermission,
    errno.EPERM: NoPermission,
    errno.EMFILE: TooManyOpenFiles,
    errno.ENFILE: TooManyOpenFiles,
    errno.ENOMEM: TooManyOpenFiles,
    errno.ENOENT: FolderLost,
    errno.ENOTDIR: FolderLost,
    errno.ENODEV: FolderLost,
}


def below(kind: type[BgremoverError], depth: int = 0) -> Iterator[tuple[int, type[BgremoverError]]]:
    """Yield `kind` and all its subclasses in this module, in the order of the source."""
    yield depth, kind
    for sub in kind.__subclasses__():
        if sub.__module__ == errors.__name__:
            yield from below(sub, depth + 1)


TREE = list(below(BgremoverError))
LEAVES = [kind for _, kind in TREE if not kind.__subclasses__()]


def family_of(kind: type[BgremoverError]) -> type[BgremoverError] | None:
    return next((family for family in FAMILIES if issubclass(kind, family)), None)


# --- the tree -------------------------------------------------------------------------------

_DRAWN = re.compile(r"^(?P<branch>[│├└─ ]*)(?P<name>[A-Z]\w+)(?P<rest>.*)$")


def drawn() -> list[tuple[int, str, str]]:
    """Return depth, name and the word after the name of each line of the drawing."""
    found = [_DRAWN.match(line) for line in (errors.__doc__ or "").splitlines()]
    start = next(i for i, line in enumerate(found) if line and line["name"] == "BgremoverError")
    tree = []
    for line in found[start:]:
        if line is None:
            break
        word = re.match(r"\s+([a-z_]+)(\s|$)", line["rest"])
        tree.append((len(line["branch"]) // 4, line["name"], word[1] if word else ""))
    return tree


def test_the_drawing_shows_the_classes_as_they_are() -> None:
    drawing = [(depth, name) for depth, name, _ in drawn()]
    assert drawing == [(depth, kind.__name__) for depth, kind in TREE]
    assert len(drawing) > 30


def test_the_drawing_shows_the_codes_as_they_are() -> None:
    codes = {name: code for depth, name, code in drawn() if depth > 1}
    assert codes == {kind.__name__: kind.code for depth, kind in TREE if depth > 1}


def test_every_class_of_the_module_is_in_the_tree() -> None:
    classes = {kind for _, kind in inspect.getmembers(errors, inspect.isclass)}
    faults = {kind for kind in classes if issubclass(kind, BaseException)}
    assert faults == {kind for _, kind in TREE}


@pytest.mark.parametrize("name", ["FILE", "SERVICE", "ACCOUNT", "LOCAL"])
def test_the_drawing_says_whom_a_family_blames(name: str) -> None:
    families = re.findall(rf"─ (\w+) \({name}[:)]", errors.__doc__ or "")
    assert families == [kind.__name__ for kind, blame in FAMILIES.items() if blame.name == name]


# --- codes, blame, hints --------------------------------------------------------------------


def test_the_codes_of_the_quarantine_are_those_that_users_know() -> None:
    assert {kind.code for kind in LEAVES if issubclass(kind, FileFault)} == QUARANTINE_CODES


def test_no_two_faults_share_a_code() -> None:
    codes = [kind.code for kind in LEAVES]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_a_code_is_a_word_for_scripts(kind: type[BgremoverError]) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", kind.code)


@pytest.mark.parametrize(("kind", "blame"), list(FAMILIES.items()))
def test_a_family_blames_one(kind: type[BgremoverError], blame: Blame) -> None:
    assert {sub.blame for _, sub in below(kind)} == {blame}  # type: ignore[attr-defined]


def test_every_fault_but_those_of_the_start_blames_somebody() -> None:
    assert {kind for kind in LEAVES if family_of(kind) is None} == {SetupError, AlreadyRunning}


@pytest.mark.parametrize(
    "kind",
    [kind for kind in LEAVES if family_of(kind) not in {None, Withdrawn}] + [Blocked],
    ids=lambda kind: kind.__name__,
)
def test_a_hint_says_in_a_sentence_what_to_do(kind: type[BgremoverError]) -> None:
    assert len(kind.hint.split()) > 4
    assert kind.hint.endswith(".")
    assert kind.hint.isprintable()


# --- what a fault carries -------------------------------------------------------------------


def test_a_fault_carries_its_message_its_charge_and_its_answer() -> None:
    http = HttpAnswer(422, "req-1")
    fault = Truncated("cut off", billed=Billed.YES, http=http)
    assert str(fault) == fault.message == "cut off"
    assert (fault.billed, fault.http) == (Billed.YES, http)


def test_without_a_word_a_fault_cost_nothing() -> None:
    assert (Truncated("cut off").billed, Truncated("cut off").http) == (Billed.NO, None)


def test_an_answer_that_cannot_be_used_is_an_unknown_charge() -> None:
    assert NoUsableAnswer("no answer").billed is Billed.UNKNOWN


def test_a_wait_that_was_asked_for_is_carried_along() -> None:
    fault = Throttled("slower", retry_after=2.5, max_inflight=3)
    assert (fault.retry_after, fault.max_inflight, fault.billed) == (2.5, 3, Billed.NO)
    assert (Throttled("slower").retry_after, Throttled("slower").max_inflight) == (None, None)


def test_a_budget_says_when_it_begins_anew() -> None:
    assert BudgetReached("1 of 1 USD is spent", resumes_in=3600.0).resumes_in == 3600.0


# --- what the operating system says ---------------------------------------------------------


@pytest.mark.parametrize("number", sorted(errno.errorcode), ids=errno.errorcode.__getitem__)
def test_every_number_of_the_operating_system_is_a_fault_of_this_machine(number: int) -> None:
    fault = local_fault(OSError(number, os.strerror(number)), "saving into /srv/outbox")
    assert type(fault) is BY_NUMBER.get(number, DiskFailed)
    assert fault.message == f"saving into /srv/outbox: {os.strerror(number)}"
    assert fault.billed is Billed.NO


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("the share went away"), "reading /srv: the share went away"),
        (
            OSError(errno.EIO, "Input/output error", "/srv/a\n.jpg"),
            "reading /srv: Input/output error",
        ),
        (TimeoutError("timed out"), "reading /srv: timed out"),
        (OSError(99_999, "what is this"), "reading /srv: what is this"),
    ],
)
def test_what_has_no_class_of_its_own_is_a_failed_disk(error: OSError, message: str) -> None:
    fault = local_fault(error, "reading /srv")
    assert type(fault) is DiskFailed
    assert fault.message == message


@given(st.integers(-(2**31), 2**31 - 1), st.text(min_size=1))
@example(errno.ENOSPC, "No space left on device")
def test_no_number_goes_without_a_fault(number: int, said: str) -> None:
    fault = local_fault(OSError(number, said), "saving")
    assert type(fault) is BY_NUMBER.get(number, DiskFailed)
    assert fault.message == f"saving: {said}"
