"""The units name no key that systemd does not know, and no path that README.md does not."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bgremover.cli import Exit, commands
from bgremover.core.budget import micro
from bgremover.daemon import GRACE_SECONDS, LOOK_SECONDS
from bgremover.settings import CREDENTIAL, Settings
from bgremover.studio.budget import Work, estimate

ROOT = Path(__file__).parent.parent
NAMES = ("bgremover.service", "bgremover@.service")
PROGRAM = "/opt/bgremover/bin/bgremover"
RESIDENT = 200_000_000
"""Bytes that the program takes beside pictures, uploads in flight among them, and room."""
ANALYZE = shutil.which("systemd-analyze")

each_unit = pytest.mark.parametrize("name", NAMES)
needs_systemd = pytest.mark.skipif(
    ANALYZE is None, reason="needs systemd-analyze (apt-get install systemd)"
)


def text_of(name: str) -> str:
    return (ROOT / "systemd" / name).read_text(encoding="utf-8")


def directives(name: str) -> list[tuple[str, str]]:
    """Return the unit's keys and values in their order; a key may come more than once."""
    lines = text_of(name).splitlines()
    kept = [line for line in lines if line and not line.startswith(("#", "["))]
    return [(key, value) for key, _, value in (line.partition("=") for line in kept)]


def value(name: str, wanted: str) -> str:
    (found,) = [value for key, value in directives(name) if key == wanted]
    return found


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(s|min|)", text).groups()  # type: ignore[union-attr]
    return int(number) * (60 if unit == "min" else 1)


def service_section() -> str:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return readme.partition("\n## As a service\n")[2].partition("\n## ")[0]


# --- what systemd says -----------------------------------------------------------------------


def drop_ins(name: str) -> list[str]:
    """Return the drop-ins that the head of the unit shows."""
    head = text_of(name).partition("[Unit]")[0]
    indented = re.findall(r"(?:^#     .*\n)+", head, re.MULTILINE)
    return [block.replace("#     ", "") for block in indented]


def verified(folder: Path, name: str, *added: str) -> "subprocess.CompletedProcess[str]":
    # The program that the unit starts is not installed here, so another takes its place.
    unit = folder / name.replace("@.", "@shoes.")
    unit.write_text(text_of(name).replace(PROGRAM, sys.executable))
    for number, text in enumerate(added):
        place = folder / f"{unit.name}.d" / f"{number}.conf"
        place.parent.mkdir(exist_ok=True)
        place.write_text(text)
    command = ["systemd-analyze", "verify", "--recursive-errors=one", "--man=no", str(unit)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@needs_systemd
@each_unit
def test_systemd_finds_no_mistake(name: str, tmp_path: Path) -> None:
    done = verified(tmp_path, name)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
@each_unit
def test_systemd_finds_no_mistake_in_the_drop_ins_that_the_head_shows(
    name: str, tmp_path: Path
) -> None:
    shown = drop_ins(name)
    assert len(shown) == (1 if "@" in name else 4)
    done = verified(tmp_path, name, *shown)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("mistake", ["[Service]\nRestrtSec=3\n", "[Service]\nRestartSec=soon\n"])
def test_systemd_would_find_a_mistake(mistake: str, tmp_path: Path) -> None:
    assert verified(tmp_path, NAMES[0], mistake).returncode != 0


@needs_systemd
@each_unit
@pytest.mark.parametrize(("threshold", "code"), [(15, 0), (5, 1)])
def test_the_service_is_shut_in(name: str, threshold: int, code: int) -> None:
    unit = str(ROOT / "systemd" / name)
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager"]
    done = subprocess.run(
        [*command, f"--threshold={threshold}", unit], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr


# --- what the units and the program know of each other ---------------------------------------


def test_both_units_are_the_same_but_for_the_instance() -> None:
    assert set(directives(NAMES[0])) ^ set(directives(NAMES[1])) == {
        ("Description", "Background remover for a watched folder"),
        ("Description", "Background remover for a watched folder (%i)"),
        ("ExecStart", f"{PROGRAM} run -c /etc/bgremover/config.yaml"),
        ("ExecStart", f"{PROGRAM} run -c /etc/bgremover/%i.yaml"),
        ("StateDirectory", "bgremover"),
        ("StateDirectory", "bgremover/%i"),
    }


@each_unit
def test_the_command_line_is_one(name: str) -> None:
    program, command, *arguments = value(name, "ExecStart").split()
    assert program == PROGRAM
    commands.commands[command].make_context(command, arguments)


@each_unit
def test_what_a_restart_cannot_mend_is_not_started_again(name: str) -> None:
    codes = {int(code) for code in value(name, "RestartPreventExitStatus").split()}
    assert codes == {Exit.SETUP, Exit.USAGE}
    assert value(name, "Restart") == "on-failure"


@each_unit
def test_an_outage_of_any_length_is_outlived_without_spinning(name: str) -> None:
    assert value(name, "StartLimitIntervalSec") == "0"
    assert 5 <= seconds(value(name, "RestartSec")) <= 60


@each_unit
def test_systemd_waits_longer_than_the_daemon_takes(name: str) -> None:
    assert seconds(value(name, "TimeoutStopSec")) >= 2 * GRACE_SECONDS
    assert seconds(value(name, "WatchdogSec")) >= 10 * LOOK_SECONDS


@each_unit
def test_what_the_default_settings_let_in_fits_into_memory(name: str) -> None:
    settings = Settings()
    pixels = micro(settings.input.max_megapixels)
    works: tuple[Work, ...] = ("look", "upload", "finish")
    # A format that is not known is reckoned with as the one that takes most.
    largest = max(estimate(work, "?", pixels, 2 * pixels) for work in works)
    needed = RESIDENT + max(largest, micro(settings.pictures.max_memory_mb))
    limit = int(value(name, "MemoryMax").removesuffix("G")) << 30
    assert needed < limit < 2 * needed
    assert "MemoryHigh" not in dict(directives(name))


@each_unit
def test_every_relaxed_or_unusual_line_has_its_reason(name: str) -> None:
    lines = text_of(name).splitlines()
    for key in (
        *("RestrictAddressFamilies", "UMask", "ReadWritePaths", "StartLimitIntervalSec"),
        *("TasksMax", "MemoryMax", "OOMPolicy"),
    ):
        (at,) = [number for number, line in enumerate(lines) if line.startswith(f"{key}=")]
        assert lines[at - 1].startswith("# ")


# --- what the units and README.md know of each other -----------------------------------------


def readme_config() -> dict[str, dict[str, str]]:
    (text,) = re.findall(
        r"cat > /etc/bgremover/config\.yaml <<'END'\n(.*?)\nEND\n", service_section(), re.DOTALL
    )
    config: dict[str, dict[str, str]] = yaml.safe_load(text)
    return config


def test_readme_installs_these_units_and_what_they_start() -> None:
    section = service_section()
    copied = re.findall(r"^cp (.*) /etc/systemd/system/$", section, re.MULTILINE)
    assert [one.split() for one in copied] == [[f"systemd/{name}" for name in NAMES]]
    assert f"python3 -m venv {PROGRAM.removesuffix('/bin/bgremover')} " in section
    user, group = value(NAMES[0], "User"), value(NAMES[0], "Group")
    assert re.search(rf"^useradd --system .* {user}$", section, re.MULTILINE)
    assert f"install -d -o {user} -g {group} {writable()}" in section


def writable() -> str:
    return value(NAMES[0], "ReadWritePaths").removeprefix("-")


def test_readme_writes_the_files_that_the_unit_reads() -> None:
    section = service_section()
    credential, _, path = value(NAMES[0], "LoadCredential").partition(":")
    assert credential == CREDENTIAL
    assert f"(umask 077; cat > {path})" in section
    assert value(NAMES[0], "ExecStart").endswith(" -c /etc/bgremover/config.yaml")
    assert value(NAMES[1], "ExecStart").replace("%i", "shoes").split()[-1] in section


def test_readme_puts_the_folders_where_the_unit_lets_the_daemon_write() -> None:
    folders = dict(readme_config()["folders"])
    state = f"/var/lib/{value(NAMES[0], 'StateDirectory')}"
    assert state in service_section()
    assert folders.pop("state", state) == state
    assert {Path(path).parent for path in folders.values()} == {Path(writable())}


@pytest.mark.parametrize(
    "path",
    ["/etc/systemd/system/bgremover", "/opt/bgremover", "/etc/bgremover", "/var/lib/bgremover"],
)
def test_readme_removes_what_it_installed(path: str) -> None:
    removal = service_section().partition("To remove it all:")[2]
    assert f"`{path}" in removal
