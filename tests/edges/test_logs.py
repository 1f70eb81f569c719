"""Every line goes through one pipe, none carries a secret, and nobody who logs waits."""

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.typing import EventDict

from bgremover.core.errors import SetupError
from bgremover.edges import logs
from tests.site import until

LINK = "https://ideogram.ai/api/images/ephemeral/x.png?exp=1&sig=SECRET"


@pytest.fixture
def _pipe_ended() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    logs.flush(10)
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    root.handlers[:], root.level = before


@pytest.fixture
def file(tmp_path: Path, _pipe_ended: None) -> Path:
    return tmp_path / "bgremover.log"


def start(file: Path, level: logs.Level = "info") -> structlog.typing.FilteringBoundLogger:
    with (file.parent / "stderr").open("a") as stream:
        logs.configure("json", level, file, stream)
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger


def lines(file: Path) -> list[dict[str, Any]]:
    logs.flush(10)
    return [json.loads(line) for line in file.read_text().splitlines()]


class TestLine:
    def test_reads_time_level_event_then_the_rest(self, file: Path) -> None:
        start(file).info("image.saved", job="7", file="a.jpg", seconds=0.5)
        (line,) = lines(file)
        assert list(line) == ["timestamp", "level", "event", "job", "file", "seconds"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["timestamp"])
        assert line["level"] == "info"
        assert line["seconds"] == 0.5

    def test_goes_to_both_sinks_alike(self, file: Path) -> None:
        start(file).warning("watch.degraded", reason="limit")
        assert lines(file)
        assert (file.parent / "stderr").read_text() == file.read_text()

    def test_below_the_level_is_not_made(self, file: Path) -> None:
        start(file, "warning").info("image.claimed")
        assert lines(file) == []

    @pytest.mark.parametrize(
        "value", [LINK, [LINK], {"link": LINK}, (LINK,), ValueError(LINK), LINK.encode()], ids=type
    )
    def test_carries_no_signed_link(self, file: Path, value: object) -> None:
        start(file).error("image.deferred", detail=value)
        (line,) = lines(file)
        assert "SECRET" not in json.dumps(line)
        assert "ideogram.ai/api/images/ephemeral/x.png" in json.dumps(line)

    def test_carries_the_trace_without_the_link(self, file: Path) -> None:
        logger = start(file)
        try:
            int(LINK)
        except ValueError:
            logger.exception("image.deferred")
        (line,) = lines(file)
        assert "ValueError" in line["exception"]
        assert "SECRET" not in line["exception"]

    def test_is_one_line_whatever_the_name(self, file: Path) -> None:
        name = "a\nb\udcff\u2028\x85.jpg"
        start(file).info("image.claimed", file=name)
        (line,) = lines(file)
        assert line["file"] == name

    def test_of_a_value_that_json_cannot_say_is_told_all_the_same(self, file: Path) -> None:
        start(file).info("image.claimed", path=Path("x"))
        assert lines(file)[0]["path"] == "x"


class TestLibraries:
    def test_go_through_the_same_pipe(self, file: Path) -> None:
        start(file)
        logging.getLogger("a.library").warning("at %s", LINK)
        (line,) = lines(file)
        assert (line["event"], line["logger"], line["level"]) == ("library", "a.library", "warning")
        assert "SECRET" not in line["message"]

    def test_do_not_tell_of_every_request(self, file: Path) -> None:
        start(file, "debug")
        logging.getLogger("httpx").info("GET %s", LINK)
        assert lines(file) == []

    def test_warnings_are_lines(self, file: Path) -> None:
        start(file)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(capture=False)
            logging.captureWarnings(capture=True)
            warnings.warn("old", DeprecationWarning, stacklevel=1)
        assert [line["logger"] for line in lines(file)] == ["py.warnings"]

    def test_a_line_with_the_wrong_arguments_is_kept(self, file: Path) -> None:
        start(file)
        arguments = ("one",)
        logging.getLogger("x").warning("%d of %d", *arguments)
        assert "%d of %d" in lines(file)[0]["message"]


class TestFile:
    def test_is_opened_anew_when_it_was_moved_away(self, file: Path) -> None:
        logger = start(file)
        logger.info("daemon.started")
        until(lambda: file.exists() and file.read_text())
        file.rename(file.with_suffix(".1"))
        logger.info("daemon.ready")
        assert [line["event"] for line in lines(file)] == ["daemon.ready"]

    def test_that_cannot_be_opened_is_a_mistake_of_the_setup(self, file: Path) -> None:
        with pytest.raises(SetupError, match=r"log\.file: .*No such file.*Name a file"):
            logs.configure("json", "info", file / "no" / "such")

    def test_a_second_call_writes_what_the_first_has_taken(self, file: Path) -> None:
        start(file).info("daemon.started")
        start(file.with_name("other")).info("daemon.ready")
        assert [line["event"] for line in lines(file)] == ["daemon.started"]
        assert [line["event"] for line in lines(file.with_name("other"))] == ["daemon.ready"]


# --- sinks that fail or stand still -------------------------------------------------------------


def test_a_full_disk_costs_lines_and_says_how_many(tmp_path: Path) -> None:
    full = Path("/dev/full")
    target = tmp_path / "log"
    target.symlink_to(full)
    sink = logs._Careful(logs.FileSink(target))
    for _ in range(3):
        sink.write({"event": "image.saved"})
    target.unlink()
    sink.write({"event": "image.saved"})
    sink.close()
    told = [json.loads(line) for line in target.read_text().splitlines()]
    assert (told[0]["event"], told[0]["lines"]) == ("log.lines_lost", 3)
    assert "No space" in told[0]["reason"]
    assert told[1]["event"] == "image.saved"


def test_a_reader_that_stands_still_delays_nobody() -> None:
    reading, writing = os.pipe()
    pipe = logs.Pipe([logs._StreamSink(writing, logs._json)], capacity=50)
    begin = time.monotonic()
    for number in range(5_000):
        pipe.put({"event": "image.saved", "number": number, "padding": "x" * 100})
    assert time.monotonic() - begin < 5
    read: list[dict[str, Any]] = []
    reader = threading.Thread(target=_read_all, args=(reading, read))
    reader.start()
    pipe.close(5)
    os.close(writing)
    reader.join(5)
    lost = [line for line in read if line["event"] == "log.lines_lost"]
    kept = [line for line in read if line["event"] == "image.saved"]
    assert sum(line["lines"] for line in lost) + len(kept) == 5_000
    assert lost


def _read_all(reading: int, into: list[dict[str, Any]]) -> None:
    with FileIO(reading) as raw, contextlib.closing(os.fdopen(os.dup(raw.fileno()))) as text:
        into.extend(json.loads(line) for line in text)


def test_the_process_ends_though_nobody_reads_its_stderr() -> None:
    """The interpreter must neither hang nor abort over a writer that is stuck in a write."""
    script = textwrap.dedent("""
        import structlog
        from bgremover.edges import logs
        logs.configure("json", "info", None)
        for _ in range(5000):
            structlog.get_logger().info("image.saved", padding="x" * 200)
    """)
    reading, writing = os.pipe()
    with subprocess.Popen([sys.executable, "-c", script], stderr=writing) as process:
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()
            os.close(reading)
            os.close(writing)


# --- how a terminal shows it --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "no_color", "colour", "is_json"),
    [
        ("auto", "", True, False),
        ("auto", "1", False, False),
        ("console", "", True, False),
        ("json", "", False, True),
    ],
)
def test_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, form: logs.Format, no_color: str, colour: bool, is_json: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    owner, terminal = os.openpty()
    with os.fdopen(owner), os.fdopen(terminal, "w") as stream:
        shown = logs._render_for(form, stream)({"event": "daemon.ready", "level": "info"})
    assert bool(re.search(r"\x1b\[[0-9;]*m", shown)) == colour
    assert shown.startswith("{") == is_json
    assert "daemon.ready" in shown


@pytest.mark.parametrize(("form", "is_json"), [("auto", True), ("console", False)])
def test_into_a_file(tmp_path: Path, form: logs.Format, is_json: bool) -> None:
    event: EventDict = {"event": "daemon.ready", "level": "info"}
    with (tmp_path / "x").open("w") as stream:
        shown = logs._render_for(form, stream)(event)
    assert shown.startswith("{") == is_json
    assert "\x1b[" not in shown
