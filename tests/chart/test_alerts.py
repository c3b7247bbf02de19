"""When the operator's alerts fire, asked of Prometheus' own evaluation."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.cluster.fixtures import or_skip
from tools.prometheus import program

OPERATOR = 'namespace="distserve-system", pod="distserve-operator-{pod}"'

# Series by metric and pod, in Prometheus' notation for one value a minute: start+step x times.
CASES: list[tuple[str, dict[str, str], dict[int, list[dict[str, str]]]]] = [
    (
        "DistServeOperatorWithoutLeader",
        {"leader a": "1x30 0x30", "leader b": "0x33 1x27"},
        # Hand-overs take less than two minutes.
        {29: [], 32: [], 33: [{}], 40: []},
    ),
    ("DistServeOperatorWithoutLeader", {}, {1: [], 3: [{}]}),
    (
        "DistServeOperatorBlind",
        {"proof_age_seconds a": "0+60x60", "proof_age_seconds b": "100x60"},
        {15: [], 25: [{"pod": "distserve-operator-a"}]},
    ),
    (
        "DistServeOperatorNamespaceLeftOut",
        {"namespaces_left_out a": "0x10 1x50", "namespaces_left_out b": "0x60"},
        {15: [], 16: [{}]},
    ),
    (
        "DistServeOperatorReconcileErrors",
        {"deployments_failing a": "0x20 2x30 0x60", "deployments_failing b": "0x110"},
        {30: [], 31: [{}], 51: [{}], 52: []},
    ),
    (
        "DistServeOperatorReconcileErrors",
        # Each failure was over with the next try.
        {"deployments_failing a": "0x100", "reconcile_errors_total a": "0+1x100"},
        {40: [], 100: []},
    ),
    (
        "DistServeOperatorBehind",
        # Who does not lead does not work its queue off.
        {"leader a": "1x90", "queue_depth a": "0x10 5x80", "leader b": "0x90"}
        | {"queue_depth b": "7x90"},
        {9: [], 40: [], 41: [{}]},
    ),
    (
        "DistServeOperatorBehind",
        # Half an hour is that from the first reading on, and without a pause.
        {"leader a": "1x90", "queue_depth a": "5x20 0x1 5x60"},
        {1: [], 20: [], 40: [], 60: [{}]},
    ),
]


@pytest.fixture(scope="session")
def promtool() -> str:
    with or_skip("promtool"):
        return str(program("promtool"))


@pytest.mark.parametrize(("alert", "series", "expected"), CASES)
def test_alerts_fire_when_they_should(
    render: Any, promtool: str, tmp_path: Path, alert: str, series: Any, expected: Any
) -> None:
    rule = render({"monitoring": {"prometheusRule": "Always"}}).one("PrometheusRule")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    (group,) = rule["spec"]["groups"]
    (definition,) = [one for one in group["rules"] if one["alert"] == alert]
    case = {
        "interval": "1m",
        "input_series": [_series(name, values) for name, values in series.items()],
        "alert_rule_test": [
            {
                "eval_time": f"{minute}m",
                "alertname": alert,
                "exp_alerts": [_fired(definition, labels) for labels in fired],
            }
            for minute, fired in expected.items()
        ],
    }
    suite = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [case]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(suite))
    answer = subprocess.run(
        [promtool, "test", "rules", "test.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def _series(name: str, values: str) -> dict[str, str]:
    metric, pod = name.split()
    return {
        "series": f"distserve_operator_{metric}{{{OPERATOR.format(pod=pod)}}}",
        "values": values,
    }


def _fired(rule: Any, labels: dict[str, str]) -> dict[str, Any]:
    annotations = {
        name: text.replace("{{ $labels.pod }}", labels.get("pod", ""))
        for name, text in rule["annotations"].items()
    }
    return {"exp_labels": {**rule["labels"], **labels}, "exp_annotations": annotations}
