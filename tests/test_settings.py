"""The configuration: what counts, what is refused and in which words; the key; the door."""

import json
import os
import re
import stat
import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from bgremover import door, reading
from bgremover.core.errors import SetupError
from bgremover.door import door_check, prepare_folders
from bgremover.edges.mounts import Mount
from bgremover.findings import Finding
from bgremover.key import KeySource, find_key_source
from bgremover.reading import FOLDER_KEYS, load_settings, parse_override, parse_settings
from bgremover.settings import Settings, example_text, json_schema, keys, variable
from tests.apart import NOBODY, apart, open_to_all

ROOT = Path(__file__).parent.parent
BASE = Path("/base")
KEY = "k-3141592653589793"
CONTRACT: dict[str, Any] = {
    "folders.inbox": BASE / "inbox",
    "folders.outbox": BASE / "outbox",
    "folders.quarantine": BASE / "quarantine",
    "folders.archive": BASE / "archive",
    "folders.state": BASE / "state",
    "originals": "archive",
    "api.base_url": "https://api.ideogram.ai",
    "api.flow": "sync",
    "api.key_file": None,
    "api.max_upload_mb": 10,
    "api.connect_timeout_seconds": 10,
    "api.read_timeout_seconds": 300,
    "api.link_hosts": ("ideogram.ai", "*.ideogram.ai"),
    "api.ca_bundle": None,
    "api.proxy": None,
    "api.price_usd": 0.01,
    "watch.backend": "auto",
    "watch.recursive": True,
    "watch.settle_seconds": 2,
    "watch.poll_seconds": 5,
    "watch.rescan_seconds": 300,
    "watch.incomplete_minutes": 10,
    "watch.marker": None,
    "watch.ignore": (),
    "input.already_transparent": "send",
    "input.max_megapixels": 100,
    "input.oversize": "shrink",
    "output.resolution": "original",
    "output.metadata": "safe",
    "output.review": "warn",
    "output.renditions": (),
    "pictures.max_memory_mb": 1000,
    "queue.workers": 4,
    "queue.capacity": 64,
    "queue.share_core": True,
    "retry.max_attempts": 5,
    "retry.base_seconds": 2,
    "retry.cap_seconds": 300,
    "retry.unknown_charge": "retry",
    "budget.per_day_usd": None,
    "budget.per_month_usd": None,
    "log.format": "auto",
    "log.level": "info",
    "log.file": None,
    "http.listen": None,
    "notify.events": (
        *("quarantined", "paused", "resumed", "budget", "lost", "restored", "digest"),
    ),
    "notify.webhook_url": None,
    "notify.webhook_secret_file": None,
    "notify.apprise": (),
    "notify.on_saved": (),
    "notify.on_quarantined": (),
    "notify.on_paused": (),
    "notify.on_resumed": (),
    "notify.on_lost": (),
    "notify.on_restored": (),
    "notify.command_timeout_seconds": 60,
    "notify.quiet_seconds": 300,
    "notify.digest_at": None,
    "notify.heartbeat_url": None,
    "notify.heartbeat_seconds": 60,
    "retention.archive_days": None,
    "retention.archive_files": None,
    "retention.archive_mb": None,
    "retention.quarantine_days": None,
    "retention.quarantine_files": None,
    "retention.quarantine_mb": None,
    "retention.ledger_days": None,
}


def flat(settings: Settings) -> dict[str, Any]:
    """Every key with its value, as the program sees it."""
    values: dict[str, Any] = {}
    for name in Settings.model_fields.keys() - {"source"}:
        value = getattr(settings, name)
        if isinstance(value, str):
            values[name] = value
        else:
            values |= {f"{name}.{key}": revealed(one) for key, one in value}
    return values


def revealed(value: object) -> object:
    match value:
        case SecretStr():
            return value.get_secret_value()
        case tuple():
            return tuple(map(revealed, value))
        case _:
            return value


def nested(values: Mapping[str, object]) -> dict[str, Any]:
    """The opposite of flat: sections with their keys."""
    sections: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (sections.setdefault(section, {}) if section else sections)[name] = value
    return sections


def mistakes(text: str = "", env: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(SetupError) as told:
        parse_settings(text, env or {}, BASE)
    return str(told.value).splitlines()


# --- defaults, the example, the schema --------------------------------------------------------


def test_the_defaults_are_those_of_the_contract() -> None:
    assert flat(parse_settings("", {}, BASE)) == CONTRACT


def test_the_settings_cannot_be_changed() -> None:
    settings = parse_settings("", {}, BASE)
    with pytest.raises(ValidationError):
        settings.queue.workers = 8  # type: ignore[misc]
    with pytest.raises(ValidationError):
        settings.originals = "keep"  # type: ignore[misc]


def test_the_example_file_is_what_the_model_says() -> None:
    assert (ROOT / "config.example.yaml").read_text(encoding="utf-8") == example_text()


def test_the_example_shows_every_key_with_its_default() -> None:
    # The one key that is commented out: written out, it would outdo $STATE_DIRECTORY.
    text = example_text().replace("# state: ./state", "state: ./state")
    shown = yaml.safe_load(text)
    assert flat(parse_settings(text, {}, BASE)) == CONTRACT
    assert list(keys()) == list(CONTRACT)
    for key in CONTRACT:
        section, _, name = key.rpartition(".")
        assert name in (shown[section] if section else shown)


def test_the_example_says_in_a_sentence_what_each_key_is_for() -> None:
    lines = example_text().splitlines()
    for key, field in keys().items():
        sentence = field.description or ""
        assert re.fullmatch(r"[A-Za-z].*[^.]\.", sentence), key
        at = next(
            number
            for number, line in enumerate(lines)
            if re.fullmatch(rf" *(# )?{key.rpartition('.')[2]}: .*", line)
        )
        above: list[str] = []
        while at and re.match(r" *# ", lines[at - 1]):
            at -= 1
            above.insert(0, lines[at].strip(" #"))
        assert " ".join(above) == sentence


def test_the_example_as_it_is_changes_nothing() -> None:
    systemd = {"STATE_DIRECTORY": "/var/lib/bgremover"}
    example_file = parse_settings(example_text(), systemd, BASE)
    assert example_file == parse_settings("", systemd, BASE)
    assert example_file.folders.state == Path("/var/lib/bgremover")
    assert max(map(len, example_text().splitlines())) <= 100


def test_the_schema_knows_every_key_its_default_and_what_it_is_for() -> None:
    schema = json_schema()
    told: dict[str, Any] = {}
    for name, part in schema["properties"].items():
        section = schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else None
        inner = (
            {f"{name}.{key}": one for key, one in section["properties"].items()} if section else {}
        )
        told |= inner or {name: part}
        assert section is None or section["additionalProperties"] is False
    assert schema["additionalProperties"] is False
    assert told.keys() == CONTRACT.keys()
    for key, field in keys().items():
        assert told[key]["description"] == field.description
        assert "default" in told[key]
    json.dumps(schema)


# --- what is given counts ---------------------------------------------------------------------


def numbers(least: float, most: float) -> st.SearchStrategy[float]:
    return st.floats(least, most, allow_nan=False).map(lambda value: round(value, 3))


names = st.text(
    st.characters(codec="utf-8", exclude_characters="\0/~\x7f", exclude_categories=["Cc"])
)
paths = names.map(lambda name: f"/srv/{name}/x")
seconds = numbers(1, 300)
hooks = st.sampled_from(["https://hooks.example/5ec4e7", "http://127.0.0.1:8080/x?y=z"])
commands = st.lists(st.sampled_from(["/usr/local/bin/told", "--for", "a b"]))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "folders.inbox": paths,
    "folders.outbox": paths,
    "folders.quarantine": paths,
    "folders.archive": paths,
    "folders.state": paths,
    "originals": st.sampled_from(["archive", "keep", "delete"]),
    "api.base_url": st.sampled_from(["https://a.example", "http://127.0.0.1:8765", "http://[::1]"]),
    "api.flow": st.sampled_from(["sync", "async"]),
    "api.key_file": st.none() | paths,
    "api.max_upload_mb": numbers(0.001, 1000),
    "api.connect_timeout_seconds": seconds,
    "api.read_timeout_seconds": seconds,
    "api.link_hosts": st.lists(st.sampled_from(["a.example", "*.b.example", "localhost"])),
    "api.ca_bundle": st.none() | paths,
    "api.proxy": st.sampled_from(["http://proxy.example:3128", "https://me:word@p.example"]),
    "api.price_usd": numbers(0, 100),
    "watch.backend": st.sampled_from(["auto", "native", "polling"]),
    "watch.recursive": st.booleans(),
    "watch.settle_seconds": seconds,
    "watch.poll_seconds": seconds,
    "watch.rescan_seconds": seconds,
    "watch.incomplete_minutes": seconds,
    "watch.marker": st.none() | st.sampled_from([".bgremover-here", ".x"]),
    "watch.ignore": st.lists(st.sampled_from(["*.psd", "drafts/**", "[ab]?", "a, b", "null"])),
    "input.already_transparent": st.sampled_from(["send", "pass"]),
    "input.max_megapixels": numbers(0.001, 1000),
    "input.oversize": st.sampled_from(["shrink", "reject"]),
    "output.resolution": st.sampled_from(["original", "result"]),
    "output.metadata": st.sampled_from(["keep", "strip", "safe"]),
    "output.review": st.sampled_from(["off", "warn", "move"]),
    "output.renditions": st.lists(st.sampled_from(["amazon", "a size=3", "webp"]), unique=True),
    "pictures.max_memory_mb": st.integers(64, 100_000),
    "queue.workers": st.integers(1, 1000),
    "queue.capacity": st.integers(1, 100_000),
    "queue.share_core": st.booleans(),
    "retry.max_attempts": st.integers(1, 1000),
    "retry.base_seconds": numbers(0.001, 2),
    "retry.cap_seconds": seconds.map(lambda value: value + 2),
    "retry.unknown_charge": st.sampled_from(["retry", "hold"]),
    "budget.per_day_usd": st.none() | numbers(0, 1000),
    "budget.per_month_usd": st.none() | numbers(0, 1000),
    "log.format": st.sampled_from(["auto", "console", "json"]),
    "log.level": st.sampled_from(["debug", "info", "warning", "error"]),
    "log.file": st.none() | paths,
    "http.listen": st.none() | st.sampled_from(["127.0.0.1:9464", "0.0.0.0:1", "[::1]:65535"]),
    "notify.events": st.lists(st.sampled_from(["saved", "paused", "digest"])),
    "notify.webhook_url": st.none() | hooks,
    "notify.webhook_secret_file": st.none() | paths,
    "notify.apprise": st.lists(st.sampled_from(["ntfy://topic", "json://host/a b"])),
    **dict.fromkeys((f"notify.on_{name}" for name in ("saved", "quarantined", "paused")), commands),
    **dict.fromkeys((f"notify.on_{name}" for name in ("resumed", "lost", "restored")), commands),
    "notify.command_timeout_seconds": seconds,
    "notify.quiet_seconds": seconds,
    "notify.digest_at": st.none() | st.sampled_from(["00:00", "08:30", "23:59"]),
    "notify.heartbeat_url": st.none() | hooks,
    "notify.heartbeat_seconds": numbers(10, 1000),
    "retention.archive_days": st.none() | numbers(0.001, 1000),
    "retention.archive_files": st.none() | st.integers(0, 1000),
    "retention.archive_mb": st.none() | numbers(0, 1000),
    "retention.quarantine_days": st.none() | numbers(0.001, 1000),
    "retention.quarantine_files": st.none() | st.integers(0, 1000),
    "retention.quarantine_mb": st.none() | numbers(0, 1000),
    "retention.ledger_days": st.none() | numbers(2, 1000),
}
some = st.fixed_dictionaries({}, optional=VALUES)


def read(value: object) -> object:
    """What the program sees of a value in the file."""
    if isinstance(value, str) and value.startswith("/"):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def as_variable(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@given(some, some)
@example({"queue.workers": 8, "watch.recursive": False}, {"queue.workers": 9, "log.file": None})
def test_what_is_given_counts_and_the_rest_is_the_default(
    file: dict[str, Any], environment: dict[str, Any]
) -> None:
    env = {variable(key): as_variable(value) for key, value in environment.items()}
    settings = parse_settings(yaml.safe_dump(nested(file)), env, BASE)
    told = {key: read(value) for key, value in {**file, **environment}.items()}
    assert flat(settings) == {**CONTRACT, **told}
    state_given = "state" in settings.folders.model_fields_set
    assert state_given == ("folders.state" in told)


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("9464", "127.0.0.1:9464"),
        ("0.0.0.0:9464", "0.0.0.0:9464"),
        ("[::1]:9464", "[::1]:9464"),
        ("nas.local:80", "nas.local:80"),
    ],
)
def test_an_address_without_a_host_is_of_this_machine(given: str, address: str) -> None:
    assert parse_settings(f'http: {{listen: "{given}"}}', {}, BASE).http.listen == address


@pytest.mark.parametrize("given", ["0", "65536", "here", "a b:80", "::1:80", "a/b:80", "-1", ":"])
def test_what_is_no_address_to_listen_on_is_refused(given: str) -> None:
    (line,) = mistakes(f'http: {{listen: "{given}"}}')
    assert line.startswith("http.listen (line 1): ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("api.proxy", "ftp://me:secret@a.example"),
        ("api.proxy", "secret"),
        ("api.proxy", "http://a.example/?secret"),
        ("notify.webhook_url", "secret"),
        ("notify.webhook_url", "ftp://a.example/secret"),
        ("notify.heartbeat_url", "https:///secret"),
    ],
)
def test_a_wrong_address_that_may_be_a_secret_is_refused_and_not_shown(
    key: str, value: str
) -> None:
    (line,) = mistakes(yaml.safe_dump(nested({key: value})))
    assert line.startswith(f"{key} (line 2): ")
    assert "secret" not in line


def test_a_list_of_words_is_asked_for_by_its_words() -> None:
    (line,) = mistakes("notify: {events: [saved, burnt]}")
    assert "burnt will not do. Give a list of saved, quarantined, " in line


def test_every_key_has_sound_values_above() -> None:
    assert VALUES.keys() == CONTRACT.keys()


@pytest.mark.parametrize(
    ("name", "text", "key", "expected"),
    [
        ("BGREMOVER_QUEUE__WORKERS", "8", "queue.workers", 8),
        ("BGREMOVER_QUEUE__WORKERS", " 8\n", "queue.workers", 8),
        ("BGREMOVER_QUEUE__WORKERS", "010", "queue.workers", 10),
        ("BGREMOVER_QUEUE__WORKERS", "", "queue.workers", 4),
        ("BGREMOVER_API__PRICE_USD", "1e-2", "api.price_usd", 0.01),
        ("BGREMOVER_WATCH__RECURSIVE", "no", "watch.recursive", False),
        ("BGREMOVER_WATCH__RECURSIVE", "TRUE", "watch.recursive", True),
        ("BGREMOVER_ORIGINALS", "keep", "originals", "keep"),
        ("BGREMOVER_LOG__FORMAT", " json\n", "log.format", "json"),
        ("BGREMOVER_FOLDERS__INBOX", "in", "folders.inbox", BASE / "in"),
        (
            "BGREMOVER_FOLDERS__INBOX",
            "/data: 2024-01-01",
            "folders.inbox",
            Path("/data: 2024-01-01"),
        ),
        ("BGREMOVER_API__KEY_FILE", "/run/key", "api.key_file", Path("/run/key")),
        ("BGREMOVER_API__KEY_FILE", "null", "api.key_file", None),
        ("BGREMOVER_BUDGET__PER_DAY_USD", "5", "budget.per_day_usd", 5.0),
        ("BGREMOVER_BUDGET__PER_DAY_USD", "null", "budget.per_day_usd", None),
        ("BGREMOVER_WATCH__IGNORE", '["*.psd", "a, b"]', "watch.ignore", ("*.psd", "a, b")),
        ("BGREMOVER_WATCH__IGNORE", "*.psd, drafts/**", "watch.ignore", ("*.psd", "drafts/**")),
        ("BGREMOVER_WATCH__IGNORE", "[]", "watch.ignore", ()),
        ("BGREMOVER_API__LINK_HOSTS", "A.example", "api.link_hosts", ("a.example",)),
        (
            "BGREMOVER_API__BASE_URL",
            "https://a.example/v9/",
            "api.base_url",
            "https://a.example/v9",
        ),
    ],
)
def test_a_variable_outdoes_the_file(name: str, text: str, key: str, expected: object) -> None:
    file = yaml.safe_dump(nested({"queue.workers": 4, "queue.capacity": 7}))
    settings = parse_settings(file, {name: text, "BGREMOVER_CONFIG": "elsewhere.yaml"}, BASE)
    assert flat(settings) == {**CONTRACT, "queue.capacity": 7, key: expected}


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("folders: {inbox: 2024-01-01}", "folders.inbox", BASE / "2024-01-01"),
        ("folders: {inbox: 007}", "folders.inbox", BASE / "007"),
        ("folders: {inbox: ~/in}", "folders.inbox", Path("/home/me/in")),
        ("folders: {inbox: ./~/in}", "folders.inbox", BASE / "~/in"),
        ("folders: {state: }\nfolders.x: 1", None, None),
        ("queue: {workers: '8'}", "queue.workers", 8),
        ("queue: {workers: 010}", "queue.workers", 10),
        ("watch: {recursive: off}", "watch.recursive", False),
        ("log: {file: ~}", "log.file", None),
        ("log: {file: 'null'}", "log.file", BASE / "null"),
        ("queue:\nlog:\n", "queue.workers", 4),
        ("\ufeff# nothing\n", "queue.workers", 4),
        ("x: &y 3\nqueue: {workers: *y}", None, None),
        ("api: {price_usd: 1}\nqueue: {workers: 3}", "queue.workers", 3),
    ],
)
def test_yaml_is_read_as_it_was_meant(text: str, key: str | None, expected: object) -> None:
    if key is None:
        assert len(mistakes(text)) >= 1
    else:
        settings = parse_settings(text, {"HOME": "/home/me"}, BASE)
        assert flat(settings)[key] == expected


@pytest.mark.parametrize(
    ("text", "env", "expected", "told"),
    [
        ("", {}, BASE / "state", False),
        ("", {"STATE_DIRECTORY": "/var/lib/bgremover"}, Path("/var/lib/bgremover"), False),
        ("", {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}, Path("/var/lib/a"), False),
        ("", {"STATE_DIRECTORY": ""}, BASE / "state", False),
        ("folders: {state: s}", {"STATE_DIRECTORY": "/var/lib/a"}, BASE / "s", True),
        ("", {"STATE_DIRECTORY": "/a", "BGREMOVER_FOLDERS__STATE": "/b"}, Path("/b"), True),
    ],
)
def test_where_the_state_is(text: str, env: dict[str, str], expected: Path, told: bool) -> None:
    folders = parse_settings(text, env, BASE).folders
    assert folders.state == expected
    assert ("state" in folders.model_fields_set) is told


# --- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "start", "words"),
    [
        ("output: {renditions: [amazone]}", "output.renditions (line 1): ", "no preset"),
        (
            "output: {renditions: [webp, 'a name={stem}.webp']}",
            "output.renditions",
            "the name of webp",
        ),
        ("queue: {workers: 0}", "queue.workers (line 1): 0 ", "a whole number from 1 to 1000"),
        ("queue: {workers: 1001}", "queue.workers (line 1): 1001 ", "from 1 to 1000"),
        ("queue: {workers: 2.5}", "queue.workers (line 1): 2.5 ", "a whole number"),
        ("queue: {workers: true}", "queue.workers (line 1): true ", "a whole number"),
        ("queue: {workers: }", "queue.workers (line 1): null ", "without the key it is 4"),
        ("\nqueue:\n  workers: [1]", "queue.workers (line 3): a list ", "a whole number"),
        ("queue: {workers: {a: b}}", "queue.workers (line 1): a group of keys ", "a whole"),
        ("queue: {workers: !env X}", "queue.workers (line 1): a value with the tag !env ", ""),
        ("queue: {capacity: 0}", "queue.capacity (line 1): 0 ", "from 1 to 100000"),
        ("queue: 4", "queue (line 1): ", "workers: ..."),
        ("queue: [4]", "queue (line 1): ", "workers: ..."),
        ("watch: {settle_seconds: -1}", "watch.settle_seconds (line 1): -1 ", "from 0 to 3600"),
        ("watch: {settle_seconds: 3601}", "watch.settle_seconds (line 1): 3601 ", "to 3600"),
        ("watch: {settle_seconds: .inf}", "watch.settle_seconds (line 1): .inf ", "a number"),
        ("watch: {settle_seconds: nan}", "watch.settle_seconds (line 1): nan ", "a number"),
        ("watch: {recursive: maybe}", "watch.recursive (line 1): maybe ", "true or false"),
        ("watch: {marker: here}", "watch.marker (line 1): here will not do", ".bgremover-here"),
        ("watch: {marker: ..}", "watch.marker (line 1): .. will not do", "a hidden file"),
        ("watch: {marker: ./x}", 'watch.marker (line 1): "./x" will not do', "a hidden file"),
        ("watch: {ignore: '*.psd'}", 'watch.ignore (line 1): "*.psd" ', 'a list as ["*.psd"]'),
        ("watch: {ignore: ['']}", 'watch.ignore (line 1): "" ', "*.psd"),
        ("watch: {ignore: [[a]]}", "watch.ignore (line 1): a list of lists", 'a list as ["*.psd"]'),
        ("watch: {backend: poll}", "watch.backend (line 1): poll ", "auto, native or polling"),
        ("notify: {on_saved: /bin/up}", 'notify.on_saved (line 1): "/bin/up" ', '["/usr/local/'),
        ("notify: {apprise: ntfy}", "notify.apprise (line 1): ntfy ", 'a list as ["ntfy://topic"]'),
        ("output: {renditions: amazon}", "output.renditions (line 1): ", 'a list as ["amazon", '),
        ("originals: burn", "originals (line 1): burn ", "archive, keep or delete"),
        ("log: {level: off}", "log.level (line 1): off ", "debug, info, warning or error"),
        ("log: {file: [a]}", "log.file (line 1): a list ", "a path, or null"),
        ("budget: {per_day_usd: -1}", "budget.per_day_usd (line 1): -1 ", "or null"),
        ("api: {read_timeout_seconds: 0}", "api.read_timeout_seconds (line 1): 0 ", "above 0"),
        ("retry: {base_seconds: 9, cap_seconds: 8}", "retry.cap_seconds (line 1): 8 ", "9"),
        ("retry: {base_seconds: 400}", "retry.cap_seconds: 300 ", "retry.base_seconds, 400"),
        ("folders: {inbox: ''}", 'folders.inbox (line 1): "" ', "./name"),
        ("folders: {inbox: }", "folders.inbox (line 1): null ", "it is ./inbox"),
        ("folders: {inbox: ~bob/in}", "folders.inbox (line 1): ", "Write the whole path."),
        ("folders: {inbox: ~/in}", "folders.inbox (line 1): ", "HOME is not set"),
        ('folders: {inbox: "a\\0b"}', 'folders.inbox (line 1): "a\\x00b" ', "no path"),
        ('folders: {inbox: "\\ud800"}', "folders.inbox (line 1): ", "no path"),
        ("api: {link_hosts: [https://x]}", 'api.link_hosts (line 1): "https://x" ', "*.ideogram"),
        ("api: {link_hosts: ['*']}", 'api.link_hosts (line 1): "*" ', "no name of a host"),
        ("queue: {workers: 1}\nqueue: {}", "queue (line 2): ", "line 1"),
        ("queue:\n  workers: 1\n  workers: 2", "queue.workers (line 3): ", "line 2"),
        ("queue: {? [a] : b}", "queue.? (line 1): ", "a key is a word"),
        ("- a", "line 1: ", "a colon and a value"),
        ("hello", "line 1: ", "a colon and a value"),
        ("queue: [", "line 1, column 9: this is no YAML: ", "spaces"),
        ("queue:\n\tworkers: 1", "line 2, column 1: this is no YAML: ", "spaces"),
        ("watch:\n  ignore: [*.psd]", "line 2, column 13: this is no YAML: ", '"*.psd"'),
        ("a: 1\n---\nb: 2", "line 2, column 1: this is no YAML: ", ""),
        ("a: 1\nb: \x07", "line 2: this is no YAML: a control character. ", ""),
        ('a: "\\U00110000"', "the file: this is no YAML: ", "bgremover init"),
        ("[" * 5000, "the file: this is no YAML: ", "bgremover init"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_remedy(text: str, start: str, words: str) -> None:
    (line,) = mistakes(text)
    assert line.startswith(start)
    assert words in line
    assert line.endswith(".")


@pytest.mark.parametrize(
    ("text", "start", "near"),
    [
        ("queue: {worker: 3}", "queue.worker (line 1): ", "queue.workers"),
        ("queue: {settle_seconds: 3}", "queue.settle_seconds (line 1): ", "watch.settle_seconds"),
        ("workers: 3", "workers (line 1): ", "queue.workers"),
        ("queu: {workers: 3}", "queu (line 1): ", "queue"),
        ("Originals: keep", "Originals (line 1): ", "originals"),
        ("retry: {max_attemps: 3}", "retry.max_attemps (line 1): ", "retry.max_attempts"),
        ("source: x", "source (line 1): ", None),
        ("on: x", "on (line 1): ", None),
        ('"": x', '"" (line 1): ', None),
        ('"\\e[2Jx": 1', "\\x1b[2Jx (line 1): ", None),
    ],
)
def test_an_unknown_key_is_refused_with_the_one_it_may_be(
    text: str, start: str, near: str | None
) -> None:
    (line,) = mistakes(text)
    assert line.startswith(f"{start}there is no such key. ")
    assert line.endswith(f"Did you mean {near}?" if near else "lists all keys.")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("watch: {ignroe: [x]}", "Did you mean watch.ignore?"),
        ("original: keep", "Did you mean originals?"),
        ("backend: x", "Take it out; a folder can have originals, watch.ignore"),
        ("log: {levl: x}", "Take it out; a folder can have originals, watch.ignore"),
        ("log: off", "holds for the whole inbox. A folder can have originals, watch.ignore"),
        ("watch: x", "Write the keys below it, indented, as ignore: ..."),
        ("originals: burn", "archive, keep or delete; without the key it is as in the folder"),
    ],
)
def test_a_folders_file_is_told_of_what_a_folder_can_have(text: str, words: str) -> None:
    assert words in (parse_override(text, Settings()).wrong or "")


@pytest.mark.parametrize("change", ["", "x"])
def test_a_folders_file_is_not_sent_to_keys_that_it_cannot_have(change: str) -> None:
    dotted = [key for key in keys() if "." in key]
    for section, name in (key.split(".") for key in dotted):
        wrong = parse_override(f"{section}: {{{name}{change}: [{{}}]}}", Settings()).wrong or ""
        said = {key for key in dotted if key in wrong.partition("): ")[2]}
        assert said <= set(FOLDER_KEYS), (name, wrong)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("BGREMOVER_QUEUE_WORKERS", "BGREMOVER_QUEUE__WORKERS"),
        ("BGREMOVER_WORKERS", "BGREMOVER_QUEUE__WORKERS"),
        ("BGREMOVER_QUEUE__WORKER", "BGREMOVER_QUEUE__WORKERS"),
        ("BGREMOVER_queue__workers", "BGREMOVER_QUEUE__WORKERS"),
        ("BGREMOVER_API_BASE_URL", "BGREMOVER_API__BASE_URL"),
        ("BGREMOVER_WATCH__SETTLE__SECONDS", "BGREMOVER_WATCH__SETTLE_SECONDS"),
        ("BGREMOVER_ORIGINAL", "BGREMOVER_ORIGINALS"),
        ("BGREMOVER_SOURCE", None),
        ("BGREMOVER_", None),
    ],
)
def test_an_unknown_variable_is_refused_with_the_one_it_may_be(name: str, near: str | None) -> None:
    (line,) = mistakes("", {name: "8", "OTHER_QUEUE__WORKERS": "x", "HOME": "/x"})
    assert line.startswith(f"{name}: there is no such variable")
    assert line.endswith(f"Did you mean {near}?" if near else "Unset it.")


def test_a_wrong_value_names_its_variable() -> None:
    env = {"BGREMOVER_QUEUE__WORKERS": "many", "BGREMOVER_WATCH__IGNORE": "[*.psd]"}
    workers, ignore = sorted(mistakes("queue: {workers: 3}", env))
    assert workers.startswith("queue.workers (BGREMOVER_QUEUE__WORKERS): many will not do. ")
    assert ignore.startswith('watch.ignore (BGREMOVER_WATCH__IGNORE): "[*.psd]" will not do. ')


def test_all_mistakes_are_told_at_once() -> None:
    text = """\
folders: {inbox: "", sate: x}
originals: burn
queue: {workers: 0, workers: 1}
watch: 3
api: {base_url: ftp://x, link_hosts: ["a b", ok.example, "/"]}
retry: {base_seconds: 400, cap_seconds: 1}
log: {level: off, format: {}}
"""
    env = {"BGREMOVER_BUDGET__PER_DAY_USD": "lots", "BGREMOVER_QUEUE_WORKERS": "1"}
    wrong = [re.split(r"[ :]", line)[0] for line in mistakes(text, env)]
    assert sorted(wrong) == [
        "BGREMOVER_QUEUE_WORKERS",
        "api.base_url",
        "api.link_hosts",
        "api.link_hosts",
        "budget.per_day_usd",
        "folders.inbox",
        "folders.sate",
        "log.format",
        "log.level",
        "originals",
        "queue.workers",
        "queue.workers",
        "retry.cap_seconds",
        "watch",
    ]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://api.ideogram.ai", "in the clear"),
        ("http://127.evil.example", "in the clear"),
        ("http://localhost.example", "in the clear"),
        ("http://192.168.1.5:8765", "in the clear"),
        ("HTTP://API.IDEOGRAM.AI", "in the clear"),
        ("api.ideogram.ai", "no plain"),
        ("ftp://api.ideogram.ai", "no plain"),
        ("https://", "no plain"),
        ("https://a.example/?x=1", "no plain"),
        ("https://a.example:99999", "no plain"),
        ("https://me:secret@a.example", "no plain"),
        ("https://a.example/\n", "no plain"),
    ],
)
def test_an_address_that_would_give_the_key_away_is_refused(url: str, words: str) -> None:
    (line,) = mistakes(yaml.safe_dump({"api": {"base_url": url}}))
    assert line.startswith("api.base_url (line 2): ")
    assert words in line
    assert "secret" not in line


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8765", "http://localhost", "http://[::1]:1", "https://10.0.0.1"]
)
def test_a_stand_in_on_this_machine_may_be_asked_without_tls(url: str) -> None:
    assert parse_settings(f"api: {{base_url: '{url}'}}", {}, BASE).api.base_url == url


@pytest.mark.parametrize(
    ("text", "env"),
    [
        (f"api: {{key: {KEY}}}", {}),
        (f"api: {{api_key: {KEY}}}", {}),
        (f"ideogram_api_key: {KEY}", {}),
        ("", {"BGREMOVER_API__KEY": KEY}),
        ("", {"BGREMOVER_API_KEY": KEY}),
        ("", {"BGREMOVER_IDEOGRAM_API_KEY": KEY}),
    ],
)
def test_a_key_in_the_configuration_is_refused_and_not_shown(
    text: str, env: dict[str, str]
) -> None:
    (line,) = mistakes(text, env)
    assert KEY not in line
    assert "api.key_file" in line
    assert "IDEOGRAM_API_KEY" in line


WORDS = ["queue", "workers", "folders", "inbox", "!x", "0x_", "1:30", "~", "\\", "\\ud800", "<<"]
MARKS = [": ", ":", "- ", "[", "]", "{", "}", "'", '"', "*", "&a ", "*a", "? ", "|", "#", "%"]
shreds = st.sampled_from([*WORDS, *MARKS, "\n", "\t", "  ", "---\n"])


@given(st.text() | st.lists(shreds, max_size=30).map("".join), st.text(), st.text())
@example("queue: {workers: 0}", "", "")
@example("a: &a [*a]\nwatch: {ignore: *a}", "[*", "~")
def test_whatever_is_given_there_are_settings_or_mistakes_in_words(
    text: str, ignore: str, folder: str
) -> None:
    env = {"BGREMOVER_WATCH__IGNORE": ignore, "BGREMOVER_FOLDERS__OUTBOX": folder}
    told = reading._parsed(text, env, BASE)
    if isinstance(told, Settings):
        assert all(path.is_absolute() and os.fsencode(path) for _, path in told.folders)
    else:
        assert told
        assert all(re.fullmatch(r"\S.*: \S.*[.?]", line) for line in told)


# --- the file ---------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "cwd").mkdir()
    (tmp_path / "xdg/bgremover").mkdir(parents=True)
    (tmp_path / "home/.config/bgremover").mkdir(parents=True)
    return tmp_path


def workers_in(path: Path, workers: int) -> None:
    path.write_text(f"queue: {{workers: {workers}}}\n")


@pytest.mark.parametrize(
    ("named", "variables", "there", "found"),
    [
        ("one.yaml", {"BGREMOVER_CONFIG": "two.yaml"}, ["cwd/one.yaml", "cwd/two.yaml"], 0),
        (None, {"BGREMOVER_CONFIG": "two.yaml"}, ["cwd/config.yaml", "cwd/two.yaml"], 1),
        (None, {"BGREMOVER_CONFIG": ""}, ["cwd/config.yaml", "xdg/bgremover/config.yaml"], 0),
        (None, {}, ["home/.config/bgremover/config.yaml", "xdg/bgremover/config.yaml"], 1),
        (None, {"XDG_CONFIG_HOME": ""}, ["home/.config/bgremover/config.yaml"], 0),
        (None, {"XDG_CONFIG_HOME": "xdg"}, ["cwd/one.yaml"], None),
        (None, {"XDG_CONFIG_HOME": "", "HOME": ""}, ["cwd/one.yaml"], None),
    ],
)
def test_which_file_is_read(
    home: Path, named: str | None, variables: dict[str, str], there: list[str], found: int | None
) -> None:
    for number, path in enumerate(there):
        workers_in(home / path, 100 + number)
    places = {"XDG_CONFIG_HOME": str(home / "xdg"), "HOME": str(home / "home")}
    settings = load_settings(named, {**places, **variables}, home / "cwd")
    if found is None:
        assert settings.source is None
        assert settings.folders.inbox == home / "cwd/inbox"
    else:
        assert settings.queue.workers == 100 + found
        assert settings.source == home / there[found]
        assert settings.folders.inbox == (home / there[found]).parent / "inbox"


def test_a_linked_file_lies_where_the_link_lies(home: Path) -> None:
    workers_in(home / "home/real.yaml", 7)
    (home / "cwd/config.yaml").symlink_to(home / "home/real.yaml")
    settings = load_settings(None, {}, home / "cwd")
    assert settings.queue.workers == 7
    assert settings.folders.inbox == home / "cwd/inbox"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "is a folder"),
        (b"queue:\n  workers: 4 # \xe4\n", "line 2 is not UTF-8"),
        ("queue: {workers: 4}".encode("utf-16"), "line 1 is not UTF-8"),
    ],
)
def test_a_named_file_that_cannot_be_read_is_told(
    home: Path, content: bytes | None, words: str
) -> None:
    path = home / "cwd/named.yaml"
    if content == b"":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(SetupError, match=re.escape(words)) as told:
        load_settings("named.yaml", {}, home / "cwd")
    assert str(path) in str(told.value)


def test_a_broken_link_and_a_loop_are_told(home: Path) -> None:
    (home / "cwd/config.yaml").symlink_to("nowhere")
    with pytest.raises(SetupError, match="does not exist"):
        load_settings(None, {}, home / "cwd")
    (home / "cwd/loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(SetupError, match="symbolic links"):
        load_settings("loop.yaml", {}, home / "cwd")


def test_a_file_with_a_byte_order_mark_is_read(home: Path) -> None:
    (home / "cwd/config.yaml").write_bytes(b"\xef\xbb\xbfqueue: {workers: 7}\n")
    assert load_settings(None, {}, home / "cwd").queue.workers == 7


def test_a_file_this_user_may_not_read_is_not_passed_over() -> None:
    with open_to_all() as folder:
        for name in ("a/config.yaml", "b/bgremover/config.yaml"):
            (folder / name).parent.mkdir(parents=True)
            workers_in(folder / name, 7)
        (folder / "a/config.yaml").chmod(0o600)
        (folder / "b/bgremover").chmod(0o700)

        def piece() -> None:
            for cwd, env in (("a", {}), (".", {"XDG_CONFIG_HOME": str(folder / "b")})):
                with pytest.raises(SetupError, match=f"may not be read by uid {NOBODY}"):
                    load_settings(None, env, folder / cwd)

        apart(piece, uid=NOBODY)


def test_the_mistakes_of_a_file_are_told_under_its_name(home: Path) -> None:
    path = home / "cwd/config.yaml"
    path.write_text("queue: {workers: 0, worker: 3}\noriginals: burn\n")
    with pytest.raises(SetupError) as told:
        load_settings(None, {}, home / "cwd")
    head, *lines = str(told.value).splitlines()
    assert head == f"3 mistakes in the configuration, {path}:"
    assert sorted(line.split()[0] for line in lines) == [
        "originals",
        "queue.worker",
        "queue.workers",
    ]
    with pytest.raises(SetupError, match="1 mistake in the configuration, the environment"):
        load_settings(None, {"BGREMOVER_X": "1"}, home)


# --- the key ----------------------------------------------------------------------------------


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "the key"
    path.write_text(f"{KEY}\n")
    path.chmod(0o600)
    return path


def configured(**api: object) -> Settings:
    return parse_settings(yaml.safe_dump({"api": api}), {}, BASE)


def test_where_the_key_is_looked_for_and_in_which_order(tmp_path: Path) -> None:
    for name in ("configured", "named", "ideogram-api-key"):
        (tmp_path / name).write_text(f"key-{name}\n")
    settings = configured(key_file=str(tmp_path / "configured"))
    named, variable_name = "IDEOGRAM_API_KEY_FILE", "IDEOGRAM_API_KEY"
    systemd = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    in_file = {named: str(tmp_path / "named"), **systemd}
    plain = {variable_name: " key-plain\n", **systemd}
    table = [
        (settings, plain, "key-configured", f"the file {tmp_path}/configured (api.key_file)"),
        (settings, in_file, "key-configured", f"the file {tmp_path}/configured (api.key_file)"),
        (configured(), plain, "key-plain", "the environment variable IDEOGRAM_API_KEY"),
        (configured(), {**plain, named: ""}, "key-plain", "the environment variable"),
        (configured(), in_file, "key-named", f"the file {tmp_path}/named (IDEOGRAM_API_KEY_FILE)"),
        (configured(), {**in_file, variable_name: ""}, "key-named", f"the file {tmp_path}/named"),
        (configured(), systemd, "key-ideogram-api-key", f"the file {tmp_path}/ideogram-api-key"),
    ]
    for given_settings, env, key, words in table:
        source = find_key_source(given_settings, env)
        assert source.read().get_secret_value() == key
        assert source.describe().startswith(words)


@pytest.mark.parametrize(
    "env", [{}, {"IDEOGRAM_API_KEY": ""}, {"CREDENTIALS_DIRECTORY": "/nowhere"}]
)
def test_no_key_anywhere_lists_the_four_ways(env: dict[str, str]) -> None:
    with pytest.raises(SetupError) as told:
        find_key_source(configured(), env)
    for way in ("api.key_file", "variable IDEOGRAM_API_KEY,", "IDEOGRAM_API_KEY_FILE", "systemd"):
        assert way in str(told.value)


def test_two_variables_are_refused_whatever_they_say(key_file: Path) -> None:
    env = {"IDEOGRAM_API_KEY": KEY, "IDEOGRAM_API_KEY_FILE": str(key_file)}
    for settings in (configured(), configured(key_file=str(key_file))):
        with pytest.raises(SetupError, match=r"both IDEOGRAM_API_KEY and .*Unset one") as told:
            find_key_source(settings, env)
        assert KEY not in str(told.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        (" \t\r\n", "is empty"),
        (f"{KEY}\n{KEY}\n", "more than one word"),
        (f"Bearer {KEY}", "more than one word"),
        (f'"{KEY}"', "quotation marks"),
        (f"'{KEY}'\n", "quotation marks"),
        (f"IDEOGRAM_API_KEY={KEY}", "a whole line"),
        (f"{KEY}\u00e4", "characters that no key has"),
        (f"{KEY}\x07", "characters that no key has"),
        (f"{KEY}\ufffd", "characters that no key has"),
        (KEY * 1000, "far more than a key"),
    ],
)
def test_what_cannot_be_a_key_is_refused_and_not_shown(
    key_file: Path, content: str, words: str
) -> None:
    key_file.write_text(content, encoding="utf-8")
    in_file = configured(key_file=str(key_file))
    for source in (
        find_key_source(in_file, {}),
        find_key_source(configured(), {"IDEOGRAM_API_KEY": content or "\n"}),
    ):
        with pytest.raises(SetupError, match=words) as told:
            source.read()
        assert source.describe() in str(told.value)
        assert KEY not in str(told.value)


def test_a_key_saved_with_a_byte_order_mark_is_read(key_file: Path) -> None:
    key_file.write_bytes(b"\xef\xbb\xbf" + KEY.encode() + b"\r\n")
    assert KeySource("x", str(key_file)).read() == SecretStr(KEY)


def test_bytes_that_are_no_text_are_no_key(key_file: Path) -> None:
    key_file.write_bytes(b"\xff\xfe" + KEY.encode("utf-16-le"))
    with pytest.raises(SetupError, match="characters that no key has"):
        KeySource("x", str(key_file)).read()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _path: None, "No such file"),
        (os.mkdir, "Is a directory"),
        (os.mkfifo, "is no regular file"),
        (lambda path: os.symlink(path, path), "symbolic links"),
    ],
)
def test_a_key_file_that_cannot_be_read_is_told(
    tmp_path: Path, make: Callable[[Path], None], words: str
) -> None:
    make(tmp_path / "key")
    source = find_key_source(configured(key_file=str(tmp_path / "key")), {})
    with pytest.raises(SetupError, match=words) as told:
        source.read()
    assert str(tmp_path / "key") in str(told.value)


def test_a_key_file_of_another_user_is_told() -> None:
    with open_to_all() as folder:
        (folder / "key").write_text(KEY)
        (folder / "key").chmod(0o600)

        def piece() -> None:
            with pytest.raises(SetupError, match=f"cannot be read by uid {NOBODY}.*Permission"):
                KeySource("x", str(folder / "key")).read()

        apart(piece, uid=NOBODY)


def test_a_key_is_changed_without_a_restart(key_file: Path) -> None:
    source = find_key_source(configured(key_file=str(key_file)), {})
    versions = [source.version(), source.version()]
    assert versions[0] == versions[1]
    fresh = key_file.with_name("fresh")
    fresh.write_text("another-key")
    fresh.replace(key_file)
    assert source.read().get_secret_value() == "another-key"
    versions.append(source.version())
    key_file.write_text("a-third-key-altogether")
    versions.append(source.version())
    key_file.unlink()
    versions.append(source.version())
    assert len(set(versions)) == 4


def test_the_version_of_a_key_in_the_environment_stays() -> None:
    source = find_key_source(configured(), {"IDEOGRAM_API_KEY": KEY})
    assert source.version() == source.version()
    assert source.findings() == []


def test_nothing_but_reading_shows_the_key(key_file: Path) -> None:
    for source in (
        find_key_source(configured(), {"IDEOGRAM_API_KEY": KEY}),
        find_key_source(configured(key_file=str(key_file)), {}),
    ):
        assert source.read().get_secret_value() == KEY
        shown = [repr(source), str(source), source.describe(), repr(source.read())]
        assert not any(KEY in text for text in shown)


@pytest.mark.parametrize(
    ("mode", "warned"),
    [(0o600, False), (0o400, False), (0o640, True), (0o644, True), (0o602, True)],
)
def test_a_key_file_that_others_may_use_is_warned_of(
    key_file: Path, mode: int, warned: bool
) -> None:
    key_file.chmod(mode)
    findings = find_key_source(configured(key_file=str(key_file)), {}).findings()
    assert len(findings) == warned
    for finding in findings:
        assert (finding.level, finding.where) == ("warning", "api.key_file")
        assert f"{mode:04o}" in finding.what
        assert finding.remedy == f"Run: chmod 600 '{key_file}'"


def test_no_warning_without_reason(key_file: Path) -> None:
    credential = key_file.rename(key_file.with_name("ideogram-api-key"))
    credential.chmod(0o440)  # as systemd has it, with an ACL, in a folder that is closed
    env = {"CREDENTIALS_DIRECTORY": str(key_file.parent)}
    assert find_key_source(configured(), env).findings() == []
    assert KeySource("x", str(key_file.parent / "gone")).findings() == []


# --- the door ---------------------------------------------------------------------------------


def at(root: Path, text: str = "", **folders: Path | str) -> Settings:
    """The settings of a place, with some folders elsewhere."""
    told = yaml.safe_dump({"folders": {name: str(path) for name, path in folders.items()}})
    return parse_settings(f"{told}{text}", {}, root)


def errors(settings: Settings) -> list[Finding]:
    return [finding for finding in door_check(settings) if finding.level == "error"]


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mode, path.lstat().st_mtime_ns) for path in root.rglob("*")}


def test_a_sound_place_passes_before_and_after_it_is_made(tmp_path: Path) -> None:
    settings = at(tmp_path / "deep/place")
    before = snapshot(tmp_path)
    assert door_check(settings) == []
    assert snapshot(tmp_path) == before
    prepare_folders(settings)
    assert {path.name for path in (tmp_path / "deep/place").iterdir()} == {
        "inbox",
        "outbox",
        "quarantine",
        "archive",
        "state",
    }
    made = snapshot(tmp_path)
    assert door_check(settings) == []
    prepare_folders(settings)
    assert snapshot(tmp_path) == made


def test_the_state_is_for_its_owner_alone(tmp_path: Path) -> None:
    settings = at(tmp_path)
    prepare_folders(settings)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_an_archive_that_is_not_used_is_left_alone(tmp_path: Path) -> None:
    settings = at(tmp_path, "originals: keep", archive=tmp_path / "inbox/archive")
    assert door_check(settings) == []
    prepare_folders(settings)
    assert not (tmp_path / "inbox/archive").exists()
    assert [one.where for one in errors(at(tmp_path, archive=tmp_path / "inbox/archive"))] == [
        "folders.archive"
    ]


NAMES = ("inbox", "outbox", "quarantine", "archive", "state")


@pytest.mark.parametrize("exist", [False, True])
@pytest.mark.parametrize("outer", NAMES)
@pytest.mark.parametrize("inner", NAMES)
def test_no_folder_may_lie_in_another(tmp_path: Path, outer: str, inner: str, exist: bool) -> None:
    if inner == outer:
        return
    settings = at(tmp_path, "", **{inner: tmp_path / outer / "a/b"})
    if exist:
        prepare_folders(settings)
    (finding,) = errors(settings)
    assert finding.where == f"folders.{inner}"
    assert f"lies in folders.{outer} ({tmp_path / outer})" in finding.what
    assert finding.remedy.startswith("Choose folders beside each other")


@pytest.mark.parametrize("exist", [False, True])
def test_no_folder_may_be_another(tmp_path: Path, exist: bool) -> None:
    settings = at(tmp_path, outbox=f"{tmp_path}/x/../inbox/")
    if exist:
        (tmp_path / "x").mkdir()
        (tmp_path / "inbox").mkdir()
    (finding,) = errors(settings)
    assert finding.where == "folders.outbox"
    assert f"is the folder of folders.inbox ({tmp_path / 'inbox'})" in finding.what


def test_a_name_that_only_begins_alike_is_another_folder(tmp_path: Path) -> None:
    assert errors(at(tmp_path, outbox=tmp_path / "inbox-done")) == []


def test_every_overlap_is_told(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    settings = at(tmp_path, outbox=inbox / "out", archive=inbox / "out/old", state=inbox)
    told = sorted((one.where, one.what.partition("folders.")[2][:6]) for one in errors(settings))
    assert told == [
        ("folders.archive", "inbox "),
        ("folders.archive", "outbox"),
        ("folders.archive", "state "),
        ("folders.outbox", "inbox "),
        ("folders.outbox", "state "),
        ("folders.state", "inbox "),
    ]


@pytest.mark.parametrize("target", ["inbox", "inbox/deep", "."])
def test_a_link_is_seen_through(tmp_path: Path, target: str) -> None:
    (tmp_path / "inbox/deep").mkdir(parents=True)
    (tmp_path / "alias").symlink_to(tmp_path / target)
    out = {"inbox": "alias/out", "inbox/deep": "alias", ".": "alias/inbox/not/there/yet"}[target]
    (finding,) = errors(at(tmp_path, outbox=tmp_path / out))
    assert finding.where == "folders.outbox"
    assert f"(really {tmp_path}/inbox/" in finding.what
    assert "lies in folders.inbox" in finding.what


def bind(what: Path, where: Path) -> None:
    subprocess.run(["mount", "--bind", str(what), str(where)], check=True)


Scene = Callable[[Path], Settings]


def inbox_under_another_name(root: Path) -> Settings:
    bind(root / "inbox", root / "alias")
    return at(root, outbox=root / "alias/out/not/there/yet")


def inbox_itself(root: Path) -> Settings:
    bind(root / "inbox", root / "alias")
    return at(root, outbox=root / "alias")


def all_of_it_under_another_name(root: Path) -> Settings:
    bind(root, root / "alias")
    return at(root, outbox=root / "alias/inbox/out")


def missing_folders_under_another_name(root: Path) -> Settings:
    bind(root, root / "alias")
    return at(root, inbox=root / "new", outbox=root / "alias/new/out")


def outbox_mounted_in_the_inbox(root: Path) -> Settings:
    bind(root / "outbox", root / "inbox/x")
    return at(root)


def folder_above_the_outbox_mounted_in_the_inbox(root: Path) -> Settings:
    bind(root / "shelf", root / "inbox/x")
    return at(root, outbox=root / "shelf/not/there/yet")


@pytest.mark.parametrize(
    ("scene", "words"),
    [
        (inbox_under_another_name, "lies in folders.inbox"),
        (inbox_itself, "is the folder of folders.inbox"),
        (all_of_it_under_another_name, "lies in folders.inbox"),
        (missing_folders_under_another_name, "lies in folders.inbox"),
        (outbox_mounted_in_the_inbox, "shows up in folders.inbox"),
        (folder_above_the_outbox_mounted_in_the_inbox, "shows up in folders.inbox"),
    ],
)
def test_a_bind_mount_is_seen_through(tmp_path: Path, scene: Scene, words: str) -> None:
    root = tmp_path / "disk"
    root.mkdir()

    def piece() -> None:
        for name in ("inbox/x", "outbox", "alias", "shelf"):
            (root / name).mkdir(parents=True)
        told = errors(scene(root))
        assert [finding.where for finding in told] == ["folders.outbox"]
        assert words in told[0].what

    apart(piece, mounts={root: "size=1m"})


def test_a_disk_mounted_in_the_inbox_is_no_overlap(tmp_path: Path) -> None:
    (tmp_path / "inbox/disk").mkdir(parents=True)
    apart(
        lambda: assert_sound(at(tmp_path)),
        mounts={tmp_path / "inbox/disk": "size=1m"},
    )


def assert_sound(settings: Settings) -> None:
    assert door_check(settings) == []


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "outbox").touch()
    (tmp_path / "file").touch()
    settings = at(tmp_path, archive=tmp_path / "file/archive")
    told = {finding.where: finding.what for finding in errors(settings)}
    assert told == {
        "folders.outbox": f"{tmp_path}/outbox is no folder",
        "folders.archive": f"{tmp_path}/file/archive cannot be reached: Not a directory",
    }
    for name in ("outbox", "archive"):
        with pytest.raises(SetupError, match=rf"folders.{name}: .*cannot be made"):
            prepare_folders(at(tmp_path / "new", **{name: getattr(settings.folders, name)}))


def test_a_link_to_nowhere_is_no_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "disk").symlink_to(tmp_path / "unmounted")
    for outbox in (tmp_path / "disk", tmp_path / "disk/a/b"):
        (finding,) = errors(at(tmp_path, outbox=outbox))
        assert finding.where == "folders.outbox"
        assert f"is behind a link to {tmp_path}/unmounted, which does not exist" in finding.what
    (tmp_path / "loop").symlink_to("loop")
    (finding,) = errors(at(tmp_path, outbox=tmp_path / "loop"))
    assert "symbolic links" in finding.what


def as_nobody(prepare: Callable[[Path], None], piece: Callable[[Path], None]) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to make folders of other users and to be one for a moment")
    with open_to_all() as root:
        prepare(root)
        apart(partial(piece, root), uid=NOBODY)


def test_folders_of_another_user_are_told_with_the_command_that_helps() -> None:
    def prepare(root: Path) -> None:
        prepare_folders(at(root))
        for name in NAMES:
            (root / name).chmod(0o755)
        os.chown(root / "archive", 1234, 567)
        os.chown(root / "outbox", NOBODY, NOBODY)
        os.chown(root / "quarantine", NOBODY, NOBODY)
        (root / "quarantine").chmod(0o555)

    def piece(root: Path) -> None:
        told = {finding.where: finding for finding in errors(at(root))}
        assert sorted(told) == [f"folders.{name}" for name in sorted({*NAMES} - {"outbox"})]
        inbox, archive = told["folders.inbox"], told["folders.archive"]
        me = f"uid {NOBODY}, gid {NOBODY}"
        assert inbox.what == (
            f"{me} may not read and write {root}/inbox, which belongs to 0:0 with mode 0755"
        )
        assert inbox.remedy == f"Run: chown {NOBODY}:{NOBODY} {root}/inbox."
        assert "PUID=1234 PGID=567" in archive.remedy
        assert told["folders.quarantine"].remedy == f"Run: chmod u+rwx {root}/quarantine."

    as_nobody(prepare, piece)


def test_a_share_that_is_not_mounted_yet_is_waited_for() -> None:
    def prepare(root: Path) -> None:
        for name in ("share", "mine"):
            (root / name).mkdir()
            (root / name).chmod(0o755)
        os.chown(root / "mine", NOBODY, NOBODY)

    def piece(root: Path) -> None:
        share = {name: f"share/{name}" for name in ("inbox", "outbox", "archive")}
        mine = {name: f"mine/{name}" for name in ("state", "quarantine")}
        marked = at(root, "watch: {marker: .here}", **share, **mine)
        assert {(one.level, one.where) for one in door_check(marked)} == {
            ("warning", f"folders.{name}") for name in share
        }
        prepare_folders(marked)
        assert {one.name for one in root.rglob("*/*")} == {"state", "quarantine"}
        state = at(root, "watch: {marker: .here}", **share, **mine | {"state": "share/state"})
        assert [one.where for one in errors(state)] == ["folders.state"]
        assert {one.where for one in errors(at(root, **share, **mine))} == {
            f"folders.{name}" for name in share
        }

    as_nobody(prepare, piece)


def test_an_inbox_whose_originals_are_kept_need_not_be_writable() -> None:
    def prepare(root: Path) -> None:
        (root / "inbox").mkdir()
        (root / "inbox").chmod(0o755)

    def piece(root: Path) -> None:
        assert [finding.where for finding in errors(at(root))] == ["folders.inbox"]
        assert errors(at(root, "originals: keep")) == []

    as_nobody(prepare, piece)


def test_an_inbox_that_cannot_be_read_is_told_even_where_originals_are_kept() -> None:
    def prepare(root: Path) -> None:
        (root / "inbox").mkdir(mode=0o700)

    def piece(root: Path) -> None:
        (finding,) = errors(at(root, "originals: keep"))
        assert f"may not read {root}/inbox" in finding.what

    as_nobody(prepare, piece)


def test_folders_that_cannot_be_made_are_told() -> None:
    def prepare(root: Path) -> None:
        (root / "theirs").mkdir()
        (root / "theirs").chmod(0o755)
        (root / "closed").mkdir(mode=0o700)

    def piece(root: Path) -> None:
        settings = at(root, outbox=root / "theirs/a/out", archive=root / "closed/archive")
        told = {finding.where: finding for finding in errors(settings)}
        assert sorted(told) == ["folders.archive", "folders.outbox"]
        outbox = told["folders.outbox"]
        assert f"may not make it in {root}/theirs" in outbox.what
        assert f"mkdir -p {root}/theirs/a/out && chown {NOBODY}:{NOBODY} " in outbox.remedy
        assert "Permission denied" in told["folders.archive"].what
        with pytest.raises(SetupError, match=r"folders\.(outbox|archive): .*Permission denied"):
            prepare_folders(settings)

    as_nobody(prepare, piece)


def test_a_disk_mounted_read_only_is_told(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()

    def piece() -> None:
        (disk / "outbox").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        settings = at(tmp_path, outbox=disk / "outbox", archive=disk / "new/archive")
        told = {finding.where: finding for finding in errors(settings)}
        assert sorted(told) == ["folders.archive", "folders.outbox"]
        for finding in told.values():
            assert "mounted read-only" in finding.what
            assert "ReadWritePaths=" in finding.remedy

    apart(piece, mounts={disk: "size=1m"})


@pytest.mark.parametrize(
    ("mounts", "told"),
    [
        ([("/", "ext4"), ("/srv", "nfs4")], True),
        ([("/", "ext4"), ("/srv/state", "cifs")], True),
        ([("/", "nfs"), ("/srv/state", "ext4")], False),
        ([("/", "ext4"), ("/mnt", "nfs4")], False),
        ([], False),
    ],
)
def test_the_state_belongs_on_a_disk_of_this_machine(
    mounts: list[tuple[str, str]], told: bool
) -> None:
    place = door._look("folders.state", Path("/srv/state"))
    known = tuple(Mount(point, kind, "none") for point, kind in mounts)
    findings = list(door._on_network(place, known))
    assert len(findings) == told
    for finding in findings:
        assert (finding.level, finding.where) == ("error", "folders.state")
        assert "SQLite" in finding.remedy


@pytest.mark.parametrize(("originals", "level"), [("archive", "error"), ("keep", "warning")])
def test_files_of_the_set_up_do_not_belong_into_the_inbox(
    tmp_path: Path, originals: str, level: str
) -> None:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "alias").symlink_to("inbox")
    text = {
        "originals": originals,
        "folders": {name: f"../{name}" for name in NAMES},
        "api": {"key_file": str(tmp_path / "alias/key")},
        "log": {"file": "x.jsonl"},
    }
    (tmp_path / "inbox/config.yaml").write_text(yaml.safe_dump(text))
    findings = door_check(load_settings("inbox/config.yaml", {}, tmp_path))
    assert {(finding.level, finding.where) for finding in findings} == {
        (level, "api.key_file"),
        (level, "log.file"),
        (level, "configuration"),
    }


def test_a_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    for name, words in (("new/log", "the folder of"), (".", "is a folder")):
        (finding,) = errors(at(tmp_path, f"log: {{file: {name}}}"))
        assert finding.where == "log.file"
        assert words in finding.what
    assert door_check(at(tmp_path, "log: {file: log}")) == []


def test_a_log_of_another_user_is_told() -> None:
    def prepare(root: Path) -> None:
        (root / "log").touch(0o644)
        (root / "theirs").mkdir()

    def piece(root: Path) -> None:
        for name, needed in (("log", "log"), ("theirs/log", "theirs")):
            (finding,) = errors(at(root, f"log: {{file: {name}}}"))
            assert finding.what == f"uid {NOBODY}, gid {NOBODY} may not write {root}/{name}"
            assert finding.remedy == f"Run: chown {NOBODY}:{NOBODY} {root}/{needed}."

    as_nobody(prepare, piece)
