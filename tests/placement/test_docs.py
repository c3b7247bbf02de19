"""What docs/placement.md shows works."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from distserve.api.conditions import PlacedReason
from distserve.api.topology import Topology
from distserve.cli.main import main
from distserve.placement import Reason

TEXT = (Path(__file__).parents[2] / "docs/placement.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    assert found
    return found[1]


def test_the_topology_is_one() -> None:
    assert Topology.model_validate(yaml.safe_load(block("yaml"))["topology"]).preset == "NVIDIA"


def test_the_command_prints_a_tree(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fabric: Callable[..., list[Any]],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nodes.yaml").write_text(yaml.safe_dump({"kind": "List", "items": fabric()}))
    (tmp_path / "pods.yaml").write_text(yaml.safe_dump({"kind": "List", "items": []}))
    (command,) = [line for line in block("sh").splitlines() if line.startswith("distserve")]
    assert main(shlex.split(command)[1:]) == 0
    assert "nvlink c0" in capsys.readouterr().out


def test_every_reason_is_explained() -> None:
    others = {PlacedReason.PROVISIONING, PlacedReason.PROVISIONING_TIMED_OUT}
    said = TEXT.partition("## What a waiting unit says")[2]
    assert set(re.findall(r"^\| `([A-Z]\w+)` \|", said, re.MULTILINE)) == {*Reason, *others}
