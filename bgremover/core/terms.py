"""What a folder of the inbox has of its own: `.bgremover.yaml` in it, for it and all below.

Such a file outdoes the configuration and the files of the folders above it, key by key. One that
is wrong holds its folder: nothing in and below it is taken until it is mended.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

from bgremover.core.ignoring import Ignore

FILE = ".bgremover.yaml"
"""The name of the file; hidden, and so never taken for an image."""

MOST_BYTES = 65_536
"""A longer file is no list of a few keys, and is not read."""

Originals = Literal["archive", "keep", "delete"]
Resolution = Literal["original", "result"]
Metadata = Literal["keep", "strip", "safe"]
Review = Literal["off", "warn", "move"]

MOST_RENDITIONS = 20
MOST_GLOBS = 100
"""Whoever may drop images may write such a file: it must not keep a machine busy for hours."""


@dataclass(frozen=True, slots=True)
class OutputTerms:
    """What a cut-out is like, and what else is made of it: `output` of the configuration.

    Args:
        resolution: original: the size and the pixels of the original. result: as it came.
        metadata: What of the original's metadata is kept.
        review: What happens to results that are not plausible.
        renditions: Recipes, each as its line.
    """

    resolution: Resolution = "original"
    metadata: Metadata = "safe"
    review: Review = "warn"
    renditions: tuple[str, ...] = ()

    def serves(self, wanted: "OutputTerms") -> bool:
        """Tell whether a cut-out that was made by these terms is what `wanted` asks for.

        Renditions are made of any cut-out. What nobody looked at for doubts is not what a review
        asks for.
        """
        alike = (self.resolution, self.metadata) == (wanted.resolution, wanted.metadata)
        return alike and (self.review != "off" or wanted.review == "off")


@dataclass(frozen=True, slots=True)
class OwnOutput:
    """What a folder says of `OutputTerms`, key by key; None where it does not say."""

    resolution: Resolution | None = None
    metadata: Metadata | None = None
    review: Review | None = None
    renditions: tuple[str, ...] | None = None

    def over(self, above: "_Terms") -> "_Terms":
        """Return `above` with what is said here in the place of what is said there."""
        return replace(above, **self.said())

    def said(self) -> dict[str, Any]:
        """Return what is said, by key."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: value for key, value in values.items() if value is not None}


_Terms = TypeVar("_Terms", OutputTerms, OwnOutput)
_SILENT = OwnOutput()


@dataclass(frozen=True, slots=True)
class Override:
    """What one file says.

    Args:
        originals: What happens to originals; None where the file does not say.
        ignore: The globs to leave alone, relative to the file's folder; None likewise.
        output: What cut-outs are like.
        wrong: What is wrong with the file, in words; None when it is sound.
    """

    originals: Originals | None = None
    ignore: Ignore | None = None
    output: OwnOutput = _SILENT
    wrong: str | None = None


@dataclass(frozen=True, slots=True)
class FolderTerms:
    """What holds in one folder of the inbox.

    Args:
        ignore: What is left alone.
        base: The folder that its globs are relative to, as "" or "shoes/".
        originals: What happens to originals; None: what the configuration says.
        output: What cut-outs are like, where it is not what the configuration says.
        held: Why nothing here is taken; None when all is well.
    """

    ignore: Ignore
    base: str = ""
    originals: Originals | None = None
    output: OwnOutput = _SILENT
    held: str | None = None

    def below(self, folder: str, override: Override) -> "FolderTerms":
        """Return what holds in a folder that has a file of its own.

        Args:
            folder: Its path below the inbox, as "" or "shoes/red/".
            override: What its file says.
        """
        if override.wrong is not None:
            return replace(self, held=self.held or f"{folder}{FILE}: {override.wrong}")
        originals = override.originals or self.originals
        own = replace(self, originals=originals, output=override.output.over(self.output))
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
