"""The image in a real Docker engine: as any user, read-only, without capabilities.

The engine is the one that DOCKER_HOST names, else this machine's. It has to run here, since the
folders of a test are mounted into its containers.
"""

import json
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox
from tests.site import KEY, photo, until

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent.parent
TAG = "bgremover:test"
LOCKED_IN = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")
ROOT_FIRST = ("--user=0:0", "--cap-add=SETUID", "--cap-add=SETGID")
NOT_OURS = {"/run", "/run/key", "/images", "/state"}
"""Where the engine mounts something."""


def docker(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def answer(*arguments: str) -> str:
    done = docker(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="session")
def image() -> Iterator[str]:
    """Build the image from the Dockerfile as it is."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give folders to other users")
    if shutil.which("docker") is None or docker("version").returncode:
        pytest.skip("needs a Docker engine of this machine (docker.io, DOCKER_HOST)")
    base = (ROOT / "Dockerfile").read_text().partition("\nFROM ")[2].split()[0]
    if docker("image", "inspect", base).returncode and docker("pull", base).returncode:
        pytest.skip(f"needs the image {base}, or the network to get it")
    built = docker("build", "--network=host", f"--tag={TAG}", str(ROOT), timeout=500)
    assert built.returncode == 0, built.stderr[-4000:]
    yield TAG
    docker("image", "rm", TAG)


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with RunningSandbox(SandboxOptions(key=KEY, latency_seconds=0.05)) as running:
        yield running


class Container:
    """A container of the image, by its id."""

    def __init__(self, number: str) -> None:
        self.number = number

    def look(self, what: str) -> str:
        return answer("inspect", "--format", what, self.number)

    def log(self) -> str:
        done = docker("logs", self.number)
        return done.stdout + done.stderr

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = (json.loads(line) for line in self.log().splitlines() if line.startswith("{"))
        return [line for line in lines if line["event"] == name]

    def until_event(self, name: str, count: int = 1) -> None:
        until(lambda: len(self.events(name)) >= count or self._gone(), 30)

    def _gone(self) -> bool:
        assert self.look("{{.State.Running}}") == "true", self.log()
        return False

    def until_ill_or_well(self, words: str) -> None:
        until(lambda: self.look("{{.State.Health.Status}}") == words, 60)

    def stop(self) -> tuple[int, float]:
        """Send SIGTERM as `docker stop` does; return the exit code and how many seconds it took."""
        begin = time.monotonic()
        answer("stop", "--time=20", self.number)
        return int(self.look("{{.State.ExitCode}}")), time.monotonic() - begin


@dataclass(frozen=True, slots=True)
class Nas:
    """Folders that belong to one user, and what each container on them is started with."""

    root: Path
    url: str
    owner: tuple[int, int]

    def options(self) -> list[str]:
        return [
            "--network=host",
            f"--volume={self.root}/images:/images",
            f"--volume={self.root}/state:/state",
            f"--volume={self.root}/key:/run/key:ro",
            "--env=IDEOGRAM_API_KEY_FILE=/run/key",
            f"--env=BGREMOVER_API__BASE_URL={self.url}",
            "--env=BGREMOVER_WATCH__SETTLE_SECONDS=0.2",
            "--health-interval=1s",
        ]

    def drop(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.write_bytes(data)
        os.chown(path, *self.owner)
        path.rename(self.root / "images/inbox" / name)

    def made(self) -> list[Path]:
        """All that the program has made."""
        parts = (self.root / "images", self.root / "state")
        return [path for part in parts for path in part.rglob("*") if not path.is_symlink()]

    @contextmanager
    def running(self, *options: str, locked: tuple[str, ...] = LOCKED_IN) -> Iterator[Container]:
        container = Container(answer("run", "--detach", *self.options(), *locked, *options, TAG))
        try:
            yield container
        finally:
            docker("rm", "--force", container.number)

    def refused(self, *options: str) -> tuple[int, str]:
        """Run a container that has to end by itself; return its exit code and what it said."""
        done = docker("run", "--rm", *self.options(), *LOCKED_IN, *options, TAG)
        return done.returncode, done.stderr


Prepare = Callable[[int, int], Nas]


@pytest.fixture
def nas(image: str, tmp_path: Path, sandbox: RunningSandbox) -> Prepare:
    assert image == TAG

    def prepare(user: int, group: int) -> Nas:
        for name in ("images", "state"):
            (tmp_path / name).mkdir()
        (tmp_path / "key").write_text(KEY)
        (tmp_path / "key").chmod(0o600)
        for name in ("images", "state", "key"):
            os.chown(tmp_path / name, user, group)
        return Nas(tmp_path, sandbox.url, (user, group))

    return prepare


def owner_of(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


@pytest.mark.parametrize(
    ("owner", "options"),
    [
        ((1000, 1000), ()),
        ((99, 100), ("--user=99:100",)),
        ((12345, 12345), ("--user=12345:12345",)),
        ((99, 100), (*ROOT_FIRST, "--env=PUID=99", "--env=PGID=100")),
        ((0, 0), ("--user=0:0",)),
    ],
)
def test_images_travel_as_any_user(
    nas: Prepare, sandbox: RunningSandbox, owner: tuple[int, int], options: tuple[str, ...]
) -> None:
    site = nas(*owner)
    with site.running(*options) as container:
        container.until_event("daemon.ready")
        for number in range(3):
            site.drop(f"{number}.jpg", photo(number))
        site.drop("text.jpg", b"I am no picture. " * 20)
        container.until_event("image.saved", 3)
        container.until_event("image.quarantined")
        container.until_ill_or_well("healthy")
        said = answer("exec", container.number, "bgremover", "status")
        code, seconds = container.stop()
        written = answer("diff", container.number)
        assert container.events("daemon.stopped")
    images = site.root / "images"
    assert {path.name for path in (images / "outbox").iterdir()} == {"0.png", "1.png", "2.png"}
    assert {path.name for path in (images / "archive").iterdir()} == {"0.jpg", "1.jpg", "2.jpg"}
    assert len(sandbox.state.payments) == 3
    assert {owner_of(path) for path in site.made()} == {owner}
    assert "3 cut out" in said
    assert code == 0
    assert seconds < 8
    assert {line.split(maxsplit=1)[1] for line in written.splitlines()} <= NOT_OURS


def test_nothing_is_written_into_a_container_that_would_take_it(nas: Prepare) -> None:
    site = nas(0, 0)
    with site.running("--user=0:0", locked=()) as container:
        container.until_event("daemon.ready")
        site.drop("a.jpg", photo())
        container.until_event("image.saved")
        container.until_ill_or_well("healthy")
        written = answer("diff", container.number)
        answer("exec", container.number, "python", "-c", "open('/here', 'w')")
        assert "A /here" in answer("diff", container.number)
    assert {line.split(maxsplit=1)[1] for line in written.splitlines()} <= NOT_OURS


@pytest.mark.parametrize(
    ("umask", "file", "folder"),
    [("022", 0o644, 0o755), ("002", 0o664, 0o775), ("077", 0o600, 0o700), ("000", 0o666, 0o777)],
)
def test_the_umask_says_who_else_may_use_new_files(
    nas: Prepare, umask: str, file: int, folder: int
) -> None:
    site = nas(1000, 1000)
    with site.running(f"--env=UMASK={umask}") as container:
        container.until_event("daemon.ready")
        site.drop("a.jpg", photo())
        site.drop("bad.jpg", b"no picture")
        container.until_event("image.saved")
        container.until_event("image.quarantined")
    images = site.root / "images"
    new = (images / "outbox/a.png", images / "quarantine/bad.jpg.error.json")
    assert {stat.S_IMODE(path.stat().st_mode) for path in new} == {file}
    assert stat.S_IMODE((images / "outbox").stat().st_mode) == folder
    assert stat.S_IMODE((site.root / "state/ledger.sqlite3").stat().st_mode) == 0o600


@pytest.mark.parametrize(("zone", "hours"), [("Asia/Tokyo", "+0900"), ("Etc/UTC", "+0000")])
def test_the_time_zone_is_known(image: str, zone: str, hours: str) -> None:
    run = ("run", "--rm", "--network=none", *LOCKED_IN, f"--env=TZ={zone}", "--entrypoint=python")
    assert answer(*run, image, "-c", "import time; print(time.strftime('%z'))") == hours


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--env=BGREMOVER_QUEUE__WORKERS=0",), "BGREMOVER_QUEUE__WORKERS"),
        (("--env=IDEOGRAM_API_KEY_FILE=/run/no-key",), "/run/no-key"),
        (("--env=UMASK=9",), "UMASK"),
        (("--user=0:0", "--env=PUID=1000", "--env=PGID=1000"), "SETUID and SETGID"),
        (("--user=0:0", "--env=PUID=me", "--env=PGID=1000"), "PUID"),
        ((*ROOT_FIRST, "--env=PUID=1000"), "PGID: is not set"),
        (("--user=4711:4711",), "/state"),
    ],
)
def test_what_is_set_up_wrongly_ends_with_78_and_a_reason(
    nas: Prepare, options: tuple[str, ...], words: str
) -> None:
    code, said = nas(1000, 1000).refused(*options)
    assert code == 78, said
    assert words in said
    assert "Traceback" not in said


def test_a_plain_user_is_told_that_puid_is_ignored(nas: Prepare) -> None:
    with nas(1000, 1000).running("--env=PUID=99", "--env=PGID=100") as container:
        container.until_event("daemon.ready")
        assert "PUID and PGID are ignored: only root can change the user, this is 1000:1000" in (
            container.log()
        )


@pytest.mark.parametrize("latency", [3.0, 60.0])
def test_a_call_in_flight_gets_its_time_but_no_more(nas: Prepare, latency: float) -> None:
    site = nas(1000, 1000)
    slow = RunningSandbox(SandboxOptions(key=KEY, latency_seconds=latency))
    with slow, replace(site, url=slow.url).running() as container:
        container.until_event("daemon.ready")
        site.drop("a.jpg", photo())
        container.until_event("image.submitted")
        code, seconds = container.stop()
    assert code == 0
    assert seconds < 10  # what `docker stop` waits for by itself
    assert (site.root / "images/outbox/a.png").exists() == (latency < 8)
    assert (site.root / "images/inbox/a.jpg").exists() == (latency > 8)


def test_a_daemon_that_hangs_is_ill(nas: Prepare) -> None:
    retries = ("--health-retries=1", "--health-timeout=15s")
    with nas(1000, 1000).running(*retries) as container:
        container.until_ill_or_well("healthy")
        answer("kill", "--signal=STOP", container.number)
        container.until_ill_or_well("unhealthy")
        assert "1" in container.look("{{range .State.Health.Log}}{{.ExitCode}} {{end}}").split()


def test_docker_compose_takes_the_compose_file() -> None:
    if shutil.which("docker") is None or docker("compose", "version").returncode:
        pytest.skip("needs docker compose, version 2")
    done = docker("compose", "--file", str(ROOT / "compose.yaml"), "config", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_stand_in_runs_in_a_container_too(image: str) -> None:
    run = ("run", "--detach", "--network=none", "--tmpfs=/tmp", *LOCKED_IN)
    container = Container(answer(*run, image, "sandbox"))
    try:
        until(lambda: "sandbox on http://127.0.0.1:8765" in container.log(), 30)
        code, _ = container.stop()
    finally:
        docker("rm", "--force", container.number)
    assert code == 0
