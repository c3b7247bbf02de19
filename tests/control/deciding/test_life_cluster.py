"""The operator as a process on a real API server, scheduler and controllers, with fake nodes."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from tools.cluster.cluster import CHECKOUT, Cluster
from tools.cluster.fake_nodes import TOLERATION
from tools.cluster.processes import marked
from tools.cluster.waiting import wait_for

SECONDS = 60.0
OURS = "app.kubernetes.io/instance=tiny"
GATEWAYS = f"{OURS},app.kubernetes.io/component=gateway"
ROLE = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "metadata": {"name": "distserve-gateway"},
    "rules": [],
}
# An operator that compares all with a listing, and decides all anew, each two seconds instead of
# each ten minutes.
OFTEN = """
import sys
from dataclasses import replace
from distserve.cli import main, operator
settings = operator._settings

def often(args):
    found = settings(args)
    return replace(found, watch=replace(found.watch, resync_seconds=2.0))

operator._settings = often
sys.exit(main.main())
"""
DECIDED = "distserve_operator_reconcile_seconds_count"
# Without updates: those are the Lease's.
WRITES = re.compile(r'distserve_operator_api_calls_total\{.*verb="(create|apply|delete)"')


@pytest.fixture(scope="module")
def nodes(crd: Cluster) -> Iterator[None]:
    """Two fake ones, and the role of gateways."""
    crd.apply(ROLE)
    names = crd.nodes(2, gpus=8)
    yield
    crd.remove_nodes(names)


@pytest.fixture
def operated(crd: Cluster, nodes: None, start_distserve: Callable[..., Any]) -> Cluster:
    """The control plane with an operator of the test's namespace."""
    start_distserve()
    return crd


def sample(**spec: Any) -> dict[str, Any]:
    """tiny-cpu on fake nodes."""
    found: dict[str, Any] = yaml.safe_load(
        (CHECKOUT / "manifests" / "samples" / "tiny-cpu.yaml").read_text()
    )
    pod = {"spec": {"tolerations": [TOLERATION]}}
    found["spec"] |= {
        "prefill": {"podTemplate": pod},
        "decode": {"podTemplate": pod},
        "gateway": {"podTemplate": pod},
    } | spec
    return found


@pytest.fixture
def until(crd: Cluster, namespace: str) -> Callable[..., dict[str, Any]]:
    def wait(what: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        def look() -> bool:
            found = crd.get("dsd", "tiny", namespace)
            state = {c["type"]: c for c in found.get("status", {}).get("conditions", [])}
            now = found["metadata"]["generation"]
            return found.get("status", {}).get("observedGeneration") == now and holds(
                {**found["status"], **state}
            )

        wait_for(what, look, SECONDS)
        return dict(crd.get("dsd", "tiny", namespace)["status"])

    return wait


def test_a_life(operated: Cluster, namespace: str, until: Callable[..., dict[str, Any]]) -> None:
    operated.apply(sample(), namespace)
    until("Ready", lambda s: s["Ready"]["status"] == "True" and s["replicas"] == 1)

    operated.apply(sample(units=2), namespace)
    first = until("two units", lambda s: s["replicas"] == 2)["revision"]["target"]

    operated.apply(sample(units=2, images={"engine": "mine:2"}), namespace)
    new = until(
        "rolled out",
        lambda s: s["revision"]["current"] != first
        and s["Progressing"]["reason"] == "UpToDate" and s["replicas"] == 2,
    )["revision"]["target"]  # fmt: skip
    selector = f"--selector=distserve.io/revision={new}"

    def there(*what: str) -> int:
        return len(operated.kubectl("get", *what, "-o", "name", "-n", namespace).split())

    # What was surged may be ending yet.
    wait_for("four new pods", lambda: there("pods", selector) == 4, SECONDS)
    wait_for("four StatefulSets", lambda: there("statefulsets") == 4, SECONDS)

    operated.kubectl("delete", "service", "tiny-gateway", "-n", namespace)
    operated.kubectl(
        "patch", "statefulset", "tiny-u0-prefill-0", "-n", namespace, "--type=merge",
        "-p", '{"spec":{"replicas":3}}',
    )  # fmt: skip

    def repaired() -> bool:
        live = operated.get("statefulset", "tiny-u0-prefill-0", namespace)
        services = operated.kubectl("get", "services", "-o", "name", "-n", namespace)
        return live["spec"]["replicas"] == 1 and "service/tiny-gateway\n" in services

    wait_for("drift to be repaired", repaired, SECONDS)

    template = {"spec": {"dnsPolicy": "Sometimes", "tolerations": [TOLERATION]}}
    operated.apply(sample(units=2, decode={"podTemplate": template}), namespace)
    said = until("a refusal", lambda s: s["Accepted"]["status"] == "False")
    (accepted,) = [c for c in said["conditions"] if c["type"] == "Accepted"]
    assert accepted["reason"] == "RefusedByApiServer" and "dnsPolicy" in accepted["message"]
    assert said["replicas"] == 2

    operated.kubectl("delete", "dsd", "tiny", "-n", namespace)

    def gone() -> bool:
        kinds = "statefulsets,deployments,secrets,controllerrevisions,pdb,services,pods"
        return not operated.kubectl("get", kinds, "-o", "name", "-n", namespace).strip()

    wait_for("everything to be gone", gone, SECONDS)


def test_idle_is_idle(
    crd: Cluster,
    nodes: None,
    namespace: str,
    start_distserve: Callable[..., Any],
    until: Callable[..., dict[str, Any]],
) -> None:
    """Once ready, whatever is decided anew needs no call that could change anything."""
    operator = start_distserve(program=("-c", OFTEN))
    crd.apply(sample(), namespace)
    until("Ready", lambda s: s["Ready"]["status"] == "True")

    def writes() -> dict[str, float]:
        found = operator.metrics()
        return {name: found[name] for name in found if WRITES.match(name)}

    def idle() -> bool:
        before, decided = writes(), operator.metric(DECIDED)
        operator.wait_until(
            "has decided anew twice", lambda: operator.metric(DECIDED) >= decided + 2
        )
        return writes() == before

    operator.wait_until("writes nothing", idle, SECONDS)
    assert sum(writes().values()) > 0, "else the test would not see them"


def test_an_operator_goes_with_its_cluster(
    crd: Cluster, start_distserve: Callable[..., Any]
) -> None:
    """Also where the test that started it was killed."""
    assert start_distserve().process.pid in marked(crd.home)


def test_more_gateways_restart_none(
    operated: Cluster, namespace: str, until: Callable[..., dict[str, Any]]
) -> None:
    def gateways() -> set[str]:
        """Uids of the pods that run and stay."""
        found = operated.get("pods", namespace=namespace, selector=GATEWAYS)["items"]
        stay = [pod["metadata"] for pod in found if pod["status"]["phase"] == "Running"]
        return {one["uid"] for one in stay if "deletionTimestamp" not in one}

    def scaled(replicas: int) -> set[str]:
        change = f'{{"spec":{{"gateway":{{"replicas":{replicas}}}}}}}'
        where = ("dsd/tiny", "-n", namespace, "--type=merge", "-p", change)
        operated.kubectl("patch", *where)
        wait_for(f"{replicas} gateways", lambda: len(gateways()) == replicas, SECONDS)
        return gateways()

    operated.apply(sample(), namespace)
    until("Ready", lambda s: s["Ready"]["status"] == "True")
    first = gateways()
    assert len(first) == 2
    more = scaled(4)
    assert first < more, "those that ran run on"
    assert scaled(1) < more
    until("calm", lambda s: s["Progressing"]["reason"] == "UpToDate")
    sets = operated.get("replicasets", namespace=namespace, selector=GATEWAYS)["items"]
    assert len(sets) == 1, "one template all the time"
    ours = operated.get("controllerrevisions", namespace=namespace, selector=OURS)["items"]
    kept = [one for one in ours if "templates" in (one.get("data") or {})]
    assert len(kept) == 1


BUSY = {
    "selector": {"matchLabels": {"a": "b"}},
    "template": {
        "metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "theirs"}]},
    },
    "replicas": 0,
}
VIEW = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}
THEIRS = (
    ("apps/v1", "Deployment", "tiny-gateway", {"spec": BUSY}),
    ("apps/v1", "StatefulSet", "tiny-u0-prefill-0", {"spec": BUSY | {"serviceName": "theirs"}}),
    ("v1", "Service", "tiny-instances", {"spec": {"ports": [{"port": 80}]}}),
    ("rbac.authorization.k8s.io/v1", "RoleBinding", "tiny-gateway", {"roleRef": VIEW}),
)
"""With fields in which ours cannot be laid over them."""


def test_names_that_are_taken(
    operated: Cluster, namespace: str, until: Callable[..., dict[str, Any]]
) -> None:
    for version, kind, name, rest in (*THEIRS, ("v1", "Secret", "tiny-key", {})):
        document = {"apiVersion": version, "kind": kind, "metadata": {"name": name}, **rest}
        operated.apply(document, namespace)
    operated.apply(sample(), namespace)

    def named(*names: str) -> Callable[[dict[str, Any]], bool]:
        return lambda s: (
            s["Accepted"]["reason"] == "NameTaken"
            and all(one in s["Accepted"]["message"] for one in names)
        )

    until("the key's name to be told", named("Secret tiny-key"))
    where = ("-o", "name", "-n", namespace, f"--selector={OURS}")
    assert not operated.kubectl("get", "sa,statefulsets,deployments", *where).strip()
    operated.kubectl("delete", "secret", "tiny-key", "-n", namespace)
    operated.kubectl("annotate", "dsd", "tiny", "-n", namespace, "test/look=again")
    until("the others to be told", named(*(f"{kind} {name}" for _, kind, name, _ in THEIRS)))
    made = operated.kubectl("get", "secret,statefulsets,services", "-o", "name", "-n", namespace)
    assert {"secret/tiny-key", "statefulset.apps/tiny-u0-decode-0", "service/tiny-gateway"} <= set(
        made.split()
    )
    live = operated.get("deployment", "tiny-gateway", namespace)
    assert "ownerReferences" not in live["metadata"] and live["spec"]["replicas"] == 0
