"""What lies in the inbox, on a real disk: links, odd files, other processes, other users."""

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bgremover.core.errors import (
    Blocked,
    DiskFailed,
    FolderLost,
    LocalFault,
    NoPermission,
    Replaced,
    TooManyOpenFiles,
    Vanished,
)
from bgremover.core.ignoring import Ignore
from bgremover.core.job import Identity
from bgremover.core.terms import FolderTerms, Override
from bgremover.edges.inbox import Inbox, Sweep, lease_says_closed
from tests import fakes
from tests.apart import NOBODY, apart, open_to_all
from tests.edges.test_watcher import no_descriptors


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the inbox whose files must never be seen."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"secret")
    return folder


@pytest.fixture
def inbox(root: Path) -> Inbox:
    return Inbox(root, Ignore())


def nothing(_path: str, _identity: Identity) -> bool:
    return False


def swept(inbox: Inbox, room: int = 100_000) -> Sweep:
    return inbox.sweep(nothing, room)


def found(inbox: Inbox) -> list[str]:
    return sorted(one.path for one in swept(inbox).sightings)


def make(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")


# --- the sweep ----------------------------------------------------------------------------------


def test_an_empty_inbox_has_one_folder(inbox: Inbox) -> None:
    assert swept(inbox) == Sweep((), more=False, files=0, folders=1, odd=())


def test_files_are_found_in_every_folder_with_what_they_are(root: Path, inbox: Inbox) -> None:
    paths = ["a.jpg", "shoes/b.jpg", "shoes/red/c.png", "no picture"]
    make(root, *paths)
    sweep = swept(inbox)
    assert sorted(one.path for one in sweep.sightings) == sorted(paths)
    assert (sweep.files, sweep.folders, sweep.more, sweep.odd) == (4, 3, 0, ())
    for one in sweep.sightings:
        assert one.identity == Identity.of((root / one.path).stat())
        assert one.closed is None


def test_sub_folders_do_not_count_unless_asked(root: Path) -> None:
    make(root, "a.jpg", "shoes/b.jpg")
    sweep = swept(Inbox(root, Ignore(), recursive=False))
    assert [one.path for one in sweep.sightings] == ["a.jpg"]
    assert (sweep.files, sweep.folders) == (1, 1)


def test_no_more_are_told_than_there_is_room_for(root: Path, inbox: Inbox) -> None:
    make(root, *(f"{number}.jpg" for number in range(10)))
    for room, more in ((0, 10), (3, 7), (9, 1), (10, 0), (11, 0)):
        sweep = swept(inbox, room)
        assert (len(sweep.sightings), sweep.more, sweep.files) == (min(room, 10), more, 10)


def test_what_needs_no_attention_is_counted_and_takes_no_room(root: Path, inbox: Inbox) -> None:
    make(root, *(f"{number}.jpg" for number in range(10)))
    asked: dict[str, Identity] = {}

    def known(path: str, identity: Identity) -> bool:
        asked[path] = identity
        return path != "7.jpg"

    sweep = inbox.sweep(known, 1)
    assert [one.path for one in sweep.sightings] == ["7.jpg"]
    assert (sweep.files, sweep.more) == (10, 0)
    assert asked["3.jpg"] == Identity.of((root / "3.jpg").stat())


def test_litter_is_not_found_and_its_folders_are_not_entered(root: Path) -> None:
    litter = ["@eaDir/a.jpg/x.jpg", ".stversions/a.jpg", "#recycle/deep/a.jpg", "raw/a.jpg"]
    files = ["Thumbs.db", "._a.jpg", "a.jpg.part", ".DS_Store", "shoes/.b.jpg", "b~"]
    make(root, *litter, *files, "shoes/a.jpg", "keep/a.jpg")
    sweep = swept(Inbox(root, Ignore(("raw",))))
    assert sorted(one.path for one in sweep.sightings) == ["keep/a.jpg", "shoes/a.jpg"]
    assert (sweep.files, sweep.folders, sweep.odd) == (2, 3, ())


NAMES = [
    b"caf\xe9.jpg",
    b"line\nfeed.jpg",
    b"\x1b[31mred.jpg",
    b"-rf.jpg",
    b".jpg",
    b"a b\t.jpg",
    "\u202egnp.jpg".encode(),
    b"x" * 251 + b".jpg",
    b"\xff",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_found_looked_at_and_opened(root: Path, inbox: Inbox, name: bytes) -> None:
    path = os.fsdecode(name)
    folder = os.fsencode(root / "d")
    os.mkdir(folder)
    with open(os.path.join(folder, name), "wb") as file:
        file.write(b"whole")
    if path.startswith("."):
        assert found(inbox) == []
        return
    assert found(inbox) == [f"d/{path}"]
    assert [one.path for one in inbox.look([f"d/{path}"])] == [f"d/{path}"]
    with inbox.open(f"d/{path}") as opened:
        assert opened.read() == b"whole"


@pytest.mark.parametrize("length", [1, 200])
def test_forty_levels_down_are_found_though_the_path_is_longer_than_the_system_takes(
    root: Path, inbox: Inbox, length: int
) -> None:
    folder, above = os.open(root, os.O_RDONLY), list[str]()
    for level in range(40):
        name = f"{level:02}".ljust(length, "x")
        os.mkdir(name, dir_fd=folder)
        inner = os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder, above = inner, [*above, name]
    os.close(os.open("a.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    os.close(folder)
    path = "/".join([*above, "a.jpg"])
    assert found(inbox) == [path]
    assert swept(inbox).odd == ()
    assert [one.path for one in inbox.look([path])] == [path]
    assert inbox.open(path).close() is None
    shutil.rmtree(root / above[0])


@given(st.lists(fakes.paths, max_size=12))
@example(["a.jpg", "b/c.jpg", ".hidden/x", "@eaDir/y", "b/.z"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_lies_there_is_found_but_for_litter(paths: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        made = set()
        for path in paths:
            if {".", ".."} & set(path.split("/")):
                continue
            with contextlib.suppress(OSError):  # a file stands where a folder is wanted
                make(Path(name), path)
                made.add(path)
        inbox = Inbox(name, Ignore())
        wanted = {path for path in made if not Ignore().path(path)}
        assert set(found(inbox)) == wanted
        assert {one.path for one in inbox.look(made)} == wanted


# --- what is no file ----------------------------------------------------------------------------


def symlink(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def dangling(path: Path) -> None:
    path.symlink_to("/nowhere")


def link_to_a_folder(path: Path) -> None:
    path.symlink_to("/etc")


def loop(path: Path) -> None:
    path.symlink_to(".")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("needs root and CAP_MKNOD, to make a device")


@pytest.mark.parametrize(
    ("put", "words"),
    [
        (symlink, "a symbolic link"),
        (dangling, "a symbolic link"),
        (link_to_a_folder, "a symbolic link"),
        (loop, "a symbolic link"),
        (link_to_itself, "a symbolic link"),
        (os.mkfifo, "a FIFO"),
        (unix_socket, "a socket"),
        (device, "a character device"),
    ],
)
def test_what_is_no_file_is_left_alone_with_one_word(
    root: Path, inbox: Inbox, put: Callable[[Path], None], words: str
) -> None:
    put(root / "x.jpg")
    make(root, "a.jpg")
    sweep = swept(inbox)
    assert sweep.odd == (("x.jpg", f"{words}: left alone"),)
    assert [one.path for one in sweep.sightings] == ["a.jpg"]
    assert sweep.files == 1
    assert inbox.look(["x.jpg"], leases=True) == ()
    with pytest.raises((Replaced, Vanished)):
        inbox.open("x.jpg")


def test_a_folder_with_the_name_of_an_image_is_entered_with_a_word(
    root: Path, inbox: Inbox
) -> None:
    make(root, "x.JPG/a.jpg")
    sweep = swept(inbox)
    assert sweep.odd == (("x.JPG", "a folder with the name of an image; it is entered"),)
    assert [one.path for one in sweep.sightings] == ["x.JPG/a.jpg"]
    with pytest.raises(Replaced, match="no regular file"):
        inbox.open("x.JPG")


def test_a_hard_link_is_a_file(root: Path, inbox: Inbox, outside: Path) -> None:
    os.link(outside / "a.jpg", root / "a.jpg")
    assert found(inbox) == ["a.jpg"]


# --- links --------------------------------------------------------------------------------------


def test_nothing_below_a_link_is_found_looked_at_or_opened(
    root: Path, inbox: Inbox, outside: Path
) -> None:
    (root / "link").symlink_to(outside)
    make(root, "real/a.jpg")
    (root / "real" / "link").symlink_to(outside)
    assert found(inbox) == ["real/a.jpg"]
    for path in ("link/a.jpg", "real/link/a.jpg", "link"):
        assert inbox.look([path], leases=True) == ()
        with pytest.raises((Replaced, Vanished)):
            inbox.open(path)


def test_the_inbox_itself_may_be_a_link(tmp_path: Path, root: Path) -> None:
    make(root, "a.jpg")
    (tmp_path / "alias").symlink_to(root)
    inbox = Inbox(tmp_path / "alias", Ignore())
    assert inbox.root == str(root)
    assert found(inbox) == ["a.jpg"]


def test_a_folder_that_becomes_a_link_during_the_sweep_is_not_followed(
    root: Path, inbox: Inbox, outside: Path
) -> None:
    make(root, "a.jpg", "x/deep/b.jpg", "y/deep/b.jpg")
    (outside / "deep").mkdir()
    (outside / "deep" / "stolen.jpg").touch()
    swapped: list[str] = []

    def swap(path: str, _: Identity) -> bool:
        if path == "a.jpg":  # the folders are known by now, and not entered yet
            for name in ("x", "y"):
                os.rename(root / name, root / f".{name}")
                (root / name).symlink_to(outside)
                swapped.append(name)
        return False

    seen = [one.path for one in inbox.sweep(swap, 100).sightings]
    assert swapped == ["x", "y"]
    assert seen == ["a.jpg"]


SWAPPER = """
import os, sys
root, outside = sys.argv[1:]
print("on", flush=True)
while True:
    os.symlink(outside + "/a.jpg", root + "/.link")
    os.rename(root + "/.link", root + "/a.jpg")
    with open(root + "/.file", "wb") as file:
        file.write(b"inside")
    os.rename(root + "/.file", root + "/a.jpg")
    os.rename(root + "/d", root + "/.d")
    os.symlink(outside, root + "/d")
    os.unlink(root + "/d")
    os.rename(root + "/.d", root + "/d")
"""


@contextlib.contextmanager
def swapping(root: Path, outside: Path) -> Iterator[None]:
    command = [sys.executable, "-c", SWAPPER, str(root), str(outside)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as swapper:
        try:
            assert swapper.stdout is not None
            assert swapper.stdout.readline() == b"on\n"
            yield
        finally:
            swapper.kill()


@pytest.mark.parametrize("path", ["a.jpg", "d/a.jpg"])
def test_whatever_is_swapped_in_a_link_is_never_followed(
    root: Path, inbox: Inbox, outside: Path, path: str
) -> None:
    make(root, "a.jpg", "d/a.jpg")
    (root / "d" / "a.jpg").write_bytes(b"inside")
    (root / "a.jpg").write_bytes(b"inside")
    read: dict[bytes | str, int] = {}
    with swapping(root, outside):
        for _ in range(200_000):
            try:
                with inbox.open(path) as file:
                    content: bytes | str = file.read()
            except (Replaced, Vanished) as fault:
                content = fault.code
            read[content] = read.get(content, 0) + 1
            refused = {"replaced", "vanished"} & read.keys()
            if sum(read.values()) > 5000 and b"inside" in read and refused:
                break
    assert b"inside" in read
    assert b"secret" not in read
    assert {"replaced", "vanished"} & read.keys()


# --- single files -------------------------------------------------------------------------------


def test_only_what_is_there_is_looked_at(root: Path, inbox: Inbox) -> None:
    make(root, "a.jpg", "d/b.jpg", "d/e/c.jpg", ".hidden/x.jpg", "d/.part.jpg", "d/x.part")
    paths = ["a.jpg", "none.jpg", "none/a.jpg", "a.jpg/x", ".hidden/x.jpg", "d/x.part", "d/e"]
    assert [one.path for one in inbox.look(paths)] == ["a.jpg", "d/e/c.jpg"]
    assert sorted(one.path for one in inbox.look(["d"])) == ["d/b.jpg", "d/e/c.jpg"]
    assert inbox.look([""]) == ()


def test_a_look_at_a_folder_is_none_without_sub_folders(root: Path) -> None:
    make(root, "d/b.jpg")
    assert Inbox(root, Ignore(), recursive=False).look(["d"]) == ()


def no_change(_: Path) -> None:
    pass


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def touch(path: Path) -> None:
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def replace(path: Path) -> None:
    times = path.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.rename(other, path)


def change_mode(path: Path) -> None:
    path.chmod(0o640)


def change_links(path: Path) -> None:
    os.link(path, path.with_name("twin"))


def rewrite_and_hide(path: Path) -> None:
    times = path.stat()
    path.write_bytes(b"y")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "seen", "refused"),
    [
        (no_change, False, False),
        (append, True, True),
        (touch, True, True),
        (replace, True, True),
        (change_mode, True, False),
        (change_links, True, False),
        # Same size, same times, same file: only the change time tells.
        (rewrite_and_hide, True, False),
    ],
)
def test_a_file_that_changes_has_another_identity(
    root: Path, inbox: Inbox, change: Callable[[Path], None], seen: bool, refused: bool
) -> None:
    make(root, "a.jpg")
    (before,) = inbox.look(["a.jpg"])
    change(root / "a.jpg")
    (after,) = inbox.look(["a.jpg"])
    assert (before.identity != after.identity) == seen
    if not refused:
        inbox.open("a.jpg", before.identity).close()
        return
    with pytest.raises(Replaced, match="has changed since it was claimed"):
        inbox.open("a.jpg", before.identity)
    inbox.open("a.jpg", after.identity).close()


def test_what_was_opened_stays_what_it_was(root: Path, inbox: Inbox) -> None:
    make(root, "a.jpg")
    with inbox.open("a.jpg") as file:
        (root / "a.jpg").unlink()
        (root / "a.jpg").write_bytes(b"other")
        assert file.read() == b"x"


@pytest.mark.parametrize("path", ["none.jpg", "none/a.jpg", "a.jpg/a.jpg"])
def test_what_is_gone_has_vanished(root: Path, inbox: Inbox, path: str) -> None:
    make(root, "a.jpg")
    with pytest.raises((Vanished, Replaced)) as told:
        inbox.open(path)
    assert path in told.value.message


def test_names_in_messages_are_harmless(inbox: Inbox) -> None:
    with pytest.raises(Vanished) as told:
        inbox.open("\x1b[31m\n\udce9.jpg")
    assert told.value.message.isprintable()


# --- the inbox is lost --------------------------------------------------------------------------


def test_an_inbox_that_is_gone_is_lost_and_not_empty(tmp_path: Path, root: Path) -> None:
    make(root, "a.jpg")
    inbox = Inbox(root, Ignore())
    os.rename(root, tmp_path / "moved")
    for ask in (lambda: swept(inbox), inbox.root_identity, lambda: inbox.open("a.jpg")):
        with pytest.raises(FolderLost, match=f"listing the inbox {root}"):
            ask()
    assert inbox.look(["a.jpg"], leases=True) == ()
    root.touch()
    with pytest.raises(FolderLost):
        swept(inbox)
    root.unlink()
    root.symlink_to(root)
    with pytest.raises(DiskFailed, match="symbolic links"):
        swept(inbox)


def test_an_inbox_that_goes_during_the_sweep_is_lost_and_not_empty(
    tmp_path: Path, root: Path, inbox: Inbox
) -> None:
    make(root, "a.jpg", "d/b.jpg")

    def lose(path: str, _: Identity) -> bool:
        if path == "a.jpg":
            os.rename(root, tmp_path / "moved")
        return False

    with pytest.raises(FolderLost):
        inbox.sweep(lose, 10)


def test_a_folder_that_goes_during_the_sweep_is_nothing(
    tmp_path: Path, root: Path, inbox: Inbox
) -> None:
    make(root, "a.jpg", "d/b.jpg")

    def lose(path: str, _: Identity) -> bool:
        if path == "a.jpg":
            os.rename(root / "d", tmp_path / "moved")
        return False

    sweep = inbox.sweep(lose, 10)
    assert [one.path for one in sweep.sightings] == ["a.jpg"]
    assert sweep.odd == ()


def test_the_inbox_is_known_again(tmp_path: Path, root: Path, inbox: Inbox) -> None:
    before = inbox.root_identity()
    assert before == inbox.root_identity()
    os.rename(root, tmp_path / "moved")
    root.mkdir()
    assert inbox.root_identity() != before


def test_without_descriptors_a_look_is_empty_and_a_sweep_is_a_fault_of_this_machine(
    root: Path, inbox: Inbox
) -> None:
    make(root, "a.jpg")
    with no_descriptors():
        assert inbox.look(["a.jpg"], leases=True) == ()
        with pytest.raises(TooManyOpenFiles):
            swept(inbox)
        with pytest.raises(TooManyOpenFiles):
            inbox.open("a.jpg")


def test_no_descriptor_is_left_open(root: Path, inbox: Inbox, outside: Path) -> None:
    make(root, "a.jpg", "d/e/b.jpg")
    os.mkfifo(root / "d" / "fifo")
    (root / "link").symlink_to(outside)
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        swept(inbox)
        inbox.look(["a.jpg", "d", "d/e/b.jpg", "link/a.jpg", "d/fifo"], leases=True)
        inbox.open("d/e/b.jpg").close()
        (seen,) = inbox.look(["a.jpg"])
        append(root / "a.jpg")
        for path in ("d", "d/fifo", "link", "link/a.jpg", "none", "d/e/none", "a.jpg"):
            with contextlib.suppress(Replaced, Vanished):
                inbox.open(path, seen.identity).close()
    assert os.listdir("/proc/self/fd") == before


# --- rights -------------------------------------------------------------------------------------


def as_nobody(prepare: Callable[[Path], None], piece: Callable[[Inbox], None]) -> None:
    with open_to_all() as folder:
        prepare(folder)
        apart(lambda: piece(Inbox(folder, Ignore())), uid=NOBODY)


def test_a_file_that_may_not_be_read_is_blocked_and_still_seen() -> None:
    def prepare(root: Path) -> None:
        make(root, "a.jpg")
        (root / "a.jpg").chmod(0)

    def piece(inbox: Inbox) -> None:
        assert found(inbox) == ["a.jpg"]
        (one,) = inbox.look(["a.jpg"], leases=True)
        assert one.closed is None
        with pytest.raises(Blocked, match=f"a.jpg may not be read by uid {NOBODY} gid {NOBODY}"):
            inbox.open("a.jpg")

    as_nobody(prepare, piece)


def test_a_folder_that_may_not_be_listed_is_told_and_hides_nothing_else() -> None:
    def prepare(root: Path) -> None:
        make(root, "a.jpg", "closed/b.jpg", "open/c.jpg", "@eaDir/d.jpg")
        (root / "closed").chmod(0)
        (root / "@eaDir").chmod(0)

    def piece(inbox: Inbox) -> None:
        sweep = swept(inbox)
        assert sorted(one.path for one in sweep.sightings) == ["a.jpg", "open/c.jpg"]
        ((path, why),) = sweep.odd
        assert path == "closed/"
        assert why.startswith("cannot be listed: ")
        assert "may not be read by uid" in why
        assert inbox.look(["closed/b.jpg", "closed"]) == ()
        with pytest.raises(Blocked):
            inbox.open("closed/b.jpg")

    as_nobody(prepare, piece)


def test_files_that_may_only_be_listed_are_told() -> None:
    def prepare(root: Path) -> None:
        make(root, "a.jpg", "d/b.jpg")
        (root / "d").chmod(0o744)

    def piece(inbox: Inbox) -> None:
        sweep = swept(inbox)
        assert [one.path for one in sweep.sightings] == ["a.jpg"]
        assert sweep.odd == (("d/b.jpg", "cannot be looked at: Permission denied"),)

    as_nobody(prepare, piece)


def test_an_inbox_that_may_not_be_read_is_a_fault_of_this_machine() -> None:
    def piece(inbox: Inbox) -> None:
        with pytest.raises(NoPermission, match="listing the inbox"):
            swept(inbox)

    as_nobody(lambda root: root.chmod(0o711), piece)


# --- is it open for writing? --------------------------------------------------------------------

WRITER = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = os.open(sys.argv[1], os.O_RDWR)
if sys.argv[2:]:
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("open", flush=True)
sys.stdin.readline()
os.close(file)
print("closed", flush=True)
sys.stdin.readline()
"""


class Writer:
    """Another process that has a file open for writing."""

    def __init__(self, popen: "subprocess.Popen[str]") -> None:
        self._popen = popen

    def closes(self) -> None:
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.write("\n")
        self._popen.stdin.flush()
        assert self._popen.stdout.readline() == "closed\n"


@contextlib.contextmanager
def written_to(path: Path, *arguments: str) -> Iterator[Writer]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", WRITER, str(path), *arguments]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as popen:
        try:
            assert popen.stdout is not None
            assert popen.stdout.readline() == "open\n"
            yield Writer(popen)
        finally:
            popen.kill()


@pytest.fixture
def leases(root: Path) -> None:
    """Skip where the kernel or the file system has no leases."""
    make(root, "a.jpg")
    with open(root / "a.jpg", "rb") as file:
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            pytest.skip(f"needs leases on {root}: {error.strerror}")


def closed(inbox: Inbox) -> bool | None:
    (one,) = inbox.look(["a.jpg"], leases=True)
    return one.closed


@pytest.mark.usefixtures("leases")
def test_a_file_that_another_process_writes_is_not_closed(root: Path, inbox: Inbox) -> None:
    assert closed(inbox) is True
    with written_to(root / "a.jpg") as writer:
        assert closed(inbox) is False
        assert closed(Inbox(root, Ignore(), leases=False)) is None
        assert inbox.look(["a.jpg"])[0].closed is None
        inbox.open("a.jpg").close()
        writer.closes()
        assert closed(inbox) is True


@pytest.mark.usefixtures("leases")
def test_who_only_reads_does_not_count(root: Path, inbox: Inbox) -> None:
    with open(root / "a.jpg", "rb"):
        assert closed(inbox) is True


@pytest.mark.usefixtures("leases")
def test_the_file_of_another_user_is_not_known_to_be_closed() -> None:
    def piece(inbox: Inbox) -> None:
        assert [one.closed for one in inbox.look(["a.jpg"], leases=True)] == [None]

    as_nobody(lambda root: make(root, "a.jpg"), piece)


@pytest.mark.usefixtures("leases")
def test_a_file_that_a_file_server_has_to_itself_is_left_to_it(root: Path, inbox: Inbox) -> None:
    """Opening it must neither hang nor count as a fault of the disk."""
    with written_to(root / "a.jpg", "lease") as writer:
        with pytest.raises(Replaced, match="in use by another program") as told:
            inbox.open("a.jpg")
        assert not isinstance(told.value, LocalFault)
        assert closed(inbox) is False
        writer.closes()
        assert closed(inbox) is True


@pytest.mark.usefixtures("leases")
def test_the_question_leaves_no_lease_behind(root: Path, inbox: Inbox) -> None:
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        with inbox.open("a.jpg") as file:
            assert lease_says_closed(file.fileno()) is True
            # At a lease this would fail.
            os.close(os.open(root / "a.jpg", os.O_WRONLY | os.O_NONBLOCK))
    finally:
        signal.signal(signal.SIGIO, before)


ASKER = """
import sys
from bgremover.core.ignoring import Ignore
from bgremover.edges.inbox import Inbox, ignore_sigio
ignore_sigio()
inbox = Inbox(sys.argv[1], Ignore())
answers = {inbox.look(["a.jpg"], leases=True)[0].closed for _ in range(3000)}
print(answers <= {True, False, None}, flush=True)
"""


@pytest.mark.usefixtures("leases")
def test_writers_that_come_meanwhile_do_not_kill_who_asks(root: Path) -> None:
    command = [sys.executable, "-c", ASKER, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as asker:
        while asker.poll() is None:
            append(root / "a.jpg")
        assert asker.stdout is not None
        assert asker.stdout.read() == "True\n"
    assert asker.returncode == 0


@pytest.mark.parametrize(("ignored", "status"), [(True, 0), (False, -signal.SIGIO)])
def test_the_signal_of_a_broken_lease_would_end_the_process(ignored: bool, status: int) -> None:
    script = (
        "import os, signal; from bgremover.edges.inbox import ignore_sigio;"
        f"{'ignore_sigio();' if ignored else ''} os.kill(os.getpid(), signal.SIGIO)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == status


def test_another_error_of_the_question_is_no_answer(root: Path) -> None:
    make(root, "a.jpg")
    writer = os.open(root / "a.jpg", os.O_RDWR)
    try:
        assert lease_says_closed(writer) is False  # it is open for writing: by this process
    finally:
        os.close(writer)
    assert lease_says_closed(writer) is None


# --- does it end as a picture? ------------------------------------------------------------------


def ends_in_x(file: BinaryIO) -> bool | None:
    return file.read().endswith(b"x")


@pytest.mark.usefixtures("leases")
def test_only_of_a_closed_file_it_is_asked_whether_it_is_whole(root: Path) -> None:
    inbox = Inbox(root, Ignore(), whole=ends_in_x)
    make(root, "a.jpg")
    (root / "b.jpg").write_bytes(b"cut off")
    assert [(one.closed, one.whole) for one in inbox.look(["a.jpg", "b.jpg"], leases=True)] == [
        (True, True),
        (True, False),
    ]
    assert [one.whole for one in inbox.look(["a.jpg"])] == [None]
    with written_to(root / "a.jpg"):
        assert [one.whole for one in inbox.look(["a.jpg"], leases=True)] == [None]


@pytest.mark.usefixtures("leases")
@pytest.mark.parametrize("error", [OSError("no"), DiskFailed("no"), Blocked("no")])
def test_a_question_that_fails_is_no_answer(root: Path, error: Exception) -> None:
    def fails(_: BinaryIO) -> bool | None:
        raise error

    (one,) = Inbox(root, Ignore(), whole=fails).look(["a.jpg"], leases=True)
    assert (one.closed, one.whole) == (True, None)


# --- the marker ---------------------------------------------------------------------------------


def test_without_its_marker_it_is_not_the_inbox(root: Path) -> None:
    make(root, "a.jpg")
    inbox = Inbox(root, Ignore(), marker=".here")
    for ask in (lambda: swept(inbox), inbox.root_identity):
        with pytest.raises(FolderLost, match=r"has no \.here \(watch\.marker\)"):
            ask()
    (root / ".here").touch()
    assert [one.path for one in swept(inbox).sightings] == ["a.jpg"]
    assert inbox.root_identity() == Inbox(root, Ignore()).root_identity()


# --- part of it ---------------------------------------------------------------------------------


def test_a_sweep_can_begin_in_folders(root: Path, inbox: Inbox, outside: Path) -> None:
    make(root, "a.jpg", "nas/b.jpg", "nas/x/c.jpg", "smb/d.jpg", "@eaDir/e.jpg", "nas2/f.jpg")
    (root / "link").symlink_to(outside)
    folders = ["nas/", "smb/", "gone/", "@eaDir/", "link/", "a.jpg/"]
    sweep = inbox.sweep(nothing, 10, folders)
    assert sorted(one.path for one in sweep.sightings) == ["nas/b.jpg", "nas/x/c.jpg", "smb/d.jpg"]
    assert Inbox(root, Ignore(), recursive=False).sweep(nothing, 10, ["nas/"]).files == 0


# --- what folders have of their own -------------------------------------------------------------


class Reader:
    """Reads a list of globs, or what is wrong; counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, text: str) -> Override:
        self.asked += 1
        if text.startswith("wrong"):
            return Override(wrong=text)
        return Override(originals="keep", ignore=Ignore(tuple(text.split())))


def test_a_folder_has_globs_of_its_own_and_they_are_read_once(root: Path) -> None:
    make(root, "a.png", "shoes/a.png", "shoes/a.jpg", "shoes/red/a.png", "shoes/raw/a.jpg")
    (root / "shoes" / ".bgremover.yaml").write_text("*.png raw")
    reader = Reader()
    inbox = Inbox(root, Ignore(), override=reader)
    for _ in range(3):
        assert found(inbox) == ["a.png", "shoes/a.jpg"]
        looked = inbox.look(["shoes/a.png", "shoes/a.jpg", "shoes/red/a.png", "shoes/raw", "shoes"])
        assert [one.path for one in looked] == ["shoes/a.jpg", "shoes/a.jpg"]
    assert reader.asked == 1
    assert inbox.terms("shoes/red/a.png").originals == "keep"
    assert inbox.terms("a.png").originals is None
    (root / "shoes" / ".bgremover.yaml").write_text("nothing else")
    assert len(found(inbox)) == 5
    (root / "shoes" / ".bgremover.yaml").unlink()
    assert inbox.terms("shoes/a.png").originals is None
    assert reader.asked == 2


def test_it_knows_which_files_their_folders_keep_and_looks_once_at_each_folder(
    root: Path,
) -> None:
    files = [f"keep/{number}.jpg" for number in range(50)]
    make(root, *files, "keep/red/a.jpg", "a.jpg", "wrong/a.jpg")
    (root / "keep" / ".bgremover.yaml").write_text("")
    (root / "wrong" / ".bgremover.yaml").write_text("wrong: so")
    asked = [*files, "keep/red/a.jpg", "a.jpg", "wrong/a.jpg", "gone/a.jpg"]
    inbox = Counting(root, Ignore(), override=Reader())
    assert inbox.keeping(asked) == {*files, "keep/red/a.jpg"}
    assert Inbox(root, Ignore(), override=Reader()).keeping(asked, "keep") == {
        *(*files, "keep/red/a.jpg", "a.jpg")
    }
    assert inbox.looked == ["keep/0.jpg", "keep/red/a.jpg", "a.jpg", "wrong/a.jpg", "gone/a.jpg"]


class Counting(Inbox):
    """An inbox that remembers what it was asked the terms of."""

    def __init__(self, root: Path, ignore: Ignore, **options: Any) -> None:  # noqa: ANN401 - as of Inbox
        super().__init__(root, ignore, **options)
        self.looked: list[str] = []

    def terms(self, path: str) -> FolderTerms:
        self.looked.append(path)
        return super().terms(path)


def write_wrong(path: Path) -> None:
    path.write_text("wrong: so")


def link_there(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()


def write_bytes(path: Path) -> None:
    path.write_bytes(b"\xff\xfe")


def write_much(path: Path) -> None:
    path.write_bytes(b"#" * 70_000)


@pytest.mark.parametrize(
    ("make_it", "why"),
    [
        (write_wrong, "wrong: so"),
        (link_there, "cannot be read"),
        (make_fifo, "no regular file"),
        (make_folder, "no regular file"),
        (write_bytes, "not UTF-8"),
        (write_much, "longer than 65,536 bytes"),
    ],
)
def test_a_file_that_cannot_be_understood_holds_its_folder_and_no_other(
    root: Path, make_it: Callable[[Path], None], why: str
) -> None:
    make(root, "a.jpg", "shoes/a.jpg", "shoes/red/a.jpg")
    make_it(root / "shoes" / ".bgremover.yaml")
    inbox = Inbox(root, Ignore(), override=Reader())
    sweep = swept(inbox)
    assert [one.path for one in sweep.sightings] == ["a.jpg"]
    ((path, words),) = sweep.odd
    assert path == "shoes/.bgremover.yaml"
    assert words.startswith("holds its folder: shoes/.bgremover.yaml: ")
    assert why in words
    assert inbox.look(["shoes/a.jpg", "shoes/red/a.jpg", "shoes"]) == ()
    assert inbox.terms("shoes/red/a.jpg").held is not None
    before = os.listdir("/proc/self/fd")
    swept(inbox)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("folder", ["", "shoes/"])
def test_a_share_that_is_away_is_not_a_file_that_is_wrong(root: Path, folder: str) -> None:
    def away(_: str) -> Override:
        raise OSError(errno.EHOSTDOWN, os.strerror(errno.EHOSTDOWN))

    make(root, "a.jpg", "shoes/a.jpg", f"{folder}.bgremover.yaml")
    inbox = Inbox(root, Ignore(), override=away)
    with pytest.raises(DiskFailed, match="Host is down"):
        inbox.terms("shoes/a.jpg")
    assert inbox.look(["shoes/a.jpg"]) == ()
    if folder:
        ((path, words),) = swept(inbox).odd
        assert path == "shoes/"
        assert words.startswith("cannot be listed: ")
    else:
        with pytest.raises(DiskFailed, match="Host is down"):
            swept(inbox)


def test_the_file_in_the_inbox_itself_counts_for_all(root: Path) -> None:
    make(root, "a.png", "a.jpg", "shoes/a.png")
    (root / ".bgremover.yaml").write_text("*.png")
    assert found(Inbox(root, Ignore(), override=Reader())) == ["a.jpg"]
    assert found(Inbox(root, Ignore())) == ["a.jpg", "a.png", "shoes/a.png"]
