"""What the webhook refuses: the same as the reconciler, in the same words, and nothing else."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from distserve.api.conditions import Condition
from distserve.api.loading import parse_deployment
from distserve.operator.admission import judge
from distserve.operator.decide import DecideSettings, decide
from distserve.operator.kinds import CHILDREN, DEPLOYMENTS, NAMESPACES
from distserve.operator.model import Answers, Features, Key, Object
from distserve.operator.store import Store
from distserve.operator.wanted import stored_revisions
from distserve.resources.revisions import make_revision, to_object
from distserve.resources.settings import RenderSettings, released_images

SETTINGS = DecideSettings(RenderSettings(released_images()), new_key=lambda: "k" * 64)
SLIPPED = [
    one
    for one in yaml.safe_load((Path(__file__).parents[1] / "bad_specs.yaml").read_text())
    if "accepted" in one
]
REPLACED: Object = {"prefill": {"podTemplate": {"spec": {"containers": [
    {"name": "engine", "command": ["sleep"]}
]}}}}  # fmt: skip
LENGTHS = {"promptTokens": {"mean": 10, "p90": 20}, "outputTokens": {"mean": 10, "p90": 20}}
AUTO: Object = {
    "planning": {"mode": "Auto"},
    "slo": {"ttft": "1s", "tpot": "1s"},
    "workload": {"lengths": LENGTHS},
}
LABEL = "pod-security.kubernetes.io/enforce"


@pytest.fixture
def deployment(sample: Callable[..., Object]) -> Callable[..., Object]:
    """deployment(spec part): as the API server stores it; null removes a field."""

    def make(changes: Object | None = None) -> Object:
        found = sample("tiny")
        metadata = {**found["metadata"], "namespace": "llm", "uid": "u1", "resourceVersion": "1"}
        return {
            **found,
            "metadata": {**metadata, "generation": 1},
            "spec": _merged(found["spec"], changes or {}),
        }

    return make


def _merged(base: Object, changes: Object) -> Object:
    found = copy.deepcopy(base)
    for key, value in changes.items():
        if isinstance(value, dict):
            found[key] = _merged(found.get(key) or {}, value)
        elif value is None:
            found.pop(key, None)
        else:
            found[key] = value
    return found


def asked(document: Object | None, before: Object | None = None, **said: Any) -> Object:
    """The request of an AdmissionReview."""
    metadata = (document or before or {})["metadata"]
    return {
        "uid": "r1",
        "resource": {
            "group": "distserve.io",
            "version": "v1alpha1",
            "resource": DEPLOYMENTS.plural,
        },
        "operation": "UPDATE" if before else "CREATE",
        "namespace": "llm",
        "name": metadata.get("name", ""),
        "object": document,
        "oldObject": before,
    } | said


def told(document: Object, store: Store) -> str:
    """What the reconciler says of it in the condition Accepted, empty when that is not False."""
    known = Store()
    known.features = store.features
    known.put(DEPLOYMENTS, document)
    observed = known.observe(Key("llm", "tiny"), 0.0)
    assert observed is not None
    status = decide(observed, Answers(), SETTINGS).status or {}
    (said,) = [
        one["message"] if one["status"] == "False" else ""
        for one in status.get("conditions", ())
        if one["type"] == Condition.ACCEPTED
    ] or [""]
    return str(said)


def test_a_good_one_passes(deployment: Any) -> None:
    assert judge(asked(deployment()), Store(), SETTINGS) == ""


@pytest.mark.parametrize("bad", SLIPPED, ids=lambda one: str(one["name"]))
def test_it_says_what_the_reconciler_would(bad: Object, deployment: Any) -> None:
    """Apart from what only the API server knows of pods, which reconciling asks it."""
    document, store = deployment(bad["spec"]), Store()
    said = judge(asked(document), store, SETTINGS)
    assert said == told(document, store)
    assert "\n" not in said
    assert not said or bad["accepted"] in said


def test_many_of_them_are_refused(deployment: Any) -> None:
    said = [judge(asked(deployment(bad["spec"])), Store(), SETTINGS) for bad in SLIPPED]
    assert sum(map(bool, said)) >= 6


def test_a_merge_is_tried_without_a_plan(deployment: Any) -> None:
    """With mode Auto the reconciler says it only when there is a plan."""
    assert judge(asked(deployment(AUTO)), Store(), SETTINGS) == ""
    assert "podTemplate" in judge(asked(deployment({**AUTO, **REPLACED})), Store(), SETTINGS)


def test_only_changes_of_a_spec_are_looked_at(deployment: Any) -> None:
    bad, good = deployment(REPLACED), deployment()
    going = copy.deepcopy(bad)
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    noted = copy.deepcopy(bad)
    noted["metadata"]["annotations"] = {"note": "1"}
    passed = [
        asked(noted, bad),
        asked(going, good),
        asked({**bad, "status": {}}, bad),
        asked(bad, good, subResource="status"),
        asked(bad, subResource="scale"),
        asked(bad, good, operation="DELETE"),
        asked(None, bad, operation="DELETE"),
        asked(bad, operation="CONNECT"),
        asked(bad, resource={"group": "apps", "resource": "deployments"}),
        asked(bad, resource={"group": "other.io", "resource": DEPLOYMENTS.plural}),
        asked(bad, resource=None),
    ]
    assert [judge(request, Store(), SETTINGS) for request in passed] == [""] * len(passed)
    assert judge(asked(bad, good), Store(), SETTINGS)
    assert judge(asked(bad), Store(), SETTINGS)


def test_names_that_are_generated(deployment: Any) -> None:
    document = deployment()
    del document["metadata"]["name"]
    document["metadata"]["generateName"] = "tiny-"
    assert judge(asked(document), Store(), SETTINGS) == ""


def test_what_the_cluster_lacks(deployment: Any) -> None:
    source = {"model": {"source": {"builtin": None, "hostPath": "/models/tiny"}}}
    store = Store()
    assert judge(asked(deployment(source)), store, SETTINGS) == ""
    space = {"name": "llm", "uid": "n", "resourceVersion": "1", "labels": {LABEL: "restricted"}}
    store.put(NAMESPACES, {"metadata": space})
    assert "pod security" in judge(asked(deployment(source)), store, SETTINGS)
    image = {"model": {"source": {"builtin": None, "image": "r.example/m:1"}}}
    said = judge(asked(deployment(image)), store, SETTINGS)
    assert said.startswith("spec.model.source.image") and "ImageVolume" in said
    store.features = Features(kubernetes=(1, 35))
    assert judge(asked(deployment(image)), store, SETTINGS) == ""


def test_what_the_engine_cannot_do_yet(deployment: Any) -> None:
    many = deployment({"prefill": {"parallelism": {"tensor": 2}}})
    assert "spec.prefill.parallelism" in judge(asked(many), Store(), SETTINGS)
    unchecked = replace(SETTINGS, engine_check=False)
    assert judge(asked(many), Store(), unchecked) == ""


def test_a_template_that_runs_already_is_not_merged_again(
    deployment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an upgrade that is stricter, units of an older deployment can still be changed."""
    document = deployment()
    store = _storing(document, document)
    more = deployment({"units": 3})
    _make_stricter(monkeypatch)
    assert judge(asked(more, document), store, SETTINGS) == ""
    assert judge(asked(more, document), Store(), SETTINGS) == "stricter"
    more["metadata"]["uid"] = "u2"
    assert judge(asked(more), store, SETTINGS) == "stricter", "another one of that name"


def test_nor_is_one_that_was_planned(deployment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers of a plan are not in the spec, and its templates are named by them."""
    document = deployment(AUTO)
    store = _storing(document, deployment({"prefill": {"parallelism": {"tensor": 2}}}))
    _make_stricter(monkeypatch)
    later = deployment({**AUTO, "rollout": {"paused": True}})
    assert judge(asked(later, document), store, SETTINGS) == ""
    other = deployment({**AUTO, "images": {"engine": "r.example/e:2"}})
    assert judge(asked(other, document), store, SETTINGS) == "stricter"


def _storing(document: Object, rendered: Object) -> Store:
    """The deployment, and the revision of what it was rendered from."""
    metadata = {"name": "tiny", "namespace": "llm", "uid": "u1"}
    parsed = parse_deployment({**rendered, "metadata": metadata}, "")
    record = to_object(parsed, make_revision(parsed, SETTINGS.render))
    record["metadata"] |= {"uid": "c1", "resourceVersion": "2"}
    store = Store()
    store.put(DEPLOYMENTS, document)
    (kind,) = [one for one in CHILDREN if one.kind == "ControllerRevision"]
    store.put(kind, record)
    observed = store.observe(Key("llm", "tiny"), 0.0)
    assert observed is not None and len(stored_revisions(observed)) == 1
    return store


def _make_stricter(monkeypatch: pytest.MonkeyPatch) -> None:
    from distserve.resources import revisions
    from distserve.resources.errors import MergeError

    def refuse(*_: Any) -> Any:
        raise MergeError("stricter")

    monkeypatch.setattr(revisions, "engine_template", refuse)
