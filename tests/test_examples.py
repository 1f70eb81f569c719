"""Dashboard and alert rules ask only for metrics that there are, with labels that they have."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from bgremover.edges.web import exposition
from tests.edges.test_web import PAUSED, observed

EXAMPLES = Path(__file__).parent.parent / "examples"
RULES = EXAMPLES / "prometheus-alerts.yaml"
DASHBOARD = EXAMPLES / "grafana-dashboard.json"
TEXT = exposition(observed(), PAUSED, "")[0].decode()
OF_PROMETHEUS = {"instance", "le"}


def known() -> dict[str, set[str]]:
    """Every name that can be asked for, with its labels."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(TEXT):
        for one in family.samples:
            found.setdefault(one.name, set()).update(one.labels)
    return found


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return panels


def asked() -> Iterator[tuple[str, str]]:
    """Every question, and the text that shows its labels."""
    for rule in rules():
        yield rule["expr"], " ".join(rule["annotations"].values())
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]


def labels_in(expression: str, shown: str) -> set[str]:
    matched = re.findall(r"[{,]\s*(\w+)\s*=~?", expression)
    grouped = re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)
    printed = re.findall(r"{{\s*(?:\$labels\.)?(\w+)\s*}}", shown)
    return {*matched, *printed, *(one.strip() for group in grouped for one in group.split(","))}


@pytest.mark.parametrize(("expression", "shown"), list(asked()))
def test_every_question_can_be_answered(expression: str, shown: str) -> None:
    names = re.findall(r"\bbgremover_\w+", expression)
    assert names
    labels = set[str]().union(*(known()[name] for name in names))
    assert labels_in(expression, shown) - OF_PROMETHEUS <= labels


def test_every_metric_is_on_the_dashboard_or_in_a_rule() -> None:
    told = RULES.read_text(encoding="utf-8") + DASHBOARD.read_text(encoding="utf-8")
    families = {family.name for family in text_string_to_metric_families(TEXT)}
    created = {name for name in families if name.endswith("_created")}
    assert {name for name in families - created if name not in told} == set()


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in panels()}) == len(panels())
    cells = [
        (x, y)
        for panel in panels()
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool, of the package prometheus"
)


@needs_promtool
def test_promtool_finds_no_fault_with_the_rules() -> None:
    subprocess.run(["promtool", "check", "rules", str(RULES)], check=True, capture_output=True)


@needs_promtool
def test_promtool_finds_no_fault_with_the_metrics() -> None:
    told = subprocess.run(
        ["promtool", "check", "metrics"], input=TEXT, capture_output=True, text=True, check=False
    )
    assert (told.returncode, told.stderr) == (0, "")


@needs_promtool
def test_the_alerts_ring_when_they_should(tmp_path: Path) -> None:
    scenario = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": series, "values": values}
                    for series, values in (
                        ('bgremover_info{instance="nas"}', "1x60"),
                        ('bgremover_healthy{instance="nas"}', "1x10 0x50"),
                        ('bgremover_pause{instance="nas",reason="forbidden"}', "1x60"),
                    )
                ],
                "alert_rule_test": [
                    {"eval_time": "5m", "alertname": "BgremoverIll", "exp_alerts": []},
                    {"eval_time": "5m", "alertname": "BgremoverDown", "exp_alerts": []},
                    {
                        "eval_time": "30m",
                        "alertname": "BgremoverIll",
                        "exp_alerts": [
                            {
                                "exp_labels": {"severity": "critical", "instance": "nas"},
                                "exp_annotations": {
                                    "summary": "bgremover is not well",
                                    "description": "`bgremover health` says why.",
                                },
                            }
                        ],
                    },
                    {
                        "eval_time": "30m",
                        "alertname": "BgremoverPaused",
                        "exp_alerts": [
                            {
                                "exp_labels": {
                                    "severity": "warning",
                                    "instance": "nas",
                                    "reason": "forbidden",
                                },
                                "exp_annotations": {
                                    "summary": "bgremover pauses: forbidden",
                                    "description": "`bgremover status` says what to do.",
                                },
                            }
                        ],
                    },
                ],
            }
        ],
    }
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(scenario))
    done = subprocess.run(
        ["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
