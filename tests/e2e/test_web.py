"""The endpoint beside the real daemon."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox
from tests.edges.test_web import samples
from tests.site import KEY, Site, photo, until


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with RunningSandbox(SandboxOptions(key=KEY, latency_seconds=0.05)) as running:
        yield running


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def test_the_pages_tell_what_the_daemon_does(tmp_path: Path, sandbox: RunningSandbox) -> None:
    port = free_port()
    site = Site(tmp_path, sandbox.url, http={"listen": str(port)})
    with (
        site.running() as daemon,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):
        daemon.until_event("daemon.ready")
        assert client.get("/healthz").text == "ok\n"
        site.drop("shoes/a.jpg", photo(1))
        site.drop("text.jpg", b"I am no picture. " * 20)
        daemon.until_event("image.saved")
        daemon.until_event("image.quarantined")
        until(lambda: client.get("/status").json()["totals"]["quarantined"] == 1)
        told = samples(client.get("/metrics").text)
        assert told['bgremover_images_total{outcome="saved"}'] == 1
        assert told['bgremover_quarantined_total{code="not_an_image"}'] == 1
        assert told['bgremover_api_calls_total{outcome="paid",status="200"}'] == 1
        assert told['bgremover_spend_usd{period="total"}'] == 0.01
        assert told['bgremover_charges{billed="yes"}'] == 1
        assert told['bgremover_phase_seconds_count{phase="call"}'] == 1
        assert told['bgremover_disk_free_bytes{folder="outbox"}'] > 0
        assert told["bgremover_sweeps_total"] >= 1
        for phase in ("inspect", "call", "fetch", "publish", "file"):
            assert told[f'bgremover_phase_seconds_count{{phase="{phase}"}}'] >= 1
        page = client.get("/status")
        document = site.command("status", "--json").stdout
        assert page.text == document
        assert KEY not in page.text + client.get("/metrics").text
        checked = site.command("check")  # the address is taken, but by the daemon itself
        assert checked.returncode == 0, checked.stdout
        assert daemon.end() == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False)


def test_a_pause_is_not_ready_but_well_and_a_lost_inbox_is_ill(tmp_path: Path) -> None:
    port = free_port()
    with RunningSandbox(SandboxOptions(key="another-key")) as sandbox:
        site = Site(tmp_path, sandbox.url, http={"listen": str(port)})
        with (
            site.running() as daemon,
            httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
        ):
            site.drop("a.jpg", photo())
            daemon.until_event("service.paused")
            assert client.get("/healthz").status_code == 200
            assert client.get("/readyz").status_code == 503
            told = samples(client.get("/metrics").text)
            assert told['bgremover_pause{reason="key_refused"}'] == 1
            site.inbox.rename(tmp_path / "elsewhere")
            until(lambda: client.get("/healthz").status_code == 503)
            assert "the inbox is lost" in client.get("/healthz").text


def test_a_port_that_is_taken_ends_the_start_with_78(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        site = Site(tmp_path, sandbox.url, http={"listen": str(taken.getsockname()[1])})
        told, checked = site.command("run"), site.command("check")
    assert told.returncode == checked.returncode == 78
    for words in (told.stderr, checked.stdout):
        assert "http.listen: nobody can listen on 127.0.0.1" in words


def test_without_an_address_no_web_server_is_imported() -> None:
    slow = {"uvicorn", "starlette", "prometheus_client", "apprise"}
    program = f"import sys, bgremover.wiring; print(sorted({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == b"[]\n"


def test_the_endpoint_moves_with_the_settings(tmp_path: Path, sandbox: RunningSandbox) -> None:
    ports = free_port(), free_port()
    site = Site(tmp_path, sandbox.url, http={"listen": str(ports[0])})
    with site.running() as daemon, httpx.Client(trust_env=False) as client:
        daemon.until_event("daemon.ready")
        assert client.get(f"http://127.0.0.1:{ports[0]}/healthz").text == "ok\n"
        text = site.config.read_text().replace(str(ports[0]), str(ports[1]))
        site.config.write_text(text)
        daemon.send(signal.SIGHUP)
        daemon.until_event("daemon.ready", 2)
        assert client.get(f"http://127.0.0.1:{ports[1]}/healthz").text == "ok\n"
        with pytest.raises(httpx.ConnectError):
            client.get(f"http://127.0.0.1:{ports[0]}/healthz")
        assert daemon.end() == 0
