"""The contract of the API, held against two witnesses: the stand-in, and the documented answers.

Each scene is played twice, against the sandbox and against the answers that the public pages show
(through respx). What the client makes of both must be the same: a sandbox that drifts from the
documentation fails here.
"""

import asyncio
import io
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import respx
from PIL import Image, ImageDraw

from bgremover.core.answer import Quote
from bgremover.core.errors import BgremoverError, Billed
from bgremover.core.job import Receipt
from bgremover.edges.ideogram import ApiOptions, Ideogram, Upload
from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox

KEY = "a-key"
DOCUMENTED = "https://api.ideogram.ai"
V1, V2 = "/v1/remove-background", "/v2/image/remove-background/ideogram-1"
LINK = "https://ideogram.ai/api/images/ephemeral/xtdZiqPwRxqY1Y7NExFmzB.png?exp=4102444800&sig=e13e"


def jpeg() -> bytes:
    image = Image.new("RGB", (80, 60), "white")
    ImageDraw.Draw(image).ellipse((20, 10, 60, 50), fill="navy")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()


def cut_out() -> bytes:
    image = Image.new("RGBA", (80, 60))
    ImageDraw.Draw(image).ellipse((20, 10, 60, 50), fill="navy")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Witness:
    """Where the API is."""

    url: str
    transport: httpx.AsyncBaseTransport | None = None

    def ask(
        self, call: Callable[[Ideogram], Awaitable[Any]], *, key: str = KEY, flow: str = "sync"
    ) -> Any:  # noqa: ANN401 - whatever the call gives, or its fault
        async def scene() -> object:
            options = ApiOptions(
                base_url=self.url,
                flow="async" if flow == "async" else "sync",
                connect_timeout_seconds=5,
                read_timeout_seconds=5,
                link_hosts=("ideogram.ai", "*.ideogram.ai"),
            )
            api = Ideogram(options, lambda: key, transport=self.transport)
            try:
                return await call(api)
            except BgremoverError as fault:
                return fault
            finally:
                await api.aclose()

        return asyncio.run(scene())


@pytest.fixture(params=["sandbox", "documented"])
def witness(request: pytest.FixtureRequest) -> Iterator[Witness]:
    if request.param == "sandbox":
        options = SandboxOptions(key=KEY, max_upload_bytes=100_000)
        with RunningSandbox(options) as sandbox:
            yield Witness(sandbox.url)
    else:
        with respx.mock(assert_all_called=False) as router:
            _as_documented(router)
            yield Witness(DOCUMENTED, httpx.AsyncHTTPTransport())


def _as_documented(router: respx.MockRouter) -> None:
    router.post(DOCUMENTED + V1).mock(side_effect=_v1)
    router.post(DOCUMENTED + V2, params={"dry_run": "true"}).respond(
        json={
            "object": "price_quote",
            "billing_identifier": "remove-background-ideogram-1",
            "quantity": 1,
            "usd_micros": 10000,
            "credit_millis": 1000,
            "qualifier": "exact",
        }
    )
    accepted = {"generation_id": "gen_1"}
    router.post(DOCUMENTED + V2).respond(json=accepted, headers={"x-request-id": "r-2"})
    router.get(DOCUMENTED + "/v2/generations/gen_1").mock(side_effect=_generation())
    router.get(path__startswith="/v2/generations/").respond(404, json={"error": "not found"})
    router.get(LINK).respond(content=cut_out(), headers={"content-type": "image/png"})


def _v1(request: httpx.Request) -> httpx.Response:
    headers, content = {"x-request-id": "r-1"}, request.content
    if request.headers.get("Api-Key") != KEY:
        return httpx.Response(401, json={"error": "unauthorized"}, headers=headers)
    if len(content) > 100_000:
        return httpx.Response(413, json={"error": "too large"}, headers=headers)
    if b"JFIF" not in content:
        return httpx.Response(400, json={"error": "invalid input"}, headers=headers)
    if b"unsafe" in content:
        return httpx.Response(422, json={"error": "failed the safety check"}, headers=headers)
    safe = b"withheld" not in content
    entry = {"is_image_safe": safe, "url": LINK if safe else None}
    body = {"created": "2000-01-23 04:56:07+00:00", "data": [entry]}
    return httpx.Response(200, json=body, headers=headers)


def _generation() -> Iterator[httpx.Response]:
    common = {"generation_id": "gen_1", "created": "2000-01-23 04:56:07+00:00"}
    yield httpx.Response(200, json={**common, "status": "pending"})
    data = [{"object_type": "image", "url": LINK, "is_image_safe": True}]
    done = {**common, "status": "completed", "response_type": "url", "data": data}
    while True:
        yield httpx.Response(200, json=done)


def upload(name: str = "shoe.jpg", data: bytes | None = None) -> Upload:
    content = jpeg() if data is None else data
    return Upload(io.BytesIO(content), name, "image/jpeg", len(content))


def test_an_image_gives_a_link_to_a_transparent_png(witness: Witness) -> None:
    into = io.BytesIO()

    async def both(api: Ideogram) -> Receipt:
        receipt = await api.submit(upload())
        assert receipt.link is not None
        assert await api.fetch(receipt.link, into) == len(into.getvalue())
        return receipt

    receipt = witness.ask(both)
    assert isinstance(receipt, Receipt), receipt
    assert receipt.request_id
    with Image.open(io.BytesIO(into.getvalue())) as image:
        assert image.format == "PNG"
        assert image.size == (80, 60)
        assert image.getchannel("A").getextrema() == (0, 255)


@pytest.mark.parametrize(
    ("sent", "key", "code", "status", "billed"),
    [
        (upload(), "wrong", "key_refused", 401, Billed.NO),
        (upload(data=b"no picture"), KEY, "rejected", 400, Billed.NO),
        (upload(data=jpeg() + bytes(150_000)), KEY, "rejected", 413, Billed.NO),
        (upload("unsafe.jpg"), KEY, "unsafe", 422, Billed.NO),
        (upload("withheld.jpg"), KEY, "unsafe", 200, Billed.YES),
    ],
    ids=["401", "400", "413", "422", "withheld"],
)
def test_a_refusal_is_the_same_fault(
    witness: Witness, sent: Upload, key: str, code: str, status: int, billed: Billed
) -> None:
    fault = witness.ask(lambda api: api.submit(sent), key=key)
    assert isinstance(fault, BgremoverError), fault
    assert fault.http is not None
    assert (fault.code, fault.http.status, fault.billed) == (code, status, billed)
    assert fault.http.request_id


def test_an_asynchronous_image_is_accepted_polled_and_completed(witness: Witness) -> None:
    async def scene(api: Ideogram) -> tuple[Receipt, Receipt]:
        accepted = await api.submit(upload())
        assert accepted.generation_id is not None
        for _ in range(200):
            if completed := await api.poll(accepted.generation_id):
                return accepted, completed
            await asyncio.sleep(0.01)
        raise AssertionError("it was never completed")

    accepted, completed = witness.ask(scene, flow="async")
    assert accepted.link is None
    assert completed.link is not None
    assert completed.generation_id == accepted.generation_id


def test_an_unknown_generation_may_have_been_charged(witness: Witness) -> None:
    fault = witness.ask(lambda api: api.poll("gen_404"), flow="async")
    assert isinstance(fault, BgremoverError), fault
    assert (fault.code, fault.billed) == ("no_usable_answer", Billed.UNKNOWN)


def test_a_dry_run_tells_the_price_and_charges_nothing(witness: Witness) -> None:
    assert witness.ask(lambda api: api.prove_key()) == Quote(0.01, exact=True)


def test_too_many_in_flight_is_told_with_the_limit() -> None:
    """The documented body of 429 and the stand-in's, side by side."""
    documented = {
        "error": "too many requests",
        "reject_reason": "inflight_limit",
        "max_inflight_requests": 10,
        "task_completion_speed": 1.5,
    }
    with respx.mock(base_url=DOCUMENTED) as router:
        router.post(V1).respond(429, json=documented)
        documented_api = Witness(DOCUMENTED, httpx.AsyncHTTPTransport())
        first = documented_api.ask(lambda api: api.submit(upload()))
    with RunningSandbox(SandboxOptions(key=KEY, max_inflight=0)) as sandbox:
        second = Witness(sandbox.url).ask(lambda api: api.submit(upload()))
    for fault, limit in ((first, 10), (second, None)):
        assert fault.code == "throttled"
        assert fault.http.reject_reason == "inflight_limit"
        assert fault.max_inflight == limit
