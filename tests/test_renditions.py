"""What becomes of renditions that cannot be put where a recipe wants them."""

import asyncio
import errno
import io
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from bgremover.affinity import Affinity
from bgremover.core.errors import BgremoverError, LocalFault, Vanished
from bgremover.core.ignoring import Ignore
from bgremover.core.recipe import recipe_of
from bgremover.edges.folders import Folders, Roots
from bgremover.edges.inbox import Inbox
from bgremover.renditions import Renderer, Renditions
from bgremover.studio.intake import Limits
from bgremover.workshop import Craft, Workshop
from tests.apart import apart
from tests.fakes import a_job

OUTPUT = "shoes/a.png"


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    folder = tmp_path / "outbox"
    (folder / "shoes").mkdir(parents=True)
    image = Image.new("RGBA", (40, 30))
    image.paste((200, 60, 40, 255), (10, 5, 30, 25))
    image.save(folder / OUTPUT)
    return folder


def gone() -> io.BytesIO:
    raise Vanished("it is gone")


def made(outbox: Path, *lines: str, original: Callable[[], io.BytesIO] = gone) -> Renditions:
    folders = Folders(Roots(str(outbox), "", ""), Inbox(outbox, Ignore()).holding)
    craft = Craft(Limits(10_000_000), 1_000_000_000, str(outbox))
    recipes = tuple(map(recipe_of, lines))
    renderer = Renderer(Workshop(craft, Affinity(wanted=False)), folders)
    return asyncio.run(renderer.make(a_job(), OUTPUT, original, recipes))


def is_told(outbox: Path) -> None:
    done = made(outbox, "thumb", "mask name=a:b/{stem}.png")
    assert done.outputs == ()
    assert "no renditions, for a name cannot be had: making " in done.notes[0]
    assert "shoes/a:b" in done.notes[0]


def holds_up(outbox: Path) -> None:
    with pytest.raises(LocalFault):
        made(outbox, "mask name=a:b/{stem}.png")


def holds_up_all(outbox: Path) -> None:
    outbox.rename(outbox.with_name("unmounted"))
    with pytest.raises(BgremoverError) as told:
        made(outbox, "mask name=a:b/{stem}.png")
    assert told.value.code == "folder_lost"


@pytest.mark.parametrize(
    ("error", "piece"),
    [
        (errno.EINVAL, is_told),  # exFAT, NTFS
        (errno.EILSEQ, is_told),  # where names are UTF-8
        (errno.ENAMETOOLONG, is_told),
        (errno.ENOENT, is_told),  # SMB
        (errno.ENOENT, holds_up_all),
        (errno.ENOSPC, holds_up),
        (errno.EIO, holds_up),
        (errno.EACCES, holds_up),
    ],
)
def test_a_name_that_the_file_system_refuses_holds_up_nobody(
    outbox: Path, error: int, piece: Callable[[Path], None]
) -> None:
    apart(partial(piece, outbox), refused={"mkdir": error})
    assert list(outbox.rglob(".*")) == []


def test_what_is_published_before_a_name_is_refused_is_told(outbox: Path) -> None:
    def original() -> io.BytesIO:
        # Asked for by the last recipe: somebody takes the name of the folder of the one before.
        shutil.rmtree(outbox / "shoes/x")
        (outbox / "shoes/x").write_bytes(b"no folder")
        return io.BytesIO((outbox / OUTPUT).read_bytes())

    done = made(outbox, "thumb", "mask name=x/{stem}.png", "google", original=original)
    assert done.outputs == ("shoes/a-thumb.webp",)
    assert done.fresh == 1
    assert done.notes[0].startswith("no more renditions, for a name cannot be had: ")
    assert sorted(path.name for path in (outbox / "shoes").iterdir()) == [
        *("a-thumb.webp", "a.png", "x")
    ]


def test_one_that_is_lost_before_it_is_published_is_drawn_again(outbox: Path) -> None:
    def original() -> io.BytesIO:
        for temp in outbox.rglob(".*"):
            temp.unlink()
        return io.BytesIO((outbox / OUTPUT).read_bytes())

    with pytest.raises(LocalFault, match=r"thumb.webp was drawn and lost"):
        made(outbox, "thumb", "google", original=original)
    done = made(outbox, "thumb")
    assert done.outputs == ("shoes/a-thumb.webp",)
    assert done.fresh == 1
