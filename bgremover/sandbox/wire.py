"""What starlette and uvicorn have no words for: dropped connections, dripping bodies, ids."""

import asyncio
import re
import uuid
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

from starlette.datastructures import FormData, MutableHeaders
from starlette.formparsers import MultiPartParser
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

_DRIP_BYTES = 64
_LONGEST_HEAD = 65_536


class Protocol(H11Protocol):
    """HTTP/1.1 whose requests can reach their connection, as `request.state.transport`."""

    def connection_made(  # type: ignore[override]  # as the base class itself declares it
        self, transport: asyncio.Transport
    ) -> None:
        """Hand the connection to all requests that will come over it."""
        self.app_state = {**self.app_state, "transport": transport}
        super().connection_made(transport)


class Dropped(Response):
    """No answer: the connection is gone, with whatever was still on its way."""

    async def __call__(self, scope: Scope, receive: Receive, _send: Send) -> None:
        """Drop the connection."""
        scope["state"]["transport"].abort()
        await _disconnected(receive)


class HalfSent(Response):
    """Half of the body, then the end of the connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the half that is sent."""
        await send(_start(self))
        half = bytes(self.body[: len(self.body) // 2])
        await send({"type": "http.response.body", "body": half, "more_body": True})
        scope["state"]["transport"].close()
        await _disconnected(receive)


class Dripping(Response):
    """The body, a few bytes at a time, with `pause` between them."""

    def __init__(
        self, content: bytes, pause: Callable[[], Awaitable[None]], media_type: str
    ) -> None:
        super().__init__(content, media_type=media_type)
        self._pause = pause

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send all of it, slowly."""
        await send(_start(self))
        for begin in range(0, len(self.body), _DRIP_BYTES):
            piece = bytes(self.body[begin : begin + _DRIP_BYTES])
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await self._pause()
        await send({"type": "http.response.body", "body": b""})


def _start(response: Response) -> Message:
    return {
        "type": "http.response.start",
        "status": response.status_code,
        "headers": response.raw_headers,
    }


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class RequestIds:
    """Middleware: an `x-request-id` on each answer, and a count of the API's answers.

    Args:
        app: The application.
        answers: Counts "METHOD STATUS".
    """

    def __init__(self, app: ASGIApp, answers: Counter[str]) -> None:
        self._app = app
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = str(uuid.uuid4())
        scope["state"]["request_id"] = request_id

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
                self._count(scope, message)
            await send(message)

        await self._app(scope, receive, named)

    def _count(self, scope: Scope, message: Message) -> None:
        if not scope["path"].startswith("/sandbox/"):
            self._answers[f"{scope['method']} {message['status']}"] += 1


class _InMemory(MultiPartParser):
    """Spares the thread that would write each piece of a file to disk: all of it is read anyway."""

    spool_max_size = 1 << 30


@asynccontextmanager
async def form_of(request: Request) -> AsyncIterator[FormData]:
    """Yield a multipart form with at most one file; a request of another kind has an empty one.

    Raises:
        MultiPartException: It breaks the format.
    """
    if not request.headers.get("Content-Type", "").startswith("multipart/form-data"):
        yield FormData()
        return
    async with aclosing(request.stream()) as stream:
        form = await _InMemory(request.headers, stream, max_files=1).parse()
    try:
        yield form
    finally:
        await form.close()


async def peek(
    request: Request, sought: re.Pattern[bytes]
) -> tuple[Request, re.Match[bytes] | None]:
    """Read a request's body until `sought` turns up.

    Args:
        request: A request of whose body nothing has been read.
        sought: What to look for, in the body's first 64 kB.

    Returns:
        The same request, its body unread again, and what was found.
    """
    seen: deque[Message] = deque()
    head, more, found = b"", True, None
    while found is None and more and len(head) < _LONGEST_HEAD:
        message = await request.receive()
        seen.append(message)
        head += message.get("body", b"")
        more = message.get("more_body", False)
        found = sought.search(head)

    async def again() -> Message:
        return seen.popleft() if seen else await request.receive()

    return Request(request.scope, again), found
