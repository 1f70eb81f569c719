"""What an answer of the API means: status, headers and body in, a receipt or a fault out.

The table of statuses follows the API's own list of what is billed. What no page documents is
read so that nothing is paid for twice: an answer that may hide a charge is `NoUsableAnswer`.
"""

import ipaddress
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from bgremover.core.errors import (
    BgremoverError,
    Billed,
    EndpointMoved,
    Forbidden,
    GenerationFailed,
    HttpAnswer,
    KeyRefused,
    LinkFailed,
    LinkRefused,
    NoUsableAnswer,
    PaymentRequired,
    Rejected,
    ServerFailed,
    Throttled,
    Unreachable,
    Unsafe,
)
from bgremover.core.job import Receipt

LONGEST_WAIT = 3600.0
"""Seconds; whatever Retry-After says, the service is asked again within the hour."""

LINK_LIFE = 24 * 3600.0
"""Seconds that a link lives where its query does not say (documented: about 24 hours)."""

SYNCHRONOUS_LIMIT = 265.0
"""Seconds after which the API gives up on a synchronous request while the work goes on."""

_LONGEST_LINK_LIFE = 7 * 24 * 3600.0
_CLOCK_TOLERANCE = 60.0
_KEPT_BODY = 2048
_LONGEST_LINK = 8192
_USABLE = (200, 201, 202)
_REFUSALS: dict[int, type[BgremoverError]] = {
    400: Rejected,
    401: KeyRefused,
    402: PaymentRequired,
    403: Forbidden,
    404: EndpointMoved,
    405: EndpointMoved,
    407: Unreachable,  # said by a proxy on the way: the API was never asked
    410: EndpointMoved,
    413: Rejected,
    415: Rejected,
    422: Unsafe,
    511: Unreachable,  # said by a captive portal on the way
}
_ACCOUNT_WIDE = (KeyRefused, PaymentRequired, Forbidden)
_THROTTLED = (408, 425, 429)
_UNAVAILABLE = 503
_GATEWAY_GAVE_UP = (502, 503, 504)
_ORIGIN_STILL_WORKS = 524  # Cloudflare: the origin took the request and has not answered yet
_MULTIPLE_CHOICES, _BAD_REQUEST, _SERVER_ERROR, _BEYOND = 300, 400, 500, 600

_URL = re.compile(r"https?:(?:\\?/){2}[^\s\"'<>]+", re.IGNORECASE)
_SECRET = re.compile(
    r"\b(sig|signature|token|api[-_]?key)(\"?\s*[=:]\s*\"?)[^&\s\"'<>,}]+", re.IGNORECASE
)
_EXPIRY = re.compile(r"[?&]exp=([0-9]{1,15})(?:[&#]|\Z)")
_GENERATION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,199}")
_LINK = re.compile(
    r"(?P<scheme>https?)://"
    r"(?P<host>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?:[/?#][\x21-\x7e]*)?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Quote:
    """The price of one call in US dollars; `exact` unless the API calls it an estimate."""

    usd: float
    exact: bool


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    payload: Mapping[str, Any] | None
    http: HttpAnswer

    @property
    def said(self) -> str:
        """The status, with the API's own words where it gave any."""
        words = (self.payload or {}).get("error")
        return (
            f"{self.status}: {_clean(words)[:200]}" if isinstance(words, str) else f"{self.status}"
        )


def read_submission(
    status: int, headers: Mapping[str, str], body: bytes, *, now: float, seconds: float
) -> Receipt:
    """Read the answer to an image that was sent to be cut out at once.

    The link is taken as it is, whatever it points to: it was paid for and belongs on disk first.
    `check_link` stands before every fetch.

    Args:
        status: The HTTP status.
        headers: The headers, names in any case.
        body: The body, undone of any content coding.
        now: The wall clock, Unix time.
        seconds: How long the request took.

    Returns:
        The receipt, with its link.

    Raises:
        BgremoverError: The fault that the answer is; its `billed` says what is known of the
            charge, its `http` what was answered, without links.
    """
    answer = _parsed(status, headers, body)
    if status not in _USABLE:
        raise _refusal(answer, now, seconds)
    return _paid(answer, now)


def read_acceptance(
    status: int, headers: Mapping[str, str], body: bytes, *, now: float, seconds: float
) -> Receipt:
    """Read the answer to an image that was sent to be cut out asynchronously.

    Arguments and faults are those of `read_submission`.

    Returns:
        The receipt: without a link while the generation runs, with it if the API has answered
        synchronously all the same.
    """
    answer = _parsed(status, headers, body)
    if status not in _USABLE:
        raise _refusal(answer, now, seconds)
    if (answer.payload or {}).get("data"):
        return _paid(answer, now)
    generation_id = _generation_id(answer)
    if generation_id is None:
        raise NoUsableAnswer("accepted, but without a generation id", http=answer.http)
    return Receipt(generation_id, None, now + LINK_LIFE, answer.http.request_id)


def read_generation(
    status: int, headers: Mapping[str, str], body: bytes, *, now: float
) -> Receipt | None:
    """Read the answer to a poll.

    Polls are free, and nothing but a generation that is said to have failed may lead to a new
    submission.

    Args:
        status: The HTTP status.
        headers: The headers, names in any case.
        body: The body, undone of any content coding.
        now: The wall clock, Unix time.

    Returns:
        The receipt with its link; None while the generation runs.

    Raises:
        GenerationFailed: It ended as `failed`, which is not billed.
        Unsafe: It was withheld, which is billed.
        Throttled: Too many polls.
        AccountFault: The key or the endpoint is refused.
        LinkFailed: The API failed on the poll; ask again.
        NoUsableAnswer: The generation is unknown (404: it may not be known yet everywhere) or
            the answer says nothing; it may well have been billed.
    """
    answer = _parsed(status, headers, body)
    if status not in _USABLE:
        raise _poll_refusal(answer, now)
    payload = answer.payload or {}
    match payload.get("status"):
        case "failed":
            reason = _clean(str(payload.get("failure_reason") or "no reason given"))[:200]
            raise GenerationFailed(f"the generation failed: {reason}", http=answer.http)
        case "pending":
            return None
        case str() as state if state != "completed" and not payload.get("data"):
            return None  # a status that no page names yet: queued, running
        case _:
            return _paid(answer, now)


def read_quote(status: int, headers: Mapping[str, str], body: bytes, *, now: float) -> Quote:
    """Read the answer to a dry run.

    Args:
        status: The HTTP status.
        headers: The headers, names in any case.
        body: The body, undone of any content coding.
        now: The wall clock, Unix time.

    Returns:
        The price.

    Raises:
        BgremoverError: As for a submission.
    """
    answer = _parsed(status, headers, body)
    if status not in _USABLE:
        raise _refusal(answer, now, 0.0)
    payload = answer.payload or {}
    micros = payload.get("usd_micros")
    if isinstance(micros, bool) or not isinstance(micros, int) or not 0 <= micros <= 10**12:
        raise NoUsableAnswer("the dry run was answered without a price", http=answer.http)
    return Quote(micros / 1_000_000, payload.get("qualifier") == "exact")


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds that the service asks to wait.

    `Retry-After-Ms` wins over `Retry-After`, which may hold seconds or an HTTP date (RFC 9110,
    10.2.3). A date is measured against the answer's own Date, so that a wrong clock of this
    machine does not matter.

    Args:
        headers: The headers of the answer, names in any case.
        now: The wall clock, Unix time.

    Returns:
        0 to `LONGEST_WAIT`; None where nothing sensible is said.
    """
    named = _lowered(headers)
    milliseconds = _number(named.get("retry-after-ms", ""))
    if milliseconds is not None:
        return min(milliseconds / 1000, LONGEST_WAIT)
    text = named.get("retry-after", "")
    wait = _number(text)
    if wait is None and (moment := _http_date(text)) is not None:
        wait = max(0.0, moment - _server_now(named, now))
    return None if wait is None else min(wait, LONGEST_WAIT)


def check_link(link: str, base_url: str, link_hosts: Iterable[str]) -> None:
    """Make sure that a result may be fetched from where a link points.

    Args:
        link: The link, from the API or from a redirect.
        base_url: Where the API is; its own host is always allowed.
        link_hosts: Host names; "*.example.org" allows sub-domains only.

    Raises:
        LinkRefused: It may not: another scheme, host or port, an address instead of a name,
            credentials, or characters that no link needs.
    """
    reason = _objection(link, base_url, [host.lower() for host in link_hosts])
    if reason is not None:
        raise LinkRefused(f"the result's link {reason}", billed=Billed.YES)


def is_own_host(link: str, base_url: str) -> bool:
    """Tell whether a link may lead to any address: the API's own host, or tests on loopback."""
    own = host_of(base_url)
    return _is_loopback(own) or own == host_of(link)


def host_of(url: str) -> str:
    """Return the host of an http or https URL in lower case; empty if it is no such URL."""
    parts = _LINK.fullmatch(url)
    return parts["host"].lower() if parts else ""


def is_public(address: str) -> bool:
    """Tell whether an IP address belongs to the public internet.

    Looks into IPv6 addresses that carry an IPv4 one (mapped, 6to4, NAT64 of RFC 6052): they lead
    to what they carry.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        carried = parsed.ipv4_mapped or parsed.sixtofour or _nat64(parsed)
        parsed = carried or parsed
    return parsed.is_global and not parsed.is_multicast


def link_expiry(link: str, headers: Mapping[str, str], now: float) -> float:
    """Return when a link dies, on this machine's clock.

    `exp` in the link's query is Unix time on the API's clock; the answer's Date tells how far
    the two clocks are apart. An `exp` that is no moment of the coming week is not believed.

    Args:
        link: The link.
        headers: The headers of the answer that brought it.
        now: The wall clock, Unix time.

    Returns:
        Unix time; `LINK_LIFE` from now where the link does not say.
    """
    expiry = _expiry(link)
    there = _server_now(_lowered(headers), now)
    if expiry is None or not 0 < expiry - there <= _LONGEST_LINK_LIFE:
        return now + LINK_LIFE
    return expiry if abs(there - now) < _CLOCK_TOLERANCE else now + (expiry - there)


def has_expired(link: str, headers: Mapping[str, str], now: float) -> bool:
    """Tell whether a link is dead by its own word, on the clock of the answer's Date.

    Args:
        link: The link.
        headers: The headers of the answer to its fetch.
        now: The wall clock, Unix time; for answers without a Date.
    """
    expiry = _expiry(link)
    return expiry is not None and _server_now(_lowered(headers), now) >= expiry


def http_answer(status: int, headers: Mapping[str, str], body: bytes) -> HttpAnswer:
    """Return what is kept of an answer: no link, no key, at most 2 kB of the body."""
    return _parsed(status, headers, body).http


# --- parts ----------------------------------------------------------------------------------


def _parsed(status: int, headers: Mapping[str, str], body: bytes) -> _Answer:
    named = _lowered(headers)
    payload = _json_object(body)
    reason = (payload or {}).get("reject_reason")
    http = HttpAnswer(
        status=status,
        request_id=_clean(named.get("x-request-id", ""))[:200] or None,
        reject_reason=_clean(reason)[:200] if isinstance(reason, str) else None,
        body=_kept(body),
    )
    return _Answer(status, named, payload, http)


def _lowered(headers: Mapping[str, str]) -> Mapping[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _json_object(body: bytes) -> Mapping[str, Any] | None:
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return payload if isinstance(payload, dict) else None


def _kept(body: bytes) -> str:
    # Cut only after the links are gone: a link that is cut in half is no longer seen.
    text = _clean(body[: 8 * _KEPT_BODY].decode("utf-8", "replace"))
    return text.encode()[:_KEPT_BODY].decode("utf-8", "ignore")


def _clean(text: str) -> str:
    shown = text.encode("utf-8", "replace").decode()
    return _SECRET.sub(r"\1\2[hidden]", _URL.sub("[link]", shown))


def _refusal(answer: _Answer, now: float, seconds: float) -> BgremoverError:
    status = answer.status
    if _MULTIPLE_CHOICES <= status < _BAD_REQUEST:
        return EndpointMoved(
            f"{answer.said}: the endpoint answers with a redirect", http=answer.http
        )
    if _charge_unknown(status, seconds):
        return NoUsableAnswer(f"{answer.said} after {seconds:.0f} s", http=answer.http)
    if _is_throttled(answer):
        return _throttled(answer, now)
    if status in _REFUSALS:
        return _REFUSALS[status](answer.said, http=answer.http)
    if _BAD_REQUEST <= status < _BEYOND:
        return ServerFailed(answer.said, http=answer.http)
    return NoUsableAnswer(f"{answer.said}: no such answer is documented", http=answer.http)


def _charge_unknown(status: int, seconds: float) -> bool:
    if status == _ORIGIN_STILL_WORKS:
        return True
    return status in _GATEWAY_GAVE_UP and seconds >= SYNCHRONOUS_LIMIT


def _is_throttled(answer: _Answer) -> bool:
    if answer.status == _UNAVAILABLE:
        return "retry-after" in answer.headers or "retry-after-ms" in answer.headers
    return answer.status in _THROTTLED


def _throttled(answer: _Answer, now: float) -> Throttled:
    allowed = (answer.payload or {}).get("max_inflight_requests")
    sensible = isinstance(allowed, int) and not isinstance(allowed, bool) and allowed > 0
    return Throttled(
        answer.said,
        retry_after=retry_after(answer.headers, now),
        max_inflight=allowed if sensible else None,
        http=answer.http,
    )


def _poll_refusal(answer: _Answer, now: float) -> BgremoverError:
    refusal = _refusal(answer, now, 0.0)
    match refusal:
        case Throttled() | KeyRefused() | PaymentRequired() | Forbidden() | Unreachable():
            return refusal
        case EndpointMoved() if answer.status != 404:  # noqa: PLR2004 - not found: see below
            return refusal
        case ServerFailed() if answer.status >= _SERVER_ERROR:
            return LinkFailed(f"the poll failed: {answer.said}", http=answer.http)
        case _:
            return NoUsableAnswer(f"the poll was refused: {answer.said}", http=answer.http)


def _paid(answer: _Answer, now: float) -> Receipt:
    entry = _entry(answer)
    if entry.get("is_image_safe") is False:
        raise Unsafe("the safety check withheld the result", billed=Billed.YES, http=answer.http)
    link = entry.get("url")
    if not isinstance(link, str) or not 0 < len(link) <= _LONGEST_LINK or not link.isascii():
        raise NoUsableAnswer("the answer holds no link", http=answer.http)
    return Receipt(
        generation_id=_generation_id(answer),
        link=link,
        expires_at=link_expiry(link, answer.headers, now),
        request_id=answer.http.request_id,
    )


def _entry(answer: _Answer) -> Mapping[str, Any]:
    if answer.payload is None:
        raise NoUsableAnswer(f"{answer.status}, but the body is no JSON object", http=answer.http)
    match answer.payload.get("data"):
        case [dict() as entry]:
            return entry
        case _:
            raise NoUsableAnswer("the answer does not hold exactly one result", http=answer.http)


def _generation_id(answer: _Answer) -> str | None:
    given = (answer.payload or {}).get("generation_id")
    if isinstance(given, str) and _GENERATION_ID.fullmatch(given):
        return given
    return None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return None if math.isnan(value) or value < 0 else value


def _http_date(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _server_now(headers: Mapping[str, str], now: float) -> float:
    said = _http_date(headers.get("date", ""))
    return now if said is None else said


def _expiry(link: str) -> float | None:
    found = _EXPIRY.search(link)
    return float(found[1]) if found else None


def _objection(link: str, base_url: str, link_hosts: list[str]) -> str | None:
    parts = _LINK.fullmatch(link)
    if parts is None:
        return "is no plain https link"
    own, host, port = host_of(base_url), host_of(link), _port(link)
    if parts["scheme"].lower() != "https" and not _plain_allowed(base_url, host):
        return f"leads to {host} without TLS"
    if host != own and _is_address(host):
        return f"leads to the address {host}"
    if host != own and not any(_matches(host, pattern) for pattern in link_hosts):
        return f"leads to {host}, which is not among api.link_hosts"
    if port not in (_default_port(link), _port(base_url)):
        return f"leads to port {port} of {host}"
    return None


def _port(url: str) -> int:
    parts = _LINK.fullmatch(url)
    return int(parts["port"]) if parts and parts["port"] else _default_port(url)


def _default_port(url: str) -> int:
    return 443 if url[:6].lower() == "https:" else 80


def _plain_allowed(base_url: str, host: str) -> bool:
    plain = base_url[:5].lower() == "http:"
    return plain and _is_loopback(host_of(base_url)) and _is_loopback(host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _is_address(host: str) -> bool:
    # Also "127.1" and "0x7f000001": a name whose last label is a number is an address to the
    # resolver (WHATWG URL, "ends in a number").
    return host.startswith("[") or bool(re.search(r"(?:\A|\.)(?:[0-9]+|0x[0-9a-f]*)\.?\Z", host))


def _matches(host: str, pattern: str) -> bool:
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return host == pattern


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def _nat64(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address not in _NAT64:
        return None
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
