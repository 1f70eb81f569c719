"""An import goes down only; see ARCHITECTURE.md."""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "bgremover"

FLOORS = {
    "__init__": 0,
    "core": 0,
    "affinity": 1,
    "container": 1,
    "timing": 1,
    "wire": 1,
    "sandbox": 1,
    "edges": 2,
    "studio": 3,
    "settings": 3,
    "findings": 3,
    "reading": 4,
    "key": 4,
    "door": 4,
    "workshop": 4,
    "renditions": 5,
    "pipeline": 6,
    "intake": 7,
    "lookout": 8,
    "dispatcher": 8,
    "daemon": 9,
    "attendants": 10,
    "wiring": 11,
    "commands": 12,
    "cli": 12,
    "__main__": 13,
}
BY_ITSELF = {
    "sandbox": {"sandbox", "core", "__init__"},
    "core": {"core"},
    "studio": {"studio", "core", "edges", "settings"},
}
"""What a room may import of this package; the others: whatever lies on a lower floor."""

ALONE = {
    *("edges", "timing", "settings", "findings", "reading", "key", "door", "workshop"),
    *("intake", "lookout", "dispatcher", "daemon", "wiring"),
}
"""Rooms in which no module imports another."""

TOUCHES_THE_WORLD = {
    *("asyncio", "io", "logging", "multiprocessing", "os", "pathlib", "random", "secrets"),
    *("shutil", "signal", "socket", "sqlite3", "subprocess", "tempfile", "threading", "uuid"),
}  # `time` writes moments down as text

Sources = Mapping[str, str]


def sources() -> Sources:
    """Return the text of each module of the package, by its dotted name without `bgremover`."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path.read_text()
        for path in PACKAGE.rglob("*.py")
    }


def imported(text: str) -> Iterator[str]:
    for node in ast.walk(without_types(ast.parse(text))):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield from (f"{module}.{name.name}" for name in names)
            case ast.ImportFrom():
                yield "a relative import"
            case _:
                pass


def without_types(tree: ast.Module) -> ast.Module:
    """Leave out what only names types of the standard library."""
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        or "bgremover" in ast.unparse(node)
    ]
    return tree


def module_of(name: str, known: Sources) -> str:
    """Return the module of this package that an imported name is, or is in."""
    inner = name.removeprefix("bgremover.")
    return next(
        (one for one in (inner, f"{inner}.__init__", inner.rpartition(".")[0]) if one in known),
        "__init__",
    )


def wrong(module: str, text: str, known: Sources) -> list[str]:
    """Return the imports in `text`, of a module of this package, that go where they may not."""
    names = imported(text)
    return [f"{module} imports {name}" for name in names if not allowed(module, name, known)]


def allowed(module: str, name: str, known: Sources) -> bool:
    room = module.partition(".")[0]
    top = name.partition(".")[0]
    if top != "bgremover":
        pure = top in sys.stdlib_module_names and top not in TOUCHES_THE_WORLD
        return pure or (room != "core" and name != "a relative import")
    target = module_of(name, known)
    other = target.partition(".")[0]
    if room in BY_ITSELF:
        return other in BY_ITSELF[room]
    if other == "sandbox":
        return room in {"cli", "commands"}
    if room == other and room in ALONE:
        return False
    return FLOORS[other] <= FLOORS[room] and not (FLOORS[other] == FLOORS[room] and room in ALONE)


def test_imports_go_down_only() -> None:
    known = sources()
    assert [one for module, text in known.items() for one in wrong(module, text, known)] == []


def test_every_room_has_a_floor() -> None:
    assert {module.partition(".")[0] for module in sources()} == FLOORS.keys()


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("core.job", "import os"),
        ("core.job", "from random import random"),
        ("core.job", "import httpx"),
        ("core.job", "from bgremover.edges import mounts"),
        ("core.job", "from bgremover.timing import Clock"),
        ("core.job", "if TYPE_CHECKING:\n    from bgremover.timing import Clock"),
        ("timing", "import bgremover.edges.inbox"),
        ("edges.inbox", "from bgremover.edges.folders import Folders"),
        ("edges.inbox", "from bgremover.edges import folders"),
        ("edges.inbox", "from bgremover.settings import Settings"),
        ("edges.inbox", "def f():\n    from bgremover.pipeline import Pipeline"),
        ("edges.inbox", "from . import folders"),
        ("settings", "from bgremover.pipeline import Pipeline"),
        ("intake", "from bgremover.dispatcher import Dispatcher"),
        ("lookout", "from bgremover.dispatcher import Dispatcher"),
        ("pipeline", "from bgremover.intake import Intake"),
        ("daemon", "from bgremover.commands.work import run"),
        ("wiring", "from bgremover.cli import Exit"),
        ("wiring", "from bgremover.sandbox.app import Sandbox"),
        ("sandbox.app", "from bgremover.edges.pictures import inspect"),
        ("sandbox.app", "from bgremover.timing import Clock"),
        ("studio.finish", "from bgremover.timing import Clock"),
        ("studio.finish", "from bgremover.pipeline import Pipeline"),
    ],
)
def test_an_import_that_goes_up_is_found(module: str, line: str) -> None:
    known = sources()
    (found,) = wrong(module, f"{known[module]}\n{line}\n", known)
    assert found.startswith(f"{module} imports")


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("core.job", "import re"),
        ("core.job", "if TYPE_CHECKING:\n    import os"),
        ("edges.inbox", "import os"),
        ("edges.inbox", "from bgremover import __version__"),
        ("settings", "from bgremover.edges.mounts import read_mounts"),
        ("commands.demo", "from bgremover.sandbox.app import Sandbox"),
        ("cli", "from bgremover.commands import work"),
    ],
)
def test_an_import_that_goes_down_is_welcome(module: str, line: str) -> None:
    known = sources()
    assert wrong(module, f"{known[module]}\n{line}\n", known) == []
