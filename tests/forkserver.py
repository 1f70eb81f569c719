"""Starts the program by fork, from a process that has imported it already.

An exec'd program spends 0.4 s of processor time on imports, and a test that stops, kills and
starts it again spends it several times. What is forked here is as real a process as that: its
own pid, folder, environment, standard streams and end; it runs `main()` and nothing else. It
differs in what only an exec gives, and a test of that asks for one (`tests.site.by_exec`):
`/proc/PID/cmdline` and `environ`, umask and limits of the test's process, options of Python in
the environment.

The server is this file, run as a program. It is asked over a socket: the call as JSON, with the
three standard streams and a socket, into which go the pid and, in the end, the exit code.
"""

# ruff: noqa: SIM115 - the standard streams stay open

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import coverage

MEASURED = "COVERAGE_PROCESS_START"  # a process that finds it tells coverage.py what it ran
MOST = 1 << 16  # bytes of a call: an environment and an argument list of a test


class Forked:
    """The program, forked; what a test asks of `subprocess.Popen`."""

    def __init__(self, told: socket.socket) -> None:
        self.returncode: int | None = None
        self._told = told
        self.pid = int(told.recv(16))

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code, negative for a signal.

        Raises:
            TimeoutError: It has not ended within `timeout` seconds.
        """
        if self.returncode is None:
            self._told.settimeout(timeout)
            self.returncode = int(self._told.recv(16))
            self._told.close()
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        try:
            return self.wait(0)
        except BlockingIOError:
            return None

    def send_signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


def fork(
    arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], streams: Sequence[int]
) -> Forked:
    """Start the program.

    Args:
        arguments: What follows its name.
        cwd: Where.
        environment: All of it.
        streams: Descriptors for its stdin, stdout and stderr.
    """
    told, tell = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    call = json.dumps({"arguments": arguments, "cwd": str(cwd), "environment": dict(environment)})
    with tell:
        socket.send_fds(_server(), [call.encode()], [*streams, tell.fileno()])
    return Forked(told)


@functools.cache
def _server() -> socket.socket:
    """Start the server, once for this process; it ends with it."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-P", __file__, str(its.fileno())]
    environment = dict(os.environ)
    if config := environment.pop(MEASURED, ""):
        command.append(config)
    server = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, pass_fds=[its.fileno()]
    )
    its.close()

    def end() -> None:
        ours.close()
        server.wait()  # what it has measured is written by then

    atexit.register(end)
    return ours


# --- the server -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """What a forked process is to be."""

    arguments: list[str]
    cwd: str
    environment: dict[str, str]
    streams: list[int]

    def become(self) -> None:
        """Be it."""
        for standard, stream in enumerate(self.streams):
            os.dup2(stream, standard)
            os.close(stream)
        os.chdir(self.cwd)
        os.environ.clear()
        os.environ.update(self.environment)
        time.tzset()
        coverage.process_startup()
        sys.argv = ["bgremover", *self.arguments]
        sys.stdin = open(0, closefd=False)
        sys.stdout = open(1, "w", 1 if os.isatty(1) else -1, closefd=False)
        sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)


class Server:
    """Forks, and tells how what it forked has ended."""

    def __init__(self, calls: socket.socket) -> None:
        self._calls = calls
        self._selector = selectors.DefaultSelector()
        self._selector.register(calls, selectors.EVENT_READ)
        self._tells: dict[int, socket.socket] = {}  # by the pidfd of the process

    def serve(self) -> Call | None:
        """Return what to be, in each forked process; None in the server, when it is over."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._calls:
                    self._ended(key.fd)
                    continue
                data, descriptors, *_ = socket.recv_fds(self._calls, MOST, 4)
                if not data:
                    return None
                *streams, tell = descriptors
                if pid := os.fork():
                    self._started(pid, streams, socket.socket(fileno=tell))
                    continue
                os.close(tell)
                self._leave()
                return Call(streams=streams, **json.loads(data))

    def _started(self, pid: int, streams: Sequence[int], tell: socket.socket) -> None:
        for stream in streams:
            os.close(stream)
        watch = os.pidfd_open(pid)
        self._tells[watch] = tell
        self._selector.register(watch, selectors.EVENT_READ)
        tell.send(str(pid).encode())

    def _ended(self, watch: int) -> None:
        # Told before it is reaped: nobody signals a pid that is somebody else's by now.
        ended = os.waitid(os.P_PIDFD, watch, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        with self._tells.pop(watch) as tell:
            tell.send(str(status).encode())
        os.waitid(os.P_PIDFD, watch, os.WEXITED)
        self._selector.unregister(watch)
        os.close(watch)

    def _leave(self) -> None:
        self._selector.close()
        self._calls.close()
        for watch, tell in self._tells.items():
            os.close(watch)
            tell.close()


def _preload() -> None:
    commands = importlib.import_module("bgremover.commands")
    for module in pkgutil.iter_modules(commands.__path__, "bgremover.commands."):
        importlib.import_module(module.name)


def _measured_preload(config: str) -> None:
    measured = coverage.Coverage(config_file=config)
    with measured.collect():
        _preload()
    measured.save()


if __name__ == "__main__":
    match sys.argv[2:]:
        case [config]:
            _measured_preload(config)
        case _:
            _preload()
    gc.freeze()  # or each forked process copies all of it when it looks for garbage at its end
    with socket.socket(fileno=int(sys.argv[1])) as asked:
        call = Server(asked).serve()
    if call is not None:
        call.become()
        importlib.import_module("bgremover.cli").main()
