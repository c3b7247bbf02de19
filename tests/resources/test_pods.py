"""The rendered pods: whole, allowed, and with the flags that their processes read."""

from tests.resources.documents import (
    VARIANTS,
    Make,
    Object,
    containers,
    flag,
    of_kind,
    revisions,
    templates,
)

from distserve.api.quantities import parse_bytes


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
