"""What SIGHUP asks for: settings and key are read again; what is wrong is refused, the old kept."""

from typing import Any

import structlog

from bgremover.commands.common import key_from, line, pass_the_door, settings_from, start_logging
from bgremover.commands.outlets import outlets
from bgremover.core.errors import BgremoverError, SetupError
from bgremover.findings import Finding
from bgremover.key import KeySource
from bgremover.settings import Settings

log = structlog.get_logger()


class Reread:
    """The settings and the key that are in force.

    Every setting may change but `folders.state`, which belongs to the process as long as it lives.

    Args:
        config: The configuration file, as the command line names it.
        settings: The settings at the start.
        key: Where the key is read from at the start.
    """

    def __init__(self, config: str | None, settings: Settings, key: KeySource) -> None:
        self.settings = settings
        self.key = key
        self._config = config

    def __call__(self) -> bool:
        """Read again.

        Returns:
            Whether something has changed that the parts of the daemon were built with.
        """
        try:
            settings, key = self._read()
        except BgremoverError as fault:
            hint = "the old settings stay in force; mend this and reload again"
            # The message tells it all; a traceback would not say more.
            log.error("settings.refused", message=fault.message, hint=hint)  # noqa: TRY400
            return False
        changed = changes(self.settings, settings)
        moved = key != self.key
        self.settings, self.key = settings, key
        log.info("settings.reread", changed=changed)
        return moved or any(not name.startswith("log.") for name in changed)

    def _read(self) -> tuple[Settings, KeySource]:
        settings = settings_from(self._config)
        before, after = self.settings.folders.state, settings.folders.state
        if before != after:
            raise SetupError(
                f"folders.state cannot change from {before} to {after} while the daemon runs. "
                "Restart it."
            )
        pass_the_door(settings)
        _check_outlets(settings)
        key = key_from(settings)
        if settings.log != self.settings.log:
            start_logging(settings)
        return settings, key


def _check_outlets(settings: Settings) -> None:
    findings = (one for one in outlets(settings, listening=True) if isinstance(one, Finding))
    if wrong := [line(one) for one in findings if one.level == "error"]:
        raise SetupError("\n".join(wrong))


def changes(before: Settings, after: Settings) -> list[str]:
    """Return the keys of the configuration whose values differ, as "queue.workers", sorted."""
    old, new = flat(before.model_dump()), flat(after.model_dump())
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested sections as one dict with dotted keys."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
