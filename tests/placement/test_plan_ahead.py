"""`distserve plan` on a cluster's nodes: what goes where, in which steps, and whether it fits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.placement.gpu_cluster import CLIQUE, GPU, Object, busy, gpu_node, gpu_nodes
from tools.cluster.cluster import CHECKOUT, Cluster

from distserve.api.deployment import DistServeDeployment
from distserve.api.loading import parse_deployment
from distserve.cli.main import main
from distserve.cli.plan_ahead import look_ahead
from distserve.cli.surroundings import Around
from distserve.operator.ahead import Act, Standing
from distserve.operator.requests import unit_request
from distserve.placement.inventory import inventory_of
from distserve.planner.machine import Machine
from distserve.resources.revisions import make_revision, to_object
from distserve.resources.settings import RenderSettings, released_images


def deployment(prefill: int = 2, decode: int = 2, tensor: int = 4, **spec: Any) -> Object:
    def role(instances: int) -> Object:
        return {"instancesPerUnit": instances, "parallelism": {"tensor": tensor}}

    return {
        "apiVersion": "distserve.io/v1alpha1",
        "kind": "DistServeDeployment",
        "metadata": {"name": "opt", "namespace": "llm"},
        "spec": {
            "model": {"id": "tiny", "source": {"builtin": "tiny"}},
            "strategy": {"name": "Disaggregated"},
            "slo": {"ttft": "2s", "tpot": "500ms"},
            "prefill": role(prefill),
            "decode": role(decode),
            "topology": {"preset": "NVIDIA", "packWithin": "nvlink"},
            **spec,
        },
    }


Plan = Callable[..., tuple[int, Object, str]]


@pytest.fixture
def plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Plan:
    """plan(deployment, nodes=[...]) -> exit code, `placement` of its JSON, stderr."""

    def run(document: Object, *flags: str, **files: list[Object]) -> tuple[int, Object, str]:
        (tmp_path / "deployment.yaml").write_text(json.dumps(document))
        command = ["plan", "-f", str(tmp_path / "deployment.yaml"), "--output", "json", *flags]
        for name, items in files.items():
            (tmp_path / name).write_text(json.dumps({"items": items}))
            command += [f"--{name}", str(tmp_path / name)]
        code = main(command)
        said = capsys.readouterr()
        found = json.loads(said.out).get("placement", {}) if said.out else {}
        return code, found, said.err

    return run


def test_each_unit_gets_a_domain_and_nodes(plan: Plan) -> None:
    code, found, _ = plan(deployment(units=2), nodes=gpu_nodes(3), pods=[busy("gpu-00", 1)])
    assert code == 0 and found["fits"] and "notes" not in found
    assert [(m["step"], m["act"], m["unit"]) for m in found["moves"]] == [
        (1, "create", "u0"), (1, "create", "u1"),
    ]  # fmt: skip
    names = [move["domain"] for move in found["moves"]]
    assert names == [{"level": "nvlink", "name": "c1"}, {"level": "nvlink", "name": "c2"}]
    assert set(found["moves"][0]["nodes"].values()) == {"gpu-10", "gpu-11"}


def test_what_does_not_fit_is_said_with_exit_3(plan: Plan) -> None:
    code, found, said = plan(deployment(units=2), nodes=gpu_nodes(2), pods=[busy("gpu-00", 1)])
    assert code == 3 and not found["fits"]
    fits = {move["unit"]: move["fits"] for move in found["moves"]}
    assert sorted(fits.values()) == [False, True]
    assert "NoRoom" in said and f"needs 16 {GPU} in one nvlink domain" in said
    assert "roomiest of 2 (c0) has 15 free" in said and said.count("\n") == 1


def test_a_unit_larger_than_any_domain_comes_with_one_that_fits(plan: Plan) -> None:
    asked = deployment(prefill=2, decode=4, units=2)
    code, found, said = plan(asked, nodes=gpu_nodes(4), pods=[])
    assert code == 3 and {move["reason"] for move in found["moves"]} == {"UnitLargerThanDomain"}
    assert "roomiest of 4 (c0) has 16 when empty" in said
    assert found["proposal"] == (
        "This would fit: prefill.instancesPerUnit: 1, decode.instancesPerUnit: 2, "
        "units: 4 (12 accelerators a unit); or topology.packWithin: zone"
    )
    # What it proposes does fit.
    assert plan(deployment(prefill=1, decode=2, units=4), nodes=gpu_nodes(4), pods=[])[0] == 0
    wide = {"preset": "NVIDIA", "packWithin": "zone"}
    assert plan({**asked, "spec": asked["spec"] | {"topology": wide}}, nodes=gpu_nodes(4))[0] == 0


def test_preferred_says_that_it_would_be_wider(plan: Plan) -> None:
    topology = {"preset": "NVIDIA", "packWithin": "nvlink", "enforcement": "Preferred"}
    pods = [busy(f"gpu-{d}0", 4) for d in range(3)]
    code, found, _ = plan(deployment(topology=topology), nodes=gpu_nodes(3), pods=pods)
    (move,) = found["moves"]
    assert code == 0 and move["fits"] and move["domain"]["level"] == "zone"
    assert "after topology.relaxAfter" in move["message"]


def test_quota_of_a_queue_is_not_looked_at(plan: Plan) -> None:
    topology = {"preset": "NVIDIA", "packWithin": "nvlink"}
    queued = deployment(topology=topology | {"scheduler": "Kueue"})
    queued["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "gpus"}
    code, found, _ = plan(queued, nodes=gpu_nodes(1), pods=[])
    assert code == 0 and found["fits"]
    assert found["notes"] == ["quota is not looked at: Kueue lets units in by its own"]
    alone = deployment(topology=topology | {"scheduler": "GangScheduling"})
    assert "notes" not in plan(alone, nodes=gpu_nodes(1), pods=[])[1]


def test_the_table_has_a_line_a_move(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(deployment(), nodes=gpu_nodes(1))
    files = ("-f", str(tmp_path / "deployment.yaml"), "--nodes", str(tmp_path / "nodes"))
    assert main(["plan", *files]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[1].split() == [
        "1", "create", "u0", "yes", "nvlink", "c0", "gpu-00", "(2),", "gpu-01", "(2)",
    ]  # fmt: skip
    assert "without --pods" in said.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--pods", "x"), "--pods goes with --nodes"),
        (("--kubeconfig", "x"), "--kubeconfig goes with --cluster"),
        (("--prefill-tp", "2", "--nodes", "nodes"), "--prefill-tp has no effect"),
        (("--estimate", "--nodes", "nodes"), "--estimate has no effect"),
        (("--nodes", "missing"), "missing: No such file"),
    ],
)
def test_mistakes_are_one_line(
    plan: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nodes").write_text(json.dumps({"items": gpu_nodes(1)}))
    code, _, said = plan(deployment(), *flags)
    assert code == 2 and message in said and said.count("\n") == 1


def test_planned_units_fit_a_domain() -> None:
    """Six nodes of 4 in three domains: a unit of 12 would fit the cluster, but no domain."""
    parts = {4: 3}
    assert Machine([4] * 6, high_affinity=True).scattered(parts) == 2
    within = Machine([4] * 6, high_affinity=True, domains=[[4, 4]] * 3)
    assert within.scattered(parts) == 0
    assert within.scattered({4: 2}) == 3
    assert within.scattered({4: 1, 2: 1}) == 3


def test_a_plan_across_nodes_stays_inside_a_domain(plan: Plan) -> None:
    """Nodes of one accelerator, a clique each: a pair fits the cluster, and no clique."""
    load = {
        "requestsPerSecond": "1",
        "lengths": {"promptTokens": {"mean": 300, "p90": 600},
                    "outputTokens": {"mean": 50, "p90": 100}},
    }  # fmt: skip
    asked = deployment(
        model={"id": "facebook/opt-13b", "source": {"hostPath": "/models"}, "maxModelLen": 2048},
        slo={"ttft": "1s", "tpot": "200ms", "attainmentPercent": 90},
        workload=load,
        planning={"mode": "Auto", "hardwareProfile": "a100-80g"},
    )
    asked["spec"] |= {"prefill": {}, "decode": {}}
    nodes = [gpu_node(domain, 0, gpus=1) for domain in range(4)]
    code, _, said = plan(asked, "--is-high-affinity", nodes=nodes)
    assert code == 3 and "does not fit" in said
    asked["spec"]["topology"]["packWithin"] = "zone"
    code, found, _ = plan(asked, "--is-high-affinity", nodes=nodes)
    assert code == 0 and len(set(found["moves"][0]["nodes"].values())) == 2


def test_a_plan_leaves_out_nodes_that_its_pods_may_not_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a node of A100s and three of T4s, for pods that go to A100s alone; one more is ill."""
    monkeypatch.setattr("distserve.planner.plan.SEARCH_REQUESTS", 80)
    monkeypatch.setattr("distserve.planner.plan.FORECAST_REQUESTS", 150)
    template = {"podTemplate": {"spec": {"nodeSelector": {"gpu": "a100"}}}}
    asked = deployment(
        model={"id": "facebook/opt-13b", "source": {"hostPath": "/models"}, "maxModelLen": 2048},
        workload={
            "lengths": {"promptTokens": {"mean": 300, "p90": 600},
                        "outputTokens": {"mean": 50, "p90": 100}},
        },
        planning={"mode": "Auto", "hardwareProfile": "a100-80g"},
    )  # fmt: skip
    asked["spec"] |= {"prefill": template, "decode": template}
    nodes = [gpu_node(0, index, gpus=2) for index in range(5)]
    for index, node in enumerate(nodes):
        node["metadata"]["labels"]["gpu"] = "a100" if index < 2 else "t4"
    nodes[1]["status"]["conditions"] = [{"type": "Ready", "status": "Unknown"}]

    def plan(*flags: str) -> tuple[int, str, str]:
        (tmp_path / "deployment.yaml").write_text(json.dumps(asked))
        (tmp_path / "nodes").write_text(json.dumps({"items": nodes}))
        files = ["-f", str(tmp_path / "deployment.yaml"), "--nodes", str(tmp_path / "nodes")]
        return (main(["plan", *files, "--output", "json", *flags]), *capsys.readouterr())

    code, out, said = plan()
    assert code == 0, said
    found = json.loads(out)
    assert found["accelerators"] == 2 and found["placement"]["fits"]
    nodes[0]["spec"]["unschedulable"] = True
    code, out, said = plan()
    assert (code, out, said.count("\n")) == (2, "", 1)
    assert f"none of the 5 nodes that offer {GPU} (3 without the label gpu=a100, 1" in said
    # In two domains an A100 each, for units of two: the T4s beside one of them do not help.
    nodes[:2] = [gpu_node(0, 0, gpus=1), gpu_node(1, 0, gpus=1)]
    for node in nodes[:2]:
        node["metadata"]["labels"]["gpu"] = "a100"
    code, _, said = plan("--is-high-affinity")
    assert code == 3 and "does not fit" in said


def test_new_units_of_a_paused_deployment_are_as_the_others() -> None:
    def parsed(**changes: Any) -> DistServeDeployment:
        return parse_deployment(deployment(prefill=1, **changes), "test")

    before = parsed(decode=1)
    had = make_revision(before, RenderSettings(released_images()))
    u0 = unit_request(before, "u0", had, 0.0)
    for paused, decodes in ((True, 1), (False, 2)):
        inventory = inventory_of(gpu_nodes(2))
        inventory.reserve(u0, dict.fromkeys(u0.pod_names, "gpu-00"))
        standing = {0: Standing(u0.id, had.name, None, frozenset(u0.pod_names))}
        around = Around(inventory, standing, [to_object(before, had)], had.name)
        after = parsed(decode=2, units=2, rollout={"paused": paused})
        moves = look_ahead(after, around, 0.0).course.moves
        (new,) = [move for move in moves if move.unit == "u1"]
        pods = {"opt-u1-prefill-0-0"} | {f"opt-u1-decode-{index}-0" for index in range(decodes)}
        assert new.act is Act.CREATE and new.nodes.keys() == pods
        assert (Act.REPLACE in {move.act for move in moves}) is not paused


def test_cpus_are_counted_by_no_node(plan: Plan, tmp_path: Path) -> None:
    """As in the operator: maxAccelerators says how many ranks there may be."""
    asked = deployment(
        accelerator={"type": "CPU"},
        workload={
            "requestsPerSecond": "1",
            "lengths": {"promptTokens": {"mean": 100, "p90": 200},
                        "outputTokens": {"mean": 20, "p90": 40}},
        },
        planning={"mode": "Auto", "maxAccelerators": 4},
    )  # fmt: skip
    asked["spec"] |= {"prefill": {}, "decode": {}}
    node = gpu_node(0, 0)
    del node["status"]["allocatable"][GPU]
    step = {name: [2, 0.01, 0] for name in ("prefill", "decoding_smallbs", "decoding_largebs")}
    times = tmp_path / "times.json"
    times.write_text(json.dumps({"tiny": {"1": step}}))
    code, found, said = plan(asked, "--hardware-profile", str(times), nodes=[node])
    assert code == 0, said
    assert found["fits"] and set(found["moves"][0]["nodes"].values()) == {"gpu-00"}


@pytest.mark.cluster
def test_the_cluster_and_what_runs_there_are_asked(
    control_plane: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    control_plane.apply(CHECKOUT / "crds" / "distservedeployments.distserve.io.yaml")
    topology = {"levels": [{"name": "nvlink", "nodeLabel": CLIQUE}], "packWithin": "nvlink"}
    names = control_plane.nodes(
        4, gpus=8, labels=lambda number: {CLIQUE: f"p{number // 2}"}, prefix="plan"
    )
    try:
        with control_plane.namespace("plan") as namespace:
            document = deployment(units=2, topology=topology)
            tolerations = [{"operator": "Exists"}]
            for role in ("prefill", "decode"):
                pod = {"spec": {"tolerations": tolerations}}
                document["spec"][role]["podTemplate"] = pod
            document["metadata"]["namespace"] = namespace
            (tmp_path / "deployment.yaml").write_text(json.dumps(document))
            place = {"level": "nvlink", "label": CLIQUE, "value": "p1",
                     "nodes": {"opt-u0-prefill-0": ["plan-2"]}}  # fmt: skip
            control_plane.apply(unit_of_old_revision(place), namespace)
            code = main(
                ["plan", "-f", str(tmp_path / "deployment.yaml"), "--cluster", "--output", "json",
                 "--kubeconfig", str(control_plane.kubeconfig)]
            )  # fmt: skip
    finally:
        control_plane.remove_nodes(names)
    found = json.loads(capsys.readouterr().out)["placement"]
    moves = [(m["step"], m["act"], m["unit"], m.get("domain", {}).get("name"), m["fits"])
             for m in found["moves"]]  # fmt: skip
    assert moves[0] == (0, "keep", "u0", "p1", True)
    assert (1, "create", "u1", "p0", True) in moves
    assert moves[-1][1:4] == ("create", "u2", None) and not moves[-1][4], "no room to surge"
    assert code == 3


def unit_of_old_revision(place: Object) -> Object:
    marks = {"distserve.io/deployment": "opt", "distserve.io/unit": "u0",
             "distserve.io/instance": "opt-u0-prefill-0"}  # fmt: skip
    resources = {"limits": {GPU: "8"}}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {
            "name": "opt-u0-prefill-0",
            "labels": marks | {"distserve.io/revision": "old"},
            "annotations": {"distserve.io/place": json.dumps(place)},
        },
        "spec": {
            "serviceName": "opt",
            "selector": {"matchLabels": marks},
            "template": {
                "metadata": {"labels": marks | {"distserve.io/revision": "old"}},
                "spec": {"containers": [{"name": "c", "image": "c", "resources": resources}]},
            },
        },
    }
