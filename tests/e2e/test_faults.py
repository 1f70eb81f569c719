"""The machine fails: the disk is full, broken, read-only or gone; the program dies on one image.

Needs Linux; what else each test needs is said where it is skipped.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox
from tests.site import KEY, Site, photo, until

STRACE = shutil.which("strace")
needs_strace = pytest.mark.skipif(STRACE is None, reason="needs strace (apt-get install strace)")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")


def under_strace(site: Site, inject: str, *paths: Path) -> subprocess.CompletedProcess[bytes]:
    assert STRACE is not None
    call = inject.partition(":")[0]
    options = ["-e", f"trace={call}", "-e", f"inject={inject}"]
    for path in paths:
        options += ["-P", str(path)]
    return subprocess.run(
        [
            *(STRACE, "-f", "-qq", "-o", "/dev/null", *options),
            *(os.path.realpath(sys.executable), "-m", "bgremover", "once"),
        ],
        cwd=site.root,
        env={**site.environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with RunningSandbox(SandboxOptions(key=KEY, fixed_result=True)) as running:
        yield running


# --- one image kills the program -----------------------------------------------------------


@needs_strace
def test_an_image_that_kills_the_program_three_times_is_quarantined(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url)
    path = site.drop("poison.jpg", photo(1))
    for _ in range(3):
        killed = under_strace(site, "read:signal=KILL:when=3", path)
        assert killed.returncode != 0
        assert path.exists()
    done = site.command("once")
    assert done.returncode == 1, done.stderr
    report = json.loads((site.quarantine / "poison.jpg.error.json").read_text())
    assert report["code"] == "crash_loop"
    assert report["billed"] == "no"
    assert sandbox.state.submissions == 0


@needs_strace
def test_the_others_do_not_share_the_blame(tmp_path: Path) -> None:
    """What was in flight at a death is worked on alone afterwards."""
    with RunningSandbox(SandboxOptions(key=KEY, fixed_result=True, latency_seconds=0.3)) as sandbox:
        site = Site(tmp_path, sandbox.url, queue={"workers": 4})
        for number in range(8):
            site.drop(f"good-{number}.jpg", photo(number))
        poison = site.drop("m-poison.jpg", photo(100))
        deaths = 0
        while (done := under_strace(site, "read:signal=KILL:when=3", poison)).returncode < 0:
            deaths += 1
        assert done.returncode == 1, done.stderr
        assert deaths == 3
        assert site.files(site.quarantine) == {"m-poison.jpg", "m-poison.jpg.error.json"}
        assert len(site.files(site.outbox)) == len(site.files(site.archive)) == 8


# --- every error of every call -------------------------------------------------------------

ERRNOS = ("EIO", "ENOSPC", "EROFS", "EDQUOT", "EACCES", "ESTALE", "EMFILE", "EINTR")
CALLS = ("fsync", "renameat2", "rename", "mkdir", "unlink", "pwrite64", "ftruncate", "openat")
SHORT = [("fsync", "EIO"), ("pwrite64", "ENOSPC"), ("renameat2", "EROFS"), ("openat", "EMFILE")]


def inject_everywhere(tmp_path: Path, call: str, error: str, step: int) -> int:
    """Let each `step`-th matching call fail, in a run each; return how many did."""
    points = 0
    for number in range(1, 40, step):
        with RunningSandbox(SandboxOptions(key=KEY, fixed_result=True)) as sandbox:
            site = Site(tmp_path / f"{call}-{error}-{number}", sandbox.url)
            data = photo(number)
            site.drop("sub/one.jpg", data)
            for folder in (site.outbox, site.archive, site.state):
                folder.mkdir(exist_ok=True)
            # Of all that is opened, only what lies in the folders: not the program itself.
            opened = (site.inbox, site.outbox / "sub", site.archive / "sub", site.state)
            inject = f"{call}:error={error}:when={number}"
            done = under_strace(site, inject, *(opened if call == "openat" else ()))
            clean = done.returncode == 0 and b'level": "warning' not in done.stderr
            check(site, data, sandbox, f"{inject}\n{done.stderr.decode()[-2000:]}")
            if clean:
                break
            points += 1
        shutil.rmtree(site.root)
    return points


def check(site: Site, data: bytes, sandbox: RunningSandbox, told: str) -> None:
    """Nothing lost after the fault; and without it the next run ends well, paid for once."""
    found = [path for path in site.root.rglob("*") if path.is_file() and path.suffix == ".jpg"]
    hidden = list(site.inbox.rglob(".bgremover-*"))
    assert any(path.read_bytes() == data for path in (*found, *hidden)), told
    again = site.command("once")
    assert again.returncode == 0, told + again.stdout + again.stderr
    assert site.files(site.archive) == {"sub/one.jpg"}, told
    assert len(site.files(site.outbox)) == 1, told
    sums = [payment.sha256 for payment in sandbox.state.payments]
    assert sums == [hashlib.sha256(data).hexdigest()], told


@needs_strace
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("call", "error"), SHORT)
def test_a_call_that_fails_loses_nothing_and_costs_nothing(
    tmp_path: Path, call: str, error: str
) -> None:
    assert inject_everywhere(tmp_path, call, error, step=6) >= 1


@pytest.mark.long
@needs_strace
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("error", ERRNOS)
@pytest.mark.parametrize("call", CALLS)
def test_every_call_with_every_error(tmp_path: Path, call: str, error: str) -> None:
    inject_everywhere(tmp_path, call, error, step=1)


# --- real disks ----------------------------------------------------------------------------


@contextmanager
def mounted(what: list[str], where: Path) -> Iterator[None]:
    where.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *what, str(where)], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"needs to mount {what[-1]}: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


@needs_root
def test_a_full_disk_pauses_before_anything_is_paid(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url)
    with mounted(["-t", "tmpfs", "-o", "size=1m", "tmpfs"], site.outbox):
        (site.outbox / "filling").write_bytes(bytes(900_000))
        site.drop("one.jpg", photo(1))
        with site.running() as daemon:
            daemon.until_event("service.paused")
            assert daemon.events("service.paused")[0]["reason"] == "disk_full"
            assert sandbox.state.submissions == 0
            (site.outbox / "filling").unlink()
            subprocess.run(["mount", "-o", "remount,size=9m", str(site.outbox)], check=True)
            daemon.until_event("image.saved")
            assert daemon.end() == 0
        assert site.files(site.outbox) == {"one.png"}
    assert len(sandbox.state.payments) == 1


@needs_root
def test_an_outbox_that_becomes_read_only_keeps_what_was_paid_for(tmp_path: Path) -> None:
    with RunningSandbox(SandboxOptions(key=KEY, latency_seconds=1.0)) as sandbox:
        site = Site(tmp_path, sandbox.url)
        with mounted(["-t", "tmpfs", "-o", "size=9m", "tmpfs"], site.outbox):
            site.drop("one.jpg", photo(1))
            with site.running() as daemon:
                daemon.until_event("image.submitted")
                subprocess.run(["mount", "-o", "remount,ro", str(site.outbox)], check=True)
                daemon.until_event("service.paused")
                assert daemon.events("service.paused")[0]["reason"] == "read_only"
                subprocess.run(["mount", "-o", "remount,rw", str(site.outbox)], check=True)
                daemon.until_event("image.saved")
                daemon.until_event("service.resumed")
                assert daemon.end() == 0
        assert len(sandbox.state.payments) == 1


def test_an_inbox_that_goes_away_pauses_and_comes_back(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url)
    with site.running() as daemon:
        daemon.until_event("daemon.ready")
        away = tmp_path / "away"
        site.inbox.rename(away)
        daemon.until_event("watch.lost")
        (away / "one.jpg").write_bytes(photo(1))
        away.rename(site.inbox)
        daemon.until_event("watch.restored")
        daemon.until_event("image.saved")
        site.drop("two.jpg", photo(2))
        daemon.until_event("image.saved", 2)
        assert daemon.end() == 0
    assert len(sandbox.state.payments) == 2


# --- power cuts ----------------------------------------------------------------------------

SHUTDOWN = """
import fcntl, os, struct, sys
folder = os.open(sys.argv[1], os.O_RDONLY)
fcntl.ioctl(folder, 0x8004587D, struct.pack("I", 2))  # EXT4_IOC_SHUTDOWN, without flushing the log
"""


def cut_the_power(disk: Path) -> None:
    subprocess.run([sys.executable, "-c", SHUTDOWN, str(disk)], check=True)


def power_cuts(tmp_path: Path, cuts: int, files: int) -> None:
    image, disk = tmp_path / "disk.img", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(128 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(image)], check=True)
    options = SandboxOptions(key=KEY, fixed_result=True, latency_seconds=0.02)
    dropped: set[str] = set()
    promised: dict[str, int] = {}
    with RunningSandbox(options) as sandbox:
        for cut in range(cuts + 1):
            with mounted(["-o", "loop", str(image)], disk):
                site = Site(disk / "site", sandbox.url)
                if cut == 0:
                    for number in range(files):
                        data = photo(number)
                        site.drop(f"{number:03}.jpg", data)
                        dropped.add(hashlib.sha256(data).hexdigest())
                    os.sync()
                kept_promises(site, promised)
                with site.running(log=str(tmp_path / f"log-{cut}")) as daemon:
                    daemon.until_event("daemon.ready")
                    if cut == cuts:
                        until(partial(emptied, site), 60)
                        assert daemon.end() == 0
                        check_all(site, sandbox, dropped, cuts)
                    else:
                        daemon.until_event("image.saved", 3)
                        cut_the_power(disk)
                        for line in daemon.events("image.saved"):
                            promised[line["output"]] = line["bytes_out"]


def emptied(site: Site) -> bool:
    return not site.files(site.inbox)


def kept_promises(site: Site, promised: dict[str, int]) -> None:
    """What was told to be saved is there, whole."""
    for output, size in promised.items():
        assert (site.outbox / output).stat().st_size == size, output


def check_all(site: Site, sandbox: RunningSandbox, dropped: set[str], cuts: int) -> None:
    originals = [path for path in site.archive.rglob("*") if path.is_file()]
    failed = list(site.quarantine.rglob("*.jpg"))
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (*originals, *failed)]
    assert sorted(sums) == sorted(dropped)
    assert len(site.files(site.outbox)) == len(originals)
    paid = [payment.sha256 for payment in sandbox.state.payments]
    assert len(paid) - len(set(paid)) <= 4 * cuts


@needs_root
@pytest.mark.timeout(300)
def test_the_power_is_cut(tmp_path: Path) -> None:
    power_cuts(tmp_path, cuts=3, files=40)


@pytest.mark.long
@needs_root
@pytest.mark.timeout(3600)
def test_the_power_is_cut_a_hundred_times(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / str(number)).mkdir()
        power_cuts(tmp_path / str(number), cuts=10, files=100)
