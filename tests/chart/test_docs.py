"""What the documentation tells to type is taken by helm and by the chart."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from tools.chart.rendering import CHART, CHECKOUT, NAMESPACE, RELEASE, helm, template

PAGES = [CHECKOUT / "docs" / name for name in ("install.md", "operate.md")]
ONLY_WITH_A_CLUSTER = {
    "--wait", "--create-namespace", "--reset-then-reuse-values", "--take-ownership",
    "--force-conflicts", "--install",
}  # fmt: skip


def commands() -> list[list[str]]:
    """Lines that begin with helm and name the chart."""
    blocks = [block for page in PAGES for block in _blocks(page)]
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(one) for one in lines if re.match("helm .*charts/distserve", one)]


def settings() -> list[str]:
    """Every --set that the pages mention."""
    return re.findall(r"--set ('[^']+'|[^\s`]+)", "\n".join(page.read_text() for page in PAGES))


def _blocks(page: Path) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_are_taken(words: list[str]) -> None:
    known = helm(words[1], "--help")
    for flag in (word for word in words if word.startswith("--")):
        assert flag in known
    kept = [word for word in words[2:] if word not in ONLY_WITH_A_CLUSTER]
    rendered = helm("template", *[str(CHART) if w == "charts/distserve" else w for w in kept])
    assert rendered == template(tests=True)
    assert RELEASE in words
    assert f"--namespace {NAMESPACE}" in " ".join(words)


@pytest.mark.parametrize("setting", settings())
def test_settings_are_values(setting: str) -> None:
    written = shlex.split(setting.replace("sha256:...", "sha256:" + "0" * 64))
    rendered = helm("template", RELEASE, str(CHART), "--set", *written)
    assert rendered != helm("template", RELEASE, str(CHART)), "it has an effect"


def test_alerts_are_explained() -> None:
    names = re.findall(r"alert: (\w+)", template({"monitoring": {"prometheusRule": "Always"}}))
    page = (CHECKOUT / "docs" / "operate.md").read_text()
    assert names
    assert re.findall(r"^\| (DistServe\w+) \|", page, re.MULTILINE) == names


def test_registry_and_tag_of_the_manifest_are_replaced() -> None:
    (command,) = re.findall(r"^(sed .*) \| kubectl", PAGES[0].read_text(), re.MULTILINE)
    answer = subprocess.run(
        ["bash", "-c", f"tag=mine; {command}"], cwd=CHECKOUT, capture_output=True, text=True,
        check=True, timeout=60,
    )  # fmt: skip
    before = (CHECKOUT / "manifests" / "distserve.yaml").read_text()
    named = re.findall(r'"distserve/(\w+):', before)
    assert len(named) == 4
    assert re.findall(r'"registry.example.com/distserve/(\w+):mine"', answer.stdout) == named
    assert '"distserve/' not in answer.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_are_there(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert "://" in link or (page.parent / link).exists(), link
    for file in re.findall(r"-f ((?:manifests|crds)/\S*)", text):
        assert (CHECKOUT / file.rstrip("`")).exists(), file
