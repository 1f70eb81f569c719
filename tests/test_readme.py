"""What the README says of options, codes and commands is what the program does."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from bgremover.cli import Exit, commands
from bgremover.core import errors
from bgremover.reading import parse_settings
from bgremover.settings import keys

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def shown(value: Any) -> str:  # noqa: ANN401 - a default
    plain = list(value) if isinstance(value, tuple) else value
    text = f"./{value}" if isinstance(value, Path) else plain
    return yaml.safe_dump(text, default_flow_style=True).removesuffix("...\n").strip()


def option_row(key: str, default: object, description: str | None) -> str:
    return f"| `{key}` | `{shown(default)}` | {description} |"


def leaves(kind: type[errors.BgremoverError]) -> list[type[errors.BgremoverError]]:
    below = kind.__subclasses__()
    return [leaf for each in below for leaf in leaves(each)] if below else [kind]


def code_row(kind: type[errors.BgremoverError]) -> str:
    meaning = (kind.__doc__ or "").splitlines()[0].rstrip(".")
    return f"| `{kind.code}` | {meaning} | {kind.hint} |"


OPTIONS = [option_row(key, field.get_default(), field.description) for key, field in keys().items()]
CODES = [code_row(kind) for kind in leaves(errors.FileFault)]


@pytest.mark.parametrize("row", OPTIONS + CODES)
def test_the_table_has_the_row(row: str) -> None:
    assert row in README


def test_the_tables_have_no_other_rows() -> None:
    rows = re.findall(r"^\| `([a-z_]+\.[a-z_]+|originals)` \|", README, re.MULTILINE)
    assert sorted(rows) == sorted(keys())


@pytest.mark.parametrize("code", list(Exit))
def test_every_exit_code_is_told(code: Exit) -> None:
    assert re.search(rf"^\| {code.value} \| [\w`]", README, re.MULTILINE)


@pytest.mark.parametrize("name", sorted(commands.commands))
def test_every_command_is_told(name: str) -> None:
    assert f"| `bgremover {name}" in README


@pytest.mark.parametrize(
    "kind", leaves(errors.AccountFault) + leaves(errors.LocalFault), ids=lambda kind: str(kind.code)
)
def test_every_pause_is_told(kind: type[errors.BgremoverError]) -> None:
    assert f"`{kind.code}`" in README


def test_the_test_command_is_the_one_that_ci_runs() -> None:
    (command,) = re.findall(r"^python3 -m venv \.venv && (.*pytest)$", README, re.MULTILINE)
    ci = "".join((ROOT / ".ci" / name).read_text(encoding="utf-8") for name in ("common", "run"))
    install, _, run = command.partition(" && ")
    assert shlex.split(install)[-1] in ci
    assert run.rpartition("python ")[2] in ci


def test_the_renditions_it_shows_are_valid() -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    settings = parse_settings(shown, {}, ROOT)
    assert settings.output.review == "move"
    assert len(settings.output.renditions) == 3
