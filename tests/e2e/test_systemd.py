"""The service under a real systemd: PID 1 of a container tree, installed as README.md says."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bgremover.affinity import GIVEN
from tests import debian
from tests.cores import share_a_core
from tests.site import KEY, photo, until

ROOT = Path(__file__).parents[2]
URL = "http://127.0.0.1:8765"
# procps has /bin/kill
INCLUDED = ("systemd", "systemd-sysv", "dbus", "procps", "python3", "python3-venv")
MISSING = [name for name in ("systemd-nspawn", "mmdebstrap", "nsenter") if not shutil.which(name)]

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to boot a container"),
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"needs {', '.join(MISSING)} (apt-get install systemd-container mmdebstrap)",
    ),
]

SANDBOX = """
[Service]
ExecStart=/opt/bgremover/bin/bgremover sandbox --key {key} --latency {latency}
DynamicUser=yes
"""
DROP_IN = f"""
[Service]
Environment=BGREMOVER_API__BASE_URL={URL} BGREMOVER_WATCH__SETTLE_SECONDS=0.2
Environment=BGREMOVER_WATCH__RESCAN_SECONDS=1
RestartSec=0.5
"""


# --- the machine -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """A booted tree."""

    tree: Path
    leader: int

    def run(
        self, *command: str, check: bool = True, stdin: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root."""
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        inside = ["nsenter", "-t", str(self.leader), "-a", *command]
        return subprocess.run(
            inside,
            input=stdin,
            env={"PATH": path, "LANG": "C.UTF-8", "HOME": "/root", **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=check,
        )

    def write(self, path: str, text: str) -> None:
        """Write a file inside."""
        place = self.tree / path.removeprefix("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def remove(self, path: str) -> None:
        """Remove a file or folder inside, if it is there."""
        place = self.tree / path.removeprefix("/")
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


def copy_project(tree: Path) -> None:
    inside = tree / "opt/source/bgremover"
    inside.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, inside)
    for name in ("bgremover", "systemd"):
        shutil.copytree(ROOT / name, inside / name, ignore=shutil.ignore_patterns("__pycache__"))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    tree = tmp_path_factory.mktemp("systemd") / "tree"
    debian.build(tree, *INCLUDED)
    wheels = (f"--dest={tree / 'opt/source/wheels'}", *debian.build_dependencies())
    debian.pip(tree, "download", *wheels, *debian.dependencies())
    copy_project(tree)
    command = ["systemd-nspawn", "-D", str(tree), "-b", "--register=no", "--keep-unit"]
    command += ["--private-network", "--link-journal=no", "--console=pipe"]
    console = tree.with_name("console")
    with console.open("wb") as output:
        nspawn = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        booted = Machine(tree, leader_of(nspawn, console))
        until(lambda: running(booted), 60)
        booted.run("ip", "link", "set", "lo", "up", check=False)
        install(booted)
        yield booted
    finally:
        nspawn.terminate()
        nspawn.wait(60)
        shutil.rmtree(tree)


def leader_of(nspawn: "subprocess.Popen[bytes]", console: Path) -> int:
    children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")

    def found() -> list[str]:
        if nspawn.poll() is not None:
            pytest.skip(f"needs systemd-nspawn to boot: {console.read_text()[-500:]}")
        # Not its helper, which sets the container up and ends.
        return [pid for pid in children.read_text().split() if own_pids(pid)[1:] == ["1"]]

    until(found)
    return int(found()[0])


def own_pids(pid: str) -> list[str]:
    """Return a process's ids, from the outermost namespace inwards; empty when it has ended."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        return status.partition("NSpid:")[2].partition("\n")[0].split()
    return []


def running(machine: Machine) -> bool:
    state = machine.run("systemctl", "is-system-running", check=False).stdout.strip()
    return state in ("running", "degraded")


# --- the installation ------------------------------------------------------------------------


def readme_block() -> str:
    section = (ROOT / "README.md").read_text().partition("\n## As a service\n")[2]
    (block,) = re.findall(
        r"^```\n(.*?)^```$", section.partition("\n## ")[0], re.DOTALL | re.MULTILINE
    )
    return str(block)


def install(machine: Machine) -> None:
    """Type in what README.md says, in the folder of the project."""
    block = readme_block().replace("journalctl -u bgremover -f", "true")
    done = machine.run(
        "sh",
        "-ec",
        f"cd /opt/source/bgremover\n{block}",
        check=False,
        stdin=f"{KEY}\n",
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS="/opt/source/wheels",
        SYSTEMD_PAGER="cat",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Active: active (running)" in done.stdout
    assert 'Status: "0 in flight, 0 waiting"' in done.stdout


class Service:
    """The unit as it stands on the machine, with the stand-in beside it."""

    def __init__(self, machine: Machine, name: str = "bgremover") -> None:
        self.machine = machine
        self.name = name
        self.share = machine.tree / "srv/bgremover"

    def control(self, *words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        return self.machine.run("systemctl", *words, self.name, check=check)

    def show(self, name: str) -> str:
        return self.control("show", "--value", "-p", name).stdout.strip()

    def shows(self, **expected: str) -> bool:
        return all(self.show(name) == value for name, value in expected.items())

    @property
    def pid(self) -> int:
        """The daemon's, as this side of the container sees it."""
        inside = self.show("MainPID")
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                found = re.search(r"^NSpid:\t(\d+)\t(\d+)$", status.read_text(), re.MULTILINE)
            except OSError:
                continue
            if found and found[2] == inside and self._is_ours(found[1]):
                return int(found[1])
        raise AssertionError(f"no process {inside} in the container")

    def _is_ours(self, pid: str) -> bool:
        ours = f"/proc/{self.machine.leader}/ns/pid"
        return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(ours)

    def change(self, text: str) -> None:
        """Add a drop-in, as `systemctl edit` does."""
        self.machine.write(f"/etc/systemd/system/{self.name}.service.d/test.conf", DROP_IN + text)
        self.machine.run("systemctl", "daemon-reload")

    def drop(self, *names: str) -> None:
        for name in names:
            beside = self.share / "dropping"
            # Other bytes for each name: known ones would be served from the cut-out that is there.
            beside.write_bytes(photo(zlib.crc32(name.encode()) % 65536))
            beside.rename(self.share / "inbox" / name)

    def cut_outs(self) -> set[str]:
        return {name for name in os.listdir(self.share / "outbox") if not name.startswith(".")}

    def until_cut_out(self, *names: str) -> None:
        until(lambda: {f"{Path(name).stem}.png" for name in names} <= self.cut_outs(), 60)

    def journal(self) -> list[str]:
        command = [
            "journalctl",
            "--unit",
            self.name,
            "--output=cat",
            "--no-pager",
            "_COMM=bgremover",
        ]
        return self.machine.run(*command).stdout.splitlines()

    def events(self, name: str) -> list[dict[str, Any]]:
        told = [json.loads(line) for line in self.journal() if line.startswith("{")]
        return [line for line in told if line["event"] == name]


def stand_in(machine: Machine, *, key: str = KEY, latency: float = 0.05) -> None:
    machine.write("/etc/systemd/system/sandbox.service", SANDBOX.format(key=key, latency=latency))
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "sandbox")


@pytest.fixture
def service(machine: Machine) -> Iterator[Service]:
    """The service, stopped, with nothing left of earlier tests."""
    service = Service(machine)
    clean(machine)
    stand_in(machine)
    service.change("")
    yield service
    clean(machine)


def clean(machine: Machine) -> None:
    machine.run("systemctl", "stop", "bgremover", "bgremover@*", "sandbox", check=False)
    machine.run("systemctl", "reset-failed", check=False)
    for folder in (machine.tree / "etc/systemd/system").glob("bgremover*.d"):
        shutil.rmtree(folder)
    for name in ("inbox", "outbox", "quarantine", "archive"):
        machine.remove(f"/srv/bgremover/{name}")
    machine.remove("/var/lib/bgremover")
    machine.run("journalctl", "--rotate")
    machine.run("journalctl", "--vacuum-time=1ms")


# --- what is promised ------------------------------------------------------------------------


def test_what_is_dropped_is_cut_out_and_told_in_the_journal(service: Service) -> None:
    service.control("start")
    names = [f"{number}.jpg" for number in range(5)]
    service.drop(*names)
    service.until_cut_out(*names)
    until(lambda: len(service.events("image.saved")) == 5)
    assert all(json.loads(line)["event"] for line in service.journal())
    assert sorted(os.listdir(service.share / "archive")) == names
    assert service.shows(ActiveState="active", NRestarts="0")
    until(lambda: service.show("StatusText") == "0 in flight, 0 waiting")


def test_its_threads_share_a_core_and_pictures_stand_back(service: Service) -> None:
    service.control("start")
    service.drop("a.jpg")
    service.until_cut_out("a.jpg")
    threads = [int(name) for name in os.listdir(f"/proc/{service.pid}/task")]
    if len(GIVEN) > 1:
        until(lambda: share_a_core(service.pid))
    assert 10 in {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}


def test_it_is_ready_and_says_so_while_the_api_is_away(service: Service) -> None:
    service.machine.run("systemctl", "stop", "sandbox")
    service.control("start")
    assert service.shows(ActiveState="active", SubState="running")
    service.drop("a.jpg")
    until(lambda: "; paused: " in service.show("StatusText"), 60)
    service.machine.run("systemctl", "start", "sandbox")
    service.control("reload")
    service.until_cut_out("a.jpg")
    until(lambda: "paused" not in service.show("StatusText"))


def test_the_process_has_no_privileges(service: Service) -> None:
    service.control("start")
    status = Path(f"/proc/{service.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {fields[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert service.machine.run("id", "-u", "bgremover").stdout.strip() == fields["Uid"].split()[0]
    state = service.machine.tree / "var/lib/bgremover"
    assert state.stat().st_mode & 0o777 == 0o700


def test_a_folder_outside_is_refused_with_the_remedy_and_a_drop_in_lets_it_in(
    service: Service,
) -> None:
    service.machine.run("install", "-d", "-o", "bgremover", "/data", "/data/out")
    outside = "[Service]\nEnvironment=BGREMOVER_FOLDERS__OUTBOX=/data/out\n"
    service.change(outside)
    service.control("start", check=False)
    until(lambda: service.shows(ActiveState="failed", ExecMainStatus="78", NRestarts="0"))
    assert any("ReadWritePaths=" in line for line in service.journal())
    service.change(outside + "ReadWritePaths=/data\n")
    service.control("start")
    service.drop("a.jpg")
    until((service.machine.tree / "data/out/a.png").exists, 30)


def test_folders_of_a_user_below_home_work_as_the_head_of_the_unit_says(service: Service) -> None:
    machine = service.machine
    machine.run("sh", "-c", "id anna || useradd --create-home anna")
    machine.run("install", "-d", "-o", "anna", "-g", "anna", "/home/anna/photos")
    head = (ROOT / "systemd/bgremover.service").read_text().partition("[Unit]")[0]
    (drop_in,) = re.findall(r"#     \[Service\]\n(?:#     .*\n)+(?=#\n# The daemon)", head)
    folders = " ".join(
        f"BGREMOVER_FOLDERS__{name.upper()}=/home/anna/photos/{name}"
        for name in ("inbox", "outbox", "quarantine", "archive")
    )
    service.change(f"{drop_in.replace('#     ', '')}Environment={folders}\n")
    service.control("start")
    photos = machine.tree / "home/anna/photos"
    (photos / "inbox/a.jpg").write_bytes(photo())
    until((photos / "outbox/a.png").exists, 30)
    anna = machine.run("id", "-u", "anna").stdout.strip()
    assert str((photos / "outbox/a.png").stat().st_uid) == anna


def test_who_is_in_the_group_may_drop_images_and_take_cut_outs_and_nobody_else(
    service: Service,
) -> None:
    machine = service.machine
    machine.run("sh", "-c", "id ben || useradd --create-home --groups bgremover ben")
    machine.write("/home/ben/a.jpg", "")
    (machine.tree / "home/ben/a.jpg").write_bytes(photo())
    machine.run("chown", "ben:ben", "/home/ben/a.jpg")
    service.control("start")
    copy = ("cp", "/home/ben/a.jpg", "/srv/bgremover/inbox/a.jpg")
    assert machine.run("runuser", "-u", "nobody", "--", *copy, check=False).returncode != 0
    machine.run("runuser", "-u", "ben", "--", *copy)
    service.until_cut_out("a.jpg")
    cut_out = "/srv/bgremover/outbox/a.png"
    assert machine.run("runuser", "-u", "nobody", "--", "cat", cut_out, check=False).returncode != 0
    machine.run("runuser", "-u", "ben", "--", "mv", cut_out, "/home/ben")


def test_a_reload_puts_new_settings_in_force_without_a_restart(service: Service) -> None:
    config = service.machine.tree / "etc/bgremover/config.yaml"
    before = config.read_text()
    try:
        service.control("start")
        pid = service.show("MainPID")
        config.write_text(before + "queue: {workers: 0}\n")
        service.control("reload")
        until(lambda: service.events("settings.refused"))
        config.write_text(before + "queue: {workers: 2}\n")
        service.control("reload")
        until(lambda: service.events("settings.reread"))
        until(lambda: service.shows(ActiveState="active", SubState="running"))
        service.drop("a.jpg")
        service.until_cut_out("a.jpg")
    finally:
        config.write_text(before)
    assert service.events("settings.reread")[0]["changed"] == ["queue.workers"]
    assert service.shows(MainPID=pid, NRestarts="0")


def test_a_killed_daemon_is_started_again_and_goes_on(service: Service) -> None:
    stand_in(service.machine, latency=1.0)
    service.control("start")
    names = [f"{number}.jpg" for number in range(8)]
    service.drop(*names)
    until(lambda: service.events("image.submitted"))
    service.control("kill", "-s", "KILL")
    until(lambda: service.shows(NRestarts="1", ActiveState="active"), 30)
    service.until_cut_out(*names)
    until(lambda: len(os.listdir(service.share / "archive")) == 8)
    assert os.listdir(service.share / "quarantine") == []


def test_a_daemon_that_hangs_is_killed_and_started_again(service: Service) -> None:
    service.change("WatchdogSec=4\n")
    service.control("start")
    first = service.show("MainPID")
    service.drop("a.jpg")
    service.until_cut_out("a.jpg")
    began = time.monotonic()
    until(lambda: time.monotonic() - began > 6, 10)  # longer than the watchdog waits
    assert service.shows(NRestarts="0", MainPID=first)
    os.kill(service.pid, signal.SIGSTOP)
    until(lambda: service.shows(NRestarts="1", ActiveState="active"), 30)
    assert service.show("MainPID") != first
    # Where it hung is in the journal.
    assert any("Fatal Python error: Aborted" in line for line in service.journal())
    service.drop("b.jpg")
    service.until_cut_out("b.jpg")


def test_a_stop_is_quick_and_clean(service: Service) -> None:
    stand_in(service.machine, latency=1.0)
    service.control("start")
    service.drop("a.jpg", "b.jpg")
    until(lambda: service.events("image.submitted"))
    began = time.monotonic()
    service.control("stop")
    assert time.monotonic() - began < 10
    assert service.shows(ActiveState="inactive", Result="success", ExecMainStatus="0")
    assert len(service.events("daemon.stopped")) == 1
    service.control("start")
    service.until_cut_out("a.jpg", "b.jpg")
    assert len(service.events("image.submitted")) == 2  # what was paid for was brought home


def test_a_wrong_configuration_is_told_and_not_tried_again(service: Service) -> None:
    service.change("Environment=BGREMOVER_QUEUE__WORKERS=many\n")
    service.control("start", check=False)
    until(lambda: service.shows(ActiveState="failed", ExecMainStatus="78"))
    assert any("queue.workers" in line.lower() for line in service.journal())
    began = time.monotonic()
    until(lambda: time.monotonic() - began > 2, 10)  # four times what a restart waits
    assert service.shows(ActiveState="failed", NRestarts="0")


def test_a_failed_start_is_tried_again_for_ever(service: Service) -> None:
    # Somebody else owns the state folder for now: exit code 75.
    run = service.machine.run
    run("install", "-d", "-o", "bgremover", "-m", "700", "/var/lib/bgremover")
    hold = ("flock", "/var/lib/bgremover/lock", "sleep", "infinity")
    run("systemd-run", "--unit=owner", "--uid=bgremover", *hold)
    service.change("RestartSec=0.1\n")
    service.control("start", check=False)
    until(lambda: int(service.show("NRestarts")) > 7, 60)  # systemd's own limit is 5 in 10 s
    run("systemctl", "stop", "owner")
    until(lambda: service.shows(ActiveState="active"), 30)
    assert any("another bgremover owns" in line for line in service.journal())


def test_the_key_is_for_the_daemon_alone(service: Service) -> None:
    service.control("start")
    service.drop("a.jpg")
    service.until_cut_out("a.jpg")
    places = (
        "/etc/bgremover/ideogram-api-key",
        "/run/credentials/bgremover.service/ideogram-api-key",
    )
    for place in places:
        read = service.machine.run(
            "setpriv", "--reuid=nobody", "--clear-groups", "cat", place, check=False
        )
        assert read.returncode != 0, place
    pid = service.pid
    seen = "".join(Path(f"/proc/{pid}/{name}").read_text() for name in ("environ", "cmdline"))
    assert KEY not in seen + "\n".join(service.journal()) + service.control("show").stdout


def test_a_refused_key_pauses_and_a_restart_takes_the_new_one(service: Service) -> None:
    key = "/etc/bgremover/ideogram-api-key"
    service.machine.write(key, "k-0000000000000000\n")
    try:
        service.control("start")
        service.drop("a.jpg")
        paused = r"\d+ in flight, \d+ waiting(, \d+ deferred)?; paused: key refused since .+"
        until(lambda: re.fullmatch(paused, service.show("StatusText")))
    finally:
        service.machine.write(key, f"{KEY}\n")
    service.control("restart")
    service.until_cut_out("a.jpg")


def test_status_and_retry_work_beside_the_service(service: Service) -> None:
    as_daemon = ("runuser", "-u", "bgremover", "--", "/opt/bgremover/bin/bgremover")
    config = ("-c", "/etc/bgremover/config.yaml")
    state = {"BGREMOVER_FOLDERS__STATE": "/var/lib/bgremover"}
    service.control("start")
    broken = service.share / "inbox/broken.jpg"
    broken.write_bytes(b"no picture")
    until((service.share / "quarantine/broken.jpg").exists)
    told = service.machine.run(*as_daemon, "status", "--json", *config, check=True, **state)
    assert json.loads(told.stdout)["totals"]["quarantined"] == 1
    assert json.loads(told.stdout)["state"] == "running"
    service.machine.run(*as_daemon, "retry", "--all", *config, check=True, **state)
    until(lambda: len(service.events("image.quarantined")) == 2)


def test_an_instance_has_its_own_configuration_state_and_key(service: Service) -> None:
    machine = service.machine
    shoes = Service(machine, "bgremover@shoes")
    shoes.share = machine.tree / "srv/bgremover/shoes"
    folders = ("inbox", "outbox", "quarantine", "archive")
    lines = [f"  {name}: /srv/bgremover/shoes/{name}" for name in folders]
    machine.write("/etc/bgremover/shoes.yaml", "\n".join(["folders:", *lines, ""]))
    shoes.change("")
    service.control("start")
    shoes.control("start")
    shoes.drop("shoe.jpg")
    service.drop("mug.jpg")
    shoes.until_cut_out("shoe.jpg")
    service.until_cut_out("mug.jpg")
    assert (shoes.cut_outs(), service.cut_outs()) == ({"shoe.png"}, {"mug.png"})
    assert (machine.tree / "var/lib/bgremover/shoes/ledger.sqlite3").exists()
    machine.write("/etc/bgremover/shoes.key", "k-0000000000000000\n")
    shoes.change("LoadCredential=ideogram-api-key:/etc/bgremover/shoes.key\n")
    shoes.control("restart")
    shoes.drop("boot.jpg")
    until(lambda: "key refused" in shoes.show("StatusText"))
    shutil.rmtree(shoes.share)
