"""What `check` says of endpoint, messages and commands: where they go, without their secrets."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from bgremover.core.answer import host_of
from bgremover.core.errors import SetupError
from bgremover.core.naming import counted, printable
from bgremover.edges.notify import AppriseChannel, secret_from, tls_from
from bgremover.findings import Finding
from bgremover.settings import NotifySettings, Settings

_OWN = ("127.", "localhost:", "[::1]:")


def outlets(settings: Settings, *, listening: bool) -> Iterator[tuple[str, str] | Finding]:
    """Yield what is in use, as (key, words), and what is wrong.

    Args:
        settings: The configuration.
        listening: Whether the daemon itself may have the address of the endpoint already; else it
            must be free.
    """
    yield from _endpoint(settings.http.listen, listening=listening)
    notify = settings.notify
    for key, url in (
        ("notify.webhook_url", notify.webhook_url),
        ("notify.heartbeat_url", notify.heartbeat_url),
    ):
        if url is not None:
            yield key, host_of(url.get_secret_value())
    if notify.apprise:
        yield "notify.apprise", counted(len(notify.apprise), "address", "addresses")
    yield from _mistakes(settings)
    yield from _commands(notify)


def _endpoint(address: str | None, *, listening: bool) -> Iterator[tuple[str, str] | Finding]:
    if address is None:
        return
    taken = None if listening else _taken(address)
    yield taken or ("http.listen", address)
    if not address.startswith(_OWN):
        yield Finding(
            "warning",
            "http.listen",
            "whoever reaches the address can read names of files and sums",
            "Let a firewall or a proxy with a password stand before it, or give the port alone.",
        )


def _taken(address: str) -> Finding | None:
    from bgremover.edges.web import try_out  # noqa: PLC0415 - most run without a web server

    try:
        try_out(address)
    except SetupError as fault:
        return _finding(fault)
    return None


def _finding(fault: SetupError) -> Finding:
    where, _, what = fault.message.partition(": ")
    return Finding("error", where, what, "Then run `bgremover check` again.")


def _mistakes(settings: Settings) -> Iterator[Finding]:
    notify = settings.notify
    try:
        secret_from(notify.webhook_secret_file)
        tls_from(settings.api.ca_bundle)
        if notify.apprise:
            AppriseChannel(url.get_secret_value() for url in notify.apprise)
    except SetupError as fault:
        yield _finding(fault)


def _commands(notify: NotifySettings) -> Iterator[tuple[str, str] | Finding]:
    for name in NotifySettings.model_fields:
        command = getattr(notify, name) if name.startswith("on_") else ()
        if not command:
            continue
        program = shutil.which(command[0])
        if program is None:
            what = f"there is no program {printable(command[0])} that this user may run"
            yield Finding("error", f"notify.{name}", what, "Give its whole path; chmod +x it.")
        else:
            yield f"notify.{name}", printable(str(Path(program)))
