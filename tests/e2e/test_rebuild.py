"""A damaged ledger: refused, then rebuilt when asked, and nothing is paid for again."""

import contextlib
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
