"""Merging a podTemplate: the documented table, and what it may not take away."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distserve.operator.requests import instance_request
from distserve.placement.readable import unreadable
from distserve.placement.requests import UnitId, UnitRequest
from distserve.resources.errors import MergeError
from distserve.resources.merge import merge_affinity, merge_pod_template

Object = dict[str, Any]
Make = Callable[..., list[Object]]
RENDERED: Object = {
    "metadata": {"labels": {"a": "1"}, "annotations": {"b": "1"}},
    "spec": {
        "volumes": [
            {"name": "run", "emptyDir": {}}, {"name": "key", "secret": {"secretName": "k"}},
        ],
        "containers": [
            {
                "name": "engine", "image": "i", "command": ["distserve", "engine"], "args": ["--a"],
                "env": [{"name": "POD_IP", "value": "x"}, {"name": "HOME", "value": "/tmp"}],
                "ports": [{"name": "engine", "containerPort": 8100, "protocol": "TCP"}],
                "volumeMounts": [{"name": "run", "mountPath": "/run/distserve"}],
                "resources": {"requests": {"cpu": "1", "memory": "1Gi"}},
            }
        ],
    },
}  # fmt: skip


def merged(spec: Object | None = None, metadata: Object | None = None) -> Object:
    before = copy.deepcopy(RENDERED)
    template = {"spec": spec or {}} | ({"metadata": metadata} if metadata else {})
    result = merge_pod_template(RENDERED, template, "spec.prefill.podTemplate")
    assert before == RENDERED, "the rendered template was changed"
    return result


def engine(**changes: Any) -> Object:
    found = merged({"containers": [{"name": "engine", **changes}]})
    container: Object = found["spec"]["containers"][0]
    return container


def test_nothing_changes_nothing() -> None:
    assert merge_pod_template(RENDERED, {}, "x") == RENDERED


def test_containers_merge_by_name_and_new_ones_are_added() -> None:
    spec = merged({"containers": [{"name": "extra"}, {"name": "engine", "image": "mine"}]})["spec"]
    assert [c["name"] for c in spec["containers"]] == ["engine", "extra"]
    assert spec["containers"][0]["image"] == "mine"
    assert spec["containers"][0]["args"] == ["--a"]


def test_maps_merge_key_by_key() -> None:
    resources = engine(resources={"requests": {"memory": "8Gi"}, "limits": {"memory": "9Gi"}})
    assert resources["resources"] == {
        "requests": {"cpu": "1", "memory": "8Gi"}, "limits": {"memory": "9Gi"},
    }  # fmt: skip
    assert merged(metadata={"labels": {"c": "2"}})["metadata"]["labels"] == {"a": "1", "c": "2"}


def test_names_of_labels_are_no_fields() -> None:
    labels = {"env": "prod", "team.volumes": "x"}
    assert merged(metadata={"labels": labels})["metadata"]["labels"] == {"a": "1", **labels}
    assert merged({"nodeSelector": {"env": "prod"}})["spec"]["nodeSelector"] == {"env": "prod"}


def test_env_is_replaced_by_name() -> None:
    source = {"secretKeyRef": {"name": "s", "key": "k"}}
    container = engine(env=[{"name": "HOME", "valueFrom": source}, {"name": "NEW", "value": "1"}])
    assert container["env"][1:] == [
        {"name": "HOME", "valueFrom": source}, {"name": "NEW", "value": "1"},
    ]  # fmt: skip


def test_ports_by_number_and_protocol_mounts_by_path() -> None:
    container = engine(
        ports=[{"containerPort": 8100, "protocol": "UDP"}, {"containerPort": 9}],
        volumeMounts=[{"name": "run", "mountPath": "/else"}],
    )
    assert [(p["containerPort"], p.get("protocol")) for p in container["ports"]] == [
        (8100, "TCP"), (8100, "UDP"), (9, None),
    ]  # fmt: skip
    assert [m["mountPath"] for m in container["volumeMounts"]] == ["/run/distserve", "/else"]


def test_tolerations_add_up_and_other_lists_are_replaced() -> None:
    base = merged({"tolerations": [{"key": "a"}], "dnsConfig": {"searches": ["x"]}})
    again = merge_pod_template(
        base, {"spec": {"tolerations": [{"key": "b"}], "dnsConfig": {"searches": ["y"]}}}, "f"
    )
    assert again["spec"]["tolerations"] == [{"key": "a"}, {"key": "b"}]
    assert again["spec"]["dnsConfig"] == {"searches": ["y"]}


def test_an_empty_dir_may_get_a_size() -> None:
    found = merged({"volumes": [{"name": "run", "emptyDir": {"sizeLimit": "1Gi"}}]})
    assert found["spec"]["volumes"][0] == {"name": "run", "emptyDir": {"sizeLimit": "1Gi"}}


REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
terms = st.lists(st.sampled_from("abcd"), min_size=1, max_size=3).map(
    lambda keys: [{"matchExpressions": [{"key": k, "operator": "Exists"}]} for k in keys]
)


@given(ours=terms, theirs=terms, node=st.sets(st.sampled_from("abcd")))
def test_required_node_affinity_holds_for_both(ours: Any, theirs: Any, node: set[str]) -> None:
    def fits(alternatives: list[Object]) -> bool:
        return any(all(e["key"] in node for e in t["matchExpressions"]) for t in alternatives)

    def affinity(alternatives: list[Object]) -> Object:
        return {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": alternatives}}}

    both = merge_affinity(affinity(ours), affinity(theirs))
    found = both["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]
    assert fits(found) == (fits(ours) and fits(theirs))


def test_preferences_and_pod_terms_add_up() -> None:
    ours = {"podAntiAffinity": {REQUIRED: [{"topologyKey": "a"}]}}
    theirs = {
        "podAntiAffinity": {REQUIRED: [{"topologyKey": "b"}]},
        "nodeAffinity": {PREFERRED: [{"weight": 1}]},
    }
    both = merge_affinity(ours, theirs)
    assert [t["topologyKey"] for t in both["podAntiAffinity"][REQUIRED]] == ["a", "b"]
    assert both["nodeAffinity"] == {PREFERRED: [{"weight": 1}]}


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ({"spec": {"containers": [{"name": "engine", "command": ["x"]}]}}, r"\[engine\].command"),
        ({"spec": {"containers": [{"name": "engine", "args": []}]}}, r"\[engine\].args"),
        (
            {"spec": {"containers": [{"name": "engine", "env": [{"name": "POD_IP"}]}]}},
            r"env\[POD_IP\]",
        ),
        (
            {
                "spec": {
                    "containers": [
                        {"name": "engine", "ports": [{"containerPort": 8100, "name": "x"}]}
                    ]
                }
            },
            r"\[engine\].ports",
        ),
        (
            {
                "spec": {
                    "containers": [
                        {
                            "name": "engine",
                            "volumeMounts": [{"name": "x", "mountPath": "/run/distserve"}],
                        }
                    ]
                }
            },
            r"\[engine\].volumeMounts",
        ),
        ({"spec": {"volumes": [{"name": "key", "emptyDir": {}}]}}, r"volumes\[key\]"),
        ({"metadata": {"labels": {"a": "2"}}}, "labels.a"),
        ({"metadata": {"labels": {"distserve.io/unit": "u7"}}}, "labels of distserve.io are the"),
        ({"metadata": {"name": "x"}}, "metadata.name"),
        ({"kind": "Pod"}, "kind: unknown"),
        ({"spec": {"containers": [{"image": "x"}]}}, "each item needs name"),
        ({"spec": {"containers": {"engine": {}}}}, "a list is needed"),
        ({"spec": {"$retainKeys": ["a"]}}, "directives"),
        ({"spec": {"tolerations": {"key": "a"}}}, "a list is needed"),
    ],
)
def test_what_the_processes_need_stays(template: Object, said: str) -> None:
    with pytest.raises(MergeError, match=said):
        merge_pod_template(RENDERED, template, "spec.prefill.podTemplate")


def _matching(*requirements: Any) -> Object:
    terms = {"nodeSelectorTerms": [{"matchExpressions": list(requirements)}]}
    return {"spec": {"affinity": {"nodeAffinity": {REQUIRED: terms}}}}


def _asking(requests: Any) -> Object:
    return {"spec": {"containers": [{"name": "engine", "resources": {"requests": requests}}]}}


A: Object = {"key": "a", "operator": "Gt", "values": ["1"]}


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ({"spec": ["x"]}, r"podTemplate.spec: a map is needed, not \['x'\]"),
        ({"metadata": {"labels": {"a": 1}}}, "metadata.labels.a: text is needed"),
        ({"metadata": {"labels": {1: "a"}}}, "the name 1 is no text: quote it"),
        ({"metadata": {"annotations": {"b": None}}}, "metadata.annotations.b: text is needed"),
        ({"spec": {"containers": [None]}}, r"containers\[0\]: a map is needed, and nothing is"),
        ({"spec": {"containers": ["engine"]}}, r"containers\[0\]: a map is needed"),
        ({"spec": {"containers": [{"name": 5}]}}, "containers: name of each item is text, not 5"),
        ({"spec": {"containers": [{"name": ["a"]}]}}, "name of each item is text"),
        (
            {"spec": {"containers": [{"name": "engine", "ports": [{"containerPort": [1]}]}]}},
            r"\[engine\].ports: containerPort of each item is a number",
        ),
        (_asking({"cpu": "2 cores"}), r"requests.cpu: '2 cores' is no quantity"),
        (_asking({"cpu": None}), "requests.cpu: a quantity is needed"),
        (_asking({"cpu": True}), "requests.cpu: a quantity is needed, as 64Mi, not True"),
        (_asking({"cpu": "-1"}), "requests.cpu: 0 or more is needed, not '-1'"),
        (_asking({"cpu": "1e999999999"}), "requests.cpu: '1e999999999' is no quantity"),
        (_asking({"cpu": "9" * 10**6}), "requests.cpu: '9+...' is no quantity"),
        ({"spec": {"overhead": {"memory": "much"}}}, "spec.overhead.memory: 'much' is no"),
        ({"spec": {"resources": {"limits": "8Gi"}}}, "spec.resources.limits: a map is needed"),
        ({"spec": {"nodeSelector": ["gpu"]}}, "spec.nodeSelector: a map is needed"),
        ({"spec": {"nodeSelector": {"gpu": None}}}, "spec.nodeSelector.gpu: text is needed"),
        ({"spec": {"nodeSelector": {"gpu": True}}}, "spec.nodeSelector.gpu: text is needed"),
        ({"spec": {"tolerations": ["x"]}}, r"spec.tolerations\[0\]: a map is needed, not 'x'"),
        ({"spec": {"tolerations": [{"value": 1}]}}, r"tolerations\[0\].value: text is needed"),
        ({"spec": {"priorityClassName": []}}, "priorityClassName: text is needed"),
        (
            {"spec": {"affinity": {"nodeAffinity": {REQUIRED: {}}}}},
            "nodeSelectorTerms: a list is needed, and nothing is there",
        ),
        (_matching("a"), r"matchExpressions\[0\]: a map is needed"),
        (
            _matching(A, A | {"operator": "in"}),
            r"spec.affinity.nodeAffinity.*\[0\].matchExpressions\[1\].operator: one of In, NotIn, "
            "Exists, DoesNotExist, Gt, Lt is needed, not 'in'",
        ),
        (_matching({"key": "a"}), "operator: one of In.* is needed, and nothing is there"),
        (_matching({"operator": "Exists"}), r"matchExpressions\[0\].key: text is needed"),
        (_matching(A | {"values": ["abc"]}), r"values: Gt needs one whole number.*, not \['abc'\]"),
        (_matching(A | {"values": []}), "values: Gt needs one whole number"),
        (_matching(A | {"values": [5]}), r"values\[0\]: text is needed"),
    ],
)
def test_what_is_read_before_the_api_server_judges_it_can_be_read(
    template: Object, said: str
) -> None:
    with pytest.raises(MergeError, match=said) as refused:
        merge_pod_template(RENDERED, template, "spec.prefill.podTemplate")
    assert str(refused.value).startswith("spec.prefill.podTemplate.")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "template",
    [
        {"spec": None},
        {"metadata": None, "spec": {}},
        {"metadata": {"labels": None, "annotations": None}},
        {"spec": dict.fromkeys(("nodeSelector", "priorityClassName", "containers", "volumes"))},
        {"spec": {"containers": [{"name": "engine", "resources": None, "command": None}]}},
        _asking(None),
    ],
)
def test_null_is_nothing_said(template: Object) -> None:
    """As Kubernetes reads what tools write for a field that is not set."""
    assert merge_pod_template(RENDERED, template, "spec.prefill.podTemplate") == RENDERED


def test_what_a_user_adds_has_no_nulls() -> None:
    exists = {"key": "a", "operator": "Exists"}
    terms = [{"matchExpressions": [exists | {"values": None}], "matchFields": None}]
    affinity = {
        "nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}, PREFERRED: None},
        "podAffinity": None,
    }
    extra = {"name": "extra", "resources": {"limits": None}, "env": None}
    spec: Object = {
        "affinity": affinity, "tolerations": [exists | {"effect": None}], "containers": [extra],
    }  # fmt: skip
    found = merged(spec)["spec"]
    assert found["affinity"] == {
        "nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": [exists]}]}}
    }
    assert found["tolerations"] == [exists]
    assert found["containers"][1] == {"name": "extra", "resources": {}}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=6,
)
FIELDS = [
    ("metadata",), ("metadata", "labels"), ("metadata", "annotations"), ("spec",),
    ("spec", "volumes"), ("spec", "resourceClaims"), ("spec", "nodeSelector"),
    ("spec", "tolerations"), ("spec", "affinity"), ("spec", "affinity", "nodeAffinity"),
    ("spec", "affinity", "nodeAffinity", REQUIRED), ("spec", "affinity", "podAffinity"),
    ("spec", "affinity", "nodeAffinity", REQUIRED, "nodeSelectorTerms"), ("spec", "containers"),
    ("spec", "initContainers"), ("spec", "overhead"), ("spec", "resources"),
    ("spec", "resources", "requests"), ("spec", "priorityClassName"), ("spec", "schedulerName"),
]  # fmt: skip


@given(field=st.sampled_from(FIELDS), value=json_values)
def test_whatever_stands_in_a_field_it_is_refused_or_placement_can_read_it(
    field: tuple[str, ...], value: Any
) -> None:
    template = value
    for name in reversed(field):
        template = {name: template}
    try:
        found = merge_pod_template(RENDERED, template, "f")
    except MergeError:
        return
    request = instance_request(
        {"metadata": {"name": "i"}, "spec": {"replicas": 1, "template": found}}
    )
    assert unreadable(UnitRequest(UnitId("llm", "opt", "u0"), (request,), 0.0)) == ""
    assert all(count >= 0 for count in request.amounts.values())


def test_templates_reach_their_pods(make: Make) -> None:
    template = {"metadata": {"annotations": {"x": "y"}}, "spec": {"nodeSelector": {"gpu": "a"}}}
    for section, kind in (("prefill", "StatefulSet"), ("gateway", "Deployment")):
        found = [
            o["spec"]["template"]
            for o in make(**{section: {"podTemplate": template}})
            if o["kind"] == kind
            and o["metadata"]["labels"].get("distserve.io/role", section) == section
        ]
        assert found
        for pod in found:
            assert pod["metadata"]["annotations"]["x"] == "y"
            assert pod["spec"]["nodeSelector"] == {"gpu": "a"}
