"""Whether anybody watches: a real folder, real events, real mounts where the test is root."""

import asyncio
import ctypes
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog

from bgremover.core.errors import LocalFault
from bgremover.core.ignoring import Ignore
from bgremover.core.settling import Patience
from bgremover.edges import mounts
from bgremover.edges.inbox import Inbox, Sighting
from bgremover.edges.watcher import Watcher
from bgremover.intake import EVENT_SECONDS, Intake, Rhythm
from bgremover.lookout import Lookout, Watching
from bgremover.timing import Clock
from tests.apart import NOBODY, Missing, apart, open_to_all

MARKER = ".bgremover-here"
CLONE_NEWUSER = 0x10000000


def no_mounts() -> tuple[mounts.Mount, ...]:
    return (mounts.Mount("/", "ext4", "/dev/vda"),)


@dataclass
class Post:
    """An inbox, who waits for its files and who looks after the watching."""

    root: Path
    backend: Any = "auto"
    marker: str | None = None
    read_mounts: Callable[[], tuple[mounts.Mount, ...]] = no_mounts
    claimed: list[str] = field(default_factory=list)
    troubles: list[LocalFault | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inbox = Inbox(self.root, Ignore(), marker=self.marker)
        self.intake = Intake(
            self.inbox,
            Patience(0.05, 0.05, 60.0),
            Clock(),
            self._claim,
            rhythm=Rhythm(300.0, 5.0),
            trust_ctime=True,
        )
        watching = Watching(self.backend, True, 5.0, 300.0)
        self.lookout = Lookout(
            self.inbox, self.intake, watching, self.troubles.append, self.read_mounts
        )

    def _claim(self, sighting: Sighting) -> bool:
        self.claimed.append(sighting.path)
        return True

    def ailment(self) -> str | None:
        return self.lookout.ailment

    def trouble(self) -> str | None:
        last = self.troubles[-1]
        return last.code if last else None

    def polled(self) -> tuple[str, ...]:
        return self.intake._rhythm.polled

    @property
    def watcher(self) -> Watcher:
        watcher = self.lookout._watcher
        assert isinstance(watcher, Watcher)
        return watcher

    async def takes(self, name: str, seconds: float = 10.0) -> None:
        await until(lambda: name in self.claimed, seconds)

    def run(self, story: Callable[["Post"], Awaitable[None]]) -> None:
        async def told() -> None:
            async with asyncio.TaskGroup() as group:
                intake = group.create_task(self.intake.run())
                await self.lookout.start()
                try:
                    await story(self)
                finally:
                    await self.lookout.stop()
                    intake.cancel()

        asyncio.run(told())


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        await asyncio.sleep(0.01)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


@pytest.fixture
def told() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


def events(told: list[Any]) -> list[str]:
    return [line["event"] for line in told]


# --- revival --------------------------------------------------------------------------------


def end_emitter(watcher: Watcher) -> None:
    assert watcher._observer is not None
    for emitter in list(watcher._observer.emitters):
        emitter.stop()
        emitter.join()


def end_observer(watcher: Watcher) -> None:
    assert watcher._observer is not None
    watcher._observer.stop()
    watcher._observer.join()


@pytest.mark.parametrize("kill", [end_emitter, end_observer])
def test_a_thread_that_ended_is_revived_and_nothing_is_missed(
    root: Path, told: list[Any], kill: Callable[[Watcher], None]
) -> None:
    async def story(post: Post) -> None:
        await until(lambda: post.intake.sweeps == 1)
        kill(post.watcher)
        (root / "meanwhile.jpg").touch()
        assert post.ailment() is not None
        await post.lookout.look()
        assert post.ailment() is None
        await post.takes("meanwhile.jpg")
        (root / "after.jpg").touch()
        await post.takes("after.jpg")

    Post(root).run(story)
    assert events(told) == ["watch.degraded"]
    assert told[0]["hint"] == "it is started anew"


# --- where events cannot be trusted ---------------------------------------------------------


def test_a_share_below_the_inbox_is_swept_and_the_rest_is_watched(
    root: Path, told: list[Any]
) -> None:
    (root / "nas" / "x").mkdir(parents=True)
    shares = (
        *no_mounts(),
        mounts.Mount(f"{root}/nas", "cifs", "//server/photos"),
        mounts.Mount(f"{root}/nas/x", "nfs4", "server:/photos"),
    )

    async def story(post: Post) -> None:
        assert post.intake._rhythm == Rhythm(300.0, 5.0, ("nas/",), events=True)
        await until(lambda: post.intake.sweeps == 1)
        (root / "a.jpg").touch()
        await post.takes("a.jpg")

    Post(root, read_mounts=lambda: shares).run(story)
    (line,) = told
    assert line["event"] == "watch.degraded"
    assert f"{root}/nas is cifs" in line["why"]
    assert (line["folders"], line["sweep_seconds"]) == (["nas/"], 5.0)


@pytest.mark.parametrize(
    ("backend", "fs_type", "folders", "why"),
    [
        ("auto", "nfs4", ("",), "/ is nfs4"),
        ("auto", "fuse.sshfs", ("",), "/ is fuse.sshfs"),
        ("polling", "ext4", ("",), "watch.backend is polling"),
        ("native", "nfs4", (), None),
        ("auto", "overlay", (), None),
        ("auto", "ext4", (), None),
    ],
)
def test_the_whole_inbox_is_swept_where_it_must_be_and_why_is_told(
    root: Path,
    told: list[Any],
    backend: str,
    fs_type: str,
    folders: tuple[str, ...],
    why: str | None,
) -> None:
    async def story(post: Post) -> None:
        assert post.polled() == folders
        assert (post.lookout._watcher is None) == bool(folders)
        assert post.intake.sweep_seconds == (5.0 if folders else 300.0)

    Post(root, backend, read_mounts=lambda: (mounts.Mount("/", fs_type, "x"),)).run(story)
    assert events(told) == (["watch.degraded"] if why else [])
    assert why is None or why in told[0]["why"]


def trusted(post: Post) -> tuple[bool, bool]:
    return post.inbox.leases, post.intake.trust_ctime


def test_a_share_that_is_mounted_later_is_noticed(root: Path, told: list[Any]) -> None:
    found = [*no_mounts()]

    async def story(post: Post) -> None:
        (root / "nas").mkdir()
        found.append(mounts.Mount(f"{root}/nas", "cifs", "//server/photos"))
        await post.lookout.look()
        assert post.polled() == ("nas/",)
        assert trusted(post) == (False, False)
        found.pop()
        await post.lookout.look()
        assert post.polled() == ()
        assert trusted(post) == (True, True)

    Post(root, read_mounts=lambda: tuple(found)).run(story)
    assert events(told) == ["watch.degraded"]


class Blind:
    """Eyes that see fewer folders than there are, as at the limit of the kernel."""

    def __init__(self, count: int) -> None:
        self.count = count

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def ailing(self) -> str | None:
        return None

    def watch_count(self) -> int | None:
        return self.count


def test_at_the_limit_of_the_kernel_the_sysctl_is_named_and_it_is_swept(
    root: Path, told: list[Any]
) -> None:
    for number in range(9):
        (root / str(number)).mkdir()

    async def story(post: Post) -> None:
        await until(lambda: post.intake.folders == 10)
        post.watcher.stop()
        post.lookout._watcher = blind = Blind(4)
        await post.lookout.look()
        assert told == []
        sweeps = post.intake.sweeps
        await until(lambda: post.intake.sweeps > sweeps)
        await post.lookout.look()
        assert post.intake.sweep_seconds == 5.0
        blind.count = 10
        await post.lookout.look()
        assert post.polled() == ()

    Post(root).run(story)
    assert events(told) == ["watch.degraded"]
    assert told[0]["why"].startswith(
        "4 of 10 folders are watched: raise the sysctls fs.inotify.max"
    )


def check_watch_limit(tmp_path: Path) -> None:
    root = tmp_path / "inbox"
    for number in range(50):
        (root / str(number)).mkdir()
    try:
        # In a user namespace of its own the limit is nobody else's.
        if ctypes.CDLL(None).unshare(CLONE_NEWUSER):
            raise Missing("needs user namespaces, to lower the limit of watches")
        Path("/proc/sys/user/max_inotify_watches").write_text("20")
    except OSError as error:
        raise Missing("needs the right to lower the limit of watches of a namespace") from error

    async def story(post: Post) -> None:
        await until(lambda: post.intake.folders == 51)
        assert (post.watcher.watch_count() or 0) < 51
        await post.lookout.look()
        sweeps = post.intake.sweeps
        await until(lambda: post.intake.sweeps > sweeps)
        await post.lookout.look()
        assert post.intake.sweep_seconds == 5.0

    Post(root).run(story)


def test_the_real_limit_of_the_kernel_is_noticed(tmp_path: Path, root: Path) -> None:
    del root
    apart(lambda: check_watch_limit(tmp_path))


def test_folders_that_have_gone_are_no_limit(root: Path, told: list[Any]) -> None:
    for number in range(9):
        (root / str(number)).mkdir()

    async def story(post: Post) -> None:
        await until(lambda: post.intake.folders == 10)
        for number in range(9):
            (root / str(number)).rmdir()
        await until(lambda: post.watcher.watch_count() == 1)
        sweeps = post.intake.sweeps
        await post.lookout.look()
        if post.intake.sweeps == sweeps:
            await post.lookout.look()
        await until(lambda: post.intake.sweeps > sweeps)
        await post.lookout.look()
        assert post.intake.sweep_seconds == 300.0

    Post(root).run(story)
    assert told == []


# --- the share goes away --------------------------------------------------------------------


def rename_away(root: Path) -> None:
    root.rename(root.with_name("away"))


def rename_back(root: Path) -> None:
    root.with_name("away").rename(root)


def replace_by_empty(root: Path) -> None:
    rename_away(root)
    root.mkdir()


def put_back(root: Path) -> None:
    root.rmdir()
    rename_back(root)


@pytest.mark.parametrize(
    ("lose", "bring_back"), [(rename_away, rename_back), (replace_by_empty, put_back)]
)
def test_an_inbox_without_its_marker_is_lost_and_watched_anew_when_it_is_back(
    root: Path,
    told: list[Any],
    lose: Callable[[Path], None],
    bring_back: Callable[[Path], None],
) -> None:
    (root / MARKER).touch()
    (root / "before.jpg").touch()

    async def story(post: Post) -> None:
        await post.takes("before.jpg")
        lose(root)
        await post.lookout.look()
        assert post.trouble() == "folder_lost"
        assert post.ailment() == "the inbox is lost"
        await post.lookout.look()
        bring_back(root)
        (root / "meanwhile.jpg").touch()
        await post.lookout.look()
        assert post.trouble() is None
        await post.takes("meanwhile.jpg")
        (root / "after.jpg").touch()
        await post.takes("after.jpg")
        assert post.claimed.count("before.jpg") == 1

    Post(root, marker=MARKER).run(story)
    assert events(told) == ["watch.lost", "watch.restored"]


def test_without_a_marker_an_empty_folder_is_watched_and_nothing_counts_as_deleted(
    root: Path, told: list[Any]
) -> None:
    (root / "before.jpg").touch()

    async def story(post: Post) -> None:
        await post.takes("before.jpg")
        replace_by_empty(root)
        await post.lookout.look()
        (root / "new.jpg").touch()
        await post.takes("new.jpg")
        (root / "new.jpg").unlink()
        put_back(root)
        await post.lookout.look()
        (root / "after.jpg").touch()
        await post.takes("after.jpg")
        assert post.claimed.count("before.jpg") == 1

    Post(root).run(story)
    assert told == []


def test_a_marker_that_was_never_made_is_told_with_its_name(root: Path, told: list[Any]) -> None:
    (root / "a.jpg").touch()

    async def story(post: Post) -> None:
        assert post.trouble() == "folder_lost"
        await until(lambda: post.intake.sweep_age < 1)
        assert post.claimed == []

    Post(root, marker=MARKER).run(story)
    assert f"has no {MARKER} (watch.marker)" in told[0]["message"]


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def unmount(point: Path) -> None:
    subprocess.run(["umount", "--lazy", str(point)], check=True)


def in_own_mounts(tmp_path: Path, piece: Callable[[], object]) -> None:
    """Run `piece` where nobody else sees what it mounts; needs root."""
    ground = tmp_path / "ground"
    ground.mkdir()
    apart(piece, mounts={ground: "size=16m"})


def check_remount(tmp_path: Path) -> None:
    ground, root = tmp_path / "ground", tmp_path / "inbox"
    (ground / "share").mkdir()
    (ground / "share" / MARKER).touch()
    (ground / "share" / "before.jpg").touch()

    async def story(post: Post) -> None:
        await post.takes("before.jpg")
        unmount(root)
        await post.lookout.look()
        assert post.trouble() == "folder_lost"
        (ground / "share" / "meanwhile.jpg").touch()
        mount("--bind", str(ground / "share"), str(root))
        await post.lookout.look()
        assert post.trouble() is None
        await post.takes("meanwhile.jpg")
        (root / "after.jpg").touch()
        await post.takes("after.jpg")
        assert post.claimed.count("before.jpg") == 1

    mount("--bind", str(ground / "share"), str(root))
    Post(root, marker=MARKER, read_mounts=mounts.read_mounts).run(story)


def test_a_real_mount_that_goes_and_comes_back(tmp_path: Path, root: Path) -> None:
    del root
    in_own_mounts(tmp_path, lambda: check_remount(tmp_path))


def check_mount_over(tmp_path: Path) -> None:
    root = tmp_path / "inbox"
    (root / "before.jpg").touch()

    async def story(post: Post) -> None:
        await post.takes("before.jpg")
        mount("-t", "tmpfs", "none", str(root))
        (root / "a.jpg").touch()
        await post.lookout.look()
        await post.takes("a.jpg")
        (root / "b.jpg").touch()
        await post.takes("b.jpg")

    Post(root, read_mounts=mounts.read_mounts).run(story)


def test_what_is_mounted_over_the_inbox_is_watched_instead(tmp_path: Path, root: Path) -> None:
    del root
    in_own_mounts(tmp_path, lambda: check_mount_over(tmp_path))


# --- an overlay that is changed underneath --------------------------------------------------


def check_overlay(tmp_path: Path) -> None:
    ground, root = tmp_path / "ground", tmp_path / "inbox"
    for name in ("lower", "upper", "work"):
        (ground / name).mkdir()
    options = ",".join(f"{name}dir={ground / name}" for name in ("lower", "upper", "work"))
    try:
        mount("-t", "overlay", "none", "-o", options, str(root))
    except subprocess.CalledProcessError as error:
        raise Missing("needs a kernel that mounts overlays") from error

    async def story(post: Post) -> None:
        assert post.polled() == ()
        await until(lambda: post.intake._sweep_at > time.monotonic() + 200)
        swept = time.monotonic()
        await until(lambda: time.monotonic() > swept + 0.05)  # change times are that coarse
        (ground / "upper" / "behind.jpg").touch()
        event_due = time.monotonic() + EVENT_SECONDS + 0.1
        await until(lambda: time.monotonic() > event_due)
        assert post.claimed == []
        post.intake.doubt("as if rescan_seconds were over")
        await post.takes("behind.jpg")
        assert (post.intake.missed, post.intake.sweep_seconds) == (1, 5.0)

    Post(root, read_mounts=mounts.read_mounts).run(story)


def test_an_overlay_that_is_changed_underneath_is_found_out_and_swept_often(
    tmp_path: Path, root: Path
) -> None:
    del root
    in_own_mounts(tmp_path, lambda: check_overlay(tmp_path))


# --- rights ---------------------------------------------------------------------------------


def test_an_inbox_that_may_no_longer_be_read_is_lost(told: list[Any]) -> None:
    def piece(folder: Path) -> None:
        root = folder / "inbox"
        root.mkdir()

        async def story(post: Post) -> None:
            root.chmod(0)
            await post.lookout.look()
            assert post.ailment() == "the inbox is lost"
            root.chmod(0o700)
            (root / "a.jpg").touch()
            await post.lookout.look()
            await post.takes("a.jpg")

        Post(root).run(story)

    with open_to_all() as folder:
        apart(lambda: piece(folder), uid=NOBODY)
    assert told == []
