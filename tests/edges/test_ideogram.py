"""The API edge against real sockets: what each failure of the line means for the money."""

import asyncio
import contextlib
import errno
import gzip
import io
import json
import logging
import os
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from pathlib import Path
from typing import BinaryIO

import httpx
import pytest
from PIL import Image
from python_multipart.multipart import parse_options_header
from typing_extensions import Buffer

from bgremover import __version__
from bgremover.core.answer import Quote
from bgremover.core.errors import (
    BgremoverError,
    Billed,
    BrokenResult,
    DiskFailed,
    DiskFull,
    EndpointMoved,
    KeyRefused,
    LinkExpired,
    LinkFailed,
    LinkRefused,
    NoUsableAnswer,
    Rejected,
    Replaced,
    SetupError,
    Throttled,
    Unreachable,
    Unsafe,
)
from bgremover.edges.ideogram import WHAT_HAPPENED, ApiOptions, Ideogram, Upload
from tests.bombs import gzip_of_spaces

KEY = "key-5ec4e7-5ec4e7"
NOW = 1_800_000_000.0
LINK = f"https://ideogram.ai/x.png?exp={int(NOW) + 3600}&sig=51917"
OPTIONS = ApiOptions(
    base_url="https://api.ideogram.ai",
    flow="sync",
    connect_timeout_seconds=1.0,
    read_timeout_seconds=5.0,
    link_hosts=("ideogram.ai", "*.ideogram.ai"),
    fetch_deadline_seconds=5.0,
    min_bytes_per_second=1e6,
)

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(autouse=True, params=["straight", "where others go through a proxy"])
def _no_proxy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Try all of this on both transports: where a proxy is told of, httpx's own is used."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    if request.param != "straight":
        monkeypatch.setenv("NO_PROXY", "nobody.example")


def paid(link: str = LINK) -> bytes:
    return json.dumps({"created": "now", "data": [{"is_image_safe": True, "url": link}]}).encode()


def picture(size: int = 300_000, name: str = "a.jpg") -> Upload:
    return Upload(io.BytesIO(b"j" * size), name, "image/jpeg", size)


# --- a server of its own for every failure --------------------------------------------------


@dataclass
class Server:
    port: int
    connections: int = 0
    received: bytearray = field(default_factory=bytearray)
    errors: list[Exception] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.asynccontextmanager
async def serving(handler: Handler, receive_buffer: int | None = None) -> AsyncIterator[Server]:
    listener = socket.create_server(("127.0.0.1", 0))
    if receive_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    server = Server(listener.getsockname()[1])
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            server.errors.append(error)
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    running = await asyncio.start_server(accept, sock=listener)
    try:
        yield server
    finally:
        running.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def request_of(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"),
        0,
    )
    return head + await reader.readexactly(length)


def http(status: int = 200, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {size}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def answering(answer: bytes) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(answer)
        await writer.drain()

    return handler


def resetting(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextlib.asynccontextmanager
async def opened(
    options: ApiOptions = OPTIONS,
    transport: httpx.AsyncBaseTransport | None = None,
    *,
    key: str = KEY,
    now: float = NOW,
) -> AsyncIterator[Ideogram]:
    api = Ideogram(options, lambda: key, lambda: now, transport)
    try:
        yield api
    finally:
        await api.aclose()


async def outcome_of(call: Awaitable[object]) -> object:
    try:
        return await call
    except BgremoverError as fault:
        return fault


def submit(
    handler: Handler,
    upload: Upload | None = None,
    *,
    receive_buffer: int | None = None,
    options: ApiOptions = OPTIONS,
) -> object:
    """Send a picture to a server of its own; give the receipt or the fault."""

    async def scene() -> object:
        async with (
            serving(handler, receive_buffer) as server,
            opened(replace(options, base_url=server.url)) as api,
        ):
            return await outcome_of(api.submit(upload or picture()))

    return asyncio.run(scene())


def fetch(
    handler: Handler,
    path: str = "/x.png",
    *,
    options: ApiOptions = OPTIONS,
    into: BinaryIO | None = None,
    now: float = NOW,
) -> object:
    """Fetch a result from a server of its own; give the bytes or the fault."""
    target = into or io.BytesIO()

    async def scene() -> object:
        async with (
            serving(handler) as server,
            opened(replace(options, base_url=server.url), now=now) as api,
        ):
            size = await outcome_of(api.fetch(server.url + path, target))
        if isinstance(size, BgremoverError):
            return size
        target.seek(0)
        content = target.read()
        assert len(content) == size
        return content

    return asyncio.run(scene())


@dataclass
class Api:
    """Answers like the API, and keeps what it was asked."""

    answers: list[httpx.Response]
    asked: list[httpx.Request] = field(default_factory=list)

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.asked.append(request)
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        # As from the network: not read yet.
        return httpx.Response(
            answer.status_code, headers=answer.headers, stream=httpx.ByteStream(answer.content)
        )


def ask(
    api: Api, call: Callable[[Ideogram], Awaitable[object]], options: ApiOptions = OPTIONS
) -> object:
    """Make a call against documented answers; give the result or the fault."""

    async def scene() -> object:
        async with opened(options, httpx.MockTransport(api)) as edge:
            return await outcome_of(call(edge))

    return asyncio.run(scene())


def form(request: httpx.Request) -> dict[str, tuple[bytes, dict[bytes, bytes], bytes]]:
    """Split a form: name to content, parameters and media type."""
    _, parameters = parse_options_header(request.headers["Content-Type"])
    fields = {}
    for part in request.content.split(b"--" + parameters[b"boundary"])[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        named = dict(line.split(b": ", 1) for line in head.split(b"\r\n"))
        _, disposition = parse_options_header(named[b"Content-Disposition"])
        media_type = named.get(b"Content-Type", b"")
        name = disposition[b"name"].decode()
        fields[name] = (content.removesuffix(b"\r\n"), disposition, media_type)
    return fields


# --- the documented requests and answers ----------------------------------------------------


def test_a_picture_is_sent_to_the_first_version() -> None:
    api = Api([httpx.Response(200, content=paid(), headers={"X-Request-Id": "r"})])
    receipt = ask(api, lambda edge: edge.submit(picture(70_000)))
    assert getattr(receipt, "link", None) == LINK
    assert getattr(receipt, "request_id", None) == "r"
    (request,) = api.asked
    assert (request.method, str(request.url)) == (
        "POST",
        "https://api.ideogram.ai/v1/remove-background",
    )
    assert request.headers["Api-Key"] == KEY
    assert request.headers["User-Agent"] == f"bgremover/{__version__}"
    assert int(request.headers["Content-Length"]) == len(request.content)
    assert "Transfer-Encoding" not in request.headers
    content, disposition, media_type = form(request)["image"]
    assert content == b"j" * 70_000
    assert disposition[b"filename"] == b"a.jpg"
    assert media_type == b"image/jpeg"


def test_an_asynchronous_picture_is_sent_to_the_second_version_and_polled() -> None:
    options = replace(OPTIONS, flow="async", base_url="https://api.ideogram.ai/")
    api = Api([httpx.Response(200, json={"generation_id": "gen-1"})])
    receipt = ask(api, lambda edge: edge.submit(picture()), options)
    assert (getattr(receipt, "generation_id", 0), getattr(receipt, "link", 0)) == ("gen-1", None)
    assert api.asked[0].url.path == "/v2/image/remove-background/ideogram-1"
    assert form(api.asked[0])["async"][0] == b"true"

    api = Api([httpx.Response(200, json={"generation_id": "gen-1", "status": "pending"})])
    assert ask(api, lambda edge: edge.poll("gen-1"), options) is None
    assert (api.asked[0].method, api.asked[0].url.path) == ("GET", "/v2/generations/gen-1")
    assert api.asked[0].headers["Api-Key"] == KEY


def test_the_key_is_proved_by_a_dry_run_with_a_whole_picture() -> None:
    api = Api([httpx.Response(200, json={"usd_micros": 10_000, "qualifier": "exact"})])
    assert ask(api, lambda edge: edge.prove_key()) == Quote(0.01, exact=True)
    assert api.asked[0].url.params["dry_run"] == "true"
    Image.open(io.BytesIO(form(api.asked[0])["image"][0])).load()


@pytest.mark.parametrize(
    ("answer", "kind", "billed"),
    [
        (httpx.Response(400), Rejected, Billed.NO),
        (httpx.Response(401), KeyRefused, Billed.NO),
        (httpx.Response(422), Unsafe, Billed.NO),
        (httpx.Response(429, headers={"Retry-After": "1"}), Throttled, Billed.NO),
        (httpx.Response(200, text="<html>"), NoUsableAnswer, Billed.UNKNOWN),
        (
            httpx.Response(200, json={"data": [{"is_image_safe": False, "url": ""}]}),
            Unsafe,
            Billed.YES,
        ),
    ],
)
def test_an_answer_is_its_fault(
    answer: httpx.Response, kind: type[BgremoverError], billed: Billed
) -> None:
    fault = ask(Api([answer]), lambda edge: edge.submit(picture()))
    assert isinstance(fault, kind)
    assert fault.billed is billed


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("shoes/a.jpg", "a.jpg"),
        ('a"b\\c\r\nX: y.jpg', "a%22b%5Cc%0D%0AX: y.jpg"),
        ("\u00fcber\U0001f45f.png", "\u00fcber\U0001f45f.png"),
        ("\udcff\udc80.png", "??.png"),
        ("", "image"),
        ("x" * 250 + ".jpeg", "x" * 95 + ".jpeg"),
        ("x" * 250, "x" * 100),
        ("a." + "x" * 250, "a." + "x" * 49),
    ],
)
def test_the_name_of_the_file_is_sent_so_that_no_header_breaks(name: str, sent: str) -> None:
    api = Api([httpx.Response(200, content=paid())])
    ask(api, lambda edge: edge.submit(picture(10, name)))
    assert form(api.asked[0])["image"][1][b"filename"].decode() == sent


@pytest.mark.parametrize("key", ["", "k\u00e9y", "key\n", "a\x00b"])
def test_a_key_that_cannot_be_one_is_refused_before_anything_is_sent(key: str) -> None:
    api = Api([httpx.Response(200, content=paid())])

    async def scene() -> None:
        async with opened(transport=httpx.MockTransport(api), key=key) as edge:
            for call in (edge.submit(picture()), edge.poll("gen-1"), edge.prove_key()):
                assert isinstance(await outcome_of(call), KeyRefused)

    asyncio.run(scene())
    assert not api.asked


def test_a_key_that_the_answer_repeats_is_not_kept() -> None:
    api = Api([httpx.Response(401, text=f"no such customer: {KEY}")])
    fault = ask(api, lambda edge: edge.submit(picture()))
    assert isinstance(fault, KeyRefused)
    assert fault.http is not None
    assert "5ec4e7" not in repr(fault.http) + str(fault)
    assert "no such customer" in fault.http.body


# --- before the body is out: not charged ----------------------------------------------------


async def until(condition: Callable[[], bool], limit: float = 10.0) -> None:
    async with asyncio.timeout(limit):
        while not condition():  # noqa: ASYNC110 - sockets ring no asyncio event
            await asyncio.sleep(0.01)


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.mark.parametrize(
    "base_url",
    [
        f"http://127.0.0.1:{unused_port()}",
        "https://no-such-host.invalid",
        "ftp://127.0.0.1",
        "nonsense",
        "http://[",
    ],
    ids=["nobody-listens", "no-such-host", "no-http", "nonsense", "half"],
)
def test_without_a_connection_nothing_was_charged(base_url: str) -> None:
    async def scene() -> tuple[object, object]:
        async with opened(replace(OPTIONS, base_url=base_url)) as api:
            return await outcome_of(api.submit(picture())), await outcome_of(api.poll("gen-1"))

    for fault in asyncio.run(scene()):
        assert isinstance(fault, Unreachable)
        assert fault.billed is Billed.NO


def test_a_failed_tls_handshake_charges_nothing() -> None:
    async def scene() -> object:
        async with (
            serving(answering(http(400))) as server,
            opened(replace(OPTIONS, base_url=f"https://127.0.0.1:{server.port}")) as api,
        ):
            return await outcome_of(api.submit(picture()))

    assert isinstance(asyncio.run(scene()), Unreachable)


def test_a_silent_server_at_the_handshake_charges_nothing() -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async def scene() -> object:
        async with serving(silent) as server:
            base_url = f"https://127.0.0.1:{server.port}"
            options = replace(OPTIONS, base_url=base_url, connect_timeout_seconds=0.2)
            async with opened(options) as api:
                return await outcome_of(api.submit(picture()))

    assert isinstance(asyncio.run(scene()), Unreachable)


def test_no_upload_waits_for_the_connection_of_another() -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()
        await asyncio.Event().wait()

    async def scene() -> None:
        async with serving(silent) as server:
            options = replace(OPTIONS, base_url=server.url)
            async with opened(options) as api:
                calls = [asyncio.create_task(api.submit(picture())) for _ in range(2)]
                await until(lambda: server.connections == len(calls))
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(scene())


async def reset_early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(20_000)
    resetting(writer)


async def close_early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(20_000)
    writer.close()


async def stall(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.readexactly(20_000)
    await asyncio.Event().wait()


@pytest.mark.parametrize("handler", [reset_early, close_early, stall])
def test_a_connection_that_breaks_in_the_middle_of_an_upload_charges_nothing(
    handler: Handler,
) -> None:
    """Also where the kernel could have taken the whole picture into its buffers."""
    options = replace(OPTIONS, connect_timeout_seconds=0.3)
    fault = submit(handler, picture(2_000_000), receive_buffer=16_384, options=options)
    assert isinstance(fault, Unreachable)
    assert fault.billed is Billed.NO


# --- the file changes under way -------------------------------------------------------------


@pytest.mark.parametrize("there", [0, 100_000, 299_999, 300_001, 500_000])
def test_a_file_of_another_length_is_not_sent_to_its_end(there: int) -> None:
    upload = Upload(io.BytesIO(b"j" * there), "a.jpg", "image/jpeg", 300_000)
    requests: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        requests.append(await request_of(reader))

    fault = submit(handler, upload)
    assert isinstance(fault, Replaced)
    assert fault.billed is Billed.NO
    assert requests == []


class FailingFile(io.BytesIO):
    """Stands for a file on a share that goes away, or a disk that fills up."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def read(self, _: int | None = -1) -> bytes:
        raise OSError(self._number, "no more")

    def write(self, _: object) -> int:
        raise OSError(self._number, "no more")


def test_a_file_that_cannot_be_read_is_this_machines_fault() -> None:
    upload = Upload(FailingFile(errno.EIO), "a.jpg", "image/jpeg", 300_000)
    fault = submit(answering(http(200, paid())), upload)
    assert isinstance(fault, DiskFailed)
    assert fault.billed is Billed.NO


def test_a_file_is_sent_from_its_start() -> None:
    upload = picture(100_000)
    upload.file.read()
    assert getattr(submit(answering(http(200, paid())), upload), "link", None) == LINK


def on_disk(path: Path, *, forgotten: bool) -> bytes:
    """Write a file that the kernel has in memory, or has forgotten; return its content."""
    content = os.urandom(600_000)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        if forgotten:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return content


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_file_is_sent_as_it_is(tmp_path: Path, *, forgotten: bool) -> None:
    content = on_disk(tmp_path / "a.jpg", forgotten=forgotten)
    requests: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await request_of(reader))
        writer.write(http(200, paid()))

    with (tmp_path / "a.jpg").open("rb") as file:
        submit(handler, Upload(file, "a.jpg", "image/jpeg", len(content)))
    assert content in requests[0]


class Unread(io.FileIO):
    def readinto(self, _buffer: object, /) -> int:
        raise AssertionError("read the slow way")

    def read(self, _size: int | None = -1, /) -> bytes:
        raise AssertionError("read the slow way")


def test_what_the_kernel_has_in_memory_is_not_waited_for_in_a_thread(tmp_path: Path) -> None:
    content = on_disk(tmp_path / "a.jpg", forgotten=False)
    with Unread(tmp_path / "a.jpg") as file:
        try:
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        except OSError:
            pytest.skip("needs a file system that knows RWF_NOWAIT, as ext4 and xfs")
        upload = Upload(file, "a.jpg", "image/jpeg", len(content))
        assert getattr(submit(answering(http(200, paid())), upload), "link", None) == LINK


def test_a_slow_file_does_not_hold_up_the_loop() -> None:
    go = threading.Event()

    class SlowFile(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            assert go.wait(10)
            return super().read(size)

    async def scene() -> object:
        async with (
            serving(answering(http(200, paid()))) as server,
            opened(replace(OPTIONS, base_url=server.url)) as api,
        ):
            upload = Upload(SlowFile(b"jpeg"), "a.jpg", "image/jpeg", 4)
            sending = asyncio.create_task(api.submit(upload))
            await until(lambda: bool(server.connections))
            go.set()
            return await sending

    assert getattr(asyncio.run(scene()), "link", None) == LINK


def test_a_picture_is_never_held_in_memory(tmp_path: Path) -> None:
    size = 10_000_000
    path = tmp_path / "a.jpg"
    path.write_bytes(bytes(size))
    seen: list[int] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        left = int(head.lower().partition(b"content-length:")[2].split()[0])
        while left:
            left -= len(await reader.read(65_536))
        seen.append(tracemalloc.get_traced_memory()[1])
        writer.write(http(200, paid()))

    with path.open("rb") as file:
        tracemalloc.start()
        try:
            receipt = submit(handler, Upload(file, "a.jpg", "image/jpeg", size))
        finally:
            tracemalloc.stop()
    assert getattr(receipt, "link", None) == LINK
    assert seen[0] < size / 3


# --- an answer before the body is out: it counts --------------------------------------------


@pytest.mark.parametrize("size", [1_000, 100_000, 3_000_000])
@pytest.mark.parametrize("lingers", [True, False])
def test_an_early_refusal_counts(size: int, lingers: bool) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(http(413, b"{}", "Connection: close"))
        await writer.drain()
        while lingers and await reader.read(65_536):
            pass

    assert isinstance(submit(handler, picture(size)), Rejected)


# --- after the body: the charge is unknown --------------------------------------------------


async def close_after_body(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await request_of(reader)


async def reset_after_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_of(reader)
    resetting(writer)


async def never_answer(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await request_of(reader)
    await reader.read()


async def drip_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_of(reader)
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while not writer.is_closing():
        writer.write(b"X: y\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)


async def continue_forever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_of(reader)
    while not writer.is_closing():
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "handler",
    [
        close_after_body,
        reset_after_body,
        never_answer,
        drip_headers,
        continue_forever,
        answering(b"HTTP/1.1 200 OK\r\n"),
        answering(http(200, paid()[:20], length=500)),
        answering(http(200, paid(), "X-Long: " + "x" * 1_000_000)),
        answering(b"SSH-2.0-OpenSSH_9.2\r\n"),
        answering(http(101)),
        answering(http(200, b"\x1f\x8b broken", "Content-Encoding: gzip")),
        answering(http(200, b"???", "Content-Encoding: br")),
        answering(http(200, b" " * 2_000_000 + paid())),
        answering(http(200, gzip_of_spaces(300_000_000, paid()), "Content-Encoding: gzip")),
    ],
    ids=[
        "closed",
        "reset",
        "never answered",
        "headers dripped",
        "100 for ever",
        "half a head",
        "half a body",
        "a header of 1 MB",
        "not HTTP",
        "101",
        "broken gzip",
        "brotli",
        "2 MB of JSON",
        "a gzip bomb",
    ],
)
def test_a_picture_that_was_sent_without_a_usable_answer_is_an_unknown_charge(
    handler: Handler,
) -> None:
    options = replace(OPTIONS, read_timeout_seconds=0.5)
    began = time.monotonic()
    fault = submit(handler, options=options)
    assert isinstance(fault, NoUsableAnswer)
    assert fault.billed is Billed.UNKNOWN
    assert time.monotonic() - began < 5


def test_a_gzip_bomb_takes_no_memory() -> None:
    bomb = http(200, gzip_of_spaces(100_000_000), "Content-Encoding: gzip")
    tracemalloc.start()
    try:
        fault = submit(answering(bomb), picture(1_000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(fault, NoUsableAnswer)
    assert peak < 10_000_000


@pytest.mark.parametrize(
    "answer",
    [
        http(200, gzip.compress(paid()), "Content-Encoding: gzip"),
        http(200, paid(), "Content-Type: text/html"),
        b"HTTP/1.1 100 Continue\r\n\r\n" + http(200, paid()),
        b"HTTP/1.0 200 OK\r\n\r\n" + paid(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + f"{len(paid()):x}".encode()
        + b"\r\n"
        + paid()
        + b"\r\n0\r\nX-Trailer: y\r\n\r\n",
    ],
)
def test_an_unusual_answer_that_was_paid_for_is_taken(answer: bytes) -> None:
    assert getattr(submit(answering(answer)), "link", None) == LINK


def test_a_refusal_counts_even_if_its_body_breaks_off() -> None:
    assert isinstance(submit(answering(http(401, b"{", length=500))), KeyRefused)


def test_a_redirect_is_not_followed_and_the_key_goes_nowhere() -> None:
    async def scene() -> None:
        async with serving(answering(http(200, paid()))) as elsewhere:
            moved = http(308, b"", f"Location: {elsewhere.url}/v1/remove-background")
            async with (
                serving(answering(moved)) as server,
                opened(replace(OPTIONS, base_url=server.url)) as api,
            ):
                assert isinstance(await outcome_of(api.submit(picture())), EndpointMoved)
            assert elsewhere.connections == 0

    asyncio.run(scene())


def test_no_two_uploads_share_a_connection() -> None:
    async def alive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request_of(reader)
            writer.write(http(200, paid()))
            await writer.drain()

    async def scene() -> int:
        async with serving(alive) as server, opened(replace(OPTIONS, base_url=server.url)) as api:
            for _ in range(3):
                await api.submit(picture())
            return server.connections

    assert asyncio.run(scene()) == 3


def test_a_poll_without_an_answer_is_free() -> None:
    async def scene() -> object:
        options = replace(OPTIONS, read_timeout_seconds=0.3)
        async with (
            serving(never_answer) as server,
            opened(replace(options, base_url=server.url)) as api,
        ):
            return await outcome_of(api.poll("gen-1"))

    assert isinstance(asyncio.run(scene()), Unreachable)


# --- results --------------------------------------------------------------------------------


def test_a_result_is_written_to_the_file_and_the_key_stays_here(tmp_path: Path) -> None:
    requests: list[bytes] = []
    content = bytes(range(256)) * 4000

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await request_of(reader))
        writer.write(http(200, content))
        await writer.drain()

    with (tmp_path / "x.png").open("w+b") as file:
        assert fetch(handler, into=file) == content
    (request,) = requests
    assert KEY.encode() not in request
    assert b"accept-encoding: identity\r\n" in request.lower()


class ShortWrites(io.BytesIO):
    """Takes a thousand bytes at a time, as a raw file may."""

    def write(self, data: Buffer) -> int:
        return super().write(bytes(data)[:1000])


def test_short_writes_lose_nothing() -> None:
    content = bytes(range(256)) * 40
    assert fetch(answering(http(200, content)), into=ShortWrites()) == content


def test_a_full_disk_is_this_machines_fault() -> None:
    fault = fetch(answering(http(200, b"png")), into=FailingFile(errno.ENOSPC))
    assert isinstance(fault, DiskFull)


def chunked(*chunks: bytes, end: bool = True, pause: float = 0.0) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for chunk in chunks:
            writer.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            await writer.drain()
            await asyncio.sleep(pause)
        if end:
            writer.write(b"0\r\n\r\n")

    return handler


async def reset_mid_result(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_of(reader)
    writer.write(http(200, b"p" * 500, length=900))
    await writer.drain()
    resetting(writer)


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        (answering(http(200, b"png", length=500)), BrokenResult),
        (chunked(b"png", end=False), BrokenResult),
        (answering(http(200, b"png", length=2_000)), BrokenResult),
        (chunked(b"p" * 600, b"p" * 600), BrokenResult),
        (answering(http(206, b"png")), LinkFailed),
        (answering(http(500)), LinkFailed),
        (answering(http(429, b"", "Retry-After: 5")), LinkFailed),
        (answering(http(304)), LinkFailed),
        (answering(b""), LinkFailed),
        (answering(b"nonsense\r\n\r\n"), LinkFailed),
        (reset_mid_result, LinkFailed),
        (never_answer, LinkFailed),
        (chunked(*[b"p"] * 1000, pause=0.05), LinkFailed),
    ],
    ids=[
        "short",
        "ends early",
        "announced too large",
        "grows too large",
        "a part",
        "500",
        "429",
        "304",
        "closed",
        "not HTTP",
        "reset",
        "never answered",
        "dripped",
    ],
)
def test_a_result_that_does_not_come_whole(handler: Handler, kind: type[BgremoverError]) -> None:
    options = replace(
        OPTIONS, max_result_bytes=1_000, fetch_deadline_seconds=0.6, min_bytes_per_second=1.0
    )
    fault = fetch(handler, options=options)
    assert type(fault) is kind
    assert fault.billed is Billed.YES


def test_a_result_that_comes_too_slowly_is_given_up_before_the_deadline() -> None:
    options = replace(OPTIONS, connect_timeout_seconds=0.2, fetch_deadline_seconds=60.0)
    fault = fetch(chunked(*[b"p"] * 10_000, pause=0.05), options=options)
    assert isinstance(fault, LinkFailed)
    assert "slowly" in fault.message


@pytest.mark.parametrize("status", [403, 404, 410])
@pytest.mark.parametrize(
    ("path", "date", "kind"),
    [
        (f"/x.png?exp={int(NOW) - 1}", None, LinkExpired),
        (f"/x.png?exp={int(NOW) + 60}", None, LinkFailed),
        (f"/x.png?exp={int(NOW) - 1}", NOW - 3600, LinkFailed),
        (f"/x.png?exp={int(NOW) + 60}", NOW + 3600, LinkExpired),
        ("/x.png", None, LinkFailed),
    ],
)
def test_a_link_is_dead_when_its_time_has_passed_on_its_hosts_clock(
    status: int, path: str, date: float | None, kind: type[BgremoverError]
) -> None:
    headers = [f"Date: {formatdate(date, usegmt=True)}"] if date else []
    fault = fetch(answering(http(status, b"", *headers)), path)
    assert type(fault) is kind
    assert fault.http is not None
    assert fault.http.status == status


def redirecting(*locations: str) -> Handler:
    steps = iter(locations)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        location = next(steps, None)
        answer = http(200, b"png") if location is None else http(302, b"", f"Location: {location}")
        writer.write(answer)

    return handler


def test_redirects_are_followed_three_times() -> None:
    assert fetch(redirecting("/a", "b?c=d", "/e")) == b"png"
    fault = fetch(redirecting("/a", "/b", "/c", "/d"))
    assert isinstance(fault, LinkFailed)


@pytest.mark.parametrize(
    "location",
    ["http://elsewhere.example/", "https://10.0.0.1/", "file:///etc/passwd", "http://\xff/"],
)
def test_a_redirect_to_a_strange_place_is_refused(location: str) -> None:
    fault = fetch(redirecting(location))
    assert isinstance(fault, LinkRefused)
    assert fault.billed is Billed.YES


def test_nothing_is_sent_to_an_address_that_is_not_public() -> None:
    """A name of the list that resolves to this machine is what DNS rebinding looks like."""
    received: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        received.append(await reader.read())

    async def scene() -> None:
        async with serving(handler) as server:
            base_url = f"https://api.example:{server.port}"
            options = replace(OPTIONS, base_url=base_url, link_hosts=("localhost",))
            async with opened(options) as api:
                link = f"https://localhost:{server.port}/x.png"
                fault = await outcome_of(api.fetch(link, io.BytesIO()))
            assert isinstance(fault, LinkRefused)
            assert "127.0.0.1" in fault.message or "::1" in fault.message
            await until(lambda: bool(received))

    asyncio.run(scene())
    assert received == [b""]


def test_a_proxy_may_have_any_address(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(http(502))

    async def scene() -> object:
        async with serving(proxy) as server:
            monkeypatch.setenv("HTTPS_PROXY", server.url)
            async with opened() as api:
                return await outcome_of(api.fetch(LINK, io.BytesIO()))

    fault = asyncio.run(scene())
    assert isinstance(fault, LinkFailed)
    assert asked[0].startswith(b"CONNECT ideogram.ai:443")


# --- secrets, failures of the library, the end ----------------------------------------------


def test_neither_key_nor_link_is_logged_or_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "/x.png?sig=51917"  # noqa: S105 - made up
    faults = [
        fetch(handler, secret)
        for handler in (
            answering(http(200, b"png", length=9)),
            answering(http(500)),
            answering(b""),
        )
    ]
    faults += [submit(handler) for handler in (answering(http(200, paid())), close_after_body)]
    told = caplog.text + "".join(f"{fault} {fault!r}" for fault in faults[:3])
    told += str(faults[4])
    assert "51917" not in told
    assert KEY not in told


def leaves(kind: type[Exception]) -> set[type[Exception]]:
    below = kind.__subclasses__()
    return {leaf for sub in below for leaf in leaves(sub)} if below else {kind}


@pytest.mark.parametrize(
    "kind",
    sorted(
        leaves(httpx.RequestError) | {httpx.StreamError, httpx.InvalidURL},
        key=str,
    ),
)
def test_every_failure_of_the_library_has_a_name(kind: type[Exception]) -> None:
    assert kind in WHAT_HAPPENED


class Failing(httpx.AsyncBaseTransport):
    """A line that breaks before or after it has taken the whole request."""

    def __init__(self, kind: type[BaseException], *, sent: bool) -> None:
        self._kind = kind
        self._sent = sent

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._sent:
            await request.aread()
        raise self._kind(f"{KEY} {LINK}")


@pytest.mark.parametrize("kind", [*WHAT_HAPPENED, RuntimeError, KeyError])
@pytest.mark.parametrize("sent", [False, True])
def test_only_what_was_sent_decides_about_the_charge(kind: type[Exception], sent: bool) -> None:
    async def scene() -> tuple[object, object, object]:
        async with opened(transport=Failing(kind, sent=sent)) as api:
            return (
                await outcome_of(api.submit(picture())),
                await outcome_of(api.poll("gen-1")),
                await outcome_of(api.fetch(LINK, io.BytesIO())),
            )

    submitted, polled, fetched = asyncio.run(scene())
    assert type(submitted) is (NoUsableAnswer if sent else Unreachable)
    assert type(polled) is Unreachable
    assert type(fetched) is LinkFailed


class BreaksAtTheEnd(httpx.AsyncBaseTransport):
    """A line that gives a whole answer and cannot be closed."""

    def __init__(self, part: str) -> None:
        self._part = part

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        stream = CannotBeClosed() if self._part == "answer" else httpx.ByteStream(paid())
        return httpx.Response(200, stream=stream)

    async def aclose(self) -> None:
        if self._part == "line":
            raise OSError(errno.EIO, "Input/output error")
        await asyncio.Event().wait()


class CannotBeClosed(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield paid()

    async def aclose(self) -> None:
        raise httpx.CloseError("reset")


@pytest.mark.parametrize("part", ["answer", "line", "line that hangs"])
def test_an_answer_that_is_whole_counts_however_the_line_ends(part: str) -> None:
    async def scene() -> object:
        edge = Ideogram(OPTIONS, lambda: KEY, lambda: NOW, BreaksAtTheEnd(part))
        return (await edge.submit(picture())).link

    assert asyncio.run(scene()) == LINK


def test_closing_twice_is_once() -> None:
    async def scene() -> object:
        async with opened() as api:
            await api.aclose()
            await api.aclose()
            return await outcome_of(api.submit(picture()))

    assert isinstance(asyncio.run(scene()), Unreachable)


def test_a_cancelled_upload_is_cancelled() -> None:
    async def scene() -> None:
        async with (
            serving(never_answer) as server,
            opened(replace(OPTIONS, base_url=server.url)) as api,
        ):
            sending = asyncio.create_task(api.submit(picture()))
            await until(lambda: bool(server.connections))
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SSL_CERT_FILE", "/no/such/file", "SSL_CERT_FILE"),
        ("HTTPS_PROXY", "gopher://x", r"\*_PROXY"),
    ],
)
def test_an_unusable_environment_is_a_mistake_of_the_set_up(
    name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SetupError, match=words):
        Ideogram(OPTIONS, lambda: KEY)


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_bundle_without_certificates_is_a_mistake_of_the_set_up(
    tmp_path: Path, content: bytes | None
) -> None:
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_bytes(content)
    with pytest.raises(SetupError, match=r"api\.ca_bundle: .*bundle\.pem gives no certificates"):
        Ideogram(replace(OPTIONS, ca_bundle=str(bundle)), lambda: KEY)


def test_the_proxy_of_the_settings_outdoes_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(http(502))

    async def scene() -> object:
        async with serving(proxy) as server:
            monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
            monkeypatch.setenv("NO_PROXY", "*")
            address = f"http://me:5ec4e7@127.0.0.1:{server.port}"
            options = replace(OPTIONS, base_url="https://api.example", proxy=address)
            assert "5ec4e7" not in repr(options)
            async with opened(options) as api:
                return await outcome_of(api.submit(picture()))

    fault = asyncio.run(scene())
    assert isinstance(fault, Unreachable)
    assert "5ec4e7" not in str(fault)
    assert asked[0].startswith(b"CONNECT api.example:443")
    assert b"Proxy-Authorization: Basic " in asked[0]
    assert KEY.encode() not in asked[0]
