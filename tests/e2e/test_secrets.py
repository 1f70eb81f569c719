"""The key and the links are nowhere but where they belong; TLS is verified."""

import os
import resource
import ssl
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox
from tests.site import KEY, Site, by_exec, photo, until
from tests.tls import self_signed

SIGNATURE = b"sig="


def holding(root: Path, secret: bytes, *but: Path) -> list[str]:
    """All files below a folder that hold a secret."""
    found = (path for path in root.rglob("*") if path.is_file() and path not in but)
    return sorted(str(path.relative_to(root)) for path in found if secret in path.read_bytes())


@pytest.mark.parametrize("accepted", [True, False])
def test_the_key_is_in_its_file_and_nowhere_else(tmp_path: Path, accepted: bool) -> None:
    dump = tmp_path / "environment"
    script = "import os, sys; open(sys.argv[1], 'a').write(str(dict(os.environ)))"
    hook = [sys.executable, "-c", script, str(dump)]
    options = SandboxOptions(key=KEY if accepted else "another", latency_seconds=0.05)
    with RunningSandbox(options) as sandbox:
        site = Site(
            tmp_path,
            sandbox.url,
            api={"key_file": "./key"},
            log={"level": "debug", "file": "./log.json"},
            notify={"on_saved": hook, "on_quarantined": hook, "on_paused": hook},
        )
        key = tmp_path / "key"
        key.write_text(KEY)
        key.chmod(0o600)
        soft, most = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (most, most))
        with site.running(start=by_exec) as daemon:
            resource.setrlimit(resource.RLIMIT_CORE, (soft, most))
            site.drop("a.jpg", photo(1))
            site.drop("unsafe.jpg", photo(2))
            site.drop("text.jpg", b"I am no picture. " * 20)
            daemon.until_event("image.saved" if accepted else "service.paused")
            daemon.until_event("image.quarantined", 2 if accepted else 1)
            until(lambda: dump.exists() and dump.read_bytes().count(b"NOTICE_EVENT") >= 2)
            process = Path("/proc", str(daemon.popen.pid))
            told_by_ps = (process / "cmdline").read_bytes()
            limits = (process / "limits").read_text()
            assert daemon.end() == 0
    assert KEY.encode() not in told_by_ps
    assert holding(tmp_path, KEY.encode(), key) == []
    # The ledger has links, and is for its owner alone; nothing else has them.
    assert {Path(name).parts[0] for name in holding(tmp_path, SIGNATURE)} <= {"state"}
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4] == "0"


def test_files_are_for_their_owner_or_by_the_umask(tmp_path: Path) -> None:
    with RunningSandbox(SandboxOptions(key=KEY, latency_seconds=0.05)) as sandbox:
        site = Site(tmp_path, sandbox.url, log={"file": "./log.json"})
        before = os.umask(0o002)  # of a share that a group works in
        try:
            with site.running(start=by_exec) as daemon:
                site.drop("a.jpg", photo(1))
                site.drop("text.jpg", b"I am no picture. " * 20)
                daemon.until_event("image.saved")
                daemon.until_event("image.quarantined")
                modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in _all(site)}
                daemon.end()
        finally:
            os.umask(before)
    private = {name: mode for name, mode in modes.items() if name.startswith(("ledger", "lock"))}
    assert private
    assert set(private.values()) == {0o600}
    assert modes["status.sock"] == 0o600
    assert modes["state"] == 0o700
    assert modes["log.json"] == 0o640
    assert modes["a.png"] == 0o664
    assert modes["text.jpg.error.json"] == 0o664
    assert modes["outbox"] == 0o775


def _all(site: Site) -> list[Path]:
    folders = (site.state, site.outbox, site.quarantine, site.root / "log.json")
    return [one for folder in folders for one in (folder, *folder.rglob("*"))]


# --- TLS ------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    return self_signed(tmp_path)


@contextmanager
def over_tls(certificate: tuple[Path, Path]) -> Iterator[tuple[str, list[str]]]:
    """A server that refuses every key; yields its address and the keys it was shown."""
    shown: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            shown.append(self.headers.get("Api-Key", ""))
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            return  # a handshake that was refused

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}", shown
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_certificate_that_nobody_trusts_is_shown_no_key(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    with over_tls(certificate) as (url, shown):
        told = Site(tmp_path, url).command("check", "--online")
    assert shown == []
    assert told.returncode == 69
    assert "certificate" in told.stdout + told.stderr


def test_a_bundle_of_ones_own_is_trusted(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    with over_tls(certificate) as (url, shown):
        site = Site(tmp_path, url, api={"ca_bundle": "./tls.crt"})
        told = site.command("check", "--online")
    assert shown == [KEY]
    assert told.returncode == 78
    assert "api.ca_bundle" in told.stdout
