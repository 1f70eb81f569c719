"""The door: the look at the folders before work begins, and the folders themselves."""

import itertools
import os
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bgremover.core.errors import SetupError
from bgremover.core.naming import printable
from bgremover.edges.mounts import Mount, mounts_under, network, read_mounts, shown_twice
from bgremover.findings import Finding, me, reason_of
from bgremover.settings import Settings

# --- the door ------------------------------------------------------------------------------


_Step = tuple[tuple[int, int], tuple[str, ...]]

_BESIDE = "Choose folders beside each other: what is written into one must not show up in another."


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a path of the configuration leads.

    Args:
        name: The key.
        path: As it is configured.
        real: Without links.
        steps: The folders on the way from itself up to the root that exist: device and inode of
            each, and what of `real` lies below it. They know a folder again that is mounted twice.
    """

    name: str
    path: str
    real: str
    steps: tuple[_Step, ...]

    @property
    def shown(self) -> str:
        """The path as it can be shown; where it leads, when its name does not tell."""
        plain = self.real == os.path.normpath(self.path)
        return printable(self.path if plain else f"{self.path} (really {self.real})")

    @property
    def nearest(self) -> str:
        """The folder itself, or the nearest one above it that exists."""
        parts = Path(self.real).parts
        return os.path.join(*parts[: len(parts) - len(self.steps[0][1])])

    def error(self, what: str, remedy: str) -> Finding:
        """Return an error about this place."""
        return Finding("error", self.name, what, remedy)


def _look(name: str, path: Path) -> _Place:
    real = os.path.realpath(path)
    parts = Path(real).parts
    depths = range(len(parts), 0, -1)
    steps = ((_identity(os.path.join(*parts[:depth])), parts[depth:]) for depth in depths)
    return _Place(name, str(path), real, tuple((one, rest) for one, rest in steps if one))


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _holds(outer: _Place, inner: _Place) -> bool:
    """Tell whether `inner` is `outer` or lies in it, by whatever name."""
    anchor, rest = outer.steps[0]
    return any(one == anchor and below[: len(rest)] == rest for one, below in inner.steps)


def door_check(settings: Settings) -> list[Finding]:
    """Look whether the folders can be worked with. Changes nothing.

    Returns:
        Folders that contain each other or cannot be used; a state folder on a network; files of
        the set-up that would be taken for images; a log that cannot be written.
    """
    mounts = read_mounts()
    places = [_look(f"folders.{name}", path) for name, path in _used(settings).items()]
    named = {place.name: place for place in places}
    kept = {"folders.inbox"} if settings.originals == "keep" else set()
    return [
        *_overlaps(places, mounts),
        *_taken_for_images(settings, named["folders.inbox"]),
        *(
            _waited_for(found) if _is_away(settings, place.name) else found
            for place in places
            if (found := _unusable(place, reads_only=place.name in kept))
        ),
        *_on_network(named["folders.state"], mounts),
        *_unwritable_log(settings.log.file),
    ]


def _used(settings: Settings) -> dict[str, Path]:
    return {
        name: path
        for name, path in settings.folders
        if name != "archive" or settings.originals != "keep"
    }


def _overlaps(places: list[_Place], mounts: tuple[Mount, ...]) -> Iterator[Finding]:
    for one, other in itertools.combinations(places, 2):
        found = _overlap(one, other) or _mounted_overlap(one, other, mounts)
        if found is not None:
            yield found


def _overlap(one: _Place, other: _Place) -> Finding | None:
    match _holds(one, other), _holds(other, one):
        case True, True:
            words = f"{other.shown} is the folder of {one.name} ({one.shown})"
            return other.error(words, _BESIDE)
        case True, False:
            return other.error(f"{other.shown} lies in {one.name} ({one.shown})", _BESIDE)
        case False, True:
            return one.error(f"{one.shown} lies in {other.name} ({other.shown})", _BESIDE)
        case _:
            return None


def _mounted_overlap(one: _Place, other: _Place, mounts: tuple[Mount, ...]) -> Finding | None:
    """Find a folder that shows up in both, which their paths do not tell."""
    twice = shown_twice(one.real, other.real, mounts)
    if twice is None:
        return None
    first, second = twice.first, twice.second
    if _is_below(twice.mounted, other) or (twice.mounted is None and first == one.real):
        one, other, first, second = other, one, second, first
    words = f"{printable(second)} and {printable(first)} are one folder, by a bind mount"
    undo = f" Or remove the mount on {printable(twice.mounted)}." if twice.mounted else ""
    return other.error(
        f"{other.shown} shows up in {one.name} ({one.shown}): {words}", _BESIDE + undo
    )


def _is_below(path: str | None, place: _Place) -> bool:
    return path is not None and Path(path).is_relative_to(place.real)


def _taken_for_images(settings: Settings, inbox: _Place) -> Iterator[Finding]:
    files = {
        "api.key_file": settings.api.key_file,
        "log.file": settings.log.file,
        "configuration": settings.source,
    }
    # A run over any folder of the user's (`once SOURCE`, originals kept) moves no file.
    level: Literal["error", "warning"] = "warning" if settings.originals == "keep" else "error"
    for name, path in files.items():
        if path is not None and _holds(inbox, place := _look(name, path)):
            what = f"{place.shown} lies in the inbox, where every file is taken for an image"
            yield Finding(level, name, what, "Keep it in another folder.")


def _unusable(place: _Place, *, reads_only: bool) -> Finding | None:
    try:
        found = os.stat(place.path)
    except FileNotFoundError:
        return _cannot_be_made(place)
    except OSError as error:
        remedy = "Correct the path, or bring back the disk or share behind it."
        return place.error(f"{place.shown} cannot be reached: {reason_of(error)}", remedy)
    if not stat.S_ISDIR(found.st_mode):
        return place.error(f"{place.shown} is no folder", "Name a folder, or move the file away.")
    if os.access(place.path, os.R_OK | os.X_OK | (0 if reads_only else os.W_OK)):
        return None
    if not reads_only and _mounted_read_only(place.path):
        return _read_only(place, place.path)
    return _denied(place, found, "read" if reads_only else "read and write")


def _is_away(settings: Settings, name: str) -> bool:
    """Tell whether a folder is likely to be on the share that has yet to be mounted."""
    marker = settings.watch.marker
    away = marker is not None and not os.path.lexists(settings.folders.inbox / marker)
    return away and name != "folders.state"


def _waited_for(found: Finding) -> Finding:
    remedy = "It is waited for until watch.marker is in the inbox."
    return Finding("warning", found.where, found.what, remedy)


def _denied(place: _Place, found: os.stat_result, what: str) -> Finding:
    owner, mode = f"{found.st_uid}:{found.st_gid}", f"{stat.S_IMODE(found.st_mode):04o}"
    quoted = shlex.quote(place.path)
    if found.st_uid == os.geteuid():
        remedy = f"Run: chmod u+rwx {quoted}"
    else:
        remedy = f"Run: chown {os.geteuid()}:{os.getegid()} {quoted}"
        if found.st_uid:
            # In compose.yaml the user is PUID and PGID.
            remedy += f", or run as its owner (PUID={found.st_uid} PGID={found.st_gid})"
    words = f"{me()} may not {what} {place.shown}, which belongs to {owner} with mode {mode}"
    return place.error(words, f"{remedy}.")


def _cannot_be_made(place: _Place) -> Finding | None:
    way = (place.path, *map(str, Path(place.path).parents))
    dangling = next((one for one in way if os.path.islink(one) and not os.path.exists(one)), None)
    if dangling is not None:
        target = printable(os.path.realpath(dangling))
        what = f"{place.shown} is behind a link to {target}, which does not exist"
        return place.error(what, "Bring back the disk or share behind it, or make that folder.")
    above = place.nearest
    if os.access(above, os.W_OK | os.X_OK):
        return None
    if _mounted_read_only(above):
        return _read_only(place, above)
    quoted = shlex.quote(place.path)
    return place.error(
        f"{place.shown} does not exist, and {me()} may not make it in {printable(above)}",
        f"Run: mkdir -p {quoted} && chown {os.geteuid()}:{os.getegid()} {quoted}.",
    )


def _mounted_read_only(path: str) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _read_only(place: _Place, where: str) -> Finding:
    missing = "" if where == place.path else "does not exist, and "
    what = f"{place.shown} {missing}lies on a file system that is mounted read-only"
    remedy = "Mount it writable; in a systemd unit, name the folder in ReadWritePaths=."
    return place.error(what, remedy)


def _on_network(state: _Place, mounts: tuple[Mount, ...]) -> Iterator[Finding]:
    for mount in mounts_under(state.real, mounts):
        if network(mount.fs_type):
            what = f"{state.shown} is on a network ({mount.fs_type} on {printable(mount.point)})"
            remedy = "Name a folder on a disk of this machine: the record is an SQLite database."
            yield state.error(what, remedy)
            return


def _unwritable_log(file: Path | None) -> Iterator[Finding]:
    if file is None:
        return
    place = _look("log.file", file)
    folder = os.path.dirname(place.real)
    if not os.path.isdir(folder):
        what = f"the folder of {place.shown} does not exist"
        yield place.error(what, f"Run: mkdir -p {shlex.quote(folder)}.")
    elif os.path.isdir(place.real):
        yield place.error(f"{place.shown} is a folder", "Name a file in it.")
    elif not os.access(needed := place.real if os.path.exists(place.real) else folder, os.W_OK):
        who, what = f"{os.geteuid()}:{os.getegid()}", f"{me()} may not write {place.shown}"
        yield place.error(what, f"Run: chown {who} {shlex.quote(needed)}.")


def prepare_folders(settings: Settings) -> None:
    """Make the folders that do not exist yet; only the owner may enter a new state folder.

    Raises:
        SetupError: One of them cannot be made.
    """
    for name, path in _used(settings).items():
        try:
            os.makedirs(path, mode=0o700 if name == "state" else 0o777, exist_ok=True)
        except OSError as error:
            if _is_away(settings, f"folders.{name}"):
                continue
            raise SetupError(
                f"folders.{name}: {printable(str(path))} cannot be made: {reason_of(error)}. "
                "Make it yourself, or name another folder."
            ) from error
