"""The model of the configuration: every key, its default, what it takes and what it is for.

All there is to know of a key stands here: `example_text` writes config.example.yaml and the file
of `bgremover init` from it, `json_schema` tells it to editors, `reading` names mistakes by it.
"""

import itertools
import json
import re
import textwrap
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import SkipJsonSchema
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from bgremover.core.answer import host_of, is_own_host
from bgremover.core.naming import printable

PREFIX = "BGREMOVER_"
"""How the variables that stand for a key begin: BGREMOVER_SECTION__KEY."""

CONFIG_VARIABLE = "BGREMOVER_CONFIG"
"""Names the configuration file; the one variable with the prefix that is no key."""

CREDENTIAL = "ideogram-api-key"
"""The systemd credential that holds the key to the API."""

NULL = "null"


# --- the model -----------------------------------------------------------------------------


def _checked_url(url: str) -> str:
    host = host_of(url)
    # The value is not shown: whoever puts a password into it does not want it in a log.
    if not host or re.search(r"[@?#]", url) or not _has_sound_port(url):
        raise ValueError(
            "this is no plain http or https address. Write one as https://api.ideogram.ai, "
            "without user, query and fragment; a port is from 1 to 65535."
        )
    # All links are the API's own where it is on loopback, and only there.
    if url[:5].lower() == "http:" and not is_own_host("", url):
        raise ValueError(
            f"http would send the key to {host} in the clear. Write https; plain http is for a "
            "stand-in on this machine only (127.0.0.1, localhost)."
        )
    return url.rstrip("/")


def _has_sound_port(url: str) -> bool:
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


def _checked_host(host: str) -> str:
    if not re.fullmatch(r"(?:\*\.)?[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*", host):
        raise ValueError(
            f"{shown(host)} is no name of a host. Write one as ideogram.ai, or *.ideogram.ai for "
            "those below it, without scheme and path."
        )
    return host.lower()


def _checked_glob(glob: str) -> str:
    if not glob.strip("/"):
        raise ValueError(f"{shown(glob)} matches no name. Write a glob as *.psd, or take it out.")
    return glob


Url = Annotated[str, AfterValidator(_checked_url)]
Host = Annotated[str, AfterValidator(_checked_host)]
Glob = Annotated[str, AfterValidator(_checked_glob)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FolderSettings(_Section):
    """Where everything lies; relative paths are relative to this file."""

    inbox: Path = Field(Path("inbox"), description="Images dropped here are cut out.")
    outbox: Path = Field(Path("outbox"), description="Cut-outs go here, mirroring the inbox.")
    quarantine: Path = Field(
        Path("quarantine"),
        description="Images that cannot be cut out go here, each with an error JSON beside it.",
    )
    archive: Path = Field(
        Path("archive"),
        description="Originals go here once their cut-out is saved (originals: archive).",
    )
    state: Path = Field(
        Path("state"),
        description="The record of what was done and paid for, on a disk of this machine; "
        "by default $STATE_DIRECTORY where systemd sets it.",
    )


class ApiSettings(_Section):
    """How the API is reached."""

    base_url: Url = Field(
        "https://api.ideogram.ai",
        description="Address of the API; plain http for a stand-in on this machine only.",
    )
    flow: Literal["sync", "async"] = Field(
        "sync", description="sync waits for each result in one request; async submits, then polls."
    )
    key_file: Path | None = Field(
        None,
        description="File that holds the key; else $IDEOGRAM_API_KEY, $IDEOGRAM_API_KEY_FILE, or "
        'the systemd credential "ideogram-api-key".',
    )
    max_upload_mb: float = Field(
        10, gt=0, le=1000, description="Larger files are not sent; 1 MB is a million bytes."
    )
    connect_timeout_seconds: float = Field(
        10, gt=0, le=300, description="Longest wait for a connection."
    )
    read_timeout_seconds: float = Field(
        300,
        gt=0,
        le=3600,
        description="Longest wait for an answer; keep it longer than the API's own 265 s, or calls "
        "are given up that may be charged.",
    )
    link_hosts: tuple[Host, ...] = Field(
        ("ideogram.ai", "*.ideogram.ai"),
        description="Hosts that results may be fetched from, besides the host of base_url.",
    )
    price_usd: float = Field(
        0.01, ge=0, le=100, description="Price of one call, for the sums shown and the budget."
    )


class WatchSettings(_Section):
    """How files are noticed, and when they are taken."""

    backend: Literal["auto", "native", "polling"] = Field(
        "auto",
        description="native waits for events of the kernel, polling looks every poll_seconds, "
        "auto finds out which of them works.",
    )
    recursive: bool = Field(
        default=True, description="Whether images in sub-folders of the inbox are taken too."
    )
    settle_seconds: float = Field(
        2, ge=0, le=3600, description="A file is taken once it has not changed for this long."
    )
    poll_seconds: float = Field(
        5, ge=0.1, le=3600, description="Time between two looks at the inbox when polling."
    )
    rescan_seconds: float = Field(
        300,
        ge=1,
        le=86_400,
        description="Time between two looks at the whole inbox, for what events have missed.",
    )
    incomplete_minutes: float = Field(
        10,
        ge=0,
        le=10_080,
        description="A file that is cut off is waited for this long, then quarantined.",
    )
    ignore: tuple[Glob, ...] = Field(
        (),
        description='Globs of names to leave alone, as ["*.psd", "drafts/**"], besides partial '
        "uploads and the litter of NAS and desktops.",
    )


class QueueSettings(_Section):
    """How much is done at a time."""

    workers: int = Field(
        4,
        ge=1,
        le=1000,
        description="Images in flight at most; the API takes 10 of an organization by default.",
    )
    capacity: int = Field(
        64,
        ge=1,
        le=100_000,
        description="Images claimed and waiting at most; the rest waits in the inbox.",
    )


class RetrySettings(_Section):
    """What happens after failures."""

    max_attempts: int = Field(
        5,
        ge=1,
        le=1000,
        description="Failures that count against one image before it is quarantined.",
    )
    base_seconds: float = Field(
        2, gt=0, le=3600, description="Longest first wait before an image is tried again."
    )
    cap_seconds: float = Field(
        300,
        gt=0,
        le=86_400,
        validate_default=True,
        description="Longest wait, however often an image has failed.",
    )
    unknown_charge: Literal["retry", "hold"] = Field(
        "retry",
        description="After a call that may have been charged: retry sends the image once more, "
        "hold never does so by itself.",
    )

    @field_validator("cap_seconds")
    @classmethod
    def _is_not_below_base(cls, cap: float, info: ValidationInfo) -> float:
        base = info.data.get("base_seconds", 0)
        if cap < base:
            raise ValueError(
                f"{cap:g} is shorter than retry.base_seconds, {base:g}. Raise it, or lower that."
            )
        return cap


class BudgetSettings(_Section):
    """What may be spent; null is without limit."""

    per_day_usd: float | None = Field(
        None, ge=0, le=1_000_000, description="Most to spend on a local day, in US dollars."
    )
    per_month_usd: float | None = Field(
        None, ge=0, le=1_000_000, description="Most to spend in a local month, in US dollars."
    )


class LogSettings(_Section):
    """Where logs go, and how they look."""

    format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto is console on a terminal, else json: one object a line."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least that is logged."
    )
    file: Path | None = Field(None, description="File that gets the log as well, always as json.")


class Settings(BaseSettings):
    """Every key is optional; unknown keys are mistakes."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, title="bgremover configuration")

    folders: FolderSettings = FolderSettings()
    originals: Literal["archive", "keep", "delete"] = Field(
        "archive", description="What happens to an original once its cut-out is saved."
    )
    api: ApiSettings = ApiSettings()
    watch: WatchSettings = WatchSettings()
    queue: QueueSettings = QueueSettings()
    retry: RetrySettings = RetrySettings()
    budget: BudgetSettings = BudgetSettings()
    log: LogSettings = LogSettings()
    source: SkipJsonSchema[Path | None] = None
    """The file that was read, if any. No key of the configuration."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the same
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the same
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take only what is handed over: `parse_settings` has put file and environment together."""
        return (init_settings,)


def keys() -> dict[str, FieldInfo]:
    """Return every key, dotted, with its field, in the order of the model."""
    found: dict[str, FieldInfo] = {}
    for name, info in Settings.model_fields.items():
        section = _section(info)
        if section is not None:
            found |= {f"{name}.{key}": inner for key, inner in section.model_fields.items()}
        elif name != "source":
            found[name] = info
    return found


def _section(info: FieldInfo) -> type[_Section] | None:
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, _Section) else None


KEYS = keys()
SECTIONS = {name: kind for name, info in Settings.model_fields.items() if (kind := _section(info))}
PATHS = [key for key, info in KEYS.items() if Path in (info.annotation, *get_args(info.annotation))]
LISTS = {key for key, info in KEYS.items() if isinstance(info.default, tuple)}


def variable(key: str) -> str:
    """Return the environment variable that stands for a dotted key."""
    return PREFIX + key.replace(".", "__").upper()


VARIABLES = {variable(key): key for key in KEYS}


_LONG = 60


def shown(value: object) -> str:
    """Return a value as a message shows it: a plain word as it is, else quoted and cut off."""
    match value:
        case None:
            return NULL
        case str() if re.fullmatch(r"[\w.+-]{1,40}", value):
            return value
        case str():
            return f'"{printable(value if len(value) <= _LONG else value[:_LONG] + "...")}"'
        case _:
            return "a list"


# --- what is told of the keys --------------------------------------------------------------


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the configuration."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {**dialect, **Settings.model_json_schema()}


_HEAD = """\
# The configuration of bgremover. Every key is optional; what stands here are the defaults.
# Any key can come from the environment, which outdoes this file: BGREMOVER_QUEUE__WORKERS=8,
# BGREMOVER_ORIGINALS=keep, BGREMOVER_WATCH__IGNORE='*.psd, drafts/**'. null is off.
# `bgremover check` finds mistakes.
"""


def example_text() -> str:
    """Return a file with every key, its default, and what it is for: config.example.yaml."""
    blocks = [_HEAD]
    for section, group in itertools.groupby(KEYS, lambda key: key.rpartition(".")[0]):
        told = "".join(_entry(key, indent="  " if section else "") for key in group)
        about = f"# {_about(section)}\n{section}:\n" if section else ""
        blocks.append(about + told)
    return "\n".join(blocks)


def _about(section: str) -> str:
    return (SECTIONS[section].__doc__ or "").strip()


def _entry(key: str, indent: str) -> str:
    comment = textwrap.fill(
        KEYS[key].description or "",
        width=98,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
        break_on_hyphens=False,
    )
    # Written out, it would outdo $STATE_DIRECTORY wherever the file is copied to.
    off = "# " if key == "folders.state" else ""
    return f"{comment}\n{indent}{off}{key.rpartition('.')[2]}: {default_of(key)}\n"


def default_of(key: str) -> str:
    """Return the default of a dotted key as the file would say it."""
    match KEYS[key].default:
        case None:
            return NULL
        case bool() | tuple() as value:
            return json.dumps(value)
        case Path() as path:
            return f"./{path}"
        case float() | int() as number:
            return f"{number:g}"
        case text:
            return str(text)
