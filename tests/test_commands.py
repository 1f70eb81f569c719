"""What stands beside the work: status, health, check, retry, init, schema, plan."""

import asyncio
import base64
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from bgremover.cli import commands, guarded
from bgremover.commands.care import old_path
from bgremover.core.budget import Budget
from bgremover.core.errors import AccountFault, Billed, LocalFault
from bgremover.core.job import (
    Deferred,
    Identity,
    Job,
    Paid,
    Picture,
    Quarantined,
    Queued,
    Receipt,
    Saved,
    State,
)
from bgremover.core.naming import candidates
from bgremover.edges.ledger import FILE_NAME, CallTerms, Ledger
from bgremover.edges.supervisor import SOCKET_NAME, StatusSocket
from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox
from tests.site import KEY, Site, photo, until

NOWHERE = "http://127.0.0.1:9"
NOON = 1_769_860_800.0  # 2026-01-31T12:00:00Z
EMPTY: dict[str, Any] = {
    "state": "stopped",
    "pause": None,
    "queue": {"waiting": 0, "in_flight": 0, "deferred": 0, "held": 0},
    "totals": {"saved": 0, "reused": 0, "quarantined": 0},
    "spend": {
        "today_usd": 0.0,
        "month_usd": 0.0,
        "total_usd": 0.0,
        "billed": 0,
        "unknown": 0,
        "under_way": 0,
    },
    "latest_failures": [],
}


def call(site: Site, name: str, *arguments: str, **environment: str) -> Result:
    """Run a command in this process; its answer has stdout, stderr and the exit code."""

    @click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
    @click.pass_context
    def main(context: click.Context) -> None:
        guarded(lambda: commands.main(context.args, standalone_mode=True))

    line = [name, *arguments] if name in {"init", "schema"} else [name, "-c", str(site.config)]
    line += [] if name in {"init", "schema"} else arguments
    env = {"IDEOGRAM_API_KEY": KEY, **environment}
    return CliRunner().invoke(main, line, env=env, catch_exceptions=False)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, NOWHERE)


def a_job(path: str, number: int, state: State, picture: str | None = None) -> Job:
    identity = Identity(1, number, 10, 20, 30)
    seen = Picture(picture, "JPEG", 96, 72) if picture else None
    return Job(f"{number:032x}", path, identity, NOON, state, picture=seen)


def write_ledger(site: Site, *jobs: Job) -> None:
    site.state.mkdir(exist_ok=True)
    ledger = Ledger(site.state)
    for job in jobs:
        ledger.put(job, NOON)
    ledger.close()


def pay(site: Site, billed: Billed | None, day: str) -> None:
    ledger = Ledger(site.state)
    job = a_job("paid.jpg", int(time.time_ns()), Queued(), picture="p" * 64)
    intent = ledger.begin_call(job, CallTerms(10_000, Budget(), day), NOON)
    ledger.forget(job.id)
    if billed is not None and intent.call_id is not None:
        ledger.end_call(
            intent.call_id, billed=billed, outcome="x", status=None, request_id=None, seconds=1.0
        )
    ledger.close()


def local(hour: int, minute: int) -> str:
    """A moment of the last day of January 2026 as the commands show it."""
    moment = datetime(2026, 1, 31, hour, minute, tzinfo=UTC)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def today() -> str:
    return time.strftime("%Y-%m-%d")


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """All there is below a folder, with size and time of change."""
    found = {path: path.lstat() for path in root.rglob("*")}
    return {str(path): (at.st_size, at.st_mtime_ns) for path, at in found.items()}


# --- a daemon that only answers ---------------------------------------------------------------


def live(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    queue = {"waiting": 3, "in_flight": 2, "deferred": 1, "held": 0}
    return {
        "state": "running",
        "pause": None,
        "queue": queue,
        "ailment": None,
        "pid": 4711,
        **changes,
    }


def paused(reason: str = "payment_required", detail: str = "insufficient_funds") -> dict[str, Any]:
    pause = {
        "reason": reason,
        "detail": detail,
        "since": "2026-01-31T12:00:00Z",
        "next_probe_at": "2026-01-31T12:15:00Z",
    }
    return live(state="paused", pause=pause)


@contextmanager
def answering(site: Site, answer: dict[str, Any]) -> Iterator[None]:
    """Answer on the status socket as the daemon does, from a loop of its own."""
    site.state.mkdir(exist_ok=True)
    up, over = threading.Event(), threading.Event()

    async def main() -> None:
        async with StatusSocket(site.state, lambda: answer):
            up.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        assert up.wait(10)
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def stalled(site: Site) -> Iterator[None]:
    """Listen on the status socket with a queue that is full already."""
    site.state.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(site.state / SOCKET_NAME))
        listener.listen(0)
        first.connect(str(site.state / SOCKET_NAME))
        yield


# --- help -------------------------------------------------------------------------------------


def test_the_list_of_commands_fits_into_80_columns_and_cuts_no_sentence_off() -> None:
    told = CliRunner().invoke(commands, ["--help"], terminal_width=80).stdout
    rows = told.partition("Commands:\n")[2].splitlines()
    assert [row.split()[0] for row in rows] == sorted(commands.commands)
    whole = [row for row in rows if row.endswith(".") and not row.endswith("...")]
    assert whole == rows
    assert max(map(len, rows)) <= 80


# --- status -----------------------------------------------------------------------------------


def status(site: Site) -> dict[str, Any]:
    told = call(site, "status", "--json")
    assert told.exit_code == 0, told.stderr
    document: dict[str, Any] = json.loads(told.stdout)
    return document


def test_status_of_a_place_where_nothing_ran_yet_is_all_zeros_and_writes_nothing(
    site: Site,
) -> None:
    before = tree(site.root)
    document = status(site)
    assert document == EMPTY
    assert list(document) == list(EMPTY)
    assert tree(site.root) == before


def test_status_without_a_daemon_is_what_the_ledger_and_the_inbox_say(site: Site) -> None:
    for name in ("a.jpg", "deep/b.jpg", "later.jpg", ".hidden.jpg"):
        site.drop(name, photo())
    write_ledger(
        site,
        a_job("s.jpg", 1, Saved("s.png", "x", 1, filed=True)),
        a_job("r.jpg", 2, Saved("r.png", "x", 1, reused=True, filed=True)),
        a_job("caf\udce9.jpg", 3, Quarantined("unsafe", "{}", "q.jpg", filed=True)),
        a_job("later.jpg", 4, Deferred(NOON, Queued(), "server_failed")),
    )
    pay(site, Billed.YES, today())
    pay(site, Billed.UNKNOWN, today())
    pay(site, Billed.NO, today())
    pay(site, Billed.YES, "2020-01-01")
    document = status(site)
    assert list(document) == list(EMPTY)
    assert document["state"] == "stopped"
    assert document["queue"] == {"waiting": 2, "in_flight": 0, "deferred": 1, "held": 0}
    assert document["totals"] == {"saved": 1, "reused": 1, "quarantined": 1}
    assert document["spend"] == {
        "today_usd": 0.02,
        "month_usd": 0.02,
        "total_usd": 0.03,
        "billed": 2,
        "unknown": 1,
        "under_way": 0,
    }
    assert document["latest_failures"] == [
        {"file": "caf\\xe9.jpg", "code": "unsafe", "at": "2026-01-31T12:00:00Z"}
    ]


def test_kept_originals_do_not_wait(tmp_path: Path) -> None:
    site = Site(tmp_path, NOWHERE, originals="keep")
    kept = site.drop("kept.jpg", photo(1))
    changed = site.drop("changed.jpg", photo(2))
    identities = {path.name: Identity.of(path.stat()) for path in (kept, changed)}
    changed.write_bytes(photo(3) + b"more")
    write_ledger(
        site,
        *(
            Job(str(number), name, identity, NOON, Saved("x.png", "x", 1, filed=True))
            for number, (name, identity) in enumerate(identities.items())
        ),
    )
    assert status(site)["queue"]["waiting"] == 1


def test_status_of_a_running_daemon_is_what_it_says(site: Site) -> None:
    site.drop("not-counted-here.jpg", photo())
    with answering(site, paused()):
        document = status(site)
    assert document == {
        **EMPTY,
        "state": "paused",
        "pause": paused()["pause"],
        "queue": {"waiting": 3, "in_flight": 2, "deferred": 1, "held": 0},
    }


def test_status_in_words_names_the_pause_and_what_to_do(site: Site) -> None:
    with answering(site, paused()):
        told = call(site, "status")
    assert told.exit_code == 0
    for words in (
        "bgremover is paused (pid 4711)",
        "payment required (insufficient_funds)",
        local(12, 0),
        local(12, 15),
        "Top up the Ideogram account",
        "3 waiting, 2 in flight, 1 deferred",
    ):
        assert words in told.stdout


def test_status_in_words_shows_spend_beside_the_budget_and_the_latest_failures(
    tmp_path: Path,
) -> None:
    site = Site(tmp_path, NOWHERE, budget={"per_day_usd": 5})
    write_ledger(site, a_job("shoes/a.jpg", 1, Quarantined("unsafe", "{}", "a.jpg", filed=True)))
    pay(site, Billed.YES, today())
    told = call(site, "status").stdout
    assert "bgremover is stopped" in told
    assert "$0.01 of $5.00 today, $0.01 this month, $0.01 in all" in told
    assert "calls: 1 billed, 0 may have been billed" in told
    assert f"{local(12, 0)}  unsafe  shoes/a.jpg" in told


def test_status_tells_what_lies_in_quarantine_now_beside_what_ever_did(site: Site) -> None:
    jobs = [a_job(f"{n}.jpg", n, Quarantined("empty", "{}", f"{n}.jpg")) for n in range(3)]
    write_ledger(site, *jobs)
    told = call(site, "status").stdout
    assert "3 quarantined so far" in told
    assert "0 images there now" in told
    quarantine(site, "2.jpg", {})
    assert "1 image there now" in call(site, "status").stdout


@pytest.mark.parametrize("running", [False, True])
def test_status_and_plan_tell_of_files_that_are_held(site: Site, running: bool) -> None:
    for name in ("a.jpg", "shoes/b.jpg", "shoes/red/c.jpg", "shoes/red/.hidden.jpg"):
        site.drop(name, photo())
    (site.inbox / "shoes/.bgremover.yaml").write_text("originals: burn\n")
    queue = {"waiting": 1, "in_flight": 0, "deferred": 0, "held": 2}
    with answering(site, live(queue=queue)) if running else nullcontext():
        assert status(site)["queue"] == queue
        told = call(site, "status").stdout
        planned = call(site, "plan").stdout
    assert "2 files: a .bgremover.yaml is wrong; `bgremover plan` says how" in told
    assert "2 files, until a .bgremover.yaml is mended" in planned
    assert "shoes/.bgremover.yaml: holds its folder: " in planned
    assert "2 files, for their name or their folder" in planned


def test_status_in_words_tells_of_an_ailment(site: Site) -> None:
    with answering(site, live(ailment="the inbox is lost")):
        assert "the inbox is lost" in call(site, "status").stdout


def concrete(*bases: type[Any]) -> list[type[Any]]:
    return [kind for base in bases for kind in base.__subclasses__()]


@pytest.mark.parametrize("kind", concrete(AccountFault, LocalFault))
def test_status_has_a_remedy_for_every_reason_to_pause(tmp_path: Path, kind: type[Any]) -> None:
    site = Site(tmp_path, NOWHERE)
    with answering(site, paused(kind.code)):
        assert kind.hint in call(site, "status").stdout
    assert kind.hint


def test_status_of_a_stalled_daemon_says_so(site: Site) -> None:
    with stalled(site):
        told = call(site, "status", "--json")
    assert (told.exit_code, told.stdout) == (1, "")
    assert "stalls" in told.stderr


def test_status_of_a_damaged_ledger_says_what_to_do(site: Site) -> None:
    site.state.mkdir()
    (site.state / FILE_NAME).write_bytes(b"no database at all" * 300)
    told = call(site, "status")
    assert told.exit_code == 78
    assert "Restore it from a backup" in told.stderr


def test_a_ledger_that_is_damaged_within_is_told_like_any_other(site: Site) -> None:
    write_ledger(site, *(a_job(f"{number}.jpg", number, Queued()) for number in range(200)))
    path = site.state / FILE_NAME
    content = bytearray(path.read_bytes())
    content[4096:] = b"\x5a" * (len(content) - 4096)
    path.write_bytes(content)
    told = call(site, "status")
    assert told.exit_code == 78
    assert "Restore it from a backup" in told.stderr


def test_an_inbox_that_is_gone_is_a_warning_and_no_end(site: Site) -> None:
    site.inbox.rmdir()
    told = call(site, "status", "--json")
    assert told.exit_code == 0
    assert json.loads(told.stdout) == EMPTY
    assert str(site.inbox) in told.stderr


AS_NOBODY = """
import os, sys
import bgremover.edges.ledger, bgremover.timing, bgremover.wiring
from bgremover.commands import looking
from bgremover.core.errors import SetupError
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for config in sys.argv[1:]:
    try:
        looking.status(config, as_json=True)
    except SetupError as fault:
        print(fault)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_another_users_state_is_refused_with_a_word() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        sites = [Site(Path(folder) / f"{mode:o}", NOWHERE) for mode in (0o700, 0o755)]
        for site in sites:
            write_ledger(site)
            site.state.chmod(int(site.root.name, 8))
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, *(str(site.config) for site in sites)],
            capture_output=True,
            text=True,
            check=True,
        )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("Permission denied" in line and "ask as that user" in line for line in lines)


@pytest.mark.parametrize("command", ["status", "check"])
def test_a_terminal_gets_colours_unless_they_are_not_wanted(site: Site, command: str) -> None:
    assert "\x1b[" in site.at_terminal(command, NO_COLOR="")
    assert "\x1b[" not in site.at_terminal(command, NO_COLOR="1")
    assert "\x1b[" not in site.command(command).stdout


# --- health -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "arguments", "code", "words"),
    [
        (live(), (), 0, "running"),
        (live(), ("--strict",), 0, "running"),
        (paused(), (), 0, "paused: payment required (insufficient_funds)"),
        (paused(), ("--strict",), 1, "paused: payment required (insufficient_funds)"),
        (live(ailment="the inbox is lost"), (), 1, "the inbox is lost"),
        (paused() | {"ailment": "the inbox is lost"}, (), 1, "the inbox is lost"),
    ],
)
def test_health_is_what_the_daemon_says(
    site: Site, answer: dict[str, Any], arguments: tuple[str, ...], code: int, words: str
) -> None:
    with answering(site, answer):
        told = call(site, "health", *arguments)
    assert told.exit_code == code
    assert (told.stderr if code else told.stdout).endswith(words + "\n")
    assert (told.stdout if code else told.stderr) == ""
    assert len(told.output.splitlines()) == 1


def test_health_without_a_daemon_is_ill(site: Site) -> None:
    told = call(site, "health")
    assert told.exit_code == 1
    assert told.stderr == f"bgremover: no daemon runs with the state folder {site.state}\n"


def test_health_of_a_stalled_daemon_is_ill(site: Site) -> None:
    with stalled(site):
        told = call(site, "health")
    assert told.exit_code == 1
    assert "stalls" in told.stderr
    assert len(told.output.splitlines()) == 1


def test_health_imports_nothing_that_is_slow() -> None:
    slow = {"httpx", "PIL", "sqlite3", "structlog", "rich", "starlette", "watchdog"}
    program = f"import sys, bgremover.commands.looking; print(sorted({slow} & set(sys.modules)))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env={}, capture_output=True, check=True)
    assert done.stdout == b"[]\n"


# --- retry ------------------------------------------------------------------------------------


def quarantine(site: Site, name: str, report: dict[str, Any] | None = None) -> bytes:
    """Put an image into quarantine, with its report if one is given."""
    path = site.quarantine / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = os.fsencode(f"picture {name}")
    path.write_bytes(content)
    if report is not None:
        told = {"schema": "bgremover.error/1", "file": name, "code": "truncated", **report}
        Path(f"{path}.error.json").write_text(json.dumps(told), encoding="utf-8")
    return content


def three(site: Site) -> None:
    quarantine(site, "shoes/a.jpg", {})
    quarantine(site, "shoes/b.png", {"code": "unsafe"})
    quarantine(site, "c[1].jpg", {})


ALL = {"shoes/a.jpg", "shoes/b.png", "c[1].jpg"}


@pytest.mark.parametrize(
    ("arguments", "back"),
    [
        (("shoes/a.jpg",), {"shoes/a.jpg"}),
        (("shoes/a.jpg.error.json",), {"shoes/a.jpg"}),
        (("c[1].jpg",), {"c[1].jpg"}),
        (("shoes/*.jpg",), {"shoes/a.jpg"}),
        (("*.jpg",), {"shoes/a.jpg", "c[1].jpg"}),
        (("*.jpg.error.json",), {"shoes/a.jpg", "c[1].jpg"}),
        (("shoes",), {"shoes/a.jpg", "shoes/b.png"}),
        (("shoes/",), {"shoes/a.jpg", "shoes/b.png"}),
        (("shoes/a.jpg", "c[1].jpg"), {"shoes/a.jpg", "c[1].jpg"}),
        (("--code", "unsafe"), {"shoes/b.png"}),
        (("--code", "truncated", "shoes"), {"shoes/a.jpg"}),
        (("--all",), ALL),
        (("--all", "--code", "truncated"), {"shoes/a.jpg", "c[1].jpg"}),
    ],
)
def test_retry_moves_what_is_meant_and_nothing_else(
    site: Site, arguments: tuple[str, ...], back: set[str]
) -> None:
    three(site)
    told = call(site, "retry", *arguments)
    assert told.exit_code == 0, told.stderr
    assert site.files(site.inbox) == back
    left = ALL - back
    assert site.files(site.quarantine) == left | {f"{name}.error.json" for name in left}
    assert all(name in told.stdout for name in back)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("no.jpg",), "nothing matches no.jpg"),
        (("*.gif", "no.jpg"), "nothing matches no.jpg"),
        (("--code", "no_such"), "no_such"),
        (("shoes/a.jpg", "--code", "unsafe"), "unsafe"),
    ],
)
def test_retry_of_nothing_says_so(site: Site, arguments: tuple[str, ...], words: str) -> None:
    three(site)
    told = call(site, "retry", *arguments)
    assert told.exit_code == 1
    assert words in told.stderr
    assert site.files(site.inbox) == set()


def test_retry_moves_the_rest_when_one_name_matches_nothing(site: Site) -> None:
    three(site)
    told = call(site, "retry", "no.jpg", "shoes/a.jpg")
    assert told.exit_code == 1
    assert "nothing matches no.jpg" in told.stderr
    assert site.files(site.inbox) == {"shoes/a.jpg"}


def test_retry_of_an_empty_or_missing_quarantine_finds_nothing(site: Site) -> None:
    assert call(site, "retry", "--all").exit_code == 1
    site.quarantine.mkdir()
    assert call(site, "retry", "--all").exit_code == 1


def test_retry_takes_a_path_as_a_shell_completes_it(site: Site) -> None:
    three(site)
    told = call(site, "retry", str(site.quarantine / "shoes/a.jpg"))
    assert told.exit_code == 0, told.stderr
    assert site.files(site.inbox) == {"shoes/a.jpg"}


def test_retry_never_overwrites(site: Site) -> None:
    content = quarantine(site, "a.jpg", {})
    site.drop("a.jpg", b"mine")
    site.drop("a-2.jpg", b"mine too")
    told = call(site, "retry", "a.jpg")
    assert told.exit_code == 0
    assert "a-3.jpg" in told.stdout
    assert (site.inbox / "a.jpg").read_bytes() == b"mine"
    assert (site.inbox / "a-2.jpg").read_bytes() == b"mine too"
    assert (site.inbox / "a-3.jpg").read_bytes() == content
    assert site.files(site.quarantine) == set()


def test_retry_gives_a_renamed_image_its_old_name_back(site: Site) -> None:
    content = quarantine(site, "shoes/a-2.jpg", {"file": "shoes/a.jpg"})
    assert call(site, "retry", "--all").exit_code == 0
    assert (site.inbox / "shoes/a.jpg").read_bytes() == content


def test_retry_moves_an_image_without_a_report_too(site: Site) -> None:
    quarantine(site, "a.jpg")
    quarantine(site, "b.jpg", {})
    (site.quarantine / "b.jpg.error.json").write_text("no JSON")
    assert call(site, "retry", "--all").exit_code == 0
    assert site.files(site.inbox) == {"a.jpg", "b.jpg"}


def test_retry_leaves_reports_without_an_image_and_litter(site: Site) -> None:
    site.quarantine.mkdir()
    for name in ("gone.jpg.error.json", ".DS_Store", "Thumbs.db", ".bgremover-1234"):
        (site.quarantine / name).write_bytes(b"{}")
    (site.quarantine / "link.jpg").symlink_to(site.config)
    before = tree(site.quarantine)
    assert call(site, "retry", "--all").exit_code == 1
    assert tree(site.quarantine) == before


def test_retry_knows_an_image_that_is_called_like_a_report(site: Site) -> None:
    content = quarantine(site, "a.error.json", {})
    assert call(site, "retry", "--all").exit_code == 0
    assert site.files(site.inbox) == {"a.error.json"}
    assert (site.inbox / "a.error.json").read_bytes() == content
    assert site.files(site.quarantine) == set()


def test_retry_of_names_that_are_no_utf8(site: Site) -> None:
    told = {"file": "caf\\xe9.jpg", "file_b64": base64.b64encode(b"caf\xe9.jpg").decode()}
    quarantine(site, "caf\udce9.jpg", told)
    quarantine(site, "caf\udce9-2.jpg", told)
    answer = call(site, "retry", "--all")
    assert answer.exit_code == 0
    assert "caf\\xe9.jpg" in answer.stdout
    assert site.files(site.inbox) == {"caf\udce9.jpg", "caf\udce9-2.jpg"}


@pytest.mark.parametrize(
    ("name", "report", "path"),
    [
        ("a.jpg", {"file": "a.jpg"}, "a.jpg"),
        ("a-2.jpg", {"file": "a-2.jpg"}, "a-2.jpg"),
        ("a-2.jpg", {"file": "a.jpg"}, "a.jpg"),
        ("d/a-17.jpg", {"file": "d/a.jpg"}, "d/a.jpg"),
        ("a-2.jpg", {}, "a-2.jpg"),
        ("\udcff-2.jpg", {"file": "\\xff.jpg", "file_b64": "/y5qcGc="}, "\udcff.jpg"),
        ("a.jpg", {"file": "../../a.jpg"}, "a.jpg"),
        ("a.jpg", {"file": "/etc/a.jpg"}, "a.jpg"),
        ("a.jpg", {"file": "other.jpg"}, "a.jpg"),
        ("a.jpg", {"file": 3, "file_b64": ["x"]}, "a.jpg"),
        ("a.jpg", {"file": "\ud800", "file_b64": "?"}, "a.jpg"),
        ("a.jpg", {"file_b64": base64.b64encode(b"../a.jpg").decode()}, "a.jpg"),
    ],
)
def test_a_report_is_believed_only_where_it_explains_the_name(
    name: str, report: dict[str, Any], path: str
) -> None:
    assert old_path(name, report) == path


def test_the_old_path_of_a_name_that_was_cut_is_known() -> None:
    long = "a" * 250 + ".jpg"
    cut = next(candidates(long, 244))
    assert old_path(cut, {"file": long}) == long


def test_retry_does_not_follow_a_link_that_was_planted_in_the_inbox(
    site: Site, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (site.inbox / "shoes").symlink_to(elsewhere)
    quarantine(site, "shoes/a.jpg", {})
    told = call(site, "retry", "--all")
    assert told.exit_code == 1
    assert "shoes/a.jpg" in told.stderr
    assert list(elsewhere.iterdir()) == []
    assert site.files(site.quarantine) == {"shoes/a.jpg", "shoes/a.jpg.error.json"}


def test_retry_of_an_image_whose_folder_is_a_file_now(site: Site) -> None:
    site.drop("shoes", b"a file")
    quarantine(site, "shoes/a.jpg", {})
    quarantine(site, "b.jpg", {})
    told = call(site, "retry", "--all")
    assert told.exit_code == 1
    assert "no folder" in told.stderr
    assert site.files(site.inbox) == {"shoes", "b.jpg"}
    assert site.files(site.quarantine) == {"shoes/a.jpg", "shoes/a.jpg.error.json"}


def test_retry_without_an_inbox_moves_nothing(site: Site) -> None:
    quarantine(site, "a.jpg", {})
    site.inbox.rmdir()
    told = call(site, "retry", "--all")
    assert told.exit_code == 69
    assert str(site.inbox) in told.stderr
    assert site.files(site.quarantine) == {"a.jpg", "a.jpg.error.json"}


def test_retry_across_file_systems_moves_whole_files(site: Site) -> None:
    shm = Path("/dev/shm")  # noqa: S108 - a file system that is another one than tmp_path's
    if not shm.is_dir() or shm.stat().st_dev == site.root.stat().st_dev:
        pytest.skip("needs /dev/shm to be a file system of its own")
    content = quarantine(site, "deep/er/a.jpg", {})
    far = shm / f"bgremover-test-{os.getpid()}"
    site.inbox.rmdir()
    try:
        far.mkdir()
        site.inbox.symlink_to(far)
        assert call(site, "retry", "--all").exit_code == 0
        assert (far / "deep/er/a.jpg").read_bytes() == content
        assert site.files(far) == {"deep/er/a.jpg"}
    finally:
        shutil.rmtree(far)
    assert site.files(site.quarantine) == set()


def test_retry_says_what_to_name(site: Site) -> None:
    told = call(site, "retry")
    assert told.exit_code == 2
    assert "--all" in told.stderr


def test_a_retried_image_is_cut_out_by_a_running_daemon(tmp_path: Path) -> None:
    with RunningSandbox(SandboxOptions(key=KEY, latency_seconds=0.01)) as sandbox:
        site = Site(tmp_path, sandbox.url)
        with site.running() as daemon:
            site.drop("shoes/unsafe.jpg", photo(7))
            daemon.until_event("image.quarantined")
            until(lambda: len(site.files(site.quarantine)) == 2)
            first = call(site, "retry", "shoes/unsafe.jpg")
            assert first.exit_code == 0, first.stderr
            daemon.until_event("image.quarantined", 2)
            daemon.end()
        assert sandbox.state.submissions == 2
        assert site.files(site.inbox) == set()
        assert site.files(site.quarantine) == {
            "shoes/unsafe.jpg",
            "shoes/unsafe.jpg.error.json",
        }


# --- check ------------------------------------------------------------------------------------


def test_check_of_a_sound_set_up_says_what_is_in_use(site: Site) -> None:
    told = call(site, "check", HTTPS_PROXY="http://me:secret@proxy.example:3128")
    assert told.exit_code == 0, told.output
    for words in (
        str(site.config),
        *(str(folder) for folder in (site.inbox, site.outbox, site.quarantine, site.archive)),
        "is made at the first start",
        NOWHERE,
        "HTTPS_PROXY from the environment: proxy.example:3128",
        "All is well.",
    ):
        assert words in told.stdout
    assert "secret" not in told.output
    assert KEY not in told.output
    assert not site.state.exists()


def test_check_shows_the_way_out_and_no_secret(tmp_path: Path) -> None:
    site = Site(
        tmp_path,
        NOWHERE,
        api={"proxy": "http://me:secret@proxy.example:3128"},
        http={"listen": "0.0.0.0:9464"},
        notify={
            "webhook_url": "https://hooks.example/secret",
            "heartbeat_url": "https://beat.example/secret",
            "on_saved": ["/no/such/secretary", "secret"],
            "on_lost": ["true"],
            "webhook_secret_file": "./none",
        },
    )
    told = call(site, "check", HTTPS_PROXY="http://elsewhere.example:1")
    assert told.exit_code == 78
    for words in (
        "api.proxy: proxy.example:3128",
        "http.listen",
        "whoever reaches the address can read names of files and sums",
        "hooks.example",
        "beat.example",
        "there is no program /no/such/secretary",
        "cannot be read: No such file or directory",
        shutil.which("true") or "",
    ):
        assert words in told.output, words
    assert "elsewhere.example" not in told.output
    assert "secret" not in re.sub("secret_file|secretary|the secret into", "", told.output)


def test_check_proves_the_key_without_paying(tmp_path: Path) -> None:
    with RunningSandbox(SandboxOptions(key=KEY)) as sandbox:
        site = Site(tmp_path, sandbox.url)
        told = call(site, "check", "--online")
        assert told.exit_code == 0, told.output
        assert "the key is accepted; an image costs $0.01" in told.stdout
        assert "All is well." in told.stdout
        assert sandbox.state.dry_runs == 1
        assert sandbox.state.payments == []


def test_check_without_online_asks_nobody(tmp_path: Path) -> None:
    with RunningSandbox(SandboxOptions(key=KEY)) as sandbox:
        assert call(Site(tmp_path, sandbox.url), "check").exit_code == 0
        assert sandbox.state.dry_runs == 0


def test_check_finds_a_wrong_key(tmp_path: Path) -> None:
    with RunningSandbox(SandboxOptions(key=KEY)) as sandbox:
        site = Site(tmp_path, sandbox.url)
        told = call(site, "check", "--online", IDEOGRAM_API_KEY="wrong-but-long-enough-0123")
    assert told.exit_code == 78
    assert "Put a valid key where" in told.stdout
    assert "wrong-but" not in told.output


def test_check_finds_an_api_that_is_not_there(site: Site) -> None:
    told = call(site, "check", "--online")
    assert told.exit_code == 69
    assert "1 error." in told.stdout


def test_check_warns_of_another_price(tmp_path: Path) -> None:
    with RunningSandbox(SandboxOptions(key=KEY, price_usd=0.02)) as sandbox:
        told = call(Site(tmp_path, sandbox.url), "check", "--online")
    assert told.exit_code == 0
    assert "Set api.price_usd to 0.02." in told.stdout
    assert "1 warning." in told.stdout


def test_check_finds_a_proxy_that_cannot_be_used(site: Site) -> None:
    told = call(site, "check", HTTPS_PROXY="foo://me:secret@proxy")
    assert told.exit_code == 78
    assert "*_PROXY" in told.stdout
    assert "secret" not in told.output


def test_check_finds_a_damaged_ledger(site: Site) -> None:
    write_ledger(site, *(a_job(f"{number}.jpg", number, Queued()) for number in range(200)))
    assert "is whole" in call(site, "check").stdout
    path = site.state / FILE_NAME
    content = bytearray(path.read_bytes())
    content[8192:12288] = b"\x5a" * 4096
    path.write_bytes(content)
    told = call(site, "check")
    assert told.exit_code == 78
    assert "Restore it from a backup" in told.stdout


def test_check_tells_of_the_daemon(site: Site) -> None:
    with answering(site, live()):
        assert "daemon: running, pid 4711" in call(site, "check").stdout


def test_check_mentions_what_keeps_the_daemon_from_its_work_and_does_not_fail(site: Site) -> None:
    with answering(site, paused() | {"ailment": "the disk of the outbox is full (1 MB free)"}):
        told = call(site, "check")
    assert told.exit_code == 0
    assert f"paused since {local(12, 0)}: payment required (insufficient_funds)" in told.stdout
    assert "Top up the Ideogram account" in told.stdout
    assert "the disk of the outbox is full (1 MB free)" in told.stdout
    assert "2 warnings." in told.stdout


@pytest.mark.parametrize(
    ("listens", "code"),
    [(None, 78), ("another address", 78), ("the same", 0), ("an older daemon", 0)],
)
def test_check_finds_an_address_that_somebody_else_listens_on(
    tmp_path: Path, listens: str | None, code: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        site = Site(tmp_path, NOWHERE, http={"listen": address})
        if listens is None:
            told = call(site, "check")
        else:
            known = {"the same": {"listen": address}, "another address": {"listen": "[::1]:1"}}
            with answering(site, live(**known.get(listens, {}))):
                told = call(site, "check")
    assert told.exit_code == code, told.stdout
    assert ("Address already in use" in told.stdout) == (code == 78)
    assert (f"ok       http.listen: {address}" in told.stdout) == (code == 0)


def test_check_names_every_mistake_of_the_configuration(site: Site) -> None:
    site.config.write_text("queue: {workers: 0, worker: 3}\noriginals: burn\n")
    told = call(site, "check")
    assert told.exit_code == 78
    for words in ("queue.workers", "queue.worker", "originals"):
        assert words in told.stdout


def test_check_names_every_mistake_of_the_set_up(tmp_path: Path) -> None:
    folders = {"outbox": str(tmp_path / "inbox/out"), "archive": str(tmp_path / "inbox/done")}
    site = Site(tmp_path, NOWHERE, folders=folders, api={"key_file": str(tmp_path / "no-key")})
    told = call(site, "check", IDEOGRAM_API_KEY="")
    assert told.exit_code == 78
    for words in ("folders.outbox", "folders.archive", "no-key"):
        assert words in told.stdout


# --- init and schema --------------------------------------------------------------------------


def test_init_makes_a_place_that_passes_check(tmp_path: Path) -> None:
    home = tmp_path / "new/place"
    told = call(Site(tmp_path / "unused", NOWHERE), "init", str(home))
    assert told.exit_code == 0, told.stderr
    assert {path.name for path in home.iterdir()} == {
        "config.yaml",
        "inbox",
        "outbox",
        "quarantine",
        "archive",
        "state",
    }
    assert "bgremover check" in told.stdout
    site = Site(tmp_path / "other", NOWHERE)
    site.config = home / "config.yaml"
    assert call(site, "check").exit_code == 0


def test_init_overwrites_nothing(site: Site) -> None:
    before = tree(site.root)
    told = call(site, "init", str(site.root))
    assert told.exit_code == 78
    assert "config.yaml" in told.stderr
    assert tree(site.root) == before


def test_schema_is_json_that_knows_every_section(site: Site) -> None:
    told = call(site, "schema")
    assert told.exit_code == 0
    document = json.loads(told.stdout)
    assert {"folders", "originals", "api", "watch", "queue", "retry", "budget", "log"} <= set(
        document["properties"]
    )


# --- plan -------------------------------------------------------------------------------------


def fill(site: Site) -> None:
    for number in range(3):
        site.drop(f"{number}.jpg", photo(number))
    site.drop("deep/twin.jpg", photo(0))
    site.drop("text.jpg", b"no picture")
    site.drop("cut.jpg", photo(9, size=(400, 300))[:2000])
    site.drop(".hidden.jpg", photo(4))
    site.drop("@eaDir/thumb.jpg", photo(5))
    (site.inbox / "link.jpg").symlink_to(site.config)


def test_plan_tells_what_once_would_do_and_writes_nothing(site: Site) -> None:
    fill(site)
    before = tree(site.root)
    told = call(site, "plan")
    assert told.exit_code == 0, told.stderr
    lines = [" ".join(line.split()) for line in told.stdout.splitlines()]
    assert "to cut out 3 images, $0.03" in lines
    assert any(line.startswith("twins 1 image ") for line in lines)
    assert any(line.startswith("done already 0 images") for line in lines)
    assert "unusable 2 images" in lines
    assert any(line.startswith("text.jpg: not_an_image: ") for line in lines)
    assert any(line.startswith("cut.jpg: truncated: ") for line in lines)
    assert any(line.startswith("ignored 2 files") for line in lines)
    assert "link.jpg: a symbolic link: left alone" in lines
    assert not any(line.startswith("budget") for line in lines)
    assert tree(site.root) == before


def test_plan_agrees_with_what_once_does(tmp_path: Path) -> None:
    with RunningSandbox(SandboxOptions(key=KEY, latency_seconds=0.01)) as sandbox:
        site = Site(tmp_path, sandbox.url, originals="keep")
        for number in range(3):
            site.drop(f"{number}.jpg", photo(number))
        assert "3 images, $0.03" in call(site, "plan").stdout
        assert sandbox.state.submissions == sandbox.state.dry_runs == 0
        done = site.command("once")
        assert done.returncode == 0, done.stderr
        assert len(sandbox.state.payments) == 3
        before = tree(site.root)
        again = call(site, "plan").stdout
        # SQLite makes and removes files of its own beside the ledger while it is read.
        changed = {path for path, at in tree(site.root).items() if before.get(path) != at}
        assert changed <= {str(site.state)}
        (site.outbox / "0.png").unlink()
        with_link = call(site, "plan").stdout
    assert "0 images, $0.00" in again
    assert "3 images: cut out or paid for before" in again
    assert "3 images: cut out or paid for before" in with_link


def test_plan_pays_again_only_for_what_is_gone_for_good(site: Site) -> None:
    original = site.drop("a.jpg", photo(1))
    sha256 = _sha256(original.read_bytes())
    site.outbox.mkdir()
    (site.outbox / "a.png").write_bytes(b"cut-out")
    saved = Saved("a.png", _sha256(b"cut-out"), 7, filed=True)
    write_ledger(site, a_job("a.jpg", 1, saved, picture=sha256))
    assert "0 images, $0.00" in call(site, "plan").stdout
    (site.outbox / "a.png").write_bytes(b"changed")
    assert "1 image, $0.01" in call(site, "plan").stdout


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _killed_by(link_lives_until: float) -> Quarantined:
    receipt = Receipt("g", "https://x", link_lives_until, None)
    return Quarantined("crash_loop", "{}", receipt=receipt)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (Queued(), "1 image, $0.01"),
        (Paid(Receipt("g", "https://x", NOON, None)), "0 images, $0.00"),
        (Deferred(NOON, Paid(Receipt("g", "https://x", NOON, None)), "x"), "0 images, $0.00"),
        (Deferred(NOON, Queued(), "x"), "1 image, $0.01"),
        (_killed_by(9e9), "0 images, $0.00"),
        (_killed_by(NOON), "1 image, $0.01"),
    ],
)
def test_plan_does_not_count_what_is_paid_for_and_not_saved(
    site: Site, state: State, words: str
) -> None:
    original = site.drop("a.jpg", photo(1))
    write_ledger(site, a_job("a.jpg", 1, state, picture=_sha256(original.read_bytes())))
    assert words in call(site, "plan").stdout


def test_plan_shows_what_the_budget_leaves(tmp_path: Path) -> None:
    site = Site(tmp_path, NOWHERE, budget={"per_day_usd": 0.03, "per_month_usd": 10})
    for number in range(3):
        site.drop(f"{number}.jpg", photo(number))
    site.state.mkdir()
    pay(site, Billed.YES, today())
    told = call(site, "plan").stdout
    assert "$0.02 left today: enough for 2 of 3" in told
    assert "$9.99 left this month: enough for 3 of 3" in told


def test_plan_of_sources_counts_them_and_not_the_inbox(site: Site, tmp_path: Path) -> None:
    site.drop("inbox.jpg", photo(1))
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        (photos / f"{number}.jpg").write_bytes(photo(number))
    (photos / "text.jpg").write_bytes(b"no picture")
    single = tmp_path / "single.jpg"
    single.write_bytes(photo(0))
    before = tree(tmp_path)
    told = call(site, "plan", str(photos), str(single), XDG_STATE_HOME=str(tmp_path / "xdg"))
    assert told.exit_code == 0
    assert "2 images, $0.02" in told.stdout
    assert "1 image with the same bytes" in told.stdout
    assert f"{photos}/text.jpg: not_an_image" in told.stdout
    assert tree(tmp_path) == before


def test_plan_without_an_inbox_says_so(site: Site) -> None:
    site.inbox.rmdir()
    told = call(site, "plan")
    assert told.exit_code == 0
    assert "not there yet" in told.stdout
    assert not site.inbox.exists()
