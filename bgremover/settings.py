"""The configuration: a YAML file, the environment above it, the key, the folders at the door.

`parse_settings` is pure: text, environment and a folder in, settings or every mistake at once out.
The field descriptions are the documentation: `example_text` writes config.example.yaml and the
file of `bgremover init` from them, `json_schema` gives them to editors.
"""

import contextlib
import difflib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from bgremover.core.answer import host_of
from bgremover.core.errors import SetupError
from bgremover.core.naming import printable
from bgremover.edges.mounts import mounts_under, network, read_mounts

PREFIX = "BGREMOVER_"
NO_KEYS = frozenset({"BGREMOVER_CONFIG"})
CREDENTIAL = "ideogram-api-key"
_NULLS = ("null", "~")
LOOPBACK = ("localhost", "127.", "[::1]")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Folders(_Section):
    """Where everything lies; relative paths are relative to the configuration file."""

    inbox: Path = Field(Path("./inbox"), description="Images dropped here are cut out.")
    outbox: Path = Field(Path("./outbox"), description="The cut-outs, mirroring the inbox.")
    quarantine: Path = Field(
        Path("./quarantine"), description="What cannot be cut out, with an error JSON beside it."
    )
    archive: Path = Field(Path("./archive"), description="Originals whose cut-out is saved.")
    state: Path = Field(
        Path("./state"),
        description="The ledger; on a local disk. Default under systemd: $STATE_DIRECTORY.",
    )


class Api(_Section):
    """How the API is reached."""

    base_url: str = Field("https://api.ideogram.ai", description="Where the API is.")
    flow: Literal["sync", "async"] = Field(
        "sync", description="sync: one request waits for the result; async: submit, then poll."
    )
    key_file: Path | None = Field(
        None,
        description="The key's file; else $IDEOGRAM_API_KEY, $IDEOGRAM_API_KEY_FILE, or the "
        'systemd credential "ideogram-api-key".',
    )
    max_upload_mb: float = Field(10, gt=0, le=1000, description="A larger file is not sent.")
    connect_timeout_seconds: float = Field(
        10, gt=0, le=300, description="Longest wait for a connection."
    )
    read_timeout_seconds: float = Field(
        300,
        gt=0,
        le=3600,
        description="Longest wait for an answer; keep it above the API's own 265 s.",
    )
    link_hosts: tuple[str, ...] = Field(
        ("ideogram.ai", "*.ideogram.ai"),
        description="Hosts that results may be fetched from; that of base_url always may.",
    )
    price_usd: float = Field(0.01, ge=0, le=100, description="What one call costs, for the sums.")

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        host = host_of(value)
        if not host:
            raise ValueError("is no http or https address: write https://api.ideogram.ai")
        if value[:5].lower() == "http:" and not host.startswith(LOOPBACK):
            raise ValueError("would send the key and the images unencrypted: use https")
        return value.rstrip("/")


class Watch(_Section):
    """How files are noticed, and when they are taken."""

    backend: Literal["auto", "native", "polling"] = Field(
        "auto", description="auto: events where the kernel tells of all changes, else sweeps."
    )
    recursive: bool = Field(True, description="Whether sub-folders of the inbox count.")  # noqa: FBT003 - a default
    settle_seconds: float = Field(
        2, ge=0, le=3600, description="A file is taken when it has not changed for so long."
    )
    poll_seconds: float = Field(
        5, ge=0.1, le=3600, description="How often the inbox is swept where events cannot be had."
    )
    rescan_seconds: float = Field(
        300, ge=1, le=86_400, description="How often it is swept where they can."
    )
    incomplete_minutes: float = Field(
        10, ge=0, le=10_080, description="How long a file that is cut off is waited for."
    )
    ignore: tuple[str, ...] = Field(
        (), description="Globs, added to the built-in list of partial uploads and NAS litter."
    )


class Queue(_Section):
    """How much is done at a time."""

    workers: int = Field(4, ge=1, le=1000, description="Images in flight at the API at most.")
    capacity: int = Field(
        64,
        ge=1,
        le=100_000,
        description="Images claimed and waiting at most; the rest waits in the inbox.",
    )


class Retry(_Section):
    """What happens after a failure."""

    max_attempts: int = Field(
        5, ge=1, le=1000, description="Failures that speak against an image while others succeed."
    )
    base_seconds: float = Field(2, gt=0, le=3600, description="First back-off.")
    cap_seconds: float = Field(300, gt=0, le=86_400, description="Longest back-off.")
    unknown_charge: Literal["retry", "hold"] = Field(
        "retry", description="A call that may have been billed: send once more, or never again."
    )


class Budget(_Section):
    """What may be spent; calls in flight count."""

    per_day_usd: float | None = Field(None, ge=0, description="Most in a local day.")
    per_month_usd: float | None = Field(None, ge=0, description="Most in a local month.")


class Log(_Section):
    """How work is told."""

    format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto: console on a terminal, else JSON lines."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least that is told."
    )
    file: Path | None = Field(None, description="JSON lines go here too; rotate it as you like.")


class Settings(BaseSettings):
    """The whole configuration. Paths are absolute once loaded."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    folders: Folders = Folders()
    originals: Literal["archive", "keep", "delete"] = Field(
        "archive", description="What happens to an original once its cut-out is saved."
    )
    api: Api = Api()
    watch: Watch = Watch()
    queue: Queue = Queue()
    retry: Retry = Retry()
    budget: Budget = Budget()
    log: Log = Log()
    _source: Path | None = PrivateAttr(None)

    @property
    def source(self) -> Path | None:
        """The file these settings were read from; None when there was none."""
        return self._source

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings' own signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take only what is handed over: what else lies about must not change the settings."""
        return (init_settings,)


# --- reading -------------------------------------------------------------------------------


def parse_settings(text: str, env: Mapping[str, str], base: Path) -> Settings:
    """Read the configuration.

    Args:
        text: YAML.
        env: The environment; BGREMOVER_SECTION__KEY goes above the file.
        base: What relative paths are relative to.

    Returns:
        The settings, with absolute paths.

    Raises:
        SetupError: With every mistake: its key, what is wrong, what to do.
    """
    data = _yaml(text)
    named = {name: value for name, value in env.items() if name.startswith(PREFIX)}
    known = {name: value for name, value in named.items() if _is_key(name)}
    mistakes = [_unknown_variable(name) for name in sorted(named.keys() - known.keys() - NO_KEYS)]
    try:
        settings = Settings(**_merged(data, _from_environment(known)))
    except ValidationError as error:
        mistakes = [_mistake(one, known) for one in error.errors()] + mistakes
        raise _all(mistakes) from None
    if mistakes:
        raise _all(mistakes)
    return _absolute(settings, env, base)


def load_settings(config: str | None, env: Mapping[str, str], cwd: Path) -> Settings:
    """Find the configuration file and read it.

    Args:
        config: The file; None looks for it where the documentation says.
        env: The environment.
        cwd: The current folder.

    Raises:
        SetupError: With every mistake, or because a file that was named cannot be read.
    """
    named = config or env.get("BGREMOVER_CONFIG")
    path = cwd / os.path.expanduser(named) if named else _found(env, cwd)
    if path is None:
        return parse_settings("", env, cwd)
    text = _read(path)
    try:
        settings = parse_settings(text, env, path.resolve().parent)
    except SetupError as error:
        raise SetupError(f"{path}: {error.message}") from None
    settings._source = path  # noqa: SLF001 - the settings do not know it when they are parsed
    return settings


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise SetupError(
            f"the configuration {path} cannot be read: {reason}. Name a YAML file with -c, or "
            "write one with `bgremover init`"
        ) from error


def _found(env: Mapping[str, str], cwd: Path) -> Path | None:
    home = env.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    places = (
        cwd / "config.yaml",
        Path(home) / "bgremover/config.yaml",
        Path("/etc/bgremover/config.yaml"),
    )
    return next((place for place in places if place.exists()), None)


def _yaml(text: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SetupError(f"this is no YAML: {_one_line(str(error))}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SetupError("this is no configuration: it must hold `section:` lines, see `init`")
    return {str(key): value for key, value in data.items()}


def _from_environment(env: Mapping[str, str]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in env.items():
        if value:
            section, _, key = name.removeprefix(PREFIX).lower().partition("__")
            if key:
                nested.setdefault(section, {})[key] = _plain(value)
            else:
                nested[section] = _plain(value)
    return nested


def _plain(value: str) -> object:
    # Numbers and truth values are read from text by the model itself.
    if value.lower() in _NULLS or value.startswith("["):
        with contextlib.suppress(yaml.YAMLError):
            return yaml.safe_load(value)
    return value


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    # "queue:" with all its keys commented out is an empty section, not a mistake.
    merged = {key: value for key, value in below.items() if value is not None}
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(under, dict) and isinstance(value, dict):
            merged[key] = {**under, **value}
        else:
            merged[key] = value
    return merged


def _absolute(settings: Settings, env: Mapping[str, str], base: Path) -> Settings:
    folders, api, log = settings.folders, settings.api, settings.log
    given = {name: getattr(folders, name) for name in Folders.model_fields}
    if "state" not in folders.model_fields_set and env.get("STATE_DIRECTORY"):
        given["state"] = Path(env["STATE_DIRECTORY"].split(":")[0])
    paths: dict[str, Any] = {name: _path(base, path) for name, path in given.items()}
    return settings.model_copy(
        update={
            # Which of them were given stays known: `once SOURCE` asks.
            "folders": Folders.model_construct(folders.model_fields_set, **paths),
            "api": api.model_copy(update={"key_file": _path(base, api.key_file)}),
            "log": log.model_copy(update={"file": _path(base, log.file)}),
        }
    )


def _path(base: Path, path: Path | None) -> Path | None:
    return None if path is None else Path(os.path.abspath(base / os.path.expanduser(path)))


# --- mistakes ------------------------------------------------------------------------------


def keys() -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key of the configuration, dotted, with its field."""
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, _Section):
            for inner, inner_field in field.annotation.model_fields.items():
                yield f"{name}.{inner}", inner_field
        else:
            yield name, field


def _all_keys() -> list[str]:
    return [key for key, _ in keys()]


def variable(key: str) -> str:
    """Return the environment variable of a dotted key."""
    return PREFIX + key.replace(".", "__").upper()


def _is_key(name: str) -> bool:
    return name in {variable(key) for key in _all_keys()}


def _unknown_variable(name: str) -> str:
    near = difflib.get_close_matches(name.upper(), [variable(key) for key in _all_keys()], 1)
    remedy = f"did you mean {near[0]}?" if near else "unset it; `bgremover schema` lists all keys"
    return f"{name}: there is no such key; {remedy}"


def _mistake(error: ErrorDetails, env: Mapping[str, str]) -> str:
    key = ".".join(str(part) for part in error["loc"] if isinstance(part, str))
    where = key
    if any(name.upper() == variable(key) for name in env):
        where = f"{variable(key)} ({key})"
    if error["type"] == "extra_forbidden":
        return f"{where}: {_no_such_key(key)}"
    message = error["msg"].removeprefix("Value error, ")
    given = error["input"]
    shown = "" if isinstance(given, dict) else f" (it is {printable(repr(given))[:80]})"
    return f"{where}: {message[0].lower()}{message[1:]}{shown}"


def _no_such_key(key: str) -> str:
    section, _, name = key.rpartition(".")
    near = difflib.get_close_matches(key, [*_all_keys(), *Settings.model_fields], 1)
    elsewhere = [one for one in _all_keys() if one.rpartition(".")[2] == (name or section)]
    guess = (near or elsewhere or [""])[0]
    remedy = f"did you mean {guess}?" if guess else "remove it; `bgremover schema` lists all keys"
    return f"there is no such key; {remedy}"


def _all(mistakes: list[str]) -> SetupError:
    lines = "\n".join(f"  {mistake}" for mistake in mistakes)
    return SetupError(f"the configuration is wrong:\n{lines}")


def _one_line(text: str) -> str:
    return " ".join(text.split())


# --- documentation -------------------------------------------------------------------------


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the configuration."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "bgremover configuration",
        **Settings.model_json_schema(),
    }


def example_text() -> str:
    """Return a configuration that names every key with its default and what it is for."""
    lines = ["# The configuration of bgremover. Every key is optional; these are the defaults."]
    section = ""
    for key, field in keys():
        above, _, name = key.rpartition(".")
        if above != section:
            lines += ["", *([f"{above}:"] if above else [])]
        section = above
        indent = "  " if above else ""
        default = field.get_default(call_default_factory=True)
        lines += [f"{indent}# {field.description}", f"{indent}{name}: {_shown(default)}"]
    return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = f"./{value}" if isinstance(value, Path) else plain
    return yaml.safe_dump(text, default_flow_style=True, width=1000).removesuffix("...\n").strip()


# --- the key -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finding:
    """Something at the door: where, what is wrong, what to do."""

    level: Literal["error", "warning"]
    where: str
    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where the API key is read from: a file, else a value of the environment."""

    name: str
    file: Path | None = None
    value: SecretStr | None = None

    def read(self) -> SecretStr:
        """Return the key as it is now; a file is read afresh, so that it may be rotated.

        Raises:
            SetupError: It cannot be read, is empty, or holds what no key does.
        """
        key = self._content().strip()
        if not key:
            raise SetupError(f"the API key in {self.describe()} is empty: put your key there")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise SetupError(
                f"the API key in {self.describe()} holds characters that no key has: put the key "
                "there alone, on one line"
            )
        return SecretStr(key)

    def _content(self) -> str:
        if self.file is None:
            return self.value.get_secret_value() if self.value else ""
        try:
            return self.file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise SetupError(
                f"the API key in {self.describe()} cannot be read by uid {os.geteuid()}: {reason}"
            ) from error

    def describe(self) -> str:
        """Say in words where the key is; never the key."""
        return self.name

    def version(self) -> object:
        """Return something that is another when the key may have changed."""
        if self.file is None:
            return None
        try:
            found = self.file.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def findings(self) -> list[Finding]:
        """Return what is unwise about where the key lies."""
        try:
            mode = self.file.stat().st_mode if self.file else 0
        except OSError:
            return []
        if not mode & 0o077:
            return []
        what = f"the key file {self.file} may be read by others (mode {stat.S_IMODE(mode):04o})"
        return [Finding("warning", "api.key_file", what, f"Run: chmod 600 {self.file}")]


def find_key_source(settings: Settings, env: Mapping[str, str]) -> KeySource:
    """Find out where the API key is read from.

    Raises:
        SetupError: Nowhere, or in two places at once.
    """
    value, named = env.get("IDEOGRAM_API_KEY"), env.get("IDEOGRAM_API_KEY_FILE")
    if settings.api.key_file is not None:
        return _in_file(settings.api.key_file, "api.key_file")
    if value and named:
        raise SetupError(
            "both IDEOGRAM_API_KEY and IDEOGRAM_API_KEY_FILE are set: unset one of them"
        )
    if value:
        return KeySource("the environment variable IDEOGRAM_API_KEY", value=SecretStr(value))
    if named:
        return _in_file(Path(named), "IDEOGRAM_API_KEY_FILE")
    credential = Path(env.get("CREDENTIALS_DIRECTORY", "")) / CREDENTIAL
    if env.get("CREDENTIALS_DIRECTORY") and credential.exists():
        return _in_file(credential, "the systemd credential")
    raise SetupError(
        "there is no API key. Give it in one of these ways: a file named by api.key_file, the "
        "variable IDEOGRAM_API_KEY, a file named by IDEOGRAM_API_KEY_FILE, or the systemd "
        f'credential "{CREDENTIAL}"'
    )


def _in_file(path: Path, by: str) -> KeySource:
    return KeySource(f"the file {path} ({by})", file=path)


# --- the door ------------------------------------------------------------------------------


def door_check(settings: Settings) -> list[Finding]:
    """Look for folders that cannot work: overlapping, missing for good, not writable.

    Changes nothing.
    """
    used = _used(settings)
    overlaps = [
        finding
        for index, one in enumerate(used)
        for other in list(used)[index + 1 :]
        if (finding := _overlap(one, used[one], other, used[other]))
    ]
    usable = [found for name, path in used.items() if (found := _usable(name, path, settings))]
    return [*overlaps, *usable, *_state_is_local(settings.folders.state)]


def prepare_folders(settings: Settings) -> None:
    """Make the folders that are not there yet.

    Raises:
        SetupError: One cannot be made.
    """
    for name, path in _used(settings).items():
        try:
            path.mkdir(mode=0o700 if name == "state" else 0o777, parents=True, exist_ok=True)
        except OSError as error:
            raise SetupError(
                f"folders.{name}: {path} cannot be made: {error.strerror}. Make it yourself, or "
                "name another"
            ) from error


def _used(settings: Settings) -> dict[str, Path]:
    folders = settings.folders
    unused = {"archive"} if settings.originals != "archive" else set()
    return {name: getattr(folders, name) for name in Folders.model_fields if name not in unused}


def _overlap(one: str, path: Path, other: str, other_path: Path) -> Finding | None:
    remedy = "Give each folder a place of its own, none inside another"
    if _identity(path) in _above(other_path) or os.path.realpath(path) == os.path.realpath(
        other_path
    ):
        what = f"{other_path} is, or lies inside, folders.{one} ({path})"
        return Finding("error", f"folders.{other}", what, remedy)
    if _identity(other_path) in _above(path) or _lies_in(path, other_path):
        what = f"{path} lies inside folders.{other} ({other_path})"
        return Finding("error", f"folders.{one}", what, remedy)
    if _lies_in(other_path, path):
        what = f"{other_path} lies inside folders.{one} ({path})"
        return Finding("error", f"folders.{other}", what, remedy)
    return None


def _lies_in(path: Path, above: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(above))


def _above(path: Path) -> set[tuple[int, int] | None]:
    # Device and inode see what names do not: a bind mount of one folder inside another.
    real = Path(os.path.realpath(path))
    return {found for each in (real, *real.parents) if (found := _identity(each))}


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _usable(name: str, path: Path, settings: Settings) -> Finding | None:
    where, who = f"folders.{name}", f"uid {os.geteuid()}, gid {os.getegid()}"
    if not path.exists():
        above = next(each for each in path.parents if each.exists())
        if os.access(above, os.W_OK | os.X_OK) and above.is_dir():
            return None
        what = f"{path} does not exist, and {above} does not let {who} make it"
        return Finding("error", where, what, f"Make it, or: chown {os.geteuid()} {above}")
    if not path.is_dir():
        return Finding("error", where, f"{path} is no folder", "Name a folder")
    reads_only = name == "inbox" and settings.originals == "keep"
    needed = os.R_OK | os.X_OK | (0 if reads_only else os.W_OK)
    if os.access(path, needed):
        return None
    may = "read" if reads_only else "read and write"
    remedy = f"Run: chown {os.geteuid()}:{os.getegid()} {path}, or run as its owner"
    return Finding("error", where, f"{who} may not {may} {path}", remedy)


def _state_is_local(state: Path) -> list[Finding]:
    mounts = mounts_under(os.path.realpath(state), read_mounts())[:1]
    return [
        Finding(
            "error",
            "folders.state",
            f"{state} lies on {mount.fs_type}, where SQLite cannot keep the ledger safe",
            "Name a folder on a disk of this machine",
        )
        for mount in mounts
        if network(mount.fs_type)
    ]
