"""What a benchmark is, what it tells, and how that is shown."""

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.table import Table

S = TypeVar("S")
WIDTH = 180
"""Of the table where nobody tells how wide it may be."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure.

    Args:
        name: What was measured.
        value: How much; None where it could not be measured.
        unit: Of the value; "x" for a ratio.
        to: What a ratio is to.
        most: The target, where there is one: not more than this.
        least: The same: not less than this.
        note: What one must know to read it, or why there is no value.
    """

    name: str
    value: float | None
    unit: str
    to: str = ""
    most: float | None = None
    least: float | None = None
    note: str = ""

    @property
    def target(self) -> str:
        """The target in words; empty where there is none."""
        if self.most is not None:
            return f"at most {self.most:g}"
        return f"at least {self.least:g}" if self.least is not None else ""

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None where there is none, or no value."""
        if self.value is None or (self.most is None and self.least is None):
            return None
        below = self.most is None or self.value <= self.most
        return below and (self.least is None or self.value >= self.least)


@dataclass(frozen=True, slots=True)
class Benchmark(Generic[S]):
    """Something that can be measured.

    Args:
        name: Of its module.
        about: One line.
        full: How much is done; a frozen dataclass whose fields are the options.
        quick: The same for a first look.
        measure: Does it, in an empty folder.
    """

    name: str
    about: str
    full: S
    quick: S
    measure: Callable[[S, Path], list[Figure]]


@dataclass(frozen=True, slots=True)
class Report:
    """What one benchmark told, how long it took, and how busy the machine was before.

    With `failed` it did not come to its end.
    """

    benchmark: str
    options: dict[str, Any]
    figures: tuple[Figure, ...]
    seconds: float
    load: float
    failed: bool = False


def run(benchmark: Benchmark[S], options: S, folder: str | None = None) -> Report:
    """Measure; a defect becomes a figure without a value, so that the others are still told."""
    began, load, failed = time.monotonic(), os.getloadavg()[0], False
    with tempfile.TemporaryDirectory(dir=folder) as place:
        try:
            figures = benchmark.measure(options, Path(place))
        except Exception as error:  # noqa: BLE001 - whatever it was
            traceback.print_exc()
            why = f"failed: {type(error).__name__}, see above"
            figures, failed = [Figure(benchmark.about, None, "", note=why)], True
    seconds = round(time.monotonic() - began, 1)
    told = {field.name: getattr(options, field.name) for field in _fields(options)}
    return Report(benchmark.name, told, tuple(figures), seconds, round(load, 2), failed)


def _fields(options: Any) -> tuple[dataclasses.Field[Any], ...]:  # noqa: ANN401 - any dataclass
    return dataclasses.fields(options)


# --- showing --------------------------------------------------------------------------------


Before = dict[tuple[str, str, str], float | None]
"""The values of an earlier run, by benchmark, figure, and what a ratio is to."""


def show(reports: Iterable[Report], before: Before | None = None) -> None:
    """Print one table; with `before` also what it was then."""
    table = Table(title=_machine_line(), title_justify="left")
    for heading in ("benchmark", "figure", "value", "before", "to", "target", "", "note"):
        right = heading in ("value", "before")
        if heading != "before" or before is not None:
            table.add_column(heading, justify="right" if right else "left", no_wrap=right)
    for report in reports:
        for row in _rows(report, before):
            table.add_row(*row)
        table.add_section()
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)


def _rows(report: Report, before: Before | None) -> Iterator[list[str]]:
    name = report.benchmark
    for figure in report.figures:
        reached = {None: "", True: "reached", False: "[bold]missed[/bold]"}[figure.reached]
        row = [name, figure.name, _quantity(figure.value, figure.unit)]
        if before is not None:
            then = before.get((report.benchmark, figure.name, figure.to))
            row.append(_quantity(then, figure.unit))
        yield [*row, figure.to, figure.target, reached, figure.note]
        name = ""


def _quantity(value: float | None, unit: str) -> str:
    return "" if value is None else f"{_number(value)} {unit}"


def _number(value: float) -> str:
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _machine_line() -> str:
    return ", ".join(f"{name} {value}" for name, value in machine().items())


def machine() -> dict[str, Any]:
    """Return where it was measured."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "load": round(os.getloadavg()[0], 2),
    }


def as_json(reports: Iterable[Report]) -> str:
    """Return all of it as JSON."""
    told = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "benchmarks": [
            {
                **dataclasses.asdict(report),
                "figures": [_figure_json(figure) for figure in report.figures],
            }
            for report in reports
        ],
    }
    return json.dumps(told, indent=2) + "\n"


def read_before(text: str) -> Before:
    """Return what `as_json` has told."""
    return {
        (report["benchmark"], figure["name"], figure["to"]): figure["value"]
        for report in json.loads(text)["benchmarks"]
        for figure in report["figures"]
    }


def _figure_json(figure: Figure) -> dict[str, Any]:
    return {**dataclasses.asdict(figure), "reached": figure.reached}


# --- the command line -----------------------------------------------------------------------


def main(benchmarks: Sequence[Benchmark[Any]], argv: Sequence[str] | None = None) -> None:
    """Measure some of the benchmarks, or all; print a table, write JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measure what bgremover costs, against the limit and against bare clients.",
        epilog="\n".join(f"  {one.name:12} {one.about}" for one in benchmarks),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [one.name for one in benchmarks]
    parser.add_argument("name", nargs="*", help="which; all without", metavar="NAME")
    _common(parser)
    given = parser.parse_args(argv)
    if unknown := set(given.name) - set(names):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = [one for one in benchmarks if one.name in (given.name or names)]
    with _told(given) as reports:
        for one in chosen:
            sys.stderr.write(f"{one.name}: {one.about} ...\n")
            reports.append(run(one, one.quick if given.quick else one.full, given.folder))


def alone(benchmark: Benchmark[Any], about: str | None) -> None:
    """Run one benchmark by itself, its options on the command line."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for field in _fields(benchmark.full):
        default = getattr(benchmark.full, field.name)
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=_reader(default), help=f"default: {default}")
    _common(parser)
    given = parser.parse_args()
    options = benchmark.quick if given.quick else benchmark.full
    told = {field.name: getattr(given, field.name) for field in _fields(options)}
    wanted = {name: value for name, value in told.items() if value is not None}
    with _told(given) as reports:
        reports.append(run(benchmark, dataclasses.replace(options, **wanted), given.folder))


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="a first look, in minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--against", type=Path, metavar="FILE", help="show those of this JSON too")
    parser.add_argument("--folder", help="where it is done; default: the one for temporary files")


def _reader(default: object) -> Callable[[str], object]:
    match default:
        case tuple():
            return lambda text: tuple(int(number) for number in text.split(","))
        case int() | float() | str():
            return type(default)
        case _:
            raise TypeError(f"no option can be {default!r}")


@contextmanager
def _told(given: argparse.Namespace) -> Iterator[list[Report]]:
    """Yield where reports gather; show and write what has, also when the rest was cut short."""
    before = read_before(given.against.read_text(encoding="utf-8")) if given.against else None
    reports: list[Report] = []
    try:
        yield reports
    finally:
        show(reports, before)
        if given.json is not None:
            given.json.write_text(as_json(reports), encoding="utf-8")
    if any(report.failed for report in reports):
        sys.exit(1)
