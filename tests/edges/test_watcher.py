"""What the watcher tells, seen with the kernel's own events on real folders."""

import contextlib
import itertools
import logging
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bgremover.edges import watcher as watching
from bgremover.edges.watcher import Watcher

LIMIT = 10.0
OVERFLOW = "Inotify queue overflowed; filesystem events were lost"
LOSSES = "watchdog.observers.inotify_c"


def until(condition: Callable[[], object], limit: float = LIMIT) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.002)


class Ears:
    """Hears what a watcher tells."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.doubts: list[str] = []

    def hears(self, *paths: str) -> None:
        until(lambda: set(paths) <= set(self.paths))

    def doubts_that(self, words: str) -> None:
        until(lambda: any(words in doubt for doubt in self.doubts))


class Place:
    """An inbox with a watcher, and a folder beside it on the same file system."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "inbox"
        self.outside = folder / "outside"
        self.root.mkdir()
        self.outside.mkdir()
        self.ears = Ears()
        self.marks = itertools.count()

    def watcher(self, root: Path | None = None, *, recursive: bool = True) -> Watcher:
        return Watcher(
            root or self.root, self.ears.paths.append, self.ears.doubts.append, recursive=recursive
        )

    @contextlib.contextmanager
    def watched(self, root: Path | None = None, *, recursive: bool = True) -> Iterator[Watcher]:
        watcher = self.watcher(root, recursive=recursive)
        watcher.start()
        try:
            yield watcher
        finally:
            watcher.stop()

    def all_told(self) -> None:
        """Wait until a mark that is made now is heard; events keep their order."""
        mark = f"mark-{next(self.marks)}"
        (self.root / mark).touch()
        self.ears.hears(mark)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# --- ways to deliver a file -----------------------------------------------------------------


def write(place: Place) -> None:
    (place.root / "a.jpg").write_bytes(b"x")


def move_in(place: Place) -> None:
    (place.outside / "a.jpg").write_bytes(b"x")
    os.rename(place.outside / "a.jpg", place.root / "a.jpg")


def hard_link(place: Place) -> None:
    (place.outside / "a.jpg").write_bytes(b"x")
    os.link(place.outside / "a.jpg", place.root / "a.jpg")


def rename_within(place: Place) -> None:
    (place.root / ".a.jpg.part").write_bytes(b"x")
    os.rename(place.root / ".a.jpg.part", place.root / "a.jpg")


def replace(place: Place) -> None:
    move_in(place)
    move_in(place)


@pytest.mark.parametrize("recursive", [True, False])
@pytest.mark.parametrize("deliver", [write, move_in, hard_link, rename_within, replace])
def test_every_way_to_deliver_a_file_is_told(
    place: Place, deliver: Callable[[Place], None], recursive: bool
) -> None:
    with place.watched(recursive=recursive):
        deliver(place)
        place.ears.hears("a.jpg")
        place.all_told()
    assert place.ears.doubts == []


def test_a_file_that_grows_is_told_again_when_it_is_closed(place: Place) -> None:
    (place.root / "a.jpg").touch()
    with place.watched():
        with open(place.root / "a.jpg", "ab") as writer:
            for _ in range(5):
                writer.write(b"x")
                writer.flush()
            place.all_told()
            assert "a.jpg" not in place.ears.paths
        place.ears.hears("a.jpg")


def test_a_file_in_a_folder_is_told_with_its_folder(place: Place) -> None:
    (place.root / "shoes").mkdir()
    with place.watched():
        (place.root / "shoes" / "a.jpg").touch()
        place.ears.hears("shoes/a.jpg")


def test_sub_folders_are_not_watched_unless_asked(place: Place) -> None:
    (place.root / "shoes").mkdir()
    with place.watched(recursive=False):
        (place.root / "shoes" / "a.jpg").touch()
        (place.root / "boots").mkdir()
        place.all_told()
    assert "shoes/a.jpg" not in place.ears.paths
    assert place.ears.doubts == []


def test_a_new_folder_and_what_came_with_it_is_told_and_doubted(place: Place) -> None:
    with place.watched():
        (place.root / "x" / "y").mkdir(parents=True)
        (place.root / "x" / "y" / "a.jpg").touch()
        place.ears.hears("x")
        place.ears.doubts_that("a folder arrived")
        (place.root / "x" / "y" / "later.jpg").touch()
        place.ears.hears("x/y/later.jpg")


def test_a_folder_moved_in_is_told_and_watched(place: Place) -> None:
    (place.outside / "x" / "y").mkdir(parents=True)
    (place.outside / "x" / "y" / "a.jpg").touch()
    with place.watched():
        os.rename(place.outside / "x", place.root / "x")
        place.ears.hears("x", "x/y", "x/y/a.jpg")
        place.ears.doubts_that("a folder arrived")
        (place.root / "x" / "y" / "later.jpg").touch()
        place.ears.hears("x/y/later.jpg")


def test_a_renamed_folder_is_told_by_its_new_name(place: Place) -> None:
    (place.root / "x").mkdir()
    (place.root / "x" / "a.jpg").touch()
    with place.watched():
        os.rename(place.root / "x", place.root / "z")
        place.ears.hears("z", "z/a.jpg")
        place.ears.doubts_that("a folder arrived")
        (place.root / "z" / "later.jpg").touch()
        place.ears.hears("z/later.jpg")
    assert "x" not in place.ears.paths


def test_what_leaves_is_not_told(place: Place) -> None:
    (place.root / "gone.jpg").touch()
    (place.root / "deleted.jpg").touch()
    (place.root / "empty").mkdir()
    with place.watched() as watcher:
        os.rename(place.root / "gone.jpg", place.outside / "gone.jpg")
        (place.root / "deleted.jpg").unlink()
        (place.root / "empty").rmdir()
        place.all_told()
        assert watcher.ailing() is None
    assert set(place.ears.paths) == {"mark-0"}
    assert place.ears.doubts == []


@pytest.mark.parametrize("recursive", [True, False])
def test_a_folder_that_was_moved_out_is_still_watched_which_ails(
    place: Place, recursive: bool
) -> None:
    (place.root / "x").mkdir()
    with place.watched(recursive=recursive) as watcher:
        os.rename(place.root / "x", place.outside / "x")
        place.all_told()
        assert place.ears.doubts == (["a folder was moved out"] if recursive else [])
        assert (watcher.ailing() is not None) == recursive
    assert set(place.ears.paths) == {"mark-0"}
    with place.watched(recursive=recursive) as another:
        assert another.ailing() is None


def test_names_that_are_not_utf8_come_as_the_system_gives_them(place: Place) -> None:
    name = os.fsdecode(b"caf\xe9\n\x1b[31m.jpg")
    with place.watched():
        (place.root / name).touch()
        place.ears.hears(name)


def test_a_root_whose_own_name_is_not_utf8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff\xfe")
    folder.mkdir()
    place = Place(folder)
    with place.watched():
        (place.root / "a.jpg").touch()
        place.ears.hears("a.jpg")


def test_a_root_that_is_a_link_is_watched_where_it_points(place: Place) -> None:
    link = place.outside / "link"
    link.symlink_to(place.root)
    with place.watched(link):
        (place.root / "a.jpg").touch()
        place.ears.hears("a.jpg")


def test_a_relative_root_is_understood(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.root.parent)
    with place.watched(Path("inbox")):
        (place.root / "a.jpg").touch()
        place.ears.hears("a.jpg")


def test_a_link_in_the_inbox_leads_nowhere(place: Place) -> None:
    (place.root / "link").symlink_to(place.outside)
    with place.watched():
        (place.outside / "a.jpg").touch()
        place.all_told()
    assert set(place.ears.paths) == {"mark-0"}


def test_many_files_are_all_told(place: Place) -> None:
    names = {f"{number}.jpg" for number in range(2000)}
    with place.watched():
        for name in names:
            (place.root / name).touch()
        place.ears.hears(*names)
    assert place.ears.doubts == []


class Footprint:
    """Threads, descriptors and log handlers of this process."""

    def __init__(self) -> None:
        self.threads = set(threading.enumerate())
        self.descriptors = set(os.listdir("/proc/self/fd"))
        self.handlers = list(logging.getLogger(LOSSES).handlers)

    def is_back(self) -> bool:
        now = Footprint()
        return (
            now.threads <= self.threads
            and len(now.descriptors) <= len(self.descriptors)
            and now.handlers == self.handlers
        )


# --- what goes wrong ------------------------------------------------------------------------


@pytest.mark.parametrize("recursive", [True, False])
def test_a_deleted_root_is_doubted_and_ails(place: Place, recursive: bool) -> None:
    with place.watched(recursive=recursive) as watcher:
        assert watcher.ailing() is None
        shutil.rmtree(place.root)
        place.ears.doubts_that("the folder was deleted")
        until(watcher.ailing)
        assert "deleted" in str(watcher.ailing())


def confuse(place: Place, watcher: Watcher) -> None:
    """Move a folder out, which watchdog goes on watching; make and remove another of its name."""
    (place.root / "x").mkdir()
    until(lambda: watcher.watch_count() == 2)
    os.rename(place.root / "x", place.outside / "x")
    place.all_told()
    (place.root / "x").mkdir()
    until(lambda: watcher.watch_count() == 3)
    (place.root / "x").rmdir()
    place.all_told()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_watchdogs_own_is_seen(place: Place) -> None:
    with place.watched() as watcher:
        confuse(place, watcher)
        (place.outside / "x").rmdir()
        until(lambda: "reads events" in str(watcher.ailing()))


def test_an_error_of_watchdogs_own_leaves_nothing_behind(place: Place) -> None:
    before = Footprint()
    with place.watched() as watcher:
        confuse(place, watcher)
    until(before.is_back)


def test_a_watcher_that_does_not_watch_says_so(place: Place) -> None:
    watcher = place.watcher()
    assert watcher.ailing() == "it does not watch"
    watcher.start()
    assert watcher.ailing() is None
    watcher.stop()
    assert watcher.ailing() == "it does not watch"


def test_a_callback_that_raises_becomes_a_doubt_and_kills_nothing(place: Place) -> None:
    def on_path(path: str) -> None:
        place.ears.paths.append(path)
        raise ZeroDivisionError(path)

    watcher = Watcher(place.root, on_path, place.ears.doubts.append, recursive=True)
    watcher.start()
    try:
        for name in ("a.jpg", "b.jpg"):
            (place.root / name).touch()
            place.ears.hears(name)
        place.ears.doubts_that("ZeroDivisionError")
        assert watcher.ailing() is None
    finally:
        watcher.stop()


def test_a_doubt_that_raises_kills_nothing(place: Place) -> None:
    def fails(_: str) -> None:
        raise ZeroDivisionError

    watcher = Watcher(place.root, place.ears.paths.append, fails, recursive=True)
    watcher.start()
    try:
        (place.root / "x").mkdir()
        logging.getLogger(LOSSES).warning(OVERFLOW)
        place.all_told()
        assert watcher.ailing() is None
    finally:
        watcher.stop()


def test_folders_made_faster_than_they_are_watched_kill_nothing(place: Place) -> None:
    """Watchdog warns then, which an exception would be in these tests, in its own thread."""
    with place.watched() as watcher:
        for number in range(300):
            (place.root / str(number) / "x" / "y").mkdir(parents=True)
        until(lambda: watcher.watch_count() == 901 or watcher.ailing())
        assert watcher.ailing() is None


# --- the queue that overflows ---------------------------------------------------------------


@contextlib.contextmanager
def unread(watcher: Watcher) -> Iterator[None]:
    """Keep the thread that reads events from reading."""
    with watcher._observer._inotify_fd._lock:  # type: ignore[union-attr]
        yield


def test_a_real_overflow_is_doubted_twice_and_the_folders_are_watched_anew(place: Place) -> None:
    with open("/proc/sys/fs/inotify/max_queued_events") as limit:
        queue = int(limit.read())
    if queue > 50_000:
        pytest.skip("fs.inotify.max_queued_events is too large to overflow it quickly")
    (place.root / "x").mkdir()
    with place.watched() as watcher:
        watcher._losses._again_seconds = 0.1
        with unread(watcher):
            # And more than the reader takes out in one go, if it has begun before it is held.
            for _ in range(queue // 2 + 5000):
                os.symlink("x", place.root / "one event")
                os.unlink(place.root / "one event")
        place.ears.doubts_that("overflow")
        # Until the folders are watched anew, files make no event: the second doubt is for these.
        until(lambda: place.ears.doubts[-1:] == ["events were lost"])

        def another_is_told() -> bool:
            (place.root / "x" / f"{next(place.marks)}.jpg").touch()
            return any(path.startswith("x/") for path in place.ears.paths)

        until(another_is_told)
        assert watcher.ailing() is None


def test_the_second_doubt_waits_until_the_folders_are_watched_anew(place: Place) -> None:
    with place.watched() as watcher:
        watcher._losses._again_seconds = 0.01
        with watcher._observer.emitters.copy().pop()._inotify._lock:  # type: ignore[union-attr]
            logging.getLogger(LOSSES).warning(OVERFLOW)
            place.ears.doubts_that("overflow")
            watcher._losses._again.join(0.2)  # type: ignore[union-attr]
            assert place.ears.doubts[-1] != "events were lost"
        until(lambda: place.ears.doubts[-1] == "events were lost")


def test_the_warning_is_heard_by_every_watcher_and_by_none_that_has_stopped(
    place: Place, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other")
    with place.watched():
        with other.watched():
            logging.getLogger(LOSSES).warning(OVERFLOW)
        logging.getLogger(LOSSES).warning(OVERFLOW)
        assert place.ears.doubts == [f"events were lost: {OVERFLOW}"] * 2
        assert other.ears.doubts == [f"events were lost: {OVERFLOW}"]
    logging.getLogger(LOSSES).warning(OVERFLOW)
    assert len(place.ears.doubts) == 2


@pytest.mark.parametrize("level", [logging.NOTSET, logging.CRITICAL])
def test_the_warning_is_heard_whatever_is_logged(place: Place, level: int) -> None:
    logger, root = logging.getLogger(LOSSES), logging.getLogger()
    before = root.level
    logger.setLevel(level)
    root.setLevel(logging.CRITICAL)
    try:
        with place.watched():
            logger.warning(OVERFLOW)
            logger.info("all is well")
            assert place.ears.doubts == [f"events were lost: {OVERFLOW}"]
    finally:
        root.setLevel(before)


def nothing_to_wait_for() -> None:
    pass


def test_after_a_while_it_is_doubted_once_more() -> None:
    ears = Ears()
    losses = watching._Losses(ears.doubts.append, nothing_to_wait_for, again_seconds=0.02)
    losses.listen()
    try:
        for _ in range(3):
            logging.getLogger(LOSSES).warning(OVERFLOW)
        until(lambda: ears.doubts[-1:] == ["events were lost"])
    finally:
        losses.close()
    assert ears.doubts.count("events were lost") == 1


def test_nothing_is_doubted_after_the_end() -> None:
    ears = Ears()
    losses = watching._Losses(ears.doubts.append, nothing_to_wait_for, again_seconds=0.0)
    losses.listen()
    losses.close()
    losses.handle(logging.makeLogRecord({"msg": OVERFLOW, "levelno": logging.WARNING}))
    assert ears.doubts == []


# --- start and stop -------------------------------------------------------------------------


def test_nothing_is_left_after_stop_which_may_be_called_again(place: Place) -> None:
    before = Footprint()
    watcher = place.watcher()
    watcher.stop()
    watcher.start()
    assert not before.is_back()
    logging.getLogger(LOSSES).warning(OVERFLOW)
    watcher.stop()
    watcher.stop()
    until(before.is_back)


def test_a_root_that_is_not_there_cannot_be_watched(place: Place) -> None:
    before = Footprint()
    with pytest.raises(FileNotFoundError):
        place.watcher(place.root / "none").start()
    (place.root / "file").touch()
    with pytest.raises(NotADirectoryError):
        place.watcher(place.root / "file").start()
    assert before.is_back()


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Give up root, for whom no folder is unreadable, for a while."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(me)


def test_a_root_that_may_not_be_read_cannot_be_watched(place: Place) -> None:
    place.root.chmod(0)
    try:
        with as_nobody(), pytest.raises(PermissionError):
            place.watcher().start()
    finally:
        place.root.chmod(0o700)


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_limit_of_the_kernel_is_told_and_nothing_is_left(place: Place) -> None:
    before = Footprint()
    with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
        place.watcher().start()
    assert before.is_back()


def test_a_handler_that_is_stuck_does_not_hold_up_the_end_for_ever(place: Place) -> None:
    before = Footprint()
    entered, release = threading.Event(), threading.Event()

    def stuck(_: str) -> None:
        entered.set()
        release.wait(LIMIT)

    watcher = Watcher(place.root, stuck, place.ears.doubts.append, recursive=True)
    watcher.start()
    (place.root / "a.jpg").touch()
    assert entered.wait(LIMIT)
    began = time.monotonic()
    watcher.stop(limit=0.05)
    assert time.monotonic() - began < LIMIT / 2
    assert not before.is_back()
    release.set()
    until(before.is_back)


def test_an_end_at_an_unlucky_moment_is_not_logged_as_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("watchdog.observers.inotify")
    logger.error("InotifyEmitter.queue_events() called when the thread is inactive")
    logger.error("another")
    assert caplog.messages == ["another"]


# --- how many folders are watched -----------------------------------------------------------


def test_the_watches_are_counted(place: Place) -> None:
    for name in ("a/b/c", "d"):
        (place.root / name).mkdir(parents=True)
    with place.watched() as watcher:
        assert watcher.watch_count() == 5
        (place.root / "e").mkdir()
        until(lambda: watcher.watch_count() == 6)
        (place.root / "d").rmdir()
        until(lambda: watcher.watch_count() == 5)
    assert watcher.watch_count() == 0


def test_one_watch_is_enough_for_a_folder_without_its_sub_folders(place: Place) -> None:
    (place.root / "a").mkdir()
    with place.watched(recursive=False) as watcher:
        assert watcher.watch_count() == 1
