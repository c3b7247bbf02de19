"""The dashboards as files: what Grafana's types say, what metrics there are, what is written."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.models.dashboard import Dashboard as GrafanaDashboard
from grafana_foundation_sdk.models.dashboard import Panel as GrafanaPanel
from prometheus_client import CollectorRegistry

from distserve.api import labels
from distserve.observability.dashboards import DASHBOARDS
from distserve.observability.pack import dashboard_files, prometheus_file
from distserve.observability.panels import Dashboard, Form
from distserve.observability.selecting import METRICS_PORTS, TARGET_LABELS, prometheus_name

SAMPLE = Path(__file__).parents[2] / "manifests" / "samples" / "tiny-cpu.yaml"
TARGET = {"namespace", "pod", *map(prometheus_name, TARGET_LABELS)}


def observability(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "distserve.cli.main", "observability", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda d: d.uid)
def test_grafanas_types_read_it_and_say_the_same(dashboard: Dashboard) -> None:
    (text,) = [text for name, text in dashboard_files().items() if name.stem == dashboard.uid]
    document = json.loads(text)
    read = GrafanaDashboard.from_json(document)
    assert (read.uid, read.title) == (dashboard.uid, dashboard.title)
    panels = [panel for panel in read.panels or [] if isinstance(panel, GrafanaPanel)]
    assert [panel.title for panel in panels] == [panel.title for panel in dashboard.panels]
    shown = {variable.name for variable in read.templating.list_val or []}
    used = set(re.findall(r"\$\{?(\w+)", text)) - {"__rate_interval", "__range"}
    assert used == shown, "what is chosen is used, what is used can be chosen"


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda d: d.uid)
def test_panels_lie_beside_one_another(dashboard: Dashboard) -> None:
    (text,) = [text for name, text in dashboard_files().items() if name.stem == dashboard.uid]
    panels = json.loads(text)["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    numbers = [panel["id"] for panel in panels]
    assert len(set(numbers)) == len(numbers) and 0 not in numbers
    assert len(taken) == 24 * len({y for _, y in taken}), "no panel stands alone in its line"


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda d: d.uid)
def test_lines_can_be_told_apart(dashboard: Dashboard) -> None:
    for panel in dashboard.panels:
        legends = [query.legend for query in panel.queries]
        assert len(set(legends)) == len(legends), panel.title
        assert panel.form is Form.NUMBER or all(legends), panel.title
        for query in panel.queries:
            kept = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
            assert all(label in query.expression for label in kept), panel.title


def test_metrics_and_their_labels_are_those_of_the_processes(
    registries: list[CollectorRegistry],
) -> None:
    served: dict[str, set[str]] = {}
    for registry in registries:
        for family in registry.collect():
            for sample in family.samples:
                served.setdefault(sample.name, set()).update(sample.labels)
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            for query in panel.queries:
                found = re.findall(r"(distserve_[a-z_]+)\{([^}]*)\}", query.expression)
                assert found, query.expression
                for metric, matchers in found:
                    names = set(re.findall(r"(\w+)=", matchers))
                    assert names - TARGET <= served[metric], (panel.title, metric)


def test_scraping_keeps_our_pods_and_names_their_labels() -> None:
    (job,) = yaml.safe_load(prometheus_file())["scrape_configs"]
    rules: list[dict[str, Any]] = job["relabel_configs"]
    kept = {rule["source_labels"][0]: rule["regex"] for rule in rules if "regex" in rule}
    part_of = prometheus_name(labels.APP_PART_OF)
    assert kept == {
        f"__meta_kubernetes_pod_label_{part_of}": "distserve",
        "__meta_kubernetes_pod_container_port_name": "|".join(METRICS_PORTS),
    }
    assert {rule["target_label"] for rule in rules if "target_label" in rule} == TARGET


def test_the_verb_writes_the_pack(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "pack"
    answer = observability(f"--output-dir={folder}", f"--file={SAMPLE}", "--runbook-url=https://r/")
    assert answer.returncode == 0, answer.stderr
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert written == {
        *(f"dashboards/{dashboard.uid}.json" for dashboard in DASHBOARDS),
        "rules/operator.yaml",
        "rules/default.tiny.yaml",
        "prometheus.yaml",
    }
    assert {Path(line).relative_to(folder).as_posix() for line in answer.stdout.split()} == written
    rules = yaml.safe_load((folder / "rules/default.tiny.yaml").read_text())
    alerts = [rule for rule in rules["groups"][0]["rules"] if "alert" in rule]
    assert alerts
    for rule in alerts:
        assert rule["annotations"]["runbook_url"] == f"https://r/{rule['alert']}.md"


def test_runbooks_that_nobody_publishes_are_the_checkouts(tmp_path: Path) -> None:
    assert observability(f"--output-dir={tmp_path}", "--runbook-url=").returncode == 0
    rules = yaml.safe_load((tmp_path / "rules/operator.yaml").read_text())["groups"][0]["rules"]
    found = {rule["annotations"]["runbook_url"] for rule in rules}
    assert found == {f"docs/runbooks/{rule['alert']}.md" for rule in rules}


def test_prometheus_takes_the_pack(tmp_path: Path, promtool: Any) -> None:
    assert observability(f"--output-dir={tmp_path}", f"--file={SAMPLE}").returncode == 0
    config = yaml.safe_load((tmp_path / "prometheus.yaml").read_text())
    (job,) = config["scrape_configs"]
    # Debian's Prometheus is built without discovery in Kubernetes; the rest is checked.
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    promtool("check", "config", "prometheus.yaml")
    promtool("check", "rules", "rules/operator.yaml", "rules/default.tiny.yaml")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "--output-dir"),
        (("--output-dir=/proc/nothing",), "--output-dir /proc/nothing"),
        (("--output-dir=/tmp", "--file=nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_mistakes_are_one_line(flags: tuple[str, ...], said: str) -> None:
    answer = observability(*flags)
    assert answer.returncode == 2
    (line,) = answer.stderr.splitlines()
    assert said in line


def test_without_grafanas_package_the_cure_is_said(tmp_path: Path) -> None:
    program = "import sys; sys.modules['grafana_foundation_sdk'] = None\n"
    program += "from distserve.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "observability", f"--output-dir={tmp_path}"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 2
    (line,) = answer.stderr.splitlines()
    assert "pip install '.[observability]'" in line
