"""The user that a container runs as: PUID, PGID and UMASK, as users of a NAS know them.

Started as root, the program becomes the user that PUID and PGID name before it does anything
else. No folder changes its owner and no file of the image is written, so that it works under
`--read-only` and with no capability but SETUID and SETGID.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import click

from bgremover.core.errors import SetupError

VARIABLES = ("PUID", "PGID", "UMASK")
"""What is read from the environment; an empty variable counts as none."""

_HIGHEST = 2**32 - 2
"""One more is the id that means "leave it" to the kernel."""


@dataclass(frozen=True, slots=True)
class Ids:
    """A user and a group, by number."""

    user: int
    group: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the environment asks for; None is nothing."""

    ids: Ids | None
    umask: int | None


def wanted(env: Mapping[str, str]) -> Wanted:
    """Read the variables.

    Args:
        env: The environment.

    Returns:
        What they ask for.

    Raises:
        SetupError: With every mistake, one a line.
    """
    mistakes: list[str] = []
    given = {name: text for name in VARIABLES if (text := env.get(name, "").strip())}
    user, group = (_id(name, given.get(name), mistakes) for name in ("PUID", "PGID"))
    umask = _umask(given.get("UMASK"), mistakes)
    if ("PUID" in given) != ("PGID" in given):
        one, other = ("PUID", "PGID") if "PUID" in given else ("PGID", "PUID")
        mistakes.append(
            f"{other}: is not set, but {one} is. Set both; `id` on the NAS shows the numbers."
        )
    if mistakes:
        raise SetupError("\n".join(mistakes))
    ids = None if user is None or group is None else Ids(user, group)
    return Wanted(ids, umask)


def _id(name: str, text: str | None, mistakes: list[str]) -> int | None:
    if text is None:
        return None
    if re.fullmatch(r"[0-9]{1,10}", text) and int(text) <= _HIGHEST:
        return int(text)
    mistakes.append(f'{name}: "{text}" is no id. Give a number; `id` on the NAS shows it.')
    return None


def _umask(text: str | None, mistakes: list[str]) -> int | None:
    if text is None:
        return None
    if re.fullmatch(r"0?[0-7]{1,3}", text):
        return int(text, 8)
    mistakes.append(
        f'UMASK: "{text}" is no umask. Give three octal digits: 022 lets others read, 002 lets '
        "the group write too, 077 keeps them out."
    )
    return None


def enter(env: Mapping[str, str]) -> None:
    """Become the user that the environment names, with its umask.

    A process that is not root's cannot; it says so and goes on as it is.

    Args:
        env: The environment.

    Raises:
        SetupError: The variables make no sense, or the container may not change its user.
    """
    asked = wanted(env)
    if asked.umask is not None:
        os.umask(asked.umask)
    if asked.ids is None:
        return
    if os.geteuid() == 0:
        _become(asked.ids)
    elif asked.ids != (me := Ids(os.geteuid(), os.getegid())):
        words = f"PUID and PGID are ignored: only root can change the user, this is {_shown(me)}"
        click.echo(f"bgremover: warning: {words}", err=True)


def _become(ids: Ids) -> None:
    try:
        os.setgroups([])  # root's groups would open root's files
        os.setgid(ids.group)
        os.setuid(ids.user)
    except OSError as error:
        raise SetupError(
            f"PUID and PGID: this container may not become {_shown(ids)} ({error.strerror}). "
            f"Give it the capabilities SETUID and SETGID, or start it with --user {_shown(ids)} "
            "and without PUID and PGID."
        ) from error


def _shown(ids: Ids) -> str:
    return f"{ids.user}:{ids.group}"
