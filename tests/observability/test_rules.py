"""When a deployment's alerts fire and when they end, asked of Prometheus' own evaluation."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.cluster.cluster import CHECKOUT

from distserve.observability.burning import WINDOWS, thresholds
from distserve.observability.deployment_rules import Service, deployment_rules
from distserve.observability.operator_rules import operator_rules
from distserve.observability.rules import rule_groups

Promtool = Callable[..., str]

GATEWAYS = 'namespace="llm", pod="opt-gateway-{pod}"'
IDENTITY = {"namespace": "llm", "deployment": "opt"}


def rules(percent: int | None) -> dict[str, Any]:
    service = Service("llm", "opt", "opt-gateway-[0-9a-z]+(-[0-9a-z]+)?", percent)
    return rule_groups("distserve.llm.opt", list(deployment_rules(service)))


@pytest.mark.parametrize("percent", [1, 50, 90, 99, 100, None])
def test_prometheus_accepts_them(promtool: Promtool, tmp_path: Path, percent: int | None) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules(percent)))
    promtool("check", "rules", "--lint-fatal", "rules.yaml")


@pytest.mark.parametrize("percent", range(1, 100))
def test_a_threshold_lies_between_what_is_allowed_and_everything(percent: int) -> None:
    budget = 1 - percent / 100
    found = [threshold.missed for threshold in thresholds(percent)]
    assert all(budget - 1e-6 <= missed < 1 for missed in found)
    assert sorted(set(found), reverse=True) == found, "longer windows see smaller fires"
    assert found[-1] == pytest.approx(budget), "what burns at all is seen"


def test_thresholds_of_small_budgets_are_the_workbooks() -> None:
    found = {t.window.long: t.missed for t in thresholds(99)}
    assert found == pytest.approx({"1h": 0.144, "6h": 0.06, "1d": 0.03, "3d": 0.01})
    assert [t.missed for t in thresholds(100)] == [0.0], "no miss is allowed"


def test_every_alert_has_a_runbook() -> None:
    """And every runbook an alert."""
    alerts = [rule for rule in rules(90)["groups"][0]["rules"] if "alert" in rule]
    alerts += [alert.document() for alert in operator_rules("ns", "operator")]
    pages = {page.name for page in (CHECKOUT / "docs/runbooks").glob("*.md")} - {"README.md"}
    assert {Path(a["annotations"]["runbook_url"]).name for a in alerts} == pages
    for alert in alerts:
        page = CHECKOUT / alert["annotations"]["runbook_url"]
        assert page.read_text().startswith(f"# {alert['alert']}\n")


def test_the_runbooks_thresholds_are_the_rules() -> None:
    page = (CHECKOUT / "docs/runbooks/DistServeSloBurning.md").read_text()
    for percent, column in ((99, 2), (90, 3)):
        said = {}
        for row in re.findall(r"^\| \d+[hd] and .*$", page, re.MULTILINE):
            cells = [cell.strip() for cell in row.split("|")]
            if cells[column] != "-":
                said[cells[1].split(" ")[0]] = float(cells[column].removesuffix(" %")) / 100
        assert said == {t.window.long: pytest.approx(t.missed) for t in thresholds(percent)}
    assert len(re.findall(r"^\| \d+[hd] and ", page, re.MULTILINE)) == len(WINDOWS)


def suite(tmp_path: Path, percent: int | None, series: dict[str, str], *expected: Any) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules(percent)))
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": v} for name, v in series.items()],
        "alert_rule_test": [
            {"eval_time": time, "alertname": name, "exp_alerts": alerts}
            for time, name, alerts in expected
        ],
    }
    written = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [case]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(written))


def counter(metric: str, values: str, pod: str = "7c-a", **labels: str) -> dict[str, str]:
    more = "".join(f', {name}="{value}"' for name, value in labels.items())
    return {f"distserve_{metric}_total{{{GATEWAYS.format(pod=pod)}{more}}}": values}


def fired(alert: str, percent: int | None, value: str, **labels: str) -> dict[str, Any]:
    """As promtool wants it: with every label and annotation."""
    (rule,) = [
        rule
        for rule in rules(percent)["groups"][0]["rules"]
        if rule.get("alert") == alert and labels.items() <= rule["labels"].items()
    ]
    notes = {
        name: re.sub(r"\{\{ \$value .*?\}\}", value, text)
        for name, text in rule["annotations"].items()
    }
    return {"exp_labels": rule["labels"], "exp_annotations": notes}


def test_a_fast_burn_fires_soon_and_ends_soon_after_it(promtool: Promtool, tmp_path: Path) -> None:
    """Ten hours all is well, then 80 % of the requests of two gateways miss for an hour."""
    series = {}
    for pod in ("7c-a", "7c-b"):
        # 60 requests a minute: 60 or 12 of them attain.
        series |= counter("requests", "0+60x760", pod, code="200")
        series |= counter("slo_attained", "0+60x600 36012+12x59 36780+60x99", pod, slo="both")
    burning = "DistServeSloBurning"
    hour = fired(burning, 90, "66.67%", long_window="1h")
    suite(
        tmp_path,
        90,
        series,
        ("599m", burning, []),
        # The first minutes are not enough for the hour's window.
        ("610m", burning, []),
        ("650m", burning, [hour]),
        # Ten minutes after its end the five-minute window is clean, the hour's is not.
        ("670m", burning, []),
        ("760m", burning, []),
    )
    promtool("test", "rules", "test.yaml")
    assert hour["exp_labels"]["severity"] == "critical"


def test_a_slow_burn_is_a_warning(promtool: Promtool, tmp_path: Path) -> None:
    """Of an objective of 99 %, 2 % miss: twice what is allowed."""
    series = counter("requests", "0+100x500", code="200")
    series |= counter("slo_attained", "0+98x500", slo="both")
    days = fired("DistServeSloBurning", 99, "2%", long_window="3d")
    suite(tmp_path, 99, series, ("500m", "DistServeSloBurning", [days]))
    promtool("test", "rules", "test.yaml")
    assert days["exp_labels"]["severity"] == "warning"


def test_nothing_burns_while_nothing_is_asked(promtool: Promtool, tmp_path: Path) -> None:
    series = counter("requests", "5x400", code="200") | counter("requests", "0x400", code="503")
    series |= counter("slo_attained", "0x400", slo="both")
    suite(
        tmp_path,
        99,
        series,
        *((f"{m}m", "DistServeSloBurning", []) for m in (1, 10, 400)),
        *((f"{m}m", "DistServeRequestsFailing", []) for m in (1, 10, 400)),
    )
    promtool("test", "rules", "test.yaml")


def test_failures_of_the_service_burn_too_and_refusals_do_not(
    promtool: Promtool, tmp_path: Path
) -> None:
    attained = counter("slo_attained", "0+10x400", slo="both")
    answered = counter("requests", "0+10x400", code="200") | attained
    failing = answered | counter("requests", "0+90x400", code="503")
    hour = fired("DistServeSloBurning", 90, "90%", long_window="1h")
    day = fired("DistServeSloBurning", 90, "90%", long_window="1d")
    three = fired("DistServeSloBurning", 90, "90%", long_window="3d")
    requests = fired("DistServeRequestsFailing", 90, "90%")
    suite(
        tmp_path,
        90,
        failing,
        ("200m", "DistServeSloBurning", [hour, day, three]),
        ("200m", "DistServeRequestsFailing", [requests]),
    )
    promtool("test", "rules", "test.yaml")
    refused = answered | counter("requests", "0+90x400", code="429")
    suite(
        tmp_path,
        90,
        refused,
        ("200m", "DistServeSloBurning", []),
        ("200m", "DistServeRequestsFailing", []),
    )
    promtool("test", "rules", "test.yaml")


def test_another_deployments_requests_are_not_its_own(promtool: Promtool, tmp_path: Path) -> None:
    series = counter("requests", "0+60x200", code="200")
    series |= counter("slo_attained", "0+60x200", slo="both")
    other = "gateway-7c-a"  # opt-gateway's own gateway: opt-gateway-gateway-7c-a
    series |= counter("requests", "0+600x200", other, code="500")
    suite(
        tmp_path,
        90,
        series,
        ("150m", "DistServeSloBurning", []),
        ("150m", "DistServeRequestsFailing", []),
    )
    promtool("test", "rules", "test.yaml")
