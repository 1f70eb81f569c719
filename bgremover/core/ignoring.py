"""Which names in the inbox are no images: partial uploads and the litter of NAS and desktops."""

import fnmatch
import re
from dataclasses import dataclass, field

FILES = (
    ".*",  # hidden files: temporary names of rsync and Syncthing, ._* of macOS, .DS_Store
    "Thumbs.db",
    "ehthumbs*.db",
    "desktop.ini",
    "Icon\r",
    "~$*",
    "~syncthing~*",
    "*.part",
    "*.partial",
    "*.filepart",
    "*.crdownload",
    "*.download",
    "*.opdownload",
    "*.tmp",
    "*.temp",
    "*.swp",
    "*~",
    "*.!ut",
    "*.aria2",
    "*.lock",
    "*@SynoEAStream",
    "*@SynoResource",
)
"""Built-in globs for file names, compared without regard to case."""

FOLDERS = (
    ".*",  # .stversions, .stfolder, .Trash-1000, .AppleDouble, .@__thumb, ...
    "@eaDir",
    "#recycle",
    "#snapshot",
    "@Recycle",
    "@Recently-Snapshot",
    "@tmp",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
    "__MACOSX",
    "Network Trash Folder",
    "Temporary Items",
)
"""Built-in globs for folders; nothing below them is looked at."""

LONGEST_GLOB = 500
"""A longer one names no file: paths are made of names of at most 255 bytes."""

_TOKEN = re.compile(r"\[!?\]?[^\]]*\]|.", re.DOTALL)  # a set of characters, or one


def _compiled(globs: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(_translated(glob) for glob in globs) or r"(?!)", re.IGNORECASE)


def _translated(glob: str) -> str:
    if "/" not in glob:
        return fnmatch.translate(glob)
    first, *rest = _split(glob.strip("/").split("/"), "**")
    if not rest:
        return rf"(?s:{'/'.join(map(_name, first))})\Z"
    *middle, last = rest
    between = "".join(rf"(?>(?:[^/]+/)*?{_folders(part)})" for part in middle if part)
    below = rf"(?:[^/]+/)*{'/'.join(map(_name, last))}" if last else ".+"
    return rf"(?s:{_folders(first)}{between}{below})\Z"


def _folders(parts: list[str]) -> str:
    return "".join(_name(part) + "/" for part in parts)


def _name(part: str) -> str:
    first, *rest = _split(_TOKEN.findall(part), "*")
    if not rest:
        return _fixed(first)
    *middle, last = rest
    between = "".join(f"(?>[^/]*?{_fixed(piece)})" for piece in middle if piece)
    return f"{_fixed(first)}{between}[^/]*{_fixed(last)}"


def _split(parts: list[str], wildcard: str) -> list[list[str]]:
    """Split at the wildcard.

    What lies between two of them is always of one length, in characters or in names. So the first
    place where it fits will do and need not be thought over again: who drops files may write
    globs, and must not be able to keep the program busy with them.
    """
    pieces: list[list[str]] = [[]]
    for part in parts:
        if part == wildcard:
            pieces.append([])
        else:
            pieces[-1].append(part)
    return pieces


def _fixed(tokens: list[str]) -> str:
    return "".join(map(_token, tokens))


def _token(one: str) -> str:
    if one == "?":
        return "[^/]"
    if len(one) == 1:
        return re.escape(one)
    # A set such as [!a] is left to fnmatch; only "/" is never in it.
    inner = fnmatch.translate(one).removesuffix(r"\Z").removesuffix(r"\z")
    return "(?!/)" + inner


def _is(glob: str, name: str) -> bool:
    return bool(_compiled((glob,)).match(name))


@dataclass(frozen=True, slots=True)
class Ignore:
    """The built-in list and the globs of the configuration.

    A glob without "/" is compared with each name, one with "/" with the path below the inbox;
    there `*` stays within a name and `**` stands for any folders. Case does not matter.

    Args:
        globs: `watch.ignore`.
    """

    globs: tuple[str, ...] = ()
    _files: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _folders: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _paths: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _has_paths: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = tuple(glob for glob in self.globs if "/" not in glob)
        paths = tuple(glob for glob in self.globs if "/" in glob)
        object.__setattr__(self, "_files", _compiled(FILES + names))
        object.__setattr__(self, "_folders", _compiled(FOLDERS + names))
        object.__setattr__(self, "_paths", _compiled(paths))
        object.__setattr__(self, "_has_paths", bool(paths))

    def file(self, name: str, path: str) -> bool:
        """Tell whether the file `name`, at `path` below the inbox, is left alone."""
        return self._files.match(name) is not None or (self._has_paths and self._path(path))

    def folder(self, name: str, path: str) -> bool:
        """Tell whether the folder `name`, at `path` below the inbox, is not entered."""
        return self._folders.match(name) is not None or (self._has_paths and self._path(path))

    def path(self, path: str) -> bool:
        """Tell whether the file at `path` is left alone, for itself or for a folder above it."""
        *folders, name = path.split("/")
        above = ""
        for folder in folders:
            above += folder
            if self.folder(folder, above):
                return True
            above += "/"
        return self.file(name, path)

    def why(self, path: str) -> str | None:
        """Return in words why `path` is left alone, and by which rule; None when it is not."""
        *folders, name = path.split("/")
        above = ""
        for folder in folders:
            above += folder
            if self.folder(folder, above):
                return f"the folder {above} is ignored: {self.why_folder(folder, above)}"
            above += "/"
        rule = self.why_file(name, path)
        return rule and f"the name {name} is ignored: {rule}"

    def why_file(self, name: str, path: str) -> str | None:
        """Return the rule by which the file `name`, at `path`, is left alone; None without one."""
        return self._rule(FILES, name, path) if self.file(name, path) else None

    def why_folder(self, name: str, path: str) -> str | None:
        """Return the rule by which the folder `name`, at `path`, is not entered."""
        return self._rule(FOLDERS, name, path) if self.folder(name, path) else None

    def _rule(self, built_in: tuple[str, ...], name: str, path: str) -> str:
        for glob in self.globs:
            if _compiled((glob,)).match(path if "/" in glob else name):
                return f"{glob} of watch.ignore"
        return next(f"{glob} of the built-in list" for glob in built_in if _is(glob, name))

    def _path(self, path: str) -> bool:
        return self._paths.match(path) is not None
