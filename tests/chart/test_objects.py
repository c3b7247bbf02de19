"""The chart's objects, for values that users set."""

from typing import Any

import pytest
from tools.cluster.cluster import CHECKOUT

from distserve.api.loading import load_deployment
from distserve.resources.render import render as made_of
from distserve.resources.settings import DefaultImages, RenderSettings

DIGEST = "sha256:" + "a1" * 32
SERVED = ("monitoring.coreos.com/v1/PodMonitor", "monitoring.coreos.com/v1/PrometheusRule")


def test_two_replicas_that_may_lose_one(render: Any) -> None:
    found = render()
    assert found.one("Deployment")["spec"]["replicas"] == 2
    budget = found.one("PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    selector = found.one("Deployment")["spec"]["selector"]
    assert budget["selector"] == selector
    assert found.one("NetworkPolicy")["spec"]["podSelector"] == selector
    labels = found.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert selector["matchLabels"].items() <= labels.items()
    # What the engines' NetworkPolicies let in.
    assert labels["app.kubernetes.io/name"] == "distserve-operator"


def test_replicas_keep_apart(render: Any) -> None:
    zone = {
        "maxSkew": 2,
        "topologyKey": "topology.kubernetes.io/zone",
        "whenUnsatisfiable": "DoNotSchedule",
    }
    for values, keys in (
        ({}, ["kubernetes.io/hostname"]),
        ({"operator": {"topologySpreadConstraints": [zone]}}, ["topology.kubernetes.io/zone"]),
    ):
        found = render(values)
        constraints = found.pod["topologySpreadConstraints"]
        assert [one["topologyKey"] for one in constraints] == keys
        for one in constraints:
            assert one["labelSelector"] == found.one("Deployment")["spec"]["selector"]
            assert one["matchLabelKeys"] == ["pod-template-hash"]
    assert zone.items() <= constraints[0].items()


@pytest.mark.parametrize("pod", ["operator", "test"])
def test_pods_may_do_nothing_on_their_node(render: Any, pod: str) -> None:
    found = render(tests=True)
    spec = found.pod if pod == "operator" else found.one("Pod")["spec"]
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}


def test_the_operator_gets_its_flags(render: Any) -> None:
    assert render().flags == {
        "--lease-namespace": "distserve-system",
        "--lease-name": "distserve-operator",
        "--identity": "$(POD_NAME)",
        "--engine-image": "distserve/engine:0.1.0",
        "--migrator-image": "distserve/migrator:0.1.0",
        "--gateway-image": "distserve/gateway:0.1.0",
        "--gateway-cluster-role": "distserve-gateway",
        "--health-port": "8081",
        "--metrics-port": "8080",
        "--workers": "4",
        "--log-level": "info",
        "--log-format": "json",
        "--engine-check": "on",
    }


@pytest.mark.parametrize(
    ("values", "flags"),
    [
        ({"namespaces": ["a", "b"]}, {"--namespaces": "a,b"}),
        ({"namespaces": ["2024"]}, {"--namespaces": "2024"}),
        ({"operator": {"workers": 8}}, {"--workers": "8"}),
        ({"operator": {"logLevel": "debug"}}, {"--log-level": "debug"}),
        ({"operator": {"logFormat": "text"}}, {"--log-format": "text"}),
        ({"operator": {"engineCheck": False}}, {"--engine-check": "off"}),
        (
            {"monitoring": {"labels": {"release": "kps", "example.com/team": "llm"}}},
            {"--monitoring-labels": "example.com/team=llm,release=kps"},
        ),
        (
            {"fullnameOverride": "serve"},
            {"--lease-name": "serve-operator", "--gateway-cluster-role": "serve-gateway"},
        ),
    ],
    ids=str,
)
def test_values_become_flags(render: Any, values: Any, flags: dict[str, str]) -> None:
    assert flags.items() <= render(values).flags.items()


@pytest.mark.parametrize(
    ("image", "registry", "name"),
    [
        ({}, "", "distserve/engine:0.1.0"),
        ({"tag": "nightly"}, "", "distserve/engine:nightly"),
        ({"digest": DIGEST}, "", f"distserve/engine@{DIGEST}"),
        ({"tag": "1.2", "digest": DIGEST}, "", f"distserve/engine:1.2@{DIGEST}"),
        ({"repository": "mine/engine"}, "r.example:5000/m", "r.example:5000/m/mine/engine:0.1.0"),
    ],
    ids=str,
)
def test_names_of_images(render: Any, image: Any, registry: str, name: str) -> None:
    values = {"images": {"registry": registry, "engine": image, "operator": image}}
    found = render(values, tests=True)
    assert found.flags["--engine-image"] == name
    own = name if "repository" in image else name.replace("/engine", "/operator")
    assert found.container["image"] == own
    assert found.one("Pod")["spec"]["containers"][0]["image"] == own


def test_a_tag_of_all_images(render: Any) -> None:
    found = render({"images": {"tag": "main-1", "gateway": {"tag": "mine"}}})
    assert found.container["image"] == "distserve/operator:main-1"
    assert found.flags["--engine-image"] == "distserve/engine:main-1"
    assert found.flags["--migrator-image"] == "distserve/migrator:main-1"
    assert found.flags["--gateway-image"] == "distserve/gateway:mine"


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("nodeSelector", {"disk": "ssd"}, "nodeSelector"),
        ("tolerations", [{"key": "infra", "operator": "Exists"}], "tolerations"),
        ("affinity", {"podAntiAffinity": {}}, "affinity"),
        ("priorityClassName", "system-cluster-critical", "priorityClassName"),
    ],
)
def test_where_the_operator_runs(render: Any, key: str, value: Any, field: str) -> None:
    assert field not in render().pod
    assert render({"operator": {key: value}}).pod[field] == value


def test_what_pods_carry(render: Any) -> None:
    """Labels of the chart's own cannot be changed: policies and budgets go by them."""
    found = render(
        {
            "imagePullSecrets": [{"name": "mine"}],
            "images": {"pullPolicy": "Always"},
            "operator": {
                "podLabels": {"team": "llm", "app.kubernetes.io/name": "other"},
                "podAnnotations": {"note": "1"},
                "resources": {"limits": {"cpu": 1}, "requests": None},
            },
        },
        tests=True,
    )
    metadata = found.one("Deployment")["spec"]["template"]["metadata"]
    assert metadata["annotations"] == {"note": "1"}
    assert metadata["labels"]["team"] == "llm"
    assert metadata["labels"]["app.kubernetes.io/name"] == "distserve-operator"
    for spec in (found.pod, found.one("Pod")["spec"]):
        assert spec["imagePullSecrets"] == [{"name": "mine"}]
        assert spec["containers"][0]["imagePullPolicy"] == "Always"
    assert found.container["resources"]["limits"]["cpu"] == 1


@pytest.mark.parametrize(
    ("when", "served", "there"),
    [
        ("Auto", (), False),
        ("Auto", SERVED, True),
        ("Always", (), True),
        ("Never", SERVED, False),
    ],
)
def test_a_pod_monitor_where_it_is_served(render: Any, when: str, served: Any, there: bool) -> None:
    values = {"monitoring": {"podMonitor": when, "interval": "15s", "labels": {"release": "p"}}}
    found = render(values, served=served)
    assert len(found.all("PodMonitor")) == there
    if there:
        monitor = found.one("PodMonitor")
        assert monitor["metadata"]["labels"]["release"] == "p"
        assert monitor["spec"]["selector"] == found.one("Deployment")["spec"]["selector"]
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert endpoint == {"port": "metrics", "path": "/metrics", "interval": "15s"}
        assert endpoint["port"] in {port["name"] for port in found.container["ports"]}


@pytest.mark.parametrize(("when", "there"), [("Auto", True), ("Always", True), ("Never", False)])
def test_alerts_where_they_are_served(render: Any, when: str, there: bool) -> None:
    values = {"monitoring": {"prometheusRule": when, "labels": {"release": "p"}}}
    found = render(values, served=SERVED, namespace="ops")
    assert len(found.all("PrometheusRule")) == there
    assert len(render(values).all("PrometheusRule")) == (when == "Always")
    if there:
        rule = found.one("PrometheusRule")
        assert rule["metadata"]["labels"]["release"] == "p"
        (group,) = rule["spec"]["groups"]
        for alert in group["rules"]:
            assert 'namespace="ops", pod=~"distserve-operator-.+"' in alert["expr"]
            assert alert["labels"]["severity"] in ("warning", "critical")
            assert {"summary", "description", "runbook_url"} == alert["annotations"].keys()


def test_alerts_say_whose_they_are_whatever_its_name(render: Any) -> None:
    rule = render({"monitoring": {"prometheusRule": "Always"}}, namespace="2024")
    (group,) = rule.one("PrometheusRule")["spec"]["groups"]
    for alert in group["rules"]:
        whose = (alert["labels"]["namespace"], alert["labels"]["operator"])
        assert whose == ("2024", "distserve-operator")


def test_the_network_policy_can_be_left_out(render: Any) -> None:
    assert render({"networkPolicy": {"enabled": False}}).all("NetworkPolicy") == []


def test_the_api_servers_port_can_be_another(render: Any) -> None:
    policy = render({"networkPolicy": {"apiServerPorts": [16443]}}).one("NetworkPolicy")
    assert policy["spec"]["egress"][0] == {"ports": [{"protocol": "TCP", "port": 16443}]}


def test_what_the_operator_reaches_lets_it_in(render: Any) -> None:
    """The chart's policy and those that are made with a deployment are two sides of one thing."""
    deployment = load_deployment(CHECKOUT / "manifests" / "samples" / "tiny-cpu.yaml")
    settings = RenderSettings(images=DefaultImages("engine", "migrator", "gateway"))
    made = made_of(deployment, settings)
    found = render()
    *_, to_engines = found.one("NetworkPolicy")["spec"]["egress"]
    (peer,) = to_engines["to"]
    templates = [one["spec"]["template"] for one in made if one["kind"] == "StatefulSet"]
    for template in templates:
        wanted, labels = peer["podSelector"]["matchLabels"], template["metadata"]["labels"]
        assert wanted.items() <= labels.items()
    (engines,) = [
        one["spec"]["ingress"]
        for one in made
        if one["kind"] == "NetworkPolicy" and one["metadata"]["name"] == "tiny-engine"
    ]
    operator = found.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    open_to_it = {
        port["port"]
        for rule in engines
        for peer in rule["from"]
        for port in rule["ports"]
        if "namespaceSelector" in peer
        and peer.get("podSelector", {}).get("matchLabels", {"": ""}).items() <= operator.items()
    }
    assert {port["port"] for port in to_engines["ports"]} == open_to_it


def test_the_crd_outlives_the_release(render: Any) -> None:
    crd = render().one("CustomResourceDefinition")
    assert crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert render({"crds": {"install": False}}).all("CustomResourceDefinition") == []


def test_one_namespace_or_all(render: Any) -> None:
    """The same rules, in a ClusterRole or in a Role for each namespace."""
    everywhere = render()
    confined = render({"namespaces": ["a", "b"]})
    roles = [one for one in confined.all("Role") if not one["metadata"]["name"].endswith("lease")]
    assert [role["metadata"]["namespace"] for role in roles] == ["a", "b"]
    outside = confined.one("ClusterRole", "distserve-operator")["rules"]
    read = {name for one in outside for name in one["resources"]}
    of_no_namespace = {"namespaces", "nodes", "priorityclasses", "deviceclasses", "resourceslices"}
    assert read == of_no_namespace
    assert all(one["verbs"] == ["get", "list", "watch"] for one in outside)
    rules = everywhere.one("ClusterRole", "distserve-operator")["rules"]
    for role in roles:
        assert [rule for rule in rules if rule in role["rules"]] == role["rules"]
    subject = {"kind": "ServiceAccount", "name": "distserve-operator"}
    for binding in (*everywhere.all("ClusterRoleBinding"), *confined.all("RoleBinding")):
        assert binding["subjects"] == [{**subject, "namespace": "distserve-system"}]


@pytest.mark.parametrize("values", [{}, {"namespaces": ["a"]}], ids=["everywhere", "confined"])
def test_no_right_is_a_wildcard(render: Any, values: Any) -> None:
    found = render(values, tests=True)
    for role in (*found.all("ClusterRole"), *found.all("Role")):
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert {"escalate", "impersonate"}.isdisjoint(rule["verbs"])
            if "bind" in rule["verbs"]:
                assert rule["resourceNames"] == ["distserve-gateway"]


@pytest.mark.parametrize(
    ("release", "name"),
    [("distserve", "distserve"), ("my-distserve", "my-distserve"), ("llm", "llm-distserve")],
)
def test_names_follow_the_release(render: Any, release: str, name: str) -> None:
    found = render(release=release)
    assert found.one("Deployment")["metadata"]["name"] == f"{name}-operator"
    assert {one["metadata"]["name"] for one in found.all("ClusterRole")} == {
        f"{name}-{part}" for part in ("operator", "gateway", "edit", "view")
    }


@pytest.mark.parametrize("release", ["distserve", "1"])
def test_everything_is_labelled(render: Any, release: str) -> None:
    for found in render(release=release, tests=True).objects:
        labels = found["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "distserve"
        assert labels["app.kubernetes.io/instance"] == release
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
