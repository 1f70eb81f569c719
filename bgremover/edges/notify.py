"""Messages on their way: webhook, Apprise, commands, the heartbeat.

Each target has a queue of its own that is bounded, and a task of its own that has a time limit for
everything it does. So whoever does not answer holds up nobody: what does not fit is dropped, and
the number is told in the log.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import os
import signal
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import structlog

from bgremover import __version__
from bgremover.affinity import everywhere
from bgremover.core.errors import SetupError
from bgremover.core.notice import Happening, Message

log = structlog.get_logger()

CAPACITY = 100
"""Messages that wait for one target; they are few already."""
HOOK_CAPACITY = 10_000
"""Images that wait for a command; about 5 MB."""
TRIES = 6
FIRST_WAIT = 1.0
LONGEST_WAIT = 300.0
SEND_SECONDS = 15.0
APPRISE_SECONDS = 60.0
_KEPT = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "XDG_RUNTIME_DIR")
"""What a command sees of the environment, besides LC_*: never the key to the API."""
_SUCCESS = range(200, 300)
_WORTH_A_RETRY = (408, 425, 429)

# They write whole addresses, and one of a webhook is a secret.
for _talkative in ("httpx", "httpcore", "apprise"):
    logging.getLogger(_talkative).setLevel(logging.CRITICAL)


class Undelivered(Exception):
    """A message did not arrive.

    Args:
        why: In words, without the address.
        again: Whether another try may help.
    """

    def __init__(self, why: str, *, again: bool) -> None:
        super().__init__(why)
        self.again = again


class Channel(Protocol):
    """One way to tell somebody. `name` stands in the log."""

    name: str

    async def send(self, message: Message) -> None:
        """Tell; raises `Undelivered`."""
        ...


# --- the queue in front of a channel -------------------------------------------------------


class Target:
    """A channel with its queue and its patience.

    Args:
        channel: Where to.
        sleep: Waits between two tries, seconds.
    """

    def __init__(
        self, channel: Channel, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self.name = f"notify.{channel.name}"
        self._channel = channel
        self._sleep = sleep
        self._queue: deque[Message] = deque()
        self._news = asyncio.Event()
        self.dropped = 0

    def put(self, message: Message) -> None:
        """Take a message; the oldest one goes when too many wait."""
        if len(self._queue) >= CAPACITY:
            self._queue.popleft()
            self.dropped += 1
            log.warning("notify.dropped", channel=self._channel.name, all=self.dropped)
        self._queue.append(message)
        self._news.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._queue:
                await self._deliver(self._queue.popleft())

    async def _deliver(self, message: Message) -> None:
        for number in range(TRIES):
            why = await self._failure(message)
            if why is None:
                return
            if not why.again or number + 1 == TRIES:
                self._tell_failed(message, why, number + 1)
                return
            await self._sleep(min(FIRST_WAIT * 4**number, LONGEST_WAIT))

    async def _failure(self, message: Message) -> Undelivered | None:
        try:
            await self._channel.send(message)
        except Undelivered as failed:
            return failed
        except Exception as error:  # noqa: BLE001 - whatever a notifier does, images go on
            return Undelivered(type(error).__name__, again=True)
        return None

    def _tell_failed(self, message: Message, why: Undelivered, tries: int) -> None:
        log.warning(
            "notify.failed",
            channel=self._channel.name,
            about=message.kind,
            why=str(why),
            tries=tries,
            hint="`bgremover check` shows where messages go",
        )


def tls_from(bundle: Path | None) -> ssl.SSLContext | None:
    """Return what trusts the certificates of a file, PEM; None for the usual ones.

    Raises:
        SetupError: There are none in it.
    """
    if bundle is None:
        return None
    try:
        return ssl.create_default_context(cafile=bundle)
    except (OSError, ssl.SSLError) as error:
        raise SetupError(
            f"api.ca_bundle: {bundle} gives no certificates: {error.strerror or error}. "
            "Name a file that this user may read, with certificates in PEM."
        ) from error


# --- webhook -------------------------------------------------------------------------------


def signature(secret: bytes, at: str, body: bytes) -> str:
    """Return what the header X-Bgremover-Signature says: HMAC-SHA256 of `at`, a dot, the body.

    Args:
        secret: What sender and receiver know.
        at: The header X-Bgremover-Timestamp: Unix time; an old one is a replay.
        body: As it is sent.
    """
    return "sha256=" + hmac.new(secret, at.encode() + b"." + body, hashlib.sha256).hexdigest()


def secret_from(path: Path | None) -> Callable[[], bytes | None]:
    """Return what reads the secret afresh for each message, so that it may be changed.

    Raises:
        SetupError: It cannot be read now.
    """
    if path is None:
        return lambda: None

    def read() -> bytes:
        try:
            secret = path.read_bytes().strip()
        except OSError as error:
            raise SetupError(
                f"notify.webhook_secret_file: {path} cannot be read: {error.strerror}. "
                "Put the secret into a file that this user may read."
            ) from error
        if not secret:
            raise SetupError(f"notify.webhook_secret_file: {path} is empty. Put the secret there.")
        return secret

    read()
    return read


class Webhook:
    """POSTs each message as JSON.

    Args:
        url: Where to; a secret.
        secret: Gives what signs it, or None.
        clock: The wall clock, Unix time.
        tls: What certificates are trusted; None for the usual ones.
    """

    name = "webhook"

    def __init__(
        self,
        url: str,
        secret: Callable[[], bytes | None],
        clock: Callable[[], float],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._url = url
        self._secret = secret
        self._clock = clock
        self._tls = tls

    async def send(self, message: Message) -> None:
        """Tell.

        Raises:
            Undelivered: It was not taken.
        """
        body = json.dumps(message.document()).encode()
        at = str(int(self._clock()))
        headers = {"Content-Type": "application/json", "X-Bgremover-Timestamp": at}
        try:
            secret = self._secret()
        except SetupError as fault:
            raise Undelivered(fault.message, again=True) from None
        if secret is not None:
            headers["X-Bgremover-Signature"] = signature(secret, at, body)
        await request("POST", self._url, body, headers, self._tls)


async def request(
    method: str,
    url: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Send one request and take no interest in the answer but its status.

    Redirects are not followed: what is told must not go where nobody has written it down. The way
    is what $HTTPS_PROXY and its like say; `api.proxy` is for the API alone.

    Raises:
        Undelivered: There was no answer, or none of success.
    """
    named = {"User-Agent": f"bgremover/{__version__}", **(headers or {})}
    try:
        async with (
            asyncio.timeout(SEND_SECONDS),
            httpx.AsyncClient(timeout=SEND_SECONDS, verify=tls or True) as client,
            client.stream(method, url, content=body or None, headers=named) as answer,
        ):
            status = answer.status_code
    except (httpx.HTTPError, httpx.InvalidURL, ImportError, OSError, ValueError) as error:
        # ImportError: for a SOCKS proxy another package is needed.
        raise Undelivered(f"no answer ({type(error).__name__})", again=True) from None
    if status not in _SUCCESS:
        again = status >= 500 or status in _WORTH_A_RETRY  # noqa: PLR2004 - the server's fault
        raise Undelivered(f"the answer was {status}", again=again)


# --- Apprise -------------------------------------------------------------------------------


class AppriseChannel:
    """Tells everybody that Apprise knows.

    Args:
        urls: Addresses as Apprise writes them; secrets.

    Raises:
        SetupError: Apprise is not installed, or does not know an address.
    """

    name = "apprise"

    def __init__(self, urls: Iterable[str]) -> None:
        try:
            from apprise import Apprise  # noqa: PLC0415 - an extra dependency
        except ImportError as error:
            raise SetupError(
                "notify.apprise: Apprise is not installed. Run: pip install 'bgremover[notify]'"
            ) from error
        self._apprise: Any = Apprise()
        for number, url in enumerate(urls, 1):
            if not self._apprise.add(url):
                raise SetupError(
                    f"notify.apprise: address {number} is none that Apprise knows. Look it up "
                    "in Apprise's list of services."
                )
        # A thread of its own: one that hangs must not keep others from theirs.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="apprise")

    async def send(self, message: Message) -> None:
        """Tell.

        Raises:
            Undelivered: One of them did not take it.
        """
        loop = asyncio.get_running_loop()
        call = loop.run_in_executor(
            self._thread,
            lambda: self._apprise.notify(title=message.title, body=message.text),
        )
        try:
            # Not wait_for: in Python 3.11 it loses a cancellation that comes with the answer.
            async with asyncio.timeout(APPRISE_SECONDS):
                taken = await call
        except TimeoutError:
            raise Undelivered("no end in time", again=False) from None
        if not taken:
            raise Undelivered("not everybody took it", again=True)


# --- commands ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hook:
    """A command and how long it may run, in seconds."""

    command: tuple[str, ...]
    timeout: float


class Commands:
    """Runs a command for each happening of its kind, one at a time, without a shell.

    Args:
        hooks: The commands, by kind.
        outbox: Where cut-outs lie, for NOTICE_OUTPUT.
        env: The environment of this process, a little of which is handed on.
    """

    name = "notify.command"

    def __init__(
        self, hooks: Mapping[str, Hook], outbox: Path, env: Mapping[str, str] = os.environ
    ) -> None:
        self._hooks = hooks
        self._outbox = outbox
        self._env = {
            name: value for name, value in env.items() if name in _KEPT or name.startswith("LC_")
        }
        self._queue: deque[Happening] = deque()
        self._news = asyncio.Event()
        self.dropped = 0

    def put(self, happening: Happening) -> None:
        """Take a happening, if there is a command for it; what does not fit is dropped."""
        if happening.kind not in self._hooks:
            return
        if len(self._queue) >= HOOK_CAPACITY:
            self.dropped += 1
            if self.dropped == 1 or self.dropped % 1000 == 0:
                log.warning("notify.dropped", channel="command", all=self.dropped)
            return
        self._queue.append(happening)
        self._news.set()

    async def run(self) -> None:
        """Run commands until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._queue:
                await self._one(self._queue.popleft())

    async def _one(self, happening: Happening) -> None:
        hook = self._hooks[happening.kind]
        why = await run_command(hook, self._environment(happening))
        if why is not None:
            log.warning(
                "notify.failed",
                channel="command",
                about=happening.kind,
                file=happening.file or None,
                why=why,
                hint=f"see notify.on_{happening.kind}; it is not run again",
            )

    def _environment(self, happening: Happening) -> dict[str, str]:
        output = os.path.join(self._outbox, happening.output) if happening.output else ""
        return {
            **self._env,
            "NOTICE_EVENT": happening.kind,
            "NOTICE_AT": str(int(happening.at)),
            "NOTICE_FILE": happening.file,
            "NOTICE_OUTPUT": output,
            "NOTICE_CODE": happening.code,
            "NOTICE_DETAIL": happening.detail,
            "NOTICE_HINT": happening.hint,
            "NOTICE_JOB": happening.job,
        }


async def run_command(hook: Hook, env: Mapping[str, str]) -> str | None:
    """Run a command in a process group of its own and wait for its end.

    Args:
        hook: The command; what it writes goes nowhere.
        env: All it sees of the environment.

    Returns:
        What went wrong, in words; None when it ended with 0.
    """
    try:
        with everywhere():
            process = await asyncio.create_subprocess_exec(
                *hook.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                env=dict(env),
                start_new_session=True,
            )
    except (OSError, ValueError) as error:
        return f"it cannot be run: {error.strerror if isinstance(error, OSError) else error}"
    try:
        async with asyncio.timeout(hook.timeout):
            code = await process.wait()
    except TimeoutError:
        return f"killed after {hook.timeout:g} s"
    finally:
        # Not once it has ended: its number may be somebody else's then.
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return f"it ended with {code}" if code else None


# --- heartbeat -----------------------------------------------------------------------------


class Heartbeat:
    """Asks an address while all is well; who misses it raises the alarm.

    Args:
        url: The address; a secret.
        seconds: Between two beats.
        well: Whether all is well.
        tls: What certificates are trusted; None for the usual ones.
    """

    name = "heartbeat"

    def __init__(
        self,
        url: str,
        seconds: float,
        well: Callable[[], bool],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._url = url
        self._seconds = seconds
        self._well = well
        self._tls = tls
        self._missed = False

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            if self._well():
                await self._beat()
            await asyncio.sleep(self._seconds)

    async def _beat(self) -> None:
        try:
            await request("GET", self._url, tls=self._tls)
        except Undelivered as failed:
            if not self._missed:
                log.warning("heartbeat.missed", why=str(failed))
            self._missed = True
        else:
            self._missed = False
