"""The shipped dashboard and rules are valid for Grafana and Prometheus, and alerts fire when they should."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from textwrap import indent

import pytest

from serve import errors
from tests.promql import DASHBOARD, RULES, expressions, panels, rules, selectors

RUNBOOK = Path("docs/observability.md")
RULES_OBJECT = Path("cluster/kuberay/overlays/production/rules.yaml")


@pytest.mark.parametrize(("name", "expression"), [pytest.param(*pair, id=pair[0]) for pair in expressions()])
def test_every_expression_is_promql_and_reads_what_is_recorded(name: str, expression: str) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    names = {selector.name for selector in selectors(expression) if selector.name}
    assert {read for read in names if ":" in read} <= recorded, name


def test_promtool_finds_nothing_wrong_and_alerts_come_when_they_should() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; it comes with Prometheus (on Debian the package prometheus)")
    for command in (["check", "rules", RULES], ["test", "rules", RULES.with_suffix(".test.yaml")]):
        result = subprocess.run([promtool, *command], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_has_a_rule_test_and_says_what_to_do() -> None:
    tested = RULES.with_suffix(".test.yaml").read_text()
    headings = re.findall(r"^\| `(Midstep\w+)` \|", RUNBOOK.read_text(), re.MULTILINE)
    alerts = [rule["alert"] for rule in rules() if "alert" in rule]
    assert headings == alerts
    for alert in alerts:
        assert f"alertname: {alert}" in tested


def test_the_operator_of_prometheus_gets_the_same_rules() -> None:
    _, _, groups = RULES.read_text().partition("\ngroups:\n")
    _, _, copied = RULES_OBJECT.read_text().partition("\nspec:\n  groups:\n")
    assert copied == indent(groups, "  "), "`make rules` has not been called"


def test_the_codes_that_are_asked_for_are_errors() -> None:
    codes = {error.code for error in vars(errors).values() if isinstance(error, type)}
    asked = {
        code
        for _, expression in expressions()
        for values in re.findall(r'\bcode=~?"([^"]+)"', expression)
        for code in values.split("|")
    }
    assert {"queue_full", "job_store_unavailable", "storage_full"} <= asked <= codes


def test_panels_have_names_of_their_own_and_do_not_overlap() -> None:
    everything = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert len({panel["title"] for panel in everything}) == len(everything)
    taken = set()
    for panel in everything:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert all(panel["description"] and panel["fieldConfig"]["defaults"]["unit"] for panel in panels())
