"""What was paid: the books of the program against those of the stand-in."""

import csv
import io
import json
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from bgremover.core.job import Accepted
from bgremover.core.verdict import resume_point
from bgremover.edges.ledger import existing_ledger
from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox
from tests.site import KEY, Site, photo, until


def script(sandbox: RunningSandbox, *faults: dict[str, Any], target: str = "post") -> None:
    answer = httpx.post(f"{sandbox.url}/sandbox/script", params={"target": target}, json=faults)
    assert answer.status_code == 204, answer.text


def fast(latency_seconds: float = 0.0, link_seconds: float = 3600.0) -> RunningSandbox:
    options = SandboxOptions(
        key=KEY, fixed_result=True, latency_seconds=latency_seconds, link_seconds=link_seconds
    )
    return RunningSandbox(options)


def test_the_report_lists_what_the_service_counted(tmp_path: Path) -> None:
    with fast() as sandbox:
        site = Site(tmp_path, sandbox.url)
        for number in range(4):
            site.drop(f"{number}.jpg", photo(number))
        site.drop("withheld.jpg", photo(10))
        site.drop("unsafe.jpg", photo(11))
        site.command("once")
        listed = list(csv.DictReader(io.StringIO(site.command("report", "--csv").stdout)))
        paid = {payment.request_id for payment in sandbox.state.payments}
    assert {row["request_id"] for row in listed} == paid
    assert sum(float(row["usd"]) for row in listed) == pytest.approx(0.05)
    assert "5 billed, $0.05" in site.command("report").stdout
    month = time.strftime("%Y-%m", time.gmtime())
    assert "5 billed" in site.command("report", "--month", month).stdout
    assert "0 billed" in site.command("report", "--month", "1999-01").stdout
    assert site.command("report", "--month", "1999-13").returncode == 2


def test_a_day_budget_is_never_passed_and_survives_a_restart(tmp_path: Path) -> None:
    with fast(latency_seconds=0.05) as sandbox:
        site = Site(tmp_path, sandbox.url, budget={"per_day_usd": 0.03}, queue={"workers": 8})
        for number in range(10):
            site.drop(f"{number}.jpg", photo(number))
        for _ in range(2):
            done = site.command("once")
            assert done.returncode == 69, done.stderr
            assert "budget reached" in done.stdout
        assert len(sandbox.state.payments) == 3
        assert len(site.files(site.inbox)) == 7
        assert site.files(site.quarantine) == set()
        with site.running() as daemon:
            daemon.until_event("budget.reached")
            pause = json.loads(site.command("status", "--json").stdout)["pause"]
            assert daemon.end() == 0
    assert pause["reason"] == "budget_reached"


def test_an_unknown_charge_is_sent_once_more_and_then_quarantined(tmp_path: Path) -> None:
    with fast() as sandbox:
        site = Site(tmp_path, sandbox.url)
        script(sandbox, {"match": "bad", "times": 2, "close": "after_body", "billed": True})
        site.drop("bad.jpg", photo(1))
        with site.running() as daemon:
            for number in range(2, 6):
                daemon.until_event("daemon.ready")
                site.drop(f"{number}.jpg", photo(number))
            daemon.until_event("image.quarantined")
            until(lambda: site.files(site.inbox) == set())
            status = json.loads(site.command("status", "--json").stdout)
            assert daemon.end() == 0
        report = json.loads((site.quarantine / "bad.jpg.error.json").read_text())
        paid = [payment.file for payment in sandbox.state.payments]
    assert report["code"] == "unknown_charge"
    assert report["billed"] == "unknown"
    assert report["charges"] == {"billed": 0, "unknown": 2, "usd": 0.0}
    assert status["spend"]["unknown"] == 2
    assert paid.count("bad.jpg") == 2


def test_on_hold_an_unknown_charge_is_never_sent_again_by_itself(tmp_path: Path) -> None:
    with fast() as sandbox:
        site = Site(tmp_path, sandbox.url, retry={"unknown_charge": "hold"})
        script(sandbox, {"match": "bad", "close": "after_body", "billed": True})
        site.drop("bad.jpg", photo(1))
        for number in range(2, 6):
            site.drop(f"{number}.jpg", photo(number))
        done = site.command("once")
        assert "bad.jpg: unknown_charge" in done.stdout
        assert [payment.file for payment in sandbox.state.payments].count("bad.jpg") == 1
        assert site.command("retry", "bad.jpg").returncode == 0
        assert site.command("once").returncode == 0
    assert len(site.files(site.outbox)) == 5


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500},
        {"close": "midway"},
        {"content": "truncated"},
        {"content": "no_alpha"},
        {"content": "garbage"},
    ],
    ids=str,
)
def test_a_broken_download_is_repeated_with_the_link(tmp_path: Path, fault: dict[str, Any]) -> None:
    with fast() as sandbox:
        site = Site(tmp_path, sandbox.url)
        script(sandbox, {"times": 2, **fault}, target="download")
        site.drop("one.jpg", photo(1))
        with site.running() as daemon:
            daemon.until_event("image.saved")
            assert daemon.end() == 0
        assert len(sandbox.state.payments) == 1
        assert sandbox.state.downloads == 3


def test_a_result_that_stays_broken_is_reported_as_paid(tmp_path: Path) -> None:
    with fast() as sandbox:
        site = Site(tmp_path, sandbox.url)
        broken = {"match": "bad", "times": "forever", "content": "no_alpha"}
        script(sandbox, broken, target="download")
        site.drop("bad.jpg", photo(1))
        with site.running() as daemon:
            daemon.until_event("image.quarantined")
            until(lambda: site.files(site.inbox) == set())
            assert daemon.end() == 0
        report = json.loads((site.quarantine / "bad.jpg.error.json").read_text())
        assert (report["code"], report["billed"]) == ("bad_result", "yes")
        assert report["charges"]["usd"] == 0.01
        assert sandbox.state.downloads == 3
        assert len(sandbox.state.payments) == 1


def test_a_paid_link_is_fetched_after_a_kill_without_a_new_call(tmp_path: Path) -> None:
    with fast() as sandbox:
        site = Site(tmp_path, sandbox.url)
        script(sandbox, {"times": "forever", "status": 503}, target="download")
        site.drop("one.jpg", photo(1))
        with site.running() as daemon:
            daemon.until_event("image.deferred")
            daemon.end(signal.SIGKILL)
        httpx.delete(f"{sandbox.url}/sandbox/script")
        with site.running() as daemon:
            daemon.until_event("image.saved")
            assert daemon.end() == 0
        assert len(sandbox.state.payments) == 1


def test_an_expired_link_costs_one_new_call(tmp_path: Path) -> None:
    with fast(link_seconds=1.0) as sandbox:
        site = Site(tmp_path, sandbox.url)
        script(sandbox, {"times": 2, "status": 503}, target="download")
        script(sandbox, {"delay": 1.2}, target="download")
        site.drop("one.jpg", photo(1))
        with site.running() as daemon:
            daemon.until_event("daemon.ready")
            until(lambda: daemon.events("image.saved") or len(sandbox.state.payments) > 1)
            daemon.until_event("image.saved")
            assert daemon.end() == 0
        assert len(sandbox.state.payments) <= 2


def accepted(site: Site) -> int:
    """Count the images whose generation is in the ledger."""
    with existing_ledger(site.state) as ledger:
        jobs = ledger.unfinished() if ledger else []
    return sum(isinstance(resume_point(job.state), Accepted) for job in jobs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_asynchronous_generation_survives_the_end_of_the_program(
    tmp_path: Path, number: signal.Signals
) -> None:
    with fast(latency_seconds=1.5) as sandbox:
        site = Site(tmp_path, sandbox.url, api={"flow": "async"})
        for name in ("a.jpg", "b.jpg"):
            site.drop(name, photo(ord(name[0])))
        with site.running() as daemon:
            until(lambda: accepted(site) == 2)
            daemon.end(number)
        with site.running() as daemon:
            daemon.until_event("image.saved", 2)
            assert daemon.end() == 0
        assert len(sandbox.state.payments) == 2
        assert not sandbox.state.paid_twice()


def test_a_failing_generation_is_submitted_again_and_given_up_on_while_others_succeed(
    tmp_path: Path,
) -> None:
    with fast() as sandbox:
        site = Site(tmp_path, sandbox.url, api={"flow": "async"})
        site.drop("failing.jpg", photo(2))
        with site.running() as daemon:
            daemon.until_event("daemon.ready")
            for number in range(3, 60):
                site.drop(f"{number}.jpg", photo(number))
                daemon.until_event("image.saved", number - 2)
                if daemon.events("image.quarantined"):
                    break
            until(lambda: site.files(site.inbox) == set())
            assert daemon.end() == 0
        report = json.loads((site.quarantine / "failing.jpg.error.json").read_text())
        assert (report["code"], report["billed"]) == ("attempts_exhausted", "no")
        assert len(sandbox.state.payments) == number - 2
        failed = [one for one in sandbox.state.generations.values() if one.outcome == "failed"]
        assert len(failed) >= 2


def test_the_same_bytes_cost_nothing_again(tmp_path: Path) -> None:
    with fast() as sandbox:
        site = Site(tmp_path, sandbox.url)
        for name in ("a.jpg", "b/a.jpg", "b/c.jpg"):
            site.drop(name, photo(1))
        assert site.command("once").returncode == 0
        site.drop("later.jpg", photo(1))
        done = site.command("once")
        assert done.stdout.startswith("0 cut out, 1 served")
        (site.outbox / "a.png").unlink()
        for name in ("b/a.png", "b/c.png", "later.png"):
            (site.outbox / name).unlink()
        site.drop("a.jpg", photo(1))
        assert site.command("once").returncode == 0, "the link still lives"
        assert len(sandbox.state.payments) == 1
    assert site.files(site.outbox) == {"a.png"}


def test_an_image_that_is_paid_for_and_kills_the_program_leaves_nothing_and_costs_nothing_more(
    tmp_path: Path,
) -> None:
    with fast() as sandbox:
        site = Site(tmp_path, sandbox.url)
        script(sandbox, {"times": "forever", "delay": 60}, target="download")
        site.drop("one.jpg", photo(1))
        for number in range(3):
            with site.running(log=f"log-{number}") as daemon:
                daemon.until_event("daemon.ready")
                until(lambda: list(site.outbox.glob(".bgremover-*")))
                daemon.end(signal.SIGKILL)
        with site.running() as daemon:
            daemon.until_event("image.quarantined")
            until(lambda: site.files(site.inbox) == set())
            assert daemon.end() == 0
        assert json.loads((site.quarantine / "one.jpg.error.json").read_text())["billed"] == "yes"
        assert list(site.outbox.iterdir()) == []
        httpx.delete(f"{sandbox.url}/sandbox/script").raise_for_status()
        assert site.command("retry", "one.jpg").returncode == 0
        assert site.command("once").returncode == 0
        assert site.files(site.outbox) == {"one.png"}
        assert len(sandbox.state.payments) == 1


def test_a_cut_out_that_was_taken_away_is_not_paid_for_at_each_start(tmp_path: Path) -> None:
    lives = 3.0
    with fast(link_seconds=lives) as sandbox:
        site = Site(tmp_path, sandbox.url, originals="keep")
        original = site.drop("a.jpg", photo(1))
        with site.running() as daemon:
            daemon.until_event("image.saved")
            dead = time.monotonic() + lives
            assert daemon.end() == 0
        (site.outbox / "a.png").rename(tmp_path / "in the shop.png")
        with site.running() as daemon:
            daemon.until_event("daemon.ready")
            site.drop("b.jpg", photo(2))
            daemon.until_event("image.saved")
            assert len(sandbox.state.payments) == 2
            until(lambda: time.monotonic() > dead)
            original.touch()  # that is how to ask for it anew
            daemon.until_event("image.saved", 2)
            assert daemon.end() == 0
        assert len(sandbox.state.payments) == 3
