"""The benchmarks run and tell what they say; that their figures are good is for whoever reads."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import (
    burst,
    ceiling,
    growth,
    idle,
    latency,
    memory,
    phases,
    start,
    sweep,
    throughput,
)
from tests.benchmarks.__main__ import ALL
from tests.benchmarks.figures import Benchmark, Figure, Report, as_json, main, read_before, run

SHORT: list[tuple[Benchmark[Any], object]] = [
    (throughput.BENCHMARK, throughput.Options(12, 4, 0.05, 0.2, rounds=1)),
    (throughput.HUNDRED, throughput.Options(30, 20, 0.05, 0.0, rounds=1, least=0.9)),
    (ceiling.BENCHMARK, ceiling.Options(30)),
    (phases.BENCHMARK, phases.Options(20, 3)),
    (growth.BENCHMARK, growth.Options((10, 20, 40), rows=20, rounds=1, images=5)),
    (memory.BENCHMARK, memory.Options(200, 4, 60)),
    (latency.BENCHMARK, latency.Options(2, 20)),
    (start.BENCHMARK, start.Options(50, 1)),
    (sweep.BENCHMARK, sweep.Options(800, 10, 2)),
    (burst.BENCHMARK, burst.Options(200, 100, 100, 1)),
    (idle.BENCHMARK, idle.Options(1, 5)),
]


@pytest.mark.parametrize(
    ("figure", "target", "reached"),
    [
        (Figure("a", 1.0, "s"), "", None),
        (Figure("a", None, "s", most=1.0), "at most 1", None),
        (Figure("a", 1.0, "s", most=1.0), "at most 1", True),
        (Figure("a", 1.1, "s", most=1.0), "at most 1", False),
        (Figure("a", 0.97, "x", least=0.97), "at least 0.97", True),
        (Figure("a", 0.96, "x", least=0.97), "at least 0.97", False),
        (Figure("a", 0.0, "bytes", most=0), "at most 0", True),
    ],
)
def test_a_target_is_reached_or_missed(figure: Figure, target: str, reached: bool | None) -> None:
    assert (figure.target, figure.reached) == (target, reached)


def test_what_was_told_can_be_read_again() -> None:
    figures = (Figure("wall", 1.5, "s"), Figure("wall", 2.0, "x", to="httpx", most=1.0))
    text = as_json([Report("some", {"images": 3}, figures, 1.0, 0.5)])
    assert read_before(text) == {("some", "wall", ""): 1.5, ("some", "wall", "httpx"): 2.0}
    told = json.loads(text)["benchmarks"][0]
    assert told["options"] == {"images": 3}
    assert [figure["reached"] for figure in told["figures"]] == [None, False]


@dataclass(frozen=True)
class Nothing:
    pass


def test_a_defect_of_one_leaves_the_others_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Nothing, place: Path) -> list[Figure]:
        raise RuntimeError(str(place))

    def tell(_: Nothing, _place: Path) -> list[Figure]:
        return [Figure("wall", 1.5, "s", most=1.0)]

    bad = Benchmark("bad", "one that fails", Nothing(), Nothing(), fail)
    good = Benchmark("good", "one that does not", Nothing(), Nothing(), tell)
    with pytest.raises(SystemExit) as ended:
        main([bad, good], ["--json", str(tmp_path / "told")])
    assert ended.value.code == 1
    shown = capsys.readouterr().out
    assert "failed: RuntimeError" in shown
    assert "missed" in shown
    assert ("good", "wall", "") in read_before((tmp_path / "told").read_text())


def test_a_name_that_is_none_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(ALL, ["throughtput"])
    assert "there is no throughtput; there are throughput, hundred," in capsys.readouterr().err


def test_each_has_its_short_form_here() -> None:
    assert [one for one, _ in SHORT] == list(ALL)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("benchmark", "options"), SHORT, ids=[one.name for one in ALL])
def test_each_comes_to_its_end(benchmark: Benchmark[Any], options: object) -> None:
    report = run(benchmark, options)
    assert not report.failed
    named = [(figure.name, figure.to) for figure in report.figures]
    assert len(named) == len(set(named))
    values = [figure.value for figure in report.figures if figure.value is not None]
    assert len(values) >= 3
    assert all(map(_is_plausible, report.figures))


def _is_plausible(figure: Figure) -> bool:
    # What is left of something that was taken away may be a little less than nothing.
    below = figure.unit in ("MB", "ms") or "less" in figure.name
    return figure.value is None or below or figure.value >= 0
