"""The stand-in's application: the documented contract, v1 and v2, and a door for tests.

It is no replacement for the service: `matte` cuts plain backgrounds out by colour. Besides the
API there are `GET /sandbox/report` (who paid for what), `POST /sandbox/script?target=` with
post, poll or download (a JSON list of `faults`) and `DELETE /sandbox/script`.

The file's name chooses an outcome: "unsafe" is refused with 422, "withheld" is made, billed and
held back, "failing" fails and costs nothing.
"""

import asyncio
import hashlib
import hmac
import math
import re
import secrets
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, assert_never, cast, get_args

from PIL import Image, ImageDraw
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bgremover.sandbox.damage import damaged, spoiled, with_status
from bgremover.sandbox.faults import (
    Content,
    Cut,
    Drip,
    Drop,
    Fault,
    Slow,
    Spoiled,
    Status,
    Target,
    read_faults,
)
from bgremover.sandbox.matte import NotAnImage, cut_png, encode_png
from bgremover.sandbox.state import Generation, Outcome, Payment, Results, SandboxState
from bgremover.sandbox.wire import Dripping, Dropped, HalfSent, RequestIds, form_of, peek

_POLLS, _POLL_WINDOW = 1000, 10.0
_AROUND_THE_IMAGE = 10_000
_FILE_NAME = re.compile(rb'filename="([^"\r\n]*)"')
_Json = dict[str, Any]
_Shape = Callable[[Generation, str | None], _Json]


@dataclass(frozen=True, slots=True)
class SandboxOptions:
    """How the stand-in behaves.

    Args:
        host: Address to listen on.
        port: 0 takes a free one.
        latency_seconds: How long an image is in flight.
        key: The one key that is accepted; None: any that is not empty.
        max_upload_bytes: A larger image is answered with 413.
        max_inflight: Images in flight at once; more are answered with 429.
        link_seconds: How long the links to results live.
        fixed_result: The same small result for every image, and no look at the upload.
        price_usd: What an image costs, in US dollars.
    """

    host: str = "127.0.0.1"
    port: int = 0
    latency_seconds: float = 0.0
    key: str | None = None
    max_upload_bytes: int = 10_000_000
    max_inflight: int = 10
    link_seconds: float = 24 * 3600.0
    fixed_result: bool = False
    price_usd: float = 0.01


class _Refusal(Exception):
    """An answer that is an error; `more` are further members of its JSON."""

    def __init__(
        self,
        status: int,
        error: str,
        more: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(error)
        self.response = JSONResponse({"error": error, **(more or {})}, status, headers)


@dataclass(frozen=True, slots=True)
class _Upload:
    file: str
    data: bytes
    asynchronous: bool


class Sandbox:
    """The application and what it knows. Its methods are for the server's event loop alone.

    Args:
        options: How it behaves.
        on_ready: Called when the application has started.
    """

    def __init__(
        self, options: SandboxOptions, on_ready: Callable[[], None] = lambda: None
    ) -> None:
        self.state = SandboxState(options.price_usd)
        self._options = options
        self._on_ready = on_ready
        self._results = Results()
        self._secret = secrets.token_bytes(32)
        self._cut = _fixed() if options.fixed_result else cut_png
        self._stopping = asyncio.Event()
        self._work: set[asyncio.Task[Generation]] = set()
        self._polled_at: deque[float] = deque(maxlen=_POLLS)

    def application(self) -> Starlette:
        """Return the ASGI application."""
        return Starlette(
            routes=[
                Route("/v1/remove-background", self._v1, methods=["POST"]),
                Route("/v2/image/remove-background/ideogram-1", self._v2, methods=["POST"]),
                Route("/v2/generations/{id}", self._poll),
                Route("/api/images/ephemeral/{id}.png", self._download),
                Route("/sandbox/report", self._report),
                Route("/sandbox/script", self._script, methods=["POST", "DELETE"]),
            ],
            middleware=[Middleware(RequestIds, answers=self.state.answers)],
            exception_handlers={
                _Refusal: _refused,
                HTTPException: _not_served,
                MultiPartException: _not_read,
                ClientDisconnect: _left,
            },
            lifespan=self._lifespan,
        )

    def stop(self) -> None:
        """End all waiting; what is in flight is neither finished nor billed."""
        self._stopping.set()

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        self._on_ready()
        yield
        self.stop()
        await asyncio.gather(*self._work)
        self._results.close()

    async def _sleep(self, seconds: float) -> None:
        """Wait, but no longer than the sandbox lives."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    # --- submissions ----------------------------------------------------------------------

    async def _v1(self, request: Request) -> Response:
        self._check_key(request)
        return await self._submit(request, _v1_answer)

    async def _v2(self, request: Request) -> Response:
        self._check_key(request)
        if request.query_params.get("dry_run") == "true":
            return await self._quote(request)
        return await self._submit(request, _v2_answer, may_be_asynchronous=True)

    async def _quote(self, request: Request) -> Response:
        self.state.dry_runs += 1
        request, name = await _named(request)
        await self._cut_out(await self._read(request, name))
        micros = round(self._options.price_usd * 1_000_000)
        return JSONResponse(
            {
                "object": "price_quote",
                "billing_identifier": "remove-background-ideogram-1",
                "quantity": 1,
                "usd_micros": micros,
                "credit_millis": micros // 10,
                "qualifier": "exact",
            }
        )

    async def _submit(
        self, request: Request, shape: _Shape, *, may_be_asynchronous: bool = False
    ) -> Response:
        self.state.submissions += 1
        request, name = await _named(request)
        fault = await self._fault("post", name)
        if isinstance(fault, Drop) and fault.close == "before_body":
            return Dropped()
        upload = await self._read(request, name)
        if isinstance(fault, Status | Drop) and not fault.billed:
            return _instead(fault)
        generation = await self._admitted(request, upload)
        work = self._start(generation)
        if isinstance(fault, Status | Drop):
            return _instead(fault)
        if may_be_asynchronous and upload.asynchronous:
            return _perhaps_spoiled(fault, {"generation_id": generation.id})
        finished = await work
        if finished.outcome == "failed":
            raise _Refusal(500, "the generation failed")
        return _perhaps_spoiled(fault, shape(finished, self._link(request, finished)))

    async def _read(self, request: Request, name: str) -> _Upload:
        announced = request.headers.get("Content-Length", "")
        if announced.isdecimal():
            self._check_size(int(announced) - _AROUND_THE_IMAGE)
        async with form_of(request) as form:
            image = form.get("image")
            if not isinstance(image, UploadFile):
                raise _Refusal(400, "the file field `image` is missing")
            data = await image.read()
            asynchronous = form.get("async") == "true"
        self._check_size(len(data))
        return _Upload(name, data, asynchronous)

    async def _admitted(self, request: Request, upload: _Upload) -> Generation:
        """Take an image in; from here on it is in flight."""
        self._check_inflight()
        self.state.begin()
        try:
            sha256, png = await self._cut_out(upload)
            _check_safe(upload.file)
        except BaseException:
            self.state.end()
            raise
        return Generation(
            id=str(uuid.uuid4()),
            file=upload.file,
            sha256=sha256,
            request_id=request.state.request_id,
            created=time.time(),
            slot=self._results.put(png),
        )

    async def _cut_out(self, upload: _Upload) -> tuple[str, bytes]:
        def cut() -> tuple[str, bytes]:
            return hashlib.sha256(upload.data).hexdigest(), self._cut(upload.data)

        if self._options.fixed_result:
            return cut()  # sooner done than handed to a thread
        try:
            return await asyncio.to_thread(cut)
        except NotAnImage as error:
            raise _Refusal(400, "the image cannot be read; JPEG, PNG and WebP are") from error

    def _start(self, generation: Generation) -> asyncio.Task[Generation]:
        """Let the work run, whether or not the client stays."""
        self.state.generations[generation.id] = generation
        work = asyncio.create_task(self._run(generation))
        self._work.add(work)
        work.add_done_callback(self._work.discard)
        return work

    async def _run(self, generation: Generation) -> Generation:
        try:
            await self._sleep(self._options.latency_seconds)
            return self._finish(generation)
        finally:
            self.state.end()

    def _finish(self, generation: Generation) -> Generation:
        finished = replace(generation, outcome=self._decide(generation.file))
        self.state.generations[generation.id] = finished
        if finished.outcome != "failed":
            self.state.payments.append(_payment(finished))
        return finished

    def _decide(self, file: str) -> Outcome:
        if self._stopping.is_set() or "failing" in file:
            return "failed"
        return "withheld" if "withheld" in file else "completed"

    def _check_key(self, request: Request) -> None:
        key = request.headers.get("Api-Key", "")
        if not key or key != (self._options.key or key):
            raise _Refusal(401, "the Api-Key header is missing or the key is invalid")

    def _check_size(self, size: int) -> None:
        if size > self._options.max_upload_bytes:
            raise _Refusal(413, f"the image has more than {self._options.max_upload_bytes} bytes")

    def _check_inflight(self) -> None:
        limit = self._options.max_inflight
        if self.state.in_flight >= limit:
            more = {"reject_reason": "inflight_limit", "max_inflight_requests": limit}
            raise _Refusal(429, "too many images in flight", more)

    async def _fault(self, target: Target, name: str) -> Fault | None:
        fault = self.state.script.take(target, name)
        if fault is not None:
            await self._sleep(fault.delay)
        return fault

    # --- polls ----------------------------------------------------------------------------

    async def _poll(self, request: Request) -> Response:
        self._check_key(request)
        self.state.polls += 1
        self._check_polls()
        generation = self._known(request)
        fault = await self._fault("poll", generation.file)
        if isinstance(fault, Status | Drop):
            return _instead(fault)
        generation = self.state.generations[generation.id]  # it may have finished meanwhile
        return _perhaps_spoiled(fault, _poll_answer(generation, self._link(request, generation)))

    def _check_polls(self) -> None:
        now = asyncio.get_running_loop().time()
        polled = self._polled_at
        if len(polled) == _POLLS and (wait := polled[0] + _POLL_WINDOW - now) > 0:
            raise _Refusal(429, "too many polls", headers={"Retry-After": f"{math.ceil(wait)}"})
        polled.append(now)

    def _known(self, request: Request) -> Generation:
        try:
            return self.state.generations[request.path_params["id"]]
        except KeyError:
            raise _Refusal(404, "there is no such generation") from None

    # --- links ----------------------------------------------------------------------------

    def _link(self, request: Request, generation: Generation) -> str | None:
        if generation.outcome != "completed":
            return None
        expires = int(time.time() + self._options.link_seconds)
        signature = self._sign(generation.id, f"{expires}")
        path = f"api/images/ephemeral/{generation.id}.png"
        return f"{request.base_url}{path}?exp={expires}&sig={signature}"

    def _sign(self, generation_id: str, expires: str) -> str:
        return hmac.new(self._secret, f"{generation_id} {expires}".encode(), "sha256").hexdigest()

    async def _download(self, request: Request) -> Response:
        generation = self._known(request)
        self._check_signature(request, generation)
        self.state.downloads += 1
        png = self._results.get(generation.slot)
        return self._delivery(await self._fault("download", generation.file), png)

    def _check_signature(self, request: Request, generation: Generation) -> None:
        expires = request.query_params.get("exp", "")
        given = request.query_params.get("sig", "")
        if not hmac.compare_digest(self._sign(generation.id, expires).encode(), given.encode()):
            raise _Refusal(403, "the link's signature is wrong")
        if time.time() >= int(expires):
            raise _Refusal(410, "the link has expired")

    def _delivery(self, fault: Fault | None, png: bytes) -> Response:
        match fault:
            case None | Slow() | Spoiled():
                return Response(png, media_type="image/png")
            case Status() | Drop():
                return _instead(fault)
            case Cut():
                return HalfSent(png, media_type="image/png")
            case Content(content=kind):
                return damaged(kind, png)
            case Drip(drip=seconds):
                return Dripping(png, lambda: self._sleep(seconds), "image/png")
            case _:
                assert_never(fault)

    # --- for tests ------------------------------------------------------------------------

    async def _report(self, _request: Request) -> Response:
        return JSONResponse(self.state.report())

    async def _script(self, request: Request) -> Response:
        if request.method == "DELETE":
            self.state.script.clear()
            return Response(status_code=204)
        target = request.query_params.get("target", "post")
        if target not in get_args(Target):
            raise _Refusal(400, f"no such target: {target}")
        try:
            faults = read_faults(cast(Target, target), await request.body())
        except ValueError as error:
            raise _Refusal(400, str(error)) from error
        self.state.script.add(cast(Target, target), faults)
        return Response(status_code=204)


# --- answers ------------------------------------------------------------------------------


def _v1_answer(generation: Generation, link: str | None) -> _Json:
    return {"created": _created(generation), "data": [_entry(link)]}


def _v2_answer(generation: Generation, link: str | None) -> _Json:
    return {"generation_id": generation.id, "data": [_entry(link)]}


def _poll_answer(generation: Generation, link: str | None) -> _Json:
    common = {"generation_id": generation.id, "created": _created(generation)}
    match generation.outcome:
        case "pending":
            return {**common, "status": "pending"}
        case "failed":
            return {**common, "status": "failed", "failure_reason": "the generation failed"}
        case "completed" | "withheld":
            data = [{"object_type": "image", **_entry(link)}]
            return {**common, "status": "completed", "response_type": "url", "data": data}
        case _:
            assert_never(generation.outcome)


def _entry(link: str | None) -> _Json:
    return {"is_image_safe": link is not None, "url": link}


def _created(generation: Generation) -> str:
    return datetime.fromtimestamp(generation.created, UTC).isoformat(" ", "seconds")


def _payment(generation: Generation) -> Payment:
    return Payment(
        at=time.time(),
        file=generation.file,
        sha256=generation.sha256,
        request_id=generation.request_id,
        generation_id=generation.id,
        outcome=generation.outcome,
    )


def _check_safe(file: str) -> None:
    if "unsafe" in file:
        raise _Refusal(422, "the image failed the safety check")


def _instead(fault: Status | Drop) -> Response:
    return with_status(fault) if isinstance(fault, Status) else Dropped()


def _perhaps_spoiled(fault: Fault | None, payload: _Json) -> Response:
    if isinstance(fault, Spoiled):
        return spoiled(fault.answer, payload)
    return JSONResponse(payload)


async def _named(request: Request) -> tuple[Request, str]:
    """Return the name of the uploaded file; the request's body is unread again."""
    request, found = await peek(request, _FILE_NAME)
    return request, found[1].decode("utf-8", "replace") if found else ""


async def _refused(_request: Request, error: Exception) -> Response:
    return cast(_Refusal, error).response


async def _not_served(_request: Request, error: Exception) -> Response:
    fault = cast(HTTPException, error)
    return JSONResponse({"error": fault.detail}, fault.status_code, fault.headers)


async def _not_read(_request: Request, error: Exception) -> Response:
    return JSONResponse({"error": cast(MultiPartException, error).message}, 400)


async def _left(_request: Request, _error: Exception) -> Response:
    return Dropped()


def _fixed() -> Callable[[bytes], bytes]:
    """Return a stand-in for cutting out that always gives the same small picture."""
    picture = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(picture).ellipse((8, 8, 56, 56), fill=(214, 72, 58, 255))
    png = encode_png(picture)
    return lambda _: png
