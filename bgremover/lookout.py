"""Watches the watching: native events where they can be trusted, sweeps where not, revival.

Events are hints. This decides whether there are any, looks every few seconds whether the inbox is
still the folder it was and whether the threads that bring events live, and starts them anew.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import structlog

from bgremover.core.errors import FolderLost, LocalFault
from bgremover.edges import mounts
from bgremover.edges.inbox import Inbox
from bgremover.edges.watcher import Watcher
from bgremover.intake import Intake

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


class Lookout:
    """Keeps the intake supplied with hints.

    Args:
        inbox: The folder.
        intake: Who is told.
        watching: The settings.
        trouble: Called with the fault when the inbox is lost, with None when it is there.
    """

    def __init__(self, inbox: Inbox, intake: Intake, watching: Watching, trouble: Trouble) -> None:
        self._inbox = inbox
        self._intake = intake
        self._watching = watching
        self._trouble = trouble
        self._watcher: Eyes | None = None
        self._root: tuple[int, int] | None = None
        self._degraded: str | None = None
        self._lost = False

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
            root = await asyncio.to_thread(self._inbox.root_identity)
        except LocalFault as fault:
            await self._lose(fault)
            return
        if self._lost:
            self._lost = False
            log.info("watch.restored", file=self._inbox.root)
        self._trouble(None)
        if root != self._root:
            await self._arm(root)
        elif self._watcher is not None and (why := self._watcher.ailing()):
            log.warning("watch.degraded", why=why, hint="it is started anew")
            await self._arm(root)
        elif self._watcher is not None:
            self._compare_watches(self._watcher)

    async def _lose(self, fault: LocalFault) -> None:
        if not self._lost:
            self._lost = True
            log.error("watch.lost", message=fault.message, hint=fault.hint)
            await self.stop()
            self._root = None
        self._trouble(FolderLost(fault.message))

    async def _arm(self, root: tuple[int, int]) -> None:
        await self.stop()
        self._root = root
        why = await asyncio.to_thread(self._why_sweep)
        if why is None:
            loop = asyncio.get_running_loop()
            why = await asyncio.to_thread(self._start_watcher, loop)
        self._degrade(why)
        # What happened while nobody watched is found by the sweep.
        self._intake.doubt("watching anew")

    def _why_sweep(self) -> str | None:
        if self._watching.backend == "polling":
            return "watch.backend is polling"
        if self._watching.backend == "native":
            return None
        below = mounts.mounts_under(self._inbox.root, mounts.read_mounts())
        untold = [mount for mount in below if not mounts.trustworthy(mount.fs_type)]
        if not untold:
            return None
        return f"{untold[0].point} is {untold[0].fs_type}, where others' changes make no events"

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
        if self._watching.recursive and count is not None and count < folders:
            self._degrade(f"{count} of {folders} folders are watched: {LIMIT_HINT}")
        elif self._degraded is not None and count is not None:
            self._degrade(None)

    def _degrade(self, why: str | None) -> None:
        told = why is not None and why != self._degraded
        self._degraded = why
        native, polling = self._watching.rescan_seconds, self._watching.poll_seconds
        self._intake.set_sweep_seconds(native if why is None else min(native, polling))
        if told:
            log.warning("watch.degraded", why=why, sweep_seconds=min(native, polling))


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[str], None], argument: str) -> None:
    # watchdog's thread must never see an exception: it would end silently. The loop is closed
    # while the daemon stops, when no event matters any more.
    try:
        loop.call_soon_threadsafe(function, argument)
    except RuntimeError:
        return
