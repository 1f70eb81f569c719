"""The real daemon, a real inbox, the stand-in for the API as the judge of what was paid."""

import hashlib
import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from bgremover.affinity import GIVEN
from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox
from tests.cores import cores_of, share_a_core
from tests.site import KEY, Site, by_exec, photo, until


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with RunningSandbox(SandboxOptions(key=KEY, latency_seconds=0.05)) as running:
        yield running


def is_cut_out(path: Path) -> bool:
    with Image.open(path) as image:
        image.load()
        return image.format == "PNG" and image.getchannel("A").getextrema() == (0, 255)


def test_an_image_comes_back_cut_out_and_its_original_is_archived(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url)
    with site.running(start=by_exec) as daemon:
        daemon.until_event("daemon.ready")
        original = photo()
        site.drop("shoes/IMG_1.jpg", original)
        daemon.until_event("image.saved")
        assert daemon.end() == 0
    assert is_cut_out(site.outbox / "shoes/IMG_1.png")
    assert (site.archive / "shoes/IMG_1.jpg").read_bytes() == original
    assert site.files(site.inbox) == set()
    assert len(sandbox.state.payments) == 1
    (saved,) = daemon.events("image.saved")
    assert saved["file"] == "shoes/IMG_1.jpg"
    assert saved["output"] == "shoes/IMG_1.png"
    assert saved["usd"] == 0.01
    assert saved["attempts"] == 1
    assert saved["bytes_in"] == len(original)
    assert saved["request_id"] == sandbox.state.payments[0].request_id


def mixed(site: Site) -> dict[str, str]:
    """Fill an inbox; return the name of each file that must fail, with its code."""
    for number in range(8):
        site.drop(f"batch/{number % 3}/good-{number}.jpg", photo(number))
    site.drop("same-1.jpg", photo(500))
    site.drop("same-2.jpg", photo(500))
    site.drop("twin.jpg", photo(501))
    site.drop("twin.png", photo(502, "PNG"))
    site.drop("web.webp", photo(503, "WEBP"))
    site.drop("really-a-png.jpg", photo(504, "PNG"))
    site.drop("unsafe.jpg", photo(505))
    site.drop("text.jpg", b"I am no picture. " * 20)
    site.drop("empty.jpg", b"")
    site.drop("cut.jpg", photo(506, size=(400, 300))[:2000])
    site.drop("animated.gif", animation("GIF"))
    site.drop("animated.webp", animation("WEBP"))
    return {
        "unsafe.jpg": "unsafe",
        "text.jpg": "not_an_image",
        "empty.jpg": "empty",
        "cut.jpg": "truncated",
        "animated.gif": "animated",
        "animated.webp": "animated",
    }


def animation(kind: str) -> bytes:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=100)
    return buffer.getvalue()


def digests(folder: Path) -> list[str]:
    return sorted(
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".error.json")
    )


def test_a_mixed_inbox_survives_sigterm_and_sigkill_and_nothing_is_paid_twice(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url, watch={"incomplete_minutes": 0.02}, queue={"workers": 3})
    failing = mixed(site)
    dropped = digests(site.inbox)
    kills = 0
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        with site.running(start=by_exec) as daemon:
            daemon.until_event("image.saved")
            daemon.end(number)
            kills += number == signal.SIGKILL
            assert number == signal.SIGKILL or daemon.popen.returncode == 0
    with site.running() as daemon:
        daemon.until_event("daemon.ready")
        until(lambda: site.files(site.inbox) == set(), 40)
        assert daemon.end() == 0
    reports = {
        report.name.removesuffix(".error.json"): json.loads(report.read_text())
        for report in site.quarantine.rglob("*.error.json")
    }
    assert {name: report["code"] for name, report in reports.items()} == failing
    assert len(site.files(site.outbox)) == 14
    assert all(is_cut_out(site.outbox / name) for name in site.files(site.outbox))
    assert {"twin.png", "twin-2.png"} <= site.files(site.outbox)
    assert sorted(digests(site.archive) + digests(site.quarantine)) == dropped
    paid = [payment.sha256 for payment in sandbox.state.payments]
    assert len(set(paid)) == 13
    assert len(paid) - len(set(paid)) <= 3 * kills


def test_what_is_no_regular_file_is_left_alone_with_one_word(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url)
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(photo(9))
    os.mkfifo(site.inbox / "fifo.jpg")
    (site.inbox / "link.jpg").symlink_to(outside)
    (site.inbox / "folder.jpg").mkdir()
    site.drop("folder.jpg/inside.jpg", photo(10))
    site.drop(".hidden.jpg", photo(11))
    site.drop("@eaDir/thumb.jpg", photo(12))
    site.drop("upload.jpg.part", photo(13))
    with site.running() as daemon:
        daemon.until_event("image.saved")
        assert daemon.end() == 0
        told = sorted(line["file"] for line in daemon.events("image.ignored"))
    assert told == ["fifo.jpg", "folder.jpg", "link.jpg"]
    assert site.files(site.outbox) == {"folder.jpg/inside.png"}
    assert len(sandbox.state.payments) == 1
    assert outside.exists()
    assert (site.inbox / "link.jpg").is_symlink()
    assert (site.inbox / "upload.jpg.part").exists()


@pytest.mark.parametrize(
    "name", ["new\nline.jpg", "ünï😀.jpg", "-rf.jpg", "a" * 251 + ".jpg", "caf\udce9.jpg", "x"]
)
def test_odd_names_are_cut_out_like_all_others(
    tmp_path: Path, sandbox: RunningSandbox, name: str
) -> None:
    site = Site(tmp_path, sandbox.url)
    site.drop(name, photo())
    site.drop("odd/" + name[:40], b"no picture")
    with site.running() as daemon:
        daemon.until_event("image.saved")
        daemon.until_event("image.quarantined")
        until(lambda: site.files(site.inbox) == set())
        assert daemon.end() == 0
    assert site.files(site.archive) == {name}
    assert len(site.files(site.outbox)) == 1
    assert len(site.files(site.quarantine)) == 2


def test_no_line_and_no_file_holds_the_key_or_a_signed_link(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url, log={"level": "debug"})
    site.drop("good.jpg", photo())
    site.drop("unsafe.jpg", photo(2))
    with site.running(start=by_exec) as daemon:
        daemon.until_event("image.saved")
        daemon.until_event("image.quarantined")
        until(lambda: site.files(site.inbox) == set())
        arguments = Path(f"/proc/{daemon.popen.pid}/cmdline").read_bytes()
        assert daemon.end() == 0
    text = (tmp_path / "log").read_text()
    text += "".join(path.read_text() for path in site.quarantine.glob("*.json"))
    assert KEY not in text + arguments.decode()
    assert "sig=" not in text
    assert (site.state / "ledger.sqlite3").stat().st_mode & 0o077 == 0


def test_a_second_instance_is_refused(tmp_path: Path, sandbox: RunningSandbox) -> None:
    site = Site(tmp_path, sandbox.url)
    with site.running() as daemon:
        daemon.until_event("daemon.ready")
        second = site.command("run")
        assert second.returncode == 75, second.stderr
        assert str(daemon.popen.pid) in second.stderr
        assert daemon.end() == 0


def test_status_and_health_look_at_the_running_daemon(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url)
    assert site.command("health").returncode == 1
    with site.running() as daemon:
        site.drop("good.jpg", photo())
        daemon.until_event("image.saved")
        assert site.command("health").returncode == 0
        status = json.loads(site.command("status", "--json").stdout)
        assert daemon.end() == 0
    assert status["state"] == "running"
    assert status["totals"] == {"saved": 1, "reused": 0, "quarantined": 0}
    assert status["spend"]["total_usd"] == 0.01
    assert json.loads(site.command("status", "--json").stdout)["state"] == "stopped"


@pytest.mark.parametrize("hang_up", [True, False])
def test_a_new_key_in_its_file_ends_the_pause(
    tmp_path: Path, sandbox: RunningSandbox, hang_up: bool
) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("wrong\n")
    key_file.chmod(0o600)
    site = Site(tmp_path / "site", sandbox.url, api={"key_file": str(key_file)})
    site.drop("good.jpg", photo())
    with site.running() as daemon:
        daemon.until_event("service.paused")
        (paused,) = daemon.events("service.paused")
        assert paused["reason"] == "key_refused"
        status = json.loads(site.command("status", "--json").stdout)
        assert status["state"] == "paused"
        assert status["pause"]["reason"] == "key_refused"
        key_file.write_text(KEY + "\n")
        if hang_up:
            daemon.send(signal.SIGHUP)
        daemon.until_event("image.saved")
        daemon.until_event("service.resumed")
        assert daemon.end() == 0
    assert site.files(site.quarantine) == set()


def test_a_file_that_is_cut_off_is_waited_for_and_leaves_nothing_in_the_ledger(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url)
    whole = photo(size=(400, 300))
    path = site.drop("slow.jpg", whole[: len(whole) // 2])
    with site.running() as daemon:
        daemon.until_event("image.claimed", 2)
        assert sandbox.state.submissions == 0
        daemon.end(signal.SIGKILL)
    with site.running() as daemon:
        daemon.until_event("image.claimed")
        assert daemon.events("image.quarantined") == []
        with path.open("ab") as more:
            more.write(whole[len(whole) // 2 :])
        daemon.until_event("image.saved")
        assert daemon.end() == 0
        # Bytes that come while it is looked at are a change, and nothing else lets go of it.
        assert {line["why"] for line in daemon.events("image.released")} <= {"replaced"}
    assert site.files(site.archive) == {"slow.jpg"}
    assert len(sandbox.state.payments) == 1


# --- processor cores ------------------------------------------------------------------------


@pytest.mark.skipif(len(GIVEN) < 2, reason="needs two processor cores")
def test_its_threads_share_a_core_and_its_commands_have_all(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    told = tmp_path / "told"
    code = f"import os; open({str(told)!r}, 'w').write(str(sorted(os.sched_getaffinity(0))))"
    command = [sys.executable, "-c", code]
    site = Site(tmp_path / "site", sandbox.url, notify={"on_saved": command})
    site.drop("a.jpg", photo())
    with site.running() as daemon:
        daemon.until_event("image.saved")
        until(lambda: told.exists() and told.read_text().endswith("]"))
        until(lambda: share_a_core(daemon.popen.pid))
        assert daemon.end() == 0
    assert told.read_text() == str(sorted(GIVEN))


def test_its_threads_run_where_the_system_puts_them_if_that_is_asked_for(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url, queue={"share_core": False})
    site.drop("a.jpg", photo())
    with site.running() as daemon:
        daemon.until_event("image.saved")
        assert all(cores == GIVEN for cores in cores_of(daemon.popen.pid))
        assert daemon.end() == 0
