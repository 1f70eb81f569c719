"""Room on disks, and the removal of what was kept long enough.

Only what the ledger names and what is still that very file is removed: size and time of change
must be those of the original. What a user has put into archive or quarantine is never touched.
"""

import contextlib
import itertools
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from bgremover.core.job import Job, Quarantined, Saved
from bgremover.core.naming import candidates
from bgremover.core.retention import Kept

REPORT = ".error.json"
_MARK = ".bgremover-removing-"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def free_bytes(folder: str) -> int | None:
    """Return how many bytes this user may still write to the disk of a folder.

    Returns:
        None where the folder is not there or its disk does not tell.
    """
    try:
        room = os.statvfs(folder)
    except OSError:
        return None
    # Some file systems know no limit, and say so with a size of nothing.
    return room.f_bavail * room.f_frsize if room.f_blocks else None


# --- what is there -------------------------------------------------------------------------


def archived(root: str, job: Job, at: float, same: int) -> Kept | None:
    """Return the original of a job in the archive; None where it is not there any more.

    Args:
        root: The archive.
        job: A job that was saved and filed.
        at: When it was, Unix time.
        same: How many jobs have the same path; so many names are looked under, and one more.
    """
    if not isinstance(job.state, Saved) or job.state.left:
        return None
    for name in itertools.islice(candidates(job.path), same + 1):
        if _is_it(os.path.join(root, name), job):
            return Kept(name, job.identity.size, job.identity.mtime_ns, at, job.id)
    return None


def quarantined(root: str, job: Job, at: float) -> Kept | None:
    """Return the image of a job in quarantine; None where it is not there any more.

    Args:
        root: The quarantine.
        job: A job that was quarantined and filed.
        at: When it was, Unix time.
    """
    state, identity = job.state, job.identity
    if not isinstance(state, Quarantined) or state.left or not state.name:
        return None
    if not _is_it(os.path.join(root, state.name), job):
        return None
    return Kept(state.name, identity.size, identity.mtime_ns, at, job.id, state.report)


def _is_it(path: str, job: Job) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return _matches(found, job.identity.size, job.identity.mtime_ns)


def _matches(found: os.stat_result, size: int, mtime_ns: int) -> bool:
    same = (found.st_size, found.st_mtime_ns) == (size, mtime_ns)
    return same and stat.S_ISREG(found.st_mode)


def still_there(paths: Iterable[str]) -> bool:
    """Tell whether anything lies under one of these names."""
    return any(map(os.path.lexists, paths))


# --- removal -------------------------------------------------------------------------------


def remove(root: str, kept: Kept) -> bool:
    """Remove a file, and the error JSON beside it if it is the one that was written.

    It is renamed to a hidden name first and looked at there, so that what is removed is what was
    kept, whatever was put in its place meanwhile. No link is followed on the way.

    Args:
        root: The folder it is in.
        kept: The file.

    Returns:
        Whether it is gone; False where something else lies there.

    Raises:
        OSError: This user may not, or the disk does not let it.
    """
    folder, _, name = kept.name.rpartition("/")
    try:
        with _opened(root, folder) as opened:
            gone = _removed(opened, name, kept)
            if gone and kept.report:
                _remove_report(opened, name + REPORT, kept.report)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return gone


def _removed(folder: int, name: str, kept: Kept) -> bool:
    hidden = _MARK + kept.job
    if not _matches(os.lstat(name, dir_fd=folder), kept.size, kept.mtime_ns):
        return False
    os.rename(name, hidden, src_dir_fd=folder, dst_dir_fd=folder)
    if _matches(os.lstat(hidden, dir_fd=folder), kept.size, kept.mtime_ns):
        os.unlink(hidden, dir_fd=folder)
        return True
    # Something else came to lie there between the two looks: it goes back under its name, which
    # is taken by now only if a third came. Then it keeps the hidden one, and nothing is lost.
    with contextlib.suppress(FileNotFoundError):
        os.lstat(name, dir_fd=folder)
        return False
    os.rename(hidden, name, src_dir_fd=folder, dst_dir_fd=folder)
    return False


def _remove_report(folder: int, name: str, report: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(name, _FILE, dir_fd=folder)
        with open(descriptor, "rb") as file:
            own = file.read(len(report.encode()) + 1) == report.encode()
        if own:
            os.unlink(name, dir_fd=folder)


@contextmanager
def _opened(root: str, folder: str) -> Iterator[int]:
    descriptor = os.open(os.path.realpath(root), _FOLDER)
    try:
        for part in filter(None, folder.split("/")):
            inner = os.open(part, _FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)
