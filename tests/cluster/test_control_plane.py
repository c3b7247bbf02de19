"""A real API server, scheduler and controller manager, with nodes that only pretend."""

import base64
import contextlib
import functools
import http.client
import json
import signal
import ssl
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.cluster import fake_nodes, given, providers
from tools.cluster.cluster import CHECKOUT, Cluster
from tools.cluster.conditions import conditions, is_true
from tools.cluster.errors import ClusterError, CommandFailed, Unavailable
from tools.cluster.home import homes, registry_lock
from tools.cluster.pki import Pki
from tools.cluster.profiles import Profile, Provider
from tools.cluster.teardown import tear_down

CLIQUE = "nvidia.com/gpu.clique"
CRD = CHECKOUT / "crds" / "distservedeployments.distserve.io.yaml"
SAMPLES = sorted((CHECKOUT / "manifests" / "samples").glob("*.yaml"))


def gpu_pod(name: str, gpus: int, **selector: str) -> dict[str, Any]:
    resources = {"limits": {"nvidia.com/gpu": str(gpus)}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "tolerations": [fake_nodes.TOLERATION],
            "nodeSelector": selector,
            "containers": [{"name": "main", "image": "pretended:1", "resources": resources}],
        },
    }


def test_pods_are_scheduled_by_gpus_and_labels(control_plane: Cluster) -> None:
    names = control_plane.nodes(
        4, gpus=8, labels=lambda number: {CLIQUE: f"c{number // 2}"}, prefix="sched"
    )
    try:
        with control_plane.namespace() as namespace:
            pods = [gpu_pod(f"fits-{number}", 8, **{CLIQUE: "c1"}) for number in range(2)]
            too_big = gpu_pod("too-big", 9, **{CLIQUE: "c1"})
            control_plane.apply([*pods, too_big], namespace)
            control_plane.wait_until_ready("pod fits-0 fits-1", namespace)
            placed = {
                pod["metadata"]["name"]: pod["spec"].get("nodeName")
                for pod in control_plane.get("pods", namespace=namespace)["items"]
            }
            assert {placed["fits-0"], placed["fits-1"]} == {"sched-2", "sched-3"}

            def refused() -> bool:
                pod = control_plane.get("pod", "too-big", namespace)
                return bool(
                    conditions(pod).get("PodScheduled", {}).get("reason") == "Unschedulable"
                )

            control_plane.wait_for("the scheduler's word on the pod that fits nowhere", refused)
    finally:
        control_plane.remove_nodes(names)


def test_controllers_work_on_pretended_pods(control_plane: Cluster) -> None:
    names = control_plane.nodes(1, prefix="controllers")
    template = {"spec": {**gpu_pod("x", 1)["spec"], "restartPolicy": "Never"}}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "once"},
        "spec": {"template": template},
    }
    try:
        with control_plane.namespace() as namespace:
            control_plane.apply(job, namespace)
            flags = ("--for=condition=Complete", "--timeout=60s", f"--namespace={namespace}")
            control_plane.kubectl("wait", *flags, "job/once", seconds=70)
            control_plane.kubectl("delete", "job", "once", f"--namespace={namespace}")

            def collected() -> bool:
                return not control_plane.get("pods", namespace=namespace)["items"]

            control_plane.wait_for("the garbage collection of the Job's pod", collected)
    finally:
        control_plane.remove_nodes(names)


@pytest.fixture
def crd(control_plane: Cluster) -> str:
    """The project's CRD, established."""
    control_plane.apply(CRD)
    name = str(yaml.safe_load(CRD.read_text())["metadata"]["name"])

    def established() -> bool:
        found = conditions(control_plane.get("crd", name)).get("Established", {})
        return bool(found.get("status") == "True")

    control_plane.wait_for(f"the CRD {name}", established)
    return name


def test_the_crd_is_accepted_as_it_is(control_plane: Cluster, crd: str) -> None:
    served = control_plane.get("crd", crd)
    assert "NonStructuralSchema" not in conditions(served)
    assert is_true(served, "NamesAccepted")


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_every_sample_is_accepted(control_plane: Cluster, crd: str, sample: Path) -> None:
    with control_plane.namespace() as namespace:
        said = control_plane.apply(sample, namespace, "--dry-run=server")
    assert "serverside-applied" in said


def test_rules_of_the_crd_are_enforced(control_plane: Cluster, crd: str) -> None:
    tiny = yaml.safe_load((CHECKOUT / "manifests" / "samples" / "tiny-cpu.yaml").read_text())
    long_name = {**tiny, "metadata": {"name": "x" * 31}}
    two_sources = json.loads(json.dumps(tiny))
    two_sources["spec"]["model"]["source"] = {"builtin": "tiny", "imagePath": "/opt/model"}
    renamed = json.loads(json.dumps(tiny))
    renamed["spec"]["model"]["id"] = "another"
    with control_plane.namespace() as namespace:
        for bad, message in (
            (long_name, "more than 30 characters"),
            (two_sources, "exactly one source is needed"),
        ):
            with pytest.raises(CommandFailed, match=message):
                control_plane.apply(bad, namespace)
        control_plane.apply(tiny, namespace)
        with pytest.raises(CommandFailed, match=r"spec\.model\.id"):
            control_plane.apply(renamed, namespace)


def test_planning_rules_are_enforced(control_plane: Cluster, crd: str) -> None:
    auto = yaml.safe_load((CHECKOUT / "manifests" / "samples" / "opt-13b.yaml").read_text())

    def changed(**spec: Any) -> dict[str, Any]:
        return {**auto, "spec": {k: v for k, v in (auto["spec"] | spec).items() if v is not None}}

    prompt, wide = {"mean": 9, "p90": 10}, {"mean": 9, "p90": 90}
    trace = {"configMapName": "seen", "key": "monday.csv"}
    with control_plane.namespace() as namespace:
        for bad, message in (
            (changed(workload=None), "planning.mode Auto needs slo and workload"),
            (changed(slo=None), "planning.mode Auto needs slo and workload"),
            (changed(units=2), "units come from the plan"),
            (changed(decode={"parallelism": {"tensor": 2}}), "come from the plan in planning"),
            (changed(planning={"units": "Planned"}), "planning.units Planned belongs to mode"),
            (
                changed(workload={"lengths": {"promptTokens": prompt, "outputTokens": wide}}),
                "p90 must be between mean and",
            ),
            (changed(workload={"trace": trace, **auto["spec"]["workload"]}), "lengths or trace"),
            (changed(workload={"requestsPerSecond": 1}), "needs lengths or trace"),
            (
                changed(planning=auto["spec"]["planning"] | {"hardwareProfileFrom": trace}),
                "hardwareProfile and hardwareProfileFrom exclude each other",
            ),
        ):
            with pytest.raises(CommandFailed, match=message):
                control_plane.apply(bad, namespace)
        control_plane.apply(auto, namespace)
        with pytest.raises(CommandFailed, match="units come from the plan"):
            control_plane.kubectl(
                "scale", "dsd/opt-13b", "--replicas=3", f"--namespace={namespace}"
            )
        control_plane.apply(
            changed(planning={"mode": "Auto", "units": "Spec", "maxAccelerators": 8}, units=2),
            namespace,
        )
        control_plane.apply(changed(workload={"trace": trace}), namespace)


def test_helm_installs_a_chart(control_plane: Cluster, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: probe\nversion: 0.1.0\n")
    (tmp_path / "values.yaml").write_text("word: unset\n")
    (tmp_path / "templates" / "map.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}}\n"
        "data: {word: {{ .Values.word | quote }}}\n"
    )
    with control_plane.namespace() as namespace:
        where = f"--namespace={namespace}"
        control_plane.helm("install", "one", str(tmp_path), where, "--set=word=said", "--wait")
        assert control_plane.get("configmap", "one", namespace)["data"] == {"word": "said"}
        control_plane.helm("uninstall", "one", where, "--wait")
        left = control_plane.get("configmaps", namespace=namespace)["items"]
        assert "one" not in {one["metadata"]["name"] for one in left}


def names_of_nodes(cluster: Cluster) -> set[str]:
    return {node["metadata"]["name"] for node in cluster.get("nodes")["items"]}


def test_a_named_cluster_is_used_and_left_as_it_was(
    control_plane: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(given.VARIABLE, str(control_plane.kubeconfig))
    guest = providers.start(Profile.CONTROL_PLANE, keep=True)
    try:
        assert isinstance(guest, given.GivenCluster)
        assert guest.home.kept
        names = guest.nodes(2, prefix="guest")
        with pytest.raises(Unavailable, match="push"):
            guest.load_image(Path("image.tar"))
    finally:
        guest.down()
    assert names_of_nodes(control_plane).isdisjoint(names)
    assert not guest.home.folder.exists()


def test_what_a_killed_run_added_to_a_named_cluster_is_removed(
    control_plane: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what lies in the folder, since nobody remembers it."""
    monkeypatch.setenv(given.VARIABLE, str(control_plane.kubeconfig))
    others = control_plane.nodes(1, prefix="other")
    try:
        guest = providers.start(Profile.CONTROL_PLANE)
        names = guest.nodes(2, prefix="killed")
        with registry_lock():
            (home,) = [one for one in homes() if one.name == guest.home.name]
            tear_down(home, guest.processes.reap)
        left = names_of_nodes(control_plane)
        assert left.isdisjoint(names)
        assert left >= set(others)
    finally:
        control_plane.remove_nodes(others)


def test_a_named_cluster_that_is_gone_is_told_once(
    control_plane: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(given.VARIABLE, str(control_plane.kubeconfig))
    guest = providers.start(Profile.CONTROL_PLANE)
    guest.home.lent_nodes.touch()
    config = yaml.safe_load(guest.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://{guest.home.addresses.loopback}:1"
    guest.kubeconfig.write_text(yaml.safe_dump(config))
    with pytest.raises(ClusterError, match=f"kubectl delete nodes .*={guest.home.name}"):
        guest.down()
    assert not guest.home.folder.exists()


def test_a_kubeconfig_may_name_files_beside_it(
    control_plane: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = yaml.safe_load(control_plane.kubeconfig.read_text())
    for part in (config["clusters"][0]["cluster"], config["users"][0]["user"]):
        for key in [key for key in part if key.endswith("-data")]:
            name = key.removesuffix("-data")
            (tmp_path / name).write_bytes(base64.b64decode(part.pop(key)))
            part[name] = name
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    monkeypatch.setenv(given.VARIABLE, str(tmp_path / "kubeconfig"))
    guest = providers.start(Profile.CONTROL_PLANE)
    try:
        assert guest.kubectl("get", "--raw=/readyz") == "ok"
        assert guest.kubeconfig.stat().st_mode & 0o777 == 0o600
    finally:
        guest.down()


def test_only_its_owner_reads_the_administrators_kubeconfig(control_plane: Cluster) -> None:
    assert control_plane.kubeconfig.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("port", "path"), [(2379, "/version"), (2380, "/members")])
def test_etcd_answers_nobody_but_the_api_server(
    control_plane: Cluster, port: int, path: str
) -> None:
    """Whoever writes to it has pods of his run as root."""
    if control_plane.home.provider is not Provider.LOCAL:
        pytest.skip("on this machine clusters are not the project's own")
    pki = Pki(control_plane.home.folder / "pki")
    address = control_plane.home.addresses.loopback

    def answers(who: str = "", *, tls: bool = True) -> bool:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if who:
            context.load_cert_chain(pki.crt(who), pki.key(who))
        secure = functools.partial(http.client.HTTPSConnection, context=context)
        connect: Any = secure if tls else http.client.HTTPConnection
        # Peers are asked for a certificate of the address that they come from.
        asked = connect(address, port, timeout=5, source_address=(address, 0))
        with contextlib.closing(asked):
            try:
                asked.request("GET", path)
                return asked.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False

    assert answers("etcd"), "else the rest would tell nothing"
    assert not answers(tls=False)
    assert not answers()
    assert not answers("admin"), "the cluster's authority is not etcd's"


def test_a_component_can_be_stopped_and_started(control_plane: Cluster) -> None:
    server = control_plane.processes.get("kube-apiserver")
    if server is None:
        pytest.skip("only the project's own cluster lets a test stop its API server")
    server.stop(signal.SIGKILL)
    with pytest.raises(CommandFailed):
        control_plane.kubectl("get", "--raw=/readyz")
    server.start()

    def answers() -> bool:
        try:
            return control_plane.kubectl("get", "--raw=/readyz") == "ok"
        except CommandFailed:
            return False

    control_plane.wait_for("the API server's return", answers)
