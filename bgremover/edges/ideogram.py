"""The HTTP API: one request per call, and the link to the result.

The rule of money: until the last byte of an upload has been handed over, whatever goes wrong
costs nothing (`Unreachable`); from then on a call without a usable answer may have been charged
(`NoUsableAnswer`). So the request body is written here, piece by piece, and knows how far it is.
A connection is never used for two uploads: a server that closes an idle connection at the moment
at which an upload goes out on it would leave an unknown charge.
"""

import asyncio
import contextlib
import functools
import io
import logging
import os
import secrets
import socket
import ssl
import struct
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, BinaryIO, Literal
from urllib.parse import quote, urljoin
from urllib.request import getproxies

import httpx

from bgremover import __version__
from bgremover.core.answer import (
    Quote,
    check_link,
    has_expired,
    host_of,
    http_answer,
    is_own_host,
    is_public,
    read_acceptance,
    read_generation,
    read_quote,
    read_submission,
)
from bgremover.core.errors import (
    BgremoverError,
    Billed,
    BrokenResult,
    KeyRefused,
    LinkExpired,
    LinkFailed,
    LinkRefused,
    NoUsableAnswer,
    Replaced,
    SetupError,
    Unreachable,
    local_fault,
)
from bgremover.core.job import Receipt
from bgremover.core.naming import printable
from bgremover.wire import Line, Trace, Wire

if TYPE_CHECKING:
    import httpcore

CHUNK = 262_144
LONGEST_ANSWER = 1_000_000
LONGEST_POLL = 30.0
LONGEST_SILENCE = 30.0
REDIRECTS = 3
SLOWEST_BYTES_PER_SECOND = 1000.0
_LONGEST_NAME = 100
_KEPT_ALIVE = 8
_LONGEST_CLOSING = 2.0

_V1 = "/v1/remove-background"
_V2 = "/v2/image/remove-background/ideogram-1"
_OK = 200
_GONE = (403, 404, 410)

# They write whole URLs and headers, and a signed link is a secret.
for _talkative in ("httpx", "httpcore"):
    logging.getLogger(_talkative).setLevel(logging.WARNING)

WHAT_HAPPENED: dict[type[BaseException], str] = {
    httpx.ConnectTimeout: "no connection in time",
    httpx.ConnectError: "no connection",
    httpx.PoolTimeout: "no connection was free in time",
    httpx.ProxyError: "the proxy failed",
    httpx.UnsupportedProtocol: "neither http nor https",
    httpx.LocalProtocolError: "the request breaks HTTP",
    httpx.WriteTimeout: "sending stalled",
    httpx.WriteError: "the connection broke while sending",
    httpx.ReadTimeout: "no answer in time",
    httpx.ReadError: "the connection broke before the answer was whole",
    httpx.CloseError: "the connection could not be closed",
    httpx.RemoteProtocolError: "the answer breaks HTTP or ends before its end",
    httpx.DecodingError: "the answer cannot be decoded",
    httpx.TooManyRedirects: "too many redirects",
    httpx.InvalidURL: "the address is no URL",
    httpx.StreamError: "the answer cannot be read",
    TimeoutError: "the deadline passed",
    OSError: "the connection failed",
}
"""What each failure of the transport is called. What it means for the money is not its business:
that depends on how much of the body was out (`_Body.sent`) alone."""

_Raw = tuple[int, Mapping[str, str], bytes]


@dataclass(frozen=True, slots=True)
class ApiOptions:
    """How the API is reached.

    Args:
        base_url: Where the API is.
        flow: sync (v1) or async (v2).
        connect_timeout_seconds: Longest wait for a connection.
        read_timeout_seconds: Longest wait for the answer once an upload is out.
        link_hosts: Where results may be fetched from; see `core.answer.check_link`.
        ca_bundle: File with the certificates to trust, PEM; None for the usual ones.
        proxy: Address of the proxy for everything; None for what the environment says. A secret.
        max_result_bytes: A larger result is not fetched.
        fetch_deadline_seconds: Longest fetch of a result.
        min_bytes_per_second: A transfer that is slower in the long run is given up.
    """

    base_url: str
    flow: Literal["sync", "async"]
    connect_timeout_seconds: float
    read_timeout_seconds: float
    link_hosts: tuple[str, ...]
    ca_bundle: str | None = None
    proxy: str | None = field(default=None, repr=False)
    max_result_bytes: int = 100_000_000
    fetch_deadline_seconds: float = 120.0
    min_bytes_per_second: float = SLOWEST_BYTES_PER_SECOND


@dataclass(frozen=True, slots=True)
class Upload:
    """An image to send: an open file, what to call it, its media type and its size in bytes.

    `note` tells how it differs from the original, if it does.
    """

    file: BinaryIO
    name: str
    media_type: str
    size: int
    note: str = ""


class Ideogram:
    """The API.

    Args:
        options: How it is reached.
        key: Gives the API key that is valid now; asked before each request.
        clock: The wall clock, Unix time.
        transport: Stands in for the network.

    Raises:
        SetupError: The proxy or the CA bundle cannot be used.
    """

    def __init__(
        self,
        options: ApiOptions,
        key: Callable[[], str],
        clock: Callable[[], float] = time.time,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._options = options
        self._base = options.base_url.rstrip("/")
        self._key = key
        self._clock = clock
        self._tls = _trusted(options.ca_bundle)
        self._headers = {
            "User-Agent": f"bgremover/{__version__}",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
        }
        try:
            # No upload uses a connection twice.
            self._uploads = transport or self._way(kept_alive=0)
            self._others = transport or self._way(kept_alive=_KEPT_ALIVE)
        except (OSError, ImportError, ValueError, httpx.InvalidURL) as error:
            raise SetupError(
                "the network cannot be set up from api.proxy and the environment (*_PROXY): "
                f"{type(error).__name__}"
            ) from error

    def _way(self, *, kept_alive: int) -> httpx.AsyncBaseTransport:
        proxy = self._options.proxy
        if proxy is None and not getproxies():
            return Wire(self._tls, kept_alive=kept_alive)
        return _ByProxy(proxy, self._tls, kept_alive)

    async def aclose(self) -> None:
        """Close all connections. May be called more than once."""
        await self._uploads.aclose()
        await self._others.aclose()

    async def submit(self, upload: Upload) -> Receipt:
        """Send an image: one call, charged if it runs.

        Args:
            upload: The image.

        Returns:
            The receipt. With the flow async it has no link while the generation runs.

        Raises:
            Unreachable: The image was never fully sent: not charged.
            NoUsableAnswer: It was sent, and no usable answer came: the charge is unknown.
            Replaced: The file is not as long as it was: not charged.
            BgremoverError: Everything that `core.answer` reads from an answer.
        """
        if self._options.flow == "async":
            answer, seconds = await self._post(_V2, upload, {"async": "true"})
            return read_acceptance(*answer, now=self._clock(), seconds=seconds)
        answer, seconds = await self._post(_V1, upload, {})
        return read_submission(*answer, now=self._clock(), seconds=seconds)

    async def prove_key(self) -> Quote:
        """Ask for the price of a call. Proves the key and charges nothing.

        Returns:
            The price.

        Raises:
            BgremoverError: As for `submit`.
        """
        picture = _tiny_png()
        upload = Upload(io.BytesIO(picture), "probe.png", "image/png", len(picture))
        answer, _ = await self._post(f"{_V2}?dry_run=true", upload, {})
        return read_quote(*answer, now=self._clock())

    async def poll(self, generation_id: str) -> Receipt | None:
        """Ask for a generation. Free.

        Args:
            generation_id: From the receipt of `submit`.

        Returns:
            The receipt with its link; None while the generation runs.

        Raises:
            Unreachable: There was no answer; ask again.
            BgremoverError: Everything that `core.answer` reads from an answer.
        """
        url = f"{self._base}/v2/generations/{quote(generation_id, safe='')}"
        identity = self._identity()
        try:
            request = self._request("GET", url, identity)
            async with asyncio.timeout(min(LONGEST_POLL, self._options.read_timeout_seconds)):
                answer = await self._answer(self._others, request)
        except BgremoverError:
            raise
        except Exception as error:  # noqa: BLE001 - a poll is free: whatever it was, ask again
            raise Unreachable(_what_happened(error, self._base)) from None
        return read_generation(*answer, now=self._clock())

    async def fetch(self, link: str, into: BinaryIO) -> int:
        """Write the result to a file. Free, any number of times while the link lives.

        Args:
            link: From the receipt.
            into: An empty file, open for writing.

        Returns:
            The number of bytes.

        Raises:
            LinkFailed: It did not come; try again.
            LinkExpired: The link is dead by its own word.
            LinkRefused: The link or a redirect leads where results may not be fetched from.
            BrokenResult: It is too large or not as long as announced.
            LocalFault: The file cannot be written.
        """
        try:
            async with asyncio.timeout(self._options.fetch_deadline_seconds):
                return await self._fetch(link, into)
        except BgremoverError:
            raise
        except Exception as error:  # noqa: BLE001 - a fetch is free: whatever it was, try again
            raise LinkFailed(_what_happened(error, link), billed=Billed.YES) from None

    # --- uploads ----------------------------------------------------------------------------

    async def _post(
        self, path: str, upload: Upload, fields: Mapping[str, str]
    ) -> tuple[_Raw, float]:
        options, loop = self._options, asyncio.get_running_loop()
        began = loop.time()
        # TCP, a proxy and TLS may each take the whole time for a connection.
        connecting = 3 * options.connect_timeout_seconds
        sending = upload.size / options.min_bytes_per_second
        body, identity = _Body(upload, fields), self._identity()
        try:
            async with asyncio.timeout(connecting + sending) as deadline:
                body.on_sent = lambda: deadline.reschedule(
                    loop.time() + options.read_timeout_seconds
                )
                request = self._upload_request(path, body, identity)
                answer = await self._answer(self._uploads, request)
        except BgremoverError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, only `sent` tells the charge
            fault = NoUsableAnswer if body.sent else Unreachable
            raise fault(_what_happened(error, self._base)) from None
        return answer, loop.time() - began

    def _upload_request(
        self, path: str, body: "_Body", identity: Mapping[str, str]
    ) -> httpx.Request:
        options = self._options
        timeout = httpx.Timeout(
            options.read_timeout_seconds,
            connect=options.connect_timeout_seconds,
            pool=options.connect_timeout_seconds,
            write=options.connect_timeout_seconds + CHUNK / options.min_bytes_per_second,
        )
        url = _parsed(self._base + path)
        headers = {**identity, **body.headers}
        return self._request("POST", url, headers, body, timeout=timeout, trace=body.trace)

    def _request(
        self,
        method: str,
        url: str | httpx.URL,
        headers: Mapping[str, str],
        content: "_Body | None" = None,
        *,
        timeout: httpx.Timeout | None = None,
        trace: Trace | None = None,
    ) -> httpx.Request:
        connect = self._options.connect_timeout_seconds
        timeout = timeout or httpx.Timeout(LONGEST_SILENCE, connect=connect)
        extensions = {"timeout": timeout.as_dict(), **({} if trace is None else {"trace": trace})}
        headers = {**self._headers, **headers}
        return httpx.Request(method, url, headers=headers, content=content, extensions=extensions)

    def _identity(self) -> dict[str, str]:
        key = self._key()
        if not key or not key.isascii() or not key.isprintable():
            raise KeyRefused("the key is empty or holds characters that no key has")
        return {"Api-Key": key}

    async def _answer(self, way: httpx.AsyncBaseTransport, request: httpx.Request) -> _Raw:
        response = await way.handle_async_request(request)
        async with _closed_in_the_end(response):
            body = await _content(response)
        secret = request.headers["Api-Key"].encode()
        return response.status_code, response.headers, body.replace(secret, b"[key]")

    # --- results ----------------------------------------------------------------------------

    async def _fetch(self, link: str, into: BinaryIO) -> int:
        for _ in range(1 + REDIRECTS):
            response = await self._open(link)
            try:
                if not response.is_redirect:
                    return await self._save(response, link, into)
                link = urljoin(link, response.headers["Location"])
            finally:
                await response.aclose()
        raise LinkFailed("the link redirects too often", billed=Billed.YES)

    async def _open(self, link: str) -> httpx.Response:
        check_link(link, self._base, self._options.link_hosts)
        trace = None if is_own_host(link, self._base) else _PublicOnly(link)
        request = self._request("GET", link, {}, trace=trace)
        return await self._others.handle_async_request(request)

    async def _save(self, response: httpx.Response, link: str, into: BinaryIO) -> int:
        if response.status_code != _OK:
            raise self._not_given(response, link)
        announced = response.headers.get("Content-Length", "")
        limit = self._options.max_result_bytes
        if announced.isdecimal() and int(announced) > limit:
            raise BrokenResult(f"the result has more than {limit} bytes", billed=Billed.YES)
        try:
            return await self._stream(response, into)
        except httpx.RemoteProtocolError:
            raise BrokenResult("the result ends before its end", billed=Billed.YES) from None

    def _not_given(self, response: httpx.Response, link: str) -> BgremoverError:
        kept = http_answer(response.status_code, response.headers, b"")
        dead = response.status_code in _GONE and has_expired(link, response.headers, self._clock())
        message = f"the link's host answered {response.status_code}"
        return (LinkExpired if dead else LinkFailed)(message, billed=Billed.YES, http=kept)

    async def _stream(self, response: httpx.Response, into: BinaryIO) -> int:
        options, loop = self._options, asyncio.get_running_loop()
        began, size, gathered = loop.time(), 0, bytearray()
        async for chunk in response.aiter_raw():
            size += len(chunk)
            if size > options.max_result_bytes:
                raise BrokenResult(
                    f"the result has more than {options.max_result_bytes} bytes",
                    billed=Billed.YES,
                )
            gathered += chunk
            if len(gathered) >= CHUNK:
                await _write(into, gathered)
                gathered = bytearray()
            owed = loop.time() - began - options.connect_timeout_seconds
            if size < owed * options.min_bytes_per_second:
                raise LinkFailed("the result comes too slowly", billed=Billed.YES)
        await _write(into, gathered)
        return size


class _ByProxy(httpx.AsyncBaseTransport):
    """Leaves it to httpx's client which proxy is for whom, and how it is spoken to."""

    def __init__(self, proxy: str | None, tls: ssl.SSLContext, kept_alive: int) -> None:
        self._client = httpx.AsyncClient(
            verify=tls,
            proxy=proxy,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            # How many calls there are at a time is the dispatcher's business.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=kept_alive),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._client.send(request, stream=True)

    async def aclose(self) -> None:
        await self._client.aclose()


_parsed = functools.lru_cache(maxsize=8)(httpx.URL)
"""Of the same few addresses the program asks all the time, and parsing looks at each character."""


def _trusted(bundle: str | None) -> ssl.SSLContext:
    where = "SSL_CERT_FILE" if bundle is None else f"api.ca_bundle: {printable(bundle)}"
    try:
        if bundle is None:
            return httpx.create_ssl_context()
        return ssl.create_default_context(cafile=bundle)
    except (OSError, ValueError) as error:
        raise SetupError(
            f"{where} gives no certificates: {type(error).__name__}. "
            "Name a file that this user may read, with certificates in PEM."
        ) from error


class _Body(httpx.AsyncByteStream):
    """An image as multipart/form-data (RFC 7578), read from its file while it is sent.

    `sent` is set before the last piece is handed over, and the last piece is only the closing
    boundary: while `sent` is false the server cannot have a whole request.
    """

    def __init__(self, upload: Upload, fields: Mapping[str, str]) -> None:
        boundary = secrets.token_hex(16)
        self._upload = upload
        self._head = _multipart_head(boundary, upload, fields)
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        length = len(self._head) + upload.size + len(self._tail)
        self.headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(length),
        }
        self.on_sent: Callable[[], None] = lambda: None
        self.sent = False
        self._plain: Line | httpcore.AsyncNetworkStream | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        head = self._head  # goes out with the first piece: each piece is a packet of its own
        async for chunk in self._file():
            self._heed_early_answer()
            yield head + chunk
            head = b""
        self._heed_early_answer()
        self.on_sent()
        self.sent = True
        yield self._tail

    async def _file(self) -> AsyncIterator[bytes]:
        at, size = 0, self._upload.size
        while at < size:
            left = size - at
            # With the last piece one byte is asked for that should not be there.
            chunk = await self._piece(at, min(CHUNK, left) + (left <= CHUNK))
            if not chunk:
                raise Replaced("the file became shorter while it was sent")
            if len(chunk) > left:
                raise Replaced("the file became longer while it was sent")
            at += len(chunk)
            yield chunk

    async def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Keep the kernel from swallowing a whole image before the network has taken it.

        With the usual megabytes of send buffer, a connection that dies early in an upload would
        look as if all had been sent, and a free failure would count as an unknown charge.
        """
        if event == "connection.connect_tcp.complete":
            self._plain = info["return_value"]
            if option := getattr(socket, "TCP_NOTSENT_LOWAT", None):
                sock = self._plain.get_extra_info("socket")
                sock.setsockopt(socket.IPPROTO_TCP, option, CHUNK)
        elif event.endswith(".start_tls.started"):
            self._plain = None

    def _heed_early_answer(self) -> None:
        # A server that refuses before it has read everything may close right away; the reset
        # that follows the next piece would wipe out its answer. Under TLS a readable socket may
        # hold session tickets.
        if self._plain is not None and self._plain.get_extra_info("is_readable"):
            raise _answered_early(self._plain)

    async def _piece(self, at: int, size: int) -> bytes:
        file = self._upload.file

        def read() -> bytes:
            file.seek(at)
            return file.read(size)

        # It was looked at a moment ago, so that most often no disk has to be waited for.
        if piece := _at_hand(file, at, size):
            return piece
        with _naming("reading the original"):
            return await asyncio.to_thread(read)


def _at_hand(file: BinaryIO, at: int, size: int) -> bytes:
    """Return what of a file is in memory from `at` on; nothing where that would have to wait."""
    if not hasattr(os, "RWF_NOWAIT"):
        return b""
    buffer = bytearray(size)
    try:
        # preadv2(2): reads from the page cache or fails; not every file system knows it.
        there = os.preadv(file.fileno(), [buffer], at, os.RWF_NOWAIT)
    except OSError:
        return b""
    return bytes(memoryview(buffer)[:there])


def _answered_early(stream: "Line | httpcore.AsyncNetworkStream") -> Exception:
    """Return what is the sign for a transport to read the answer now."""
    if isinstance(stream, Line):
        return httpx.WriteError("the server answers already")
    import httpcore  # noqa: PLC0415 - who comes here has it, nobody else needs it

    return httpcore.WriteError("the server answers already")


class _PublicOnly:
    """Refuses connections to addresses that are not public, before anything is sent.

    A name that is allowed may still resolve to an address of this network (DNS rebinding).
    A connection to a proxy is the proxy's business: it is known by its other host.
    """

    def __init__(self, link: str) -> None:
        self._host = host_of(link)
        self._direct = False

    async def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.started":
            self._direct = info["host"] == self._host
        if event == "connection.connect_tcp.complete" and self._direct:
            stream = info["return_value"]
            address = stream.get_extra_info("server_addr")[0]
            if not is_public(address):
                await stream.aclose()
                raise LinkRefused(
                    f"{self._host} leads to {address}, which is not public", billed=Billed.YES
                )


def _what_happened(error: BaseException, url: str) -> str:
    words = next(
        (WHAT_HAPPENED[kind] for kind in type(error).__mro__ if kind in WHAT_HAPPENED),
        type(error).__name__,
    )
    # Only of this one is the text the operating system's or OpenSSL's; others may quote requests.
    detail = f" ({error})" if isinstance(error, httpx.ConnectError) and str(error) else ""
    return f"{host_of(url) or 'the API'}: {words}{detail}"


@contextlib.asynccontextmanager
async def _closed_in_the_end(what: httpx.Response) -> AsyncIterator[None]:
    try:
        yield
    finally:
        # An answer that is there was paid for and counts, however the connection ends.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_LONGEST_CLOSING):
                await what.aclose()


async def _content(response: httpx.Response) -> bytes:
    """Read an answer, at most `LONGEST_ANSWER` bytes of it, before and after decoding.

    A refusal counts by its status, so that its body may break off.
    """
    raw = bytearray()
    try:
        async for chunk in response.aiter_raw():
            raw += chunk
            if len(raw) > LONGEST_ANSWER:
                break
    except httpx.CloseError:
        pass  # all of it is there
    except httpx.TransportError:
        if response.is_success:
            raise
    return _decoded(bytes(raw[:LONGEST_ANSWER]), response.headers.get("Content-Encoding", ""))


def _decoded(raw: bytes, coding: str) -> bytes:
    # Asked for "identity", but an answer that was paid for is not thrown away for its packing.
    if coding.strip().lower() not in {"gzip", "x-gzip", "deflate"}:
        return raw
    try:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32).decompress(raw, LONGEST_ANSWER)
    except zlib.error:
        return b""


async def _write(into: BinaryIO, content: bytearray) -> None:
    def write() -> None:
        left = memoryview(content)
        while left:
            left = left[into.write(left) :]

    with _naming("writing the result"):
        await asyncio.to_thread(write)


@contextlib.contextmanager
def _naming(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise local_fault(error, doing) from error


def _multipart_head(boundary: str, upload: Upload, fields: Mapping[str, str]) -> bytes:
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    image = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; '
        f'filename="{_file_name(upload.name)}"\r\nContent-Type: {upload.media_type}\r\n\r\n'
    )
    return "".join([*parts, image]).encode()


def _file_name(name: str) -> str:
    """Return the base name as a parameter of a header, escaped as browsers do (RFC 7578, 4.2)."""
    base = name.rpartition("/")[2].encode("utf-8", "replace").decode()
    stem, suffix = os.path.splitext(base)
    suffix = suffix[: _LONGEST_NAME // 2]
    base = stem[: _LONGEST_NAME - len(suffix)] + suffix
    return "".join(_escaped(character) for character in base) or "image"


def _escaped(character: str) -> str:
    if character in '"\\' or not character.isprintable():
        return quote(character)
    return character


def _tiny_png() -> bytes:
    side = 16
    rows = zlib.compress((b"\0" + b"\x80" * 3 * side) * side)
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
