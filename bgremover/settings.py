"""The model of the configuration: every key, its default, what it takes and what it is for.

All there is to know of a key stands here: `example_text` writes config.example.yaml and the file
of `bgremover init` from it, `json_schema` tells it to editors, `reading` names mistakes by it.
"""

import itertools
import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import SkipJsonSchema

from bgremover.core.answer import host_of, is_own_host
from bgremover.core.ignoring import LONGEST_GLOB
from bgremover.core.naming import printable
from bgremover.core.recipe import PRESETS, distinct, recipe_of

PREFIX = "BGREMOVER_"
"""How the variables that stand for a key begin: BGREMOVER_SECTION__KEY."""

CONFIG_VARIABLE = "BGREMOVER_CONFIG"
"""Names the configuration file; the one variable with the prefix that is no key."""

CREDENTIAL = "ideogram-api-key"
"""The systemd credential that holds the key to the API."""

NULL = "null"

LOOPBACK = "127.0.0.1"
"""Where is listened when only a port is given."""


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
    if len(glob) > LONGEST_GLOB:
        raise ValueError(f"{shown(glob)} has more than {LONGEST_GLOB} characters. Shorten it.")
    return glob


def _checked_address(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65_536:  # noqa: PLR2004 - TCP
        raise ValueError(
            f"{shown(address)} is no address to listen on. Write 9464 for this machine alone, or "
            "as 0.0.0.0:9464 for others too; a port is from 1 to 65535."
        )
    if not re.fullmatch(r"|[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]", host):
        raise ValueError(f"{shown(host)} is no name and no number of a host. Take it out.")
    return f"{host or LOOPBACK}:{port}"


def _checked_hook(url: str) -> str:
    # Whoever has such an address can write to its owner: it is never shown.
    if not re.match(r"https?://", url, re.IGNORECASE) or not host_of(url):
        raise ValueError("this is no http or https address. Write one as https://host/path.")
    return url


def _checked_proxy(url: str) -> str:
    if not re.fullmatch(r"https?://(?:[^\s/@]*@)?[^\s/@?#]+/?", url, re.IGNORECASE):
        raise ValueError(
            "this is no address of a proxy. Write one as http://proxy.example:3128, or "
            "http://user:password@proxy.example:3128."
        )
    return url.rstrip("/")


def _checked_time(text: str) -> str:
    if not re.fullmatch(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]", text):
        raise ValueError(f"{shown(text)} is no time of the day. Write one as 08:00.")
    return text


def _checked_secret(check: Callable[[str], str]) -> AfterValidator:
    return AfterValidator(lambda secret: SecretStr(check(secret.get_secret_value())))


def _checked_marker(name: str) -> str:
    if not re.fullmatch(r"\.[^/\0]{1,254}", name, re.DOTALL) or name == "..":
        raise ValueError(
            f"{shown(name)} will not do. Write the name of a hidden file in the inbox, as "
            ".bgremover-here: others are taken for images."
        )
    return name


Url = Annotated[str, AfterValidator(_checked_url)]
Address = Annotated[str, AfterValidator(_checked_address)]
Hook = Annotated[SecretStr, _checked_secret(_checked_hook)]
Proxy = Annotated[SecretStr, _checked_secret(_checked_proxy)]
TimeOfDay = Annotated[str, AfterValidator(_checked_time)]
Host = Annotated[str, AfterValidator(_checked_host)]
Glob = Annotated[str, AfterValidator(_checked_glob)]
Marker = Annotated[str, AfterValidator(_checked_marker)]
Command = Annotated[tuple[str, ...], Field(examples=[["/usr/local/bin/upload", "fast"]])]


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
    ca_bundle: Path | None = Field(
        None,
        description="File with the certificates to trust, instead of the usual ones: PEM.",
    )
    proxy: Proxy | None = Field(
        None,
        description="Proxy for the API, as http://proxy.example:3128; else that of $HTTPS_PROXY, "
        "$ALL_PROXY and $NO_PROXY.",
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
    marker: Marker | None = Field(
        None,
        description="Name of a hidden file, as .bgremover-here; while it is not in the inbox, work "
        "pauses: so that an empty mount point is not taken for the inbox.",
    )
    ignore: tuple[Glob, ...] = Field(
        (),
        examples=[["*.psd"]],
        description='Globs of names to leave alone, as ["*.psd", "drafts/**"], besides partial '
        "uploads and the litter of NAS and desktops.",
    )


def _checked_recipe(line: str) -> str:
    recipe_of(line)
    return line


RecipeLine = Annotated[str, AfterValidator(_checked_recipe)]


class InputSettings(_Section):
    """What is done with originals before they are sent."""

    already_transparent: Literal["send", "pass"] = Field(
        "send",
        description="An original that is transparent already: send cuts it out like others, pass "
        "puts it into the outbox as it is, which costs nothing.",
    )
    max_megapixels: float = Field(
        100, gt=0, le=1000, description="Originals with more pixels are not taken."
    )
    oversize: Literal["shrink", "reject"] = Field(
        "shrink",
        description="An original of more than api.max_upload_mb: shrink sends a smaller copy, "
        "reject quarantines it.",
    )


class OutputSettings(_Section):
    """What cut-outs are like, and what else is made of them."""

    resolution: Literal["original", "result"] = Field(
        "original",
        description="original gives the cut-out the size and the pixels of the original, result "
        "keeps what came back.",
    )
    metadata: Literal["keep", "strip", "safe"] = Field(
        "safe",
        description="safe keeps colour profile, resolution, copyright and artist; keep also what "
        "tells where and with what a picture was taken; strip keeps nothing.",
    )
    review: Literal["off", "warn", "move"] = Field(
        "warn",
        description="Results that are not plausible: warn tells so in the log, move puts them "
        "into _review in the outbox.",
    )
    renditions: tuple[RecipeLine, ...] = Field(
        (),
        examples=[["amazon", "thumb longest=480"]],
        description='What else is made of each cut-out, at no cost, as ["amazon", "white '
        'size=2000 fill=85% background=white name={stem}-white.jpg"]; presets: '
        f"{', '.join(PRESETS)}.",
    )

    @field_validator("renditions")
    @classmethod
    def _have_names_of_their_own(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        if mistakes := distinct(map(recipe_of, lines)):
            raise ValueError(" ".join(mistakes))
        return lines


class PictureSettings(_Section):
    """How much memory pictures may take."""

    max_memory_mb: int = Field(
        1000,
        ge=64,
        le=1_000_000,
        description="Pictures are worked on side by side while they fit into this much memory, "
        "one after the other where they do not. A rendition that takes more is not made, unless "
        "a preset takes as much.",
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
    share_core: bool = Field(
        default=True,
        description="All threads share one processor core, long picture work goes to the others; "
        "false: each runs where the system puts it.",
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


class HttpSettings(_Section):
    """An HTTP endpoint: /healthz, /readyz, /metrics, /status."""

    listen: Address | None = Field(
        None,
        description="Where to listen, as 9464 for this machine alone or 0.0.0.0:9464; whoever "
        "reaches it can read how things stand, without a password.",
    )


Event = Literal["saved", "quarantined", "paused", "resumed", "budget", "lost", "restored", "digest"]


class NotifySettings(_Section):
    """Who is told what happens."""

    events: tuple[Event, ...] = Field(
        ("quarantined", "paused", "resumed", "budget", "lost", "restored", "digest"),
        description="What webhook and Apprise are told of.",
    )
    webhook_url: Hook | None = Field(None, description="Address that gets each message as JSON.")
    webhook_secret_file: Path | None = Field(
        None, description="File with the secret that signs what the webhook gets (HMAC-SHA256)."
    )
    apprise: tuple[SecretStr, ...] = Field(
        (),
        examples=[["ntfy://topic"]],
        description="Addresses of Apprise, as ntfy://topic; needs `pip install bgremover[notify]`.",
    )
    on_saved: Command = Field(
        (),
        description="Command that is run for each cut-out, as [/usr/local/bin/upload, fast]; not "
        "for one that was put into _review.",
    )
    on_quarantined: Command = Field(
        (), description="Command that is run for each image that is quarantined."
    )
    on_paused: Command = Field(
        (), description="Command that is run when the line pauses, also for the budget."
    )
    on_resumed: Command = Field((), description="Command that is run when the line goes on.")
    on_lost: Command = Field((), description="Command that is run when the inbox is lost.")
    on_restored: Command = Field((), description="Command that is run when the inbox is back.")
    command_timeout_seconds: float = Field(
        60, gt=0, le=3600, description="A command that runs longer is killed, with its children."
    )
    quiet_seconds: float = Field(
        300,
        ge=0,
        le=86_400,
        description="Time between two messages about the same; what happens meanwhile is one.",
    )
    digest_at: TimeOfDay | None = Field(
        None, description="Local time of the message about the day, as 08:00."
    )
    heartbeat_url: Hook | None = Field(
        None, description="Address that is asked while all is well: a dead man's switch."
    )
    heartbeat_seconds: float = Field(
        60, ge=10, le=86_400, description="Time between two heartbeats."
    )


class RetentionSettings(_Section):
    """What is deleted by itself; null keeps everything."""

    archive_days: float | None = Field(
        None, gt=0, le=36_500, description="Originals leave the archive after this time."
    )
    archive_files: int | None = Field(
        None, ge=0, le=100_000_000, description="Most originals in the archive; the oldest leave."
    )
    archive_mb: float | None = Field(
        None, ge=0, le=1_000_000_000, description="Most megabytes of originals in the archive."
    )
    quarantine_days: float | None = Field(
        None, gt=0, le=36_500, description="Images leave the quarantine after this time."
    )
    quarantine_files: int | None = Field(
        None, ge=0, le=100_000_000, description="Most images in quarantine; the oldest leave."
    )
    quarantine_mb: float | None = Field(
        None, ge=0, le=1_000_000_000, description="Most megabytes of images in quarantine."
    )
    ledger_days: float | None = Field(
        None,
        ge=2,
        le=36_500,
        description="Records of images whose files are gone leave the ledger after this time; "
        "what was paid stays.",
    )


class Settings(BaseModel):
    """Every key is optional; unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="bgremover configuration")

    folders: FolderSettings = FolderSettings()
    originals: Literal["archive", "keep", "delete"] = Field(
        "archive", description="What happens to an original once its cut-out is saved."
    )
    api: ApiSettings = ApiSettings()
    watch: WatchSettings = WatchSettings()
    input: InputSettings = InputSettings()
    output: OutputSettings = OutputSettings()
    pictures: PictureSettings = PictureSettings()
    queue: QueueSettings = QueueSettings()
    retry: RetrySettings = RetrySettings()
    budget: BudgetSettings = BudgetSettings()
    log: LogSettings = LogSettings()
    http: HttpSettings = HttpSettings()
    notify: NotifySettings = NotifySettings()
    retention: RetentionSettings = RetentionSettings()
    source: SkipJsonSchema[Path | None] = None
    """The file that was read, if any. No key of the configuration."""


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
