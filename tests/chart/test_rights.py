"""What the operator may and may not do, asked of a real API server."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.cluster.cluster import CHECKOUT, Cluster
from tools.cluster.errors import CommandFailed

from distserve.cli.main import main

Question = tuple[str, str, str, str]
"""(verb, resource.group/subresource, name, whether in the own, a kept, a foreign namespace or
outside of all)"""

EVERYWHERE: list[Question] = [
    *(
        (verb, resource, "", where)
        for where in ("own", "foreign")
        for verb in ("create", "patch", "delete", "get", "list", "watch")
        for resource in (
            "statefulsets.apps",
            "deployments.apps",
            "controllerrevisions.apps",
            "services",
            "serviceaccounts",
            "podtemplates",
            "poddisruptionbudgets.policy",
            "networkpolicies.networking.k8s.io",
            "rolebindings.rbac.authorization.k8s.io",
            "podmonitors.monitoring.coreos.com",
            "prometheusrules.monitoring.coreos.com",
            "resourceclaimtemplates.resource.k8s.io",
            "computedomains.resource.nvidia.com",
            "provisioningrequests.autoscaling.x-k8s.io",
        )
    ),
    ("get", "distservedeployments.distserve.io", "", "foreign"),
    ("list", "distservedeployments.distserve.io", "", "foreign"),
    ("watch", "distservedeployments.distserve.io", "", "foreign"),
    ("patch", "distservedeployments.distserve.io/status", "", "foreign"),
    ("update", "distservedeployments.distserve.io/finalizers", "", "foreign"),
    ("create", "secrets", "", "foreign"),
    ("get", "secrets", "tiny-key", "foreign"),
    ("get", "configmaps", "trace", "foreign"),
    ("list", "pods", "", "foreign"),
    ("watch", "pods", "", "foreign"),
    ("list", "resourceclaims.resource.k8s.io", "", "foreign"),
    ("watch", "resourceclaims.resource.k8s.io", "", "foreign"),
    ("delete", "pods", "", "foreign"),
    ("patch", "pods/status", "", "foreign"),
    ("create", "events.events.k8s.io", "", "foreign"),
    ("bind", "clusterroles.rbac.authorization.k8s.io", "distserve-gateway", "foreign"),
]
OUTSIDE: list[Question] = [
    (verb, resource, "", "outside")
    for verb in ("get", "list", "watch")
    for resource in (
        "deviceclasses.resource.k8s.io",
        "resourceslices.resource.k8s.io",
        "nodes",
        "namespaces",
        "priorityclasses.scheduling.k8s.io",
    )
]
LEASE: list[Question] = [
    ("create", "leases.coordination.k8s.io", "", "own"),
    *(
        (verb, "leases.coordination.k8s.io", "distserve-operator", "own")
        for verb in ("get", "update", "watch")
    ),
]
NEVER: list[Question] = [
    *(
        (verb, "distservedeployments.distserve.io", "tiny", "foreign")
        for verb in ("create", "patch", "update", "delete")
    ),
    *(
        (verb, "secrets", "", where)
        for where in ("own", "foreign")
        for verb in ("list", "watch", "patch", "update", "delete", "deletecollection")
    ),
    *(
        (verb, "configmaps", "", where)
        for where in ("own", "foreign")
        for verb in ("create", "list", "watch", "patch", "update", "delete", "deletecollection")
    ),
    *(
        (verb, "leases.coordination.k8s.io", "other", "own")
        for verb in ("get", "update", "patch", "delete", "watch")
    ),
    ("list", "leases.coordination.k8s.io", "", "own"),
    ("create", "leases.coordination.k8s.io", "", "foreign"),
    ("get", "leases.coordination.k8s.io", "distserve-operator", "foreign"),
    ("create", "events", "", "foreign"),
    ("list", "events.events.k8s.io", "", "foreign"),
    ("create", "pods", "", "foreign"),
    ("patch", "pods", "", "foreign"),
    ("create", "pods/exec", "", "foreign"),
    ("create", "pods/eviction", "", "foreign"),
    ("create", "serviceaccounts/token", "", "foreign"),
    ("impersonate", "users", "", "outside"),
    ("bind", "clusterroles.rbac.authorization.k8s.io", "cluster-admin", "foreign"),
    ("bind", "clusterroles.rbac.authorization.k8s.io", "distserve-edit", "foreign"),
    ("escalate", "clusterroles.rbac.authorization.k8s.io", "distserve-gateway", "outside"),
    *(
        (verb, f"{kind}.rbac.authorization.k8s.io", "", "outside")
        for verb in ("create", "patch", "update", "delete")
        for kind in ("clusterroles", "clusterrolebindings")
    ),
    *((verb, "roles.rbac.authorization.k8s.io", "", "foreign") for verb in ("create", "patch")),
    *((verb, "nodes", "", "outside") for verb in ("create", "patch", "update", "delete")),
    *((verb, "namespaces", "", "outside") for verb in ("create", "patch", "delete")),
    ("create", "resourceclaims.resource.k8s.io", "", "foreign"),
    ("patch", "resourceclaims.resource.k8s.io", "", "foreign"),
    ("patch", "resourceslices.resource.k8s.io", "", "outside"),
    ("get", "pods/log", "", "foreign"),
    *((verb, "persistentvolumeclaims", "models", "foreign") for verb in ("get", "list", "delete")),
    *(
        (verb, "customresourcedefinitions.apiextensions.k8s.io", "", "outside")
        for verb in ("create", "patch", "update", "delete")
    ),
]


def allowed(
    cluster: Cluster, user: str, questions: Iterable[Question], namespaces: dict[str, str]
) -> list[bool]:
    """The API server's answers, in one call of kubectl."""
    reviews: list[Any] = []
    for verb, resource, name, where in questions:
        whole, _, subresource = resource.partition("/")
        plural, _, group = whole.partition(".")
        attributes = {"verb": verb, "resource": plural, "group": group, "name": name}
        attributes |= {"subresource": subresource, "namespace": namespaces[where]}
        spec = {"user": user, "groups": [], "resourceAttributes": attributes}
        reviews.append({"apiVersion": "authorization.k8s.io/v1", "kind": REVIEW, "spec": spec})
    bundle = {"apiVersion": "v1", "kind": "List", "items": reviews}
    said = cluster.kubectl("create", "--filename=-", "--output=json", stdin=json.dumps(bundle))
    decoder, answers, at = json.JSONDecoder(), [], 0
    while at < len(said.rstrip()):
        found, at = decoder.raw_decode(said, at + len(said[at:]) - len(said[at:].lstrip()))
        answers.append(bool(found["status"]["allowed"]))
    assert len(answers) == len(reviews)
    return answers


REVIEW = "SubjectAccessReview"


def wrong(
    cluster: Cluster,
    user: str,
    questions: list[Question],
    namespaces: dict[str, str],
    expected: bool,
) -> list[Question]:
    """The questions that were answered otherwise."""
    answers = allowed(cluster, user, questions, namespaces)
    return [
        question for question, yes in zip(questions, answers, strict=True) if yes is not expected
    ]


def test_the_operator_may_what_it_needs_and_no_more(release: Any) -> None:
    cluster, user = release.cluster, release.user
    where = {"own": release.namespace, "foreign": "default", "outside": ""}
    scanning: list[Question] = [
        (verb, "customresourcedefinitions.apiextensions.k8s.io", "", "outside")
        for verb in ("list", "watch")
    ]
    needed = [*EVERYWHERE, *OUTSIDE, *LEASE, *scanning]
    assert wrong(cluster, user, needed, where, True) == []
    assert wrong(cluster, user, NEVER, where, False) == []


def renamed(questions: list[Question], **names: str) -> list[Question]:
    return [
        (verb, resource, name.replace("distserve-", "distserve-one-"), names.get(where, where))
        for verb, resource, name, where in questions
    ]


def test_a_confined_operator_may_the_same_in_its_namespaces_alone(confined: Any) -> None:
    cluster, user = confined.release.cluster, confined.release.user
    where = {
        "own": confined.release.namespace,
        "kept": confined.kept,
        "foreign": confined.foreign,
        "outside": "",
    }
    kept = renamed(EVERYWHERE, own="kept", foreign="kept")
    needed = [*kept, *OUTSIDE, *renamed(LEASE)]
    assert wrong(cluster, user, needed, where, True) == []
    assert wrong(cluster, user, renamed(EVERYWHERE, own="foreign"), where, False) == []
    assert wrong(cluster, user, renamed(EVERYWHERE, own="outside"), where, False) == []
    assert wrong(cluster, user, renamed(NEVER), where, False) == []


def role_binding(cluster_role: str) -> str:
    return json.dumps(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": f"binds-{cluster_role}"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": cluster_role,
            },
            "subjects": [{"kind": "ServiceAccount", "name": "default"}],
        }
    )


@pytest.fixture(params=["everywhere", "confined"])
def kept(request: pytest.FixtureRequest, control_plane: Cluster) -> tuple[Any, str]:
    """A release, and a namespace that it keeps. `control_plane` stands here to be seen when tests
    are collected."""
    if request.param == "everywhere":
        release = request.getfixturevalue("release")
        return release, release.namespace
    confined = request.getfixturevalue("confined")
    return confined.release, confined.kept


def test_it_binds_the_gateways_role_and_no_other(kept: tuple[Any, str]) -> None:
    release, namespace = kept
    apply = ("apply", "--server-side", f"--namespace={namespace}", "--filename=-")
    release.as_operator(*apply, stdin=role_binding(f"{release.name}-gateway"))
    # Its own rights it could pass on, as everybody can.
    for other in ("cluster-admin", "view", "edit"):
        with pytest.raises(CommandFailed) as refused:
            release.as_operator(*apply, stdin=role_binding(other))
        assert "attempting to grant RBAC permissions not currently held" in refused.value.stderr


def test_a_bound_gateway_reads_endpoints_and_nothing_else(kept: tuple[Any, str]) -> None:
    release, namespace = kept
    apply = ("apply", "--server-side", f"--namespace={namespace}", "--filename=-")
    release.as_operator(*apply, stdin=role_binding(f"{release.name}-gateway"))
    user = f"system:serviceaccount:{namespace}:default"
    where = {"own": namespace}
    slices = "endpointslices.discovery.k8s.io"
    reads: list[Question] = [(verb, slices, "", "own") for verb in ("get", "list", "watch")]
    others: list[Question] = [
        ("create", slices, "", "own"),
        ("get", "pods", "", "own"),
        ("get", "secrets", "", "own"),
        ("get", "services", "", "own"),
    ]
    assert wrong(release.cluster, user, reads, where, True) == []
    assert wrong(release.cluster, user, others, where, False) == []


def test_a_key_is_made_and_read_by_name_but_never_listed(kept: tuple[Any, str]) -> None:
    release, namespace = kept
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "tiny-key"},
        "immutable": True,
        "stringData": {"key": "k"},
    }
    flag = f"--namespace={namespace}"
    release.as_operator("create", flag, "--filename=-", stdin=json.dumps(secret))
    assert "tiny-key" in release.as_operator("get", "secret", "tiny-key", flag)
    for words in (
        ("get", "secrets"),
        ("delete", "secret", "tiny-key"),
        ("annotate", "secret", "tiny-key", "a=b"),
    ):
        with pytest.raises(CommandFailed, match="forbidden"):
            release.as_operator(*words, flag)


@pytest.mark.parametrize(
    ("role", "may", "may_not"),
    [
        ("view", ("get", "list", "watch"), ("create", "patch", "delete")),
        ("edit", ("get", "create", "patch", "update", "delete", "deletecollection"), ()),
        ("admin", ("get", "create", "patch", "update", "delete", "deletecollection"), ()),
    ],
)
def test_users_roles_come_to_know_deployments(
    release: Any, role: str, may: tuple[str, ...], may_not: tuple[str, ...]
) -> None:
    cluster, where = release.cluster, {"own": release.namespace}
    user = f"someone-with-{role}"
    flag = f"--namespace={release.namespace}"
    cluster.kubectl("create", "rolebinding", user, f"--clusterrole={role}", f"--user={user}", flag)
    plural = "distservedeployments.distserve.io"
    scaling = "patch" if may_not == () else "get"
    yes: list[Question] = [(verb, plural, "", "own") for verb in may]
    yes.append((scaling, f"{plural}/scale", "", "own"))
    no: list[Question] = [(verb, plural, "", "own") for verb in may_not]
    no += [(verb, f"{plural}/status", "", "own") for verb in ("patch", "update")]
    # The controller manager aggregates a moment after the chart's roles are there.
    cluster.wait_for(
        f"{role} to have the chart's rights", lambda: not wrong(cluster, user, yes, where, True)
    )
    assert wrong(cluster, user, no, where, False) == []


def test_who_may_view_may_ask_why(
    release: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster, namespace = release.cluster, release.namespace
    flag = f"--namespace={namespace}"
    account = f"--serviceaccount={namespace}:viewer"
    cluster.kubectl("create", "serviceaccount", "viewer", flag)
    cluster.kubectl("create", "rolebinding", "viewer", "--clusterrole=view", account, flag)
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    token = cluster.kubectl("create", "token", "viewer", flag).strip()
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    cluster.apply(CHECKOUT / "manifests" / "samples" / "tiny-cpu.yaml", namespace)

    def answered() -> bool:
        return main(["why", "tiny", flag, f"--kubeconfig={tmp_path / 'config'}"]) == 1

    try:
        cluster.wait_for("view to have the chart's rights", answered)
        said = capsys.readouterr().out
        assert f"{namespace}/tiny does not serve" in said
        assert "events may not be read" not in said
    finally:
        cluster.kubectl("delete", "dsd", "tiny", flag)


def test_the_webhooks_rights_are_two_objects(hooked: Any) -> None:
    """A release with one may the same as the others, and read and write these by their names."""
    cluster, user = hooked.release.cluster, hooked.release.user
    where = {"own": hooked.release.namespace, "foreign": hooked.foreign, "outside": ""}
    configurations = "validatingwebhookconfigurations.admissionregistration.k8s.io"
    name = f"{hooked.release.name}-webhook"
    needed: list[Question] = [
        *((verb, "secrets", name, "own") for verb in ("get", "update")),
        *((verb, configurations, name, "outside") for verb in ("get", "patch")),
    ]
    others: list[Question] = [
        *((verb, "secrets", name, "own") for verb in ("patch", "delete", "list", "create")),
        *((verb, "secrets", other, "own") for verb in ("get", "update") for other in ("", "other")),
        *((verb, "secrets", name, "foreign") for verb in ("get", "update")),
        *((verb, configurations, "", "outside") for verb in ("create", "list", "watch")),
        *(
            (verb, configurations, "of-somebody-else", "outside")
            for verb in ("get", "patch", "update", "delete")
        ),
        *((verb, configurations, name, "outside") for verb in ("update", "delete")),
        ("patch", configurations.replace("validating", "mutating"), name, "outside"),
    ]
    assert wrong(cluster, user, needed, where, True) == []
    assert wrong(cluster, user, others, where, False) == []
