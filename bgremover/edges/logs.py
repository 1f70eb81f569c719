"""Logs: one pipe for our lines and the libraries', and nobody who logs ever waits for it.

A line is put on a bounded queue; a thread of its own renders it and writes it to stderr and, when
set, to a file. A reader of stderr that stands still, or a full disk under the log file, therefore
never stops the loop: lines are dropped and counted, and the number is told as `log.lines_lost`.
"""

import atexit
import contextlib
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

from bgremover.core.errors import SetupError
from bgremover.core.report import scrub

Format = Literal["auto", "json", "console"]
Level = Literal["debug", "info", "warning", "error"]
Render = Callable[[EventDict], str]

CAPACITY = 10_000
"""Lines that wait for the writer; about 5 MB."""
CLOSE_SECONDS = 2.0
"""How long the end of the process waits for lines that nobody reads."""
_FIRST = ("timestamp", "level", "event")
_BELOW_WARNING = ("debug", "info")
# They end a line for some readers, and JSON leaves them as they are.
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}


def configure(
    format: Format,  # noqa: A002 - the name of the setting
    level: Level,
    file: Path | None,
    stream: TextIO | None = None,
    *,
    aside: bool = False,
) -> None:
    """Send all logs of this process, ours and the libraries', to their sinks.

    A second call replaces the first; what the first has taken is written before.

    Args:
        format: How `stream` shows a line: `json`, `console`, or `auto`, which is `console` on a
            terminal. The file always gets JSON.
        level: Lines below it are not made.
        file: Where lines are written besides, appended; it is opened anew when it was moved away,
            as logrotate does. None for nowhere.
        stream: Where lines go, with a file descriptor; stderr when not given.
        aside: Whether `stream` is a terminal that shows a progress bar: it then gets only warnings
            and worse, each on a line of its own. The file gets all the same.

    Raises:
        SetupError: The log file cannot be opened.
    """
    stream = sys.stderr if stream is None else stream
    render = _render_for(format, stream)
    sinks = [_AsideSink(stream.fileno(), render) if aside else _StreamSink(stream.fileno(), render)]
    pipe = Pipe([*sinks, FileSink(file)] if file else sinks)
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[structlog.processors.add_log_level, _finish, pipe],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: None,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Library(pipe)]
    root.setLevel(max(threshold, logging.WARNING))
    logging.captureWarnings(capture=True)
    # Not before all go the new way: what came to a closed pipe would be lost untold.
    _installed.replace_with(pipe)


def flush(seconds: float = CLOSE_SECONDS) -> None:
    """Write the lines that wait, for at most `seconds`, and end the writer."""
    _installed.replace_with(None, seconds)


class Pipe:
    """The queue and the thread that empties it into the sinks."""

    def __init__(self, sinks: "Iterable[_StreamSink | FileSink]", capacity: int = CAPACITY) -> None:
        self._sinks = [_Careful(sink) for sink in sinks]
        # Unlike Queue it wakes nobody through a Condition, which costs more than the line.
        self._lines: queue.SimpleQueue[EventDict | None] = queue.SimpleQueue()
        self._capacity = capacity
        self._dropped = _Count()
        self._writer = threading.Thread(target=self._write, name="logs", daemon=True)
        self._writer.start()

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        """Take a line, as the last of structlog's processors.

        Raises:
            DropEvent: Always: structlog has nothing left to do with it.
        """
        del logger, method
        self.put(event)
        raise structlog.DropEvent

    def put(self, event: EventDict) -> None:
        """Take a line, or count it as dropped when too many wait."""
        if self._lines.qsize() < self._capacity:
            self._lines.put(event)
        else:
            self._dropped.add()

    def close(self, seconds: float) -> None:
        """Write what waits, for at most `seconds`."""
        self._lines.put(None)
        self._writer.join(seconds)

    def _write(self) -> None:
        while (event := self._lines.get()) is not None:
            self._tell_of_dropped()
            self._emit(event)
        self._tell_of_dropped()
        for sink in self._sinks:
            sink.close()

    def _tell_of_dropped(self) -> None:
        if dropped := self._dropped.take():
            self._emit(_lost(dropped, "too many lines waited to be written"))

    def _emit(self, event: EventDict) -> None:
        for sink in self._sinks:
            sink.write(event)


class FileSink:
    """Appends to a file; opens it anew when it was moved or removed.

    Unbuffered, unlike the handlers of `logging`: those keep what a full disk refused, and cannot
    let go of the old file before it is written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fd = self._open()
        except OSError as error:
            raise SetupError(
                f"log.file: {path} cannot be opened: {error.strerror}. "
                "Name a file in a folder that exists and that this user may write to"
            ) from None

    def write(self, event: EventDict) -> None:
        """Append one line.

        Raises:
            OSError: It could not be written.
        """
        if self._moved():
            fresh = self._open()
            os.close(self._fd)
            self._fd = fresh
        _write_all(self._fd, _json(event))

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _moved(self) -> bool:
        try:
            return not os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except FileNotFoundError:
            return True


class _StreamSink:
    """Writes to a copy of a file descriptor.

    Never through the text stream around it: a thread that hangs in a write would hold the lock of
    the stream, and the interpreter aborts at its end when it cannot flush.
    """

    def __init__(self, fd: int, render: Render) -> None:
        self._fd = os.dup(fd)  # the owner may close his while lines wait
        self._render = render

    def write(self, event: EventDict) -> None:
        _write_all(self._fd, self._render(event))

    def close(self) -> None:
        os.close(self._fd)


class _AsideSink(_StreamSink):
    """Writes to a terminal whose last line is a progress bar."""

    def write(self, event: EventDict) -> None:
        if event["level"] not in _BELOW_WARNING:
            # The bar leaves the cursor in its line, and is drawn anew below.
            _write_all(self._fd, "\r\x1b[2K" + self._render(event))


class _Careful:
    """A sink that may fail: the lines it lost are counted, and told when it works again."""

    def __init__(self, sink: _StreamSink | FileSink) -> None:
        self._sink = sink
        self._lost = 0
        self._reason = ""

    def write(self, event: EventDict) -> None:
        try:
            if self._lost:
                self._sink.write(_lost(self._lost, self._reason))
                self._lost = 0
            self._sink.write(event)
        except OSError as error:
            self._lost += 1
            self._reason = error.strerror or str(error)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sink.close()


class _Count:
    """A number that several threads add to and one takes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number = 0

    def add(self) -> None:
        with self._lock:
            self._number += 1

    def take(self) -> int:
        with self._lock:
            number, self._number = self._number, 0
        return number


class _Library(logging.Handler):
    """The libraries' own lines, on their way into the pipe."""

    def __init__(self, pipe: Pipe) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        event: EventDict = {
            "event": "library",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            "exc_info": record.exc_info or False,
        }
        self._pipe.put(_finish(None, "", event))


@dataclass(slots=True)
class _Installed:
    """The pipe that this process logs through."""

    pipe: Pipe | None = None

    def replace_with(self, pipe: Pipe | None, seconds: float = CLOSE_SECONDS) -> None:
        old, self.pipe = self.pipe, pipe
        if old is not None:
            old.close(seconds)


_installed = _Installed()
atexit.register(flush)


def _finish(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Complete a line: time, trace, an order that reads well, and no signed link."""
    event = structlog.processors.format_exc_info(_logger, _method, event)
    event["timestamp"] = _now()
    ordered = {key: event.pop(key) for key in _FIRST if key in event} | dict(event)
    return {key: _scrubbed(value) for key, value in ordered.items()}


def _scrubbed(value: object) -> object:
    match value:
        case str():
            return scrub(value)
        case BaseException() | bytes():
            return scrub(str(value))
        case list() | tuple():
            return [_scrubbed(item) for item in value]
        case dict():
            return {key: _scrubbed(item) for key, item in value.items()}
        case _:
            return value


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # a library's mistake must not cost the line
        return f"{record.msg} {record.args}"


def _lost(lines: int, reason: str) -> EventDict:
    return {
        "timestamp": _now(),
        "level": "warning",
        "event": "log.lines_lost",
        "lines": lines,
        "reason": reason,
    }


def _now() -> str:
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"


def _json(event: MutableMapping[str, Any]) -> str:
    return json.dumps(event, ensure_ascii=False, default=str).translate(_LINE_ENDS)


def _write_all(fd: int, line: str) -> None:
    left = (line + "\n").encode("utf-8", "backslashreplace")
    while left:
        left = left[os.write(fd, left) :]


def _render_for(format: Format, stream: TextIO) -> Render:  # noqa: A002
    terminal = stream.isatty()
    if format == "json" or (format == "auto" and not terminal):
        return _json
    console = structlog.dev.ConsoleRenderer(
        colors=terminal and not os.environ.get("NO_COLOR"), pad_event_to=18
    )
    return lambda event: console(None, "", dict(event))
