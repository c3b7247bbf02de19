"""The webhook that is optional: what the chart makes for it, and whom it can hold up."""

import argparse
import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from tools.chart.rendering import CHART
from tools.cluster import fake_nodes
from tools.cluster.cluster import CHECKOUT, Cluster
from tools.cluster.errors import CommandFailed
from tools.cluster.waiting import wait_for

from distserve.cli import operator as command
from distserve.operator.settings import SelfMadeCertificate

Object = dict[str, Any]

ON: Object = {"webhook": {"enabled": True}}
CERT_MANAGER: Object = {"webhook": {"enabled": True, "certificates": "CertManager"}}
CONFIGURATION = "ValidatingWebhookConfiguration"
NAME = "distserve-webhook"
SECONDS = 60


def test_without_it_there_is_nothing_of_it(render: Any) -> None:
    assert "webhook" not in json.dumps(render(tests=True).objects)


def test_it_is_asked_about_changed_specs_of_deployments_alone(render: Any) -> None:
    (hook,) = render(ON).one(CONFIGURATION)["webhooks"]
    assert hook["rules"] == [
        {
            "apiGroups": ["distserve.io"],
            "apiVersions": ["*"],
            "resources": ["distservedeployments"],
            "operations": ["CREATE", "UPDATE"],
            "scope": "Namespaced",
        }
    ]
    assert (hook["failurePolicy"], hook["timeoutSeconds"]) == ("Ignore", 5)
    assert hook["sideEffects"] == "None", "dry runs are judged, too"
    assert "caBundle" not in hook["clientConfig"], "an upgrade leaves what another wrote"
    given = {**ON["webhook"], "failurePolicy": "Fail", "timeoutSeconds": 2}
    (hook,) = render({"webhook": given}).one(CONFIGURATION)["webhooks"]
    assert (hook["failurePolicy"], hook["timeoutSeconds"]) == ("Fail", 2)


def test_it_is_asked_for_the_namespaces_that_are_kept(render: Any) -> None:
    def selected(values: Object) -> list[Any]:
        (hook,) = render(values, namespace="ops").one(CONFIGURATION)["webhooks"]
        found = hook.get("namespaceSelector", {}).get("matchExpressions", [])
        assert {one["key"] for one in found} <= {"kubernetes.io/metadata.name"}
        return [(one["operator"], one["values"]) for one in found]

    assert selected(ON) == []
    kept = {**ON, "namespaces": ["ops", "2024"]}
    assert selected(kept) == [("In", ["ops", "2024"])], "its own as any other"


def test_the_service_leads_to_every_replica(render: Any) -> None:
    found = render(ON)
    service = found.one("Service", NAME)
    assert service["spec"]["selector"] == found.one("Deployment")["spec"]["selector"]["matchLabels"]
    (port,) = service["spec"]["ports"]
    ports = {one["name"]: one["containerPort"] for one in found.container["ports"]}
    assert ports[port["targetPort"]] == int(found.flags["--webhook-port"])
    (hook,) = found.one(CONFIGURATION)["webhooks"]
    assert hook["clientConfig"]["service"] == {
        "name": NAME,
        "namespace": "distserve-system",
        "path": "/validate",
        "port": port["port"],
    }
    let_in = found.one("NetworkPolicy")["spec"]["ingress"]
    assert {"ports": [{"protocol": "TCP", "port": "webhook"}]} in let_in
    assert len(render().one("NetworkPolicy")["spec"]["ingress"]) == len(let_in) - 1


def test_who_ends_is_called_a_moment_longer(render: Any) -> None:
    leaving = {"preStop": {"sleep": {"seconds": 5}}}
    assert render(ON).container["lifecycle"] == leaving
    assert render(ON).pod["terminationGracePeriodSeconds"] > 20
    assert "lifecycle" not in render().container, "without it the Lease is given back at once"


def test_a_certificate_of_its_own(render: Any) -> None:
    found = render(ON)
    own = {"--webhook-service": NAME, "--webhook-configuration": NAME, "--webhook-port": "9443"}
    assert own.items() <= found.flags.items()
    secret = found.one("Secret", NAME)
    assert {"data", "stringData"}.isdisjoint(secret), "an upgrade leaves what is in it"
    rules = [*found.one("Role", NAME)["rules"], *found.one("ClusterRole", NAME)["rules"]]
    assert [(one["resources"], one["resourceNames"], one["verbs"]) for one in rules] == [
        (["secrets"], [NAME], ["get", "update"]),
        (["validatingwebhookconfigurations"], [NAME], ["get", "patch"]),
    ]
    assert found.all("Certificate") == found.all("Issuer") == []
    assert [one["name"] for one in found.pod["volumes"]] == ["tmp"]


def test_one_of_cert_managers(render: Any) -> None:
    found = render(CERT_MANAGER)
    certificate, issuer = found.one("Certificate", NAME), found.one("Issuer", NAME)
    (name,) = certificate["spec"]["dnsNames"]
    (hook,) = found.one(CONFIGURATION)["webhooks"]
    service = hook["clientConfig"]["service"]
    assert name == f"{service['name']}.{service['namespace']}.svc"
    about = certificate["metadata"]
    injected = {"cert-manager.io/inject-ca-from": f"{about['namespace']}/{about['name']}"}
    assert found.one(CONFIGURATION)["metadata"]["annotations"] == injected
    named = {"kind": issuer["kind"], "name": issuer["metadata"]["name"]}
    assert certificate["spec"]["issuerRef"] == named
    (volume,) = [one for one in found.pod["volumes"] if one["name"] != "tmp"]
    assert volume["secret"]["secretName"] == certificate["spec"]["secretName"]
    assert volume["secret"]["optional"], "the operator starts without it"
    folder = found.flags["--webhook-cert-dir"]
    assert {"name": volume["name"], "mountPath": folder, "readOnly": True} in found.container[
        "volumeMounts"
    ]
    assert "--webhook-service" not in found.flags
    for kind in ("Secret", "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"):
        assert NAME not in [one["metadata"]["name"] for one in found.all(kind)]


def test_cert_managers_certificates_change_and_their_authority_does_not(render: Any) -> None:
    """Else API servers would trust the next one alone, a minute before operators have it."""
    found = render(CERT_MANAGER)
    authority, root = found.one("Certificate", f"{NAME}-ca"), found.one("Issuer", f"{NAME}-root")
    assert found.one("Issuer", NAME)["spec"] == {"ca": {"secretName": f"{NAME}-ca"}}
    said = authority["spec"]
    assert (said["secretName"], said["isCA"]) == (f"{NAME}-ca", True)
    assert said["privateKey"]["rotationPolicy"] == "Never"
    assert found.one("Certificate", NAME)["spec"]["privateKey"]["rotationPolicy"] == "Always"
    assert said["issuerRef"] == {"kind": "Issuer", "name": root["metadata"]["name"]}
    assert root["spec"] == {"selfSigned": {}}
    mounted = [one["secret"]["secretName"] for one in found.pod["volumes"] if "secret" in one]
    assert mounted == [f"{NAME}-tls"], "nobody can sign in the operator's pod"


@pytest.mark.parametrize("values", [ON, CERT_MANAGER], ids=["own", "cert-manager"])
def test_the_command_knows_its_flags(render: Any, values: Object) -> None:
    """And calls itself by the name by which the API server calls it."""
    found = render(values, namespace="ops")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    webhook = command._settings(parser.parse_args(found.container["args"])).webhook
    assert webhook is not None
    (hook,) = found.one(CONFIGURATION)["webhooks"]
    service = hook["clientConfig"]["service"]
    if isinstance(webhook.certificate, SelfMadeCertificate):
        assert webhook.certificate.names == (f"{service['name']}.{service['namespace']}.svc",)
        assert webhook.certificate.secret == found.one("Secret")["metadata"]["name"]
        assert webhook.certificate.namespace == found.one("Secret")["metadata"]["namespace"]
        assert webhook.certificate.configuration == found.one(CONFIGURATION)["metadata"]["name"]
    else:
        folders = [one["mountPath"] for one in found.container["volumeMounts"]]
        assert str(webhook.certificate.folder) in folders


def test_an_issuer_of_yours(render: Any) -> None:
    mine = {"kind": "ClusterIssuer", "name": "corp"}
    found = render({"webhook": {**CERT_MANAGER["webhook"], "issuer": mine}})
    assert found.one("Certificate")["spec"]["issuerRef"] == mine, "and no other one"
    assert found.all("Issuer") == []


# In a cluster.


def tiny(name: str, **spec: Any) -> Object:
    found: Object = yaml.safe_load(
        (CHECKOUT / "manifests" / "samples" / "tiny-cpu.yaml").read_text()
    )
    found["metadata"]["name"] = name
    tolerant = {"spec": {"tolerations": [fake_nodes.TOLERATION]}}
    for section in ("prefill", "decode", "gateway"):
        found["spec"].setdefault(section, {})["podTemplate"] = copy.deepcopy(tolerant)
    found["spec"] |= spec
    return found


WRONG = {"parallelism": {"tensor": 2}}
SAID = "spec.prefill.parallelism: this engine cannot run more than one rank yet; set tensor: 1"


def refused(cluster: Cluster, namespace: str, document: Object, *flags: str) -> str:
    """Why it was, empty when it was taken."""
    try:
        cluster.apply(document, namespace, *flags)
    except CommandFailed as failed:
        return failed.stderr
    return ""


def configure(installed: Any, **fields: Any) -> None:
    patch = [
        {"op": "replace", "path": f"/webhooks/0/{name}", "value": value}
        for name, value in fields.items()
    ]
    name, words = f"{installed.name}-webhook", f"--patch={json.dumps(patch)}"
    installed.cluster.kubectl("patch", CONFIGURATION, name, "--type=json", words)


@pytest.fixture
def port(hooked: Any, free_port: int) -> Iterator[int]:
    """Where the API server calls instead of the Service, since no network leads to its pods."""
    installed = hooked.release
    (before,) = installed.cluster.get(CONFIGURATION, f"{installed.name}-webhook")["webhooks"]
    configure(installed, clientConfig={"url": f"https://localhost:{free_port}/validate"})
    yield free_port
    fields = ("clientConfig", "failurePolicy")
    configure(installed, **{name: before[name] for name in fields})


def test_whom_it_holds_up_while_no_operator_runs(hooked: Any) -> None:
    installed, kept = hooked.release, hooked.kept
    cluster = installed.cluster
    for document in (tiny("before"), tiny("wrong", prefill=WRONG)):
        assert refused(cluster, kept, document) == "", "Ignore: everything passes"
    configure(installed, failurePolicy="Fail")
    dry = "--dry-run=server"
    cluster.wait_for(
        "the API server to know", lambda: bool(refused(cluster, kept, tiny("new"), dry))
    )
    assert "failed calling webhook" in refused(cluster, kept, tiny("new"))
    assert "failed calling webhook" in refused(cluster, kept, tiny("before", units=2))
    # What is no change of a spec, of another kind or in another namespace goes on.
    cluster.kubectl("annotate", "dsd", "before", "note=1", f"-n{kept}")
    finalizers = [json.dumps({"metadata": {"finalizers": found}}) for found in (["e.io/f"], None)]
    cluster.kubectl("patch", "dsd/before", f"-n{kept}", "--type=merge", f"-p={finalizers[0]}")
    status = json.dumps({"status": {"observedGeneration": 1}})
    patch_status = ("patch", "dsd/before", "--subresource=status", "--type=merge")
    cluster.kubectl(*patch_status, f"-n{kept}", f"-p={status}")
    cluster.kubectl("create", "configmap", "other", f"-n{kept}")
    assert refused(cluster, installed.namespace, tiny("system"), dry) == ""
    with cluster.namespace("elsewhere") as elsewhere:
        assert refused(cluster, elsewhere, tiny("new")) == ""
    cluster.kubectl("delete", "dsd", "before", f"-n{kept}", "--wait=false")
    cluster.kubectl("patch", "dsd/before", f"-n{kept}", "--type=merge", f"-p={finalizers[1]}")
    cluster.kubectl("delete", "dsd", "wrong", f"-n{kept}")
    assert cluster.get("dsd", "", kept)["items"] == []
    configure(installed, failurePolicy="Ignore")


def test_it_refuses_with_the_charts_rights(hooked: Any, start_operator: Any, port: int) -> None:
    """The chart's configuration and rights, the operator's certificate, the API server's trust."""
    installed, kept = hooked.release, hooked.kept
    cluster, name = installed.cluster, f"{installed.name}-webhook"
    configure(installed, failurePolicy="Fail")
    with start_operator(installed, f"--webhook-port={port}") as operator:

        def says() -> str:
            return refused(cluster, kept, tiny("wrong", prefill=WRONG), "--dry-run=server")

        wait_for(
            "its words", lambda: SAID in says(), SECONDS, explain=lambda: says() + operator.tail
        )
        assert "denied the request" in says()
        cluster.apply(tiny("good"), kept)

        def reported() -> bool:
            return bool(cluster.get("dsd", "good", kept).get("status", {}).get("conditions"))

        cluster.wait_for("a status", reported, SECONDS)
        found = cluster.get("secret", name, installed.namespace)
        assert found["data"].keys() == {"ca.crt", "tls.crt", "tls.key"}
        (hook,) = cluster.get(CONFIGURATION, name)["webhooks"]
        assert hook["clientConfig"]["caBundle"] == found["data"]["ca.crt"]
        service = {"name": name, "namespace": installed.namespace, "path": "/validate"}
        again = {"service": {**service, "port": 443}, "caBundle": found["data"]["ca.crt"]}
        configure(installed, clientConfig=again)
        # helm owns neither, and an upgrade takes nothing away.
        installed.upgrade(CHART, "--force-conflicts", "--set=operator.workers=5")
        assert cluster.get("secret", name, installed.namespace)["data"] == found["data"]
        (hook,) = cluster.get(CONFIGURATION, name)["webhooks"]
        assert hook["clientConfig"]["caBundle"] == found["data"]["ca.crt"]
        cluster.kubectl("delete", "dsd", "good", f"-n{kept}")
    assert "forbidden" not in operator.log.read_text().lower(), operator.tail
