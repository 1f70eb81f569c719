"""Files that arrive through the programs people use: each comes back, and is paid for once.

Sweeps are five minutes apart, so that what is found is found by events; a client that must be
there is named where it is not.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox
from tests.arrivals import all_came_back, images, noise, reading
from tests.site import KEY, Process, Site, photo, until

WATCH = {"settle_seconds": 0.5, "rescan_seconds": 300, "poll_seconds": 5}


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [
        one for one in programs if shutil.which(one, path=os.environ["PATH"] + ":/usr/sbin") is None
    ]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run a server")


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    options = SandboxOptions(key=KEY, latency_seconds=0.05, fixed_result=True)
    with RunningSandbox(options) as running:
        yield running


class Trip:
    """A daemon, files to be brought to it, and what must have become of them."""

    def __init__(self, site: Site, daemon: Process, sandbox: RunningSandbox) -> None:
        self.site = site
        self.daemon = daemon
        self.sandbox = sandbox
        self.source = site.root / "source"
        self.dropped: dict[str, bytes] = {}

    def pack(self, *names: str, large: bool = False) -> None:
        """Make files to be brought."""
        for number, name in enumerate(names):
            data = noise(number) if large else photo(300 + number)
            path = self.source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            self.dropped[name] = data

    def run(self, *command: str, cwd: Path | None = None) -> None:
        done = subprocess.run(
            command, cwd=cwd or self.source, capture_output=True, check=False, timeout=60
        )
        assert done.returncode == 0, done

    def arrived(self) -> None:
        all_came_back(self.site, self.sandbox, self.dropped)
        assert self.daemon.events("watch.missed") == []


@pytest.fixture
def trip(tmp_path: Path, sandbox: RunningSandbox) -> Iterator[Trip]:
    site = Site(tmp_path, sandbox.url, watch=WATCH)
    with site.running() as daemon, reading(site.outbox):
        daemon.until_event("daemon.ready")
        yield Trip(site, daemon, sandbox)
        assert daemon.end() == 0


# --- on this machine ------------------------------------------------------------------------


def copy(trip: Trip) -> None:
    trip.run("cp", "-rp", ".", str(trip.site.inbox))


def move(trip: Trip) -> None:
    kept = trip.site.root / "to move"
    shutil.copytree(trip.source, kept)
    trip.run("mv", *(entry.name for entry in kept.iterdir()), str(trip.site.inbox), cwd=kept)


def unpack(trip: Trip) -> None:
    archive = trip.site.root / "all.tar"
    trip.run("tar", "cf", str(archive), ".")
    trip.run("tar", "xf", str(archive), "-C", str(trip.site.inbox))


def hard_link(trip: Trip) -> None:
    trip.run("cp", "-rl", ".", str(trip.site.inbox))
    # A link is one name of several: the original in the source stays.
    assert all((trip.source / name).exists() for name in trip.dropped)


def synchronise(trip: Trip) -> None:
    trip.run("rsync", "-rt", "./", f"{trip.site.inbox}/")


def synchronise_in_place(trip: Trip) -> None:
    trip.run("rsync", "-rt", "--inplace", "--bwlimit=400", "./", f"{trip.site.inbox}/")


def rclone_copy(trip: Trip) -> None:
    trip.run("rclone", "copy", "--config", "/dev/null", ".", str(trip.site.inbox))


@pytest.mark.parametrize(
    "bring",
    [
        copy,
        move,
        unpack,
        hard_link,
        pytest.param(synchronise, marks=needs("rsync")),
        pytest.param(synchronise_in_place, marks=needs("rsync")),
        pytest.param(rclone_copy, marks=needs("rclone")),
    ],
)
def test_files_and_folders_that_a_program_brings(trip: Trip, bring: Callable[[Trip], None]) -> None:
    trip.pack("a.jpg", "shoes/b.jpg", "shoes/red/c.jpg", large=True)
    bring(trip)
    trip.arrived()


@needs("rsync")
def test_rsync_that_is_killed_and_run_again(trip: Trip) -> None:
    trip.pack("a.jpg", "b.jpg", large=True)
    inbox = str(trip.site.inbox)
    command = ["rsync", "-rt", "--inplace", "--bwlimit=100", "./", f"{inbox}/"]
    with subprocess.Popen(command, cwd=trip.source, process_group=0) as client:
        arriving = trip.site.inbox / "a.jpg"
        until(lambda: arriving.exists() and arriving.stat().st_size > 10_000)
        os.killpg(client.pid, signal.SIGKILL)
    trip.daemon.until_event("image.claimed")
    assert trip.sandbox.state.payments == []
    synchronise(trip)
    trip.arrived()


def test_a_writer_that_stalls_and_one_that_goes_on_where_another_stopped(trip: Trip) -> None:
    trip.pack("a.jpg", "b.jpg", large=True)
    stalled, resumed = trip.dropped["a.jpg"], trip.dropped["b.jpg"]
    with (trip.site.inbox / "a.jpg").open("wb") as writer:
        writer.write(stalled[:50_000])
        writer.flush()
        (trip.site.inbox / "b.jpg").write_bytes(resumed[:50_000])
        trip.daemon.until_event("image.claimed")  # b.jpg: it is closed, and found to be cut off
        assert {line["file"] for line in trip.daemon.events("image.claimed")} == {"b.jpg"}
        assert trip.sandbox.state.payments == []
        writer.write(stalled[50_000:])
    with (trip.site.inbox / "b.jpg").open("ab") as writer:
        writer.write(resumed[50_000:])
    trip.arrived()


def test_an_empty_placeholder_and_a_preallocated_file_that_are_filled_later(trip: Trip) -> None:
    trip.pack("a.jpg", "b.jpg", large=True)
    (trip.site.inbox / "a.jpg").touch()
    with (trip.site.inbox / "b.jpg").open("wb") as writer:
        os.posix_fallocate(writer.fileno(), 0, len(trip.dropped["b.jpg"]))
    trip.daemon.until_event("image.claimed", 2)
    assert trip.sandbox.state.payments == []
    for name, data in trip.dropped.items():
        with (trip.site.inbox / name).open("r+b") as writer:
            writer.write(data)
    trip.arrived()


def test_a_scanner_that_writes_page_by_page(trip: Trip) -> None:
    trip.pack("scan.jpg", large=True)
    data = trip.dropped["scan.jpg"]
    third = len(data) // 3
    for start in (0, third, 2 * third):
        end = start + third if start < 2 * third else len(data)
        with (trip.site.inbox / "scan.jpg").open("ab") as writer:
            writer.write(data[start:end])
        if end < len(data):
            claims = len(trip.daemon.events("image.claimed"))
            trip.daemon.until_event("image.claimed", claims + 1)
            assert trip.sandbox.state.payments == []
    trip.arrived()


# --- from another machine -------------------------------------------------------------------


def free_port() -> int:
    """Return a port that nobody has, and that no outgoing connection is given meanwhile."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@contextmanager
def serving(command: list[str], port: int, log: Path) -> Iterator[None]:
    """Run a server until the end of the `with`."""
    path = os.environ["PATH"] + ":/usr/sbin"
    with log.open("wb") as out:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, "PATH": path},
            process_group=0,
        )
    try:
        until(lambda: _listens(port) or _has_ended(server, log))
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended, which is told above
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(10)


def _has_ended(server: "subprocess.Popen[bytes]", log: Path) -> bool:
    assert server.poll() is None, log.read_text(errors="replace")
    return False


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


SAMBA = """
[global]
server role = standalone server
smb ports = {port}
interfaces = 127.0.0.1/8
bind interfaces only = yes
map to guest = bad user
guest account = root
disable spoolss = yes
load printers = no
log level = 0
{folders}
[inbox]
path = {inbox}
guest ok = yes
read only = no
force user = root
"""
SAMBA_FOLDERS = (
    *("private dir", "lock directory", "state directory", "cache directory"),
    *("pid directory", "ncalrpc dir", "usershare path"),
)


@contextmanager
def samba(trip: Trip) -> Iterator[int]:
    port = free_port()
    # Its sockets lie there: their paths have at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="smb") as short:
        place = Path(short)
        for name in SAMBA_FOLDERS:
            (place / name).mkdir(mode=0o755)
        folders = "\n".join(f"{name} = {place / name}" for name in SAMBA_FOLDERS)
        config = place / "smb.conf"
        config.write_text(SAMBA.format(port=port, folders=folders, inbox=trip.site.inbox))
        command = ["smbd", "--foreground", "--no-process-group", "--debug-stdout"]
        with serving([*command, "-s", str(config)], port, trip.site.root / "smbd.log"):
            yield port


@needs("smbd", "smbclient")
@needs_root
def test_files_and_folders_over_smb(trip: Trip) -> None:
    trip.pack("a.jpg", "shoes/b.jpg", "shoes/red/c.jpg", large=True)
    with samba(trip) as port:
        commands = "recurse; prompt; mput *"
        trip.run("smbclient", "//127.0.0.1/inbox", "-p", str(port), "-N", "-c", commands)
        trip.arrived()


FTP = """
listen=YES
listen_address=127.0.0.1
listen_port={port}
background=NO
anonymous_enable=YES
local_enable=NO
no_anon_password=YES
anon_root={root}
write_enable=YES
anon_upload_enable=YES
anon_mkdir_write_enable=YES
anon_other_write_enable=YES
anon_umask=022
seccomp_sandbox=NO
secure_chroot_dir={empty}
"""


@contextmanager
def ftp(trip: Trip) -> Iterator[str]:
    place, port = trip.site.root / "ftp", free_port()
    (place / "empty").mkdir(parents=True)
    trip.site.inbox.chmod(0o777)
    config = place / "vsftpd.conf"
    config.write_text(FTP.format(port=port, root=trip.site.root, empty=place / "empty"))
    for folder in (trip.site.inbox, *trip.site.inbox.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)  # pytest's folders are its user's alone
    with serving(["vsftpd", str(config)], port, place / "log"):
        yield f"ftp://127.0.0.1:{port}/inbox"


@needs("vsftpd", "curl")
@needs_root
def test_files_over_ftp_slowly_and_one_that_is_cut_off_and_resumed(trip: Trip) -> None:
    trip.pack("a.jpg", "shoes/b.jpg", "c.jpg", large=True)
    upload = ("curl", "--silent", "--show-error", "--ftp-create-dirs", "-T")
    with ftp(trip) as url:
        slow = ["curl", "--silent", "--limit-rate", "100k", "-T", "c.jpg", f"{url}/c.jpg"]
        with subprocess.Popen(slow, cwd=trip.source) as client:
            cut = trip.site.inbox / "c.jpg"
            until(lambda: cut.exists() and cut.stat().st_size > 50_000)
            client.kill()
        trip.run(*upload, "shoes/b.jpg", f"{url}/shoes/b.jpg")
        trip.run(*upload, "a.jpg", "--limit-rate", "150k", f"{url}/a.jpg")
        assert images(trip.site) >= {"c.jpg"}
        assert all(payment.file != "c.jpg" for payment in trip.sandbox.state.payments)
        trip.run(*upload, "c.jpg", "--continue-at", "-", f"{url}/c.jpg")
        trip.arrived()


@needs("rclone", "curl")
def test_files_over_webdav(trip: Trip) -> None:
    trip.pack("a.jpg", "b.jpg", large=True)
    port = free_port()
    inbox = str(trip.site.inbox)
    command = ["rclone", "serve", "webdav", "--config", "/dev/null", "--addr"]
    with serving([*command, f"127.0.0.1:{port}", inbox], port, trip.site.root / "webdav.log"):
        for name in trip.dropped:
            url = f"http://127.0.0.1:{port}/{name}"
            trip.run("curl", "--silent", "--fail", "--limit-rate", "200k", "-T", name, url)
        trip.arrived()


SYNCTHING = """
<configuration version="36">
  <folder id="inbox" path="{folder}" type="{kind}" rescanIntervalS="60" fsWatcherEnabled="true"
      fsWatcherDelayS="1">
    {devices}
    <maxConflicts>0</maxConflicts>
  </folder>
  {addresses}
  <gui enabled="false"/>
  <options>
    <listenAddress>tcp://127.0.0.1:{port}</listenAddress>
    <globalAnnounceEnabled>false</globalAnnounceEnabled>
    <localAnnounceEnabled>false</localAnnounceEnabled>
    <relaysEnabled>false</relaysEnabled>
    <natEnabled>false</natEnabled>
    <reconnectionIntervalS>2</reconnectionIntervalS>
    <urAccepted>-1</urAccepted>
    <crashReportingEnabled>false</crashReportingEnabled>
    <autoUpgradeIntervalH>0</autoUpgradeIntervalH>
    <startBrowser>false</startBrowser>
  </options>
</configuration>
"""


@contextmanager
def syncthing(trip: Trip) -> Iterator[None]:
    """Keep the inbox as the source is, by two daemons that know only each other."""
    ends = {trip.source: "sendonly", trip.site.inbox: "receiveonly"}
    homes = [trip.site.root / kind for kind in ends.values()]
    ports = [free_port() for _ in ends]
    ids = [_made_known(home) for home in homes]
    addresses = "".join(
        f'<device id="{one}"><address>tcp://127.0.0.1:{port}</address></device>'
        for one, port in zip(ids, ports, strict=True)
    )
    devices = "".join(f'<device id="{one}"/>' for one in ids)
    with contextlib.ExitStack() as stack:
        for home, port, (folder, kind) in zip(homes, ports, ends.items(), strict=True):
            folder.mkdir(exist_ok=True)
            (folder / ".stfolder").mkdir()
            told = {"folder": folder, "kind": kind, "port": port}
            text = SYNCTHING.format(devices=devices, addresses=addresses, **told)
            (home / "config.xml").write_text(text)
            command = ["syncthing", "serve", "--home", str(home), "--no-browser", "--no-restart"]
            stack.enter_context(serving(command, port, home / "log"))
        yield


def _made_known(home: Path) -> str:
    """Make the key of a new daemon; return what the other one knows it by."""

    def ask(*words: str) -> str:
        command = ["syncthing", *words, "--home", str(home)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip()

    ask("generate", "--no-default-folder")
    return ask("--device-id")


@needs("syncthing")
def test_files_and_folders_that_syncthing_keeps_the_same(trip: Trip) -> None:
    trip.pack("a.jpg", "shoes/b.jpg", "shoes/red/c.jpg", large=True)
    with syncthing(trip):
        trip.arrived()
