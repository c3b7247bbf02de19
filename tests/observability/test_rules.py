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
BURNING = "DistServeSloBurning"


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


def judged(all_values: str, met: str, pod: str = "7c-a") -> dict[str, str]:
    """Requests under the deployment's objective, and those of them that met both halves."""
    found = counter("slo_judged", all_values, pod, objective="deployment")
    return found | counter("slo_attained", met, pod, objective="deployment", slo="both")


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
        series |= judged("0+60x760", "0+60x600 36012+12x59 36780+60x99", pod)
    hour = fired(BURNING, 90, "66.67%", long_window="1h")
    suite(
        tmp_path,
        90,
        series,
        ("599m", BURNING, []),
        # The first minutes are not enough for the hour's window.
        ("610m", BURNING, []),
        ("650m", BURNING, [hour]),
        # Ten minutes after its end the five-minute window is clean, the hour's is not.
        ("670m", BURNING, []),
        ("760m", BURNING, []),
    )
    promtool("test", "rules", "test.yaml")
    assert hour["exp_labels"]["severity"] == "critical"


def test_a_slow_burn_is_a_warning(promtool: Promtool, tmp_path: Path) -> None:
    """Of an objective of 99 %, 2 % miss: twice what is allowed."""
    series = judged("0+100x500", "0+98x500")
    days = fired(BURNING, 99, "2%", long_window="3d")
    suite(tmp_path, 99, series, ("500m", BURNING, [days]))
    promtool("test", "rules", "test.yaml")
    assert days["exp_labels"]["severity"] == "warning"


def test_nothing_burns_while_nothing_is_asked(promtool: Promtool, tmp_path: Path) -> None:
    series = counter("requests", "5x400", code="200") | counter("requests", "0x400", code="503")
    series |= judged("5x400", "0x400")
    suite(
        tmp_path,
        99,
        series,
        *((f"{m}m", BURNING, []) for m in (1, 10, 400)),
        *((f"{m}m", "DistServeRequestsFailing", []) for m in (1, 10, 400)),
    )
    promtool("test", "rules", "test.yaml")


def test_every_request_may_fail_though_more_are_refused(promtool: Promtool, tmp_path: Path) -> None:
    """Who was taken in fails; those that come again are refused, and are many more."""
    series = counter("requests", "0+30x400", code="504") | counter("requests", "0x400", code="200")
    series |= counter("requests", "0+3000x400", code="429")
    series |= counter("requests", "0+600x400", code="400")
    requests = fired("DistServeRequestsFailing", 90, "100%")
    suite(tmp_path, 90, series, ("200m", "DistServeRequestsFailing", [requests]))
    promtool("test", "rules", "test.yaml")


@pytest.mark.parametrize(("failed", "minute", "called"), [(2, 609, False), (13, 637, True)])
def test_a_few_failures_call_nobody(
    promtool: Promtool, tmp_path: Path, failed: int, minute: int, called: bool
) -> None:
    """After a quiet night one request is answered and one fails every three minutes."""
    answered = [now // 3 for now in range(60)]
    failing = [min(count, failed) for count in answered]
    series = {}
    for code, values in (("200", answered), ("502", failing)):
        series |= counter("requests", "0x600 " + " ".join(map(str, values)), code=code)
    once = fired("DistServeRequestsFailing", 90, "50%")
    expected = (f"{minute}m", "DistServeRequestsFailing", [once] if called else [])
    suite(tmp_path, 90, series, expected)
    promtool("test", "rules", "test.yaml")


def test_refusals_alone_are_no_failures(promtool: Promtool, tmp_path: Path) -> None:
    series = counter("requests", "0+10x400", code="200")
    series |= counter("requests", "0+90x400", code="429")
    series |= judged("0+10x400", "0+10x400")
    none = (("200m", name, []) for name in (BURNING, "DistServeRequestsFailing"))
    suite(tmp_path, 90, series, *none)
    promtool("test", "rules", "test.yaml")


def test_all_windows_burn_when_most_is_missed(promtool: Promtool, tmp_path: Path) -> None:
    series = judged("0+100x400", "0+10x400")
    expected = [fired(BURNING, 90, "90%", long_window=window) for window in ("1h", "1d", "3d")]
    suite(tmp_path, 90, series, ("200m", BURNING, expected))
    promtool("test", "rules", "test.yaml")


@pytest.mark.parametrize(("missed", "called"), [(9, False), (12, True)])
def test_a_few_misses_call_nobody(
    promtool: Promtool, tmp_path: Path, missed: int, called: bool
) -> None:
    """After a quiet night each request is missed, one a minute: all there are."""
    series = judged(f"0x600 1+1x{missed - 1} {missed}x30", "0x700")
    hour = fired(BURNING, 90, "100%", long_window="1h")
    days = [fired(BURNING, 90, "100%", long_window=w) for w in ("1d", "3d")]
    suite(tmp_path, 90, series, ("612m", BURNING, [hour, *days] if called else []))
    promtool("test", "rules", "test.yaml")


def test_where_no_miss_is_allowed_one_calls(promtool: Promtool, tmp_path: Path) -> None:
    series = judged("0x600 1x30", "0x700")
    (rule,) = [r for r in rules(100)["groups"][0]["rules"] if r.get("alert") == BURNING]
    once = fired(BURNING, 100, "100%", long_window=rule["labels"]["long_window"])
    suite(tmp_path, 100, series, ("603m", BURNING, [once]))
    promtool("test", "rules", "test.yaml")


def test_gateways_that_are_gone_are_told(promtool: Promtool, tmp_path: Path) -> None:
    """Their other alerts end with their data, which those of an earlier release never had."""
    series = counter("slo_judged", "0x60 _x60 0x60", objective="deployment")
    absent = fired("DistServeGatewayAbsent", None, "")
    suite(
        tmp_path,
        None,
        series,
        ("60m", "DistServeGatewayAbsent", []),
        # Prometheus takes a reading as today's for five minutes.
        ("80m", "DistServeGatewayAbsent", [absent]),
        ("125m", "DistServeGatewayAbsent", []),
    )
    promtool("test", "rules", "test.yaml")
    assert absent["exp_labels"]["severity"] == "critical"


def test_another_deployments_requests_are_not_its_own(promtool: Promtool, tmp_path: Path) -> None:
    series = counter("requests", "0+60x200", code="200") | judged("0+60x200", "0+60x200")
    other = "gateway-7c-a"  # opt-gateway's own gateway: opt-gateway-gateway-7c-a
    series |= counter("requests", "0+600x200", other, code="500") | judged(
        "0+600x200", "0x200", other
    )
    suite(
        tmp_path,
        90,
        series,
        ("150m", BURNING, []),
        ("150m", "DistServeRequestsFailing", []),
    )
    promtool("test", "rules", "test.yaml")
