"""The operator's alerts, beside those of another release; when they fire is tests/chart's."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from distserve.observability.operator_rules import operator_rules
from distserve.observability.rules import rule_groups

Promtool = Callable[..., str]
TEAMS = ("team-a", "team-b")


def rules(namespace: str) -> dict[str, Any]:
    return rule_groups(namespace, list(operator_rules(namespace, "distserve-operator")))


def alerts(namespace: str) -> list[dict[str, Any]]:
    (group,) = rules(namespace)["groups"]
    return list(group["rules"])


def test_prometheus_accepts_them(promtool: Promtool, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules("team-a")))
    promtool("check", "rules", "--lint-fatal", "rules.yaml")


def test_each_says_whose_it_is() -> None:
    for alert in alerts("team-a"):
        identity = {"namespace": "team-a", "operator": "distserve-operator"}
        assert identity.items() <= alert["labels"].items()
        assert alert["annotations"]["summary"].startswith("team-a/distserve-operator: ")


def test_metrics_are_those_of_the_operator(registries: list[CollectorRegistry]) -> None:
    served = {sample.name for metric in registries[0].collect() for sample in metric.samples}
    for alert in alerts("team-a"):
        used = set(re.findall(r"(\w+)\{", alert["expr"]))
        assert used and used <= served, alert["alert"]


@pytest.mark.parametrize(
    ("alert", "minute", "series"),
    [
        ("DistServeOperatorWithoutLeader", 3, {"leader": "0x60"}),
        ("DistServeOperatorReconcileErrors", 15, {"deployments_failing": "2x60"}),
        ("DistServeOperatorBehind", 35, {"leader": "1x60", "queue_depth": "3x60"}),
    ],
)
def test_two_releases_have_two_alerts(
    promtool: Promtool, tmp_path: Path, alert: str, minute: int, series: dict[str, str]
) -> None:
    """Alertmanager takes what has the same labels to be one alert."""
    groups = [group for team in TEAMS for group in rules(team)["groups"]]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    expected = []
    for team in TEAMS:
        (rule,) = (one for one in alerts(team) if one["alert"] == alert)
        expected.append({"exp_labels": rule["labels"], "exp_annotations": rule["annotations"]})
    assert expected[0]["exp_labels"] != expected[1]["exp_labels"]
    pods = {team: f'namespace="{team}", pod="distserve-operator-5d-x"' for team in TEAMS}
    case = {
        "interval": "1m",
        "input_series": [
            {"series": f"distserve_operator_{name}{{{pods[team]}}}", "values": values}
            for team in TEAMS
            for name, values in series.items()
        ],
        "alert_rule_test": [
            {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": expected}
        ],
    }
    suite = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [case]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(suite))
    promtool("test", "rules", "test.yaml")
