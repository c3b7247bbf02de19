"""Revisions: stored templates outlive their builders; what is made from what, and where it goes."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from distserve.api.deployment import DistServeDeployment, from_document
from distserve.api.status import PlanStatus
from distserve.resources import naming
from distserve.resources.access import key_secret
from distserve.resources.affinity import Placement
from distserve.resources.errors import NoPlan
from distserve.resources.instances import stateful_set
from distserve.resources.render import render, shared_objects, unit_objects
from distserve.resources.revisions import (
    Revision,
    from_object,
    make_revision,
    to_object,
    with_numbers,
)
from distserve.resources.settings import DefaultImages, RenderSettings

Object = dict[str, Any]
Deploy = Callable[..., DistServeDeployment]
BEFORE = RenderSettings(DefaultImages("engine:1", "migrator:1", "gateway:1"))
AFTER = RenderSettings(DefaultImages("engine:2", "migrator:2", "gateway:2"))
"""Another version of the operator: what it renders is different."""
PLAN = PlanStatus.model_validate(
    {
        "mode": "Auto",
        "inputsHash": "abc",
        "unit": {
            "prefill": {"instances": 2, "tensor": 4, "pipeline": 1},
            "decode": {"instances": 1, "tensor": 2, "pipeline": 2},
        },
        "units": 3,
        "accelerators": 36,
        "goodput": "1.5",
        "hardwareProfile": "a100-80g",
        "estimated": False,
    }
)


def objects(deployment: DistServeDeployment, revision: Revision) -> list[Object]:
    return [
        *shared_objects(deployment, BEFORE, revision),
        *(o for u in naming.units(deployment) for o in unit_objects(deployment, u, revision)),
    ]


def stored(deployment: DistServeDeployment, revision: Revision) -> Revision:
    """Through the API server: JSON there and back."""
    return from_object(json.loads(json.dumps(to_object(deployment, revision))))


def test_rendering_is_the_objects_of_a_new_revision(deployment: Deploy) -> None:
    found = deployment(uid="1")
    assert render(found, BEFORE) == objects(found, make_revision(found, BEFORE))


def test_a_stored_revision_is_the_same_one(deployment: Deploy) -> None:
    found = deployment()
    made = replace(make_revision(found, BEFORE, plan=PLAN), replan="now", number=7)
    again = stored(found, made)
    assert again == made and again.digest == made.digest
    assert to_object(found, again) == to_object(found, made)


def test_another_operator_changes_nothing_of_what_runs(deployment: Deploy) -> None:
    found = deployment(units=2)
    first = make_revision(found, BEFORE)
    upgraded = make_revision(found, AFTER, known=[stored(found, first)])
    assert objects(found, upgraded) == objects(found, first)
    scaled = deployment(units=3)
    more = objects(scaled, make_revision(scaled, AFTER, known=[first]))
    assert "engine:1" in json.dumps(more) and "engine:2" not in json.dumps(more)


@pytest.mark.parametrize(("replicas", "gateways"), [(2, "d84004b3"), (5, "08053d23")])
def test_gateways_that_were_told_their_share_run_on_until_their_number_changes(
    deployment: Deploy, replicas: int, gateways: str
) -> None:
    def told(number: int) -> DistServeDeployment:
        return deployment(gateway={"replicas": number})

    template = {"metadata": {"labels": {}}, "spec": {"containers": [{"args": ["share"]}]}}
    made = make_revision(told(replicas), BEFORE)
    # As an operator stored it whose gateways did not count one another.
    before = replace(made, gateway_name=gateways, gateway=template)
    assert make_revision(told(replicas), AFTER, known=[before]) == before
    autoscaled = deployment(gateway={"replicas": replicas, "autoscaled": True})
    counted = make_revision(autoscaled, AFTER, known=[before])
    assert counted.gateway_name == made.gateway_name, "nobody knows how many there will be"
    more = make_revision(told(3), AFTER, known=[before])
    assert more.gateway_name == made.gateway_name and more.gateway != template
    assert (more.name, more.templates) == (before.name, before.templates)
    back = make_revision(told(replicas), AFTER, known=[before, more])
    assert back == more, "and from then on their number restarts none"


@pytest.mark.parametrize("deadline", ["60s", "10m"])
def test_gateways_that_were_told_no_drain_deadline_run_on_until_there_is_another(
    deployment: Deploy, deadline: str
) -> None:
    def asked(deadline: str, **spec: Any) -> DistServeDeployment:
        return deployment(rollout={"drainDeadline": deadline}, **spec)

    template = {"metadata": {"labels": {}}, "spec": {"containers": [{"args": ["untold"]}]}}
    # As an operator stored it that did not tell them: under the name that the default has.
    old = replace(
        make_revision(asked(deadline), BEFORE),
        gateway_name=make_revision(asked("60s"), BEFORE).gateway_name,
        gateway=template,
    )
    assert make_revision(asked(deadline), AFTER, known=[old]) == old, "an upgrade restarts none"
    scaled = make_revision(asked(deadline, gateway={"replicas": 7}), AFTER, known=[old])
    assert scaled.gateway == template
    told = make_revision(asked("1h"), AFTER, known=[old])
    assert "1h" in json.dumps(told.gateway)
    assert make_revision(asked("1h"), AFTER, known=[old, told]) == told


def test_a_change_renders_only_what_it_changes(deployment: Deploy) -> None:
    old = make_revision(deployment(), BEFORE)
    gateway = make_revision(deployment(gateway={"requestTimeout": "1m"}), AFTER, known=[old])
    assert (gateway.name, gateway.templates) == (old.name, old.templates)
    assert gateway.digest != old.digest and gateway.number == 2
    assert "gateway:2" in json.dumps(gateway.gateway)
    engines = make_revision(deployment(kvTransfer={"blockTokens": 32}), AFTER, known=[old, gateway])
    assert engines.name != old.name and engines.gateway == old.gateway and engines.number == 3
    assert "engine:2" in json.dumps(engines.templates)
    back = make_revision(deployment(), AFTER, known=[old, gateway, engines])
    assert back == old, "an undo finds the revision that was"


@pytest.mark.parametrize(
    ("change", "engines", "gateways"),
    [
        ({"units": 9}, False, False),
        ({"topology": {"preset": "NVIDIA", "packWithin": "nvlink"}}, False, False),
        ({"restart": {"budget": 9}}, False, False),
        ({"rollout": {"paused": True}}, False, False),
        ({"rollout": {"drainDeadline": "5m"}}, True, True),
        ({"gateway": {"service": {"port": 80}}}, False, False),
        ({"gateway": {"replicas": 5}}, False, False),
        ({"gateway": {"requestTimeout": "1m"}}, False, True),
        ({"slo": {"ttft": "1s", "tpot": "1s"}}, False, True),
        ({"images": {"engine": "mine:1"}}, True, False),
        ({"images": {"migrator": "mine:1"}}, True, False),
        ({"images": {"gateway": "mine:1"}}, False, True),
        ({"model": {"id": "other", "source": {"builtin": "tiny"}}}, True, True),
    ],
)
def test_who_is_restarted_by_what(
    deployment: Deploy, change: Object, engines: bool, gateways: bool
) -> None:
    old = make_revision(deployment(), BEFORE)
    new = make_revision(deployment(**change), BEFORE, known=[old])
    assert (new.name != old.name) is engines
    assert (new.gateway_name != old.gateway_name) is gateways
    assert (new.templates != old.templates) is engines
    assert (new.gateway != old.gateway) is gateways


def test_refresh_renders_anew(deployment: Deploy) -> None:
    old = make_revision(deployment(), BEFORE)
    document = deployment().model_dump(mode="json", exclude_none=True)
    document["metadata"]["annotations"] = {"distserve.io/refresh": "2026-11-21"}
    fresh = make_revision(from_document(document), AFTER, known=[old])
    assert fresh.name != old.name and fresh.gateway_name != old.gateway_name
    assert "engine:2" in json.dumps(fresh.templates)


def test_numbers_of_a_plan_come_back_from_its_revision(deployment: Deploy) -> None:
    asked = deployment(
        accelerator={"type": "GPU"},
        slo={"ttft": "1s", "tpot": "1s"},
        workload={"lengths": {name: {"mean": 9, "p90": 9} for name in
                              ("promptTokens", "outputTokens")}},
        planning={"mode": "Auto"}, units=1, prefill={}, decode={},
    )  # fmt: skip
    with pytest.raises(NoPlan):
        make_revision(asked, BEFORE)
    part = {"instancesPerUnit": 2, "parallelism": {"tensor": 4}}
    other = {"parallelism": {"tensor": 2, "pipeline": 2}}
    planned = deployment(
        accelerator={"type": "GPU"}, slo={"ttft": "1s", "tpot": "1s"}, units=3,
        prefill=part, decode=other,
    )  # fmt: skip
    revision = stored(asked, make_revision(planned, BEFORE, plan=PLAN))
    resolved = with_numbers(asked, revision)
    assert resolved.spec.units == 3
    assert make_revision(resolved, AFTER, known=[revision], plan=PLAN) == revision
    more = PLAN.model_copy(update={"units": 4})
    grown = make_revision(with_numbers(asked, revision), BEFORE, known=[revision], plan=more)
    assert grown.name == revision.name, "more units of the same plan restart nothing"
    assert grown.digest != revision.digest


def test_units_keep_the_shape_of_their_revision(deployment: Deploy) -> None:
    old = make_revision(deployment(prefill={"instancesPerUnit": 3}), BEFORE)
    now = deployment(prefill={"instancesPerUnit": 1})
    names = [o["metadata"]["name"] for o in unit_objects(now, "u0", old)]
    assert names[:4] == ["opt-13b-u0", *(f"opt-13b-u0-prefill-{i}" for i in range(3))]


# ---- placement ----------------------------------------------------------------------------------


def pod_of(deployment: DistServeDeployment, placement: Placement | None) -> Object:
    revision = make_revision(deployment, BEFORE)
    instance = naming.instances(deployment, "u0", revision.unit)[0]
    before = json.dumps(revision.templates[instance.role])
    template = stateful_set(deployment, instance, revision, placement)["spec"]["template"]
    assert json.dumps(revision.templates[instance.role]) == before, "the stored one was changed"
    return dict(template)


def test_a_unit_stays_in_its_domain_and_prefers_its_nodes(deployment: Deploy) -> None:
    nodes = {"opt-13b-u0-prefill-0": ("n1", "n2"), "opt-13b-u0-decode-0": ("n3",)}
    place = Placement("nvlink", "nvidia.com/gpu.clique", "c1.0", nodes)
    pod = pod_of(deployment(), place)
    affinity = pod["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [
        {"key": "nvidia.com/gpu.clique", "operator": "In", "values": ["c1.0"]}
    ]
    preferred = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    assert [p["preference"]["matchFields"][0]["values"] for p in preferred] == [["n1"], ["n2"]]
    assert pod["metadata"]["labels"]["distserve.io/domain"] == "c1.0"


def test_the_users_affinity_holds_too(deployment: Deploy) -> None:
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    theirs = [
        {"matchExpressions": [{"key": "gpu", "operator": "In", "values": [kind]}]}
        for kind in ("a100", "h100")
    ]
    template = {"spec": {"affinity": {"nodeAffinity": {required: {"nodeSelectorTerms": theirs}}}}}
    found = deployment(prefill={"podTemplate": template})
    pod = pod_of(found, Placement("zone", "zone", "a"))
    terms = pod["spec"]["affinity"]["nodeAffinity"][required]["nodeSelectorTerms"]
    assert [{e["key"] for e in term["matchExpressions"]} for term in terms] == [{"gpu", "zone"}] * 2


def test_without_a_domain_nothing_is_required(deployment: Deploy) -> None:
    for place in (None, Placement()):
        pod = pod_of(deployment(), place)
        assert "affinity" not in pod["spec"]
        assert "distserve.io/domain" not in pod["metadata"]["labels"]
    pod = pod_of(deployment(), Placement(nodes={"opt-13b-u0-prefill-0": ("n1",)}))
    assert list(pod["spec"]["affinity"]["nodeAffinity"]) == [
        "preferredDuringSchedulingIgnoredDuringExecution"
    ]


@given(st.text(max_size=80))
def test_any_domain_becomes_a_valid_label(text: str) -> None:
    import re

    value = naming.label_value(text)
    assert re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", value)
    assert naming.label_value(value) == value


# ---- the rest -----------------------------------------------------------------------------------


def test_arguments_are_the_same_for_all_instances(deployment: Deploy) -> None:
    found = deployment(units=2)
    pods = [
        o["spec"]["template"]["spec"] for o in render(found, BEFORE) if o["kind"] == "StatefulSet"
    ]
    assert len({yaml.safe_dump(pod) for pod in pods}) == 2, "one for each role"


def test_the_key_is_made_once_and_not_applied_again(deployment: Deploy) -> None:
    found = deployment()
    assert not [o for o in render(found, BEFORE) if o["kind"] == "Secret"]
    secret = key_secret(found, "k" * 64)
    assert secret["immutable"] is True
    volumes = next(iter(make_revision(found, BEFORE).templates.values()))["spec"]["volumes"]
    assert {"secretName": secret["metadata"]["name"]}.items() <= volumes[0]["secret"].items()


# ---- lost nodes ---------------------------------------------------------------------------------


def patience(pod: Object) -> dict[str, int]:
    """Seconds for which the pod bears each of the taints of a node that is silent."""
    return {
        one["key"].partition("/")[2]: one["tolerationSeconds"]
        for one in pod["spec"]["tolerations"]
        if one["effect"] == "NoExecute" and one["operator"] == "Exists"
    }


@pytest.mark.parametrize(
    ("spec", "seconds"),
    [({}, 30), ({"nodeLostAfter": "2m"}, 120), ({"nodeLostAfter": "1500ms"}, 2)],
)
def test_pods_bear_a_silent_node_for_so_long(
    deployment: Deploy, spec: dict[str, str], seconds: int
) -> None:
    found = deployment(restart=spec)
    gateway = make_revision(found, BEFORE).gateway
    for pod in (pod_of(found, None), gateway):
        assert patience(pod) == {"not-ready": seconds, "unreachable": seconds}


def test_the_users_tolerations_stay(deployment: Deploy) -> None:
    theirs = {"key": "gpu", "operator": "Exists"}
    found = deployment(prefill={"podTemplate": {"spec": {"tolerations": [theirs]}}})
    tolerations = pod_of(found, None)["spec"]["tolerations"]
    assert tolerations[0] == theirs and len(tolerations) == 3


def test_another_patience_replaces_no_engine(deployment: Deploy) -> None:
    before, after = deployment(), deployment(restart={"nodeLostAfter": "5m"})
    one, other = make_revision(before, BEFORE), make_revision(after, BEFORE)
    assert one.name == other.name and one.templates == other.templates
    assert one.gateway_name != other.gateway_name, "gateways are many and quick"
