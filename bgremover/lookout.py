"""Watches the watching: native events where they can be trusted, sweeps where not, revival.

Events are hints. This decides whether there are any, looks every few seconds whether the inbox is
still the folder it was and whether the threads that bring events live, and starts them anew.
"""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import structlog

from bgremover.core.errors import FolderLost, LocalFault
from bgremover.edges import mounts
from bgremover.edges.inbox import Inbox
from bgremover.edges.watcher import Watcher
from bgremover.intake import EVERYTHING, Intake, Rhythm

log = structlog.get_logger()

LIMIT_HINT = "raise the sysctls fs.inotify.max_user_watches and fs.inotify.max_user_instances"

Trouble = Callable[[LocalFault | None], None]


@dataclass(frozen=True, slots=True)
class Watching:
    """The settings: `watch` of the configuration, times in seconds."""

    backend: Literal["auto", "native", "polling"]
    recursive: bool
    poll_seconds: float
    rescan_seconds: float


class Eyes(Protocol):
    """What brings events: `edges.watcher.Watcher`."""

    def start(self) -> None:
        """Begin. Raises OSError when the kernel refuses."""
        ...

    def stop(self) -> None:
        """End."""
        ...

    def ailing(self) -> str | None:
        """Say in words what is dead; None while all lives."""
        ...

    def watch_count(self) -> int | None:
        """Say how many folders are watched; None where that is unknown."""
        ...


@dataclass(frozen=True, slots=True)
class _Ground:
    """What is watched: device and inode of the inbox, and the mounts that it shows."""

    root: tuple[int, int]
    shown: tuple[mounts.Mount, ...]


@dataclass(frozen=True, slots=True)
class _Untold:
    """Folders without events, as "nas/" ("" is the whole inbox), and why there are none."""

    folders: tuple[str, ...] = ()
    why: str | None = None


class Lookout:
    """Keeps the intake supplied with hints.

    Args:
        inbox: The folder.
        intake: Who is told.
        watching: The settings.
        trouble: Called with the fault when the inbox is lost, with None when it is there.
        read_mounts: Returns the mounts of this machine.
    """

    def __init__(
        self,
        inbox: Inbox,
        intake: Intake,
        watching: Watching,
        trouble: Trouble,
        read_mounts: Callable[[], tuple[mounts.Mount, ...]] = mounts.read_mounts,
    ) -> None:
        self._inbox = inbox
        self._intake = intake
        self._watching = watching
        self._trouble = trouble
        self._read_mounts = read_mounts
        self._watcher: Eyes | None = None
        self._ground: _Ground | None = None
        self._untold = _Untold()
        self._degraded = _Untold()
        self._suspected_at: int | None = None
        self._lost = False

    @property
    def lost(self) -> bool:
        """Whether the inbox is not there."""
        return self._lost

    @property
    def ailment(self) -> str | None:
        """What is wrong with the watching now, in words; None when all is well."""
        if self._lost:
            return "the inbox is lost"
        return self._watcher.ailing() if self._watcher is not None else None

    async def start(self) -> None:
        """Begin to watch. An inbox that is not there is waited for."""
        await self.look()

    async def stop(self) -> None:
        """End the watching; may be called more than once."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            await asyncio.to_thread(watcher.stop)

    async def look(self) -> None:
        """See whether the inbox is there and watched, and mend what is not."""
        try:
            ground = await asyncio.to_thread(self._look_at_ground)
        except LocalFault as fault:
            await self._lose(fault)
            return
        if self._lost:
            self._lost = False
            log.info("watch.restored", file=self._inbox.root)
        self._trouble(None)
        if ground != self._ground:
            await self._arm(ground)
        elif self._watcher is not None and (why := self._watcher.ailing()):
            log.warning("watch.degraded", why=why, hint="it is started anew")
            await self._arm(ground)
        elif self._watcher is not None:
            self._compare_watches(self._watcher)

    def _look_at_ground(self) -> _Ground:
        root = self._inbox.root_identity()
        return _Ground(root, mounts.mounts_under(self._inbox.root, self._read_mounts()))

    async def _lose(self, fault: LocalFault) -> None:
        if not self._lost:
            self._lost = True
            log.error("watch.lost", message=fault.message, hint=fault.hint)
            await self.stop()
            self._ground = None
        self._trouble(FolderLost(fault.message))

    async def _arm(self, ground: _Ground) -> None:
        await self.stop()
        self._ground, self._suspected_at = ground, None
        local = all(mounts.trustworthy(mount.fs_type) for mount in ground.shown)
        self._inbox.leases = self._intake.trust_ctime = local
        self._untold = self._without_events(ground)
        if self._untold.folders != EVERYTHING:
            loop = asyncio.get_running_loop()
            why = await asyncio.to_thread(self._start_watcher, loop)
            if why is not None:
                self._untold = _Untold(EVERYTHING, why)
        self._degrade(self._untold)
        self._set_rhythm()
        # What happened while nobody watched is found by the sweep.
        self._intake.doubt("watching anew")

    def _without_events(self, ground: _Ground) -> _Untold:
        if self._watching.backend == "polling":
            return _Untold(EVERYTHING, "watch.backend is polling")
        if self._watching.backend == "native":
            return _Untold()
        untold = [mount for mount in ground.shown if not mounts.trustworthy(mount.fs_type)]
        folders = sorted({self._folder_of(mount) for mount in untold})
        outermost = [one for one in folders if not _lies_in_another(one, folders)]
        why = ", ".join(f"{mount.point} is {mount.fs_type}" for mount in untold)
        words = f"{why}: changes made elsewhere make no events there" if untold else None
        return _Untold(tuple(outermost), words)

    def _folder_of(self, mount: mounts.Mount) -> str:
        inside = os.path.join(self._inbox.root, "")
        return f"{mount.point[len(inside) :]}/" if mount.point.startswith(inside) else ""

    def _start_watcher(self, loop: asyncio.AbstractEventLoop) -> str | None:
        watcher = Watcher(
            self._inbox.root,
            lambda path: _call(loop, self._intake.hint, path),
            lambda reason: _call(loop, self._intake.doubt, reason),
            recursive=self._watching.recursive,
        )
        try:
            watcher.start()
        except OSError as error:
            return f"events cannot be had ({error.strerror or error}): {LIMIT_HINT}"
        self._watcher = watcher
        return None

    def _compare_watches(self, watcher: Eyes) -> None:
        # watchdog swallows the kernel's refusal to watch a sub-folder.
        count, folders = watcher.watch_count(), self._intake.folders
        if not self._watching.recursive or count is None:
            return
        if count >= folders:
            self._suspected_at = None
            self._change(self._untold)
        elif self._suspected_at is None:
            # Folders may have gone since they were counted: count them anew before it is told.
            self._suspected_at = self._intake.sweeps
            self._intake.doubt("fewer folders are watched than there are")
        elif self._intake.sweeps > self._suspected_at:
            why = f"{count:,} of {folders:,} folders are watched: {LIMIT_HINT}"
            self._change(_Untold(EVERYTHING, why))

    def _change(self, untold: _Untold) -> None:
        if untold != self._degraded:
            self._degrade(untold)
            self._set_rhythm()

    def _degrade(self, untold: _Untold) -> None:
        if untold.why is not None and untold.why != self._degraded.why:
            log.warning(
                "watch.degraded",
                why=untold.why,
                folders=[folder or "." for folder in untold.folders],
                sweep_seconds=self._watching.poll_seconds,
            )
        self._degraded = untold

    def _set_rhythm(self) -> None:
        watching = self._watching
        self._intake.set_rhythm(
            Rhythm(
                watching.rescan_seconds,
                watching.poll_seconds,
                self._degraded.folders,
                events=self._watcher is not None,
            )
        )


def _lies_in_another(folder: str, folders: list[str]) -> bool:
    return any(folder != other and folder.startswith(other) for other in folders)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[str], None], argument: str) -> None:
    # watchdog's thread must never see an exception: it would end silently. The loop is closed
    # while the daemon stops, when no event matters any more.
    try:
        loop.call_soon_threadsafe(function, argument)
    except RuntimeError:
        return
