"""What the operator holds in memory of a large cluster; printed beside its aim."""

import json
import subprocess
import sys

import pytest
from tools.cluster.cluster import CHECKOUT

SAMPLE = CHECKOUT / "manifests" / "samples" / "tiny-cpu.yaml"

FILLS = """
import json, uuid
from pathlib import Path

import yaml
import distserve.operator.process  # With all that the process loads.
from distserve.api.deployment import DistServeDeployment
from distserve.operator.decide import DecideSettings
from distserve.operator.kinds import DEPLOYMENTS, NODES, PODS, kind_of
from distserve.operator.store import Store
from distserve.resources.render import render
from distserve.resources.settings import RenderSettings, released_images

NODES_COUNT, DEPLOYMENTS_COUNT, UNITS_EACH = 1000, 25, 20
store, serial = Store(), 0


def served(found, **more):
    global serial
    serial += 1
    times = {"uid": str(uuid.uuid4()), "resourceVersion": str(serial),
             "creationTimestamp": "2026-01-02T03:04:05Z"}
    return json.loads(json.dumps({**found, "metadata": {**found["metadata"], **times}, **more}))


for at in range(NODES_COUNT):
    labels = {f"feature.node.kubernetes.io/cpu-{n}": f"value-{n}" for n in range(80)}
    labels |= {"kubernetes.io/hostname": f"gpu-{at}", "nvidia.com/gpu.clique": f"c{at // 4}"}
    room = {"cpu": "192", "memory": "2Ti", "pods": "110", "nvidia.com/gpu": "8"}
    ready = [{"type": "Ready", "status": "True"}]
    images = [{"names": [f"registry/image-{n}@sha256:{'0' * 64}"]} for n in range(50)]
    status = {"allocatable": room, "capacity": room, "conditions": ready, "images": images}
    node = {"metadata": {"name": f"gpu-{at}", "labels": labels}, "spec": {}, "status": status}
    store.put(NODES, served(node))
sample = yaml.safe_load(Path(SAMPLE).read_text())
pods = 0
for number in range(DEPLOYMENTS_COUNT):
    sample["metadata"] |= {"name": f"large-{number}", "namespace": "llm"}
    sample["spec"] |= {"units": UNITS_EACH}
    live = served(sample)
    store.put(DEPLOYMENTS, live)
    sample["metadata"]["uid"] = live["metadata"]["uid"]
    deployment = DistServeDeployment.model_validate(sample)
    for found in render(deployment, RenderSettings(released_images())):
        if found["kind"] == "Secret":
            continue
        live = served(found)
        store.put(kind_of(found["apiVersion"], found["kind"]), live)
        if found["kind"] == "StatefulSet":
            template, name = found["spec"]["template"], found["metadata"]["name"]
            spec = {**template["spec"], "nodeName": f"gpu-{pods % NODES_COUNT}"}
            names = {**template["metadata"], "name": f"{name}-0", "namespace": "llm"}
            status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
            store.put(PODS, served({"metadata": names, "spec": spec, "status": status}))
            pods += 1
memory = {}
for line in Path("/proc/self/status").read_text().splitlines():
    name, _, value = line.partition(":")
    if name in ("VmRSS", "VmHWM"):
        memory[name] = int(value.split()[0]) / 1024
kept = sum(len(store.observe(key, 0.0).children) for key in store.keys)
print(json.dumps({"pods": pods, "children": kept, **memory}))
"""


def test_memory_of_a_thousand_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    """What its watches fill; kopf's and the client's buffers come to that while it lists."""
    code = f"SAMPLE = {str(SAMPLE)!r}\n{FILLS}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pods"] == 1000 and found["children"] > 1500
    with capsys.disabled():
        print(
            f"\n1000 nodes, 500 units of 2 pods, {found['children']} objects: "
            f"{found['VmRSS']:.0f} MB resident, at most {found['VmHWM']:.0f} (aim: 300)"
        )
