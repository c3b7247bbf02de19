"""`distserve plan` on a cluster's nodes: what goes where, in which steps, and whether it fits."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.cluster.cluster import CHECKOUT, Cluster

from distserve.cli.main import main
from distserve.operator.ahead import Act, Course, Standing, course_ahead
from distserve.operator.rollout import Rules
from distserve.placement.inventory import Inventory, inventory_of
from distserve.placement.requests import (
    Domain,
    InstanceRequest,
    Level,
    UnitId,
    UnitRequest,
)
from distserve.planner.machine import Machine

CLIQUE = "nvidia.com/gpu.clique"
GPU = "nvidia.com/gpu"
NVLINK, ZONE = Level("nvlink", CLIQUE), Level("zone", "topology.kubernetes.io/zone")
NODES_PER_DOMAIN = 2

Object = dict[str, Any]


def gpu_node(domain: int, index: int, gpus: int = 8) -> Object:
    name = f"gpu-{domain}{index}"
    labels = {
        "kubernetes.io/hostname": name,
        CLIQUE: f"c{domain}",
        "topology.kubernetes.io/zone": "z",
    }
    room = {"cpu": "64", "memory": "512Gi", "pods": "110", GPU: str(gpus)}
    ready = [{"type": "Ready", "status": "True"}]
    return {
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {},
        "status": {"allocatable": room, "conditions": ready},
    }


def gpu_nodes(domains: int) -> list[Object]:
    return [gpu_node(d, n) for d in range(domains) for n in range(NODES_PER_DOMAIN)]


def busy(node: str, gpus: int, name: str = "busy") -> Object:
    resources = {"requests": {GPU: str(gpus)}}
    return {
        "kind": "Pod",
        "metadata": {"name": f"{name}-{node}", "namespace": "other", "uid": f"{name}-{node}"},
        "spec": {"nodeName": node, "containers": [{"name": "c", "resources": resources}]},
        "status": {"phase": "Running"},
    }


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


# ---- from what runs now ---------------------------------------------------------------------


def request(number: int, gpus: int = 16) -> UnitRequest:
    name = f"opt-u{number}-hybrid"
    return UnitRequest(
        UnitId("llm", "opt", f"u{number}"),
        tuple(InstanceRequest(f"{name}-{at}", 1, {GPU: 4}) for at in range(gpus // 4)),
        waiting_since=0.0,
        levels=(NVLINK, ZONE),
        pack_within="nvlink",
    )


def running(
    inventory: Inventory, domains: Mapping[int, int], gpus: int = 16
) -> dict[int, Standing]:
    """Units of revision `old`, by number, whole in these domains."""
    found = {}
    for number, domain in domains.items():
        asked = request(number, gpus)
        pods = asked.pod_names
        half = len(pods) // NODES_PER_DOMAIN
        inventory.reserve(asked, {p: f"gpu-{domain}{i // half}" for i, p in enumerate(pods)})
        home = Domain("nvlink", CLIQUE, f"c{domain}")
        found[number] = Standing(asked.id, "old", home, frozenset(pods))
    return found


def told(course: Course) -> list[tuple[int, str, str, str]]:
    return [(m.step, m.act.value, m.unit, m.domain.value if m.domain else "") for m in course.moves]


def test_a_rollout_begins_with_an_extra_unit_and_ends_without() -> None:
    inventory = inventory_of(gpu_nodes(3))
    standing = running(inventory, {0: 0, 1: 1})
    course = course_ahead(inventory, Rules(2, "new", "old"), request, 0.0, standing)
    assert course.fits and told(course) == [
        (0, "keep", "u0", "c0"), (0, "keep", "u1", "c1"),
        (1, "create", "u2", "c2"),
        (2, "replace", "u0", "c0"),
        (3, "replace", "u1", "c1"),
        (4, "delete", "u2", "c2"),
    ]  # fmt: skip


def test_without_room_for_the_extra_unit_the_rollout_stops_or_replaces_in_place() -> None:
    for one_when_full in (False, True):
        inventory = inventory_of(gpu_nodes(2))
        standing = running(inventory, {0: 0, 1: 1})
        rules = Rules(2, "new", "old", one_when_full=one_when_full)
        course = course_ahead(inventory, rules, request, 0.0, standing)
        acts = [(m.act, m.unit) for m in course.moves if m.step]
        if one_when_full:
            assert course.fits and acts == [(Act.REPLACE, "u0"), (Act.REPLACE, "u1")]
        else:
            assert not course.fits and acts == [(Act.CREATE, "u2")]
            assert course.moves[-1].reason == "NoRoom"


def test_a_unit_that_grows_out_of_its_domain_moves() -> None:
    inventory = inventory_of(gpu_nodes(2))
    inventory.put_pod(busy("gpu-00", 4))
    standing = running(inventory, {0: 0}, gpus=8)
    rules = Rules(1, "new", "old", surge=0, unavailable=1)
    course = course_ahead(inventory, rules, request, 0.0, standing)
    assert course.fits and told(course)[1:] == [(1, "replace", "u0", "c1")]
    assert "after topology.gangTimeout" in course.moves[-1].message


def test_more_and_fewer_units() -> None:
    inventory = inventory_of(gpu_nodes(3))
    standing = running(inventory, {0: 0})
    course = course_ahead(inventory, Rules(3, "old", "old"), request, 0.0, standing)
    assert course.fits
    assert told(course)[1:] == [(1, "create", "u1", "c1"), (1, "create", "u2", "c2")]
    standing = running(inventory, {0: 0, 1: 1, 2: 2})
    course = course_ahead(inventory, Rules(1, "old", "old"), request, 0.0, standing)
    assert told(course)[3:] == [(1, "delete", "u1", "c1"), (1, "delete", "u2", "c2")]


@settings(max_examples=60, deadline=None)
@given(
    domains=st.integers(1, 4),
    there=st.integers(0, 3),
    wanted=st.integers(0, 4),
    gpus=st.sampled_from([8, 16]),
    target=st.sampled_from(["old", "new"]),
    surge=st.integers(0, 2),
    one_when_full=st.booleans(),
)
def test_played_to_its_end(
    domains: int, there: int, wanted: int, gpus: int, target: str, surge: int, one_when_full: bool
) -> None:
    """Whatever runs: it ends, no node is given away twice, and `fits` is what the end is like."""
    inventory = inventory_of(gpu_nodes(domains))
    there = min(there, domains)
    standing = running(inventory, {n: n for n in range(there)})
    unavailable = int(surge == 0)
    rules = Rules(wanted, target, "old", surge, unavailable, one_when_full)
    course = course_ahead(inventory, rules, lambda n: request(n, gpus), 0.0, standing)
    assert all(inventory.free(name)[GPU] >= 0 for name in inventory.nodes)
    for move in course.moves:
        assert move.fits == (not move.reason)
        homes = {inventory.nodes[node].labels[CLIQUE] for node in move.nodes.values()}
        assert homes == ({move.domain.value} if move.domain and move.nodes else set())
    whole = {unit.unit: len(record.seats) for unit, record in inventory.units.items()}
    if course.fits:
        assert whole == {f"u{n}": gpus // 4 for n in range(wanted)}
        again = {n: Standing(request(n, gpus).id, target, None,
                             frozenset(request(n, gpus).pod_names))
                 for n in range(wanted)}  # fmt: skip
        rest = course_ahead(inventory, rules, lambda n: request(n, gpus), 0.0, again)
        assert all(move.act is Act.KEEP for move in rest.moves), "nothing is left to do"


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
