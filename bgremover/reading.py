"""The configuration is read: a file and the environment in, settings or every mistake at once out.

The file and the environment are read the same way: a value is text until the model makes a
number, a truth value or a path of it. So `inbox: 2024-01-01` is a folder, `level: off` is shown
as it was written, and no YAML type gets in between.
"""

import difflib
import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import (
    ValidationError,
)
from pydantic_core import ErrorDetails

from bgremover.core.errors import SetupError
from bgremover.core.ignoring import Ignore
from bgremover.core.naming import printable
from bgremover.core.recipe import recipe_of
from bgremover.core.terms import MOST_GLOBS, MOST_RENDITIONS, Override, OwnOutput
from bgremover.findings import me, reason_of
from bgremover.settings import (
    CONFIG_VARIABLE,
    KEYS,
    LISTS,
    NULL,
    PATHS,
    PREFIX,
    SECTIONS,
    VARIABLES,
    FolderSettings,
    Settings,
    default_of,
    shown,
    variable,
)

# --- reading -------------------------------------------------------------------------------


_Value = str | tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class _Given:
    """A value as it was written, and where: "line 3", or the name of a variable."""

    value: _Value
    origin: str


@dataclass(slots=True)
class _Reading:
    """What has been read so far, by dotted key; every mistake is one line.

    `keys` are those that the file can have: a hint names no others.
    """

    given: dict[str, _Given] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    keys: tuple[str, ...] = tuple(KEYS)

    def wrong(self, key: str, origin: str, words: str) -> None:
        """Note a mistake."""
        name = printable(key) if key and key == key.strip() else f'"{printable(key)}"'
        where = f" ({origin})" if origin else ""
        self.mistakes.append(f"{name}{where}: {words}")

    def unfit(self, key: str, origin: str, shown: str) -> None:
        """Note that a value is not what the key takes."""
        default = default_of(key) if self.keys == tuple(KEYS) else "as in the folder above"
        without = f"without the key it is {default}"
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
    key = ".".join(place[:2]) if place[0] in SECTIONS else place[0]
    given = reading.given.get(key)
    origin = given.origin if given else ""
    reason = detail.get("ctx", {}).get("error")
    if reason is not None:
        reading.wrong(key, origin, str(reason))
    else:
        reading.unfit(key, origin, shown(detail["input"]))


def _with_absolute_folders(settings: Settings, base: Path, state: str) -> Settings:
    folders = settings.folders
    paths = {name: base / path for name, path in folders}
    if state and "state" not in folders.model_fields_set:
        paths["state"] = base / state.partition(":")[0]
    # Not by model_copy: what was not given must not count as given.
    placed = FolderSettings.model_construct(set(folders.model_fields_set), **paths)
    return settings.model_copy(update={"folders": placed})


def _resolve_paths(reading: _Reading, base: Path, home: str) -> None:
    for key in PATHS:
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
        raise ValueError(f"{shown(text)} is no path. Write one, as ./name or /srv/name.")
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
        if name in KEYS:
            _take(reading, name, origin, node)
        elif name not in SECTIONS:
            reading.wrong(name, origin, _no_such_key(name, reading.keys))
        elif isinstance(node, yaml.MappingNode):
            _read_section(reading, name, node)
        elif not _is_null(node):  # all keys of a section may be commented out
            inner = (key.partition(".")[2] for key in reading.keys if key.startswith(f"{name}."))
            example = next(inner, None)
            words = f"this is no section. Write the keys below it, indented, as {example}: ..."
            reading.wrong(name, origin, words if example else _not_of_a_folder())


def _read_section(reading: _Reading, section: str, node: yaml.MappingNode) -> None:
    for name, origin, value in _entries(reading, node, f"{section}."):
        if name in KEYS:
            _take(reading, name, origin, value)
        else:
            reading.wrong(name, origin, _no_such_key(name, reading.keys))


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
        key = VARIABLES.get(name)
        if key is not None and env[name].strip():
            _take_variable(reading, key, name, env[name].strip())
        elif key is None and name.startswith(PREFIX) and name != CONFIG_VARIABLE:
            reading.wrong(name, "", _no_such_variable(name))


def _take_variable(reading: _Reading, key: str, name: str, text: str) -> None:
    try:
        reading.given[key] = _Given(_from_variable(key, text), name)
    except (ValueError, yaml.YAMLError):
        reading.unfit(key, name, shown(text))


def _from_variable(key: str, text: str) -> _Value:
    listed = key in LISTS and text.startswith("[")
    node = yaml.compose(text, Loader=yaml.SafeLoader) if listed else None
    if node is not None:
        return _value(node)
    if key in LISTS:
        return tuple(part for part in map(str.strip, text.split(",")) if part)
    return None if text.lower() == NULL else text


# --- what mistakes are called --------------------------------------------------------------


_THE_KEY_ITSELF = re.compile(r"(ideogram_?)?(api_?)?(key|token|secret)")
_NOT_HERE = (
    "the key to the API is no part of the configuration. Put it into a file of its own and name "
    "that in api.key_file, or into the variable IDEOGRAM_API_KEY."
)


def _no_such_key(name: str, keys: tuple[str, ...]) -> str:
    section, _, last = name.rpartition(".")
    if _THE_KEY_ITSELF.fullmatch(last.lower()):
        return _NOT_HERE
    sections = {key.partition(".")[0] for key in keys} & SECTIONS.keys()
    near = _nearest(name, [*keys] if section else [*keys, *sorted(sections)])
    if near:
        remedy = f"Did you mean {near}?"
    elif keys == tuple(KEYS):
        remedy = "Take it out; `bgremover schema` lists all keys."
    else:
        remedy = f"Take it out; a folder can have {_listed(keys)}."
    return f"there is no such key. {remedy}"


def _no_such_variable(name: str) -> str:
    rest = name.removeprefix(PREFIX).lower()
    spelt = re.sub(r"_+", "_", rest)
    if _THE_KEY_ITSELF.fullmatch(spelt):
        return _NOT_HERE
    same = next((key for key in KEYS if key.replace(".", "_") == spelt), None)
    near = same or _nearest(rest.replace("__", ".", 1), [*KEYS])
    remedy = f"Did you mean {variable(near)}?" if near else "Unset it."
    return f"there is no such variable for a key of the configuration. {remedy}"


def _nearest(name: str, known: list[str]) -> str | None:
    """Return the same key of another section, else a similar one, of its own section first."""
    section, _, last = name.lower().rpartition(".")
    elsewhere = [key for key in known if key.rpartition(".")[2] == last]
    here = [key for key in known if key.startswith(f"{section}.")] if section else []
    similar = (difflib.get_close_matches(name.lower(), names, 1) for names in (here, known))
    return next(itertools.chain(elsewhere, *similar), None)


def _wanted(key: str) -> str:
    section, _, name = key.rpartition(".")
    schema = Settings.model_json_schema()
    if section:
        schema = schema["$defs"][SECTIONS[section].__name__]
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
        case {"type": "array", "items": {"enum": _} as one}:
            return f"a list of {_kind(one)}"
        case {"type": "array"}:
            return f"a list{_such_as(schema)}"
        case {"format": "path"}:
            return "a path"
        case _:
            return "a text"


def _such_as(schema: Mapping[str, Any]) -> str:
    return f" as {json.dumps(schema['default'] or schema['examples'][0])}"


def _range(schema: Mapping[str, Any]) -> str:
    least, above, most = map(schema.get, ("minimum", "exclusiveMinimum", "maximum"))
    if above is not None:
        return f" above {above:g}, up to {most:.10g}"
    return f" from {least:.10g} to {most:.10g}"


# --- the file of a folder ------------------------------------------------------------------

FOLDER_KEYS = ("originals", "watch.ignore", *(key for key in KEYS if key.startswith("output.")))
"""What a folder of the inbox can have of its own."""


def parse_override(text: str, given: Settings) -> Override:
    """Read the `.bgremover.yaml` of a folder: the same keys, written the same way.

    Args:
        text: The file: YAML.
        given: The configuration. It says whether there is an archive, and bounds what a file may
            ask for that is written by whoever may drop images.

    Returns:
        What it says; with every mistake in `wrong` when it is not sound.
    """
    reading = _Reading(keys=FOLDER_KEYS)
    _read_document(reading, text)
    for key, written in reading.given.items():
        if key not in FOLDER_KEYS:
            reading.wrong(key, written.origin, _not_of_a_folder())
    settings, originals = _validated(reading), reading.given.get("originals")
    # It is made and looked at only for a configuration that asks for it.
    if originals is not None and originals.value == "archive" and given.originals != "archive":
        words = "there is no archive. Say keep or delete, or set originals: archive for all."
        reading.wrong("originals", originals.origin, words)
    if settings is not None:
        _check_globs(reading, settings)
        _check_renditions(reading, settings, given)
    if settings is None or reading.mistakes:
        return Override(wrong=" ".join(_first(reading.mistakes)))
    return Override(
        originals=None if originals is None else settings.originals,
        ignore=Ignore(settings.watch.ignore) if "watch.ignore" in reading.given else None,
        output=_own_output(reading, settings),
    )


def _not_of_a_folder() -> str:
    return f"holds for the whole inbox. A folder can have {_listed(FOLDER_KEYS)}."


def _listed(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


_MOST_TOLD = 5


def _first(mistakes: list[str]) -> list[str]:
    """Return what is told of mistakes: not a log full of whatever a stranger writes."""
    more = len(mistakes) - _MOST_TOLD
    return mistakes if more <= 0 else [*mistakes[:_MOST_TOLD], f"And {more} more."]


def _own_output(reading: _Reading, settings: Settings) -> OwnOutput:
    said = {key: value for key, value in settings.output if f"output.{key}" in reading.given}
    return OwnOutput(**said)


def _check_globs(reading: _Reading, settings: Settings) -> None:
    written = reading.given.get("watch.ignore")
    if written is not None and len(settings.watch.ignore) > MOST_GLOBS:
        words = f"these are more than {MOST_GLOBS} globs. Take some out."
        reading.wrong("watch.ignore", written.origin, words)


def _check_renditions(reading: _Reading, settings: Settings, given: Settings) -> None:
    written = reading.given.get("output.renditions")
    if written is None:
        return
    lines = settings.output.renditions
    for words in _unfit_for_a_folder(lines, given) if len(lines) <= MOST_RENDITIONS else [_MANY]:
        reading.wrong("output.renditions", written.origin, words)


_MANY = f"these are more than {MOST_RENDITIONS}. Take some out."


def _unfit_for_a_folder(lines: tuple[str, ...], given: Settings) -> Iterator[str]:
    """Yield what only the configuration may ask for."""
    known = {recipe_of(line).background for line in given.output.renditions}
    most = given.input.max_megapixels
    for recipe in map(recipe_of, lines):
        if isinstance(recipe.background, str) and recipe.background not in known:
            yield (
                f"{recipe.name}: a folder cannot name an image as its background, "
                f"{shown(recipe.background)}. Take a colour, or name that image in a recipe of "
                "the configuration too."
            )
        if math.prod(recipe.size or (recipe.longest or 0,) * 2) > most * 1e6:
            yield (
                f"{recipe.name}: it has more than {most:g} megapixels (input.max_megapixels). "
                "Make it smaller."
            )


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
        what = f"may not be read by {me()}. Give it the right, or name another file with -c."
        raise SetupError(f"{where} {what}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            line = error.object[: error.start].count(b"\n") + 1
            raise SetupError(f"{where}: line {line} is not UTF-8. Save it as UTF-8.") from error
        what = f"cannot be read: {reason_of(error)}. Name another file with -c."
        raise SetupError(f"{where} {what}") from error
