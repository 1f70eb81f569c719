"""Messages on their way: real servers, real commands, Apprise itself; clocks that do not wait."""

import asyncio
import hashlib
import hmac
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from bgremover.core.errors import SetupError
from bgremover.core.notice import Desk, Happening, Message, due, gathered
from bgremover.edges.notify import (
    CAPACITY,
    HOOK_CAPACITY,
    TRIES,
    AppriseChannel,
    Commands,
    Heartbeat,
    Hook,
    Target,
    Undelivered,
    Webhook,
    request,
    run_command,
    secret_from,
    signature,
)
from tests.fakes import NOON
from tests.site import KEY, until


def a_message(**changes: Any) -> Message:  # noqa: ANN401 - the fields of Happening
    happening = Happening(**{"kind": "paused", "at": NOON, "code": "forbidden", **changes})
    (message,) = due(gathered(Desk(0), happening, 0.0), 1e9)[1]
    return message


class Receiver:
    """A web server that answers with what it is given, and keeps what it gets."""

    def __init__(self, *statuses: int) -> None:
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.url = ""
        left = list(statuses)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                receiver.got.append((self.path, dict(self.headers), body))
                self.send_response(left.pop(0) if left else 204)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST = _answer  # noqa: N815 - the names are http.server's

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @contextmanager
    def listening(self) -> Iterator["Receiver"]:
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook-5ec4e7"
        thread = Thread(target=self._server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


async def no_wait(_seconds: float) -> None:
    await asyncio.sleep(0)


def during(run: Coroutine[Any, Any, None], condition: Callable[[], object]) -> None:
    """Run something without an end until `condition` holds."""

    async def scenario() -> None:
        task = asyncio.create_task(run)
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - the condition is no event
                await asyncio.sleep(0.01)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


def delivered(channel: Any, *messages: Message, done: Callable[[], object]) -> Target:  # noqa: ANN401 - a Channel
    target = Target(channel, no_wait)
    for message in messages:
        target.put(message)
    during(target.run(), done)
    return target


# --- webhook --------------------------------------------------------------------------------


def test_a_webhook_gets_json_that_it_can_prove_to_be_ours(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    with Receiver().listening() as receiver:
        hook = Webhook(receiver.url, secret_from(secret), lambda: NOON + 5)
        delivered(hook, a_message(detail="403"), done=lambda: receiver.got)
    ((path, headers, body),) = receiver.got
    assert path == "/hook-5ec4e7"
    assert headers["Content-Type"] == "application/json"
    document = json.loads(body)
    assert document["schema"] == "bgremover.notice/1"
    assert (document["event"], document["detail"]) == ("paused", "403")
    at = headers["X-Bgremover-Timestamp"]
    assert at == str(int(NOON) + 5)
    expected = hmac.new(b"s3cret", f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    assert headers["X-Bgremover-Signature"] == f"sha256={expected}"
    assert signature(b"s3cret", at, body) == headers["X-Bgremover-Signature"]


def test_without_a_secret_nothing_is_signed() -> None:
    with Receiver().listening() as receiver:
        hook = Webhook(receiver.url, secret_from(None), time.time)
        delivered(hook, a_message(), done=lambda: receiver.got)
    assert "X-Bgremover-Signature" not in receiver.got[0][1]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_webhook_that_fails_is_tried_again(status: int) -> None:
    with Receiver(status, status).listening() as receiver:
        hook = Webhook(receiver.url, secret_from(None), time.time)
        delivered(hook, a_message(), done=lambda: len(receiver.got) == 3)
    assert len({body for _, _, body in receiver.got}) == 1


@pytest.mark.parametrize("status", [400, 404, 301, 308])
def test_a_webhook_that_refuses_is_left_alone_and_no_redirect_is_followed(
    status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with Receiver(status).listening() as receiver:
        hook = Webhook(receiver.url, secret_from(None), time.time)
        messages = (a_message(code="first"), a_message(code="second"))
        delivered(hook, *messages, done=lambda: len(receiver.got) == 2)
    assert [path for path, _, _ in receiver.got] == ["/hook-5ec4e7"] * 2
    assert [[*json.loads(body)["codes"]] for _, _, body in receiver.got] == [["first"], ["second"]]
    assert "hook-5ec4e7" not in capsys.readouterr().out


class Deaf:
    """A channel that never takes anything."""

    name = "deaf"

    def __init__(self, error: Exception) -> None:
        self.tries = 0
        self._error = error

    async def send(self, _message: Message) -> None:
        self.tries += 1
        raise self._error


@pytest.mark.parametrize("error", [Undelivered("no", again=True), RuntimeError("a defect")])
def test_patience_ends_and_the_next_message_has_its_turn(error: Exception) -> None:
    deaf = Deaf(error)
    delivered(deaf, a_message(), a_message(), done=lambda: deaf.tries == 2 * TRIES)


def test_the_waits_between_tries_grow_up_to_five_minutes() -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(0)

    target = Target(Deaf(Undelivered("no", again=True)), sleep)
    target.put(a_message())
    during(target.run(), lambda: len(waits) == TRIES - 1)
    assert waits == [1, 4, 16, 64, 256]


def test_what_does_not_fit_is_dropped_from_the_front() -> None:
    target = Target(Deaf(Undelivered("no", again=False)))
    for number in range(CAPACITY + 3):
        target.put(a_message(code=str(number)))
    assert target.dropped == 3
    assert [message.first.code for message in target._queue][:1] == ["3"]
    assert len(target._queue) == CAPACITY


def test_a_server_that_takes_and_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"

        async def scenario() -> None:
            async with asyncio.timeout(0.3):
                await request("POST", url, b"x")

        began = time.monotonic()
        with pytest.raises((TimeoutError, Undelivered)):
            asyncio.run(scenario())
        assert time.monotonic() - began < 5


def test_a_server_that_is_not_there_is_named_without_its_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"http://127.0.0.1:{gone.getsockname()[1]}/hook-5ec4e7"
    with pytest.raises(Undelivered, match=r"no answer \(ConnectError\)") as told:
        asyncio.run(request("POST", url))
    assert told.value.again
    assert "5ec4e7" not in str(told.value)


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_a_secret_that_is_none_is_a_mistake_of_the_set_up(
    tmp_path: Path, content: str | None
) -> None:
    secret = tmp_path / "secret"
    if content is not None:
        secret.write_text(content)
    with pytest.raises(SetupError, match=r"notify\.webhook_secret_file: .*Put the secret"):
        secret_from(secret)


@pytest.mark.parametrize(("method", "body"), [("POST", b"told"), ("GET", b"")])
def test_the_way_is_what_the_usual_variables_say(
    monkeypatch: pytest.MonkeyPatch, method: str, body: bytes
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with Receiver().listening() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        asyncio.run(request(method, "http://hooks.invalid/x", body))
    assert [(path, got) for path, _, got in proxy.got] == [("http://hooks.invalid/x", body)]


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "foo://127.0.0.1:9"])
def test_a_proxy_of_no_use_is_a_message_that_does_not_arrive(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(Undelivered):
        asyncio.run(request("GET", "http://hooks.invalid/x"))


# --- Apprise --------------------------------------------------------------------------------


# Apprise imports a module that Python will drop.
of_apprise = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@of_apprise
def test_apprise_tells_a_json_receiver() -> None:
    pytest.importorskip("apprise", reason="needs the extra dependency: pip install apprise")
    with Receiver().listening() as receiver:
        address = receiver.url.replace("http://", "json://")
        delivered(AppriseChannel([address]), a_message(), done=lambda: receiver.got)
    document = json.loads(receiver.got[0][2])
    assert document["title"] == "bgremover: paused: forbidden"


@of_apprise
def test_an_address_that_apprise_does_not_know_is_refused_and_not_shown() -> None:
    pytest.importorskip("apprise", reason="needs the extra dependency: pip install apprise")
    with pytest.raises(SetupError, match=r"notify\.apprise: address 2 is none") as told:
        AppriseChannel(["json://127.0.0.1", "no-such-service://5ec4e7"])
    assert "5ec4e7" not in str(told.value)


# --- commands -------------------------------------------------------------------------------

SAVED = Happening("saved", NOON, file="a b;$(x).jpg", output="a b.png", job="0a1b")


def hook(script: str, timeout: float = 20.0) -> Hook:
    return Hook((sys.executable, "-c", script), timeout)


def test_a_command_sees_what_happened_and_nothing_of_ours(tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = (
        "import json, os, sys, pathlib; "
        "pathlib.Path(sys.argv[1]).write_text(json.dumps([dict(os.environ), sys.argv[2:]]))"
    )
    command = (sys.executable, "-c", script, str(told), "a b;$(x)")
    env = {"PATH": os.environ["PATH"], "IDEOGRAM_API_KEY": KEY, "LC_ALL": "C.UTF-8", "X": "y"}
    commands = Commands({"saved": Hook(command, 20)}, Path("/srv/outbox"), env)
    commands.put(SAVED)
    commands.put(Happening("paused", NOON))
    during(commands.run(), lambda: told.exists() and told.read_text())
    seen, arguments = json.loads(told.read_text())
    assert arguments == ["a b;$(x)"]
    notice = {name: value for name, value in seen.items() if name.startswith("NOTICE_")}
    assert notice == {
        "NOTICE_EVENT": "saved",
        "NOTICE_AT": str(int(NOON)),
        "NOTICE_FILE": "a b;$(x).jpg",
        "NOTICE_OUTPUT": "/srv/outbox/a b.png",
        "NOTICE_CODE": "",
        "NOTICE_DETAIL": "",
        "NOTICE_HINT": "",
        "NOTICE_JOB": "0a1b",
    }
    assert KEY not in str(seen)
    assert "X" not in seen
    assert {"PATH", "LC_ALL"} <= seen.keys()


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    child = "import time; time.sleep(600)"
    script = (
        "import os, subprocess, sys, time, pathlib; "
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}]); "
        f"pathlib.Path({str(pids)!r}).write_text(f'{{os.getpid()}} {{child.pid}}'); "
        "time.sleep(600)"
    )
    why = asyncio.run(run_command(hook(script, timeout=2), {"PATH": os.environ["PATH"]}))
    assert why == "killed after 2 s"
    for pid in map(int, pids.read_text().split()):
        until(lambda pid=pid: not runs(pid))  # type: ignore[misc]


def runs(pid: int) -> bool:
    """Tell whether a process lives; a zombie that nobody has waited for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_command_that_is_under_way_ends_with_the_daemon(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = (
        f"import os, time, pathlib; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); "
        "time.sleep(600)"
    )
    commands = Commands({"saved": hook(script)}, tmp_path)
    commands.put(SAVED)
    during(commands.run(), lambda: pid.exists() and pid.read_text())
    until(lambda: not runs(int(pid.read_text())))


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("/no/such/program",), "it cannot be run: No such file or directory"),
        ((sys.executable, "-c", "raise SystemExit(3)"), "it ended with 3"),
        ((sys.executable, "-c", "print('x' * 10_000_000)"), None),
        ((sys.executable, "-c", "import sys; assert sys.stdin.read() == ''"), None),
        (("a\0b",), "it cannot be run: embedded null byte"),
    ],
)
def test_how_a_command_ends(command: tuple[str, ...], why: str | None) -> None:
    assert asyncio.run(run_command(Hook(command, 20), {"PATH": os.environ["PATH"]})) == why


def test_a_file_that_is_no_program_is_named(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    plain.chmod(stat.S_IRUSR)
    why = asyncio.run(run_command(Hook((str(plain),), 20), {}))
    assert why == "it cannot be run: Permission denied"


def test_images_that_do_not_fit_before_a_command_are_dropped(tmp_path: Path) -> None:
    commands = Commands({"saved": hook("pass")}, tmp_path)
    for _ in range(HOOK_CAPACITY + 2):
        commands.put(SAVED)
    assert commands.dropped == 2


# --- heartbeat ------------------------------------------------------------------------------


def test_it_beats_only_while_all_is_well() -> None:
    answers = [True, False, True]
    asked: list[bool] = []

    def well() -> bool:
        asked.append(answers[len(asked)] if len(asked) < len(answers) else False)
        return asked[-1]

    with Receiver(500).listening() as receiver:
        beat = Heartbeat(receiver.url, 0.02, well)
        during(beat.run(), lambda: len(asked) > 5)
    assert [path for path, _, _ in receiver.got] == ["/hook-5ec4e7"] * 2
