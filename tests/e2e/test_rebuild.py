"""A damaged ledger: refused, then rebuilt when asked, and nothing is paid for again."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox
from tests.site import KEY, Site, photo

IMAGES = 30


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with RunningSandbox(SandboxOptions(key=KEY, fixed_result=True)) as running:
        yield running


@pytest.fixture
def site(tmp_path: Path, sandbox: RunningSandbox) -> Site:
    made = Site(tmp_path, sandbox.url)
    for number in range(IMAGES):
        made.drop(f"{number}.jpg", photo(number))
    assert made.command("once").returncode == 0
    return made


def again(site: Site, sandbox: RunningSandbox) -> int:
    """Drop everything once more; return how many calls that cost."""
    before = len(sandbox.state.payments)
    for number in range(IMAGES):
        site.drop(f"again/{number}.jpg", photo(number))
    done = site.command("once")
    assert done.returncode == 0, done.stderr
    return len(sandbox.state.payments) - before


def test_a_ledger_that_is_well_is_left_alone(site: Site) -> None:
    before = (site.state / "ledger.sqlite3").read_bytes()
    done = site.command("rebuild")
    assert done.returncode == 0
    assert "nothing to rebuild" in done.stdout
    assert (site.state / "ledger.sqlite3").read_bytes() == before


def test_a_ledger_that_is_no_database_is_rebuilt_from_the_folders(
    site: Site, sandbox: RunningSandbox
) -> None:
    (site.state / "ledger.sqlite3").write_bytes(b"all gone" * 1000)
    refused = site.command("run")
    assert refused.returncode == 78, refused.stderr
    assert "bgremover rebuild" in refused.stderr
    assert (site.state / "ledger.sqlite3").read_bytes() == b"all gone" * 1000
    os.mkfifo(site.archive / "pipe.jpg")  # whoever opens it waits for a writer
    (site.outbox / "pipe.png").touch()
    done = site.command("rebuild")
    assert done.returncode == 0, done.stderr
    assert f"Found in the folders: {IMAGES} more images" in done.stdout
    assert len(list(site.state.glob("damaged-*/ledger.sqlite3"))) == 1
    assert again(site, sandbox) == 0


def test_what_can_be_read_of_a_damaged_ledger_is_kept(site: Site, sandbox: RunningSandbox) -> None:
    path = site.state / "ledger.sqlite3"
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xaa" * 4096
    path.write_bytes(content)
    damaged = (AssertionError, sqlite3.DatabaseError)
    with contextlib.closing(sqlite3.connect(path)) as db, pytest.raises(damaged):
        assert db.execute("PRAGMA quick_check").fetchall() == [("ok",)]
    done = site.command("rebuild")
    assert done.returncode == 0, done.stderr
    assert "Saved from it:" in done.stdout
    assert again(site, sandbox) == 0
    assert site.command("check").returncode == 0


def test_what_shares_the_name_of_a_cut_out_is_named_and_not_guessed(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url)
    site.drop("a.jpg", photo(1))
    site.drop("a.png", photo(2, "PNG"))
    assert site.command("once").returncode == 0
    (site.state / "ledger.sqlite3").write_bytes(b"all gone" * 1000)
    done = site.command("rebuild")
    assert "Sharing the name of a cut-out: 2 originals" in done.stdout
    assert "  a.jpg\n  a.png\n" in done.stdout


def wreck(site: Site) -> None:
    (site.state / "ledger.sqlite3").write_bytes(b"all gone" * 1000)


@pytest.mark.parametrize(("given", "own"), [("archive", "keep"), ("keep", "delete")])
def test_what_stays_in_the_inbox_is_found_whoever_asked_for_it(
    tmp_path: Path, sandbox: RunningSandbox, given: str, own: str
) -> None:
    site = Site(tmp_path, sandbox.url, originals=given)
    site.drop("own/.bgremover.yaml", f"originals: {own}".encode())
    site.drop("own/a.jpg", photo(1))
    site.drop("b.jpg", photo(2))
    assert site.command("once").returncode == 0
    made, stays = site.files(site.outbox), "own/a.jpg" if own == "keep" else "b.jpg"
    assert site.files(site.inbox) == {"own/.bgremover.yaml", stays}
    wreck(site)
    done = site.command("rebuild")
    found = len(site.files(site.inbox) | site.files(site.archive)) - 1
    assert f"Found in the folders: {found} more image" in done.stdout
    assert "Lying in the inbox" not in done.stdout
    with site.running() as daemon:
        site.drop("again.jpg", photo(1 if own == "keep" else 2))
        daemon.until_event("image.reused")
        assert daemon.end() == 0
        assert {line["file"] for line in daemon.events("image.claimed")} == {"again.jpg"}
    assert site.files(site.outbox) == made | {"again.png"}
    assert len(sandbox.state.payments) == 2


def test_what_stays_and_cannot_be_paired_is_named(tmp_path: Path, sandbox: RunningSandbox) -> None:
    site = Site(tmp_path, sandbox.url)
    site.drop("keep/.bgremover.yaml", b"originals: keep")
    for number, name in enumerate(("keep/same.jpg", "keep/other.jpg", "left.jpg", "gone.jpg")):
        site.drop(name, photo(number))
    assert site.command("once").returncode == 0
    # One was written to since; one had to stay; one is a new picture under an old name.
    site.drop("keep/other.jpg", photo(10))
    (site.archive / "left.jpg").rename(site.inbox / "left.jpg")
    site.drop("gone.jpg", photo(11))
    site.drop("new.jpg", photo(12))
    wreck(site)
    done = site.command("rebuild")
    assert done.returncode == 0, done.stderr
    assert "Found in the folders: 2 more images" in done.stdout
    head, named = done.stdout.split("Lying in the inbox with a cut-out of their name")
    assert "2 originals; where it is their own, take them out before the next run" in named
    assert named.splitlines()[1:] == ["  keep/other.jpg", "  left.jpg"]
    assert "Sharing" not in head


def test_without_its_inbox_nothing_is_rebuilt(site: Site) -> None:
    wreck(site)
    site.inbox.rename(site.root / "unmounted")
    done = site.command("rebuild")
    assert done.returncode == 69, done.stderr
    assert str(site.inbox) in done.stderr
    assert (site.state / "ledger.sqlite3").read_bytes() == b"all gone" * 1000
    assert list(site.state.glob("damaged-*")) == []


def test_damage_that_shows_only_at_recovery_is_told_with_its_remedy(site: Site) -> None:
    """A page of an index is gone, the head of the file is sound: nothing shows at the opening."""
    path = site.state / "ledger.sqlite3"
    with contextlib.closing(sqlite3.connect(path)) as db:
        (root,) = db.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'jobs_unfinished'"
        ).fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    content = bytearray(path.read_bytes())
    content[(root - 1) * size : root * size] = b"\xaa" * size
    path.write_bytes(content)
    for command in ("run", "once"):
        refused = site.command(command)
        assert refused.returncode == 78, refused.stderr
        assert "bgremover rebuild" in refused.stderr
    assert path.read_bytes() == content
