"""What the chart gives Grafana, and what its alerts link to."""

import argparse
import json
from typing import Any

import pytest

from distserve.cli import operator as command


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


def test_the_operator_is_told_where_they_are_published(render: Any) -> None:
    """For the alerts of deployments, which it renders itself."""
    told = render({"monitoring": {"runbookUrl": "https://wiki.example.com/runbooks"}}).container
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args(told["args"])
    assert command.render_settings(args).runbooks == "https://wiki.example.com/runbooks"
    untold = command.render_settings(parser.parse_args(render().container["args"]))
    assert untold.runbooks == "docs/runbooks"
