"""What Prometheus is told: only where it is served, and with metrics that the processes have."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from distserve.api import labels
from distserve.api.deployment import DistServeDeployment
from distserve.gateway.metrics import Metrics
from distserve.resources.render import render
from distserve.resources.settings import RenderSettings, released_images
from distserve.wire.dialect import Slo

Object = dict[str, Any]
Deploy = Callable[..., DistServeDeployment]
SLO = {"ttft": "250ms", "tpot": "100ms"}
KINDS = ("PodMonitor", "PrometheusRule")
SETTINGS = RenderSettings(
    released_images(), served=frozenset(f"monitoring.coreos.com/v1/{kind}" for kind in KINDS)
)


def monitoring(deployment: DistServeDeployment, settings: RenderSettings) -> dict[str, Object]:
    return {o["kind"]: o for o in render(deployment, settings) if o["kind"] in KINDS}


def rules(deployment: DistServeDeployment) -> list[Object]:
    (group,) = monitoring(deployment, SETTINGS)["PrometheusRule"]["spec"]["groups"]
    return list(group["rules"])


def test_only_where_it_is_served_and_asked_for(deployment: Deploy) -> None:
    assert set(monitoring(deployment(), SETTINGS)) == set(KINDS)
    assert monitoring(deployment(), replace(SETTINGS, served=frozenset())) == {}
    one = replace(SETTINGS, served=frozenset({"monitoring.coreos.com/v1/PodMonitor"}))
    assert set(monitoring(deployment(), one)) == {"PodMonitor"}
    asked = deployment(observability={"podMonitor": False})
    assert set(monitoring(asked, SETTINGS)) == {"PrometheusRule"}
    asked = deployment(observability={"prometheusRule": False})
    assert set(monitoring(asked, SETTINGS)) == {"PodMonitor"}


def test_prometheus_finds_them_by_the_labels_that_the_operator_is_told(deployment: Deploy) -> None:
    """And nothing else gets these: pods with other labels would be other pods."""
    told = {"release": "kps-7", labels.APP_PART_OF: "another"}
    for found in render(deployment(slo=SLO), replace(SETTINGS, monitoring_labels=told)):
        carried = found["metadata"]["labels"]
        assert carried[labels.APP_PART_OF] == "distserve", "ours stay ours"
        assert carried.get("release") == ("kps-7" if found["kind"] in KINDS else None)
        assert ("kps-7" in json.dumps(found)) == (found["kind"] in KINDS), found["kind"]


def test_every_metrics_port_is_scraped(deployment: Deploy) -> None:
    monitor = monitoring(deployment(), SETTINGS)["PodMonitor"]["spec"]
    scraped = {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]}
    ports = set()
    for found in render(deployment(), SETTINGS):
        if found["kind"] in ("StatefulSet", "Deployment"):
            template = found["spec"]["template"]
            assert (
                monitor["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
            )
            spec = template["spec"]
            for container in (*spec.get("initContainers", []), *spec["containers"]):
                ports |= {port["name"] for port in container["ports"]}
    assert scraped == ports - {"migrator"}


def test_rules_use_metrics_that_the_gateway_has(deployment: Deploy) -> None:
    registry = Metrics(Slo(ttft_ms=1, tpot_ms=1), 90).registry
    served = {s.name: s.labels for metric in registry.collect() for s in metric.samples}
    records = {rule["record"] for rule in rules(deployment(slo=SLO)) if "record" in rule}
    used = set()
    for rule in rules(deployment(slo=SLO)):
        for metric, matchers in re.findall(r"([a-z_:0-9]+)\{([^}]*)\}", rule["expr"]):
            used.add(metric)
            names = set(re.findall(r"(\w+)=", matchers)) - {"namespace", "pod", "deployment"}
            assert names <= ({"slo"} if metric in records else set(served[metric])), metric
    shown = "deployment:distserve_slo_attained:ratio_rate5m"
    assert used == {
        "distserve_slo_attained_total", "distserve_slo_judged_total", "distserve_requests_total",
        *(records - {shown}),
    }  # fmt: skip


def test_a_gateways_pods_are_chosen_and_no_others(deployment: Deploy) -> None:
    for rule in rules(deployment()):
        pattern = re.search(r'pod=~"([^"]*)"', rule["expr"])
        assert pattern and re.fullmatch(pattern[1], "opt-13b-gateway-6f9c5d7b8-x2k4q")
        assert not re.fullmatch(pattern[1], "opt-13b-u0-prefill-0-0")
        assert not re.fullmatch(pattern[1], "opt-13b-gateway-gateway-6f9c5d7b8-x2k4q")


def test_alerts_say_what_to_do(deployment: Deploy) -> None:
    alerts = [rule for rule in rules(deployment(slo=SLO)) if "alert" in rule]
    always = {"DistServeRequestsFailing", "DistServeGatewayAbsent"}
    assert {rule["alert"] for rule in alerts} == {"DistServeSloBurning", *always}
    for rule in alerts:
        notes = rule["annotations"]
        assert notes["summary"].startswith("llm/opt-13b: ")
        assert "opt-13b" in notes["description"]
        assert notes["runbook_url"].endswith(f"/{rule['alert']}.md")
        assert rule["labels"]["severity"] in ("warning", "critical")
    promising_nothing = {rule["alert"] for rule in rules(deployment())}
    assert promising_nothing == always, "without an SLO none is missed"
    unseen = rules(deployment(observability={"podMonitor": False}))
    assert {rule["alert"] for rule in unseen} == {"DistServeRequestsFailing"}


def test_alerts_link_to_where_the_operator_is_told_that_runbooks_are(deployment: Deploy) -> None:
    told = replace(SETTINGS, runbooks="https://wiki.example.com/runbooks/")
    (group,) = monitoring(deployment(slo=SLO), told)["PrometheusRule"]["spec"]["groups"]
    alerts = [rule for rule in group["rules"] if "alert" in rule]
    for alert in alerts:
        link = f"https://wiki.example.com/runbooks/{alert['alert']}.md"
        assert alert["annotations"]["runbook_url"] == link


def test_what_is_scraped_carries_the_pods_place(deployment: Deploy) -> None:
    """The dashboards group by these."""
    monitor = monitoring(deployment(), SETTINGS)["PodMonitor"]["spec"]
    engines = [o for o in render(deployment(), SETTINGS) if o["kind"] == "StatefulSet"]
    for found in engines:
        carried = found["spec"]["template"]["metadata"]["labels"]
        # The domain is known once the unit is placed.
        assert set(monitor["podTargetLabels"]) - {"distserve.io/domain"} <= set(carried)


def test_no_pod_fills_prometheus(deployment: Deploy) -> None:
    """The limits are far from what our processes serve: beyond them a target is down."""
    monitor = monitoring(deployment(), SETTINGS)["PodMonitor"]["spec"]
    registry = Metrics(Slo(ttft_ms=1, tpot_ms=1), 90).registry
    served = [sample for metric in registry.collect() for sample in metric.samples]
    assert monitor["sampleLimit"] >= 10 * len(served)
    target = len(monitor["podTargetLabels"]) + len(("job", "instance", "namespace", "pod"))
    assert monitor["labelLimit"] >= 3 * (target + max(len(one.labels) for one in served))
    assert monitor["labelValueLengthLimit"] >= 4 * 253, "pods have the longest names"
