"""Housekeeping on real folders and a real ledger: what goes, and above all what stays."""

import asyncio
import json
import os
import sqlite3
import stat
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from bgremover.attendants import Housekeeping, Keeper
from bgremover.core.job import Identity, Job, Quarantined, Receipt, Saved
from bgremover.core.retention import DAY, Kept, Policy
from bgremover.edges.keeper import free_bytes, remove
from bgremover.edges.ledger import FILE_NAME, Ledger, Scribe
from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox
from bgremover.settings import FolderSettings
from bgremover.timing import Clock
from tests.apart import NOBODY, apart
from tests.fakes import NOON, a_job
from tests.site import KEY, Site, photo


class House:
    """Folders, and a ledger that knows what was put into them."""

    def __init__(self, root: Path) -> None:
        self.folders = FolderSettings(
            **{name: root / name for name in ("inbox", "outbox", "quarantine", "archive", "state")}
        )
        for _, folder in self.folders:
            folder.mkdir()
        self._number = 0

    def put(self, folder: Path, name: str, content: bytes = b"picture") -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (NOON - 1e8, NOON - 1e8))  # an old photo: its own age is not what counts
        return path

    def archived(self, name: str, days: float, path: str = "", receipt: float = 0.0) -> Job:
        """Put an original into the archive, as the work does; its cut-out is not there."""
        found = self.put(self.folders.archive, name)
        state = Saved(f"{name}.png", "b" * 64, 9, Receipt("g", None, receipt, "r"), filed=True)
        return self._record(found, path or name, state, days)

    def quarantined(self, name: str, days: float, report: str = '{"a": 1}\n') -> Job:
        """Put an image into quarantine, as the work does."""
        found = self.put(self.folders.quarantine, name)
        self.put(self.folders.quarantine, f"{name}.error.json", report.encode())
        return self._record(found, name, Quarantined("empty", report, name, filed=True), days)

    def _record(self, found: Path, path: str, state: Saved | Quarantined, days: float) -> Job:
        self._number += 1
        identity = Identity.of(found.stat())
        job = a_job(id=f"{self._number:032x}", path=path, identity=identity, state=state)
        ledger = Ledger(self.folders.state)
        ledger.put(job, NOON - days * DAY)
        ledger.close()
        return job

    def keep(
        self,
        archive: Policy | None = None,
        quarantine: Policy | None = None,
        ledger_days: float | None = None,
    ) -> None:
        """Keep house once, at noon."""

        async def scenario() -> None:
            scribe = Scribe(Ledger(self.folders.state))
            plan = Housekeeping(
                archive or Policy(), quarantine or Policy(), ledger_days, self.folders
            )
            await Keeper(plan, scribe, Clock(lambda: NOON)).turn()
            await scribe.aclose()

        asyncio.run(scenario())

    def lies(self, folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    def known(self) -> set[str]:
        ledger = Ledger(self.folders.state)
        found = {one.job.path for one in ledger.finished_after(0, 1000)}
        ledger.close()
        return found


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


WEEK = Policy(days=7)


def test_old_originals_leave_the_archive_by_when_they_came(house: House) -> None:
    house.archived("shoes/old.jpg", 30)
    house.archived("shoes/new.jpg", 1)
    house.archived("a-2.jpg", 30, path="a.jpg")
    house.keep(archive=WEEK)
    assert house.lies(house.folders.archive) == {"shoes/new.jpg"}
    assert (house.folders.archive / "shoes").is_dir()


def test_what_is_not_our_own_is_never_touched(house: House) -> None:
    archive, quarantine = house.folders.archive, house.folders.quarantine
    house.put(archive, "a-photo-of-mine.jpg")
    changed = house.archived("changed.jpg", 30)
    house.put(archive, "changed.jpg", b"something else")
    os.utime(archive / "changed.jpg", ns=(0, changed.identity.mtime_ns + 1))
    touched = house.archived("touched.jpg", 30)
    os.utime(archive / "touched.jpg", ns=(0, touched.identity.mtime_ns + 1))
    house.archived("linked.jpg", 30)
    (archive / "linked.jpg").unlink()
    (archive / "linked.jpg").symlink_to(house.put(house.folders.inbox, "target.jpg"))
    house.put(quarantine, "mine.jpg")
    edited = house.quarantined("edited.jpg", 30)
    (quarantine / "edited.jpg.error.json").write_text("my notes")
    house.keep(Policy(files=0), Policy(files=0))
    assert house.lies(archive) == {
        *("a-photo-of-mine.jpg", "changed.jpg", "linked.jpg", "touched.jpg")
    }
    assert house.lies(quarantine) == {"mine.jpg", "edited.jpg.error.json"}
    assert edited.path == "edited.jpg"


def test_by_default_nothing_is_removed(house: House) -> None:
    house.archived("old.jpg", 10_000)
    house.quarantined("bad.jpg", 10_000)
    house.keep()
    assert house.lies(house.folders.archive) == {"old.jpg"}
    assert house.lies(house.folders.quarantine) == {"bad.jpg", "bad.jpg.error.json"}
    assert house.known() == {"old.jpg", "bad.jpg"}


def test_an_image_leaves_the_quarantine_with_its_report(house: House) -> None:
    house.quarantined("shoes/old.jpg", 30)
    house.quarantined("shoes/new.jpg", 1)
    house.keep(quarantine=WEEK)
    assert house.lies(house.folders.quarantine) == {"shoes/new.jpg", "shoes/new.jpg.error.json"}


def test_no_link_is_followed_on_the_way_to_a_file(house: House, tmp_path: Path) -> None:
    job = house.archived("shoes/old.jpg", 30)
    (house.folders.archive / "shoes").rename(tmp_path / "moved")
    (house.folders.archive / "shoes").symlink_to(tmp_path / "moved")
    house.keep(archive=WEEK)
    assert (tmp_path / "moved/old.jpg").exists()
    assert job.path == "shoes/old.jpg"


def test_a_folder_that_may_not_be_written_to_is_told_and_nothing_more() -> None:
    with tempfile.TemporaryDirectory() as common:  # pytest's own are closed to other users
        os.chmod(common, 0o755)  # noqa: S103 - other users may look
        house = House(Path(common))
        house.archived("old.jpg", 30)
        for path in (house.folders.state, *house.folders.state.iterdir()):
            os.chmod(path, 0o777)  # noqa: S103 - the ledger is to be used by another user

        apart(lambda: house.keep(archive=WEEK), uid=NOBODY)
        assert house.lies(house.folders.archive) == {"old.jpg"}


def test_the_ledger_forgets_only_what_is_of_no_use(house: House) -> None:
    outbox, archive, quarantine = (
        house.folders.outbox,
        house.folders.archive,
        house.folders.quarantine,
    )
    for name in ("gone", "cut-out", "link", "again", "in-archive"):
        house.archived(f"{name}.jpg", 30, receipt=NOON + 60 if name == "link" else 0)
        if name != "in-archive":
            (archive / f"{name}.jpg").unlink()
    house.archived("recent.jpg", 3)
    (archive / "recent.jpg").unlink()
    house.put(outbox, "cut-out.jpg.png")
    house.put(house.folders.inbox, "again.jpg")
    house.quarantined("bad.jpg", 30)
    house.quarantined("bad-and-gone.jpg", 30)
    (quarantine / "bad-and-gone.jpg").unlink()
    house.keep(ledger_days=7)
    assert house.known() == {
        *("cut-out.jpg", "link.jpg", "again.jpg", "in-archive.jpg", "recent.jpg", "bad.jpg")
    }


def test_removal_looks_twice(house: House) -> None:
    job = house.archived("a.jpg", 30)
    (house.folders.archive / "a.jpg").write_bytes(b"another picture")
    kept = Kept("a.jpg", job.identity.size, job.identity.mtime_ns, NOON, job.id)
    assert not remove(str(house.folders.archive), kept)
    assert not remove(str(house.folders.archive), replace(kept, name="never.jpg"))
    assert not remove(str(house.folders.archive), replace(kept, name="no/folder.jpg"))
    assert house.lies(house.folders.archive) == {"a.jpg"}


def test_room_on_a_disk(tmp_path: Path) -> None:
    room = free_bytes(str(tmp_path))
    assert room is not None
    assert room > 0
    assert free_bytes(str(tmp_path / "none")) is None


# --- backup ---------------------------------------------------------------------------------


def test_a_backup_is_a_whole_ledger_that_only_its_owner_may_read(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.archived("a.jpg", 1)
    site = Site(tmp_path, "http://127.0.0.1:9")
    copy = tmp_path / "copy.sqlite3"
    told = site.command("backup", str(copy))
    assert (told.returncode, told.stderr) == (0, "")
    assert f"stop bgremover, put it into the state folder as {FILE_NAME}" in told.stdout
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    with sqlite3.connect(copy) as db:
        assert db.execute("SELECT count(*) FROM jobs").fetchone() == (1,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    db.close()
    again = site.command("backup", str(copy))
    assert again.returncode == 78
    assert "Nothing is overwritten" in again.stderr
    into = site.command("backup", str(tmp_path / "outbox"))
    assert into.returncode == 0
    (made,) = (tmp_path / "outbox").iterdir()
    assert made.name.startswith("bgremover-")


def test_a_backup_can_be_gone_back_to(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.archived("a.jpg", 1)
    site = Site(tmp_path, "http://127.0.0.1:9")
    assert site.command("backup", "copy").returncode == 0
    for old in site.state.iterdir():
        old.unlink()
    (tmp_path / "copy").rename(site.state / FILE_NAME)
    status = json.loads(site.command("status", "--json").stdout)
    assert status["totals"]["saved"] == 1


def test_a_backup_without_a_ledger_says_so(tmp_path: Path) -> None:
    told = Site(tmp_path, "http://127.0.0.1:9").command("backup", "copy")
    assert told.returncode == 78
    assert "there is no ledger" in told.stderr
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("place", "reason"),
    [("none/copy", "No such file or directory"), ("config.yaml/copy", "Not a directory")],
)
def test_a_backup_into_a_bad_place_says_what_to_name_instead(
    tmp_path: Path, place: str, reason: str
) -> None:
    House(tmp_path).archived("a.jpg", 1)
    told = Site(tmp_path, "http://127.0.0.1:9").command("backup", place)
    assert told.returncode == 69
    assert f"{place} cannot be written: {reason}. Name a file in a folder" in told.stderr
    assert "resumes" not in told.stderr


def test_a_backup_beside_a_running_daemon_disturbs_nobody(tmp_path: Path) -> None:
    with RunningSandbox(SandboxOptions(key=KEY, latency_seconds=0.05)) as sandbox:
        site = Site(tmp_path, sandbox.url)
        with site.running() as daemon:
            for number in range(20):
                site.drop(f"{number}.jpg", photo(number))
            daemon.until_event("image.saved", 5)
            told = site.command("backup", "copy")
            assert told.returncode == 0, told.stderr
            daemon.until_event("image.saved", 20)
            assert daemon.end() == 0
    with closing(sqlite3.connect(tmp_path / "copy")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (saved,) = db.execute("SELECT count(*) FROM jobs WHERE kind = 'saved'").fetchone()
    assert saved >= 5


@pytest.mark.long
def test_the_daemon_keeps_house(tmp_path: Path) -> None:
    with RunningSandbox(SandboxOptions(key=KEY, latency_seconds=0.05)) as sandbox:
        site = Site(tmp_path, sandbox.url, retention={"archive_files": 1, "ledger_days": 2})
        site.archive.mkdir()
        (site.archive / "mine.jpg").write_bytes(photo(99))
        with site.running() as daemon:
            for number in range(3):
                site.drop(f"{number}.jpg", photo(number))
            daemon.until_event("image.saved", 3)
            daemon.until_event("retention.removed", 2, limit=90)
            assert daemon.end() == 0
        left = site.files(site.archive)
        assert "mine.jpg" in left
        assert len(left) == 2
        assert len(site.files(site.outbox)) == 3
