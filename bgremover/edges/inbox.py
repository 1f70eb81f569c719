"""What lies in the inbox: the sweep, the look at single files, the safe way to open one.

Links are never followed, in no part of a path: whoever may write into the inbox must not be able
to make the daemon read, send or move a file from elsewhere.
"""

import errno
import fcntl
import itertools
import os
import signal
import stat
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from bgremover.core import terms
from bgremover.core.errors import (
    BgremoverError,
    Blocked,
    DiskFailed,
    FolderLost,
    LocalFault,
    Replaced,
    Vanished,
    local_fault,
)
from bgremover.core.ignoring import Ignore
from bgremover.core.job import Identity
from bgremover.core.naming import printable
from bgremover.core.terms import FolderTerms, Originals, Override

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
    False when one has, None when it was not asked or cannot be known. `whole` is that of the look
    at the end of a picture, which only a closed file gets: None when it was not asked or does
    not show.
    """

    path: str
    identity: Identity
    closed: bool | None = None
    whole: bool | None = None


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one sweep found.

    Args:
        sightings: The files that nothing was known of, at most as many as there was room for.
        more: How many more of these there are.
        files: How many files there are that are not ignored.
        folders: How many folders were entered.
        odd: What is left alone and deserves a word: (path, why).
        held: How many files are not taken as long as a `.bgremover.yaml` is wrong.
    """

    sightings: tuple[Sighting, ...]
    more: int
    files: int
    folders: int
    odd: tuple[tuple[str, str], ...]
    held: int = 0


class Inbox:
    """The folder that images are dropped into.

    Args:
        root: The folder.
        ignore: What is left alone.
        recursive: Whether sub-folders count.
        leases: Whether the read-lease test can be trusted: on local file systems only. May be
            set anew: a share may be mounted later.
        whole: Tells of an open file whether it ends as a picture does; None when that cannot be
            told. May raise `BgremoverError`.
        marker: The name of a file without which this is not the inbox but an empty mount point.
        override: Reads what a folder has of its own; without it folders have nothing.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        ignore: Ignore,
        *,
        recursive: bool = True,
        leases: bool = True,
        whole: Callable[[BinaryIO], bool | None] | None = None,
        marker: str | None = None,
        override: Callable[[str], Override] | None = None,
    ) -> None:
        self.root = os.path.realpath(root)
        self._given = FolderTerms(ignore)
        self._recursive = recursive
        self.leases = leases
        self._whole = whole
        self._marker = marker
        self._override = override
        self._read: dict[str, tuple[Identity, Override]] = {}

    def root_identity(self) -> tuple[int, int]:
        """Return device and inode of the folder itself.

        Raises:
            LocalFault: The folder is gone, is not to be entered, or lacks the marker.
        """
        with closing(self._descend("")) as way, self._naming_root():
            folder, _ = next(way)
            found = os.stat(folder)
            if self._marker is not None:
                self._check_marker(folder, self._marker)
        return found.st_dev, found.st_ino

    def _check_marker(self, folder: int, marker: str) -> None:
        try:
            os.stat(marker, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError as error:
            raise FolderLost(
                f"the inbox {self.root} has no {printable(marker)} (watch.marker): its file system "
                "is not mounted, or the marker was never made there"
            ) from error

    @contextmanager
    def _naming_root(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise local_fault(error, f"listing the inbox {self.root}") from error

    # --- the sweep --------------------------------------------------------------------------

    def sweep(
        self, skip: Callable[[str, Identity], bool], room: int, folders: Iterable[str] = ("",)
    ) -> Sweep:
        """Walk through the whole inbox.

        Args:
            skip: Whether a file needs no attention; it is counted all the same.
            room: How many sightings are wanted at most.
            folders: Where to begin, as "nas/"; "" is the inbox itself.

        Raises:
            LocalFault: The inbox itself cannot be listed, or is lost meanwhile.
        """
        self.root_identity()
        found: list[Sighting] = []
        odd: list[tuple[str, str]] = []
        files = entered = more = waits = 0
        waiting = [(folder, above) for folder in folders for above in self._above(folder)]
        while waiting:
            folder, above = waiting.pop()
            entered += 1
            for entry, held in self._list(folder, above, odd):
                path = folder + entry.name
                if _is_folder(entry):
                    self._enter(entry, path, held, waiting, odd)
                elif not held.leaves_file(entry.name, path) and (one := _seen(entry, path, odd)):
                    if held.held is not None:
                        waits += 1
                        continue
                    files += 1
                    if skip(path, one):
                        continue
                    if len(found) < room:
                        found.append(Sighting(path, one))
                    else:
                        more += 1
        return Sweep(tuple(found), more, files, entered, tuple(odd), waits)

    def _above(self, folder: str) -> list[FolderTerms]:
        """Return what holds above a folder to begin with; nothing where it is not entered."""
        if not folder:
            return [self._given]
        try:
            found = self._found(folder.rstrip("/"))
        except (OSError, BgremoverError):
            return []  # gone, or not mounted now
        entered = found is not None and self._recursive and stat.S_ISDIR(found[0].st_mode)
        return [found[1]] if found is not None and entered else []

    def _list(
        self, folder: str, above: FolderTerms, odd: list[tuple[str, str]]
    ) -> Iterator[tuple[os.DirEntry[str], FolderTerms]]:
        """Yield what lies in a folder, with what holds there.

        Each entry can be asked until the next one comes.
        """
        try:
            # By its descriptor: a link may have taken the place of any folder on the way.
            with self.holding(folder) as (descriptor, _), os.scandir(descriptor) as entries:
                held = self._terms_in(descriptor, folder, above)
                if held.held is not None and above.held is None:
                    odd.append((folder + terms.FILE, f"holds its folder: {held.held}"))
                for entry in entries:
                    yield entry, held
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
        held: FolderTerms,
        waiting: list[tuple[str, FolderTerms]],
        odd: list[tuple[str, str]],
    ) -> None:
        if not self._recursive or held.leaves_folder(entry.name, path):
            return
        if entry.name.lower().endswith(_IMAGE_ENDINGS):
            odd.append((path, "a folder with the name of an image; it is entered"))
        waiting.append((path + "/", held))

    # --- what folders have of their own -----------------------------------------------------

    def terms(self, path: str) -> FolderTerms:
        """Return what holds for a file.

        Args:
            path: Relative to the inbox; the file need not be there, the folders above it must.

        Raises:
            Vanished: A folder is not there.
            Replaced: A link or a file stands where a folder was.
            Blocked: This user may not enter a folder.
            LocalFault: This machine cannot look now.
        """
        held = self._given
        with closing(self._descend(path)) as way:
            for descriptor, folder in way:
                held = self._terms_in(descriptor, folder, held)
        return held

    def keeping(self, paths: Iterable[str], given: Originals = "archive") -> set[str]:
        """Return which of these files their folders keep in the inbox; looks once at each folder.

        What cannot be looked at now, or is held, is left out.

        Args:
            paths: Relative to the inbox.
            given: What becomes of originals where no folder says it.
        """
        known: dict[str, bool] = {}
        kept = set()
        for path in paths:
            folder = path.rpartition("/")[0]
            if folder not in known:
                known[folder] = self._keeps(path, given)
            if known[folder]:
                kept.add(path)
        return kept

    def _keeps(self, path: str, given: Originals) -> bool:
        try:
            held = self.terms(path)
        except BgremoverError:
            return False
        return held.held is None and (held.originals or given) == "keep"

    def _found(self, path: str) -> tuple[os.stat_result, FolderTerms] | None:
        """Return what lies at `path` and what holds for it; None where it is left alone or held."""
        held = self._given
        with closing(self._descend(path)) as way:
            for name, (descriptor, folder) in zip(path.split("/"), way, strict=True):
                held = self._terms_in(descriptor, folder, held)
                seen = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                leaves = held.leaves_folder if stat.S_ISDIR(seen.st_mode) else held.leaves_file
                if held.held is not None or leaves(name, folder + name):
                    return None
                if folder + name == path:
                    return seen, held
        return None

    def _terms_in(self, descriptor: int, folder: str, above: FolderTerms) -> FolderTerms:
        if self._override is None:
            return above
        try:
            found = os.stat(terms.FILE, dir_fd=descriptor, follow_symlinks=False)
            own = self._own(descriptor, folder, Identity.of(found), self._override)
        except FileNotFoundError:
            self._read.pop(folder, None)
            return above
        except OSError as error:
            refused = self._refused(error, folder + terms.FILE)
            if isinstance(refused, LocalFault):  # a share that is away says nothing about the file
                raise refused from error
            own = Override(wrong=f"it cannot be read by {_who()}: {error.strerror}")
        return above.below(folder, own)

    def _own(
        self, descriptor: int, folder: str, identity: Identity, read: Callable[[str], Override]
    ) -> Override:
        known = self._read.get(folder)
        if known is not None and known[0] == identity:
            return known[1]
        opened = os.open(terms.FILE, _OPEN_FILE, dir_fd=descriptor)
        try:
            own = _override(opened, read)
        finally:
            os.close(opened)
        self._read[folder] = identity, own
        return own

    # --- single files -----------------------------------------------------------------------

    def look(self, paths: Iterable[str], *, leases: bool = False) -> tuple[Sighting, ...]:
        """Look at single files.

        Args:
            paths: Relative to the inbox. What is gone, ignored, below a link, or no regular file
                is left out; so is all when the inbox is lost, which a sweep tells.
            leases: Whether to ask if somebody has the file open for writing, and where nobody
                has, whether it ends as a picture does.

        Returns:
            What was found; for a folder, everything in and below it.
        """
        found: list[Sighting] = []
        for path in paths:
            found += self._look(path, leases=leases)
        return tuple(found)

    def _look(self, path: str, *, leases: bool) -> list[Sighting]:
        try:
            found = self._found(path)
        except (OSError, BgremoverError):
            return []
        if found is None:
            return []
        seen, held = found
        if stat.S_ISDIR(seen.st_mode):
            return self._below(path, held)
        if not stat.S_ISREG(seen.st_mode):
            return []
        closed, whole = self._asked(path) if leases and self.leases else (None, None)
        return [Sighting(path, Identity.of(seen), closed, whole)]

    def _below(self, folder: str, above: FolderTerms) -> list[Sighting]:
        found: list[Sighting] = []
        waiting = [(folder + "/", above)] if self._recursive else []
        while waiting:
            inner, above = waiting.pop()
            for entry, held in self._list(inner, above, []):
                path = inner + entry.name
                if held.held is not None:
                    continue
                if _is_folder(entry):
                    self._enter(entry, path, held, waiting, [])
                elif not held.leaves_file(entry.name, path) and (one := _seen(entry, path, [])):
                    found.append(Sighting(path, one))
        return found

    def _asked(self, path: str) -> tuple[bool | None, bool | None]:
        try:
            with self.open(path) as file:
                closed = lease_says_closed(file.fileno())
                return closed, self._ends_whole(file) if closed else None
        except (OSError, BgremoverError) as fault:
            return False if _in_use(fault.__cause__) else None, None

    def _ends_whole(self, file: BinaryIO) -> bool | None:
        if self._whole is None:
            return None
        try:
            return self._whole(file)
        except (OSError, BgremoverError):
            return None  # whoever inspects it finds the same, and tells it

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
        inner, name = path.count("/"), path.rpartition("/")[2]
        with closing(self._descend(path)) as way:
            folder, _ = next(itertools.islice(way, inner, None))
            yield folder, name

    def _descend(self, path: str) -> Generator[tuple[int, str]]:
        """Yield each folder on the way to an original, open until the next one is asked for.

        Yields:
            The folder's descriptor, and its path below the inbox, as "" or "shoes/".
        """
        with self._naming_root():
            folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        above = ""
        try:
            yield folder, above
            for part in path.split("/")[:-1]:
                inner = self._enter_from(folder, part, path)
                os.close(folder)
                folder, above = inner, f"{above}{part}/"
                yield folder, above
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


def _override(descriptor: int, read: Callable[[str], Override]) -> Override:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return Override(wrong="it is no regular file")
    with open(descriptor, "rb", closefd=False) as file:
        content = file.read(terms.MOST_BYTES + 1)
    if len(content) > terms.MOST_BYTES:
        return Override(wrong=f"it is longer than {terms.MOST_BYTES:,} bytes")
    try:
        return read(content.decode())
    except UnicodeDecodeError:
        return Override(wrong="it is not UTF-8. Save it as UTF-8")


def _seen(entry: os.DirEntry[str], path: str, odd: list[tuple[str, str]]) -> Identity | None:
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        odd.append((path, f"cannot be looked at: {error.strerror}"))
        return None
    if stat.S_ISREG(found.st_mode):
        return Identity.of(found)
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
