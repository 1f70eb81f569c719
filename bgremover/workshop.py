"""Where pictures are worked on: in threads of their own, as many at a time as memory allows.

The pipeline hands over open files; what there is to know of pictures is known by the studio.
"""

import asyncio
import contextlib
import contextvars
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import BinaryIO, TypeVar, assert_never, cast

from bgremover.affinity import LONG_SECONDS, Affinity
from bgremover.core.errors import (
    BgremoverError,
    BrokenResult,
    FileFault,
    Unreadable,
    Withdrawn,
    local_fault,
)
from bgremover.core.job import Picture
from bgremover.core.recipe import Recipe
from bgremover.core.review import Measured
from bgremover.core.terms import OutputTerms
from bgremover.edges.ideogram import Upload
from bgremover.edges.pictures import MEDIA_TYPES, verify_result
from bgremover.studio import budget, finish, intake, render, upload
from bgremover.studio.opening import NotDecoded, opened
from bgremover.studio.upload import Prepared
from bgremover.timing import waiting

T = TypeVar("T")
Opened = Callable[[], AbstractContextManager[BinaryIO]]
"""Opens a file. Raises `Withdrawn` when it is not what it was."""

_NICE = 10
_THREADS = 2
_PIECE = 1 << 20
_ROOM = 2
"""How many times as many pixels as an original a rendition may have that is not told its size."""
_SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}


@dataclass(frozen=True, slots=True)
class Craft:
    """What the configuration says about the work on all pictures.

    Args:
        limits: What is taken.
        memory: How much all work may take at a time, in bytes; one piece of work may take more.
        scratch: A folder for files without a name.
        max_result_megapixels: How large a result may be.
    """

    limits: intake.Limits
    memory: int
    scratch: str
    max_result_megapixels: float = 200.0


@dataclass(frozen=True, slots=True)
class Made:
    """A cut-out that is written: its sum and size in bytes, what was measured, what to know."""

    sha256: str
    size: int
    stats: Measured
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rendition:
    """A rendition that is written: its sum and size in bytes, and what to know, if anything."""

    sha256: str
    size: int
    note: str


class Workshop:
    """All work on pictures.

    Args:
        craft: What the configuration says about it.
        affinity: Where its threads may run.
    """

    def __init__(self, craft: Craft, affinity: Affinity) -> None:
        self.craft = craft
        self._affinity = affinity
        self._under_way = 0
        self._look_out: asyncio.TimerHandle | None = None
        self._threads = ThreadPoolExecutor(_THREADS, "pictures", initializer=_be_nice)
        self._memory = Memory(craft.memory)

    async def look(self, original: Opened) -> Picture:
        """Find out what an original is, and whether it can be sent.

        Raises:
            FileFault: It cannot be sent.
            Withdrawn: It is not what was claimed.
            LocalFault: This machine cannot read it now.
        """

        def look() -> Picture:
            with original() as file, self._memory.taken(self._for_look(file)):
                found = intake.look(file, self.craft.limits)
            return replace(
                found.picture,
                converted=found.needs_conversion,
                transparent=found.transparent,
                note=found.note,
            )

        return await self._run(look)

    def _for_look(self, file: BinaryIO) -> int:
        form, pixels = intake.area(file)
        # Pictures of more pixels are refused by their header.
        return budget.estimate("look", form, min(pixels, self.craft.limits.max_pixels))

    @contextlib.asynccontextmanager
    async def upload(
        self, original: BinaryIO, picture: Picture, name: str
    ) -> AsyncIterator[Upload]:
        """Yield what is sent: the original itself, or what is made of it.

        Raises:
            FileFault: Nothing can be made of it that the API takes.
            LocalFault: This machine cannot do it now.
        """
        if not picture.converted:
            size = os.fstat(original.fileno()).st_size
            yield Upload(original, name, MEDIA_TYPES[picture.format], size)
            return
        with self.scratch() as into:
            made = await self._run(lambda: self._prepare(original, picture, into))
            size = into.seek(0, os.SEEK_END)
            sent_as = name.rpartition(".")[0] + _SUFFIXES[made.media_type]
            yield Upload(into, sent_as, made.media_type, size, made.note)

    def _prepare(self, original: BinaryIO, picture: Picture, into: BinaryIO) -> Prepared:
        limits = self.craft.limits
        found = intake.Look(picture, needs_conversion=True, transparent=picture.transparent)
        options = upload.Options(limits.max_upload_bytes, limits.oversize)
        area = picture.width * picture.height
        need = budget.estimate("upload", picture.format, area, transparent=picture.transparent)
        with self._memory.taken(need), _readable():
            return upload.prepare(original, found, options, into)

    def scratch(self) -> BinaryIO:
        """Return a file without a name, for what need not last.

        Raises:
            LocalFault: This machine cannot make one.
        """
        try:
            return cast("BinaryIO", tempfile.TemporaryFile(dir=self.craft.scratch))
        except OSError as error:
            raise local_fault(error, f"making a file in {self.craft.scratch}") from error

    def own_copy(self, file: BinaryIO, sha256: str) -> BinaryIO | None:
        """Return a copy of a file that nobody else can write to, if its bytes have this sum.

        Raises:
            LocalFault: This machine cannot make one.
        """
        copy = self.scratch()
        try:
            file.seek(0)
            shutil.copyfileobj(file, copy, _PIECE)
            if _sum(copy)[0] == sha256:
                return copy
        except OSError as error:
            copy.close()
            raise local_fault(error, f"copying a file into {self.craft.scratch}") from error
        copy.close()
        return None

    async def cut_out(
        self,
        original: Opened,
        picture: Picture,
        result: BinaryIO,
        into: BinaryIO,
        terms: OutputTerms,
    ) -> Made:
        """Check a result, and make the cut-out of it.

        Args:
            original: Opens the original, for its pixels and its metadata.
            picture: What the original is.
            result: What was fetched.
            into: Where the cut-out goes; empty, open for writing and reading.
            terms: What it is to be like.

        Raises:
            BrokenResult: It is no whole PNG with a transparent pixel.
            LocalFault: This machine cannot do it now.
        """

        def cut_out() -> Made:
            found = verify_result(result, self.craft.max_result_megapixels)
            with self._for_finish(picture, found.width * found.height), _usable():
                return _made(into, _finished(original, picture, result, into, terms))

        return await self._run(cut_out)

    async def make_anew(
        self,
        original: Opened,
        picture: Picture,
        earlier: tuple[BinaryIO, OutputTerms],
        into: BinaryIO,
        terms: OutputTerms,
    ) -> Made:
        """Make a cut-out of an earlier one of the same bytes, which was made by other terms.

        Args:
            original: Opens the original.
            picture: What it is.
            earlier: The cut-out, as it was made by this workshop, and by which terms. Its pixels
                stay, unless those of the original are wanted in a result.
            into: Where the new one goes; empty, open for writing and reading.
            terms: What it is to be like.

        Raises:
            BrokenResult: The earlier one cannot be decoded.
            LocalFault: This machine cannot do it now.
        """

        def make_anew() -> Made:
            file, made_by = earlier
            enlarged = (made_by.resolution, terms.resolution) == ("result", "original")
            work = _finished if enlarged else _anew
            with _usable():
                width, height = opened(file, "PNG").size
            with self._for_finish(picture, width * height), _usable():
                return _made(into, work(original, picture, file, into, terms))

        return await self._run(make_anew)

    def _for_finish(self, picture: Picture, pixels: int) -> AbstractContextManager[None]:
        area = picture.width * picture.height
        return self._memory.taken(budget.estimate("finish", picture.format, area, pixels))

    async def pass_on(
        self, original: Opened, picture: Picture, into: BinaryIO, terms: OutputTerms
    ) -> Made:
        """Make the cut-out of an original that is transparent already.

        Raises:
            FileFault: It cannot be decoded.
            Withdrawn: It is not what was claimed.
            LocalFault: This machine cannot do it now.
        """
        options = finish.Options(terms.metadata)

        def pass_on() -> Made:
            need = budget.estimate("finish", picture.format, picture.width * picture.height)
            with original() as file, self._memory.taken(need), _readable():
                return _made(into, finish.pass_on(file, picture.format, into, options))

        return await self._run(pass_on)

    async def render(self, recipe: Recipe, sources: render.Sources, into: BinaryIO) -> Rendition:
        """Draw one rendition of a cut-out.

        Raises:
            NotDecoded: A source cannot be decoded.
            TooLarge: It cannot be made as small as the recipe asks, or takes too much memory.
            LocalFault: This machine cannot do it now.
        """

        def draw() -> Rendition:
            size = opened(sources.master, "PNG").size
            most = budget.most_of_rendering(self.craft.memory, size, sources.form)
            need = min(most, budget.rendering(recipe, size, sources.form))
            pixels = _ROOM * self.craft.limits.max_pixels
            with self._memory.taken(need), _drawable():
                note = render.render(sources, recipe, into, pixels, most).note
            return Rendition(*_sum(into), note)

        return await self._run(draw)

    async def _run(self, work: Callable[[], T]) -> T:
        context, turn = contextvars.copy_context(), contextlib.ExitStack()
        turn.enter_context(waiting())

        def begin() -> T:
            turn.close()
            with self._affinity.at_work():
                return context.run(work)

        try:
            with self._looking_out():
                return await asyncio.get_running_loop().run_in_executor(self._threads, begin)
        except OSError as error:  # of the file that is written
            if error.errno is None:  # an encoder's word: it says nothing about this machine
                raise
            raise local_fault(error, "working on a picture") from error

    @contextlib.contextmanager
    def _looking_out(self) -> Iterator[None]:
        """Look out for work that lasts while there is any."""
        self._under_way += 1
        if self._look_out is None:
            self._look()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way and self._look_out is not None:
                self._look_out.cancel()
                self._look_out = None

    def _look(self) -> None:
        self._affinity.release_long()
        self._look_out = asyncio.get_running_loop().call_later(LONG_SECONDS, self._look)


class Memory:
    """How much memory may be taken: who wants more than is left waits, whoever asks first first.

    Work that takes more than there is altogether is let in when nothing else runs.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._changed = threading.Condition()
        self._turns: list[object] = []

    @contextlib.contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Wait for so many bytes, and hold them."""
        turn = object()
        with self._changed:
            self._turns.append(turn)
            with waiting():
                self._changed.wait_for(lambda: self._turns[0] is turn and self._fits(size))
            self._turns.pop(0)
            self._taken += size
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        return self._taken == 0 or self._taken + size <= self._size


def _finished(
    original: Opened, picture: Picture, result: BinaryIO, into: BinaryIO, terms: OutputTerms
) -> finish.Finished:
    match terms.resolution:
        case "result":
            return finish.as_it_came((picture.width, picture.height), result, into)
        case "original":
            with contextlib.ExitStack() as stack:
                file = _given(stack, original)
                options = finish.Options(terms.metadata)
                return finish.finish(file, picture.format, result, into, options)
        case _:
            assert_never(terms.resolution)


def _anew(
    original: Opened, picture: Picture, earlier: BinaryIO, into: BinaryIO, terms: OutputTerms
) -> finish.Finished:
    # A result has nothing of the original's metadata, nor has what stands for one.
    options = finish.Options("strip" if terms.resolution == "result" else terms.metadata)
    with contextlib.ExitStack() as stack:
        file = _given(stack, original)
        return finish.anew(file, picture.format, earlier, into, options)


def _given(stack: contextlib.ExitStack, original: Opened) -> BinaryIO | None:
    # What is paid for is kept, whatever has become of the original meanwhile.
    try:
        return stack.enter_context(original())
    except (Withdrawn, FileFault):
        return None


def _made(into: BinaryIO, done: finish.Finished) -> Made:
    return Made(*_sum(into), done.stats, done.notes)


def _sum(file: BinaryIO) -> tuple[str, int]:
    digest = hashlib.sha256()
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest(), size


@contextlib.contextmanager
def _usable() -> Iterator[None]:
    """Blame the result: the original is left out where it cannot be decoded."""
    try:
        yield
    except NotDecoded as error:
        raise BrokenResult(f"the result cannot be decoded: {error}") from error


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Blame the original: nothing else is decoded here."""
    try:
        yield
    except NotDecoded as error:
        raise Unreadable(f"the picture cannot be decoded: {error}") from error


@contextlib.contextmanager
def _drawable() -> Iterator[None]:
    """Give all that an encoder raises one name; the machine's faults have theirs already."""
    try:
        yield
    except (BgremoverError, NotDecoded):
        raise
    except Exception as error:  # WebP ends at 16,383 pixels, JPEG at 65,500, and each says so
        raise NotDecoded(f"it cannot be drawn: {error}") from error


def _be_nice() -> None:
    # The loop and the ledger keep the calls in flight; pictures may take what they leave.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
