"""The expressions of the shipped dashboard and rules."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import yaml

RULES = Path("cluster/prometheus/midstep.rules.yaml")
DASHBOARD = Path("cluster/grafana/midstep.json")
_VARIABLES = {"$__rate_interval": "5m", "$application": ".+"}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels, without headings."""
    dashboard = json.loads(DASHBOARD.read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Each expression with the name of its rule or panel. Grafana's variables have values."""
    for rule in rules():
        yield rule.get("record") or rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], re.sub(r"\$\w+", lambda variable: _VARIABLES[variable[0]], target["expr"])


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    """Every series that the expression reads. Raises ValueError if it is not PromQL."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found
