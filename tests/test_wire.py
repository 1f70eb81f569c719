"""The transport against real servers, with and without TLS."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from bgremover.wire import LONGEST_HEAD, Line, Wire
from tests.tls import self_signed

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
MEGABYTE = 1 << 20
VERSIONS = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}
PLAIN = ssl.create_default_context()


@dataclass
class Server:
    url: str
    connections: int = 0
    ended: int = 0

    async def seen(self, condition: Callable[["Server"], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition(self):  # noqa: ASYNC110 - of no event of this program
                await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(
    handler: Handler,
    tls: ssl.SSLContext | None = None,
    *,
    host: str = "127.0.0.1",
    receive_buffer: int | None = None,
) -> AsyncIterator[Server]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family)
    if receive_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    named = f"[{host}]" if ":" in host else host
    scheme = "https" if tls else "http"
    server = Server(f"{scheme}://{named}:{listener.getsockname()[1]}")
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            server.ended += 1
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.ensure_future(serve(reader, writer)))

    running = await asyncio.start_server(accept, sock=listener, ssl=tls)
    try:
        yield server
    finally:
        running.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def client(
    tls: ssl.SSLContext = PLAIN, *, kept_alive: int = 2, kept_seconds: float = 60.0
) -> AsyncIterator[httpx.AsyncClient]:
    transport = Wire(tls, kept_alive=kept_alive, kept_seconds=kept_seconds)
    async with httpx.AsyncClient(transport=transport, timeout=10) as opened:
        yield opened


def said(body: bytes = b"", *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def request_of(reader: asyncio.StreamReader) -> bytes:
    """Read a request; return its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    lengths = [int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length")]
    return await reader.readexactly(lengths[0]) if lengths else b""


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(said(await request_of(reader)))
        await writer.drain()


def answering(answer: bytes) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(answer)
        await writer.drain()

    return handler


def got(handler: Handler) -> bytes:
    """Return the body of an answer."""

    async def scene() -> bytes:
        async with serving(handler) as server, client() as opened:
            return (await opened.get(server.url)).content

    return asyncio.run(scene())


@dataclass(frozen=True)
class Trust:
    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(params=VERSIONS)
def trust(request: pytest.FixtureRequest, tmp_path: Path) -> Trust:
    certificate, key = self_signed(tmp_path)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.minimum_version = theirs.maximum_version = VERSIONS[request.param]
    theirs.load_cert_chain(certificate, key)
    return Trust(theirs, ssl.create_default_context(cafile=certificate))


# --- what comes and goes ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 16_385, 3 * MEGABYTE])
def test_what_is_sent_arrives_and_comes_back(size: int) -> None:
    async def scene() -> None:
        async with serving(echo) as server, client() as opened:
            body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
            assert (await opened.post(server.url, content=body)).content == body

    asyncio.run(scene())


@pytest.mark.parametrize("size", [0, 1, 16_385, 3 * MEGABYTE])
def test_under_tls_too(trust: Trust, size: int) -> None:
    async def scene() -> None:
        async with serving(echo, trust.server) as server, client(trust.client) as opened:
            for number in range(2):
                body = bytes([number]) * size
                assert (await opened.post(server.url, content=body)).content == body
            assert server.connections == 1

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3 + said(b"late"), b"late"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", b"ab"),
        (b"HTTP/1.1 200 OK\r\n\r\nto the end", b"to the end"),
        (b"HTTP/1.0 200\r\n\r\nold", b"old"),
    ],
)
def test_every_way_to_answer_is_understood(answer: bytes, body: bytes) -> None:
    assert got(answering(answer)) == body


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * LONGEST_HEAD * 2,
        b"SSH-2.0-Server\r\n\r\n",
    ],
)
def test_what_is_no_whole_answer_breaks_the_protocol(answer: bytes) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        got(answering(answer))


def test_what_is_cut_off_under_tls_is_not_whole(trust: Trust) -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(said(b"x" * 9)[:-4])
        await writer.drain()
        # Below TLS, so that there is no word of the end.
        beneath = socket.socket(fileno=socket.dup(writer.get_extra_info("socket").fileno()))
        with beneath:
            beneath.shutdown(socket.SHUT_WR)
        await reader.read()

    async def scene() -> None:
        async with serving(rude, trust.server) as server, client(trust.client) as opened:
            with pytest.raises(httpx.RemoteProtocolError):
                await opened.get(server.url)

    asyncio.run(scene())


def test_a_reset_is_a_connection_that_broke() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    with pytest.raises(httpx.ReadError):
        got(handler)


def test_an_address_of_the_sixth_version_is_reached() -> None:
    if not socket.has_ipv6:
        pytest.skip("needs IPv6")

    async def scene() -> bytes:
        async with serving(echo, host="::1") as server, client() as opened:
            return (await opened.post(server.url, content=b"six")).content

    assert asyncio.run(scene()) == b"six"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:99999", "http://127.0.0.1:0", "http://a..b", f"http://{'a' * 64}.b"]
)
def test_an_address_that_can_be_none_is_no_connection(url: str) -> None:
    async def scene() -> None:
        async with client() as opened:
            await opened.get(url)

    with pytest.raises(httpx.ConnectError):
        asyncio.run(scene())


def test_there_is_no_way_but_http() -> None:
    async def scene() -> None:
        async with client() as opened:
            await opened.get("ftp://127.0.0.1/x")

    with pytest.raises(httpx.UnsupportedProtocol):
        asyncio.run(scene())


# --- who the other side is --------------------------------------------------------------------


@pytest.mark.parametrize("known", [False, True], ids=["unknown", "of another name"])
def test_who_is_not_who_it_should_be_is_sent_nothing(trust: Trust, known: bool) -> None:
    received: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        received.append(await reader.read(100))

    async def scene() -> None:
        tls = trust.client if known else PLAIN
        async with serving(handler, trust.server) as server, client(tls) as opened:
            url = server.url.replace("127.0.0.1", "localhost") if known else server.url
            with pytest.raises(httpx.ConnectError, match="certificate"):
                await opened.post(url, content=b"secret")

    asyncio.run(scene())
    assert received in ([], [b""])


def test_an_end_in_the_middle_of_the_handshake_is_no_connection() -> None:
    async def ends(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(100)

    async def scene() -> None:
        async with serving(ends) as server, client() as opened:
            await opened.get(server.url.replace("http:", "https:"))

    with pytest.raises(httpx.ConnectError):
        asyncio.run(scene())


# --- connections that are kept ----------------------------------------------------------------


def test_a_connection_is_used_again_and_with_none_to_keep_it_is_not() -> None:
    async def scene(kept_alive: int) -> int:
        async with serving(echo) as server, client(kept_alive=kept_alive) as opened:
            for number in range(3):
                assert (await opened.post(server.url, content=b"%d" % number)).content
            return server.connections

    assert asyncio.run(scene(2)) == 1
    assert asyncio.run(scene(0)) == 3


def test_only_so_many_are_kept() -> None:
    async def scene() -> None:
        async with serving(echo) as server, client(kept_alive=2) as opened:
            await asyncio.gather(*(opened.get(server.url) for _ in range(5)))
            await server.seen(lambda one: one.ended == 3)
            assert server.connections == 5

    asyncio.run(scene())


def test_none_is_kept_for_long() -> None:
    async def scene() -> None:
        async with serving(echo) as server, client(kept_seconds=0.01) as opened:
            await opened.get(server.url)
            await server.seen(lambda one: one.ended == 1)
            await opened.get(server.url)
            assert server.connections == 2

    asyncio.run(scene())


def test_one_that_is_used_again_is_not_given_up() -> None:
    answers = asyncio.Event()
    troubles: list[object] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request_of(reader)
            writer.write(said(b"x"))
            await answers.wait()

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, trouble: troubles.append(trouble))
        async with serving(handler) as server, client(kept_seconds=0.05) as opened:
            await opened.get(server.url)
            again = asyncio.create_task(opened.get(server.url))
            loop.call_later(0.1, answers.set)
            assert (await again).content == b"x"
            assert server.connections == 1

    asyncio.run(scene())
    assert not troubles


@pytest.mark.parametrize(
    "after",
    [
        said(b"", "Connection: close"),
        said(),
        said() + b"HTTP/1.1 408 Request Timeout\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
    ids=["told to close", "closed", "unasked", "to the end"],
)
def test_a_connection_that_is_at_its_end_is_not_used_again(after: bytes) -> None:
    async def scene() -> None:
        async with serving(answering(after)) as server, client() as opened:
            await opened.get(server.url)
            await server.seen(lambda one: one.ended == 1)
            await opened.get(server.url)
            assert server.connections == 2

    asyncio.run(scene())


async def too_much(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await request_of(reader)
        writer.write(said(b"asked") + said(b"unasked"))


async def a_record_too_much(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    size = 16_384  # of a record of TLS at most
    while True:
        await request_of(reader)
        asked = said(b"asked".ljust(size - len(said(b"x" * 10_000)) + 10_000))
        assert len(asked) == size
        writer.write(asked + said(b"unasked"))


@pytest.mark.parametrize("handler", [too_much, a_record_too_much])
def test_what_was_not_asked_for_is_no_answer(handler: Handler) -> None:
    async def scene() -> None:
        async with serving(handler) as server, client() as opened:
            for _ in range(2):
                assert (await opened.get(server.url)).content.startswith(b"asked")

    asyncio.run(scene())


@pytest.mark.parametrize("handler", [too_much, a_record_too_much])
def test_under_tls_neither(trust: Trust, handler: Handler) -> None:
    async def scene() -> None:
        async with serving(handler, trust.server) as server, client(trust.client) as opened:
            for _ in range(2):
                assert (await opened.get(server.url)).content.startswith(b"asked")

    asyncio.run(scene())


def test_nothing_is_kept_once_it_is_closed() -> None:
    async def scene() -> None:
        async with serving(echo) as server:
            transport = Wire(PLAIN, kept_alive=3, kept_seconds=60.0)
            opened = httpx.AsyncClient(transport=transport)
            request = opened.build_request("GET", server.url)
            first, second = [await opened.send(request, stream=True) for _ in range(2)]
            await first.aread()  # its connection lies idle from here on
            await opened.aclose()
            await second.aread()
            await server.seen(lambda one: one.ended == 2)

    asyncio.run(scene())


def test_an_answer_that_is_left_unread_ends_its_connection() -> None:
    async def scene() -> None:
        async with serving(answering(said(b"x" * MEGABYTE))) as server, client() as opened:
            async with opened.stream("GET", server.url):
                pass
            await server.seen(lambda one: one.ended == 1)

    asyncio.run(scene())


def test_a_host_never_sees_the_connection_of_another() -> None:
    async def scene() -> None:
        async with serving(echo) as one, serving(echo) as other, client() as opened:
            for url in (one.url, other.url, one.url, other.url):
                await opened.get(url)
            assert (one.connections, other.connections) == (1, 1)

    asyncio.run(scene())


async def deaf(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def dumb(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await request_of(reader)
    await asyncio.Event().wait()


async def stuck(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_of(reader)
    writer.write(said(b"x" * 100)[:-50])
    await asyncio.Event().wait()


STALLS = {
    "in the request": (deaf, httpx.Timeout(20, write=0.1), httpx.WriteTimeout),
    "before the answer": (dumb, httpx.Timeout(20, read=0.1), httpx.ReadTimeout),
    "in the answer": (stuck, httpx.Timeout(20, read=0.1), httpx.ReadTimeout),
}


@pytest.mark.parametrize(("handler", "limits", "told"), STALLS.values(), ids=STALLS)
def test_nobody_waits_longer_than_is_said(
    handler: Handler, limits: httpx.Timeout, told: type[Exception]
) -> None:
    asyncio.run(stalled(handler, limits, told))


@pytest.mark.parametrize(("handler", "limits", "told"), STALLS.values(), ids=STALLS)
def test_nobody_waits_longer_than_is_said_under_tls(
    trust: Trust, handler: Handler, limits: httpx.Timeout, told: type[Exception]
) -> None:
    asyncio.run(stalled(handler, limits, told, trust))


async def stalled(
    handler: Handler,
    limits: httpx.Timeout,
    told: type[Exception],
    trust: Trust | None = None,
) -> None:
    theirs, ours = (trust.server, trust.client) if trust else (None, PLAIN)
    serves = serving(handler, theirs, receive_buffer=8192)
    async with asyncio.timeout(10), serves as server, client(ours) as opened:
        with pytest.raises(told):
            await opened.post(server.url, content=bytes(8 * MEGABYTE), timeout=limits)
        await server.seen(lambda one: one.connections == 1)


def test_a_cancelled_request_leaves_no_connection() -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async def scene() -> None:
        async with serving(silent) as server, client() as opened:
            task = asyncio.create_task(opened.get(server.url))
            await server.seen(lambda one: one.connections == 1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await server.seen(lambda one: one.ended == 1)

    asyncio.run(scene())


# --- how much is under way --------------------------------------------------------------------


@asynccontextmanager
async def line_to(server: Server) -> AsyncIterator[Line]:
    url = httpx.URL(server.url)
    loop = asyncio.get_running_loop()
    _, line = await loop.create_connection(Line, url.host, url.port or 0)
    try:
        yield line
    finally:
        await line.aclose()


def test_what_is_written_is_out_of_this_process() -> None:
    reads = asyncio.Event()
    took = 0

    async def late(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        nonlocal took
        await reads.wait()
        while came := await reader.read(65_536):
            took += len(came)

    async def scene() -> int:
        async with serving(late, receive_buffer=16_384) as server, line_to(server) as line:
            writing = asyncio.create_task(line.write(b"x" * 1000))
            written = 1
            while line._transport.get_write_buffer_size() == 0:
                await writing
                writing = asyncio.create_task(line.write(b"x" * 1000))
                await asyncio.sleep(0)
                written += 1
            assert not writing.done()
            reads.set()
            await writing
            assert line._transport.get_write_buffer_size() == 0
            line._transport.write_eof()
            await server.seen(lambda _: took == 1000 * written)
            return written

    assert asyncio.run(scene()) > 2


def test_whoever_sends_much_waits_until_it_is_read() -> None:
    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(50):
            writer.write(b"x" * MEGABYTE)
            await writer.drain()

    async def scene() -> None:
        async with serving(flood) as server, line_to(server) as line:
            await server.seen(lambda _: not line._transport.is_reading())
            assert len(line._unread) < MEGABYTE
            size = 0
            while came := await line.read():
                size += len(came)
            assert size == 50 * MEGABYTE

    asyncio.run(scene())


def test_a_line_that_broke_is_not_written_to() -> None:
    async def scene() -> None:
        async with serving(answering(b"")) as server, line_to(server) as line:
            await line.aclose()
            with pytest.raises(ConnectionError):
                await line.write(b"x")
            assert await line.read() == b""

    asyncio.run(scene())


def test_what_came_before_a_reset_is_read_and_nothing_is_written_after_it() -> None:
    """All of it while the loop is busy, so that asyncio finds out by the write that fails."""

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            _, line = await loop.create_connection(Line, *listener.getsockname())
            other, _ = listener.accept()
            other.sendall(b"no")
            other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            other.close()
        with pytest.raises(ConnectionError):
            await line.write(b"x" * 1000)
        assert await line.read() == b"no"
        with pytest.raises(ConnectionError):
            await line.read()
        await line.aclose()

    asyncio.run(scene())


def test_a_waiter_that_is_cancelled_leaves_the_end_to_the_others() -> None:
    async def scene() -> None:
        async with serving(echo) as server, line_to(server) as line:
            first = asyncio.create_task(line.aclose())
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await line.aclose()

    asyncio.run(scene())
