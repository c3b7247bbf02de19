"""What the chart gives Grafana, and what its alerts link to."""

import json
from typing import Any

import pytest


@pytest.mark.parametrize(("when", "there"), [("Auto", True), ("Always", True), ("Never", False)])
def test_dashboards_where_monitors_are_served(render: Any, when: str, there: bool) -> None:
    values = {"monitoring": {"dashboards": when, "dashboardLabels": {"team": "serving"}}}
    served = ["monitoring.coreos.com/v1/PodMonitor"]
    found = render(values, served=served).all("ConfigMap")
    assert len(render(values).all("ConfigMap")) == (len(found) if when == "Always" else 0)
    assert len(found) == (5 if there else 0)
    for one in found:
        carried = one["metadata"]["labels"]
        assert (carried["grafana_dashboard"], carried["team"]) == ("1", "serving")
        ((name, text),) = one["data"].items()
        assert f"{json.loads(text)['uid']}.json" == name


def test_alerts_link_to_where_the_runbooks_are_published(render: Any) -> None:
    monitoring = {"prometheusRule": "Always", "runbookUrl": "https://wiki.example.com/runbooks/"}
    (group,) = render({"monitoring": monitoring}).one("PrometheusRule")["spec"]["groups"]
    for alert in group["rules"]:
        link = f"https://wiki.example.com/runbooks/{alert['alert']}.md"
        assert alert["annotations"]["runbook_url"] == link
