"""What the kernel says about mounted file systems: /proc/self/mountinfo (proc(5))."""

import os
import re
from dataclasses import dataclass

NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "ncpfs", "lustre"}
)
"""File systems whose files other machines change."""

SHARED = frozenset({"virtiofs", "vboxsf", "prl_fs", "hgfs", "vmhgfs", "drvfs", "fuseblk"})
"""File systems that a virtual machine's host, or a program, changes underneath."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted file system."""

    point: str
    fs_type: str
    device: str


def read_mounts(path: str = "/proc/self/mountinfo") -> tuple[Mount, ...]:
    """Return all mounts, in the kernel's order: a later one covers an earlier one.

    Returns an empty tuple where the file does not exist (not Linux).
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as lines:
            return tuple(_mount(line) for line in lines)
    except FileNotFoundError:
        return ()


def _mount(line: str) -> Mount:
    left, _, right = line.partition(" - ")
    fs_type, device = right.split(" ")[:2]
    return Mount(_unescaped(left.split(" ")[4]), fs_type, device)


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def mounts_under(root: str, mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
    """Return the mount that holds the real path `root`, then every mount below it."""
    holding = [mount for mount in mounts if _holds(mount.point, root)]
    below = [mount for mount in mounts if mount.point != root and _holds(root, mount.point)]
    deepest = max(enumerate(holding), key=lambda one: (len(one[1].point), one[0]), default=None)
    return (*((deepest[1],) if deepest else ()), *below)


def _holds(folder: str, path: str) -> bool:
    return folder in ("/", path) or path.startswith(folder + os.sep)


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
