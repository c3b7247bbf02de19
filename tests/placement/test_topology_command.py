"""`distserve topology`: the tree that a user reads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from distserve.cli.main import main

Make = Callable[..., Any]
GPU = "nvidia.com/gpu"


@pytest.fixture
def files(tmp_path: Path, fabric: Make, node: Make, pod: Make) -> dict[str, str]:
    """Two cliques in one zone, one cordoned node, one node without labels."""
    nodes = fabric(domains=2)
    nodes[1]["spec"]["unschedulable"] = True
    nodes.append(node("lone", 0, ready=False))
    found = {}
    for kind, items in (("Node", nodes), ("Pod", [pod("x", "n1-0", {GPU: 3})])):
        path = tmp_path / f"{kind}.yaml"
        items = [{"apiVersion": "v1", "kind": kind, **one} for one in items]
        path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": items}))
        found[kind] = str(path)
    return found


def test_the_tree_has_what_is_free_in_each_domain(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["topology", "--nodes", files["Node"], "--pods", files["Pod"]]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "DOMAIN         NODES  FREE nvidia.com/gpu  NOTES",
        "zone z0        4      21/32",
        "  nvlink c0    2      8/16",
        "    node n0-0         8/8",
        "    node n0-1         0/8                  cordoned",
        "  nvlink c1    2      13/16",
        "    node n1-0         5/8",
        "    node n1-1         8/8",
        "node lone             0/0                  not ready",
    ]
    assert err == ""


def test_json_has_base_units_and_says_what_was_not_read(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    level = "rack=topology.kubernetes.io/rack"
    command = ["topology", "--nodes", files["Node"], "--level", level, "--output", "json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["notes"] == ["everything counts as free without --pods"]
    assert [one["level"] for one in found["domains"]] == ["node"] * 5
    assert found["domains"][-1]["free"]["cpu"] == 64


def test_a_preset_is_one_of_the_resources(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["topology", "--nodes", files["Node"], "--preset", "topograph"]) == 0
    assert "  leaf l0" in capsys.readouterr().out
    assert main(["topology", "--nodes", files["Node"], "--preset", "Acme"]) == 2
    assert "there are NVIDIA, AWS" in capsys.readouterr().err


def test_levels_that_do_not_nest_are_told(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    levels = ("zone=topology.kubernetes.io/zone", "nvlink=nvidia.com/gpu.clique")
    command = ["topology", "--nodes", files["Node"], "--pods", files["Pod"]]
    assert main([*command, *(word for level in levels for word in ("--level", level))]) == 0
    assert "note: zone z0 lies in 2 domains of nvlink: c0, c1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nodes", "/missing"], "/missing: No such file"),
        (["--level", "nvlink"], "write NAME=LABEL"),
        (["--level", "a=x", "--level", "a=y"], "two --level have one name"),
        (["--level", "a=x", "--preset", "AWS"], "give --level, or --preset"),
        (["--pods", "x"], "--pods goes with --nodes"),
        (["--nodes", "x", "--kubeconfig", "y"], "give one of them"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["topology", *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "neither YAML nor JSON"),
        ("{", "neither YAML nor JSON"),
        ("kind: Service", "has no Node, but Service"),
        ("kind: Node", "has no 'metadata'"),
        (
            "{kind: Node, metadata: {name: a}, status: {allocatable: {cpu: x}}}",
            "'x' is no quantity",
        ),
    ],
)
def test_a_file_that_is_something_else_is_one_line(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "nodes.yaml"
    file.write_text(text)
    assert main(["topology", "--nodes", str(file)]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_devices_that_drivers_offer_are_counted_by_class(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expression = "device.driver == 'gpu.nvidia.com'"
    pool = {"name": "n0-0", "generation": 1, "resourceSliceCount": 1}
    slices = {"driver": "gpu.nvidia.com", "nodeName": "n0-0", "pool": pool}
    result = {"request": "x", "driver": "gpu.nvidia.com", "pool": "n0-0", "device": "gpu-0"}
    items = [
        {
            "kind": "DeviceClass",
            "metadata": {"name": "gpus"},
            "spec": {"selectors": [{"cel": {"expression": expression}}]},
        },
        {
            "kind": "DeviceClass",
            "metadata": {"name": "odd"},
            "spec": {"selectors": [{"cel": {"expression": "device.unknown()"}}]},
        },
        {
            "kind": "ResourceSlice",
            "metadata": {"name": "s"},
            "spec": {**slices, "devices": [{"name": f"gpu-{n}"} for n in range(4)]},
        },
        {
            "kind": "ResourceClaim",
            "metadata": {"name": "c", "namespace": "llm", "uid": "c"},
            "spec": {},
            "status": {"allocation": {"devices": {"results": [result]}}},
        },
    ]
    path = tmp_path / "devices.yaml"
    path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": items}))
    command = ["topology", "--nodes", files["Node"], "--pods", files["Pod"]]
    assert main([*command, "--devices", str(path)]) == 0
    out, err = capsys.readouterr()
    head, *_, node = [line for line in out.splitlines() if "DOMAIN" in line or "n0-0" in line]
    assert "FREE deviceclass.resource.kubernetes.io/gpus" in head
    assert "3/4" in node
    assert "DeviceClass odd counts every device" in err
    path.write_text("{kind: ResourceSlice, metadata: {name: x}}")
    assert main([*command, "--devices", str(path)]) == 2
    assert "a ResourceSlice has no 'spec'" in capsys.readouterr().err
