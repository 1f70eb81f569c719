"""Files that change and go while they are under way, folders with terms of their own, a soak."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox
from tests.apart import NOBODY, open_to_all
from tests.arrivals import all_came_back, digest, images, noise, reading
from tests.site import KEY, Process, Site, photo, until

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
EVENTS_ONLY = {"rescan_seconds": 300}


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    options = SandboxOptions(key=KEY, latency_seconds=0.05, fixed_result=True)
    with RunningSandbox(options) as running:
        yield running


@pytest.fixture
def slow() -> Iterator[RunningSandbox]:
    options = SandboxOptions(key=KEY, latency_seconds=1.5, fixed_result=True)
    with RunningSandbox(options) as running:
        yield running


def paid(sandbox: RunningSandbox) -> list[str]:
    return sorted(payment.sha256 for payment in sandbox.state.payments)


# --- while a call is in flight --------------------------------------------------------------


def test_an_original_that_is_replaced_in_flight_loses_neither(
    tmp_path: Path, slow: RunningSandbox
) -> None:
    site = Site(tmp_path, slow.url)
    with site.running() as daemon, reading(site.outbox):
        site.drop("a.jpg", photo(1))
        daemon.until_event("image.submitted")
        site.drop("a.jpg", photo(2))
        daemon.until_event("image.saved", 2)
        until(lambda: not images(site))
        assert daemon.end() == 0
    assert site.files(site.outbox) == {"a.png", "a-2.png"}
    assert (site.archive / "a.jpg").read_bytes() == photo(2)
    assert paid(slow) == sorted([digest(photo(1)), digest(photo(2))])


def test_an_original_that_is_deleted_in_flight_still_comes_back(
    tmp_path: Path, slow: RunningSandbox
) -> None:
    site = Site(tmp_path, slow.url)
    with site.running() as daemon, reading(site.outbox):
        path = site.drop("a.jpg", photo(1))
        daemon.until_event("image.submitted")
        path.unlink()
        daemon.until_event("image.saved")
        assert daemon.end() == 0
    assert site.files(site.outbox) == {"a.png"}
    assert len(paid(slow)) == 1


def test_the_same_bytes_dropped_in_flight_and_afterwards_are_paid_for_once(
    tmp_path: Path, slow: RunningSandbox
) -> None:
    site = Site(tmp_path, slow.url)
    with site.running() as daemon, reading(site.outbox):
        site.drop("a.jpg", photo(1))
        daemon.until_event("image.submitted")
        site.drop("twin.jpg", photo(1))
        daemon.until_event("image.saved")
        daemon.until_event("image.reused")
        site.drop("a.jpg", photo(1))
        daemon.until_event("image.reused", 2)
        until(lambda: not images(site))
        assert daemon.end() == 0
    assert len(paid(slow)) == 1
    assert len(site.files(site.archive)) == 3


def test_an_original_that_grows_in_flight_is_cut_out_anew(
    tmp_path: Path, slow: RunningSandbox
) -> None:
    site = Site(tmp_path, slow.url)
    with site.running() as daemon, reading(site.outbox):
        path = site.drop("a.jpg", photo(1))
        daemon.until_event("image.submitted")
        with path.open("ab") as writer:
            writer.write(photo(2))  # a picture with something behind its end is one still
        until(lambda: not images(site))
        assert daemon.end() == 0
    grown = photo(1) + photo(2)
    assert (site.archive / "a.jpg").read_bytes() == grown
    # Seen while it is sent, the call is broken off; seen afterwards, both are cut out.
    assert paid(slow) in ([digest(grown)], sorted([digest(photo(1)), digest(grown)]))
    assert len(site.files(site.outbox)) == len(paid(slow))


# --- odd files ------------------------------------------------------------------------------


def test_a_hard_link_costs_the_other_name_nothing(tmp_path: Path, sandbox: RunningSandbox) -> None:
    site = Site(tmp_path, sandbox.url, originals="delete")
    other = tmp_path / "album.jpg"
    other.write_bytes(photo(1))
    with site.running() as daemon:
        daemon.until_event("daemon.ready")
        os.link(other, site.inbox / "a.jpg")
        daemon.until_event("image.saved")
        until(lambda: not images(site))
        assert daemon.end() == 0
    assert other.read_bytes() == photo(1)


def test_folders_forty_levels_deep_mirror_into_the_outbox(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url, watch=EVENTS_ONLY)
    deep = "/".join(f"level-{number}" for number in range(40))
    with site.running() as daemon, reading(site.outbox):
        daemon.until_event("daemon.ready")
        site.drop(f"{deep}/a.jpg", photo(1))
        all_came_back(site, sandbox, {f"{deep}/a.jpg": photo(1)})
        assert daemon.end() == 0
    assert site.files(site.outbox) == {f"{deep}/a.png"}


@needs_root
def test_a_file_that_may_not_be_read_waits_and_is_told_with_uid_and_gid(
    sandbox: RunningSandbox,
) -> None:
    with open_to_all() as place:
        site = Site(place, sandbox.url)
        for folder in (site.inbox, site.state, site.outbox, site.quarantine, site.archive):
            folder.mkdir(exist_ok=True)
            os.chown(folder, NOBODY, NOBODY)
        path = site.drop("a.jpg", photo(1))
        path.chmod(0)
        as_nobody = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
        with (place / "log").open("wb") as log:
            popen = subprocess.Popen(
                [*as_nobody, sys.executable, "-m", "bgremover", "run"],
                cwd=place,
                env=site.environment,
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        daemon = Process(popen, place / "log")
        try:
            daemon.until_event("image.released")
            (line,) = daemon.events("image.released")
            assert (line["level"], line["why"]) == ("warning", "blocked")
            assert f"may not be read by uid {NOBODY} gid {NOBODY}" in line["message"]
            assert (site.files(site.quarantine), paid(sandbox)) == (set(), [])
            os.chown(path, NOBODY, NOBODY)
            path.chmod(0o600)
            daemon.until_event("image.saved")
        finally:
            daemon.end()


@needs_root
def test_names_that_differ_only_in_case_where_case_does_not_count(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url)
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    made = ["mke2fs", "-q", "-t", "ext4", "-O", "casefold", "-E", "encoding=utf8", str(image)]
    subprocess.run(made, check=True)
    site.outbox.mkdir()
    mounting = ["mount", "-o", "loop", str(image), str(site.outbox)]
    if subprocess.run(mounting, check=False, capture_output=True).returncode:
        pytest.skip("needs a kernel that mounts file systems without regard to case")
    try:
        shutil.rmtree(site.outbox / "lost+found")
        subprocess.run(["chattr", "+F", str(site.outbox)], check=True)
        site.drop("A.jpg", photo(1))
        site.drop("a.jpg", photo(2))
        with site.running() as daemon:
            daemon.until_event("image.saved", 2)
            assert daemon.end() == 0
        assert len(site.files(site.outbox)) == 2
    finally:
        subprocess.run(["umount", "-l", str(site.outbox)], check=True)


# --- what folders have of their own ---------------------------------------------------------


def test_folders_decide_what_becomes_of_their_originals(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url, watch=EVENTS_ONLY)
    site.drop("keep/.bgremover.yaml", b"originals: keep")
    site.drop("keep/gone/.bgremover.yaml", b"originals: delete")
    site.drop("bad/.bgremover.yaml", b"originals: shred\nqueue: {workers: 9}")
    names = ("a.jpg", "keep/a.jpg", "keep/gone/a.jpg", "bad/a.jpg")
    with site.running() as daemon, reading(site.outbox):
        daemon.until_event("daemon.ready")
        for number, name in enumerate(names):
            site.drop(name, photo(number))
        daemon.until_event("image.saved", 3)
        until(lambda: images(site) == {"keep/a.jpg", "bad/a.jpg"})
        assert site.files(site.archive) == {"a.jpg"}
        (line,) = daemon.events("image.ignored")
        assert line["file"] == "bad/.bgremover.yaml"
        assert "shred will not do" in line["why"]
        assert "queue.workers (line 2): holds for the whole inbox" in line["why"]
        site.drop("bad/.bgremover.yaml", b"watch: {ignore: ['*.png']}")
        daemon.until_event("image.saved", 4)
        assert daemon.events("image.reused") == []  # what is kept is left alone
        assert daemon.end() == 0
    with site.running(log="log-2") as daemon:
        daemon.until_event("daemon.ready")
        site.drop("b.jpg", photo(9))
        daemon.until_event("image.saved")
        assert len(daemon.events("image.claimed")) == 1  # what is kept is not looked at again
        site.drop("keep/.bgremover.yaml", b"originals: archive")
        assert daemon.end() == 0
    assert images(site) == {"keep/a.jpg"}
    with site.running(log="log-3") as daemon:
        daemon.until_event("image.reused")  # it is kept no more
        until(lambda: images(site) == set())
        assert daemon.end() == 0
    assert len(paid(sandbox)) == 5


# --- the share goes away --------------------------------------------------------------------


@needs_root
def test_a_mount_that_goes_pauses_and_nothing_is_paid_again_when_it_returns(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url, watch={"marker": ".here", **EVENTS_ONLY})
    share = tmp_path / "share"
    share.mkdir()
    (share / ".here").touch()
    bind = ["mount", "--bind", str(share), str(site.inbox)]
    if subprocess.run(bind, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        with site.running() as daemon, reading(site.outbox):
            daemon.until_event("daemon.ready")
            (share / "before.jpg").write_bytes(photo(1))
            daemon.until_event("image.saved")
            subprocess.run(["umount", "-l", str(site.inbox)], check=True)
            daemon.until_event("watch.lost")
            (site.inbox / "stray.jpg").write_bytes(photo(9))  # below the mount point
            (share / "meanwhile.jpg").write_bytes(photo(2))
            subprocess.run(bind, check=True)
            began = time.monotonic()
            daemon.until_event("watch.restored")
            assert time.monotonic() - began < 10
            daemon.until_event("image.saved", 2)
            (share / "after.jpg").write_bytes(photo(3))
            daemon.until_event("image.saved", 3)
            assert daemon.end() == 0
        assert paid(sandbox) == sorted(digest(photo(number)) for number in (1, 2, 3))
    finally:
        subprocess.run(["umount", "-l", str(site.inbox)], check=False)


# --- the soak -------------------------------------------------------------------------------


def bring(site: Site, name: str, data: bytes, way: int) -> None:
    """Bring one file into the inbox, each time another way."""
    path = site.inbox / name
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = site.root / f"beside-{name.replace('/', '-')}"
    match way % 6:
        case 0:
            path.write_bytes(data)
        case 1:
            site.drop(name, data)
        case 2:
            beside.write_bytes(data)
            os.link(beside, path)
        case 3:
            hidden = path.with_name(f".{path.name}.AbC123")
            hidden.write_bytes(data)
            hidden.rename(path)
        case 4:
            for start in range(0, len(data), len(data) // 3 + 1):
                with path.open("ab") as writer:
                    writer.write(data[start : start + len(data) // 3 + 1])
                time.sleep(0.3)
        case _:
            beside.mkdir()
            (beside / path.name).write_bytes(data)
            beside.rename(path.parent / f"folder of {path.stem}")


def soak(tmp_path: Path, sandbox: RunningSandbox, files: int) -> None:
    site = Site(tmp_path, sandbox.url, watch=EVENTS_ONLY, queue={"workers": 6})
    chance = random.Random(4)  # noqa: S311 - a test that can be repeated
    dropped: dict[str, bytes] = {}
    with site.running() as daemon, reading(site.outbox) as reader:
        daemon.until_event("daemon.ready")
        for number in range(files):
            folder = chance.choice(["", "shoes/", "shoes/red/", "boots/"])
            name = f"{folder}{number:04}.jpg"
            data = photo(number) if chance.random() < 0.8 else noise(number, size=200)
            bring(site, name, data, number)
            moved_in = number % 6 == 5
            dropped[f"{folder}folder of {number:04}/{number:04}.jpg" if moved_in else name] = data
        all_came_back(site, sandbox, dropped, limit=60 + files)
        assert reader.reads >= files
        assert daemon.end() == 0


@pytest.mark.timeout(240)
def test_a_short_soak_of_mixed_arrivals(tmp_path: Path, sandbox: RunningSandbox) -> None:
    soak(tmp_path, sandbox, 48)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_long_soak_of_mixed_arrivals(tmp_path: Path, sandbox: RunningSandbox) -> None:
    soak(tmp_path, sandbox, 3000)


def test_the_daemon_tells_of_files_that_are_held(tmp_path: Path, sandbox: RunningSandbox) -> None:
    site = Site(tmp_path, sandbox.url)

    def held() -> int:
        queue = json.loads(site.command("status", "--json").stdout)["queue"]
        return int(queue["held"])

    with site.running() as daemon:
        daemon.until_event("daemon.ready")
        site.drop("bad/.bgremover.yaml", b"originals: shred")
        site.drop("bad/deep/a.jpg", photo())
        until(lambda: held() == 1)
        (tmp_path / "inbox/bad/.bgremover.yaml").unlink()
        daemon.until_event("image.saved")
        until(lambda: held() == 0)
        assert daemon.end() == 0
