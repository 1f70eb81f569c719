"""What is forked is, to a test, what was exec'd."""

import os
import signal
from pathlib import Path

import pytest

from tests.forkserver import fork
from tests.site import Site, Start, by_exec

NOWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize("arguments", [("check",), ("status", "--json"), ("no-such-command",)])
@pytest.mark.parametrize("key", ["", "a-key-of-some-length"])
def test_the_same_command_tells_the_same(tmp_path: Path, arguments: tuple[str], key: str) -> None:
    site = Site(tmp_path, NOWHERE)
    site.state.mkdir()
    told = []
    for start in (fork, by_exec):
        with open(tmp_path / start.__name__, "w+b") as stream, open(os.devnull, "rb") as nothing:
            environment = {**site.environment, "IDEOGRAM_API_KEY": key}
            streams = [nothing.fileno(), stream.fileno(), stream.fileno()]
            code = start(arguments, tmp_path, environment, streams).wait(60)
            stream.seek(0)
            told.append((code, stream.read().replace(b"python -m bgremover", b"bgremover")))
    assert told[0] == told[1]
    assert told[0][1]


@pytest.mark.parametrize("start", [fork, by_exec])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGKILL, -9)])
def test_it_ends_as_it_is_told(tmp_path: Path, start: Start, number: int, code: int) -> None:
    with Site(tmp_path, NOWHERE).running(start=start) as daemon:
        daemon.until_event("daemon.ready")
        assert daemon.popen.poll() is None
        assert daemon.end(number) == code
        assert daemon.popen.poll() == code
        daemon.popen.kill()  # of a pid that may be somebody else's: nobody is


def test_several_run_and_end_by_themselves(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with (
        Site(tmp_path / "a", NOWHERE).running() as first,
        Site(tmp_path / "b", NOWHERE).running() as second,
    ):
        first.until_event("daemon.ready")
        second.until_event("daemon.ready")
        assert first.end(signal.SIGKILL) == -9
        assert second.popen.poll() is None
        assert second.end() == 0
