"""Shares: real NFS and CIFS, in a kernel of their own (User-Mode-Linux), with the real program.

The guest serves a folder, mounts it, and changes files on the side of the server, of which a client
is told nothing. What it does is in `network_guest.py`; what came of it is judged here.
"""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import debian

HERE = Path(__file__).parent
MODULES = Path("/usr/lib/uml/modules")
PACKAGES = (
    *("python3", "kmod", "iproute2"),
    *("nfs-kernel-server", "nfs-common", "rpcbind", "cifs-utils", "samba"),
)
KERNEL = (
    "mem=512M",
    "rootfstype=hostfs",
    "rw",
    "init=/boot.sh",
    "con=null",
    "con0=null,fd:1",
    "quiet",
)
BOOT = """#!/bin/sh
exec > /told/console 2>&1
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PYTHONPATH=/opt/project:/opt/site
mount -t proc proc /proc
for folder in /tmp /run /srv /places; do mkdir -p $folder; mount -t tmpfs tmpfs $folder; done
ip link set lo up
mkdir -m 777 /srv/share
python3 /opt/project/tests/e2e/network_guest.py {kind} /told
echo o > /proc/sysrq-trigger
sleep 60
"""
GUEST_SECONDS = 500
"""It takes about 100; what hangs on a share that is away must not hang here."""

FS_TYPES = {"nfs4": "nfs4", "nfs3": "nfs", "cifs": "cifs"}
SCENES = ("arrivals", "all_shared", "server_gone", "server_of_all_gone", "server_slow", "unmounted")
SETTLE_SECONDS, POLL_SECONDS = 1.0, 2.0
CALL_SECONDS = 4.0
"""How long the stand-in takes while a server is away."""
SLACK_SECONDS = 3.0
"""For a kernel that is a process, on a busy machine. Without polling a file waits for 300 s."""

MISSING = [name for name in ("linux.uml", "mmdebstrap") if not shutil.which(name)]

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to build a tree to boot"),
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"needs {', '.join(MISSING)} (apt-get install user-mode-linux mmdebstrap)",
    ),
]


# --- the guest -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    tree = tmp_path_factory.mktemp("network") / "tree"
    debian.build(tree, *PACKAGES)
    debian.pip(tree, "install", f"--target={tree}/opt/site", *debian.dependencies())
    project = tree / "opt/project"
    shutil.copytree(debian.ROOT / "bgremover", project / "bgremover")
    (project / "tests/e2e").mkdir(parents=True)
    shutil.copy(debian.ROOT / "tests/site.py", project / "tests")
    shutil.copy(HERE / "network_guest.py", project / "tests/e2e")
    shutil.copytree(MODULES, tree / "usr/lib/modules", dirs_exist_ok=True)
    for file, line in (("passwd", "nas:x:1000:1000::/:/bin/sh"), ("group", "nas:x:1000:")):
        with (tree / "etc" / file).open("a") as accounts:
            accounts.write(f"{line}\n")
    yield tree
    shutil.rmtree(tree)


@dataclass(frozen=True)
class Told:
    """What the guest told of one kind of share."""

    kind: str
    folder: Path

    def words(self, scene: str) -> dict[str, Any]:
        words: dict[str, Any] = json.loads((self.folder / scene / "told.json").read_text())
        assert "broke" not in words, f"{words['broke']}\n{self._log(scene)[-4000:]}"
        return words

    def _log(self, scene: str) -> str:
        log = self.folder / scene / "log"
        return log.read_text() if log.exists() else ""

    def lines(self, scene: str, *events: str, file: str | None = None) -> list[dict[str, Any]]:
        lines = map(json.loads, self._log(scene).splitlines())
        wanted = (line for line in lines if not events or line["event"] in events)
        return [line for line in wanted if file is None or line.get("file") == file]

    def files(self, scene: str, folder: str) -> dict[str, bytes]:
        root = self.folder / scene / folder
        paths = [path for path in root.rglob("*") if path.is_file()]
        return {str(path.relative_to(root)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module", params=FS_TYPES)
def told(tree: Path, request: pytest.FixtureRequest) -> Iterator[Told]:
    """Boot the guest with one kind of share; return what it told when it has powered off."""
    folder, boot = tree / "told", tree / "boot.sh"
    folder.mkdir()
    boot.write_text(BOOT.format(kind=request.param))
    boot.chmod(0o755)
    try:
        said = run_kernel(tree)
        if not (folder / "console").exists():
            pytest.skip(f"needs linux.uml to boot here: {said[-500:]}")
        if not (folder / "unmounted/told.json").exists():
            pytest.fail(f"{(folder / 'console').read_text()[-4000:]}\n{said[-1000:]}")
        yield Told(request.param, folder)
    finally:
        shutil.rmtree(folder)


def run_kernel(tree: Path) -> str:
    """Run the guest to its end; return what its kernel said."""
    console = tree / "kernel.log"
    with console.open("wb") as output:
        kernel = subprocess.Popen(
            ["linux.uml", *KERNEL, f"rootflags={tree}"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        kernel.wait(GUEST_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(kernel.pid, signal.SIGKILL)  # it and the processes of its guest
        kernel.wait()
        inside = tree / "told/console"
        pytest.fail(f"still running: {inside.read_text() if inside.exists() else ''}")
    return console.read_text(errors="replace")


def seconds(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["timestamp"]).timestamp()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- what is promised ------------------------------------------------------------------------


@pytest.mark.parametrize("scene", SCENES)
def test_every_image_comes_back_whole_and_is_paid_for_once(told: Told, scene: str) -> None:
    words = told.words(scene)
    broken = {"bad.jpg"} & set(words["dropped"])
    images = sorted(sum_ for name, (sum_, _) in words["dropped"].items() if name not in broken)
    assert sorted(words["paid"]) == images
    assert sorted(map(sha256, told.files(scene, "archive").values())) == images
    assert set(told.files(scene, "inbox")) == {".bgremover-here"}
    assert broken <= set(told.files(scene, "quarantine")) <= {"bad.jpg", "bad.jpg.error.json"}
    cut_outs = told.files(scene, "outbox")
    assert len(cut_outs) == len(images)
    for data in cut_outs.values():
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            assert (picture.format, picture.mode) == ("PNG", "RGBA")
    assert words["code"] == 0


def test_that_events_cannot_be_trusted_is_told_with_the_kind_of_file_system(told: Told) -> None:
    (line,) = told.lines("arrivals", "watch.degraded")
    assert f"/inbox is {FS_TYPES[told.kind]}:" in line["why"]
    assert line["sweep_seconds"] == POLL_SECONDS


def test_files_from_the_other_side_are_found_by_the_next_sweep(told: Told) -> None:
    dropped = told.words("arrivals")["dropped"]
    whole = [name for name in dropped if name not in ("slow.jpg", "half.jpg")]
    assert len(whole) == 7
    for name in whole:
        (claimed,) = told.lines("arrivals", "image.claimed", file=name)
        waited = seconds(claimed) - dropped[name][1]
        assert waited < POLL_SECONDS + SETTLE_SECONDS + SLACK_SECONDS, name


@pytest.mark.parametrize("name", ["slow.jpg", "half.jpg"])
def test_a_file_that_is_still_written_on_the_other_side_is_not_sent(told: Told, name: str) -> None:
    size = len(told.files("arrivals", "archive")[name])
    (submitted,) = told.lines("arrivals", "image.submitted", file=name)
    assert submitted["bytes"] == size
    assert seconds(submitted) > told.words("arrivals")["dropped"][name][1]
    assert not told.lines("arrivals", "image.quarantined")


def test_names_that_are_taken_on_a_share_get_a_number(told: Told) -> None:
    assert set(told.files("all_shared", "outbox")) == {"a.png", "a-2.png", "shoes/b.png"}
    assert set(told.files("all_shared", "archive")) == {"a.jpg", "a-2.jpg", "shoes/b.jpg"}
    assert len(told.files("all_shared", "quarantine")) == 2


@pytest.mark.parametrize("scene", ["server_gone", "server_of_all_gone"])
def test_a_server_that_goes_pauses_the_line_and_nothing_counts_as_deleted(
    told: Told, scene: str
) -> None:
    (lost,) = told.lines(scene, "watch.lost")
    (restored,) = told.lines(scene, "watch.restored")
    assert "folder_lost" in [line["reason"] for line in told.lines(scene, "service.paused")]
    for line in told.lines(scene, "image.submitted"):
        assert not seconds(lost) < seconds(line) < seconds(restored)
    assert not told.lines(scene, "image.quarantined", "image.left", "image.ignored")


def test_a_share_that_hangs_holds_up_no_call(told: Told) -> None:
    during, after = told.lines("server_slow", "image.paid")
    assert max(during["seconds"], after["seconds"]) < CALL_SECONDS + SLACK_SECONDS
    assert not told.lines("server_slow", "image.quarantined", "image.left", "image.ignored")


def test_a_share_that_is_mounted_late_or_anew_is_waited_for(told: Told) -> None:
    lost, restored = (told.lines("unmounted", f"watch.{name}") for name in ("lost", "restored"))
    assert (len(lost), len(restored)) == (3, 3)
    assert all(".bgremover-here" in line["message"] for line in lost)
    degraded = told.lines("unmounted", "watch.degraded")
    assert all(f" is {FS_TYPES[told.kind]}:" in line["why"] for line in degraded)


def test_what_a_share_can_do_is_what_the_program_reckons_with(told: Told) -> None:
    """Why originals are linked where they cannot be renamed, and leases are not asked for."""
    nfs = told.kind.startswith("nfs")
    words = told.words("means")
    assert words["rename without replacing"] == ("EINVAL" if nfs else "works")
    assert words["hard link"] == "works"
    assert words["fsync of a folder"] == "works"
    if told.kind == "nfs4":  # although nobody writes
        assert words["lease on a closed file"] == "EAGAIN"
