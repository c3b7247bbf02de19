"""What is copied or rendered from something else in the checkout is equal to it."""

import tomllib
from pathlib import Path

import pytest
import yaml
from tools.chart import __main__ as chart
from tools.chart.rendering import CHART, CHECKOUT

from distserve.cli.crd import CHART_CRD_FILE, CRD_FILE


def test_everything_is_up_to_date(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["chart", "--check"])
    code = chart.main()
    assert (code, capsys.readouterr().err) == (0, "")


def test_what_differs_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stale: dict[Path, str] = {path: text + "#" for path, text in chart.generated_files().items()}
    monkeypatch.setattr(chart, "generated_files", lambda: stale)
    monkeypatch.setattr("sys.argv", ["chart", "--check"])
    assert chart.main() == 1
    said = capsys.readouterr().err
    assert "manifests/distserve.yaml differs: run `make manifests`" in said
    assert "charts/distserve/files/sample.yaml differs" in said


def test_the_charts_crd_is_the_projects() -> None:
    assert (CHECKOUT / CHART_CRD_FILE).read_text() == (CHECKOUT / CRD_FILE).read_text()


def test_versions_agree() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert about["appVersion"] == about["version"] == project["version"]
