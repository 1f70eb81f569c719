"""HTTP/1.1 straight to a host: a transport for httpx on h11 and asyncio.

httpx's own transport goes through a pool, locks and a second abstraction of asyncio, which was a
third of all that this program did for a small image. This one opens a connection, or takes one
that lies idle, and nothing else; proxies are httpx's business.

A request's `trace` extension is told of three moments, by the names that httpcore gives them:
`connection.connect_tcp.started`, `.complete` (before TLS, with the `Line`) and
`connection.start_tls.started`.
"""

import asyncio
import os
import select
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, cast

import h11
import httpx

LONGEST_HEAD = 102_400
"""Bytes of status line and headers; what is longer is no answer."""
KEPT_SECONDS = 5.0
"""How long a connection lies idle. Who is far away, and what is between, forget it before long."""
_MOST_UNREAD = 262_144
_PIECE = 65_536
_HAPPY_EYEBALLS = 0.25
_PORTS = {"http": 80, "https": 443}
_TOO_HIGH = 65_536

Trace = Callable[[str, Mapping[str, Any]], Awaitable[None]]
Origin = tuple[str, str, int]


class Wire(httpx.AsyncBaseTransport):
    """Sends requests over connections to their hosts.

    Args:
        tls: For https.
        kept_alive: How many connections may lie idle for later requests; with 0 each request has
            one of its own.
        kept_seconds: For how long.
    """

    def __init__(
        self, tls: ssl.SSLContext, *, kept_alive: int, kept_seconds: float = KEPT_SECONDS
    ) -> None:
        tls.set_alpn_protocols(["http/1.1"])
        self._tls = tls
        self._kept_alive = kept_alive
        self._kept_seconds = kept_seconds
        self._idle: dict[_Connection, asyncio.TimerHandle] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and read the head of its answer.

        Raises:
            httpx.TransportError: There is no connection or no whole answer.
        """
        connection = await self._connection(request)
        try:
            head = await connection.exchange(request)
        except BaseException:
            await connection.line.aclose()
            raise
        return httpx.Response(
            head.status_code,
            headers=list(head.headers.raw_items()),
            stream=_Content(connection, self._done_with),
        )

    async def aclose(self) -> None:
        """Close the connections that lie idle; those in use will not lie idle any more."""
        self._kept_alive = 0
        while self._idle:
            idle, end = self._idle.popitem()
            end.cancel()
            await idle.line.aclose()

    async def _connection(self, request: httpx.Request) -> "_Connection":
        origin = _origin(request.url)
        while (idle := self._taken(origin)) is not None:
            if idle.is_fresh:
                idle.begin_anew()
                return idle
            await idle.line.aclose()
        return await self._connected(origin, request.extensions)

    def _taken(self, origin: Origin) -> "_Connection | None":
        idle = next((one for one in self._idle if one.origin == origin), None)
        if idle is not None:
            self._idle.pop(idle).cancel()
        return idle

    async def _connected(self, origin: Origin, extensions: Mapping[str, Any]) -> "_Connection":
        scheme, host, port = origin
        trace: Trace = extensions.get("trace", _silent)
        longest = extensions.get("timeout", {}).get("connect")
        loop = asyncio.get_running_loop()
        await trace("connection.connect_tcp.started", {"host": host, "port": port})
        async with _while_connecting(longest):
            # Of one that is cancelled in a race for a name's addresses a socket may be left over.
            delay = None if _is_address(host) else _HAPPY_EYEBALLS
            _, line = await loop.create_connection(Line, host, port, happy_eyeballs_delay=delay)
        try:
            await trace("connection.connect_tcp.complete", {"return_value": line})
            if scheme == "http":
                return _Connection(origin, line, line)
            await trace("connection.start_tls.started", {})
            async with _while_connecting(longest):
                return _Connection(origin, line, await under_tls(line, self._tls, host))
        except BaseException:
            await line.aclose()
            raise

    async def _done_with(self, connection: "_Connection") -> None:
        if connection.is_reusable and len(self._idle) < self._kept_alive:
            loop = asyncio.get_running_loop()
            self._idle[connection] = loop.call_later(self._kept_seconds, self._give_up, connection)
        else:
            await connection.line.aclose()

    def _give_up(self, connection: "_Connection") -> None:
        del self._idle[connection]
        connection.line.abort()


class Line(asyncio.Protocol):
    """A connection that is read and written in turn.

    What has been written is out of this process when `write` returns.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._unread = bytearray()
        self._over = False
        self._error: Exception | None = None
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._full = False
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_readable(self) -> bool:
        """Whether something has come, or the end."""
        return bool(self._unread) or self._over or _is_readable(self.get_extra_info("socket"))

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - as httpcore's streams do
        """Return the `socket`, the `server_addr`, or whether it `is_readable`."""
        match info:
            case "is_readable":
                return self.is_readable
            case "server_addr":
                return self._transport.get_extra_info("peername")
            case _:
                return self._transport.get_extra_info(info)

    async def read(self, longest: float | None = None) -> bytes:
        """Wait for something, and return some of what is there; nothing is the end.

        Raises:
            TimeoutError: Nothing came within `longest` seconds.
            OSError: The connection broke.
        """
        if not self._unread and not self._over:
            await self._wait("read", longest)
        if not self._unread and self._error is not None:
            raise self._error
        came = bytes(self._unread[:_PIECE])
        del self._unread[:_PIECE]
        if self._unread:
            await asyncio.sleep(0)  # what is made of it may take its time
        elif not self._over:
            self._transport.resume_reading()
        return came

    async def write(self, data: bytes, longest: float | None = None) -> None:
        """Write, and wait until the kernel has taken it all.

        Raises:
            TimeoutError: It had not within `longest` seconds.
            OSError: The connection broke.
        """
        self._transport.write(data)
        if self._full and not self._transport.is_closing():
            await self._wait("write", longest)
        # One that fails at once is told of later, when it is closed.
        if self._transport.is_closing():
            raise self._error or ConnectionResetError("the connection is closed")

    def abort(self) -> None:
        """Close it soon, whatever is on its way."""
        self._transport.abort()

    async def aclose(self) -> None:
        """Close it, whatever is on its way."""
        self.abort()
        await asyncio.wait([self._closed])  # which leaves it alone when whoever waits is cancelled

    async def _wait(self, what: str, longest: float | None) -> None:
        waiting = asyncio.get_running_loop().create_future()
        self._waiting[what] = waiting
        try:
            async with asyncio.timeout(longest):
                await waiting
        finally:
            del self._waiting[what]

    def _wake(self, what: str) -> None:
        waiting = self._waiting.get(what)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    # --- what asyncio tells -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        # What asyncio keeps would count as sent.
        self._transport.set_write_buffer_limits(high=0)

    def data_received(self, data: bytes) -> None:
        """Keep what has come, and let the other side wait where it is too much."""
        self._unread += data
        if len(self._unread) >= _MOST_UNREAD:
            self._transport.pause_reading()
        self._wake("read")

    def eof_received(self) -> bool:
        """Note the end; the way out stays open."""
        self._over = True
        self._wake("read")
        return True

    def pause_writing(self) -> None:
        """Note that the kernel has not taken all."""
        self._full = True

    def resume_writing(self) -> None:
        """Note that it has."""
        self._full = False
        self._wake("write")

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end, and why."""
        self._over, self._error = True, exc
        if exc is not None:
            self._unread += self._left()
        if not self._closed.done():
            self._closed.set_result(None)
        self._wake("read")
        self._wake("write")

    def _left(self) -> bytes:
        # An answer that came before the reset is there still.
        with suppress(OSError):
            return os.read(self.get_extra_info("socket").fileno(), _MOST_UNREAD)
        return b""


class Tls:
    """A line under TLS. asyncio's own would keep some of what was written to itself.

    Args:
        line: What lies below.
        tls: How.
        host: Who the other side should be.
    """

    def __init__(self, line: Line, tls: ssl.SSLContext, host: str) -> None:
        self._line = line
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls.wrap_bio(self._came, self._goes, server_hostname=host)

    @property
    def is_readable(self) -> bool:
        """As `Line.is_readable`."""
        return bool(self._tls.pending() or self._came.pending) or self._line.is_readable

    async def shake_hands(self) -> None:
        """Agree on the keys.

        Raises:
            OSError: The other side cannot, or is not who it should be.
        """
        while not await self._tried(self._tls.do_handshake, None):
            await self._more(None)
        await self._flush(None)

    async def read(self, longest: float | None = None) -> bytes:
        """As `Line.read`."""
        got: list[bytes] = []
        while not await self._tried(lambda: got.append(self._tls.read(_PIECE)), longest):
            await self._more(longest)
        with suppress(OSError):  # what has come has come
            await self._flush(longest)
        return got[0] if got else b""

    async def write(self, data: bytes, longest: float | None = None) -> None:
        """As `Line.write`."""
        self._tls.write(data)
        await self._flush(longest)

    async def _tried(self, step: Callable[[], object], longest: float | None) -> bool:
        try:
            step()
        except ssl.SSLWantReadError:
            await self._flush(longest)
            return False
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            if step == self._tls.do_handshake:
                raise
        return True

    async def _more(self, longest: float | None) -> None:
        came = await self._line.read(longest)
        if came:
            self._came.write(came)
        else:
            self._came.write_eof()

    async def _flush(self, longest: float | None) -> None:
        if self._goes.pending:
            await self._line.write(self._goes.read(), longest)


async def under_tls(line: Line, tls: ssl.SSLContext, host: str) -> Tls:
    """Return the line under TLS.

    Raises:
        OSError: The other side cannot, or is not who it should be.
    """
    way = Tls(line, tls, host)
    await way.shake_hands()
    return way


class _Connection:
    """HTTP/1.1 on a line: one request and its answer at a time."""

    def __init__(self, origin: Origin, line: Line, way: Line | Tls) -> None:
        self.origin = origin
        self.line = line
        self._way = way
        self._longest: Mapping[str, float | None] = {}
        self._http = _client_side()

    async def exchange(self, request: httpx.Request) -> h11.Response:
        """Send a request; return the head of the answer."""
        self._longest = request.extensions.get("timeout", {})
        # Who refuses early may close at once, and its answer tells why.
        with suppress(httpx.WriteError):
            await self._send(request)
        while True:
            match await self._event():
                case h11.Response() as head:
                    return head
                case h11.InformationalResponse(status_code=status) if status != _SWITCHING:
                    pass
                case _:
                    raise httpx.RemoteProtocolError("the connection ended without an answer")

    async def content(self) -> AsyncIterator[bytes]:
        """Read the body of the answer."""
        while isinstance(event := await self._event(), h11.Data):
            yield bytes(event.data)

    @property
    def is_reusable(self) -> bool:
        """Whether another request may follow."""
        done = self._http.our_state is self._http.their_state is h11.DONE
        return done and self._http.trailing_data == (b"", False)

    @property
    def is_fresh(self) -> bool:
        """Whether nothing has come since, as the word that it is closed."""
        return not self._way.is_readable

    def begin_anew(self) -> None:
        """Make ready for the next request."""
        self._http.start_next_cycle()

    async def _send(self, request: httpx.Request) -> None:
        with _by_protocol(httpx.LocalProtocolError):
            head = h11.Request(
                method=request.method.encode("ascii"),
                target=request.url.raw_path,
                headers=request.headers.raw,
            )
        await self._put(head)
        async for chunk in cast("httpx.AsyncByteStream", request.stream):
            await self._put(h11.Data(data=chunk))
        await self._put(h11.EndOfMessage())

    async def _put(self, event: h11.Event) -> None:
        with _by_protocol(httpx.LocalProtocolError):
            data = self._http.send(event)
        if data:
            with _named(httpx.WriteTimeout, httpx.WriteError):
                await self._way.write(data, self._longest.get("write"))

    async def _event(self) -> h11.Event | type[h11.PAUSED]:
        while True:
            with _by_protocol(httpx.RemoteProtocolError):
                event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return cast("h11.Event | type[h11.PAUSED]", event)
            with _named(httpx.ReadTimeout, httpx.ReadError):
                came = await self._way.read(self._longest.get("read"))
            self._http.receive_data(came)


class _Content(httpx.AsyncByteStream):
    def __init__(
        self, connection: _Connection, done: Callable[[_Connection], Awaitable[None]]
    ) -> None:
        self._connection = connection
        self._done: Callable[[_Connection], Awaitable[None]] | None = done

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._connection.content():
            yield chunk

    async def aclose(self) -> None:
        done, self._done = self._done, None
        if done is not None:
            await done(self._connection)


_SWITCHING = 101


def _origin(url: httpx.URL) -> Origin:
    if url.scheme not in _PORTS:
        raise httpx.UnsupportedProtocol(f"there is no way to send to {url.scheme}://")
    port = _PORTS[url.scheme] if url.port is None else url.port
    if not 0 < port < _TOO_HIGH:
        raise httpx.ConnectError(f"there is no port {port}")
    return url.scheme, url.raw_host.decode("ascii"), port


def _is_address(host: str) -> bool:
    return ":" in host or host.rpartition(".")[2].isdecimal()


def _client_side() -> h11.Connection:
    return h11.Connection(h11.CLIENT, max_incomplete_event_size=LONGEST_HEAD)


def _is_readable(sock: socket.socket | None) -> bool:
    if sock is None or sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


@asynccontextmanager
async def _while_connecting(longest: float | None) -> AsyncIterator[None]:
    try:
        with _named(httpx.ConnectTimeout, httpx.ConnectError):
            async with asyncio.timeout(longest):
                yield
    except ValueError as error:  # of a name that can be none
        raise httpx.ConnectError(str(error)) from error


async def _silent(_event: str, _info: Mapping[str, Any]) -> None:
    return


@contextmanager
def _by_protocol(fault: type[httpx.ProtocolError]) -> Iterator[None]:
    try:
        yield
    except h11.ProtocolError as error:
        raise fault(str(error)) from error


@contextmanager
def _named(late: type[httpx.TimeoutException], broken: type[httpx.NetworkError]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise late("too late") from error
    except OSError as error:
        raise broken(str(error)) from error
