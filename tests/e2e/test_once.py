"""`once`: the inbox, folders and files of one's own, and every exit code."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox
from tests.site import KEY, Site, photo


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with RunningSandbox(SandboxOptions(key=KEY, latency_seconds=0.05)) as running:
        yield running


def test_the_inbox_is_worked_through_and_the_end_is_told(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url)
    for number in range(5):
        site.drop(f"{number}.jpg", photo(number))
    done = site.command("once")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("5 cut out, 0 served from earlier cut-outs, 0 failed, 0 left.")
    assert "Spent $0.05." in done.stdout
    assert len(site.files(site.outbox)) == len(site.files(site.archive)) == 5


def test_failed_images_are_told_and_give_exit_code_1(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url)
    site.drop("good.jpg", photo())
    site.drop("text.jpg", b"no picture")
    done = site.command("once")
    assert done.returncode == 1, done.stderr
    assert "text.jpg: not_an_image" in done.stdout
    assert site.files(site.quarantine) == {"text.jpg", "text.jpg.error.json"}


def test_a_refused_key_stops_the_run_and_moves_nothing(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url)
    for number in range(3):
        site.drop(f"{number}.jpg", photo(number))
    done = site.command("once", IDEOGRAM_API_KEY="wrong")
    assert done.returncode == 69, done.stderr
    assert "key refused" in done.stdout
    assert len(site.files(site.inbox)) == 3
    assert site.files(site.quarantine) == set()


def test_a_wrong_configuration_names_every_mistake(tmp_path: Path, sandbox: RunningSandbox) -> None:
    site = Site(tmp_path, sandbox.url, queue={"workers": 0, "worker": 3}, originals="burn")
    done = site.command("once")
    assert done.returncode == 78
    for words in ("queue.workers", "queue.worker", "originals"):
        assert words in done.stderr


def test_a_folder_of_ones_own_is_left_untouched(tmp_path: Path, sandbox: RunningSandbox) -> None:
    site = Site(tmp_path / "site", sandbox.url)
    photos, single = tmp_path / "photos", tmp_path / "single"
    (photos / "deep").mkdir(parents=True)
    single.mkdir()
    (photos / "a.jpg").write_bytes(photo(1))
    (photos / "deep/b.png").write_bytes(photo(2, "PNG"))
    (photos / "text.jpg").write_bytes(b"no picture")
    (single / "c.jpg").write_bytes(photo(3))
    (single / "not-asked-for.jpg").write_bytes(photo(4))
    before = {path: path.stat().st_mtime_ns for path in photos.rglob("*")}
    arguments = ("once", str(photos), str(single / "c.jpg"), "-o", str(tmp_path / "out"))
    first = site.command(*arguments)
    assert first.returncode == 1, first.stderr
    assert site.files(tmp_path / "out") == {"a.png", "deep/b.png", "c.png"}
    assert {path: path.stat().st_mtime_ns for path in photos.rglob("*")} == before
    second = site.command(*arguments)
    assert "0 cut out, 3 served from earlier cut-outs, 1 failed" in second.stdout
    assert site.files(tmp_path / "out") == {"a.png", "deep/b.png", "c.png"}
    assert len(sandbox.state.payments) == 3


def test_the_same_bytes_from_another_folder_are_served_from_the_first_cut_out(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path / "site", sandbox.url)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(photo(1))
        done = site.command("once", str(tmp_path / name), "-o", str(tmp_path / f"{name}-out"))
        assert done.returncode == 0, done.stderr
    assert site.files(tmp_path / "two-out") == {"a.png"}
    assert len(sandbox.state.payments) == 1


def test_an_interrupted_run_is_not_continued_by_a_run_over_another_folder(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path / "site", sandbox.url)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for number in range(6):
            (tmp_path / name / f"{number}.jpg").write_bytes(photo(100 * len(name) + number))
    (tmp_path / "two/0.jpg").write_bytes(photo(999))
    one = ("once", str(tmp_path / "one"), "-o", str(tmp_path / "one-out"))
    with site.running(*one) as run:
        run.until_event("image.paid")
        run.end(signal.SIGKILL)
    two = site.command("once", str(tmp_path / "two"), "-o", str(tmp_path / "two-out"))
    assert two.returncode == 0, two.stderr
    again = site.command(*one)
    assert again.returncode == 0, again.stderr
    names = {f"{number}.png" for number in range(6)}
    assert site.files(tmp_path / "one-out") == site.files(tmp_path / "two-out") == names


def test_source_without_destination_is_a_mistake(tmp_path: Path, sandbox: RunningSandbox) -> None:
    site = Site(tmp_path, sandbox.url)
    done = site.command("once", str(site.inbox))
    assert done.returncode == 2
    assert "-o" in done.stderr


def test_ctrl_c_ends_with_130(tmp_path: Path) -> None:
    with RunningSandbox(SandboxOptions(key=KEY, latency_seconds=0.5)) as sandbox:
        site = Site(tmp_path, sandbox.url, queue={"workers": 1})
        for number in range(20):
            site.drop(f"{number}.jpg", photo(number))
        with site.running("once") as run:
            run.until_event("image.saved")
            assert run.end(signal.SIGINT) == 130
        assert site.files(site.inbox)
        assert not sandbox.state.paid_twice()


@pytest.mark.parametrize("form", ["auto", "json"])
def test_on_a_terminal_the_bar_is_torn_by_no_line(
    tmp_path: Path, sandbox: RunningSandbox, form: str
) -> None:
    site = Site(tmp_path, sandbox.url, log={"format": form, "file": "./once.log"})
    for number in range(3):
        site.drop(f"{number}.jpg", photo(number))
    site.drop("text.jpg", b"no picture")
    above, bar, *told = site.at_terminal("once").split("\r\n")
    assert "image.quarantined" in above
    assert "cutting out" not in above.rpartition("\r\x1b[2K")[2]
    assert "4/4" in bar
    assert "3 cut out, 0 served from earlier cut-outs, 1 failed, 0 left." in told[0]
    lines = (tmp_path / "once.log").read_text().splitlines()
    written = [json.loads(line)["event"] for line in lines]
    assert written.count("image.saved") == 3
    assert written[-1] == "daemon.stopped"
