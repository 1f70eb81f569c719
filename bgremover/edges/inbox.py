"""What lies in the inbox: the sweep, the look at single files, the safe way to open one.

Links are never followed, in no part of a path: whoever may write into the inbox must not be able
to make the daemon read, send or move a file from elsewhere.
"""

import errno
import fcntl
import os
import signal
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from bgremover.core.errors import (
    BgremoverError,
    Blocked,
    DiskFailed,
    Replaced,
    Vanished,
    local_fault,
)
from bgremover.core.ignoring import Ignore
from bgremover.core.job import Identity
from bgremover.core.naming import printable

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO would otherwise hang until somebody writes into it.
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISCHR, "a character device"),
)
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".heic", ".tif", ".tiff", ".gif", ".bmp")


@dataclass(frozen=True, slots=True)
class Sighting:
    """A regular file as it was found.

    `closed` is the answer of the read-lease test: True when no process has it open for writing,
    False when one has, None when it was not asked or cannot be known.
    """

    path: str
    identity: Identity
    closed: bool | None = None


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one sweep found.

    Args:
        sightings: The files that nothing was known of, at most as many as there was room for.
        more: Whether there are more of these.
        files: How many files there are that are not ignored.
        folders: How many folders were entered.
        odd: What is left alone and deserves a word: (path, why).
    """

    sightings: tuple[Sighting, ...]
    more: bool
    files: int
    folders: int
    odd: tuple[tuple[str, str], ...]


class Inbox:
    """The folder that images are dropped into.

    Args:
        root: The folder.
        ignore: What is left alone.
        recursive: Whether sub-folders count.
        leases: Whether the read-lease test can be trusted: on local file systems only.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        ignore: Ignore,
        *,
        recursive: bool = True,
        leases: bool = True,
    ) -> None:
        self.root = os.path.realpath(root)
        self._ignore = ignore
        self._recursive = recursive
        self._leases = leases

    def root_identity(self) -> tuple[int, int]:
        """Return device and inode of the folder itself.

        Raises:
            LocalFault: The folder is gone.
        """
        with self._naming_root():
            found = os.stat(self.root)
        return found.st_dev, found.st_ino

    @contextmanager
    def _naming_root(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise local_fault(error, f"listing the inbox {self.root}") from error

    # --- the sweep --------------------------------------------------------------------------

    def sweep(self, skip: Callable[[str, Identity], bool], room: int) -> Sweep:
        """Walk through the whole inbox.

        Args:
            skip: Whether a file needs no attention; it is counted all the same.
            room: How many sightings are wanted at most.

        Raises:
            LocalFault: The inbox itself cannot be listed, or is lost meanwhile.
        """
        found: list[Sighting] = []
        odd: list[tuple[str, str]] = []
        files = folders = 0
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            folders += 1
            for entry in self._list(folder, odd):
                path = folder + entry.name
                if _is_folder(entry):
                    self._enter(entry, path, waiting, odd)
                elif not self._ignore.file(entry.name, path) and (one := _seen(entry, path, odd)):
                    files += 1
                    if len(found) <= room and not skip(path, one.identity):
                        found.append(one)
        return Sweep(tuple(found[:room]), len(found) > room, files, folders, tuple(odd))

    def _list(self, folder: str, odd: list[tuple[str, str]]) -> Iterator[os.DirEntry[str]]:
        """Yield what lies in a folder; each entry can be asked until the next one comes."""
        try:
            # By its descriptor: a link may have taken the place of any folder on the way.
            with self.holding(folder) as (descriptor, _), os.scandir(descriptor) as entries:
                yield from entries
        except (Vanished, Replaced):
            return  # between two looks; the next one sees what is there now
        except (Blocked, DiskFailed) as fault:
            if not folder:
                raise
            odd.append((folder, f"cannot be listed: {fault.message}"))
        except OSError as error:
            if not folder:
                raise local_fault(error, f"listing the inbox {self.root}") from error
            odd.append((folder, f"cannot be listed: {error.strerror}"))

    def _enter(
        self,
        entry: os.DirEntry[str],
        path: str,
        waiting: list[str],
        odd: list[tuple[str, str]],
    ) -> None:
        if not self._recursive or self._ignore.folder(entry.name, path):
            return
        if entry.name.lower().endswith(_IMAGE_ENDINGS):
            odd.append((path, "a folder with the name of an image; it is entered"))
        waiting.append(path + "/")

    # --- single files -----------------------------------------------------------------------

    def look(self, paths: Iterable[str], *, leases: bool = False) -> tuple[Sighting, ...]:
        """Look at single files.

        Args:
            paths: Relative to the inbox. What is gone, ignored, below a link, or no regular file
                is left out; so is all when the inbox is lost, which a sweep tells.
            leases: Whether to ask if somebody has the file open for writing.

        Returns:
            What was found; for a folder, everything in and below it.
        """
        found: list[Sighting] = []
        for path in paths:
            found += self._look(path, leases=leases)
        return tuple(found)

    def _look(self, path: str, *, leases: bool) -> list[Sighting]:
        if self._ignore.path(path):
            return []
        try:
            with self.holding(path) as (folder, name):
                seen = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISDIR(seen.st_mode):
                return self._below(path)
        except (OSError, BgremoverError):
            return []
        if not stat.S_ISREG(seen.st_mode):
            return []
        closed = self._closed(path) if leases and self._leases else None
        return [Sighting(path, Identity.of(seen), closed)]

    def _below(self, folder: str) -> list[Sighting]:
        found: list[Sighting] = []
        waiting = [folder + "/"] if self._recursive else []
        while waiting:
            above = waiting.pop()
            for entry in self._list(above, []):
                path = above + entry.name
                if _is_folder(entry):
                    self._enter(entry, path, waiting, [])
                elif not self._ignore.file(entry.name, path) and (one := _seen(entry, path, [])):
                    found.append(one)
        return found

    def _closed(self, path: str) -> bool | None:
        try:
            with self.open(path) as file:
                return lease_says_closed(file.fileno())
        except (OSError, BgremoverError) as fault:
            return False if _in_use(fault.__cause__) else None

    # --- opening ----------------------------------------------------------------------------

    def open(self, path: str, identity: Identity | None = None) -> BinaryIO:
        """Open an original for reading.

        Args:
            path: Relative to the inbox.
            identity: What the file was when it was claimed.

        Raises:
            Vanished: It is not there.
            Replaced: It is no regular file, lies below a link, or is not what was claimed; or
                another program has it to itself.
            Blocked: This user may not read it.
            LocalFault: This machine cannot read it now.
        """
        descriptor = self._descriptor(path)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise Replaced(f"{printable(path)} is no regular file")
        if identity is not None and not identity.same_content(Identity.of(found)):
            os.close(descriptor)
            raise Replaced(f"{printable(path)} has changed since it was claimed")
        return os.fdopen(descriptor, "rb")

    def _descriptor(self, path: str) -> int:
        with self.holding(path) as (folder, name):
            try:
                return os.open(name, _OPEN_FILE, dir_fd=folder)
            except OSError as error:
                raise self._refused(error, path) from error

    @contextmanager
    def holding(self, path: str) -> Iterator[tuple[int, str]]:
        """Open the folder that holds an original, following no link.

        Args:
            path: Relative to the inbox.

        Yields:
            The folder's descriptor, for the length of the `with`, and the base name.

        Raises:
            Vanished: The folder is not there.
            Replaced: A link or a file stands where a folder was.
            Blocked: This user may not enter it.
            LocalFault: This machine cannot open it now.
        """
        *folders, name = path.split("/")
        with self._naming_root():
            folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in folders:
                inner = self._enter_from(folder, part, path)
                os.close(folder)
                folder = inner
            yield folder, name
        finally:
            os.close(folder)

    def _enter_from(self, folder: int, part: str, path: str) -> int:
        try:
            return os.open(part, _OPEN_FOLDER, dir_fd=folder)
        except OSError as error:
            raise self._refused(error, path) from error

    def _refused(self, error: OSError, path: str) -> Exception:
        match error.errno:
            case errno.ENOENT | errno.ENOTDIR:
                return Vanished(f"{printable(path)} is no longer there")
            case errno.ELOOP | errno.ENXIO | errno.EISDIR:
                return Replaced(f"{printable(path)} is no regular file")
            case errno.EWOULDBLOCK:
                return Replaced(f"{printable(path)} is in use by another program")
            case errno.EACCES | errno.EPERM:
                return Blocked(f"{printable(path)} may not be read by {_who()}")
            case _:
                return local_fault(error, f"reading {printable(path)} in the inbox {self.root}")


def _seen(entry: os.DirEntry[str], path: str, odd: list[tuple[str, str]]) -> Sighting | None:
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        odd.append((path, f"cannot be looked at: {error.strerror}"))
        return None
    if stat.S_ISREG(found.st_mode):
        return Sighting(path, Identity.of(found))
    kinds = [words for is_kind, words in _KINDS if is_kind(found.st_mode)]
    odd.append((path, f"{kinds[0] if kinds else 'no regular file'}: left alone"))
    return None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False  # it is told when it is looked at


def _in_use(error: BaseException | None) -> bool:
    """Tell whether a file was not opened because of a lease: a file server holds it for writing."""
    return isinstance(error, OSError) and error.errno == errno.EWOULDBLOCK


def _who() -> str:
    return f"uid {os.geteuid()} gid {os.getegid()}"


def ignore_sigio() -> None:
    """Ignore SIGIO, whose default would end the process when a lease is broken.

    Must be called in the main thread before the first lease.
    """
    signal.signal(signal.SIGIO, signal.SIG_IGN)


def lease_says_closed(descriptor: int) -> bool | None:
    """Ask the kernel whether any process has the file open for writing.

    A read lease is granted only when nobody has (fcntl(2), F_SETLEASE). It is given back at once:
    a writer that comes meanwhile would have to wait.

    Returns:
        True: nobody. False: somebody. None: the kernel does not say (not the owner, no leases).
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return False if error.errno == errno.EAGAIN else None
    return True
