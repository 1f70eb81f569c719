"""Publish, archive, quarantine: the only module that writes into users' folders.

Nothing is ever overwritten, and nothing has its final name before it is whole and on the disk:
write beside, fsync, rename without replacing, fsync the folder. Every method may be called again
after a kill at any point in it and goes on from what it finds.
"""

import contextlib
import ctypes
import errno
import hashlib
import io
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from bgremover.core.errors import (
    Blocked,
    DiskFull,
    FolderLost,
    NoPermission,
    ReadOnlyDisk,
    Replaced,
    Vanished,
    Withdrawn,
    local_fault,
)
from bgremover.core.job import Identity
from bgremover.core.naming import MAX_NAME_BYTES, candidates, printable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MARK = ".bgremover-"
"""How the names of work in progress begin."""

REPORT = ".error.json"
"""What the name of an image in quarantine gets for the name of its report."""

_RENAME_NOREPLACE = 1
_AT_FDCWD = -100
_PERMISSIONS = stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO
_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_CANNOT_LINK = (*_CANNOT, errno.EPERM, errno.EMLINK)
_SPARE_BYTES = 1_000_000
_PIECE = 1 << 20
_MOST_MISSING = 20  # names in a row that an archived original may have had and nothing has

Holding = Callable[[str], AbstractContextManager[tuple[int, str]]]
"""Opens the folder that holds an original, following no link: its descriptor and the base name."""

_libc = ctypes.CDLL(None, use_errno=True)


class NameTaken(Exception):
    """Something else lies under the name."""


def hidden_name(job_id: str, name: str) -> str:
    """Return what an original is called while it is set aside.

    It tells what the original was called, for whoever finds it after the ledger was lost.
    """
    return next(candidates(f"{MARK}{job_id}~{name}"))


def digest(file: BinaryIO) -> str:
    """Return the SHA-256 of a whole file that is open for reading, hexadecimal."""
    file.seek(0)
    found = hashlib.sha256()
    while piece := file.read(_PIECE):
        found.update(piece)
    return found.hexdigest()


@dataclass(frozen=True, slots=True)
class _Spot:
    """A name in an opened folder, or a path."""

    name: str
    folder: int = _AT_FDCWD


@dataclass(frozen=True, slots=True)
class _Aside:
    """An original under its hidden name; `resumed` when an earlier run had set it aside."""

    folder: int
    name: str
    resumed: bool


@dataclass(frozen=True, slots=True)
class Roots:
    """Where cut-outs, failed originals and finished originals go; real paths."""

    outbox: str
    quarantine: str
    archive: str


class Folders:
    """The users' folders.

    Args:
        roots: Where everything goes.
        holding: Opens the folder of an original in the inbox.
    """

    def __init__(self, roots: Roots, holding: Holding) -> None:
        self._roots = roots
        self._holding = holding

    # --- the outbox -------------------------------------------------------------------------

    def taken(self, output: str) -> bool:
        """Tell whether something lies under this name in the outbox."""
        return os.path.lexists(os.path.join(self._roots.outbox, output))

    def longest_name(self) -> int:
        """Return how many bytes a name in the outbox may have: fewer than usual on some."""
        try:
            return os.pathconf(self._roots.outbox, "PC_NAME_MAX")
        except (OSError, ValueError):
            return MAX_NAME_BYTES

    def check_room(self, output: str, size: int) -> None:
        """Make sure that a cut-out can be saved, before it is paid for.

        Args:
            output: Where it will go; its folder is made.
            size: Bytes that it may have.

        Raises:
            Blocked: Something that is no folder stands where its folder must be.
            LocalFault: There is no room, or this user may not write there.
        """
        folder = self._folder(self._roots.outbox, output)
        with _blaming(f"saving into {printable(folder)}"):
            room = os.statvfs(folder)
        if room.f_flag & os.ST_RDONLY:
            raise ReadOnlyDisk(f"saving into {printable(folder)}: it is mounted read-only")
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            raise NoPermission(f"uid {os.geteuid()} may not write into {printable(folder)}")
        if _is_full(room, size + _SPARE_BYTES):
            raise DiskFull(f"saving into {printable(folder)}: less than {size:,} bytes are free")

    def temp(self, output: str, job_id: str) -> "Temp":
        """Return an empty file beside `output`, under a name that belongs to the job.

        Raises:
            LocalFault: It cannot be made.
        """
        path = self._temp_path(output, job_id)
        with _blaming(f"saving into {printable(os.path.dirname(path))}"):
            return Temp(path)

    def _temp_path(self, output: str, job_id: str) -> str:
        try:
            folder = self._folder(self._roots.outbox, output)
        except Blocked as fault:  # it is paid for: not to be let go of
            raise FolderLost(fault.message) from fault
        return os.path.join(folder, MARK + job_id)

    def move_temp(self, output: str, other: str, job_id: str) -> None:
        """Put the job's temp file beside `other` instead of beside `output`.

        Raises:
            LocalFault: This machine does not let it.
        """
        old, new = self._temp_path(output, job_id), self._temp_path(other, job_id)
        if old != new:
            with _blaming(f"saving into {printable(os.path.dirname(new))}"):
                os.rename(old, new)  # both names are the job's own

    def publish(self, job_id: str, output: str) -> bool:
        """Give the job's finished temp file its final name.

        Returns:
            Whether there was one; False means that it was published before, or is lost.

        Raises:
            NameTaken: Something else has the name.
            LocalFault: This machine does not let it.
        """
        temp = self._temp_path(output, job_id)
        final = os.path.join(self._roots.outbox, output)
        above = os.path.dirname(final)
        with _blaming(f"publishing {printable(final)}"), _opened(above) as folder:
            found = _renamed(_Spot(temp), _Spot(final))
            _sync(folder)  # also for an earlier run, which may not have come so far
        return found

    def verify_published(self, output: str, sha256: str, size: int) -> bool:
        """Tell whether exactly these bytes lie under `output`.

        Args:
            output: In the outbox; an absolute path stands for itself.
            sha256: Of the cut-out, hexadecimal.
            size: Its bytes.

        Raises:
            LocalFault: It cannot be read, or the outbox is gone.
        """
        file = self.cut_out(output, size)
        if file is None:
            return False
        with _blaming(f"reading {printable(output)}"), file:
            return digest(file) == sha256

    def cut_out(self, output: str, size: int | None = None) -> BinaryIO | None:
        """Open a cut-out for reading.

        Args:
            output: In the outbox; an absolute path stands for itself.
            size: Its bytes, where they are known.

        Returns:
            None when nothing lies there, or nothing of this size.

        Raises:
            LocalFault: It cannot be read, or the outbox is gone.
        """
        path = os.path.join(self._roots.outbox, output)
        with _blaming(f"reading {printable(path)}"):
            try:
                file = _reading(_Spot(path))
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                if not os.path.isabs(output):
                    # An outbox that is not mounted says nothing about what lies in it.
                    os.stat(self._roots.outbox)
                return None
            if size is None or _size(file) == size:
                return file
            file.close()
        return None

    def copy_into(self, source: BinaryIO, output: str, job_id: str, sha256: str) -> bool:
        """Publish a copy of an earlier cut-out.

        Args:
            source: The earlier one, open for reading.
            output: The new name, in the outbox.
            job_id: Whose it is.
            sha256: Of the cut-out, hexadecimal.

        Returns:
            Whether it lies there; not when the earlier one is not what it was.

        Raises:
            NameTaken: Something else has the name.
            Blocked: Something that is no folder stands where its folder must be.
            LocalFault: This machine does not let it.
        """
        self._folder(self._roots.outbox, output)
        temp = self.temp(output, job_id)
        try:
            there = _with_sum(_Spot(os.path.join(self._roots.outbox, output)), sha256)
            if there is not None:  # an earlier run made the copy and was killed
                there.close()
                return True
            with _blaming(f"saving {printable(temp.path)}"):
                source.seek(0)
                shutil.copyfileobj(source, temp.file, _PIECE)
                # Of what was written: the earlier one may be written to at any moment.
                if digest(temp.file) != sha256:
                    return False
            temp.keep()
            self.publish(job_id, output)
        finally:
            temp.remove()
        return True

    def discard_temp(self, output: str, job_id: str) -> None:
        """Remove what a job that came to another end may have left beside `output`.

        What cannot be removed stays, hidden: nothing must wait for that.
        """
        folder = os.path.dirname(os.path.join(self._roots.outbox, output))
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(folder, MARK + job_id))

    # --- the original ---------------------------------------------------------------------

    def archive(self, path: str, identity: Identity, job_id: str) -> None:
        """Move a finished original into the archive, under its own path or `-2`, `-3`, ...

        Raises:
            Vanished: It is no longer there.
            Replaced: Other bytes lie there now; they are left alone.
            Blocked: This user may not move it, or no folder can be made for it.
            LocalFault: This machine does not let it; the original is where it was, or arrived
                already and its folder could not be synced.
        """
        with self._set_aside(path, identity, job_id) as aside:
            for wished in candidates(path):
                with contextlib.suppress(NameTaken):
                    self._move(aside, self._roots.archive, wished)
                    return

    def archived(self, path: str, sha256: str, size: int) -> BinaryIO | None:
        """Open an original that was archived, for reading; None when it is not to be had.

        It is known by its bytes: others of its name may lie beside it, and those that came before
        it may have left the archive since.

        Args:
            path: Where in the inbox it lay.
            sha256: Of the original, hexadecimal.
            size: Its bytes.
        """
        missing = 0
        for name in candidates(path):
            spot = _Spot(os.path.join(self._roots.archive, name))
            file = _with_sum(spot, sha256, size)
            missing = 0 if os.path.lexists(spot.name) else missing + 1
            if file is not None or missing > _MOST_MISSING:
                return file
        raise AssertionError("candidates are endless")

    def delete(self, path: str, identity: Identity, job_id: str) -> None:
        """Delete a finished original, as the configuration asks. Raises as `archive` does."""
        with self._set_aside(path, identity, job_id) as aside:
            os.unlink(aside.name, dir_fd=aside.folder)
            _sync(aside.folder)

    def quarantine_name(self, path: str) -> str:
        """Return the name that an original would get in quarantine now."""
        longest = MAX_NAME_BYTES - len(REPORT)
        return next(name for name in candidates(path, longest) if not self._quarantined(name))

    def _quarantined(self, name: str) -> bool:
        path = os.path.join(self._roots.quarantine, name)
        return os.path.lexists(path) or os.path.lexists(path + REPORT)

    def quarantine(
        self, path: str, identity: Identity, report: bytes, name: str, job_id: str
    ) -> None:
        """Move an original into quarantine, its report beside it.

        Args:
            path: In the inbox.
            identity: What it was when it was claimed.
            report: The error JSON.
            name: From `quarantine_name`; the same again after a kill.
            job_id: Whose it is.

        Raises:
            NameTaken: Something else has the name by now.
            Vanished: It is no longer there.
            Replaced: Other bytes lie there now; they are left alone.
            Blocked: This user may not move it, or no folder can be made for it.
            LocalFault: This machine does not let it; the original is where it was.
        """
        try:
            with self._set_aside(path, identity, job_id) as aside:
                self._write_note(self._roots.quarantine, name + REPORT, report, job_id)
                self._move(aside, self._roots.quarantine, name)
        except NameTaken:
            self._withdraw_report(name + REPORT, report)
            raise
        except Withdrawn:
            if not os.path.lexists(os.path.join(self._roots.quarantine, name)):
                self._withdraw_report(name + REPORT, report)
            raise

    def release(self, name: str, path: str, job_id: str) -> str:
        """Move an original from quarantine back into the inbox, and then remove its report.

        Args:
            name: In quarantine.
            path: Where it goes in the inbox; `-2`, `-3`, ... when that is taken.
            job_id: Names the work in progress; nobody else's.

        Returns:
            Where in the inbox it lies now.

        Raises:
            Vanished: It is no longer in quarantine.
            Replaced: In the inbox, something that is no folder stands where its folder must be.
            Blocked: This user may not enter its folder in the inbox.
            LocalFault: This machine does not let it; the original is where it was.
        """
        source = os.path.join(self._roots.quarantine, name)
        above, _, wished = path.rpartition("/")
        with (
            _blaming(f"moving {printable(source)} back into the inbox"),
            self._entered(path) as into,
            self._opened_below(self._roots.quarantine, name) as folder,
        ):
            old = _Spot(os.path.basename(name), folder)
            back = _move_to_free(old, _Spot(wished, into), MARK + job_id)
            _sync(folder)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(old.name + REPORT, dir_fd=folder)
        return f"{above}/{back}" if above else back

    @contextlib.contextmanager
    def _entered(self, path: str) -> Iterator[int]:
        """Open the folder of `path` in the inbox, making what is missing and following no link."""
        parts = path.split("/")
        with contextlib.ExitStack() as stack:
            try:
                for depth in range(1, len(parts)):
                    with self._holding("/".join(parts[:depth])) as (above, name):
                        _make_folder_in(above, name)
                folder, _ = stack.enter_context(self._holding(path))
            except (Vanished, Replaced):
                raise Replaced(
                    f"something that is no folder stands in the inbox where {printable(path)} goes"
                ) from None
            yield folder

    @contextlib.contextmanager
    def _opened_below(self, root: str, path: str) -> Iterator[int]:
        with contextlib.ExitStack() as stack:
            try:
                folder = stack.enter_context(_opened(os.path.dirname(os.path.join(root, path))))
            except (FileNotFoundError, NotADirectoryError):
                os.stat(root)
                raise Vanished(f"{printable(path)} is no longer there") from None
            yield folder

    def write_beside(self, output: str, suffix: str, content: bytes, job_id: str) -> None:
        """Write a small file beside a cut-out, unless these very bytes lie there already.

        Args:
            output: The cut-out.
            suffix: What is added to its name.
            content: The bytes.
            job_id: Whose it is.

        Raises:
            NameTaken: Something else has the name.
            LocalFault: This machine does not let it.
        """
        self._write_note(self._roots.outbox, output + suffix, content, job_id)

    def _write_note(self, root: str, name: str, report: bytes, job_id: str) -> None:
        folder = self._folder(root, name)
        final = os.path.join(root, name)
        with _blaming(f"writing into {printable(folder)}"), _opened(folder) as opened:
            temp = Temp(os.path.join(folder, MARK + job_id + REPORT))
            try:
                if not _holds(_Spot(final), report):
                    temp.file.write(report)
                    temp.move_to(_Spot(final))
            finally:
                temp.remove()
            _sync(opened)

    def _withdraw_report(self, name: str, report: bytes) -> None:
        final = os.path.join(self._roots.quarantine, name)
        with _blaming(f"removing {printable(final)}"):
            if _holds(_Spot(final), report):
                os.unlink(final)

    @contextlib.contextmanager
    def _set_aside(self, path: str, identity: Identity, job_id: str) -> Iterator[_Aside]:
        """Take an original out of everybody's reach, look at it, and put it back on trouble.

        Between a look at a name and what is done to it, other bytes may come to lie there. So the
        file is renamed to a hidden name of the job first and looked at then: what is moved or
        deleted is what was cut out.
        """
        with self._holding(path) as (folder, name), _blaming(f"moving {printable(path)}"):
            hidden = hidden_name(job_id, name)
            resumed = _exists(_Spot(hidden, folder))
            if not resumed:
                _hide(folder, name, hidden, identity, path)
            try:
                _check_same(_Spot(hidden, folder), identity, path)
                yield _Aside(folder, hidden, resumed)
            except BaseException:
                _put_back(folder, hidden, name)
                raise

    def _move(self, aside: _Aside, root: str, wished: str) -> None:
        above = self._folder(root, wished)
        with _blaming(f"moving into {printable(above)}"), _opened(above) as into:
            old = _Spot(aside.name, aside.folder)
            _move_new(old, _Spot(os.path.basename(wished), into), aside.name, again=aside.resumed)
            _sync(aside.folder)

    def _folder(self, root: str, path: str) -> str:
        folder = os.path.dirname(os.path.join(root, path))
        with _blaming(f"making {printable(folder)}"):
            _make_folders(root, folder)
        return folder


class _Whole(io.FileIO):
    """A raw file that writes all it is given, or raises.

    On a disk that fills up, a raw write takes what fits and raises only at the next one.
    """

    def write(self, data: "ReadableBuffer", /) -> int:
        left = memoryview(data).cast("B")
        size = left.nbytes
        while left:
            left = left[super().write(left) :]
        return size


class Temp:
    """A file in the making. `file` is open for writing and reading, unbuffered.

    Args:
        path: Where; what an earlier run left there is removed.
        folder: Descriptor of the folder that `path` is relative to.
    """

    def __init__(self, path: str, folder: int = _AT_FDCWD) -> None:
        self.path = path
        self._folder = folder
        # Removed, not truncated: after a kill it may have a second name that a user knows.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path, dir_fd=folder)
        self.file = _Whole(_created(_Spot(path, folder), os.O_RDWR), "r+b")

    def keep(self) -> None:
        """Make the bytes durable and close; the name stays for `publish`.

        Raises:
            LocalFault: The disk did not take them. A failed fsync is never tried again on the
                same descriptor, for the kernel may have dropped the pages: start anew.
        """
        with _blaming(f"saving {printable(self.path)}"):
            self._sync()

    def move_to(self, new: _Spot) -> None:
        """Make the bytes durable, close, and give the file its final name.

        Raises:
            NameTaken: Something else has the name.
            OSError: The disk did not take them.
        """
        self._sync()
        _rename_new(_Spot(self.path, self._folder), new)

    def _sync(self) -> None:
        with self.file:
            os.fsync(self.file.fileno())

    def remove(self) -> None:
        """Close, and remove the file if it still has its temporary name."""
        with contextlib.suppress(OSError):
            self.file.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path, dir_fd=self._folder)


@contextlib.contextmanager
def _blaming(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise local_fault(error, doing) from error


# --- renaming -------------------------------------------------------------------------------


def _rename_new(old: _Spot, new: _Spot) -> None:
    """Rename without replacing, by whatever means the file system has.

    Raises:
        NameTaken: There is something at `new`.
        OSError: As of rename(2).
    """
    error = _renameat2(old, new)
    if error in _CANNOT:
        _rename_by_link(old, new)
    elif error == errno.EEXIST:
        _end_rename_by_link(old, new)
    elif error:
        raise OSError(error, os.strerror(error), new.name)


def _renamed(old: _Spot, new: _Spot) -> bool:
    """Rename as `_rename_new` does, and tell whether there was something to rename."""
    try:
        _rename_new(old, new)
    except FileNotFoundError:
        return False
    return True


def _renameat2(old: _Spot, new: _Spot) -> int:
    try:
        call = _libc.renameat2
    except AttributeError:
        return errno.ENOSYS
    failed = call(*_arguments(old), *_arguments(new), _RENAME_NOREPLACE)
    return ctypes.get_errno() if failed else 0


def _arguments(spot: _Spot) -> tuple[int, bytes]:
    return spot.folder, os.fsencode(spot.name)


def _rename_by_link(old: _Spot, new: _Spot) -> None:
    # NFS cannot rename without replacing, but it can link, which never replaces either.
    try:
        os.link(
            old.name,
            new.name,
            src_dir_fd=old.folder,
            dst_dir_fd=new.folder,
            follow_symlinks=False,
        )
    except FileExistsError:
        _end_rename_by_link(old, new)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        _rename_over_own(old, new)
    else:
        _unlink(old)


def _end_rename_by_link(old: _Spot, new: _Spot) -> None:
    """Take the old name away where a kill came between link and unlink."""
    before = _stat(old)
    try:
        taken = _stat(new)
    except FileNotFoundError:
        raise NameTaken(new.name) from None  # it was there a moment ago
    if not (os.path.samestat(before, taken) and taken.st_nlink > 1):
        raise NameTaken(new.name)
    _unlink(old)


def _rename_over_own(old: _Spot, new: _Spot) -> None:
    # Neither of the two: a file that is certainly ours holds the name and is replaced. The hidden
    # name is its content, by which the next run knows it after a kill.
    _stat(old)
    mark = os.fsencode(os.path.basename(old.name))
    try:
        own = _created(new, os.O_WRONLY)
    except FileExistsError:
        if not _holds(new, mark):
            raise NameTaken(new.name) from None
        own = None
    try:
        if own is not None:
            _fill(own, mark)
        os.rename(old.name, new.name, src_dir_fd=old.folder, dst_dir_fd=new.folder)
    except OSError:
        _unlink(new)
        raise


def _created(spot: _Spot, mode: int) -> int:
    flags = mode | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return os.open(spot.name, flags, 0o666, dir_fd=spot.folder)


def _fill(descriptor: int, content: bytes) -> None:
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


def _hide(folder: int, name: str, hidden: str, identity: Identity, path: str) -> None:
    # What is certainly another file is not even renamed for a moment.
    _check_same(_Spot(name, folder), identity, path)
    try:
        os.rename(name, hidden, src_dir_fd=folder, dst_dir_fd=folder)
    except FileNotFoundError:
        raise Vanished(f"{printable(path)} is no longer there") from None
    except PermissionError as error:
        raise Blocked(
            f"uid {os.geteuid()} may not move {printable(path)} out of the inbox"
        ) from error


def _check_same(spot: _Spot, identity: Identity, path: str) -> None:
    try:
        found = _stat(spot)
    except FileNotFoundError:
        raise Vanished(f"{printable(path)} is no longer there") from None
    if not identity.same_content(Identity.of(found)):
        raise Replaced(f"{printable(path)} has changed since it was claimed")


def _put_back(folder: int, hidden: str, name: str) -> None:
    for wished in candidates(name):
        with contextlib.suppress(NameTaken):
            _renamed(_Spot(hidden, folder), _Spot(wished, folder))  # or it has been moved on
            return


# --- moving ---------------------------------------------------------------------------------


def _move_to_free(old: _Spot, wished: _Spot, temp: str) -> str:
    """Move to the first free name in another folder; return that name."""
    for free in candidates(wished.name):
        with contextlib.suppress(NameTaken):
            try:
                _move_new(old, _Spot(free, wished.folder), temp, again=False)
            except FileNotFoundError:
                raise Vanished(f"{printable(old.name)} is no longer there") from None
            return free
    raise AssertionError("candidates are endless")


def _move_new(old: _Spot, new: _Spot, temp: str, *, again: bool) -> None:
    """Move to a new name in another folder, durably; a copy where the folders' disks differ.

    Args:
        old: The file; its folder is synced by the caller.
        new: Its new name, in an opened folder.
        temp: What the copy is called while it is made.
        again: Whether an earlier run may have been killed at this.

    Raises:
        NameTaken: There is something at `new`.
        Replaced: The file was written to meanwhile.
        Blocked: This user may not read the file.
        OSError: The disk does not let it.
    """
    if again and _was_copied(old, new):
        _sync(new.folder)
        _unlink(old)
        with contextlib.suppress(FileNotFoundError):
            _unlink(_Spot(temp, new.folder))
        return
    try:
        _rename_new(old, new)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _move_by_copy(old, new, temp)
    _sync(new.folder)


def _was_copied(old: _Spot, new: _Spot) -> bool:
    if not _exists(new):
        return False
    with _original(old) as original:
        return _holds_copy(new, original)


def _move_by_copy(old: _Spot, new: _Spot, temp: str) -> None:
    with _original(old) as original:
        _copy(original, new, temp)
    _sync(new.folder)
    _unlink(old)


@contextlib.contextmanager
def _original(spot: _Spot) -> Iterator[BinaryIO]:
    try:
        file = _reading(spot, os.O_NOFOLLOW)
    except PermissionError as error:
        raise Blocked(f"uid {os.geteuid()} may not read {printable(spot.name)}") from error
    with file:
        yield file


def _copy(original: BinaryIO, new: _Spot, temp_name: str) -> None:
    before = os.fstat(original.fileno())
    temp = Temp(temp_name, new.folder)
    try:
        shutil.copyfileobj(original, temp.file, _PIECE)
        _copy_attributes(before, temp.file.fileno())
        after = os.fstat(original.fileno())
        if not Identity.of(before).same_content(Identity.of(after)):
            raise Replaced("it was written to while it was moved")
        temp.move_to(new)
    finally:
        temp.remove()


def _copy_attributes(found: os.stat_result, descriptor: int) -> None:
    # As far as this user may set them and the file system has them.
    with contextlib.suppress(OSError):
        os.utime(descriptor, ns=(found.st_atime_ns, found.st_mtime_ns))
    with contextlib.suppress(OSError):
        os.fchown(descriptor, found.st_uid, found.st_gid)
    with contextlib.suppress(OSError):
        # Without the set-user-ID bit: the copy may belong to somebody else.
        os.fchmod(descriptor, found.st_mode & _PERMISSIONS)


def _holds_copy(spot: _Spot, original: BinaryIO) -> bool:
    """Tell whether the same bytes lie there: an earlier run copied and was killed."""
    try:
        with _reading(spot, os.O_NOFOLLOW) as copy:
            return _size(copy) == _size(original) and _same_bytes(copy, original)
    except OSError:  # whatever it is, it is no copy
        return False


def _with_sum(spot: _Spot, sha256: str, size: int | None = None) -> BinaryIO | None:
    """Open a file, following no link, if its bytes have this sum."""
    try:
        file = _reading(spot, os.O_NOFOLLOW)
    except OSError:  # whatever it is, it is not that
        return None
    with contextlib.suppress(OSError):
        if size in (None, _size(file)) and digest(file) == sha256:
            file.seek(0)
            return file
    file.close()
    return None


def _same_bytes(one: BinaryIO, other: BinaryIO) -> bool:
    while piece := one.read(_PIECE):
        if other.read(len(piece)) != piece:
            return False
    return True


# --- small things ---------------------------------------------------------------------------


def _stat(spot: _Spot) -> os.stat_result:
    return os.stat(spot.name, dir_fd=spot.folder, follow_symlinks=False)


def _exists(spot: _Spot) -> bool:
    try:
        _stat(spot)
    except FileNotFoundError:
        return False
    return True


def _unlink(spot: _Spot) -> None:
    os.unlink(spot.name, dir_fd=spot.folder)


def _reading(spot: _Spot, flags: int = 0) -> io.BufferedReader:
    # O_NONBLOCK: opening a FIFO would otherwise hang until somebody writes into it.
    flags |= os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(spot.name, flags, dir_fd=spot.folder)
    try:
        return os.fdopen(descriptor, "rb")
    except OSError:  # it is a folder
        os.close(descriptor)
        raise


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _holds(spot: _Spot, content: bytes) -> bool:
    try:
        with _reading(spot, os.O_NOFOLLOW) as file:
            return file.read(len(content) + 1) == content
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link
            return False
        raise


def _is_full(room: os.statvfs_result, size: int) -> bool:
    # What counts nothing (some programs behind FUSE) is not full.
    bytes_lack = room.f_blocks and room.f_bavail * room.f_frsize < size
    files_lack = room.f_files and not room.f_favail
    return bool(bytes_lack or files_lack)


def _make_folders(root: str, folder: str) -> None:
    # The root itself is never made here: where it is missing, a mount is.
    if folder == root or os.path.isdir(folder):
        return
    above = os.path.dirname(folder)
    _make_folders(root, above)
    try:
        os.mkdir(folder)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise Blocked(
                f"{printable(folder)} must be a folder and is none: rename or remove it"
            ) from None
    else:
        with _opened(above) as opened:
            _sync(opened)


def _make_folder_in(above: int, name: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=above)
        _sync(above)


@contextlib.contextmanager
def _opened(folder: str) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _sync(folder: int) -> None:
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in _CANNOT:  # some network file systems have no fsync of folders
            raise
