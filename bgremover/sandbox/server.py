"""Runs the stand-in: in a thread beside tests and the demo, or in the foreground."""

import asyncio
import signal
import socket
import sys
import threading
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from uvicorn import Config, Server

from bgremover import __version__
from bgremover.core.errors import SetupError
from bgremover.sandbox.app import Sandbox, SandboxOptions
from bgremover.sandbox.state import SandboxState
from bgremover.sandbox.wire import Protocol

_BACKLOG = 1024
_GRACE_SECONDS = 10
_STOPS = (signal.SIGINT, signal.SIGTERM)


class RunningSandbox:
    """The stand-in in a thread of its own, for the length of a `with`.

    Args:
        options: How it behaves.

    Raises:
        SetupError: On entry: it cannot listen where the options say.
    """

    url: str
    state: SandboxState

    def __init__(self, options: SandboxOptions | None = None) -> None:
        self._options = options or SandboxOptions()
        self._thread = threading.Thread(target=self._serve, name="sandbox", daemon=True)
        self._up: Future[None] = Future()

    def __enter__(self) -> Self:
        self._socket = _listen(self._options.host, self._options.port)
        self.url = _url(self._options.host, self._socket.getsockname()[1])
        self._thread.start()
        self._up.result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Drop all connections and end. May be called more than once."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop)
            self._thread.join()

    def _serve(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            if self._up.done():
                raise
            self._up.set_exception(error)
        finally:
            self._socket.close()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._sandbox = Sandbox(self._options, on_ready=lambda: self._up.set_result(None))
        self.state = self._sandbox.state
        self._server = Server(_config(self._sandbox))
        await self._server.serve(sockets=[self._socket])

    def _stop(self) -> None:
        self._server.should_exit = True
        self._sandbox.stop()
        for connection in tuple(self._server.server_state.connections):
            connection.transport.abort()


def serve(options: SandboxOptions) -> None:
    """Run the stand-in in the foreground until SIGINT or SIGTERM.

    Args:
        options: How it behaves.

    Raises:
        SetupError: It cannot listen where the options say.
    """
    # Blocked before the server's thread starts, so that no thread but this one gets them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        with RunningSandbox(options) as sandbox:
            sys.stdout.write(_greeting(sandbox.url, options))
            sys.stdout.flush()
            signal.sigwait(_STOPS)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _greeting(url: str, options: SandboxOptions) -> str:
    key = options.key or "any-key-will-do"
    return (
        f"bgremover {__version__} sandbox on {url}: a stand-in for the API, no replacement for "
        "the service. It charges nothing and cuts out plain backgrounds by colour.\n"
        "To use it:\n"
        f"  BGREMOVER_API__BASE_URL={url}   (api.base_url)\n"
        f"  IDEOGRAM_API_KEY={key}\n"
        "Ctrl+C stops it.\n"
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        # asyncio sets it only where the socket's protocol is spelled out, which is not so here.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        raise SetupError(
            f"the sandbox cannot listen on {host}, port {port}: {error.strerror or error}"
        ) from error
    return listener


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _config(sandbox: Sandbox) -> Config:
    return Config(
        sandbox.application(),
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        headers=[("Server", "bgremover-sandbox")],
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
