"""The endpoint: a real server on loopback; the metrics as Prometheus' own parsers read them."""

import asyncio
import json
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from bgremover.core.errors import LocalFault, SetupError
from bgremover.core.job import Picture, Quarantined, Saved
from bgremover.core.observed import PHASES, Observed, Snapshot, Spending
from bgremover.edges.web import Source, Web, exposition, is_loopback
from tests.fakes import a_job, an_attempt

WELL = Snapshot(
    waiting=12,
    in_flight=3,
    deferred=1,
    limit=4,
    pause=None,
    ailments=(),
    sweep_age=17.5,
    sweeps=9,
    missed=2,
    oldest=60.0,
    spending=Spending(0.5, 2.25, 10.0, 900, 3),
)
PAUSED = replace(WELL, pause="payment_required")
ILL = replace(WELL, ailments=("the inbox is lost",))


def observed() -> Observed:
    seen = Observed(free={"outbox": 10**9, "state": None})
    job = a_job(picture=Picture("a" * 64, "JPEG", 9, 9))
    seen.began(job, 0.0, lambda: 0.0)
    seen.ended(job, replace(job, attempts=(an_attempt(),)), "server_failed", 2.0)
    seen.rested(a_job(state=Saved("a.png", "b", 9)))
    seen.rested(a_job(state=Quarantined("empty", "{}")))
    return seen


def samples(text: str) -> dict[str, float]:
    """Every sample as `name{label="value"}`."""
    return {
        name(one.name, one.labels): one.value
        for family in parse_text(text)
        for one in family.samples
    }


def name(of: str, labels: dict[str, str]) -> str:
    inner = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return f"{of}{{{inner}}}" if inner else of


# --- metrics --------------------------------------------------------------------------------


def test_the_metrics_are_what_was_seen() -> None:
    text, media_type = exposition(observed(), WELL, "")
    assert media_type.startswith("text/plain; version=")
    told = samples(text.decode())
    expected = {
        'bgremover_images_total{outcome="saved"}': 1,
        'bgremover_images_total{outcome="reused"}': 0,
        'bgremover_images_total{outcome="quarantined"}': 1,
        'bgremover_quarantined_total{code="empty"}': 1,
        'bgremover_faults_total{code="server_failed"}': 1,
        'bgremover_api_calls_total{outcome="server_failed",status="503"}': 1,
        'bgremover_phase_seconds_count{phase="call"}': 1,
        'bgremover_phase_seconds_sum{phase="call"}': 2.0,
        'bgremover_phase_seconds_bucket{le="1.0",phase="call"}': 0,
        'bgremover_phase_seconds_bucket{le="2.5",phase="call"}': 1,
        'bgremover_phase_seconds_bucket{le="+Inf",phase="call"}': 1,
        'bgremover_queue_images{state="waiting"}': 12,
        'bgremover_queue_images{state="in_flight"}': 3,
        'bgremover_queue_images{state="deferred"}': 1,
        "bgremover_calls_limit": 4,
        "bgremover_healthy": 1,
        "bgremover_paused": 0,
        "bgremover_sweeps_total": 9,
        "bgremover_missed_events_total": 2,
        "bgremover_sweep_age_seconds": 17.5,
        "bgremover_oldest_waiting_seconds": 60,
        'bgremover_disk_free_bytes{folder="outbox"}': 10**9,
        'bgremover_spend_usd{period="today"}': 0.5,
        'bgremover_spend_usd{period="month"}': 2.25,
        'bgremover_spend_usd{period="total"}': 10,
        'bgremover_charges{billed="yes"}': 900,
        'bgremover_charges{billed="unknown"}': 3,
    }
    assert {key: told.get(key) for key in expected} == expected
    assert not any("bgremover_pause{" in key or 'folder="state"' in key for key in told)


def test_a_pause_and_an_ailment_are_metrics() -> None:
    paused = samples(exposition(observed(), PAUSED, "")[0].decode())
    assert paused['bgremover_pause{reason="payment_required"}'] == 1
    assert paused["bgremover_paused"] == 1
    assert paused["bgremover_healthy"] == 1
    assert samples(exposition(observed(), ILL, "")[0].decode())["bgremover_healthy"] == 0


def test_a_ledger_that_does_not_tell_leaves_the_rest() -> None:
    told = samples(exposition(observed(), replace(WELL, spending=None), "")[0].decode())
    assert not any("spend" in key or "charges" in key for key in told)
    assert told["bgremover_calls_limit"] == 4


def test_openmetrics_is_spoken_when_asked_for_and_is_sound() -> None:
    accept = "application/openmetrics-text; version=1.0.0"
    text, media_type = exposition(observed(), WELL, accept)
    assert media_type.startswith("application/openmetrics-text")
    # It is strict: order, units, +Inf, the end of the file.
    families = list(parse_openmetrics(text.decode()))  # type: ignore[no-untyped-call]
    assert {family.name for family in families} >= {"bgremover", "bgremover_phase_seconds"}


def test_the_names_keep_the_rules_that_promtool_checks() -> None:
    for family in parse_text(exposition(observed(), PAUSED, "")[0].decode()):
        assert re.fullmatch(r"bgremover(_[a-z]+)*", family.name)
        assert family.documentation.endswith(".")
        counts = family.type == "counter"
        assert all(one.name.endswith("_total") for one in family.samples) == counts
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


def test_every_phase_is_there_from_the_start() -> None:
    told = samples(exposition(Observed(), WELL, "")[0].decode())
    assert all(told[f'bgremover_phase_seconds_count{{phase="{one}"}}'] == 0 for one in PHASES)


# --- the server -----------------------------------------------------------------------------


def source(snapshot: Snapshot, status: Callable[[], dict[str, Any]] = dict) -> Source:
    async def spending() -> Spending | None:
        return snapshot.spending

    async def document() -> dict[str, Any]:
        return status()

    return Source(observed(), lambda: replace(snapshot, spending=None), spending, document)


def asked(
    snapshot: Snapshot,
    path: str,
    status: Callable[[], dict[str, Any]] = dict,
    method: str = "GET",
    **headers: str,
) -> httpx.Response:
    """Ask a real server for one page."""

    async def scenario() -> httpx.Response:
        web = Web("127.0.0.1:0", source(snapshot, status))
        port = web.open()
        running = asyncio.create_task(web.run())
        try:
            async with httpx.AsyncClient(trust_env=False) as client:
                url = f"http://127.0.0.1:{port}{path}"
                return await client.request(method, url, headers=headers)
        finally:
            running.cancel()
            await asyncio.wait({running})
            web.close()

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("snapshot", "path", "code", "words"),
    [
        (WELL, "/healthz", 200, "ok\n"),
        (WELL, "/readyz", 200, "ok\n"),
        (PAUSED, "/healthz", 200, "ok\n"),
        (PAUSED, "/readyz", 503, "paused: payment_required\n"),
        (ILL, "/healthz", 503, "the inbox is lost\n"),
        (ILL, "/readyz", 503, "the inbox is lost\n"),
    ],
)
def test_health_and_readiness(snapshot: Snapshot, path: str, code: int, words: str) -> None:
    answer = asked(snapshot, path)
    assert (answer.status_code, answer.text) == (code, words)
    assert answer.headers["cache-control"] == "no-store"


def test_metrics_are_served() -> None:
    answer = asked(WELL, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    told = samples(answer.text)
    assert told["bgremover_calls_limit"] == 4
    assert told['bgremover_spend_usd{period="total"}'] == 10


def test_health_does_not_wait_for_a_ledger_that_hangs() -> None:
    async def for_ever() -> Any:  # noqa: ANN401 - it never comes
        await asyncio.Event().wait()

    async def scenario() -> int:
        web = Web("127.0.0.1:0", Source(observed(), lambda: WELL, for_ever, for_ever))
        port = web.open()
        running = asyncio.create_task(web.run())
        async with httpx.AsyncClient(trust_env=False, timeout=2) as client:
            answer = await client.get(f"http://127.0.0.1:{port}/healthz")
        running.cancel()
        await asyncio.wait({running})
        web.close()
        return answer.status_code

    assert asyncio.run(scenario()) == 200


def test_status_is_json() -> None:
    answer = asked(WELL, "/status", lambda: {"state": "running"})
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.text) == {"state": "running"}


def test_a_status_that_cannot_be_told_says_why() -> None:
    def broken() -> dict[str, Any]:
        raise LocalFault("the disk failed")

    answer = asked(WELL, "/status", broken)
    assert (answer.status_code, answer.json()) == (503, {"error": "the disk failed"})


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed(method: str) -> None:
    assert asked(WELL, "/status", method=method).status_code == 405


def test_a_page_under_another_name_cannot_read_along() -> None:
    assert asked(WELL, "/status", Host="evil.example").status_code == 400
    assert asked(WELL, "/healthz", Host="localhost:9464").status_code == 200


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],  # noqa: S104 - a table
)
def test_where_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


def test_a_port_that_is_taken_is_said_with_a_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match=rf"http\.listen.*port {port}: .*in use.*another port"):
            Web(f"127.0.0.1:{port}", source(WELL)).open()


def test_it_answers_again_after_it_was_ended() -> None:
    async def scenario() -> None:
        web = Web("127.0.0.1:0", source(WELL))
        port = web.open()
        for _ in range(2):
            running = asyncio.create_task(web.run())
            async with httpx.AsyncClient(trust_env=False) as client:
                answer = await client.get(f"http://127.0.0.1:{port}/healthz")
            assert answer.status_code == 200
            running.cancel()
            await asyncio.wait({running})
        web.close()

    asyncio.run(scenario())
