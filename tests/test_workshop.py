"""Picture work runs side by side while memory allows, and each fault gets its blame."""

import asyncio
import hashlib
import io
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from bgremover.affinity import GIVEN, LONG_SECONDS, Affinity
from bgremover.core.errors import BrokenResult, DiskFull, TooLarge, Truncated, Vanished
from bgremover.core.recipe import recipe_of
from bgremover.core.terms import OutputTerms
from bgremover.studio.intake import Limits
from bgremover.studio.render import Sources
from bgremover.timing import STEP, Progress
from bgremover.workshop import Craft, Memory, Workshop
from tests.site import photo, until

SIZE = (96, 72)


def shop(tmp_path: Path, affinity: Affinity | None = None) -> Workshop:
    return Workshop(
        Craft(
            limits=Limits(10_000_000),
            memory=1_000_000_000,
            scratch=str(tmp_path),
        ),
        affinity or Affinity(wanted=False),
    )


def opening(data: bytes) -> Callable[[], BinaryIO]:
    return lambda: io.BytesIO(data)


def result(size: tuple[int, int] = SIZE) -> bytes:
    image = Image.new("RGBA", size)
    width, height = size
    box = (width // 4, height // 8, width * 3 // 4, height * 7 // 8)
    ImageDraw.Draw(image).ellipse(box, fill=(200, 60, 40, 255))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


# --- memory -------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 150), min_size=1, max_size=12))
@example([60, 60, 10])
@example([150, 1])
def test_never_more_is_taken_than_there_is_but_for_one_that_is_too_large(sizes: list[int]) -> None:
    memory, lock, inside, seen = Memory(100), threading.Lock(), list[int](), list[list[int]]()

    def work(size: int) -> None:
        with memory.taken(size):
            with lock:
                inside.append(size)
                seen.append(list(inside))
            with lock:
                inside.remove(size)

    with ThreadPoolExecutor(len(sizes)) as pool:
        list(pool.map(work, sizes))
    assert len(seen) == len(sizes)  # each had its turn
    assert all(sum(taken) <= 100 or len([one for one in taken if one]) == 1 for taken in seen)


def test_what_fits_runs_side_by_side() -> None:
    memory, together = Memory(100), threading.Barrier(2, timeout=10)

    def work() -> int:
        with memory.taken(50):
            return together.wait()

    with ThreadPoolExecutor(2) as pool:
        assert sorted(one.result() for one in [pool.submit(work), pool.submit(work)]) == [0, 1]


def test_who_asks_first_is_let_in_first() -> None:
    memory, order = Memory(100), list[int]()

    def work(number: int, size: int) -> None:
        with memory.taken(size):
            order.append(number)

    with ThreadPoolExecutor(2) as pool, ExitStack() as held:
        held.enter_context(memory.taken(60))
        large = pool.submit(work, 1, 90)
        until(lambda: len(memory._turns) == 1)
        small = pool.submit(work, 2, 30)  # it would fit beside what is held
        until(lambda: len(memory._turns) == 2)
        held.close()
        large.result(10)
        small.result(10)
    assert order == [1, 2]


# --- turns --------------------------------------------------------------------------------------


class Hand:
    """A steady clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_only_the_time_of_its_own_work_counts_for_a_step(tmp_path: Path) -> None:
    work, clock = shop(tmp_path), Hand()
    free, asked, readable = (threading.Event() for _ in range(3))

    def original() -> BinaryIO:
        asked.set()
        assert readable.wait(10)
        return io.BytesIO(photo())

    async def scenario() -> list[float]:
        progress, seen = Progress(clock), list[float]()
        STEP.set(progress)
        for _ in range(2):
            work._threads.submit(free.wait, 10)
        held = ExitStack()
        held.enter_context(work._memory.taken(10**12))
        step = asyncio.create_task(work.look(original))
        await asyncio.sleep(0)
        clock.now = 1000  # both threads are busy
        seen.append(progress.still())
        free.set()
        await asyncio.to_thread(asked.wait, 10)
        clock.now = 1500  # the original does not open
        seen.append(progress.still())
        readable.set()
        await asyncio.to_thread(until, lambda: len(work._memory._turns) == 1)
        clock.now = 3000  # somebody else has the memory
        seen.append(progress.still())
        held.close()
        await step
        clock.now = 3700
        return [*seen, progress.still()]

    assert asyncio.run(scenario()) == [0, 500, 0, 700]


# --- cores --------------------------------------------------------------------------------------


@pytest.mark.skipif(len(GIVEN) < 2, reason="needs two processor cores")
def test_only_work_that_lasts_runs_on_all_cores(tmp_path: Path) -> None:
    clock, threads = Hand(), list[int]()
    affinity = Affinity(wanted=True, steady=clock)
    work = shop(tmp_path, affinity)

    def original() -> BinaryIO:
        threads.append(threading.get_native_id())
        assert os.sched_getaffinity(0) == {affinity.shared}
        return io.BytesIO(photo())

    def endless() -> BinaryIO:
        threads.append(threading.get_native_id())
        clock.now += LONG_SECONDS
        until(lambda: os.sched_getaffinity(0) == GIVEN)
        return io.BytesIO(photo())

    async def scenario() -> None:
        affinity.follow()
        for opener in (original, endless, original):
            await work.look(opener)

    try:
        asyncio.run(scenario())
    finally:
        affinity.end()
    assert len(threads) == 3


# --- the work -----------------------------------------------------------------------------------


def test_a_picture_is_looked_at_and_sent_as_it_is(tmp_path: Path) -> None:
    data = photo()

    async def work() -> tuple[bytes, str, str]:
        work = shop(tmp_path)
        picture = await work.look(opening(data))
        assert (picture.format, picture.width, picture.height) == ("JPEG", *SIZE)
        with (tmp_path / "a.jpg").open("w+b") as file:
            file.write(data)
            file.seek(0)
            async with work.upload(file, picture, "a.jpg") as upload:
                return upload.file.read(), upload.name, upload.media_type

    assert asyncio.run(work()) == (data, "a.jpg", "image/jpeg")


def test_what_the_api_does_not_take_is_converted(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(photo())).save(buffer, "TIFF")

    async def work() -> tuple[str, str, int, bytes]:
        work = shop(tmp_path)
        picture = await work.look(opening(buffer.getvalue()))
        async with work.upload(io.BytesIO(buffer.getvalue()), picture, "a.b.tif") as upload:
            upload.file.seek(0)
            return upload.name, upload.media_type, upload.size, upload.file.read()

    name, media_type, size, sent = asyncio.run(work())
    assert (name, media_type) == ("a.b.png", "image/png")
    assert len(sent) == size
    assert Image.open(io.BytesIO(sent)).size == SIZE


def test_a_picture_that_is_cut_off_is_the_fault_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(Truncated):
        asyncio.run(shop(tmp_path).look(opening(photo()[:700])))


def cut(
    tmp_path: Path,
    original: Callable[[], BinaryIO],
    came: bytes,
    resolution: Literal["original", "result"] = "original",
) -> tuple[int, int]:
    async def work() -> tuple[int, int]:
        work = shop(tmp_path)
        picture = await work.look(opening(photo()))
        into = io.BytesIO()
        made = await work.cut_out(
            original, picture, io.BytesIO(came), into, OutputTerms(resolution)
        )
        assert made.size == len(into.getvalue())
        return Image.open(into).size

    return asyncio.run(work())


def test_a_cut_out_has_the_size_of_the_original(tmp_path: Path) -> None:
    assert cut(tmp_path, opening(photo()), result((48, 36))) == SIZE


def test_a_cut_out_stays_as_it_came_where_that_is_asked_for(tmp_path: Path) -> None:
    assert cut(tmp_path, opening(photo()), result((48, 36)), "result") == (48, 36)


@pytest.mark.parametrize(
    ("made_by", "wanted", "size"),
    [
        ("result", "original", SIZE),
        ("result", "result", (48, 36)),
        ("original", "original", (48, 36)),
        ("original", "result", (48, 36)),
    ],
)
def test_a_cut_out_is_made_anew_of_an_earlier_one(
    tmp_path: Path,
    made_by: Literal["original", "result"],
    wanted: Literal["original", "result"],
    size: tuple[int, int],
) -> None:
    async def work() -> tuple[int, int]:
        work, into = shop(tmp_path), io.BytesIO()
        picture = await work.look(opening(photo()))
        earlier = io.BytesIO(result((48, 36))), OutputTerms(made_by)
        await work.make_anew(opening(photo()), picture, earlier, into, OutputTerms(wanted))
        return Image.open(into).size

    assert asyncio.run(work()) == size


def test_a_copy_of_ones_own_has_the_bytes_that_were_asked_for_or_is_none(tmp_path: Path) -> None:
    path, work = tmp_path / "earlier.png", shop(tmp_path)
    path.write_bytes(result())
    sha256 = hashlib.sha256(result()).hexdigest()
    with path.open("rb") as file:
        file.read(100)
        copy = work.own_copy(file, sha256)
        assert copy is not None
        path.write_bytes(b"something else")
        with copy:
            copy.seek(0)
            assert copy.read() == result()
        assert work.own_copy(file, sha256) is None
    assert os.listdir(tmp_path) == ["earlier.png"]


def test_without_the_original_the_result_is_kept(tmp_path: Path) -> None:
    def gone() -> BinaryIO:
        raise Vanished("a.jpg is no longer there")

    assert cut(tmp_path, gone, result((48, 36))) == (48, 36)


def test_a_result_that_is_no_picture_is_broken(tmp_path: Path) -> None:
    with pytest.raises(BrokenResult):
        cut(tmp_path, opening(photo()), b"nothing")


def drawn(tmp_path: Path, line: str, master: bytes) -> bytes:
    into = io.BytesIO()
    asyncio.run(shop(tmp_path).render(recipe_of(line), Sources(io.BytesIO(master)), into))
    return into.getvalue()


def test_a_rendition_that_takes_too_much_memory_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match=r"huge would take 2,8.. MB .* pictures\.max_memory_mb"):
        drawn(tmp_path, "huge size=10000x10000 format=avif", result())
    assert drawn(tmp_path, "small size=10 format=avif", result())


def test_it_is_the_memory_of_what_is_drawn_that_counts(tmp_path: Path) -> None:
    """Of a picture that is next to empty little is left when all around the subject is cut off."""
    image = Image.new("RGBA", (3000, 3000))
    image.paste((200, 60, 40, 255), (100, 100, 200, 200))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    with pytest.raises(TooLarge, match="wide would take"):
        drawn(tmp_path, "wide fill=40% format=avif", buffer.getvalue())
    assert drawn(tmp_path, "wide fill=40% format=avif trim=true", buffer.getvalue())


class Full(io.BytesIO):
    def write(self, _data: object) -> int:
        raise OSError(28, "No space left on device")


def test_a_full_disk_is_the_fault_of_this_machine(tmp_path: Path) -> None:
    async def work() -> None:
        work = shop(tmp_path)
        picture = await work.look(opening(photo()))
        given, terms = io.BytesIO(result()), OutputTerms()
        await work.cut_out(opening(photo()), picture, given, Full(), terms)

    with pytest.raises(DiskFull):
        asyncio.run(work())
    drawing = shop(tmp_path).render(recipe_of("thumb"), Sources(io.BytesIO(result())), Full())
    with pytest.raises(DiskFull):
        asyncio.run(drawing)
