"""What `check` says of endpoint, messages and commands: where they go, without their secrets."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from bgremover.core.answer import host_of
from bgremover.core.errors import SetupError
from bgremover.core.naming import printable
from bgremover.edges.notify import AppriseChannel, secret_from, tls_from
from bgremover.findings import Finding
from bgremover.settings import NotifySettings, Settings

_OWN = ("127.", "localhost:", "[::1]:")


def outlets(settings: Settings) -> Iterator[tuple[str, str] | Finding]:
    """Yield what is in use, as (key, words), and what is wrong."""
    yield from _endpoint(settings)
    notify = settings.notify
    for key, url in (
        ("notify.webhook_url", notify.webhook_url),
        ("notify.heartbeat_url", notify.heartbeat_url),
    ):
        if url is not None:
            yield key, host_of(url.get_secret_value())
    if notify.apprise:
        yield "notify.apprise", f"{len(notify.apprise)} addresses"
    yield from _mistakes(settings)
    yield from _commands(notify)


def _endpoint(settings: Settings) -> Iterator[tuple[str, str] | Finding]:
    address = settings.http.listen
    if address is None:
        return
    yield "http.listen", address
    if not address.startswith(_OWN):
        yield Finding(
            "warning",
            "http.listen",
            "whoever reaches the address can read names of files and sums",
            "Let a firewall or a proxy with a password stand before it, or give the port alone.",
        )


def _mistakes(settings: Settings) -> Iterator[Finding]:
    notify = settings.notify
    try:
        secret_from(notify.webhook_secret_file)
        tls_from(settings.api.ca_bundle)
        if notify.apprise:
            AppriseChannel(url.get_secret_value() for url in notify.apprise)
    except SetupError as fault:
        where, _, what = fault.message.partition(": ")
        yield Finding("error", where, what, "Then run `bgremover check` again.")


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
