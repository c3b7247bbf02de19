"""The operator with the chart's command line and the chart's rights: what it needs, it may."""

import argparse
import contextlib
import re
import urllib.request
from typing import Any

import pytest
import yaml
from tools.chart.rendering import template
from tools.cluster import fake_nodes
from tools.cluster.cluster import CHECKOUT, Cluster
from tools.cluster.conditions import conditions

from distserve.api.loading import parse_deployment
from distserve.cli import operator as command
from distserve.operator.model import Features
from distserve.resources.support import unsupported_by_cluster

SECONDS = 60


def test_the_command_knows_the_charts_flags(render: Any) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    labels = {"release": "kps", "example.com/team": "llm"}
    container = render({"namespaces": ["a", "b"], "monitoring": {"labels": labels}}).container
    assert container["command"] == ["distserve", "operator"]
    args = parser.parse_args(container["args"])
    assert (args.namespaces, args.workers, args.log_level) == ("a,b", 4, "info")
    assert command.render_settings(args).monitoring_labels == labels
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"metrics": args.metrics_port, "health": args.health_port}


@pytest.mark.parametrize("enabled", [False, True])
def test_models_come_in_images_before_1_35_only_where_it_is_said(
    render: Any, enabled: bool
) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    container = render({"imageVolume": {"enabled": enabled}}).container
    said = command.decide_settings(parser.parse_args(container["args"]))
    found = sample()
    found["spec"]["model"]["source"] = {"image": "registry.example.com/model:1"}
    deployment, old = parse_deployment(found, "test"), Features(kubernetes=(1, 34))
    refused = unsupported_by_cluster(deployment, old, said.feature_gates)
    assert refused is None if enabled else refused and "imageVolume.enabled=true" in refused


def sample() -> Any:
    """The tiny one, on fake nodes."""
    found = yaml.safe_load((CHECKOUT / "manifests" / "samples" / "tiny-cpu.yaml").read_text())
    tolerant = {"spec": {"tolerations": [fake_nodes.TOLERATION]}}
    for section in ("prefill", "decode", "gateway"):
        found["spec"].setdefault(section, {})["podTemplate"] = tolerant
    return found


def made(cluster: Cluster, namespace: str) -> set[str]:
    kinds = "statefulset,deployment,service,sa,rolebinding,netpol,pdb,secret,controllerrevision"
    said = cluster.kubectl("get", kinds, f"--namespace={namespace}", "--output=name")
    return set(said.split())


# The fixtures that are asked for by name are not seen when tests are collected.
@pytest.mark.usefixtures("control_plane")
@pytest.mark.parametrize("mode", ["everywhere", "confined"])
def test_a_deployment_is_made_with_the_charts_rights(
    request: pytest.FixtureRequest, mode: str, start_operator: Any
) -> None:
    if mode == "everywhere":
        release = request.getfixturevalue("release")
        spaces: Any = release.cluster.namespace("user")
    else:
        confined = request.getfixturevalue("confined")
        release, spaces = confined.release, contextlib.nullcontext(confined.kept)
    cluster = release.cluster
    with start_operator(release) as operator, spaces as namespace:
        cluster.apply(sample(), namespace)
        wanted = {
            "statefulset.apps/tiny-u0-prefill-0",
            "statefulset.apps/tiny-u0-decode-0",
            "deployment.apps/tiny-gateway",
            "service/tiny-gateway",
            "serviceaccount/tiny-gateway",
            "rolebinding.rbac.authorization.k8s.io/tiny-gateway",
            "networkpolicy.networking.k8s.io/tiny-engine",
            "secret/tiny-key",
        }

        def complete() -> bool:
            return wanted <= made(cluster, namespace)

        cluster.wait_for(f"{wanted}\n{operator.tail}", complete, SECONDS)

        def told() -> bool:
            return "Ready" in conditions(cluster.get("dsd", "tiny", namespace))

        cluster.wait_for("a status", told, SECONDS)
        lease = cluster.get("lease", release.operator, release.namespace)
        assert lease["spec"]["holderIdentity"] == "a-pod"
        with urllib.request.urlopen(operator.metrics, timeout=5) as answer:
            metrics = answer.read().decode()
        rules = template({"monitoring": {"prometheusRule": "Always"}})
        names = set(re.findall(r"distserve_operator_\w+", rules))
        assert names == {
            name for name in names if re.search(rf"^{name}(_bucket)?[ {{]", metrics, re.M)
        }
        cluster.kubectl("delete", "dsd", "tiny", f"--namespace={namespace}")
    assert operator.process.returncode == 0, operator.tail
    assert 'outcome="403"' not in metrics, operator.tail
    assert "forbidden" not in operator.log.read_text().lower(), operator.tail


@pytest.mark.usefixtures("control_plane")
def test_a_namespace_without_its_role_takes_no_other_with_it(
    confined: Any, start_operator: Any
) -> None:
    """One that is deleted takes the role along, and has none when it is made anew."""
    names = f"--namespaces=gone,{confined.kept},{confined.foreign}"
    cluster = confined.release.cluster
    document = sample()
    document["metadata"]["name"] = "kept"
    with start_operator(confined.release, names) as operator:
        cluster.apply(document, confined.kept)

        def complete() -> bool:
            return "deployment.apps/kept-gateway" in made(cluster, confined.kept)

        cluster.wait_for(f"a deployment's objects\n{operator.tail}", complete, SECONDS)
        with urllib.request.urlopen(operator.metrics, timeout=5) as answer:
            assert "distserve_operator_namespaces_left_out 2.0" in answer.read().decode()
        cluster.kubectl("delete", "dsd", "kept", f"--namespace={confined.kept}")
    assert operator.process.returncode == 0, operator.tail
    assert f"namespace {confined.foreign} is left out" in operator.log.read_text()
