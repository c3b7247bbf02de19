"""What helm tells whoever installs the chart."""

from typing import Any

import pytest
import yaml
from tools.chart.rendering import CHART, NAMESPACE, RELEASE, helm

IMAGES = ("operator", "engine", "migrator", "gateway")
DIGEST = "sha256:" + "0" * 64


def notes(values: dict[str, Any] | None = None) -> str:
    flags = ("--dry-run=client", f"--namespace={NAMESPACE}", "--values=-")
    said = helm("install", RELEASE, str(CHART), *flags, stdin=yaml.safe_dump(values or {}))
    return said.partition("\nNOTES:\n")[2]


@pytest.mark.parametrize(
    ("images", "warns"),
    [
        ({}, True),
        ({"tag": "mine"}, True),
        ({"registry": "registry.example.com"}, False),
        ({"operator": {"repository": "registry.example.com/operator"}}, True),
        ({"operator": {"digest": DIGEST}}, True),
        ({name: {"digest": DIGEST} for name in IMAGES}, False),
        ({name: {"repository": f"registry.example.com/{name}"} for name in IMAGES}, False),
    ],
    ids=str,
)
def test_images_of_a_public_name_are_warned_of(images: dict[str, Any], warns: bool) -> None:
    said = notes({"images": images})
    assert "kubectl wait dsd/tiny" in said
    assert ("docker.io/distserve" in said) is warns


@pytest.mark.parametrize(
    ("values", "asks"),
    [
        ({}, False),
        ({"monitoring": {"podMonitor": "Always"}}, True),
        ({"monitoring": {"podMonitor": "Always"}, "networkPolicy": {"enabled": False}}, False),
    ],
    ids=str,
)
def test_prometheus_is_let_in(values: dict[str, Any], asks: bool) -> None:
    assert ("distserve.io/scrape=true" in notes(values)) is asks
