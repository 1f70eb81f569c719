"""Nothing lost, nothing overwritten: the users' folders on real disks, real users, real kills."""

import errno
import hashlib
import io
import itertools
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bgremover.core.errors import (
    Blocked,
    DiskFailed,
    DiskFull,
    FolderLost,
    NoPermission,
    ReadOnlyDisk,
    Replaced,
    Vanished,
    Withdrawn,
)
from bgremover.core.ignoring import Ignore
from bgremover.core.job import Identity
from bgremover.core.naming import candidates
from bgremover.edges import folders as folders_module
from bgremover.edges.folders import MARK, REPORT, Folders, NameTaken, Roots, Temp, hidden_name
from bgremover.edges.inbox import Inbox
from tests.apart import NOBODY, Missing, apart, dies_at, open_to_all, remount

JOB = "0123456789abcdef0123456789abcdef"
OTHER = "f" * 32
DATA = b"an original" * 1000
CUT_OUT = b"a cut-out" * 1000
REPORTED = b'{"job_id": "0123456789abcdef0123456789abcdef"}\n'
SHM = Path("/dev/shm")  # noqa: S108 - a file system of its own, nothing temporary is guessed

Spot = folders_module._Spot
Rename = Callable[[folders_module._Spot, folders_module._Spot], None]
RENAMES: list[Rename] = [
    folders_module._rename_new,
    folders_module._rename_by_link,
    folders_module._rename_over_own,
]
MEANS: dict[str, Mapping[str, int]] = {
    "renameat2": {},
    "link": {"renameat2": errno.EINVAL},
    "neither": {"renameat2": errno.ENOSYS, "link": errno.EPERM},
}


class Place:
    """The four folders of a user, and what lies in them."""

    def __init__(self, root: Path, elsewhere: Path | None = None) -> None:
        self.inbox, self.outbox = root / "inbox", root / "outbox"
        self.quarantine, self.archive = (
            (elsewhere or root) / name for name in ("quarantine", "archive")
        )
        for folder in (self.inbox, self.outbox, self.quarantine, self.archive):
            folder.mkdir()
        roots = Roots(*map(str, (self.outbox, self.quarantine, self.archive)))
        self.folders = Folders(roots, Inbox(self.inbox, Ignore()).holding)

    def drop(self, path: str, data: bytes = DATA) -> Identity:
        file = self.inbox / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        os.utime(file, (1_000_000_000, 1_234_567_890.5))
        return Identity.of(file.stat())

    def make_temp(self, output: str, data: bytes = CUT_OUT, job_id: str = JOB) -> None:
        temp = self.folders.temp(output, job_id)
        temp.file.write(data)
        temp.keep()

    def publish(self, output: str, data: bytes = CUT_OUT, job_id: str = JOB) -> bool:
        self.make_temp(output, data, job_id)
        return self.folders.publish(job_id, output)


def files(folder: Path) -> dict[str, bytes]:
    """All files below a folder with their bytes; names that are no UTF-8 as they are."""
    found = {}
    for above, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(above, name)
            if os.path.isfile(path) and not os.path.islink(path):
                found[os.path.relpath(path, folder)] = Path(path).read_bytes()
    return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def common() -> Iterator[Path]:
    with open_to_all() as folder:
        yield folder


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    if not os.access(SHM, os.W_OK) or SHM.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip(f"needs {SHM} to be writable and another file system than {tmp_path}")
    with tempfile.TemporaryDirectory(dir=SHM) as name:
        yield Path(name)


@pytest.fixture(params=["one disk", "two disks"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Archive and quarantine on the disk of the inbox, and on another."""
    two = request.param == "two disks"
    return Place(tmp_path, request.getfixturevalue("other_disk") if two else None)


# --- renaming without replacing -------------------------------------------------------------


def a_file(path: Path) -> None:
    path.write_bytes(b"somebody else's")


def an_empty_file(path: Path) -> None:
    path.touch()


def a_folder(path: Path) -> None:
    path.mkdir()


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


OBSTACLES = [a_file, an_empty_file, a_folder, a_fifo, a_dangling_link]


@pytest.mark.parametrize("rename", RENAMES)
def test_a_rename_gives_the_new_name(tmp_path: Path, rename: Rename) -> None:
    (tmp_path / "old").write_bytes(DATA)
    rename(Spot(str(tmp_path / "old")), Spot(str(tmp_path / "new")))
    assert files(tmp_path) == {"new": DATA}


@pytest.mark.parametrize("rename", RENAMES)
def test_a_rename_works_between_opened_folders(tmp_path: Path, rename: Rename) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "old").write_bytes(DATA)
    with (
        folders_module._opened(str(tmp_path / "a")) as one,
        folders_module._opened(str(tmp_path / "b")) as other,
    ):
        rename(Spot("old", one), Spot("new", other))
    assert files(tmp_path) == {"b/new": DATA}


@pytest.mark.parametrize("rename", RENAMES)
@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_a_rename_never_replaces(
    tmp_path: Path, rename: Rename, obstacle: Callable[[Path], None]
) -> None:
    (tmp_path / "old").write_bytes(DATA)
    obstacle(tmp_path / "new")
    before = os.lstat(tmp_path / "new")
    with pytest.raises(NameTaken):
        rename(Spot(str(tmp_path / "old")), Spot(str(tmp_path / "new")))
    assert (tmp_path / "old").read_bytes() == DATA
    assert os.lstat(tmp_path / "new") == before


@pytest.mark.parametrize("rename", RENAMES)
@pytest.mark.parametrize("taken", [False, True])
def test_a_rename_of_nothing_makes_nothing(tmp_path: Path, rename: Rename, taken: bool) -> None:
    there = {"new": b"somebody else's"} if taken else {}
    for name, data in there.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(FileNotFoundError):
        rename(Spot(str(tmp_path / "old")), Spot(str(tmp_path / "new")))
    assert files(tmp_path) == there


@pytest.mark.parametrize("rename", RENAMES)
def test_of_many_renames_to_one_name_one_wins(tmp_path: Path, rename: Rename) -> None:
    lost = []
    start = threading.Barrier(8)

    def race(number: int) -> None:
        (tmp_path / str(number)).write_bytes(b"%d" % number)
        start.wait()
        try:
            rename(Spot(str(tmp_path / str(number))), Spot(str(tmp_path / "new")))
        except NameTaken:
            lost.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lost) == 7
    (winner,) = set(range(8)) - set(lost)
    assert files(tmp_path) == {
        "new": b"%d" % winner,
        **{str(number): b"%d" % number for number in lost},
    }


@pytest.mark.parametrize("rename", RENAMES[:2])
def test_a_kill_between_link_and_unlink_is_ended(tmp_path: Path, rename: Rename) -> None:
    (tmp_path / "old").write_bytes(DATA)
    os.link(tmp_path / "old", tmp_path / "new")
    rename(Spot(str(tmp_path / "old")), Spot(str(tmp_path / "new")))
    assert files(tmp_path) == {"new": DATA}


def test_a_name_that_was_held_before_a_kill_is_used(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(DATA)
    (tmp_path / "new").write_bytes(b"old")
    folders_module._rename_over_own(Spot(str(tmp_path / "old")), Spot(str(tmp_path / "new")))
    assert files(tmp_path) == {"new": DATA}


def test_a_full_disk_leaves_no_name_held(tmp_path: Path) -> None:
    def piece() -> None:
        (tmp_path / "old").write_bytes(b"x")
        filled(tmp_path)
        with pytest.raises(OSError, match="No space"):
            folders_module._rename_over_own(
                Spot(str(tmp_path / "old")), Spot(str(tmp_path / "new"))
            )
        assert set(os.listdir(tmp_path)) == {"old", "filling"}

    apart(piece, mounts={tmp_path: "size=64k"})


def filled(folder: Path, spare: int = 0) -> None:
    """Leave `spare` bytes of a small file system free."""
    with open(folder / "filling", "wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(b"\0" * 4096):
                pass
        file.truncate(file.tell() - spare)


@pytest.mark.parametrize("means", MEANS.values(), ids=MEANS)
def test_publishing_works_whatever_the_file_system_can(
    place: Place, means: Mapping[str, int]
) -> None:
    place.publish("taken.png", b"an earlier one", OTHER)

    def piece() -> None:
        assert place.publish("a.png")
        place.make_temp("taken.png")
        with pytest.raises(NameTaken):
            place.folders.publish(JOB, "taken.png")

    apart(piece, refused=means)
    assert files(place.outbox) == {
        "a.png": CUT_OUT,
        "taken.png": b"an earlier one",
        MARK + JOB: CUT_OUT,
    }


def test_system_calls_are_really_refused(tmp_path: Path) -> None:
    (tmp_path / "old").touch()

    def piece() -> None:
        old, new = str(tmp_path / "old"), str(tmp_path / "new")
        assert folders_module._renameat2(Spot(old), Spot(new)) in folders_module._CANNOT
        for folder in (None, folders_module._AT_FDCWD):
            with pytest.raises(PermissionError):
                os.link(old, new, src_dir_fd=folder)

    apart(piece, refused=MEANS["neither"])


# --- temp files -----------------------------------------------------------------------------


def test_a_temp_file_takes_all_or_raises(tmp_path: Path) -> None:
    def piece() -> None:
        filled(tmp_path, spare=40_000)
        temp = Temp(str(tmp_path / "temp"))
        with pytest.raises(OSError, match="No space"):
            temp.file.write(b"x" * 50_000)
        temp.remove()
        assert os.listdir(tmp_path) == ["filling"]

    apart(piece, mounts={tmp_path: "size=1m"})


def test_a_temp_file_of_an_earlier_run_is_overwritten(place: Place) -> None:
    place.make_temp("a.png", b"longer, from before a kill")
    place.make_temp("a.png", b"new")
    assert files(place.outbox) == {MARK + JOB: b"new"}


def test_a_temp_file_follows_no_link(place: Place, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    for link in (os.symlink, os.link):
        link(tmp_path / "secret", place.outbox / (MARK + JOB))
        place.make_temp("a.png")
        assert files(place.outbox) == {MARK + JOB: CUT_OUT}
        assert (tmp_path / "secret").read_bytes() == b"secret"
        (place.outbox / (MARK + JOB)).unlink()


def test_bytes_that_the_disk_did_not_take_are_not_kept(place: Place) -> None:
    def piece() -> None:
        with pytest.raises(DiskFailed, match=r"saving .*outbox"):
            place.make_temp("a.png")

    apart(piece, refused={"fsync": errno.EIO})


def test_a_removed_temp_file_is_gone_and_may_be_removed_again(place: Place) -> None:
    temp = place.folders.temp("a.png", JOB)
    temp.remove()
    temp.remove()
    assert temp.file.closed
    assert files(place.outbox) == {}


def test_what_a_job_left_is_discarded(place: Place) -> None:
    place.make_temp("shoes/a.png")
    place.make_temp("shoes/a.png", job_id=OTHER)
    place.folders.discard_temp("shoes/a.png", JOB)
    place.folders.discard_temp("shoes/a.png", JOB)
    place.folders.discard_temp("hats/a.png", JOB)
    assert files(place.outbox) == {f"shoes/{MARK}{OTHER}": CUT_OUT}


# --- publish, verify, copy --------------------------------------------------------------------


@pytest.mark.parametrize("output", ["a.png", "shoes/red/a.png", "\udce9.png", "x" * 251 + ".png"])
def test_a_cut_out_is_published(place: Place, output: str) -> None:
    assert not place.folders.taken(output)
    assert place.publish(output)
    assert files(place.outbox) == {output: CUT_OUT}
    assert place.folders.taken(output)


def test_publishing_again_finds_nothing(place: Place) -> None:
    place.publish("a.png")
    assert not place.folders.publish(JOB, "a.png")
    assert not place.folders.publish(JOB, "never.png")
    assert files(place.outbox) == {"a.png": CUT_OUT}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_publishing_overwrites_nothing(place: Place, obstacle: Callable[[Path], None]) -> None:
    obstacle(place.outbox / "a.png")
    before = os.lstat(place.outbox / "a.png")
    with pytest.raises(NameTaken):
        place.publish("a.png")
    assert os.lstat(place.outbox / "a.png") == before
    assert files(place.outbox)[MARK + JOB] == CUT_OUT
    assert place.folders.taken("a.png")


def test_a_publish_that_was_killed_half_way_is_ended(place: Place) -> None:
    place.make_temp("a.png")
    os.link(place.outbox / (MARK + JOB), place.outbox / "a.png")
    assert place.folders.publish(JOB, "a.png")
    assert files(place.outbox) == {"a.png": CUT_OUT}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_exactly_these_bytes_are_verified(place: Place, tmp_path: Path) -> None:
    place.publish("a.png")
    place.publish("b.png", CUT_OUT[::-1])
    (place.outbox / "folder.png").mkdir()
    a_fifo(place.outbox / "fifo.png")
    os.rename(place.outbox / "a.png", tmp_path / "a.png")
    (place.outbox / "a.png").symlink_to(tmp_path / "a.png")

    def verified(output: str, sha256: str = digest(CUT_OUT), size: int = len(CUT_OUT)) -> bool:
        return place.folders.verify_published(output, sha256, size)

    assert verified("a.png")
    assert verified(str(tmp_path / "a.png"))
    assert not verified("a.png", size=len(CUT_OUT) + 1)
    assert not verified("b.png")
    assert not any(map(verified, ["c.png", "folder.png", "fifo.png", "a.png/c.png", "d/c.png"]))
    assert not verified(str(tmp_path / "elsewhere" / "c.png"))


def test_an_outbox_that_is_gone_says_nothing_about_its_cut_outs(place: Place) -> None:
    place.publish("shoes/a.png")
    place.make_temp("b.png")
    place.outbox.rename(place.outbox.with_name("unmounted"))
    with pytest.raises(FolderLost):
        place.folders.verify_published("shoes/a.png", digest(CUT_OUT), len(CUT_OUT))
    with pytest.raises(FolderLost):
        place.folders.publish(JOB, "b.png")
    with pytest.raises(FolderLost):
        place.folders.publish(JOB, "shoes/b.png")
    assert not place.outbox.exists()


def test_an_unreadable_cut_out_is_not_taken_for_missing(common: Path) -> None:
    place = Place(common)
    place.publish("a.png")
    os.chmod(place.outbox / "a.png", 0)

    def piece() -> None:
        with pytest.raises(NoPermission, match=r"a\.png"):
            place.folders.verify_published("a.png", digest(CUT_OUT), len(CUT_OUT))

    apart(piece, uid=NOBODY)


def copy(place: Place, source: str, output: str, data: bytes = CUT_OUT) -> bool:
    file = place.folders.cut_out(source)
    assert file is not None
    with file:
        return place.folders.copy_into(file, output, JOB, digest(data))


def test_a_cut_out_is_opened_if_it_is_there(place: Place, tmp_path: Path) -> None:
    place.publish("a.png")
    (place.outbox / "folder.png").mkdir()
    for source in ("a.png", str(place.outbox / "a.png")):
        file = place.folders.cut_out(source, len(CUT_OUT))
        assert file is not None
        with file:
            assert file.read() == CUT_OUT
    assert place.folders.cut_out("a.png", len(CUT_OUT) + 1) is None
    for source in ("gone.png", "folder.png", "a.png/b.png", str(tmp_path / "elsewhere" / "a.png")):
        assert place.folders.cut_out(source) is None
    place.outbox.rename(place.outbox.with_name("unmounted"))
    with pytest.raises(FolderLost):
        place.folders.cut_out("a.png")


def test_a_cut_out_is_copied(place: Place, tmp_path: Path) -> None:
    place.publish("a.png")
    (tmp_path / "far.png").write_bytes(b"from elsewhere")
    assert copy(place, "a.png", "shoes/b.png")
    assert copy(place, str(tmp_path / "far.png"), "c.png", b"from elsewhere")
    assert files(place.outbox) == {
        "a.png": CUT_OUT,
        "shoes/b.png": CUT_OUT,
        "c.png": b"from elsewhere",
    }


def test_a_copy_overwrites_nothing_and_leaves_nothing(place: Place) -> None:
    place.publish("a.png")
    place.publish("b.png", b"another")
    with pytest.raises(NameTaken):
        copy(place, "a.png", "b.png")
    assert files(place.outbox) == {"a.png": CUT_OUT, "b.png": b"another"}


def test_what_is_not_what_it_was_is_not_copied(place: Place) -> None:
    place.publish("a.png")
    file = place.folders.cut_out("a.png", len(CUT_OUT))
    assert file is not None
    with file:
        (place.outbox / "a.png").write_bytes(CUT_OUT[::-1])
        assert not place.folders.copy_into(file, "b.png", JOB, digest(CUT_OUT))
    assert files(place.outbox) == {"a.png": CUT_OUT[::-1]}


def test_a_copy_of_an_earlier_run_will_do_whatever_became_of_its_source(place: Place) -> None:
    place.publish("a.png", b"written over since")
    place.publish("b.png")
    assert copy(place, "a.png", "b.png")
    assert files(place.outbox) == {"a.png": b"written over since", "b.png": CUT_OUT}


@pytest.mark.parametrize("room", [0, 4096, 40_000])
def test_a_copy_onto_a_full_disk_leaves_nothing(tmp_path: Path, room: int) -> None:
    place = Place(tmp_path)
    (tmp_path / "a.png").write_bytes(b"x" * 50_000)

    def piece() -> None:
        filled(place.outbox, spare=room)
        with pytest.raises(DiskFull):
            copy(place, str(tmp_path / "a.png"), "b.png", b"x" * 50_000)
        assert os.listdir(place.outbox) == ["filling"]

    apart(piece, mounts={place.outbox: "size=1m"})


# --- room for a cut-out -----------------------------------------------------------------------


def test_there_is_room_and_the_folder_is_made(place: Place) -> None:
    place.folders.check_room("a.png", 1000)
    place.folders.check_room("shoes/red/a.png", 1000)
    assert (place.outbox / "shoes" / "red").is_dir()


def no_bytes(folder: Path) -> None:
    filled(folder)


def no_inodes(folder: Path) -> None:
    with suppress(OSError):
        for number in itertools.count():
            (folder / str(number)).touch()


@pytest.mark.parametrize("fill", [no_bytes, no_inodes])
def test_a_full_disk_is_found_before_the_money_is_spent(
    tmp_path: Path, fill: Callable[[Path], None]
) -> None:
    place = Place(tmp_path)

    def piece() -> None:
        place.folders.check_room("a.png", 1000)
        with pytest.raises(DiskFull, match=r"saving into .*outbox"):
            place.folders.check_room("a.png", 3_000_000)
        fill(place.outbox)
        for output in ("a.png", "shoes/a.png"):
            with pytest.raises(DiskFull):
                place.folders.check_room(output, 1000)

    apart(piece, mounts={place.outbox: "size=3m,nr_inodes=8"})


def test_a_read_only_disk_is_no_question_of_permission(tmp_path: Path) -> None:
    place = Place(tmp_path)

    def piece() -> None:
        remount(place.outbox, "ro")
        for output in ("a.png", "shoes/a.png"):
            with pytest.raises(ReadOnlyDisk):
                place.folders.check_room(output, 1000)

    apart(piece, mounts={place.outbox: "size=3m"})


@pytest.mark.parametrize("mode", [0o555, 0o666])
def test_an_unwritable_outbox_is_found(common: Path, mode: int) -> None:
    place = Place(common)
    os.chmod(place.outbox, mode)

    def piece() -> None:
        with pytest.raises(NoPermission, match=f"uid {NOBODY} may not write into .*outbox"):
            place.folders.check_room("a.png", 1000)
        with pytest.raises(NoPermission):
            place.folders.check_room("shoes/a.png", 1000)

    apart(piece, uid=NOBODY)


@pytest.mark.parametrize("output", ["a.png", "shoes/a.png", "shoes/red/a.png"])
def test_a_lost_outbox_is_not_made_anew(place: Place, output: str) -> None:
    place.outbox.rmdir()
    with pytest.raises(FolderLost):
        place.folders.check_room(output, 1000)
    with pytest.raises(FolderLost):
        place.folders.temp(output, JOB)
    assert not place.outbox.exists()


@pytest.mark.parametrize("obstacle", [a_file, a_fifo, a_dangling_link])
@pytest.mark.parametrize("output", ["shoes.png/a.png", "shoes.png/red/a.png"])
def test_a_name_in_the_way_of_a_folder_stops_one_image_and_not_the_line(
    place: Place, obstacle: Callable[[Path], None], output: str
) -> None:
    obstacle(place.outbox / "shoes.png")
    place.publish("source.png")
    with pytest.raises(Blocked, match=r"shoes\.png must be a folder"):
        place.folders.check_room(output, 1000)
    with pytest.raises(Blocked):
        copy(place, "source.png", output)
    with pytest.raises(FolderLost, match=r"shoes\.png must be a folder"):
        place.folders.temp(output, JOB)


# --- the original: what all three ways have in common ------------------------------------------


def archive(place: Place, path: str, identity: Identity) -> None:
    place.folders.archive(path, identity, JOB)


def delete(place: Place, path: str, identity: Identity) -> None:
    place.folders.delete(path, identity, JOB)


def quarantine(place: Place, path: str, identity: Identity) -> None:
    name = place.folders.quarantine_name(path)
    place.folders.quarantine(path, identity, REPORTED, name, JOB)


Way = Callable[[Place, str, Identity], None]
WAYS: list[Way] = [archive, delete, quarantine]
PATHS = ["a.jpg", "shoes/red/a.jpg", "a", ".x.jpg", "caf\udce9.jpg", "x" * 251 + ".jpg", "é" * 127]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", PATHS)
def test_an_original_leaves_the_inbox(anywhere: Place, way: Way, path: str) -> None:
    way(anywhere, path, anywhere.drop(path))
    assert files(anywhere.inbox) == {}
    if way is archive:
        assert files(anywhere.archive) == {path: DATA}
    if way is quarantine:
        name = next(candidates(path, 255 - len(REPORT)))
        assert files(anywhere.quarantine) == {name: DATA, name + REPORT: REPORTED}


@pytest.mark.parametrize("way", WAYS)
def test_an_original_that_is_gone_is_told_as_such(place: Place, way: Way) -> None:
    identity = place.drop("a.jpg")
    (place.inbox / "a.jpg").unlink()
    for path in ("a.jpg", "shoes/a.jpg"):
        with pytest.raises(Vanished):
            way(place, path, identity)
    assert files(place.quarantine) == files(place.archive) == {}


def other_bytes(path: Path) -> None:
    path.write_bytes(b"what the user dropped since")


def another_file(path: Path) -> None:
    shutil.copy2(path, path.with_name("copy"))
    path.with_name("copy").rename(path)


def another_time(path: Path) -> None:
    os.utime(path, (1, 1))


def instead(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def put(path: Path) -> None:
        path.unlink()
        make(path)

    return put


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "change", [other_bytes, another_file, another_time, *map(instead, [a_folder, a_dangling_link])]
)
def test_what_was_changed_is_left_alone(
    place: Place, way: Way, change: Callable[[Path], None]
) -> None:
    identity = place.drop("shoes/a.jpg")
    change(place.inbox / "shoes" / "a.jpg")
    before = os.lstat(place.inbox / "shoes" / "a.jpg")
    with pytest.raises(Replaced, match="has changed"):
        way(place, "shoes/a.jpg", identity)
    assert os.listdir(place.inbox / "shoes") == ["a.jpg"]
    assert os.lstat(place.inbox / "shoes" / "a.jpg") == before
    assert files(place.quarantine) == files(place.archive) == {}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("means", MEANS.values(), ids=MEANS)
def test_what_was_changed_in_the_last_moment_is_put_back(
    place: Place, way: Way, means: Mapping[str, int]
) -> None:
    identity = place.drop("a.jpg")
    other_bytes(place.inbox / "a.jpg")
    # As if it had come between the look at the name and the rename.
    os.rename(place.inbox / "a.jpg", place.inbox / hidden_name(JOB, "a.jpg"))

    def piece() -> None:
        with pytest.raises(Replaced):
            way(place, "a.jpg", identity)

    apart(piece, refused=means)
    assert files(place.inbox) == {"a.jpg": b"what the user dropped since"}
    assert files(place.quarantine) == files(place.archive) == {}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_put_back_overwrites_nothing(place: Place, way: Way) -> None:
    identity = place.drop("a.jpg")
    os.rename(place.inbox / "a.jpg", place.inbox / hidden_name(JOB, "a.jpg"))
    (place.inbox / hidden_name(JOB, "a.jpg")).write_bytes(b"changed")
    place.drop("a.jpg", b"dropped meanwhile")
    with pytest.raises(Replaced):
        way(place, "a.jpg", identity)
    assert files(place.inbox) == {"a.jpg": b"dropped meanwhile", "a-2.jpg": b"changed"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", ["a.jpg", "shoes/caf\udce9.jpg", "x" * 251 + ".jpg"])
def test_what_was_set_aside_before_a_kill_goes_on(anywhere: Place, way: Way, path: str) -> None:
    identity = anywhere.drop(path)
    folder, name = (anywhere.inbox / path).parent, os.path.basename(path)
    os.rename(folder / name, folder / hidden_name(JOB, name))
    anywhere.drop(path, b"dropped since")
    way(anywhere, path, identity)
    assert files(anywhere.inbox) == {path: b"dropped since"}
    moved = {*files(anywhere.archive).values(), *files(anywhere.quarantine).values()}
    expected: dict[Way, set[bytes]] = {archive: {DATA}, delete: set(), quarantine: {DATA, REPORTED}}
    assert moved == expected[way]


def test_a_hidden_name_tells_whose_it_is_and_what_it_was() -> None:
    assert hidden_name(JOB, "IMG_1.jpg") == f".bgremover-{JOB}~IMG_1.jpg"
    for name in ("a", ".x", "é" * 127, "x" * 251 + ".jpg", "\udce9" * 255, "a." + "b" * 250):
        hidden = hidden_name(JOB, name)
        assert hidden.startswith(f"{MARK}{JOB}~")
        assert len(os.fsencode(hidden)) <= 255
        assert Ignore().file(hidden, hidden)
    assert hidden_name(JOB, "x" * 251 + ".jpg").endswith(".jpg")
    assert hidden_name(JOB, "x" * 255) != hidden_name(JOB, "x" * 254 + "y")


@pytest.mark.parametrize("way", WAYS)
def test_an_unwritable_subfolder_blocks_one_image(common: Path, way: Way) -> None:
    place = Place(common)
    identity = place.drop("shoes/a.jpg")
    for folder in (place.archive, place.quarantine):
        os.chmod(folder, 0o777)  # noqa: S103 - other users are to write there
    os.chmod(place.inbox / "shoes", 0o555)  # noqa: S103 - other users may look

    def piece() -> None:
        with pytest.raises(Blocked, match=f"uid {NOBODY} may not move shoes/a.jpg"):
            way(place, "shoes/a.jpg", identity)

    apart(piece, uid=NOBODY)
    assert files(place.inbox) == {"shoes/a.jpg": DATA}
    assert files(place.archive) == files(place.quarantine) == {}


@pytest.mark.parametrize("way", [archive, quarantine])
@pytest.mark.parametrize("path", ["a.jpg", "shoes/a.jpg"])
def test_a_lost_folder_leaves_the_original_where_it_was(place: Place, way: Way, path: str) -> None:
    identity = place.drop(path)
    place.archive.rmdir()
    place.quarantine.rmdir()
    with pytest.raises(FolderLost):
        way(place, path, identity)
    assert files(place.inbox) == {path: DATA}
    assert not place.archive.exists()
    assert not place.quarantine.exists()


@pytest.mark.parametrize("way", [archive, quarantine])
def test_a_name_in_the_way_of_a_folder_leaves_the_original(place: Place, way: Way) -> None:
    identity = place.drop("shoes/a.jpg")
    a_file(place.archive / "shoes")
    a_file(place.quarantine / "shoes")
    with pytest.raises(Blocked, match="shoes must be a folder"):
        way(place, "shoes/a.jpg", identity)
    assert files(place.inbox) == {"shoes/a.jpg": DATA}
    assert files(place.quarantine) == files(place.archive) == {"shoes": b"somebody else's"}


@pytest.mark.parametrize("way", [archive, quarantine])
@pytest.mark.parametrize("room", [0, 4096, 36_000])
def test_a_full_disk_leaves_the_original_where_it_was(tmp_path: Path, way: Way, room: int) -> None:
    place = Place(tmp_path)
    data = b"y" * 40_000
    identity = place.drop("a.jpg", data)

    def piece() -> None:
        for folder in (place.archive, place.quarantine):
            filled(folder, spare=room)
        with pytest.raises(DiskFull):
            way(place, "a.jpg", identity)
        assert files(place.inbox) == {"a.jpg": data}
        assert os.listdir(place.archive) == ["filling"]
        assert set(os.listdir(place.quarantine)) <= {"filling", "a.jpg" + REPORT}
        (place.archive / "filling").unlink()
        (place.quarantine / "filling").unlink()
        way(place, "a.jpg", identity)
        assert data in {*files(place.archive).values(), *files(place.quarantine).values()}

    apart(piece, mounts={place.archive: "size=1m", place.quarantine: "size=1m"})


@pytest.mark.parametrize("way", WAYS)
def test_a_file_system_without_fsync_of_folders_will_do(place: Place, way: Way) -> None:
    identity = place.drop("a.jpg")
    (place.quarantine / ("a.jpg" + REPORT)).write_bytes(REPORTED)

    def piece() -> None:
        if way is quarantine:
            place.folders.quarantine("a.jpg", identity, REPORTED, "a.jpg", JOB)
        else:
            way(place, "a.jpg", identity)

    apart(piece, refused={"fsync": errno.EINVAL})
    assert files(place.inbox) == {}


@pytest.mark.parametrize("way", WAYS)
def test_a_disk_that_fails_loses_nothing(anywhere: Place, way: Way) -> None:
    identity = anywhere.drop("a.jpg")

    def piece() -> None:
        with pytest.raises(DiskFailed):
            way(anywhere, "a.jpg", identity)

    apart(piece, refused={"fsync": errno.EIO})
    if way is not delete:
        found = [
            files(folder) for folder in (anywhere.inbox, anywhere.archive, anywhere.quarantine)
        ]
        assert [data for names in found for data in names.values()].count(DATA) == 1
    with suppress(Vanished):
        way(anywhere, "a.jpg", identity)
    assert files(anywhere.inbox) == {}


# --- archive ----------------------------------------------------------------------------------


def test_a_taken_name_in_the_archive_gets_a_number(anywhere: Place) -> None:
    (anywhere.archive / "shoes").mkdir()
    (anywhere.archive / "shoes" / "a.jpg").write_bytes(DATA)
    a_dangling_link(anywhere.archive / "shoes" / "a-2.jpg")
    archive(anywhere, "shoes/a.jpg", anywhere.drop("shoes/a.jpg", b"one"))
    archive(anywhere, "shoes/a.jpg", anywhere.drop("shoes/a.jpg", b"two"))
    assert files(anywhere.archive) == {
        "shoes/a.jpg": DATA,
        "shoes/a-3.jpg": b"one",
        "shoes/a-4.jpg": b"two",
    }


def test_the_same_bytes_under_a_taken_name_are_kept_twice(anywhere: Place) -> None:
    for _ in range(2):
        archive(anywhere, "a.jpg", anywhere.drop("a.jpg"))
    assert files(anywhere.archive) == {"a.jpg": DATA, "a-2.jpg": DATA}


def found(place: Place, data: bytes, size: int | None = None) -> bytes | None:
    file = place.folders.archived("shoes/a.jpg", digest(data), size or len(data))
    if file is None:
        return None
    with file:
        return file.read()


def test_an_archived_original_is_found_by_its_bytes(place: Place) -> None:
    versions = [bytes([number]) * 5000 for number in range(3)]
    for data in versions:
        archive(place, "shoes/a.jpg", place.drop("shoes/a.jpg", data))
    assert [found(place, data) for data in versions] == versions
    (place.archive / "shoes" / "a.jpg").unlink()  # too old to be kept
    (place.archive / "shoes" / "a-2.jpg").write_bytes(DATA)
    assert [found(place, data) for data in versions] == [None, None, versions[2]]
    assert found(place, versions[2], 4999) is None


def test_an_archived_original_is_found_behind_no_link_and_no_fifo(
    place: Place, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere.jpg").write_bytes(DATA)
    (place.archive / "shoes").mkdir()
    (place.archive / "shoes" / "a.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    a_fifo(place.archive / "shoes" / "a-2.jpg")
    a_folder(place.archive / "shoes" / "a-3.jpg")
    assert found(place, DATA) is None
    assert found(place, b"") is None


def test_the_times_of_an_original_are_kept(anywhere: Place) -> None:
    identity = anywhere.drop("a.jpg")
    os.chmod(anywhere.inbox / "a.jpg", 0o640)
    archive(anywhere, "a.jpg", identity)
    found = (anywhere.archive / "a.jpg").stat()
    assert found.st_mtime_ns == identity.mtime_ns
    assert stat.S_IMODE(found.st_mode) == 0o640


def test_a_copy_belongs_to_the_owner_and_sets_no_user_id(tmp_path: Path, other_disk: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a file to another user")
    place = Place(tmp_path, other_disk)
    identity = place.drop("a.jpg")
    os.chown(place.inbox / "a.jpg", NOBODY, NOBODY)
    os.chmod(place.inbox / "a.jpg", 0o6755)  # noqa: S103 - a program, by its mode
    archive(place, "a.jpg", identity)
    found = (place.archive / "a.jpg").stat()
    assert (found.st_uid, found.st_gid) == (NOBODY, NOBODY)
    assert stat.S_IMODE(found.st_mode) == 0o755


def test_an_original_that_cannot_be_copied_blocks_one_image(common: Path) -> None:
    place = Place(common)
    identity = place.drop("a.jpg")
    os.chmod(place.inbox / "a.jpg", 0)
    os.chmod(place.inbox, 0o777)  # noqa: S103 - another user is to rename there
    with tempfile.TemporaryDirectory(dir=SHM) as name:
        elsewhere = Path(name)
        if elsewhere.stat().st_dev == common.stat().st_dev:
            pytest.skip(f"needs {SHM} to be another file system than {common}")
        os.chmod(elsewhere, 0o777)  # noqa: S103 - another user is to write there
        roots = Roots(str(place.outbox), str(place.quarantine), name)
        folders = Folders(roots, Inbox(place.inbox, Ignore()).holding)

        def piece() -> None:
            with pytest.raises(Blocked, match="may not read"):
                folders.archive("a.jpg", identity, JOB)

        apart(piece, uid=NOBODY)
        assert os.listdir(elsewhere) == []
    assert files(place.inbox) == {"a.jpg": DATA}


class Restless(io.BufferedReader):
    """A file that somebody goes on writing to while it is read."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._path = path

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if data:
            with open(self._path, "ab") as writer:
                writer.write(b"m")
        return data[:-1] if data == b"m" else data


def test_what_is_written_to_while_it_is_copied_stays(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(DATA)
    with (
        folders_module._opened(str(tmp_path)) as folder,
        Restless(tmp_path / "a.jpg") as original,
        pytest.raises(Replaced, match="written to while it was moved"),
    ):
        folders_module._copy(original, Spot("b.jpg", folder), "temp")
    assert list(files(tmp_path)) == ["a.jpg"]


# --- quarantine -------------------------------------------------------------------------------


def test_a_name_in_quarantine_is_free_for_image_and_report(place: Place) -> None:
    assert place.folders.quarantine_name("a.jpg") == "a.jpg"
    a_dangling_link(place.quarantine / "a.jpg")
    a_file(place.quarantine / ("a-2.jpg" + REPORT))
    assert place.folders.quarantine_name("a.jpg") == "a-3.jpg"
    longest = place.folders.quarantine_name("x" * 251 + ".jpg")
    assert len(longest) == 255 - len(REPORT)
    assert longest.endswith(".jpg")


@pytest.mark.parametrize("taken", ["a.jpg", "a.jpg" + REPORT])
@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_a_name_that_was_taken_meanwhile_is_told_and_nothing_is_left(
    anywhere: Place, taken: str, obstacle: Callable[[Path], None]
) -> None:
    identity = anywhere.drop("a.jpg")
    obstacle(anywhere.quarantine / taken)
    with pytest.raises(NameTaken):
        anywhere.folders.quarantine("a.jpg", identity, REPORTED, "a.jpg", JOB)
    assert files(anywhere.inbox) == {"a.jpg": DATA}
    assert os.listdir(anywhere.quarantine) == [taken]
    quarantine(anywhere, "a.jpg", identity)
    kept = files(anywhere.quarantine)
    assert (kept["a-2.jpg"], kept["a-2.jpg" + REPORT]) == (DATA, REPORTED)


def test_the_report_of_another_is_not_taken_for_ones_own(place: Place) -> None:
    identity = place.drop("a.jpg")
    (place.quarantine / ("a.jpg" + REPORT)).write_bytes(REPORTED + b"\n")
    with pytest.raises(NameTaken):
        place.folders.quarantine("a.jpg", identity, REPORTED, "a.jpg", JOB)
    assert files(place.quarantine) == {"a.jpg" + REPORT: REPORTED + b"\n"}


def test_a_report_without_its_image_is_withdrawn(place: Place) -> None:
    identity = place.drop("a.jpg")
    (place.quarantine / ("a.jpg" + REPORT)).write_bytes(REPORTED)  # then a kill,
    (place.inbox / "a.jpg").unlink()  # and the user removes the original
    with pytest.raises(Vanished):
        place.folders.quarantine("a.jpg", identity, REPORTED, "a.jpg", JOB)
    assert files(place.quarantine) == {}


def test_what_lies_in_quarantine_already_keeps_its_report(anywhere: Place) -> None:
    identity = anywhere.drop("a.jpg")
    quarantine(anywhere, "a.jpg", identity)
    for _ in range(2):
        with pytest.raises(Vanished):
            anywhere.folders.quarantine("a.jpg", identity, REPORTED, "a.jpg", JOB)
    anywhere.drop("a.jpg", b"dropped since")
    with pytest.raises(Replaced):
        anywhere.folders.quarantine("a.jpg", identity, REPORTED, "a.jpg", JOB)
    assert files(anywhere.quarantine) == {"a.jpg": DATA, "a.jpg" + REPORT: REPORTED}
    assert files(anywhere.inbox) == {"a.jpg": b"dropped since"}


def nothing_done(_place: Place) -> None:
    pass


def set_aside(place: Place) -> None:
    os.rename(place.inbox / "a.jpg", place.inbox / hidden_name(JOB, "a.jpg"))


def report_begun(place: Place) -> None:
    set_aside(place)
    (place.quarantine / f"{MARK}{JOB}{REPORT}").write_bytes(REPORTED[:5])


def report_written(place: Place) -> None:
    set_aside(place)
    (place.quarantine / ("a.jpg" + REPORT)).write_bytes(REPORTED)


def copied(place: Place) -> None:
    report_written(place)
    (place.quarantine / "a.jpg").write_bytes(DATA)


def linked(place: Place) -> None:
    report_written(place)
    with suppress(OSError):  # on two disks it cannot come so far
        os.link(place.inbox / hidden_name(JOB, "a.jpg"), place.quarantine / "a.jpg")


@pytest.mark.parametrize(
    "killed",
    [nothing_done, set_aside, report_begun, report_written, copied, linked],
)
def test_after_a_kill_one_image_and_one_report_lie_in_quarantine(
    anywhere: Place, killed: Callable[[Place], None]
) -> None:
    identity = anywhere.drop("a.jpg")
    killed(anywhere)
    anywhere.folders.quarantine("a.jpg", identity, REPORTED, "a.jpg", JOB)
    assert files(anywhere.quarantine) == {"a.jpg": DATA, "a.jpg" + REPORT: REPORTED}
    assert files(anywhere.inbox) == {}


@pytest.mark.parametrize("way", [archive, quarantine])
def test_a_copy_that_was_begun_before_a_kill_is_made_anew(
    tmp_path: Path, other_disk: Path, way: Way
) -> None:
    place = Place(tmp_path, other_disk)
    identity = place.drop("a.jpg")
    set_aside(place)
    for folder in (place.archive, place.quarantine):
        (folder / hidden_name(JOB, "a.jpg")).write_bytes(DATA[:5])
    way(place, "a.jpg", identity)
    moved = place.archive if way is archive else place.quarantine
    assert files(moved)["a.jpg"] == DATA
    assert not any(name.startswith(MARK) for name in files(moved))


# --- killed at every step -----------------------------------------------------------------------


def publish_temp(place: Place, name: str) -> None:
    place.folders.publish(JOB, name)


def publish_copy(place: Place, name: str) -> None:
    copy(place, "source.png", name)


@pytest.mark.parametrize("means", MEANS.values(), ids=MEANS)
@pytest.mark.parametrize("publish", [publish_temp, publish_copy])
def test_a_publish_killed_at_any_step_is_made_good(
    place: Place, publish: Callable[[Place, str], None], means: Mapping[str, int]
) -> None:
    place.publish("source.png")
    expected = {"source.png": CUT_OUT}
    for moment in itertools.count():
        name = f"{moment}.png"
        if publish is publish_temp:
            place.make_temp(name)
        died = dies_at(moment, partial(publish, place, name), means)
        apart(partial(publish, place, name), refused=means)
        expected[name] = CUT_OUT
        assert files(place.outbox) == expected
        if not died:
            break
    assert moment >= 1


@pytest.mark.parametrize("means", MEANS.values(), ids=MEANS)
@pytest.mark.parametrize("way", WAYS)
def test_a_move_killed_at_any_step_is_made_good(
    anywhere: Place, way: Way, means: Mapping[str, int]
) -> None:
    for moment in itertools.count():
        path = f"shoes/{moment}.jpg"
        identity = anywhere.drop(path)
        died = dies_at(moment, partial(move, anywhere, way, path, identity), means)
        apart(partial(move, anywhere, way, path, identity), refused=means)
        assert files(anywhere.inbox) == {}
        if not died:
            break
    paths = [f"shoes/{number}.jpg" for number in range(moment + 1)]
    assert files(anywhere.archive) == (dict.fromkeys(paths, DATA) if way is archive else {})
    reports = {path + REPORT: REPORTED for path in paths}
    kept = {**dict.fromkeys(paths, DATA), **reports} if way is quarantine else {}
    assert files(anywhere.quarantine) == kept
    assert moment >= 2


def move(place: Place, way: Way, path: str, identity: Identity) -> None:
    """Move as the pipeline does: the name in quarantine is known before and after a kill."""
    with suppress(Vanished):
        if way is quarantine:
            place.folders.quarantine(path, identity, REPORTED, path, JOB)
        else:
            way(place, path, identity)


# --- back from quarantine ---------------------------------------------------------------------


@pytest.mark.parametrize("path", ["a.jpg", "shoes/red/a.jpg"])
def test_an_image_is_released_and_its_report_removed(anywhere: Place, path: str) -> None:
    identity = anywhere.drop(path)
    quarantine(anywhere, path, identity)
    shutil.rmtree(anywhere.inbox)
    anywhere.inbox.mkdir()
    assert anywhere.folders.release(path, path, OTHER) == path
    assert files(anywhere.inbox) == {path: DATA}
    assert (anywhere.inbox / path).stat().st_mtime_ns == identity.mtime_ns
    assert files(anywhere.quarantine) == {}


def test_a_release_overwrites_nothing(anywhere: Place) -> None:
    quarantine(anywhere, "shoes/a.jpg", anywhere.drop("shoes/a.jpg"))
    anywhere.drop("shoes/a.jpg", b"dropped since")
    assert anywhere.folders.release("shoes/a.jpg", "shoes/a.jpg", OTHER) == "shoes/a-2.jpg"
    assert files(anywhere.inbox) == {"shoes/a.jpg": b"dropped since", "shoes/a-2.jpg": DATA}


@pytest.mark.parametrize("name", ["a.jpg", "shoes/a.jpg"])
def test_what_is_no_longer_in_quarantine_cannot_be_released(place: Place, name: str) -> None:
    with pytest.raises(Vanished):
        place.folders.release(name, name, OTHER)
    place.quarantine.rmdir()
    with pytest.raises(FolderLost):
        place.folders.release(name, name, OTHER)


@pytest.mark.parametrize("obstacle", [a_file, a_dangling_link])
def test_a_release_follows_no_link(
    place: Place, tmp_path: Path, obstacle: Callable[[Path], None]
) -> None:
    quarantine(place, "shoes/a.jpg", place.drop("shoes/a.jpg"))
    (place.inbox / "shoes").rmdir()
    (tmp_path / "nowhere").mkdir()
    obstacle(place.inbox / "shoes")
    with pytest.raises(Replaced, match="no folder"):
        place.folders.release("shoes/a.jpg", "shoes/a.jpg", OTHER)
    assert files(place.quarantine) == {"shoes/a.jpg": DATA, "shoes/a.jpg" + REPORT: REPORTED}


# --- the law ------------------------------------------------------------------------------------


class Users(RuleBasedStateMachine):
    """Users drop, replace, rename and take; jobs archive, quarantine and are killed.

    What users put somewhere and did not themselves replace or take is always somewhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.place = Place(self.root)
        self.numbers = itertools.count()
        self.kept: set[bytes] = set()
        self.jobs: list[tuple[str, Identity, str]] = []

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    names = st.sampled_from(["a.jpg", "b.jpg", "shoes/a.jpg"])
    stores = st.sampled_from(["inbox", "archive", "quarantine"])

    def new(self) -> bytes:
        return b"picture %d" % next(self.numbers)

    def forget(self, path: Path) -> None:
        if path.exists():
            self.kept.discard(path.read_bytes())

    @rule(name=names)
    def drop(self, name: str) -> None:
        self.forget(self.place.inbox / name)
        data = self.new()
        (self.root / "beside").write_bytes(data)
        (self.place.inbox / name).parent.mkdir(exist_ok=True)
        (self.root / "beside").rename(self.place.inbox / name)
        self.kept.add(data)

    @rule(name=names, store=stores)
    def write_over(self, name: str, store: str) -> None:
        path = self.root / store / name
        self.forget(path)
        data = self.new()
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        self.kept.add(data)

    @rule(old=names, new=names, one=stores, other=stores)
    def move(self, old: str, new: str, one: str, other: str) -> None:
        source, target = self.root / one / old, self.root / other / new
        if source.exists() and source != target:
            self.forget(target)
            target.parent.mkdir(exist_ok=True)
            source.rename(target)

    @rule(name=names)
    def claim(self, name: str) -> None:
        path = self.place.inbox / name
        if path.exists():
            self.jobs.append((name, Identity.of(path.stat()), f"{next(self.numbers):032x}"))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), keep=st.booleans())
    def archive(self, data: st.DataObject, keep: bool) -> None:
        name, identity, job_id = job = data.draw(st.sampled_from(self.jobs))
        with suppress(Withdrawn):
            self.place.folders.archive(name, identity, job_id)
        if not keep:  # else it was killed before it was recorded
            self.jobs.remove(job)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), wished=names)
    def quarantine(self, data: st.DataObject, wished: str) -> None:
        name, identity, job_id = data.draw(st.sampled_from(self.jobs))
        with suppress(Withdrawn, NameTaken):
            report = f"report of {job_id}".encode()
            self.place.folders.quarantine(name, identity, report, wished, job_id)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def set_aside_and_die(self, data: st.DataObject) -> None:
        name, _, job_id = data.draw(st.sampled_from(self.jobs))
        path = self.place.inbox / name
        if path.exists() and not path.with_name(hidden_name(job_id, path.name)).exists():
            path.rename(path.with_name(hidden_name(job_id, path.name)))

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.kept <= set(files(self.root).values())

    @invariant()
    def every_hidden_file_is_a_job_s(self) -> None:
        known = {job_id for _, _, job_id in self.jobs}
        for path in files(self.root):
            name = os.path.basename(path)
            if name.startswith(MARK):
                assert name[len(MARK) :].partition("~")[0] in known


TestUsers = Users.TestCase
TestUsers.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_the_law_is_no_empty_one(place: Place) -> None:
    """The case that the law is about does happen: a changed file is met, and moved ones are."""
    identity = place.drop("a.jpg")
    archive(place, "a.jpg", identity)
    place.drop("a.jpg", b"another")
    with pytest.raises(Replaced):
        archive(place, "a.jpg", identity)
    assert files(place.archive) == {"a.jpg": DATA}


def test_a_machine_without_the_means_skips() -> None:
    def piece() -> None:
        raise Missing("needs what is not here")

    with pytest.raises(pytest.skip.Exception, match="needs what is not here"):
        apart(piece)
