"""What a folder of the inbox has of its own: `.bgremover.yaml` in it, for it and all below.

Such a file outdoes the configuration and the files of the folders above it, key by key. One that
is wrong holds its folder: nothing in and below it is taken until it is mended.
"""

from dataclasses import dataclass, replace
from typing import Literal

from bgremover.core.ignoring import Ignore

FILE = ".bgremover.yaml"
"""The name of the file; hidden, and so never taken for an image."""

MOST_BYTES = 65_536
"""A longer file is no list of a few keys, and is not read."""

Originals = Literal["archive", "keep", "delete"]


@dataclass(frozen=True, slots=True)
class Override:
    """What one file says.

    Args:
        originals: What happens to originals; None where the file does not say.
        ignore: The globs to leave alone, relative to the file's folder; None likewise.
        wrong: What is wrong with the file, in words; None when it is sound.
    """

    originals: Originals | None = None
    ignore: Ignore | None = None
    wrong: str | None = None


@dataclass(frozen=True, slots=True)
class FolderTerms:
    """What holds in one folder of the inbox.

    Args:
        ignore: What is left alone.
        base: The folder that its globs are relative to, as "" or "shoes/".
        originals: What happens to originals; None: what the configuration says.
        held: Why nothing here is taken; None when all is well.
    """

    ignore: Ignore
    base: str = ""
    originals: Originals | None = None
    held: str | None = None

    def below(self, folder: str, override: Override) -> "FolderTerms":
        """Return what holds in a folder that has a file of its own.

        Args:
            folder: Its path below the inbox, as "" or "shoes/red/".
            override: What its file says.
        """
        if override.wrong is not None:
            return replace(self, held=self.held or f"{folder}{FILE}: {override.wrong}")
        own = replace(self, originals=override.originals or self.originals)
        return own if override.ignore is None else replace(own, ignore=override.ignore, base=folder)

    def leaves_file(self, name: str, path: str) -> bool:
        """Tell whether the file `name`, at `path` below the inbox, is left alone."""
        return self.ignore.file(name, path[len(self.base) :])

    def leaves_folder(self, name: str, path: str) -> bool:
        """Tell whether the folder `name`, at `path` below the inbox, is not entered."""
        return self.ignore.folder(name, path[len(self.base) :])

    def why_file(self, name: str, path: str) -> str | None:
        """Return in words by which rule a file is left alone; None when it is not."""
        return self.ignore.why_file(name, path[len(self.base) :])

    def why_folder(self, name: str, path: str) -> str | None:
        """Return in words by which rule a folder is not entered; None when it is."""
        return self.ignore.why_folder(name, path[len(self.base) :])
