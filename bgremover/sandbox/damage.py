"""What the faults do: answers of no use, downloads that are not the cut-out."""

import io
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from PIL import Image
from starlette.responses import JSONResponse, Response

from bgremover.sandbox.faults import BadAnswer, BadContent, Status
from bgremover.sandbox.matte import encode_png

_HUGE = 5_000_000
_HTML = b"<!doctype html><title>Sign in</title><p>This network asks you to sign in.</p>"
_Payload = Mapping[str, Any]


def with_status(fault: Status) -> Response:
    """Return the answer that the fault spells out."""
    if isinstance(fault.body, str):
        return Response(fault.body, fault.status, fault.headers, "text/plain")
    return JSONResponse(fault.body, fault.status, fault.headers)


def spoiled(kind: BadAnswer, payload: _Payload) -> Response:
    """Return an answer with status 200 that keeps what matters in `payload` to itself."""
    return _ANSWERS[kind](payload)


def damaged(kind: BadContent, png: bytes) -> Response:
    """Return a complete download of something else than `png`."""
    media_type = "text/html" if kind == "html" else "image/png"
    return Response(_CONTENTS[kind](png), media_type=media_type)


def _half(payload: _Payload) -> Response:
    whole = json.dumps(payload).encode()
    return Response(whole[: len(whole) // 2], media_type="application/json")


def _without_url(payload: _Payload) -> Response:
    kept = {name: value for name, value in payload.items() if name not in {"generation_id", "data"}}
    return JSONResponse({**kept, "data": [{"is_image_safe": True}]})


def _huge(payload: _Payload) -> Response:
    return JSONResponse({"padding": " " * _HUGE, **payload})


def _saved_as(mode: str, kind: str, png: bytes) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert(mode).save(buffer, kind)
    return buffer.getvalue()


_ANSWERS: dict[BadAnswer, Callable[[_Payload], Response]] = {
    "html": lambda _: Response(_HTML, media_type="text/html"),
    "half_json": _half,
    "no_url": _without_url,
    "huge": _huge,
}
_CONTENTS: dict[BadContent, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "truncated": lambda png: png[: len(png) // 2],
    "garbage": lambda png: bytes(byte ^ 0x5A for byte in png),
    "html": lambda _: _HTML,
    "jpeg": partial(_saved_as, "RGB", "JPEG"),
    "no_alpha": partial(_saved_as, "RGB", "PNG"),
    "tiny": lambda _: encode_png(Image.new("RGBA", (1, 1))),
}
