"""Properties of the rendered objects, checked against Kubernetes' own types and rules."""

import base64
import re
from collections.abc import Callable, Iterator
from typing import Any

import kubernetes.client as k8s
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distserve.api.deployment import DistServeDeployment
from distserve.api.quantities import parse_bytes
from distserve.api.status import RolePlan, UnitPlan
from distserve.resources import naming

Object = dict[str, Any]
Make = Callable[..., list[Object]]

VARIANTS: dict[str, dict[str, Any]] = {
    "disaggregated": {},
    "colocated": {
        "strategy": {"name": "Colocated"}, "prefill": None, "decode": None, "hybrid": {},
    },
    "gpu": {
        "accelerator": {"type": "GPU"},
        "decode": {"parallelism": {"tensor": 2, "pipeline": 2}},
        "slo": {"ttft": "1s", "tpot": "100ms"},
    },
    "several pods": {
        "accelerator": {"type": "GPU", "perPod": 4},
        "decode": {"parallelism": {"tensor": 4, "pipeline": 3}},
    },
    "together": {"kvTransfer": {"migratorPlacement": "InEngineContainer"}},
    "claim": {
        "model": {
            "id": "m", "maxModelLen": 64,
            "source": {"persistentVolumeClaim": {"claimName": "models", "path": "m"}},
        },
    },
    "hub": {
        "model": {
            "id": "m",
            "source": {"huggingFace": {
                "repository": "org/m", "revision": "v1", "tokenSecretName": "hub",
            }},
            "cache": {"claimName": "models"},
        },
    },
    "image": {"model": {"id": "m", "source": {"image": "registry.example/m:1"}}},
    "host": {"model": {"id": "m", "source": {"hostPath": "/models/m"}}},
    "open": {"networkPolicy": {"enabled": False}, "units": 0},
}  # fmt: skip


@pytest.fixture(params=VARIANTS)
def objects(request: pytest.FixtureRequest, make: Make) -> list[Object]:
    return make(uid="1234", **VARIANTS[request.param])


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [o for o in objects if o["kind"] == kind]


def templates(objects: list[Object]) -> Iterator[Object]:
    for found in objects:
        if found["kind"] in ("StatefulSet", "Deployment"):
            yield found["spec"]["template"]


def containers(template: Object) -> list[Object]:
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def selected_by(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


# ---- against Kubernetes' own types --------------------------------------------------------------

MODELS = {
    "ServiceAccount": k8s.V1ServiceAccount,
    "RoleBinding": k8s.V1RoleBinding,
    "Secret": k8s.V1Secret,
    "ConfigMap": k8s.V1ConfigMap,
    "NetworkPolicy": k8s.V1NetworkPolicy,
    "Service": k8s.V1Service,
    "PodDisruptionBudget": k8s.V1PodDisruptionBudget,
    "StatefulSet": k8s.V1StatefulSet,
    "Deployment": k8s.V1Deployment,
}
PLAIN = {"bytes": str, "str": str, "int": int, "bool": bool, "float": float}
"""bytes: base64 in the document."""


def conforms(value: Any, kind: str, path: str) -> None:
    """Every field is one that Kubernetes' type has, with the type that it has."""
    if kind == "object":  # int-or-string
        assert isinstance(value, int | str), path
    elif kind in PLAIN:
        assert type(value) is PLAIN[kind], f"{path}: {value!r} is no {kind}"
    elif match := re.fullmatch(r"[lL]ist\[(.+)\]", kind):
        assert isinstance(value, list), path
        for index, item in enumerate(value):
            conforms(item, match[1], f"{path}[{index}]")
    elif match := re.fullmatch(r"[dD]ict[\[(]str, (.+)[\])]", kind):
        assert isinstance(value, dict), path
        for key, item in value.items():
            conforms(item, match[1], f"{path}.{key}")
    else:
        model = getattr(k8s, kind)
        fields = {alias: name for name, alias in model.attribute_map.items()}
        assert isinstance(value, dict), path
        for key, item in value.items():
            assert key in fields, f"{path}.{key} is unknown to {kind}"
            conforms(item, model.openapi_types[fields[key]], f"{path}.{key}")


def test_objects_are_of_kubernetes_types(objects: list[Object]) -> None:
    for found in objects:
        conforms(found, MODELS[found["kind"]].__name__, found["kind"])


def test_the_type_check_finds_mistakes() -> None:
    for wrong in ({"spec": {"replicas": "1"}}, {"spec": {"replica": 1}}, {"spec": []}):
        with pytest.raises(AssertionError):
            conforms(wrong, "V1StatefulSet", "x")


# ---- names, labels, selectors -------------------------------------------------------------------


def test_names_and_labels_are_valid(objects: list[Object]) -> None:
    identities = [(o["kind"], o["metadata"]["name"]) for o in objects]
    assert len(set(identities)) == len(identities)
    for found in objects:
        metadata = found["metadata"]
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", metadata["name"])
        assert len(metadata["name"]) <= (52 if found["kind"] == "StatefulSet" else 63)
        assert metadata["namespace"] == "llm"
        assert metadata["ownerReferences"][0]["uid"] == "1234"
        for labels in (metadata["labels"], *(t["metadata"]["labels"] for t in templates([found]))):
            assert labels["distserve.io/deployment"] == "opt-13b"
            for key, value in labels.items():
                assert re.fullmatch(r"([a-z0-9.-]+/)?[A-Za-z0-9][-A-Za-z0-9_.]{0,62}", key)
                assert re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", value)


@given(
    name=st.from_regex(r"[a-z]([-a-z0-9]{0,28}[a-z0-9])?", fullmatch=True),
    units=st.integers(9_990, 10_000),
    index=st.integers(60, 64),
)
@settings(max_examples=20, deadline=None)
def test_no_instance_name_is_too_long(name: str, units: int, index: int) -> None:
    deployment = DistServeDeployment.model_validate(
        {
            "metadata": {"name": name},
            "spec": {
                "model": {"id": "m", "source": {"builtin": "tiny"}},
                "units": units, "prefill": {"instancesPerUnit": index}, "decode": {},
            },
        }
    )  # fmt: skip
    unit = naming.units(deployment)[-1]
    shape = UnitPlan(prefill=RolePlan(instances=index, tensor=1, pipeline=1))
    longest = naming.instances(deployment, unit, shape)[-1].name
    assert len(longest) <= 52


def test_selectors_match_exactly_their_pods(objects: list[Object]) -> None:
    pods = [t["metadata"]["labels"] for t in templates(objects)]
    for found in of_kind(objects, "StatefulSet") + of_kind(objects, "Deployment"):
        selector = found["spec"]["selector"]["matchLabels"]
        assert [p for p in pods if selected_by(selector, p)] == [
            found["spec"]["template"]["metadata"]["labels"]
        ]
    engines = [p for p in pods if "distserve.io/role" in p]
    gateways = [p for p in pods if "distserve.io/role" not in p]
    services = {o["metadata"]["name"]: o["spec"]["selector"] for o in of_kind(objects, "Service")}
    assert [p for p in pods if selected_by(services["opt-13b-gateway"], p)] == gateways
    assert [p for p in pods if selected_by(services["opt-13b-instances"], p)] == engines
    for policy in of_kind(objects, "NetworkPolicy"):
        wanted = gateways if policy["metadata"]["name"] == "opt-13b-gateway" else engines
        chosen = policy["spec"]["podSelector"]["matchLabels"]
        assert [p for p in pods if selected_by(chosen, p)] == wanted


def test_one_leader_pod_per_unit(make: Make) -> None:
    objects = make(units=3)
    leaders = [
        p["metadata"]["labels"]["distserve.io/unit"]
        for p in templates(objects)
        if p["metadata"]["labels"].get("distserve.io/unit-leader") == "true"
    ]
    assert leaders == ["u0", "u1", "u2"]


def test_unit_budgets_keep_what_was_asked(make: Make) -> None:
    objects = make(units=3, disruption={"minAvailableUnits": 2})
    budgets = {
        o["spec"]["selector"]["matchLabels"].get("distserve.io/unit"): o["spec"]["maxUnavailable"]
        for o in of_kind(objects, "PodDisruptionBudget")
    }
    assert budgets == {"u0": 0, "u1": 0, "u2": "100%", None: 1}


# ---- pods ---------------------------------------------------------------------------------------


def test_pods_are_whole(objects: list[Object]) -> None:
    """Mounts have volumes, ports are distinct, probes name ports, references name objects."""
    there = {(o["kind"], o["metadata"]["name"]) for o in objects}
    for template in templates(objects):
        spec = template["spec"]
        volumes = {v["name"] for v in spec["volumes"]}
        assert ("ServiceAccount", spec["serviceAccountName"]) in there
        for volume in spec["volumes"]:
            if "secret" in volume:
                assert ("Secret", volume["secret"]["secretName"]) in there
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in there
        used, numbers = set(), []
        for container in containers(template):
            used |= {m["name"] for m in container["volumeMounts"]}
            names = {p["name"] for p in container.get("ports", [])}
            numbers += [p["containerPort"] for p in container.get("ports", [])]
            assert len({m["mountPath"] for m in container["volumeMounts"]}) == len(
                container["volumeMounts"]
            )
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if container["name"] != "fetch-model":
                    assert container[probe]["httpGet"]["port"] in names
        assert used == volumes
        assert len(set(numbers)) == len(numbers)


def test_pods_pass_the_restricted_standard(make: Make) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/ (no hostPath source)."""
    for variant in ("disaggregated", "colocated", "gpu", "together", "claim", "hub"):
        for template in templates(make(**VARIANTS[variant])):
            spec = template["spec"]
            assert spec["securityContext"]["runAsNonRoot"] is True
            assert spec["securityContext"]["runAsUser"] > 0
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            allowed = {"name", "configMap", "emptyDir", "secret", "persistentVolumeClaim"}
            assert all(set(v) <= allowed for v in spec["volumes"])
            assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
            for container in containers(template):
                security = container["securityContext"]
                assert security["allowPrivilegeEscalation"] is False
                assert security["readOnlyRootFilesystem"] is True
                assert security["capabilities"] == {"drop": ["ALL"]}


def test_what_a_container_said_last_is_kept(make: Make) -> None:
    """The condition Failed repeats it."""
    for variant in ("disaggregated", "together", "hub"):
        for template in templates(make(**VARIANTS[variant])):
            for container in containers(template):
                assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_only_gateways_get_a_token(objects: list[Object]) -> None:
    for found in objects:
        if found["kind"] in ("StatefulSet", "Deployment"):
            mounted = found["spec"]["template"]["spec"]["automountServiceAccountToken"]
            assert mounted is (found["kind"] == "Deployment")
    assert all(not o["automountServiceAccountToken"] for o in of_kind(objects, "ServiceAccount"))


def test_stateful_sets_are_restarted_by_nobody_else(objects: list[Object]) -> None:
    headless = {
        o["metadata"]["name"] for o in of_kind(objects, "Service") if "clusterIP" in o["spec"]
    }
    for found in of_kind(objects, "StatefulSet"):
        spec = found["spec"]
        assert spec["podManagementPolicy"] == "Parallel"
        assert spec["updateStrategy"] == {"type": "OnDelete"}
        assert {spec["serviceName"]} == headless
    (service,) = [o for o in of_kind(objects, "Service") if "clusterIP" in o["spec"]]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True


def test_migrator_is_a_native_sidecar_that_waits_for_nobody(make: Make) -> None:
    for template in templates(make()):
        if "distserve.io/role" not in template["metadata"]["labels"]:
            continue
        (sidecar,) = template["spec"]["initContainers"]
        (engine,) = template["spec"]["containers"]
        assert (sidecar["name"], sidecar["restartPolicy"]) == ("kv-migrator", "Always")
        assert "lifecycle" not in sidecar, "the kubelet ends it after the engine"
        assert sidecar["startupProbe"]["httpGet"]["path"] == "/healthz"
        deadline = template["spec"]["terminationGracePeriodSeconds"]
        assert deadline == 75
        assert "distserve drain" in engine["lifecycle"]["preStop"]["exec"]["command"][-1]
        assert "$POD_IP" in engine["lifecycle"]["preStop"]["exec"]["command"][-1]


def test_a_migrator_in_the_engines_container_has_the_same_flags(make: Make) -> None:
    """With GPUs this is what Auto means: a device plugin gives one to one container."""
    aside = [t["spec"] for t in templates(make()) if "initContainers" in t["spec"]]
    beside = [
        t["spec"] for t in templates(make(**VARIANTS["together"]))
        if "distserve.io/role" in t["metadata"]["labels"]
    ]  # fmt: skip
    for two, one in zip(aside, beside, strict=True):
        (migrator,), (engine,) = two["initContainers"], two["containers"]
        assert "initContainers" not in one
        (both,) = one["containers"]
        assert both["command"] == ["distserve", "instance"]
        words = both["args"]
        middle = words.index("--", 1)
        flags = dict(zip(words[1:middle:2], words[2:middle:2], strict=True))
        expected = dict(zip(engine["args"][::2], engine["args"][1::2], strict=True))
        assert flags.pop("--revision") != expected.pop("--revision")
        assert flags == expected
        assert words[middle + 1 :] == migrator["args"]
        assert both["ports"] == engine["ports"] + migrator["ports"]
        assert both["lifecycle"] == engine["lifecycle"]
        assert one["volumes"] == two["volumes"]
    assert not [t for t in templates(make(**VARIANTS["gpu"])) if "initContainers" in t["spec"]]


def test_hybrid_instances_have_no_migrator(make: Make) -> None:
    for template in templates(make(**VARIANTS["colocated"])):
        assert "initContainers" not in template["spec"]
        for container in template["spec"]["containers"]:
            assert "--migrator-socket" not in container["args"]


def flag(container: Object, name: str) -> str:
    words: list[str] = container["args"]
    return words[words.index(f"--{name}") + 1]


def test_processes_listen_where_the_contract_says(make: Make) -> None:
    for template in templates(make()):
        for container in containers(template):
            ports = {p["name"]: p["containerPort"] for p in container["ports"]}
            if container["name"] == "engine":
                assert container["command"] == ["distserve", "engine"]
                assert ports == {"engine": 8100} and flag(container, "port") == "8100"
                assert flag(container, "migrator-socket") == "/run/distserve/migrator.sock"
            elif container["name"] == "kv-migrator":
                assert ports == {"migrator": 8101, "metrics": 8102}
                assert flag(container, "port") == "8101"
                assert flag(container, "metrics-port") == "8102"
                assert flag(container, "socket") == "/run/distserve/migrator.sock"
            else:
                assert ports == {"http": 8000} and flag(container, "port") == "8000"
                assert flag(container, "max-waiting-requests") == "512", "of all gateways"
            assert flag(container, "host") == "$(POD_IP)"
            assert flag(container, "key-file") == "/etc/distserve/key/key"
            assert {e["name"] for e in container["env"]} >= {"POD_NAME", "POD_IP"}


def test_memory_asked_for_holds_the_pool(make: Make) -> None:
    for variant, ranks in (("disaggregated", 1), ("claim", 1)):
        for template in templates(make(**VARIANTS[variant])):
            for container in containers(template):
                asked = parse_bytes(container["resources"]["requests"]["memory"])
                if container["name"] == "engine":
                    assert asked >= (64 << 20) * ranks + (600 << 20)
                    assert container["resources"]["requests"]["cpu"] == "3"
                    assert {"name": "OMP_NUM_THREADS", "value": "3"} in container["env"]


def test_accelerators_are_asked_for_by_rank(make: Make) -> None:
    asked = {
        t["metadata"]["labels"]["distserve.io/role"]: t["spec"]["containers"][0]
        for t in templates(make(**VARIANTS["gpu"]))
        if "distserve.io/role" in t["metadata"]["labels"]
    }
    assert asked["prefill"]["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert asked["decode"]["resources"]["limits"] == {"nvidia.com/gpu": "4"}
    assert flag(asked["decode"], "tensor") == "2"
    assert "--kv-cache" not in asked["decode"]["args"]


def test_model_is_mounted_where_the_engine_reads_it(make: Make) -> None:
    for variant in ("claim", "host", "image"):
        for template in templates(make(**VARIANTS[variant])):
            for container in template["spec"]["containers"]:
                if container["name"] == "engine":
                    mounts = {m["mountPath"]: m for m in container["volumeMounts"]}
                    assert mounts[flag(container, "model")]["readOnly"] is True


def test_a_hubs_model_is_downloaded_before_the_engine_and_where_it_reads(make: Make) -> None:
    objects = make(**VARIANTS["hub"])
    pods = [t["spec"] for t in templates(objects) if "distserve.io/role" in t["metadata"]["labels"]]
    (revision,) = revisions(objects)
    for pod in pods:
        fetching, migrator = pod["initContainers"]
        assert migrator["name"] == "kv-migrator"
        assert fetching["image"] == pod["containers"][0]["image"]
        assert (flag(fetching, "repository"), flag(fetching, "revision")) == ("org/m", "v1")
        assert flag(fetching, "pin") == f"opt-13b-{revision}"
        (engine,) = pod["containers"]
        assert flag(engine, "model") == f"{flag(fetching, 'cache')}/pins/opt-13b-{revision}"
        (written,) = [
            m for m in fetching["volumeMounts"] if m["mountPath"] == flag(fetching, "cache")
        ]
        (read,) = [m for m in engine["volumeMounts"] if m["name"] == written["name"]]
        assert read["readOnly"] is True and "readOnly" not in written
        (token,) = [e for e in fetching["env"] if e["name"] == "HF_TOKEN"]
        assert token["valueFrom"]["secretKeyRef"] == {"name": "hub", "key": "token"}
        (volume,) = [v for v in pod["volumes"] if v["name"] == written["name"]]
        assert volume["persistentVolumeClaim"] == {"claimName": "models"}


def test_without_a_claim_each_pod_downloads_for_itself(make: Make) -> None:
    source = {"huggingFace": {"repository": "org/m"}}
    for cache, volume in (
        (None, {}), ({"ephemeral": {}}, {}),
        ({"ephemeral": {"sizeLimit": "9Gi"}}, {"sizeLimit": "9Gi"}),
    ):  # fmt: skip
        pod = next(templates(make(model={"id": "m", "source": source, "cache": cache})))["spec"]
        if "initContainers" in pod:
            (found,) = [v for v in pod["volumes"] if v["name"] == "model-cache"]
            assert found["emptyDir"] == volume


# ---- the rest -----------------------------------------------------------------------------------


def test_key_is_the_given_one_and_never_a_known_one(make: Make) -> None:
    (secret,) = of_kind(make(), "Secret")
    assert base64.b64decode(secret["data"]["key"]) == b"k" * 64
    assert secret["immutable"] is True


def test_slo_reaches_the_gateway(make: Make) -> None:
    (gateway,) = of_kind(make(slo={"ttft": "250ms", "tpot": "1s"}), "Deployment")
    (container,) = gateway["spec"]["template"]["spec"]["containers"]
    assert (flag(container, "slo-ttft"), flag(container, "slo-tpot")) == ("250ms", "1s")
    (gateway,) = of_kind(make(), "Deployment")
    assert "--slo-ttft" not in gateway["spec"]["template"]["spec"]["containers"][0]["args"]


def revisions(objects: list[Object]) -> set[str]:
    return {
        o["metadata"]["labels"]["distserve.io/revision"] for o in of_kind(objects, "StatefulSet")
    }


def test_revision_changes_with_the_pods_and_not_with_their_number(make: Make) -> None:
    (base,) = revisions(make())
    assert revisions(make(units=5)) == {base}
    assert revisions(make(prefill={"instancesPerUnit": 1})) == {base}
    assert revisions(make(gateway={"replicas": 7})) == {base}
    assert revisions(make(images={"gateway": "x"})) == {base}
    for change in (
        {"images": {"engine": "x"}},
        {"kvTransfer": {"blockTokens": 32}},
        {"decode": {"scheduling": {"maxNumSeqs": 1}}},
        {"prefill": {"podTemplate": {"spec": {"nodeSelector": {"a": "b"}}}}},
        {"rollout": {"drainDeadline": "5s"}},
    ):
        assert revisions(make(**change)) != {base}, change


def test_network_is_closed_but_for_the_known_paths(make: Make) -> None:
    policies = {o["metadata"]["name"]: o["spec"] for o in of_kind(make(), "NetworkPolicy")}
    ports = [
        (r["ports"][0]["port"], bool(r["from"])) for r in policies["opt-13b-engine"]["ingress"]
    ]
    assert ports == [(8100, True), (8101, True), (8102, True)]
    assert policies["opt-13b-gateway"]["ingress"] == [
        {"ports": [{"protocol": "TCP", "port": 8000}]}
    ]
    assert not of_kind(make(networkPolicy={"enabled": False}), "NetworkPolicy")


def test_rendering_is_pure(make: Make) -> None:
    assert make() == make()
