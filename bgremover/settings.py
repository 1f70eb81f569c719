"""The configuration, the key to the API, and the look at the folders before work begins.

`parse_settings` is pure: the text of a file and the environment in, settings or every mistake at
once out. The model below is all there is to know of a key: `example_text` writes
config.example.yaml and the file of `bgremover init` from it, `json_schema` tells it to editors.

The file and the environment are read the same way: a value is text until the model makes a
number, a truth value or a path of it. So `inbox: 2024-01-01` is a folder, `level: off` is shown
as it was written, and no YAML type gets in between.
"""

import difflib
import itertools
import json
import os
import re
import shlex
import stat
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from bgremover.core.answer import host_of, is_own_host
from bgremover.core.errors import SetupError
from bgremover.core.naming import printable
from bgremover.edges.mounts import Mount, mounts_under, network, read_mounts, shown_twice

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
            f"{_shown(host)} is no name of a host. Write one as ideogram.ai, or *.ideogram.ai for "
            "those below it, without scheme and path."
        )
    return host.lower()


def _checked_glob(glob: str) -> str:
    if not glob.strip("/"):
        raise ValueError(f"{_shown(glob)} matches no name. Write a glob as *.psd, or take it out.")
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


_KEYS = keys()
_SECTIONS = {name: kind for name, info in Settings.model_fields.items() if (kind := _section(info))}
_PATHS = [
    key for key, info in _KEYS.items() if Path in (info.annotation, *get_args(info.annotation))
]
_LISTS = {key for key, info in _KEYS.items() if isinstance(info.default, tuple)}


def variable(key: str) -> str:
    """Return the environment variable that stands for a dotted key."""
    return PREFIX + key.replace(".", "__").upper()


_VARIABLES = {variable(key): key for key in _KEYS}


# --- reading -------------------------------------------------------------------------------


_Value = str | tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class _Given:
    """A value as it was written, and where: "line 3", or the name of a variable."""

    value: _Value
    origin: str


@dataclass(slots=True)
class _Reading:
    """What has been read so far, by dotted key; every mistake is one line."""

    given: dict[str, _Given] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)

    def wrong(self, key: str, origin: str, words: str) -> None:
        """Note a mistake."""
        name = printable(key) if key and key == key.strip() else f'"{printable(key)}"'
        where = f" ({origin})" if origin else ""
        self.mistakes.append(f"{name}{where}: {words}")

    def unfit(self, key: str, origin: str, shown: str) -> None:
        """Note that a value is not what the key takes."""
        without = f"without the key it is {_default(key)}"
        self.wrong(key, origin, f"{shown} will not do. Give {_wanted(key)}; {without}.")


def parse_settings(text: str, env: Mapping[str, str], base: Path) -> Settings:
    """Put the file and the environment together. Looks at nothing else.

    Args:
        text: The file: YAML.
        env: The environment. BGREMOVER_SECTION__KEY outdoes the file; an empty variable counts
            as none. HOME stands for "~", STATE_DIRECTORY for the default of folders.state.
        base: What relative paths are relative to; absolute.

    Returns:
        The settings, with absolute paths.

    Raises:
        SetupError: With every mistake, one a line: the key, what is wrong, what to do.
    """
    settings = _parsed(text, env, base)
    if isinstance(settings, Settings):
        return settings
    raise SetupError("\n".join(settings))


def _parsed(text: str, env: Mapping[str, str], base: Path) -> Settings | list[str]:
    reading = _Reading()
    _read_document(reading, text)
    _read_environment(reading, env)
    _resolve_paths(reading, base, env.get("HOME", ""))
    settings = _validated(reading)
    if settings is None or reading.mistakes:
        return reading.mistakes
    return _with_absolute_folders(settings, base, env.get("STATE_DIRECTORY", ""))


def _validated(reading: _Reading) -> Settings | None:
    values: dict[str, Any] = {}
    for key, given in reading.given.items():
        section, _, name = key.rpartition(".")
        (values.setdefault(section, {}) if section else values)[name] = given.value
    try:
        return Settings(**values)
    except ValidationError as error:
        for detail in error.errors():
            _note(reading, detail)
        return None


def _note(reading: _Reading, detail: ErrorDetails) -> None:
    place = [str(part) for part in detail["loc"]]
    key = ".".join(place[:2]) if place[0] in _SECTIONS else place[0]
    given = reading.given.get(key)
    origin = given.origin if given else ""
    reason = detail.get("ctx", {}).get("error")
    if reason is not None:
        reading.wrong(key, origin, str(reason))
    else:
        reading.unfit(key, origin, _shown(detail["input"]))


def _with_absolute_folders(settings: Settings, base: Path, state: str) -> Settings:
    folders = settings.folders
    paths = {name: base / path for name, path in folders}
    if state and "state" not in folders.model_fields_set:
        paths["state"] = base / state.partition(":")[0]
    # Not by model_copy: what was not given must not count as given.
    placed = FolderSettings.model_construct(set(folders.model_fields_set), **paths)
    return settings.model_copy(update={"folders": placed})


def _resolve_paths(reading: _Reading, base: Path, home: str) -> None:
    for key in _PATHS:
        given = reading.given.get(key)
        if given is None or not isinstance(given.value, str):
            continue
        try:
            path = _resolved(given.value, base, home)
        except ValueError as error:
            reading.wrong(key, given.origin, str(error))
            del reading.given[key]
        else:
            reading.given[key] = _Given(path, given.origin)


def _resolved(text: str, base: Path, home: str) -> str:
    first, slash, rest = text.partition("/")
    if not text or "\0" in text or not _is_encodable(text):
        raise ValueError(f"{_shown(text)} is no path. Write one, as ./name or /srv/name.")
    if first == "~" and home:
        return os.path.join(base, home, rest)
    if first.startswith("~"):
        reason = "HOME is not set" if first == "~" else "homes of users are not looked up"
        raise ValueError(f"what {first} stands for is not known: {reason}. Write the whole path.")
    return os.path.join(base, first + slash + rest)


def _is_encodable(text: str) -> bool:
    # YAML can write halves of characters; names that are no UTF-8 come as surrogate escapes.
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


# --- the file ------------------------------------------------------------------------------


def _read_document(reading: _Reading, text: str) -> None:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        reading.mistakes.append(_no_yaml(error, text))
        return
    except (ValueError, OverflowError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        what = "brackets in brackets without end" if deep else "an escape for no character"
        reading.wrong(
            "the file", "", f"this is no YAML: {what}. Look at what `bgremover init` writes."
        )
        return
    match root:
        case None:
            pass
        case yaml.MappingNode():
            _read_top(reading, root)
        case yaml.ScalarNode(tag="tag:yaml.org,2002:null"):
            pass
        case _:
            words = "there are no keys. Write each as a name, a colon and a value."
            reading.wrong(_line(root), "", words)


def _no_yaml(error: yaml.YAMLError, text: str) -> str:
    match error:
        case yaml.MarkedYAMLError(problem_mark=mark) if mark is not None:
            where = f"line {mark.line + 1}, column {mark.column + 1}"
            what = " ".join(part for part in (error.context, error.problem) if part)
        case yaml.reader.ReaderError(position=int(position)):
            where = f"line {text.count(chr(10), 0, position) + 1}"
            what = "a control character"
        case _:
            where, what = "the file", str(error)
    remedy = "Indent with spaces, one key a line"
    if "alias" in what or "anchor" in what:
        remedy = 'Put a value that begins with * or & into quotes, as "*.psd"'
    return f"{where}: this is no YAML: {printable(what)}. {remedy}."


def _read_top(reading: _Reading, root: yaml.MappingNode) -> None:
    for name, origin, node in _entries(reading, root, ""):
        if name in _KEYS:
            _take(reading, name, origin, node)
        elif name not in _SECTIONS:
            reading.wrong(name, origin, _no_such_key(name))
        elif isinstance(node, yaml.MappingNode):
            _read_section(reading, name, node)
        elif not _is_null(node):  # all keys of a section may be commented out
            example = next(key for key in _KEYS if key.startswith(f"{name}.")).partition(".")[2]
            words = f"this is no section. Write the keys below it, indented, as {example}: ..."
            reading.wrong(name, origin, words)


def _read_section(reading: _Reading, section: str, node: yaml.MappingNode) -> None:
    for name, origin, value in _entries(reading, node, f"{section}."):
        if name in _KEYS:
            _take(reading, name, origin, value)
        else:
            reading.wrong(name, origin, _no_such_key(name))


def _entries(
    reading: _Reading, node: yaml.MappingNode, prefix: str
) -> Iterator[tuple[str, str, yaml.Node]]:
    seen: dict[str, str] = {}
    for key, value in node.value:
        origin = _line(key)
        if not isinstance(key, yaml.ScalarNode):
            reading.wrong(
                f"{prefix}?", origin, "a key is a word. Look at what `bgremover init` writes."
            )
            continue
        name = prefix + key.value
        if name in seen:
            words = f"the key stands in {seen[name]} already. Take one of the two out."
            reading.wrong(name, origin, words)
            continue
        seen[name] = origin
        yield name, origin, value


def _take(reading: _Reading, key: str, origin: str, node: yaml.Node) -> None:
    try:
        reading.given[key] = _Given(_value(node), origin)
    except ValueError as error:
        reading.unfit(key, origin, str(error))


def _value(node: yaml.Node) -> _Value:
    if not node.tag.startswith("tag:yaml.org,2002:"):
        raise ValueError(f"a value with the tag {printable(node.tag)}")
    match node:
        case yaml.ScalarNode():
            return None if _is_null(node) else str(node.value)
        case yaml.SequenceNode() if all(isinstance(one, yaml.ScalarNode) for one in node.value):
            return tuple(str(one.value) for one in node.value)
        case yaml.SequenceNode():
            raise ValueError("a list of lists or of keys")
        case _:
            raise ValueError("a group of keys")


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"


# --- the environment -----------------------------------------------------------------------


def _read_environment(reading: _Reading, env: Mapping[str, str]) -> None:
    for name in sorted(env):
        key = _VARIABLES.get(name)
        if key is not None and env[name].strip():
            _take_variable(reading, key, name, env[name].strip())
        elif key is None and name.startswith(PREFIX) and name != CONFIG_VARIABLE:
            reading.wrong(name, "", _no_such_variable(name))


def _take_variable(reading: _Reading, key: str, name: str, text: str) -> None:
    try:
        reading.given[key] = _Given(_from_variable(key, text), name)
    except (ValueError, yaml.YAMLError):
        reading.unfit(key, name, _shown(text))


def _from_variable(key: str, text: str) -> _Value:
    listed = key in _LISTS and text.startswith("[")
    node = yaml.compose(text, Loader=yaml.SafeLoader) if listed else None
    if node is not None:
        return _value(node)
    if key in _LISTS:
        return tuple(part for part in map(str.strip, text.split(",")) if part)
    return None if text.lower() == NULL else text


# --- what mistakes are called --------------------------------------------------------------


_THE_KEY_ITSELF = re.compile(r"(ideogram_?)?(api_?)?(key|token|secret)")
_NOT_HERE = (
    "the key to the API is no part of the configuration. Put it into a file of its own and name "
    "that in api.key_file, or into the variable IDEOGRAM_API_KEY."
)


def _no_such_key(name: str) -> str:
    section, _, last = name.rpartition(".")
    if _THE_KEY_ITSELF.fullmatch(last.lower()):
        return _NOT_HERE
    near = _nearest(name, [*_KEYS] if section else [*_KEYS, *_SECTIONS])
    remedy = f"Did you mean {near}?" if near else "Take it out; `bgremover schema` lists all keys."
    return f"there is no such key. {remedy}"


def _no_such_variable(name: str) -> str:
    rest = name.removeprefix(PREFIX).lower()
    spelt = re.sub(r"_+", "_", rest)
    if _THE_KEY_ITSELF.fullmatch(spelt):
        return _NOT_HERE
    same = next((key for key in _KEYS if key.replace(".", "_") == spelt), None)
    near = same or _nearest(rest.replace("__", ".", 1), [*_KEYS])
    remedy = f"Did you mean {variable(near)}?" if near else "Unset it."
    return f"there is no such variable for a key of the configuration. {remedy}"


def _nearest(name: str, known: list[str]) -> str | None:
    """Return the same key of another section, else a similar one, of its own section first."""
    section, _, last = name.lower().rpartition(".")
    elsewhere = [key for key in known if key.rpartition(".")[2] == last]
    here = [key for key in known if key.startswith(f"{section}.")] if section else []
    similar = (difflib.get_close_matches(name.lower(), names, 1) for names in (here, known))
    return next(itertools.chain(elsewhere, *similar), None)


_LONG = 60


def _shown(value: object) -> str:
    match value:
        case None:
            return NULL
        case str() if re.fullmatch(r"[\w.+-]{1,40}", value):
            return value
        case str():
            return f'"{printable(value if len(value) <= _LONG else value[:_LONG] + "...")}"'
        case _:
            return "a list"


def _wanted(key: str) -> str:
    section, _, name = key.rpartition(".")
    schema = Settings.model_json_schema()
    if section:
        schema = schema["$defs"][_SECTIONS[section].__name__]
    return _kind(schema["properties"][name])


def _kind(schema: Mapping[str, Any]) -> str:
    match schema:
        case {"anyOf": [one, {"type": "null"}]}:
            return f"{_kind(one)}, or null"
        case {"enum": [*others, last]}:
            return f"{', '.join(others)} or {last}"
        case {"type": "boolean"}:
            return "true or false"
        case {"type": "integer"}:
            return f"a whole number{_range(schema)}"
        case {"type": "number"}:
            return f"a number{_range(schema)}"
        case {"type": "array"}:
            return f"a list{_such_as(schema)}"
        case {"format": "path"}:
            return "a path"
        case _:
            return "a text"


def _such_as(schema: Mapping[str, Any]) -> str:
    return f" as {json.dumps(schema['default'] or ['*.psd'])}"


def _range(schema: Mapping[str, Any]) -> str:
    least, above, most = map(schema.get, ("minimum", "exclusiveMinimum", "maximum"))
    if above is not None:
        return f" above {above:g}, up to {most:.10g}"
    return f" from {least:.10g} to {most:.10g}"


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
    for section, group in itertools.groupby(_KEYS, lambda key: key.rpartition(".")[0]):
        told = "".join(_entry(key, indent="  " if section else "") for key in group)
        about = f"# {_about(section)}\n{section}:\n" if section else ""
        blocks.append(about + told)
    return "\n".join(blocks)


def _about(section: str) -> str:
    return (_SECTIONS[section].__doc__ or "").strip()


def _entry(key: str, indent: str) -> str:
    comment = textwrap.fill(
        _KEYS[key].description or "",
        width=98,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
        break_on_hyphens=False,
    )
    # Written out, it would outdo $STATE_DIRECTORY wherever the file is copied to.
    off = "# " if key == "folders.state" else ""
    return f"{comment}\n{indent}{off}{key.rpartition('.')[2]}: {_default(key)}\n"


def _default(key: str) -> str:
    match _KEYS[key].default:
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


# --- the file that is read -----------------------------------------------------------------


def load_settings(config: str | None, env: Mapping[str, str], cwd: Path) -> Settings:
    """Find the configuration file and read it.

    Args:
        config: The file, as the command line names it. Without it: $BGREMOVER_CONFIG,
            ./config.yaml, $XDG_CONFIG_HOME/bgremover/config.yaml, /etc/bgremover/config.yaml;
            with none of them, defaults and the environment.
        env: The environment.
        cwd: The current folder; absolute.

    Raises:
        SetupError: The file cannot be read, or with every mistake in it, one a line.
    """
    named = config or env.get(CONFIG_VARIABLE)
    path = cwd / named if named else _found(env, cwd)
    settings = _parsed(_text(path), env, path.parent) if path else _parsed("", env, cwd)
    if isinstance(settings, Settings):
        return settings.model_copy(update={"source": path})
    where = printable(str(path)) if path else "the environment (there is no configuration file)"
    count = f"{len(settings)} mistake{'s' if len(settings) > 1 else ''}"
    raise SetupError("\n  ".join([f"{count} in the configuration, {where}:", *settings]))


def _found(env: Mapping[str, str], cwd: Path) -> Path | None:
    home = env.get("XDG_CONFIG_HOME") or os.path.join(env.get("HOME", ""), ".config")
    own = [Path(home) / "bgremover"] if os.path.isabs(home) else []
    places = (folder / "config.yaml" for folder in (cwd, *own, Path("/etc/bgremover")))
    return next((place for place in places if _may_be_there(place)), None)


def _may_be_there(path: Path) -> bool:
    try:
        path.lstat()
    except PermissionError:
        return True  # better to say so than to spend by the defaults
    except OSError:
        return False
    return True


def _text(path: Path) -> str:
    where = f"the configuration {printable(str(path))}"
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        what = "does not exist. Name another with -c, or write one with `bgremover init`."
        raise SetupError(f"{where} {what}") from error
    except IsADirectoryError as error:
        raise SetupError(f"{where} is a folder. Name the file in it.") from error
    except PermissionError as error:
        what = f"may not be read by {_me()}. Give it the right, or name another file with -c."
        raise SetupError(f"{where} {what}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            line = error.object[: error.start].count(b"\n") + 1
            raise SetupError(f"{where}: line {line} is not UTF-8. Save it as UTF-8.") from error
        what = f"cannot be read: {_reason(error)}. Name another file with -c."
        raise SetupError(f"{where} {what}") from error


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _me() -> str:
    return f"uid {os.geteuid()}, gid {os.getegid()}"


# --- the key to the API --------------------------------------------------------------------


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
            reason = f"cannot be read by {_me()}: {_reason(error)}"
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


# --- the door ------------------------------------------------------------------------------


_Step = tuple[tuple[int, int], tuple[str, ...]]

_BESIDE = "Choose folders beside each other: what is written into one must not show up in another."


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a path of the configuration leads.

    Args:
        name: The key.
        path: As it is configured.
        real: Without links.
        steps: The folders on the way from itself up to the root that exist: device and inode of
            each, and what of `real` lies below it. They know a folder again that is mounted twice.
    """

    name: str
    path: str
    real: str
    steps: tuple[_Step, ...]

    @property
    def shown(self) -> str:
        """The path as it can be shown; where it leads, when its name does not tell."""
        plain = self.real == os.path.normpath(self.path)
        return printable(self.path if plain else f"{self.path} (really {self.real})")

    @property
    def nearest(self) -> str:
        """The folder itself, or the nearest one above it that exists."""
        parts = Path(self.real).parts
        return os.path.join(*parts[: len(parts) - len(self.steps[0][1])])

    def error(self, what: str, remedy: str) -> Finding:
        """Return an error about this place."""
        return Finding("error", self.name, what, remedy)


def _look(name: str, path: Path) -> _Place:
    real = os.path.realpath(path)
    parts = Path(real).parts
    depths = range(len(parts), 0, -1)
    steps = ((_identity(os.path.join(*parts[:depth])), parts[depth:]) for depth in depths)
    return _Place(name, str(path), real, tuple((one, rest) for one, rest in steps if one))


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _holds(outer: _Place, inner: _Place) -> bool:
    """Tell whether `inner` is `outer` or lies in it, by whatever name."""
    anchor, rest = outer.steps[0]
    return any(one == anchor and below[: len(rest)] == rest for one, below in inner.steps)


def door_check(settings: Settings) -> list[Finding]:
    """Look whether the folders can be worked with. Changes nothing.

    Returns:
        Folders that contain each other or cannot be used; a state folder on a network; files of
        the set-up that would be taken for images; a log that cannot be written.
    """
    mounts = read_mounts()
    places = [_look(f"folders.{name}", path) for name, path in _used(settings).items()]
    named = {place.name: place for place in places}
    kept = {"folders.inbox"} if settings.originals == "keep" else set()
    return [
        *_overlaps(places, mounts),
        *_taken_for_images(settings, named["folders.inbox"]),
        *(found for place in places if (found := _unusable(place, reads_only=place.name in kept))),
        *_on_network(named["folders.state"], mounts),
        *_unwritable_log(settings.log.file),
    ]


def _used(settings: Settings) -> dict[str, Path]:
    return {
        name: path
        for name, path in settings.folders
        if name != "archive" or settings.originals == "archive"
    }


def _overlaps(places: list[_Place], mounts: tuple[Mount, ...]) -> Iterator[Finding]:
    for one, other in itertools.combinations(places, 2):
        found = _overlap(one, other) or _mounted_overlap(one, other, mounts)
        if found is not None:
            yield found


def _overlap(one: _Place, other: _Place) -> Finding | None:
    match _holds(one, other), _holds(other, one):
        case True, True:
            words = f"{other.shown} is the folder of {one.name} ({one.shown})"
            return other.error(words, _BESIDE)
        case True, False:
            return other.error(f"{other.shown} lies in {one.name} ({one.shown})", _BESIDE)
        case False, True:
            return one.error(f"{one.shown} lies in {other.name} ({other.shown})", _BESIDE)
        case _:
            return None


def _mounted_overlap(one: _Place, other: _Place, mounts: tuple[Mount, ...]) -> Finding | None:
    """Find a folder that shows up in both, which their paths do not tell."""
    twice = shown_twice(one.real, other.real, mounts)
    if twice is None:
        return None
    first, second = twice.first, twice.second
    if _is_below(twice.mounted, other) or (twice.mounted is None and first == one.real):
        one, other, first, second = other, one, second, first
    words = f"{printable(second)} and {printable(first)} are one folder, by a bind mount"
    undo = f" Or remove the mount on {printable(twice.mounted)}." if twice.mounted else ""
    return other.error(
        f"{other.shown} shows up in {one.name} ({one.shown}): {words}", _BESIDE + undo
    )


def _is_below(path: str | None, place: _Place) -> bool:
    return path is not None and Path(path).is_relative_to(place.real)


def _taken_for_images(settings: Settings, inbox: _Place) -> Iterator[Finding]:
    files = {
        "api.key_file": settings.api.key_file,
        "log.file": settings.log.file,
        "configuration": settings.source,
    }
    # A run over any folder of the user's (`once SOURCE`, originals kept) moves no file.
    level: Literal["error", "warning"] = "warning" if settings.originals == "keep" else "error"
    for name, path in files.items():
        if path is not None and _holds(inbox, place := _look(name, path)):
            what = f"{place.shown} lies in the inbox, where every file is taken for an image"
            yield Finding(level, name, what, "Keep it in another folder.")


def _unusable(place: _Place, *, reads_only: bool) -> Finding | None:
    try:
        found = os.stat(place.path)
    except FileNotFoundError:
        return _cannot_be_made(place)
    except OSError as error:
        remedy = "Correct the path, or bring back the disk or share behind it."
        return place.error(f"{place.shown} cannot be reached: {_reason(error)}", remedy)
    if not stat.S_ISDIR(found.st_mode):
        return place.error(f"{place.shown} is no folder", "Name a folder, or move the file away.")
    if os.access(place.path, os.R_OK | os.X_OK | (0 if reads_only else os.W_OK)):
        return None
    if not reads_only and _mounted_read_only(place.path):
        return _read_only(place, place.path)
    return _denied(place, found, "read" if reads_only else "read and write")


def _denied(place: _Place, found: os.stat_result, what: str) -> Finding:
    owner, mode = f"{found.st_uid}:{found.st_gid}", f"{stat.S_IMODE(found.st_mode):04o}"
    quoted = shlex.quote(place.path)
    if found.st_uid == os.geteuid():
        remedy = f"Run: chmod u+rwx {quoted}"
    else:
        remedy = f"Run: chown {os.geteuid()}:{os.getegid()} {quoted}"
        if found.st_uid:
            # In compose.yaml the user is PUID and PGID.
            remedy += f", or run as its owner (PUID={found.st_uid} PGID={found.st_gid})"
    words = f"{_me()} may not {what} {place.shown}, which belongs to {owner} with mode {mode}"
    return place.error(words, f"{remedy}.")


def _cannot_be_made(place: _Place) -> Finding | None:
    way = (place.path, *map(str, Path(place.path).parents))
    dangling = next((one for one in way if os.path.islink(one) and not os.path.exists(one)), None)
    if dangling is not None:
        target = printable(os.path.realpath(dangling))
        what = f"{place.shown} is behind a link to {target}, which does not exist"
        return place.error(what, "Bring back the disk or share behind it, or make that folder.")
    above = place.nearest
    if os.access(above, os.W_OK | os.X_OK):
        return None
    if _mounted_read_only(above):
        return _read_only(place, above)
    quoted = shlex.quote(place.path)
    return place.error(
        f"{place.shown} does not exist, and {_me()} may not make it in {printable(above)}",
        f"Run: mkdir -p {quoted} && chown {os.geteuid()}:{os.getegid()} {quoted}.",
    )


def _mounted_read_only(path: str) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _read_only(place: _Place, where: str) -> Finding:
    missing = "" if where == place.path else "does not exist, and "
    what = f"{place.shown} {missing}lies on a file system that is mounted read-only"
    remedy = "Mount it writable; in a systemd unit, name the folder in ReadWritePaths=."
    return place.error(what, remedy)


def _on_network(state: _Place, mounts: tuple[Mount, ...]) -> Iterator[Finding]:
    for mount in mounts_under(state.real, mounts):
        if network(mount.fs_type):
            what = f"{state.shown} is on a network ({mount.fs_type} on {printable(mount.point)})"
            remedy = "Name a folder on a disk of this machine: the record is an SQLite database."
            yield state.error(what, remedy)
            return


def _unwritable_log(file: Path | None) -> Iterator[Finding]:
    if file is None:
        return
    place = _look("log.file", file)
    folder = os.path.dirname(place.real)
    if not os.path.isdir(folder):
        what = f"the folder of {place.shown} does not exist"
        yield place.error(what, f"Run: mkdir -p {shlex.quote(folder)}.")
    elif os.path.isdir(place.real):
        yield place.error(f"{place.shown} is a folder", "Name a file in it.")
    elif not os.access(needed := place.real if os.path.exists(place.real) else folder, os.W_OK):
        who, what = f"{os.geteuid()}:{os.getegid()}", f"{_me()} may not write {place.shown}"
        yield place.error(what, f"Run: chown {who} {shlex.quote(needed)}.")


def prepare_folders(settings: Settings) -> None:
    """Make the folders that do not exist yet; only the owner may enter a new state folder.

    Raises:
        SetupError: One of them cannot be made.
    """
    for name, path in _used(settings).items():
        try:
            os.makedirs(path, mode=0o700 if name == "state" else 0o777, exist_ok=True)
        except OSError as error:
            raise SetupError(
                f"folders.{name}: {printable(str(path))} cannot be made: {_reason(error)}. "
                "Make it yourself, or name another folder."
            ) from error
