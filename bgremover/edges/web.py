"""The HTTP endpoint: /healthz, /readyz, /metrics, /status. For reading only.

Imported only where `http.listen` is set. There is no password: whoever reaches the address reads
names of files and sums. On loopback only names of this machine are answered to, so that a page in
a browser cannot read along under a name of its own (DNS rebinding).
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn import Config, Server

from bgremover import __version__
from bgremover.core.errors import BgremoverError, SetupError
from bgremover.core.observed import Observed, Snapshot, Spending

_OUTCOMES = ("saved", "reused", "quarantined", "released")
_OWN_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")
_MOST_CONNECTIONS = 32
_IDLE_SECONDS = 5
_LEDGER_SECONDS = 5.0
_FRESH = {"Cache-Control": "no-store"}
_ILL = 503


# --- metrics -------------------------------------------------------------------------------


class Metrics(Collector):
    """The counts and one snapshot as Prometheus reads them.

    Args:
        observed: The counts.
        snapshot: How things stand now.
    """

    def __init__(self, observed: Observed, snapshot: Snapshot) -> None:
        self._observed = observed
        self._now = snapshot

    def collect(self) -> Iterator[Metric]:
        """Yield each metric."""
        yield InfoMetricFamily("bgremover", "The program.", {"version": __version__})
        yield from self._counters()
        yield self._phases()
        yield from self._gauges()
        yield from self._spending()

    def _counters(self) -> Iterator[Metric]:
        seen = self._observed
        images = CounterMetricFamily(
            "bgremover_images", "Images that came to rest.", labels=["outcome"]
        )
        for outcome in _OUTCOMES:
            images.add_metric([outcome], seen.images[outcome])
        failures = CounterMetricFamily(
            "bgremover_quarantined", "Images that were quarantined.", labels=["code"]
        )
        for code, count in sorted(seen.failures.items()):
            failures.add_metric([code], count)
        faults = CounterMetricFamily("bgremover_faults", "Steps that failed.", labels=["code"])
        for code, count in sorted(seen.faults.items()):
            faults.add_metric([code], count)
        yield from (images, failures, faults, self._calls())
        yield CounterMetricFamily(
            "bgremover_missed_events", "Images that no event told of.", value=self._now.missed
        )
        yield CounterMetricFamily(
            "bgremover_sweeps", "Looks at the whole inbox.", value=self._now.sweeps
        )

    def _calls(self) -> Metric:
        calls = CounterMetricFamily(
            "bgremover_api_calls",
            "Uploads, by the status of the answer (none without one).",
            labels=["status", "outcome"],
        )
        for (status, outcome), count in sorted(self._observed.calls.items()):
            calls.add_metric([status, outcome], count)
        return calls

    def _phases(self) -> Metric:
        family = HistogramMetricFamily(
            "bgremover_phase_seconds", "How long each step of an image takes.", labels=["phase"]
        )
        for name, histogram in self._observed.phases.items():
            buckets = [
                ("+Inf" if bound == float("inf") else str(bound), count)
                for bound, count in histogram.cumulated()
            ]
            family.add_metric([name], buckets, sum_value=histogram.seconds)
        return family

    def _gauges(self) -> Iterator[Metric]:
        now = self._now
        queue = GaugeMetricFamily(
            "bgremover_queue_images", "Images on their way.", labels=["state"]
        )
        for state, count in (
            ("waiting", now.waiting),
            ("in_flight", now.in_flight),
            ("deferred", now.deferred),
        ):
            queue.add_metric([state], count)
        yield queue
        for name, words, value in (
            ("calls_limit", "Calls that may be in flight now.", now.limit),
            ("healthy", "1 while `bgremover health` is content.", not now.ailments),
            ("paused", "1 while the line pauses.", now.pause is not None),
            ("sweep_age_seconds", "Seconds since the inbox was last swept.", now.sweep_age),
            ("oldest_waiting_seconds", "Seconds the oldest image has waited.", now.oldest),
        ):
            yield GaugeMetricFamily(f"bgremover_{name}", words, value=value)
        pause = {now.pause: 1} if now.pause else {}
        yield _labelled("pause", "Why the line pauses.", "reason", pause)
        free = self._observed.free
        yield _labelled("disk_free_bytes", "Room on the disk.", "folder", free)

    def _spending(self) -> Iterator[Metric]:
        spending = self._now.spending
        if spending is None:
            return
        spend = GaugeMetricFamily(
            "bgremover_spend_usd",
            "US dollars, unknown charges included, by the local calendar.",
            labels=["period"],
        )
        for period, usd in (
            ("today", spending.today_usd),
            ("month", spending.month_usd),
            ("total", spending.total_usd),
        ):
            spend.add_metric([period], usd)
        charges = GaugeMetricFamily(
            "bgremover_charges", "Calls in the ledger, by their charge.", labels=["billed"]
        )
        charges.add_metric(["yes"], spending.billed)
        charges.add_metric(["unknown"], spending.unknown)
        yield from (spend, charges)


def _labelled(name: str, words: str, label: str, values: Mapping[str, float | None]) -> Metric:
    family = GaugeMetricFamily(f"bgremover_{name}", words, labels=[label])
    for key, value in values.items():
        if value is not None:
            family.add_metric([key], value)
    return family


def exposition(observed: Observed, snapshot: Snapshot, accept: str) -> tuple[bytes, str]:
    """Return the metrics as text, and its media type.

    Args:
        observed: The counts.
        snapshot: How things stand now.
        accept: The header of that name: classic text or OpenMetrics.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Metrics(observed, snapshot))
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type


# --- the pages -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """Where the pages have what they tell from.

    Args:
        observed: The counts.
        snapshot: Says how things stand, without the money: no disk is asked for it.
        spending: Asks the ledger for the money; None when it does not tell.
        status: Gives what `status --json` shows.
    """

    observed: Observed
    snapshot: Callable[[], Snapshot]
    spending: Callable[[], Awaitable[Spending | None]]
    status: Callable[[], Awaitable[dict[str, Any]]]


def application(source: Source, host: str) -> Starlette:
    """Return the pages.

    Args:
        source: What they tell.
        host: Where is listened; on loopback no other names than its own are answered to.
    """

    async def health(_request: Request) -> Response:
        ill = source.snapshot().ailments
        return _plain("; ".join(ill) or "ok", ill=bool(ill))

    async def ready(_request: Request) -> Response:
        now = source.snapshot()
        why = [*now.ailments, *([f"paused: {now.pause}"] if now.pause else [])]
        return _plain("; ".join(why) or "ok", ill=bool(why))

    async def metrics(request: Request) -> Response:
        accept = request.headers.get("Accept", "")
        spending = await _in_time(source.spending())
        now = replace(source.snapshot(), spending=spending)
        text, media_type = exposition(source.observed, now, accept)
        return Response(text, headers={"Content-Type": media_type, **_FRESH})

    async def status(_request: Request) -> Response:
        try:
            told, code = await source.status(), 200
        except BgremoverError as fault:
            told, code = {"error": fault.message}, _ILL
        text = json.dumps(told, indent=2) + "\n"
        return Response(text, code, media_type="application/json", headers=_FRESH)

    names = list(_OWN_NAMES) if is_loopback(host) else ["*"]
    return Starlette(
        routes=[
            Route("/healthz", health),
            Route("/readyz", ready),
            Route("/metrics", metrics),
            Route("/status", status),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)],
    )


async def _in_time(spending: Awaitable[Spending | None]) -> Spending | None:
    # A disk that hangs is what the rest of the metrics has to tell of.
    try:
        async with asyncio.timeout(_LEDGER_SECONDS):
            return await spending
    except TimeoutError:
        return None


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach what listens on `host`."""
    return host == "localhost" or host.startswith("127.") or host == "::1"


def _plain(words: str, *, ill: bool) -> Response:
    return PlainTextResponse(words + "\n", _ILL if ill else 200, headers=_FRESH)


# --- the server ----------------------------------------------------------------------------


class _QuietServer(Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the daemon."""
        yield


class Web:
    """Listens from `open` to `close`, answers while `run` runs.

    Args:
        address: host:port.
        source: What the pages tell.
    """

    name = "http"

    def __init__(self, address: str, source: Source) -> None:
        self._host, self._port = _parted(address)
        self._source = source
        self._listener: socket.socket | None = None

    def open(self) -> int:
        """Listen, and return the port.

        Raises:
            SetupError: Nobody can listen there.
        """
        self._listener = _listen(self._host, self._port)
        return int(self._listener.getsockname()[1])

    async def run(self) -> None:
        """Answer until cancelled."""
        if self._listener is None:
            raise RuntimeError("nothing is open to answer on")
        config = Config(
            application(self._source, self._host),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=1,
        )
        server = _QuietServer(config)
        # uvicorn closes what it is given; a copy, so that `run` may be called again.
        serving = asyncio.create_task(server.serve(sockets=[self._listener.dup()]))
        try:
            await asyncio.shield(serving)
        finally:
            server.should_exit = server.force_exit = True
            await asyncio.wait({serving})

    def close(self) -> None:
        """Listen no more; may be called more than once."""
        if self._listener is not None:
            self._listener.close()


def try_out(address: str) -> None:
    """Listen on host:port for a moment.

    Raises:
        SetupError: Nobody can listen there.
    """
    _listen(*_parted(address)).close()


def _parted(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
        # asyncio sets it only where the socket's protocol is spelled out, which is not so here.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        raise SetupError(
            f"http.listen: nobody can listen on {host}, port {port}: {error.strerror or error}. "
            "Give another port, or end what listens there."
        ) from error
    return listener
