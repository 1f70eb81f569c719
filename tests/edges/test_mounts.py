"""What is mounted where, and which folders are one and the same behind bind mounts."""

import itertools
import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bgremover.door import door_check
from bgremover.edges.mounts import (
    NETWORK,
    Mount,
    Twice,
    mounts_under,
    network,
    parse_mounts,
    read_mounts,
    shown_twice,
    trustworthy,
)
from bgremover.findings import Finding
from bgremover.reading import parse_settings
from bgremover.settings import Settings
from tests.apart import apart

ROOT = "20 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"


def parsed(*lines: str) -> tuple[Mount, ...]:
    return parse_mounts(f"{line}\n" for line in lines)


def points(*lines: str) -> list[str]:
    return [mount.point for mount in parsed(*lines)]


# --- the text of the kernel -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "mount"),
    [
        (ROOT, Mount("/", "ext4", "/dev/sda1", "/", "8:1")),
        (
            "36 20 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue",
            Mount("/mnt2", "ext3", "/dev/root", "/mnt1", "98:0"),
        ),
        (
            "37 20 0:44 / /x rw shared:2 master:3 propagate_from:4 unbindable - tmpfs  rw",
            Mount("/x", "tmpfs", "", "/", "0:44"),
        ),
        (
            r"38 20 0:45 /a\040b /with\040space\011tab\012line\134slash rw - cifs //nas/my\040x rw",
            Mount("/with space\ttab\nline\\slash", "cifs", "//nas/my x", "/a b", "0:45"),
        ),
        ("39 20 0:46 / /Icon\r rw - xfs none rw", Mount("/Icon\r", "xfs", "none", "/", "0:46")),
        (
            "40 20 0:4 net:[4026531840] /run/netns/a rw shared:9 - nsfs nsfs rw",
            Mount("/run/netns/a", "nsfs", "nsfs", "net:[4026531840]", "0:4"),
        ),
    ],
)
def test_a_line_is_read(tmp_path: Path, line: str, mount: Mount) -> None:
    assert parsed(line) == (mount,)
    (tmp_path / "mountinfo").write_text(line + "\n", newline="")
    assert read_mounts(str(tmp_path / "mountinfo")) == (mount,)


def test_names_that_are_not_utf8_come_as_the_system_gives_them(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_bytes(b"21 20 8:2 / /caf\xe9 rw - ext4 /dev/sda2 rw\n")
    (mount,) = read_mounts(str(tmp_path / "mountinfo"))
    assert mount.point == os.fsdecode(b"/caf\xe9")


def test_without_the_file_nothing_is_known(tmp_path: Path) -> None:
    assert read_mounts(str(tmp_path / "none")) == ()


def test_the_machine_this_runs_on_has_a_root() -> None:
    (root,) = (mount for mount in read_mounts() if mount.point == "/")
    assert root.devno


@pytest.mark.parametrize(
    ("lines", "seen"),
    [
        ([ROOT], ["/"]),
        (["1 1 0:2 / / rw - rootfs none rw", ROOT], ["/"]),
        ([ROOT, "21 20 8:2 / /srv rw - xfs a rw"], ["/", "/srv"]),
        (  # mounted later over a folder above it
            [ROOT, "21 20 8:2 / /srv/x rw - xfs a rw", "22 20 8:3 / /srv rw - xfs b rw"],
            ["/", "/srv"],
        ),
        (  # the same two, the lower one in the upper one; the order says nothing
            [ROOT, "21 22 8:2 / /srv/x rw - xfs a rw", "22 20 8:3 / /srv rw - xfs b rw"],
            ["/", "/srv/x", "/srv"],
        ),
        (  # one on top of the other
            [ROOT, "21 20 8:2 / /srv rw - xfs a rw", "22 21 8:3 / /srv rw - ext4 b rw"],
            ["/", "/srv"],
        ),
        (  # what is mounted in the one that is covered
            [
                ROOT,
                "21 20 8:2 / /srv rw - xfs a rw",
                "23 21 8:4 / /srv/x rw - xfs c rw",
                "22 21 8:3 / /srv rw - ext4 b rw",
            ],
            ["/", "/srv"],
        ),
        # Not all that is around this process is told to it.
        (
            ["21 20 8:2 / /srv rw - xfs a rw", "22 20 8:3 / /srv/x rw - xfs b rw"],
            ["/srv", "/srv/x"],
        ),
        ([], []),
    ],
)
def test_only_what_paths_lead_to_is_told(lines: list[str], seen: list[str]) -> None:
    assert points(*lines) == seen


def test_of_two_on_one_point_the_later_one_is_seen() -> None:
    first, second = "21 20 8:2 / /srv rw - xfs a rw", "22 21 8:3 / /srv rw - ext4 b rw"
    assert [mount.device for mount in parsed(ROOT, first, second)] == ["/dev/sda1", "b"]
    beside = second.replace("22 21", "22 20")
    assert [mount.device for mount in parsed(ROOT, first, beside)] == ["/dev/sda1", "b"]


def test_many_mounts_are_read_in_a_moment() -> None:
    lines = [ROOT, *(f"{n} 20 0:{n} / /pods/{n}/v/x rw - tmpfs none rw" for n in range(21, 5021))]
    assert len(parsed(*lines)) == 5001


# --- which mounts concern a folder ------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("/", ["/", "/srv", "/srv/inbox/cam", "/srv/inbox-2"]),
        ("/srv/inbox", ["/srv", "/srv/inbox/cam"]),
        ("/srv/inbox/cam", ["/srv/inbox/cam"]),
        ("/srv/inbox/cam/a/b", ["/srv/inbox/cam"]),
        ("/home", ["/"]),
    ],
)
def test_the_mount_that_holds_a_folder_and_those_below_it(folder: str, told: list[str]) -> None:
    mounts = parsed(
        ROOT,
        "21 20 8:2 / /srv rw - xfs a rw",
        "22 21 8:3 / /srv/inbox/cam rw - vfat b rw",
        "23 21 8:4 / /srv/inbox-2 rw - vfat b rw",
    )
    assert [mount.point for mount in mounts_under(folder, mounts)] == told


@pytest.mark.parametrize(
    ("fs_type", "trusted"),
    [
        *((name, True) for name in ("ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs")),
        *((name, False) for name in ("nfs", "nfs4", "cifs", "9p", "virtiofs", "fuse", "fuseblk")),
        *((name, False) for name in ("fuse.sshfs", "fuse.mergerfs", "fuse.glusterfs", "hgfs")),
    ],
)
def test_some_file_systems_tell_of_every_change(fs_type: str, trusted: bool) -> None:
    assert trustworthy(fs_type) is trusted
    assert network(fs_type) is (fs_type in NETWORK)


# --- what shows up twice ----------------------------------------------------------------------

DATA = "21 20 8:2 / /srv rw - ext4 /dev/sdb1 rw"
NAS_A = "31 20 0:50 / /nas/a rw - nfs4 nas:/volume/a rw"
NAS_B = "32 20 0:50 / /nas/b rw - nfs4 nas:/volume/b rw"


def bound(root: str, point: str, devno: str = "8:2") -> str:
    return f"40 21 {devno} {root} {point} rw - ext4 /dev/sdb1 rw"


@pytest.mark.parametrize(
    ("lines", "first", "second", "twice"),
    [
        ([], "/srv/in", "/srv/out", None),
        ([bound("/other", "/srv/in/x")], "/srv/in", "/srv/out", None),
        ([bound("/out-2", "/srv/in/x")], "/srv/in", "/srv/out", None),
        ([bound("/in/y", "/srv/in/x")], "/srv/in", "/srv/out", None),
        ([bound("/out", "/srv/in/x", "8:3")], "/srv/in", "/srv/out", None),
        (
            [bound("/out", "/srv/in/x")],
            "/srv/in",
            "/srv/out",
            Twice("/srv/in/x", "/srv/out", "/srv/in/x"),
        ),
        (  # a sub-folder
            [bound("/out/y", "/srv/in/x")],
            "/srv/in",
            "/srv/out",
            Twice("/srv/in/x", "/srv/out/y", "/srv/in/x"),
        ),
        (  # the other way round
            [bound("/in/y", "/srv/out/x")],
            "/srv/in",
            "/srv/out",
            Twice("/srv/in/y", "/srv/out/x", "/srv/out/x"),
        ),
        (  # a folder above it
            [bound("/shelf", "/srv/in/x")],
            "/srv/in",
            "/srv/shelf/a/out",
            Twice("/srv/in/x/a/out", "/srv/shelf/a/out", "/srv/in/x"),
        ),
        (  # all of the file system
            [bound("/", "/srv/in/x")],
            "/srv/in",
            "/srv/out",
            Twice("/srv/in/x/out", "/srv/out", "/srv/in/x"),
        ),
        (  # the folder itself comes from inside the other one
            [bound("/in/y", "/srv/out")],
            "/srv/in",
            "/srv/out",
            Twice("/srv/in/y", "/srv/out", None),
        ),
        (  # as in a container: each folder is a mount of its own
            [bound("/srv/in", "/in"), bound("/srv/in/out", "/out").replace("40", "41")],
            "/in",
            "/out",
            Twice("/in/out", "/out", None),
        ),
        (
            [bound("/srv/in", "/in"), bound("/srv/out", "/out").replace("40", "41")],
            "/in",
            "/out",
            None,
        ),
        (  # a third folder in both
            [bound("/z", "/srv/in/x"), bound("/z/q", "/srv/out/y").replace("40", "41")],
            "/srv/in",
            "/srv/out",
            Twice("/srv/in/x/q", "/srv/out/y", "/srv/in/x"),
        ),
        ([bound("/out//deleted", "/srv/in/x")], "/srv/in", "/srv/out", None),
        ([NAS_A, NAS_B], "/nas/a", "/nas/b", None),
        (
            [NAS_A, "33 20 0:51 / /nas/c rw - nfs4 nas:/volume rw,other"],
            "/nas/a",
            "/nas/c",
            Twice("/nas/a", "/nas/c/a", None),
        ),
        (  # covered by another mount
            [bound("/in/y", "/srv/out"), "44 21 8:9 / /srv/in/y rw - xfs e rw"],
            "/srv/in",
            "/srv/out",
            None,
        ),
        (  # two subvolumes are two folders of one file system
            ["41 20 0:33 /@in /in rw - btrfs d rw", "42 20 0:33 /@out /out rw - btrfs d rw"],
            "/in",
            "/out",
            None,
        ),
    ],
)
def test_a_folder_that_shows_up_twice_is_found(
    lines: list[str], first: str, second: str, twice: Twice | None
) -> None:
    mounts = parsed(ROOT, DATA, *lines)
    assert shown_twice(first, second, mounts) == twice
    mirrored = twice and Twice(twice.second, twice.first, twice.mounted)
    assert shown_twice(second, first, mounts) == mirrored


def test_where_nothing_is_known_of_mounts_nothing_shows_up_twice() -> None:
    assert shown_twice("/in", "/out", ()) is None


FOLDERS = [
    "/" + "/".join(parts) for depth in (1, 2, 3) for parts in itertools.product("ab", repeat=depth)
]


def resolved(path: str, mounts: Iterable[Mount]) -> tuple[str, str]:
    """Say which folder of which file system a path leads to."""
    (mount, *_) = mounts_under(path, tuple(mounts))
    below = path.removeprefix(mount.point).strip("/")
    return mount.devno, os.path.join(mount.root, below).rstrip("/") or "/"


def bind_all(binds: list[tuple[str, str]]) -> tuple[Mount, ...]:
    mounts = [Mount("/", "ext4", "d", "/", "8:1")]
    for source, point in binds:
        devno, root = resolved(source, mounts)
        mounts = [one for one in mounts if not one.point.startswith(point)]
        mounts.append(Mount(point, "ext4", "d", root, devno))
    return tuple(mounts)


def below(folder: str) -> list[str]:
    deep = ["/".join(parts) for n in range(1, 7) for parts in itertools.product("ab", repeat=n)]
    return [folder, *(f"{folder}/{rest}" for rest in deep)]


@given(
    st.lists(st.tuples(st.sampled_from(FOLDERS), st.sampled_from(FOLDERS)), max_size=3),
    st.sampled_from(FOLDERS),
    st.sampled_from(FOLDERS),
)
@example([("/b/a", "/a/b")], "/a", "/b")
@example([], "/a", "/b")
def test_whatever_is_bound_where_what_is_seen_twice_is_found(
    binds: list[tuple[str, str]], first: str, second: str
) -> None:
    mounts = bind_all(binds)
    twice = shown_twice(first, second, mounts)
    one = {resolved(path, mounts) for path in below(first)}
    other = {resolved(path, mounts) for path in below(second)}
    assert (twice is not None) == bool(one & other)
    if twice is not None:
        assert resolved(twice.first, mounts) == resolved(twice.second, mounts) in one & other
        assert twice.first in below(first)
        assert twice.second in below(second)


# --- the door, with the kernel's own mounts ---------------------------------------------------

NAMES = ("inbox", "outbox", "quarantine", "archive", "state")


def at(root: Path, **folders: Path) -> Settings:
    places = {name: root / name for name in NAMES} | folders
    lines = [f"  {name}: {path}" for name, path in places.items()]
    return parse_settings("\n".join(["folders:", *lines]), {}, root)


def told(settings: Settings) -> list[Finding]:
    return [finding for finding in door_check(settings) if finding.level == "error"]


def bind(root: Path, what: str, where: str, kind: str = "--bind") -> None:
    for one in (what, where):
        (root / one).mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", kind, str(root / what), str(root / where)], check=True)


def on_a_disk(tmp_path: Path, piece: Callable[[Path], None]) -> None:
    """Run `piece` with an empty small disk and mounts that nobody else sees."""
    disk = tmp_path / "disk"
    disk.mkdir()
    apart(lambda: piece(disk), mounts={disk: "size=1m"})


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("part", ["", "/y", "/y/z"])
def test_a_folder_bound_into_the_inbox_is_refused(tmp_path: Path, name: str, part: str) -> None:
    def piece(disk: Path) -> None:
        bind(disk, f"{name}{part}", "inbox/x")
        (finding,) = told(at(disk))
        assert finding.where == f"folders.{name}"
        assert finding.what == (
            f"{disk}/{name} shows up in folders.inbox ({disk}/inbox): {disk}/{name}{part} and "
            f"{disk}/inbox/x are one folder, by a bind mount"
        )
        assert finding.remedy.startswith("Choose folders beside each other")
        assert finding.remedy.endswith(f"Or remove the mount on {disk}/inbox/x.")
        subprocess.run(["umount", str(disk / "inbox/x")], check=True)
        assert told(at(disk)) == []

    on_a_disk(tmp_path, piece)


def test_a_part_of_the_inbox_bound_into_the_outbox_is_refused(tmp_path: Path) -> None:
    def piece(disk: Path) -> None:
        bind(disk, "inbox/x", "outbox/y")
        (finding,) = told(at(disk))
        assert finding.where == "folders.inbox"
        assert f"shows up in folders.outbox ({disk}/outbox)" in finding.what
        assert f"{disk}/inbox/x and {disk}/outbox/y are one folder" in finding.what

    on_a_disk(tmp_path, piece)


@pytest.mark.parametrize(("inner", "outer"), [("outbox", "inbox"), ("inbox", "outbox")])
def test_a_folder_that_comes_from_inside_another_is_refused(
    tmp_path: Path, inner: str, outer: str
) -> None:
    def piece(disk: Path) -> None:
        bind(disk, f"{outer}/deep/x", inner)
        (finding,) = told(at(disk))
        assert finding.where == f"folders.{inner}"
        assert f"shows up in folders.{outer}" in finding.what
        assert f"{disk}/{inner} and {disk}/{outer}/deep/x are one folder" in finding.what
        assert "remove" not in finding.remedy

    on_a_disk(tmp_path, piece)


def test_a_third_folder_bound_into_both_is_refused(tmp_path: Path) -> None:
    def piece(disk: Path) -> None:
        bind(disk, "third", "inbox/x")
        bind(disk, "third/y", "outbox/z")
        (finding,) = told(at(disk))
        assert f"{disk}/inbox/x/y" in finding.what
        assert f"{disk}/outbox/z" in finding.what

    on_a_disk(tmp_path, piece)


def test_a_chain_of_binds_is_seen_through(tmp_path: Path) -> None:
    def piece(disk: Path) -> None:
        bind(disk, "outbox/y", "one")
        bind(disk, "one", "two")
        bind(disk, "two", "inbox/x")
        (finding,) = told(at(disk))
        assert f"{disk}/outbox/y and {disk}/inbox/x are one folder" in finding.what

    on_a_disk(tmp_path, piece)


def test_binds_that_bring_nothing_together_are_welcome(tmp_path: Path) -> None:
    def piece(disk: Path) -> None:
        bind(disk, "photos", "inbox/photos")  # somebody's pictures
        bind(disk, "inbox/self", "inbox/self")  # as systemd does with ReadWritePaths=
        bind(disk, "backup", "outbox/backup")
        bind(disk, "inbox/photos", "elsewhere")
        assert told(at(disk)) == []

    on_a_disk(tmp_path, piece)


def test_a_bind_that_is_covered_does_no_harm(tmp_path: Path) -> None:
    def piece(disk: Path) -> None:
        bind(disk, "outbox", "inbox/x")
        assert len(told(at(disk))) == 1
        subprocess.run(["mount", "-t", "tmpfs", "none", str(disk / "inbox")], check=True)
        assert told(at(disk)) == []
        assert f"{disk}/inbox/x" not in [mount.point for mount in read_mounts()]

    on_a_disk(tmp_path, piece)


def test_a_folder_that_was_deleted_under_its_mount_does_no_harm(tmp_path: Path) -> None:
    def piece(disk: Path) -> None:
        bind(disk, "outbox/y", "inbox/x")
        (disk / "outbox/y").rmdir()
        assert told(at(disk)) == []

    on_a_disk(tmp_path, piece)


def test_odd_names_are_no_way_around(tmp_path: Path) -> None:
    def piece(disk: Path) -> None:
        bind(disk, "outbox/a b\n\\", "inbox/Icon\r\tx")
        (finding,) = told(at(disk))
        assert finding.where == "folders.outbox"
        assert "\n" not in finding.what

    on_a_disk(tmp_path, piece)
