"""What the kernel says about mounted file systems: /proc/self/mountinfo (proc(5))."""

import itertools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "ncpfs", "lustre"}
)
"""File systems whose files other machines change."""

SHARED = frozenset({"virtiofs", "vboxsf", "prl_fs", "hgfs", "vmhgfs", "drvfs", "fuseblk"})
"""File systems that a virtual machine's host, or a program, changes underneath."""

# Two exports of one server can share a number, and each says that all of it is mounted: only
# `server:/path` tells them apart.
_EXPORTED = frozenset({"nfs", "nfs4"})


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted file system, or a folder of one (a bind mount).

    Args:
        point: Where it is mounted.
        fs_type: What kind of file system it is.
        device: Where it comes from: a disk, or `server:/path`.
        root: Which folder of the file system is mounted; "/" is all of it.
        devno: Major and minor number: they know a file system again that is mounted twice.
    """

    point: str
    fs_type: str
    device: str
    root: str = "/"
    devno: str = ""


def read_mounts(path: str = "/proc/self/mountinfo") -> tuple[Mount, ...]:
    """Return the mounts that paths lead to, in the kernel's order; what is covered is left out.

    Returns an empty tuple where the file does not exist (not Linux).
    """
    try:
        # A name may hold a carriage return, which the kernel does not escape.
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
            return parse_mounts(lines)
    except FileNotFoundError:
        return ()


def parse_mounts(lines: Iterable[str]) -> tuple[Mount, ...]:
    """Return the mounts in the text of mountinfo that paths lead to; see `read_mounts`."""
    entries = [_entry(line) for line in lines]
    reached = _reached({entry.number: entry for entry in entries})
    return tuple(entry.mount for entry in entries if entry.number in reached)


@dataclass(frozen=True, slots=True)
class _Entry:
    number: str
    parent: str
    mount: Mount


def _entry(line: str) -> _Entry:
    left, _, right = line.partition(" - ")
    number, parent, devno, root, point, *_ = left.split(" ")
    fs_type, device = right.split(" ")[:2]
    mount = Mount(_unescaped(point), fs_type, _unescaped(device), _unescaped(root), devno)
    return _Entry(number, parent, mount)


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _reached(entries: dict[str, _Entry]) -> set[str]:
    """Return the numbers of the mounts that a path can lead to."""
    outermost, inside = _by_parent(entries)
    reached = set[str]()
    waiting = outermost
    while waiting:
        number = waiting.pop()
        ways = inside.get(number, {})
        if entries[number].mount.point not in ways:
            reached.add(number)
        # The way to the lower of two mounts leads into the upper one.
        waiting += [below for point, below in ways.items() if not ways.keys() & _above(point)]
    return reached


def _by_parent(entries: dict[str, _Entry]) -> tuple[list[str], dict[str, dict[str, str]]]:
    outermost: list[str] = []
    inside: dict[str, dict[str, str]] = {}
    for number, entry in entries.items():
        if entry.parent in entries and entry.parent != number:
            # Of two on one point, the way leads into the later one.
            inside.setdefault(entry.parent, {})[entry.mount.point] = number
        else:
            outermost.append(number)
    return outermost, inside


def _above(path: str) -> set[str]:
    return {str(folder) for folder in PurePosixPath(path).parents}


def mounts_under(root: str, mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
    """Return the mount that holds the real path `root`, then every mount below it."""
    holding = [mount for mount in mounts if _holds(mount.point, root)]
    below = [mount for mount in mounts if mount.point != root and _holds(root, mount.point)]
    deepest = max(enumerate(holding), key=lambda one: (len(one[1].point), one[0]), default=None)
    return (*((deepest[1],) if deepest else ()), *below)


def _holds(folder: str, path: str) -> bool:
    return folder in ("/", path) or path.startswith(folder + os.sep)


@dataclass(frozen=True, slots=True)
class Twice:
    """A folder that shows up in two others.

    Args:
        first: Its path in the first one.
        second: Its path in the second one.
        mounted: The mount in one of the two that shows it there; None when one of the two is
            itself mounted from inside the other.
    """

    first: str
    second: str
    mounted: str | None


def shown_twice(first: str, second: str, mounts: tuple[Mount, ...]) -> Twice | None:
    """Find a folder that is to be seen in both of two others, through bind mounts.

    Args:
        first: The real path of a folder; need not exist.
        second: Of another one.
        mounts: All mounts that paths lead to.
    """
    for here, there in itertools.product(_shown(first, mounts), _shown(second, mounts)):
        inner = max(here, there, key=lambda spot: len(spot.inside))
        one, other = here.way_to(inner), there.way_to(inner)
        if one and other and all(_leads_to(path, inner, mounts) for path in (one, other)):
            points = {here.point, there.point} - {first, second}
            return Twice(one, other, min(points, default=None))
    return None


@dataclass(frozen=True, slots=True)
class _Spot:
    """A folder of a file system and where it is to be seen."""

    point: str
    system: str
    inside: str

    def way_to(self, inner: "_Spot") -> str | None:
        """Return the path of the folder `inner` when it lies in this one."""
        if self.system != inner.system or not _holds(self.inside, inner.inside):
            return None
        return _joined(self.point, inner.inside[len(self.inside.rstrip("/")) :])


def _shown(folder: str, mounts: tuple[Mount, ...]) -> Iterator[_Spot]:
    """Yield what `folder` shows: its own part of a file system, and each one mounted below it."""
    for mount in mounts_under(folder, mounts):
        if mount.root.endswith("//deleted"):
            continue  # the folder that was mounted here is gone from its file system
        point = folder if _holds(mount.point, folder) else mount.point
        inside = _joined(mount.root, point[len(mount.point.rstrip("/")) :])
        if mount.fs_type in _EXPORTED:
            yield _Spot(point, "", _joined(mount.device, inside))
        else:
            yield _Spot(point, mount.devno, inside)


def _joined(above: str, below: str) -> str:
    return above.rstrip("/") + below.rstrip("/") or "/"


def _leads_to(path: str, spot: _Spot, mounts: tuple[Mount, ...]) -> bool:
    """Tell whether `path` shows that folder; not when something is mounted over it."""
    seen = next(_shown(path, mounts), None)
    return seen is not None and (seen.system, seen.inside) == (spot.system, spot.inside)


def network(fs_type: str) -> bool:
    """Tell whether other machines may change the files."""
    return fs_type in NETWORK


def trustworthy(fs_type: str) -> bool:
    """Tell whether the kernel reports every change.

    Not where other machines, a virtual machine's host or a program behind FUSE change files:
    inotify sees local writes only. Overlay counts as trustworthy: its layers are not to be
    changed underneath while it is mounted (kernel documentation, overlayfs).
    """
    fuse = fs_type == "fuse" or fs_type.startswith("fuse.")
    return not (fuse or fs_type in NETWORK or fs_type in SHARED)
