"""The kernel's news of the inbox: watchdog's events, as paths to look at.

Events are hints; a sweep finds what they leave out. So nothing is decided here: an event becomes
a path relative to the root, and whatever may have cost events becomes a doubt.

What is asked of watchdog, and why no more: a file is there when it is created (which is also all
that is told of one moved in from outside, or linked), moved within, or closed after writing. Every
single write would be told as a modification too, many times a file, and say nothing that the close
and the next look do not.
"""

import contextlib
import errno
import logging
import os
import threading
import warnings
from collections.abc import Callable

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
    FileSystemMovedEvent,
)
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyObserver, InotifyWatchGroup

WANTED: tuple[type[FileSystemEvent], ...] = (
    FileCreatedEvent,
    FileClosedEvent,
    FileMovedEvent,
    DirCreatedEvent,
    DirMovedEvent,
    DirDeletedEvent,
)

STOP_SECONDS = 5.0
"""How long `stop` waits for threads that may hang in a folder that no longer answers."""

REBUILD_SECONDS = 2.0
"""After an overflow watchdog watches every folder anew; what arrives meanwhile makes no event."""

_LOSSES = "watchdog.observers.inotify_c"
"""The logger on which watchdog tells, and it tells it nowhere else, that events were lost."""

Tell = Callable[[str], None]


def _no_farewell(record: logging.LogRecord) -> bool:
    # Told as an error when a watcher is stopped at an unlucky moment, and is none.
    return "queue_events() called when the thread is inactive" not in str(record.msg)


logging.getLogger("watchdog.observers.inotify").addFilter(_no_farewell)


class Watcher:
    """Watches one folder with native events, from `start` to `stop`; used once.

    Args:
        root: The folder; where it is a link, what it points to when the watching begins.
        on_path: Called with each path that something happened to, relative to the root. It may
            be a folder, or gone again.
        on_doubt: Called with the reason when events may have been lost.
        recursive: Whether sub-folders are watched.

    Both are called in threads of watchdog. They must not block; what they raise is caught and
    becomes a doubt.
    """

    def __init__(
        self, root: str | os.PathLike[str], on_path: Tell, on_doubt: Tell, *, recursive: bool
    ) -> None:
        self._root = os.path.realpath(root)
        self._recursive = recursive
        self._doubt = _harmless(on_doubt)
        self._handler = _Handler(self._root, on_path, self._doubt, recursive=recursive)
        self._losses = _Losses(self._doubt, self._await_rebuild)
        self._observer: BaseObserver | None = None

    def start(self) -> None:
        """Begin to watch; what lies in the folder already makes no event.

        Raises:
            OSError: The folder cannot be watched. Nothing is left running.
        """
        # The kernel's "permission denied" is swallowed by watchdog, which then watches nothing.
        os.scandir(self._root).close()
        try:
            with contextlib.ExitStack() as undo:
                undo.callback(self.stop)
                self._begin()
                undo.pop_all()
        except RuntimeError as error:  # No thread can be started.
            raise OSError(errno.EAGAIN, str(error)) from error

    def _begin(self) -> None:
        # Raised when folders are made faster than they are watched. It says nothing, and where
        # warnings are errors it would end the thread that reads events.
        warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"watchdog\.")
        # Full: what is moved out is told as a move to nowhere, what is moved in as one from there.
        self._observer = observer = InotifyObserver(generate_full_events=True)
        self._losses.listen()
        observer.schedule(
            self._handler, self._root, recursive=self._recursive, event_filter=list(WANTED)
        )
        observer.start()

    def stop(self, limit: float = STOP_SECONDS) -> None:
        """End the watching; more than once does no harm. Waits at most `limit` seconds."""
        self._losses.close()
        observer, self._observer = self._observer, None
        if observer is None:
            return
        ending = threading.Thread(target=_end, args=(observer,), name="watcher-stop", daemon=True)
        try:
            ending.start()
        except RuntimeError:  # No thread can be started: without a limit, then.
            _end(observer)
        else:
            ending.join(limit)

    def _await_rebuild(self) -> None:
        # On a busy machine, or with many folders, watching anew takes longer than any fixed time.
        observer = self._observer
        for emitter in observer.emitters.copy() if observer is not None else ():
            lock = getattr(getattr(emitter, "_inotify", None), "_lock", None)
            with lock or contextlib.nullcontext():
                pass

    def ailing(self) -> str | None:
        """Say in words why events can no longer be relied on; None while they can.

        The observer alone lives on when the threads that feed it have ended: the emitter when the
        root was deleted, the reader when watchdog meets an error of its own. That comes of folders
        moved out: they are still watched, under paths that are no longer theirs.
        """
        observer = self._observer
        if observer is None:
            return "it does not watch"
        if not observer.is_alive():
            return "the thread that hands on events has ended"
        if not all(emitter.is_alive() for emitter in observer.emitters):
            return "the thread that sorts events has ended: the folder was deleted"
        reader: threading.Thread | None = getattr(observer, "_inotify_fd", None)
        if reader is not None and not reader.is_alive():
            return "the thread that reads events has ended"
        if self._recursive and self._handler.astray:
            return "a folder was moved out, which is still watched"
        return None

    def watch_count(self) -> int | None:
        """Return how many folders this process watches; None where the kernel does not tell.

        Where the kernel's limit is reached, watchdog leaves sub-folders unwatched without a word.
        """
        try:
            return sum(_watches(name) for name in os.listdir("/proc/self/fd"))
        except OSError:
            return None


def _end(observer: BaseObserver) -> None:
    for emitter in observer.emitters.copy():
        _disarm(getattr(emitter, "_inotify", None))
    observer.stop()
    with contextlib.suppress(RuntimeError):  # It was never started.
        observer.join()


def _disarm(group: InotifyWatchGroup | None) -> None:
    # A folder that was moved out is still watched, under its old path. With another of that name
    # watchdog stumbles here, and would leave its threads and the kernel's queue behind. It forgets
    # one watch each time, so it comes to an end.
    while group is not None:
        with contextlib.suppress(KeyError):
            group.deactivate()
            return


def _watches(descriptor: str) -> int:
    try:
        if os.readlink(f"/proc/self/fd/{descriptor}") != "anon_inode:inotify":
            return 0
        with open(f"/proc/self/fdinfo/{descriptor}", "rb") as lines:
            return sum(line.startswith(b"inotify wd:") for line in lines)
    except FileNotFoundError:  # Closed since it was listed.
        return 0


def _harmless(tell: Tell) -> Tell:
    def told(reason: str) -> None:
        # An exception would end a thread of watchdog, silently and for good.
        with contextlib.suppress(Exception):
            tell(reason)

    return told


class _Handler(FileSystemEventHandler):
    """Translates events into paths. `astray`: a folder has left that is still watched."""

    def __init__(self, root: str, on_path: Tell, on_doubt: Tell, *, recursive: bool) -> None:
        self._root = root
        self._inside = os.path.join(root, "")
        self._on_path = on_path
        self._on_doubt = on_doubt
        self._recursive = recursive
        self.astray = False

    def dispatch(self, event: FileSystemEvent) -> None:
        """Take one event; called in watchdog's thread, which must not see an exception."""
        try:
            self._take(event)
        except Exception as error:  # noqa: BLE001 - any would end watchdog's thread for good
            self._on_doubt(f"an event could not be told: {error!r}")

    def _take(self, event: FileSystemEvent) -> None:
        if isinstance(event, DirDeletedEvent):
            if os.fsdecode(event.src_path) == self._root:
                self._on_doubt("the folder was deleted")
            return
        moved = isinstance(event, FileSystemMovedEvent)
        path = self._relative(event.dest_path if moved else event.src_path)
        if path is not None:
            self._on_path(path)
        if self._recursive and event.is_directory:
            self._doubt_folder(arrived=path is not None)

    def _doubt_folder(self, *, arrived: bool) -> None:
        if arrived:
            # Files that came into it before it was watched made no event.
            self._on_doubt("a folder arrived")
        else:
            self.astray = True
            self._on_doubt("a folder was moved out")

    def _relative(self, path: bytes | str) -> str | None:
        text = os.fsdecode(path)
        return text[len(self._inside) :] or None if text.startswith(self._inside) else None


class _Losses(logging.Handler):
    """Hears watchdog say that the kernel's event queue overflowed, and doubts twice.

    The first doubt finds what was lost, the second what arrived while the folders were being
    watched anew; `await_rebuild` returns when they are.
    """

    def __init__(
        self,
        on_doubt: Tell,
        await_rebuild: Callable[[], None],
        again_seconds: float = REBUILD_SECONDS,
    ) -> None:
        super().__init__(logging.WARNING)
        self._on_doubt = on_doubt
        self._await_rebuild = await_rebuild
        self._again_seconds = again_seconds
        self._again: threading.Timer | None = None
        self._listens = False

    def listen(self) -> None:
        logger = logging.getLogger(_LOSSES)
        # Whatever is logged elsewhere: a warning that is filtered out here would not be heard.
        if logger.level == logging.NOTSET or logger.level > logging.WARNING:
            logger.setLevel(logging.WARNING)
        self._listens = True
        logger.addHandler(self)

    def close(self) -> None:
        logging.getLogger(_LOSSES).removeHandler(self)
        self.acquire()
        try:
            self._listens = False
            if self._again is not None:
                self._again.cancel()
        finally:
            self.release()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Doubt now and once more; called with the lock held, in the thread that reads events."""
        if not self._listens:
            return
        self._on_doubt(f"events were lost: {record.getMessage()}")
        if self._again is not None:
            self._again.cancel()
        self._again = threading.Timer(self._again_seconds, self._doubt_again)
        self._again.daemon = True
        with contextlib.suppress(RuntimeError):  # No thread can be started: one doubt must do.
            self._again.start()

    def _doubt_again(self) -> None:
        self._await_rebuild()
        self._on_doubt("events were lost")
