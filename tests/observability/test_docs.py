"""What docs/observability.md says is so."""

import re
from typing import Any

import yaml
from tools.cluster.cluster import CHECKOUT

from distserve.api.deployment import DistServeDeployment
from distserve.cli.log_level import VARIABLE
from distserve.cli.main import main
from distserve.observability.dashboards import DASHBOARDS
from distserve.observability.selecting import DEPLOYMENT
from distserve.resources.render import render
from distserve.resources.settings import RenderSettings, released_images

DOCS = CHECKOUT / "docs"
PAGE = (DOCS / "observability.md").read_text()


def test_dashboards_are_named() -> None:
    found = re.findall(r"^\| (DistServe / [^|]+) \|", PAGE, re.MULTILINE)
    assert found == [dashboard.title for dashboard in DASHBOARDS]


def test_every_dashboard_has_a_picture() -> None:
    named = {dashboard.uid.removeprefix("distserve-") for dashboard in DASHBOARDS}
    assert set(re.findall(r"\(images/dashboard-(\w+)\.png\)", PAGE)) == named
    assert {file.stem for file in (DOCS / "images").glob("dashboard-*.png")} == {
        f"dashboard-{name}" for name in named
    }


def test_every_runbook_is_linked_and_every_link_leads_somewhere() -> None:
    pages = [DOCS / "observability.md", *(DOCS / "runbooks").glob("*.md")]
    linked = set()
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+\.md)\)", page.read_text()):
            assert (page.parent / link).is_file(), (page, link)
            linked.add(link.removeprefix("runbooks/"))
    assert {page.name for page in (DOCS / "runbooks").glob("*.md")} <= linked


def test_runbooks_name_dashboards_and_panels_that_there_are() -> None:
    titles = {dashboard.title for dashboard in DASHBOARDS}
    titles |= {panel.title for dashboard in DASHBOARDS for panel in dashboard.panels}
    titles |= {row.title for dashboard in DASHBOARDS for row in dashboard.rows}
    for page in (DOCS / "runbooks").glob("*.md"):
        named = set(re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", page.read_text()))
        assert named <= titles, page


def test_the_charts_values_are_named() -> None:
    monitoring = yaml.safe_load((CHECKOUT / "charts/distserve/values.yaml").read_text())
    named = set(re.findall(r"monitoring\.(\w+)", PAGE))
    assert named and named <= monitoring["monitoring"].keys()


def test_the_command_is_taken(tmp_path: Any, monkeypatch: Any) -> None:
    (command,) = re.findall(r"^distserve (observability .*)$", PAGE, re.MULTILINE)
    sample = (CHECKOUT / "manifests/samples/tiny-cpu.yaml").read_text()
    (tmp_path / "deployment.yaml").write_text(sample)
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 0
    for file in re.findall(r"`(pack/[a-z./]+)`", PAGE):
        assert (tmp_path / file).is_file(), file


def test_the_log_level_reaches_the_containers() -> None:
    (block,) = re.findall(r"```yaml\n(spec:\n.*?)```", PAGE, re.DOTALL)
    document = yaml.safe_load((CHECKOUT / "manifests/samples/tiny-cpu.yaml").read_text())
    for section, said in yaml.safe_load(block)["spec"].items():
        document["spec"][section] = document["spec"].get(section, {}) | said
    objects = render(
        DistServeDeployment.model_validate(document), RenderSettings(released_images())
    )
    pods = [one["spec"]["template"]["spec"] for one in objects if "template" in one.get("spec", {})]
    found = {
        container["name"]: entry["value"]
        for pod in pods
        for container in (*pod.get("initContainers", []), *pod["containers"])
        for entry in container.get("env", [])
        if entry["name"] == VARIABLE
    }
    assert found == dict.fromkeys(("gateway", "engine", "kv-migrator"), "debug")


def test_an_autoscaler_is_shown_the_queue_of_its_own_deployment_alone() -> None:
    """Of an external metric all series of the namespace are added up that the selector matches."""
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS / "operate.md").read_text(), re.DOTALL)
    found = [yaml.safe_load(block) for block in blocks if "type: External" in block]
    for autoscaler in found:
        name = autoscaler["spec"]["scaleTargetRef"]["name"]
        for metric in autoscaler["spec"]["metrics"]:
            assert metric["external"]["metric"]["selector"]["matchLabels"] == {DEPLOYMENT: name}
    assert found
