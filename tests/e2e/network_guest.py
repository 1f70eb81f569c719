"""Runs as root in the guest of `test_network_mounts.py`: a file server, its share, the program.

    python3 network_guest.py KIND FOLDER

serves a folder by NFS or CIFS on loopback, mounts it, lets the program work on the mount as a plain
user, and changes files behind its back, in the folder that is served. It judges nothing: what was
dropped, logged, paid for and left is put into FOLDER, for the test to judge.
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox
from tests.site import KEY, Process, Site, photo, until

USER = 1000
NAME = "nas"
SERVED = Path("/srv/share")
PLACES = Path("/places")
MARKER = ".bgremover-here"
FOLDERS = ("inbox", "outbox", "quarantine", "archive")
WATCH = {"settle_seconds": 1, "poll_seconds": 2, "rescan_seconds": 300, "marker": MARKER}
SMB_CONF = """
[global]
  smb ports = 445
  interfaces = lo
  disable netbios = yes
  load printers = no
  private dir = /run/samba
  state directory = /run/samba
  cache directory = /run/samba
  lock directory = /run/samba
[share]
  path = /srv/share
  read only = no
"""


def do(*command: str, stdin: str = "") -> None:
    subprocess.run(command, input=stdin.encode(), check=True, timeout=60)


# --- servers ---------------------------------------------------------------------------------


class Nfs:
    """The kernel's."""

    def __init__(self, version: str) -> None:
        self._options = f"vers={version},timeo=10,retrans=1"
        self._above = "" if version.startswith("4") else "/srv"
        for module in ("nfsd", "nfs", f"nfsv{version[0]}"):
            do("modprobe", module)
        # As a server that delegates nothing, as many do: every lease of a client is refused then.
        Path("/proc/sys/fs/leases-enable").write_text("0")
        Path("/run/rpcbind").mkdir(exist_ok=True)
        do("mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
        do("rpcbind", "-w")
        do("rpc.statd")
        do("exportfs", "-o", "rw,fsid=0,no_subtree_check", "127.0.0.1:/srv")
        do("rpc.mountd")

    def start(self) -> None:
        # Without -G and -L a new server opens no file for 90 s.
        do("rpc.nfsd", "-G", "10", "-L", "10", "2")

    def stop(self) -> None:
        do("rpc.nfsd", "0")

    def mount(self, inside: str, point: Path, how: str) -> None:
        share = f"127.0.0.1:{self._above}/share/{inside}"
        do("mount", "-t", "nfs", "-o", f"{self._options},{how}", share, str(point))


class Cifs:
    """Samba."""

    def __init__(self) -> None:
        do("modprobe", "cifs")
        Path("/run/samba").mkdir(exist_ok=True)
        Path("/run/smb.conf").write_text(SMB_CONF)
        password = f"{KEY}\n{KEY}\n"
        do("smbpasswd", "-c", "/run/smb.conf", "-s", "-a", NAME, stdin=password)
        self._smbd: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = ["smbd", "-s", "/run/smb.conf", "-l", "/run/samba", "-F", "--no-process-group"]
        self._smbd = subprocess.Popen(command, start_new_session=True)
        until(_listens)

    def stop(self) -> None:
        assert self._smbd is not None
        os.killpg(self._smbd.pid, signal.SIGKILL)
        self._smbd.wait()

    def mount(self, inside: str, point: Path, how: str) -> None:
        options = f"vers=3.1.1,username={NAME},password={KEY},uid={USER},gid={USER},{how}"
        do("mount", "-t", "cifs", "-o", options, f"//127.0.0.1/share/{inside}", str(point))


def _listens() -> bool:
    with socket.socket() as asker:
        return asker.connect_ex(("127.0.0.1", 445)) == 0


KINDS: dict[str, Callable[[], Nfs | Cifs]] = {
    "nfs4": lambda: Nfs("4.2"),
    "nfs3": lambda: Nfs("3"),
    "cifs": Cifs,
}


# --- the place -------------------------------------------------------------------------------


@dataclass
class Place:
    """Folders on this machine and on a share, a stand-in, and what the test is told of them.

    Args:
        server: What serves the share.
        site: The program's configuration.
        sandbox: The stand-in.
        mounted: The folder that is mounted: "inbox", or "share", which holds all but the state.
    """

    server: Nfs | Cifs
    site: Site
    sandbox: RunningSandbox
    mounted: str
    dropped: dict[str, tuple[str, float]] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def point(self) -> Path:
        return self.site.root / self.mounted

    @property
    def served(self) -> Path:
        return SERVED / self.site.root.name

    def real(self, folder: str) -> Path:
        """Where a folder of the program really lies: on the server, when it is mounted."""
        if self.mounted == "share":
            return self.served / folder
        return self.served if self.mounted == folder else self.site.root / folder

    def mount(self, how: str = "soft") -> None:
        """Mount the share: soft (a server that is gone is an error) or hard (it is waited for)."""
        self.server.mount(self.site.root.name, self.point, how)

    def unmount(self) -> None:
        do("umount", "-l", str(self.point))

    def drop(self, name: str, data: bytes) -> None:
        """Put a file into the folder that is served, as another client's `mv` does."""
        beside, final = SERVED / "dropping", self.real("inbox") / name
        beside.write_bytes(data)
        final.parent.mkdir(exist_ok=True)
        give(beside, final.parent)
        self._note(name, data)
        beside.rename(final)

    @contextmanager
    def growing(self, name: str, data: bytes) -> Iterator[Callable[[int], None]]:
        """Write a file in the folder that is served: up to a byte at each call, the rest after."""
        with (self.real("inbox") / name).open("wb", buffering=0) as file:
            give(Path(file.name))

            def write(end: int) -> None:
                file.write(data[file.tell() : end])

            yield write
            write(len(data))
        self._note(name, data)

    def _note(self, name: str, data: bytes) -> None:
        self.dropped[name] = hashlib.sha256(data).hexdigest(), time.time()

    @contextmanager
    def running(self) -> Iterator[Process]:
        """Run the daemon as a plain user."""
        log = self.site.root / "log"
        with log.open("wb") as stderr:
            popen = subprocess.Popen(
                [sys.executable, "-m", "bgremover", "run"],
                cwd=self.site.root,
                env=self.site.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                user=USER,
                group=USER,
                extra_groups=[],
            )
        try:
            yield Process(popen, log)
        finally:
            popen.kill()
            popen.wait()

    def tell(self, told: Path) -> None:
        """Copy everything to where the test reads it."""
        for folder in FOLDERS:
            if (source := self.real(folder)).exists():
                shutil.copytree(source, told / folder)
        if (log := self.site.root / "log").exists():
            shutil.copy(log, told)
        paid = [payment.sha256 for payment in self.sandbox.state.payments]
        words = {"dropped": self.dropped, "paid": paid, **self.more}
        (told / "told.json").write_text(json.dumps(words))


def place(server: Nfs | Cifs, name: str, mounted: str, sandbox: RunningSandbox) -> Place:
    shared = {folder: f"share/{folder}" for folder in FOLDERS} if mounted == "share" else {}
    here = Place(
        server, Site(PLACES / name, sandbox.url, watch=WATCH, folders=shared), sandbox, mounted
    )
    here.point.mkdir(exist_ok=True)
    here.real("inbox").mkdir(parents=True)
    (here.real("inbox") / MARKER).touch()
    give(here.site.root, here.point, here.served, here.real("inbox"))
    return here


def give(*paths: Path) -> None:
    for path in paths:
        os.chown(path, USER, USER)


# --- what happens ----------------------------------------------------------------------------


def arrivals(here: Place) -> None:
    """Files arrive on the other side: at once, in a new folder, slowly, in two halves."""
    here.mount()
    slow, half = photo(90, size=(1600, 1200)), photo(91, size=(1600, 1200))
    with here.running() as daemon:
        daemon.until_event("daemon.ready", limit=60)
        for number in range(4):
            here.drop(f"{number}.jpg", photo(number))
        saved(daemon, 4)
        here.drop("new/in-folder.jpg", photo(10))
        saved(daemon, 5)
        with here.growing("slow.jpg", slow) as write:
            for part in range(1, 20):
                write(len(slow) * part // 20)
                pause(0.4)
        saved(daemon, 6)
        with here.growing("half.jpg", half) as write:
            write(len(half) // 2)
            for number in (20, 21):  # each of them came later and is waited for
                here.drop(f"{number}.jpg", photo(number))
                saved(daemon, number - 13)
        saved(daemon, 9)
        here.more["code"] = daemon.end()


def saved(daemon: Process, count: int) -> None:
    daemon.until_event("image.saved", count, limit=60)


def pause(seconds: float) -> None:
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() >= end, 2 * seconds + 1)


def all_shared(here: Place) -> None:
    """All folders lie on the share; a name is taken, a file is no picture."""
    here.mount()
    with here.running() as daemon:
        daemon.until_event("daemon.ready", limit=60)
        here.drop("a.jpg", photo(1))
        here.drop("shoes/b.jpg", photo(2))
        here.drop("bad.jpg", b"I am no picture. " * 20)
        saved(daemon, 2)
        daemon.until_event("image.quarantined")
        here.dropped["earlier a.jpg"] = here.dropped["a.jpg"]
        here.drop("a.jpg", photo(3))
        saved(daemon, 3)
        here.more["code"] = daemon.end()


def server_gone(here: Place) -> None:
    """The server stops while a call is in flight, a file arrives meanwhile, it comes back."""
    here.mount()
    with here.running() as daemon:
        daemon.until_event("daemon.ready", limit=60)
        here.drop("in-flight.jpg", photo(1))
        daemon.until_event("image.submitted")
        here.server.stop()
        daemon.until_event("watch.lost", limit=60)
        here.drop("meanwhile.jpg", photo(2))
        daemon.until_event("service.paused", limit=60)
        here.server.start()
        daemon.until_event("watch.restored", limit=120)
        saved(daemon, 2)
        here.more["code"] = daemon.end()


def server_slow(here: Place) -> None:
    """The server stops for a while; whoever looks at the share hangs until it is back."""
    here.mount("hard")
    with here.running() as daemon:
        daemon.until_event("daemon.ready", limit=60)
        here.drop("in-flight.jpg", photo(1))
        daemon.until_event("image.submitted")
        here.server.stop()
        here.drop("meanwhile.jpg", photo(2))
        daemon.until_event("image.paid", limit=60)
        pause(8)
        here.server.start()
        daemon.until_event("image.saved", 2, limit=120)
        here.more["code"] = daemon.end()


def unmounted(here: Place) -> None:
    """The daemon starts before the share is mounted, and loses it once more."""
    with here.running() as daemon:
        for number in (1, 2):
            daemon.until_event("watch.lost", number, limit=60)
            here.drop(f"{number}.jpg", photo(number))
            here.mount()
            daemon.until_event("watch.restored", number, limit=60)
            saved(daemon, number)
            here.unmount()
        daemon.until_event("watch.lost", 3, limit=60)
        here.mount()
        daemon.until_event("watch.restored", 3, limit=60)
        here.more["code"] = daemon.end()


def means(here: Place) -> None:
    """A plain user tries what the program would like to do there."""
    here.mount()
    done = subprocess.run(
        [sys.executable, __file__, "means", str(here.point)],
        user=USER,
        group=USER,
        extra_groups=[],
        stdout=subprocess.PIPE,
        check=True,
    )
    here.more.update(json.loads(done.stdout))


def tried(folder: Path) -> dict[str, str]:
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    one, other = folder / "one", folder / "other"
    one.touch()
    libc = ctypes.CDLL(None, use_errno=True)

    def rename() -> None:
        if libc.renameat2(-100, bytes(one), -100, bytes(other), 1):
            raise OSError(ctypes.get_errno(), "")
        other.rename(one)

    def sync() -> None:
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    def lease() -> None:
        with one.open("rb") as file:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    return {
        "rename without replacing": said(rename),
        "hard link": said(lambda: os.link(one, other)),
        "fsync of a folder": said(sync),
        "lease on a closed file": said(lease),
    }


def said(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "works"


SCENES: dict[str, tuple[Callable[[Place], None], str, float]] = {
    "means": (means, "inbox", 0.0),
    "arrivals": (arrivals, "inbox", 0.1),
    "all_shared": (all_shared, "share", 0.1),
    "server_gone": (server_gone, "inbox", 4.0),
    "server_of_all_gone": (server_gone, "share", 4.0),
    "server_slow": (server_slow, "share", 4.0),
    "unmounted": (unmounted, "inbox", 0.1),
}
"""What happens, what is mounted, and how many seconds a call takes."""


def main(kind: str, told: Path) -> None:
    server = KINDS[kind]()
    server.start()
    for name, (scene, mounted, latency) in SCENES.items():
        (told / name).mkdir()
        with RunningSandbox(SandboxOptions(key=KEY, latency_seconds=latency)) as sandbox:
            here = place(server, name, mounted, sandbox)
            try:
                scene(here)
            except BaseException:  # noqa: BLE001 - the test tells it
                here.more["broke"] = traceback.format_exc()
            here.tell(told / name)


if __name__ == "__main__":
    if sys.argv[1] == "means":
        sys.stdout.write(json.dumps(tried(Path(sys.argv[2]))))
    else:
        main(sys.argv[1], Path(sys.argv[2]))
