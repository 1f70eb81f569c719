"""What is told about a set-up that is wrong, or not wise."""

import os
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the set-up that is wrong, or not wise.

    Args:
        level: An error keeps work from starting.
        where: The key of the configuration, or what else it is about.
        what: What is wrong; no full stop.
        remedy: What to do; a whole sentence.
    """

    level: Literal["error", "warning"]
    where: str
    what: str
    remedy: str


# --- the key to the API --------------------------------------------------------------------


def reason_of(error: Exception) -> str:
    """Return why a call failed, in words."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def me() -> str:
    """Return who this process is, as permissions see it."""
    return f"uid {os.geteuid()}, gid {os.getegid()}"
