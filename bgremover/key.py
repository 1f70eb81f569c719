"""The key to the API: where it is read from, and what keeps a text from being one."""

import os
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pydantic import (
    SecretStr,
)

from bgremover.core.errors import SetupError
from bgremover.core.naming import printable
from bgremover.findings import Finding, me, reason_of
from bgremover.settings import CREDENTIAL, Settings

_BY_SYSTEMD = "systemd credential"


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where the key to the API is read from. Never shows the key.

    Args:
        name: What names the place: a key of the configuration, a variable, the credential.
        path: The file; None for the environment.
        value: What the environment says.
    """

    LONGEST: ClassVar[int] = 4096

    name: str
    path: str | None = None
    value: SecretStr | None = None

    def describe(self) -> str:
        """Say in words where the key is."""
        if self.path is None:
            return f"the environment variable {self.name}"
        return f"the file {printable(self.path)} ({self.name})"

    def read(self) -> SecretStr:
        """Return the key as it is now: a file may be replaced at any time.

        Raises:
            SetupError: There is none, or it cannot be a key.
        """
        key = self._content().strip()
        flaw = _flaw(key)
        if flaw:
            raise SetupError(
                f"the key to the API cannot be used: {self.describe()} {flaw}. "
                "Put the key there, and nothing else."
            )
        return SecretStr(key)

    def _content(self) -> str:
        if self.path is None:
            return self.value.get_secret_value() if self.value else ""
        try:
            with open(self.path, "rb", opener=_open_at_once) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise self._unreadable("is no regular file; it is read again for each call")
                return file.read(self.LONGEST + 1).decode("utf-8-sig", "replace")
        except (OSError, ValueError) as error:
            reason = f"cannot be read by {me()}: {reason_of(error)}"
            raise self._unreadable(reason) from error

    def _unreadable(self, reason: str) -> SetupError:
        remedy = "Put the key into a file that this user may read."
        return SetupError(f"there is no key to the API: {self.describe()} {reason}. {remedy}")

    def version(self) -> object:
        """Return something that changes when the file does; for the environment, a constant."""
        if self.path is None:
            return None
        try:
            found = os.stat(self.path)
        except (OSError, ValueError):
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size

    def findings(self) -> list[Finding]:
        """Return what is not wise: others than the owner may use the file."""
        # systemd guards its credentials by the folder; the group bits are those of an ACL.
        if self.path is None or self.name == _BY_SYSTEMD:
            return []
        try:
            mode = stat.S_IMODE(os.stat(self.path).st_mode)
        except (OSError, ValueError):
            return []  # `read` says so, as an error
        if not mode & 0o077:
            return []
        what = f"others than its owner may use the key file {printable(self.path)} ({mode:04o})"
        return [Finding("warning", self.name, what, f"Run: chmod 600 {shlex.quote(self.path)}")]


def _open_at_once(path: str, flags: int) -> int:
    # A FIFO without a writer would hold the start for ever.
    return os.open(path, flags | os.O_NONBLOCK)


def _flaw(key: str) -> str | None:
    """Say what keeps a text from being a key; None when nothing does. Never says the text."""
    if not key:
        return "is empty"
    if len(key) > KeySource.LONGEST:
        return "holds far more than a key"
    if len(key.split()) > 1:
        return "holds more than one word"
    if not key.isascii() or not key.isprintable():
        return "holds characters that no key has"
    if "IDEOGRAM_API_KEY=" in key:
        return "holds a whole line of an environment file"
    return "holds quotation marks" if key[0] in "\"'" else None


def find_key_source(settings: Settings, env: Mapping[str, str]) -> KeySource:
    """Return where the key is: api.key_file, a variable, the file of one, or the credential.

    Args:
        settings: The configuration.
        env: The environment; an empty variable counts as none.

    Raises:
        SetupError: Nowhere, or two variables say different things.
    """
    value, named = env.get("IDEOGRAM_API_KEY"), env.get("IDEOGRAM_API_KEY_FILE")
    if value and named:
        raise SetupError(
            "both IDEOGRAM_API_KEY and IDEOGRAM_API_KEY_FILE are set. Unset one of them."
        )
    if settings.api.key_file is not None:
        return KeySource("api.key_file", str(settings.api.key_file))
    if value:
        return KeySource("IDEOGRAM_API_KEY", value=SecretStr(value))
    if named:
        return KeySource("IDEOGRAM_API_KEY_FILE", os.path.abspath(named))
    credential = os.path.join(env.get("CREDENTIALS_DIRECTORY", ""), CREDENTIAL)
    if os.path.isabs(credential) and os.path.lexists(credential):
        return KeySource(_BY_SYSTEMD, credential)
    raise SetupError(
        "there is no key to the API. Give it in one of four ways: a file that api.key_file names, "
        "the variable IDEOGRAM_API_KEY, a file that the variable IDEOGRAM_API_KEY_FILE names, or "
        f"the systemd credential {CREDENTIAL}."
    )
