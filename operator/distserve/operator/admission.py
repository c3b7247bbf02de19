"""Whether a deployment may be stored: what the webhook answers, by the reconciler's own rules.

What is refused here would end as `Accepted=False`, with the same words. Nobody else can be held up:
other kinds, deletions, status, metadata and whatever leaves the spec as it is always pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from distserve.api.deployment import DistServeDeployment
from distserve.api.planning import Planning
from distserve.operator.acceptance import Refusal, accept
from distserve.operator.decide import DecideSettings
from distserve.operator.kinds import DEPLOYMENTS
from distserve.operator.model import Features, Key, Object
from distserve.operator.store import Store
from distserve.operator.wanted import stored_revisions
from distserve.resources.errors import RenderError
from distserve.resources.revisions import Revision, make_revision, revision_of, with_numbers

_UNNAMED = "unnamed"


def judge(request: Object, store: Store, settings: DecideSettings) -> str:
    """Why the `request` of an AdmissionReview is refused: one line with field and cure. Empty: it
    may be stored."""
    if not changes_a_spec(request):
        return ""
    namespace, document = request["namespace"], _named(request)
    features = store.features_of(namespace)
    known = _revisions(store, Key(namespace, document["metadata"]["name"]), document)
    return refusal(document, features, known, settings)


def changes_a_spec(request: Object) -> bool:
    """Whether there is anything to judge."""
    resource, document = request.get("resource") or {}, request.get("object") or {}
    if (resource.get("group"), resource.get("resource")) != (DEPLOYMENTS.group, DEPLOYMENTS.plural):
        return False
    if request.get("subResource") or request.get("operation") not in ("CREATE", "UPDATE"):
        return False
    if "deletionTimestamp" in document["metadata"]:
        return False  # what goes must be able to go
    before = request.get("oldObject") or {}
    return bool(document.get("spec") != before.get("spec"))


def refusal(
    document: Object, features: Features, known: Sequence[Revision], settings: DecideSettings
) -> str:
    """What reconciling would say of it. `known` are its stored revisions: what is rendered already
    is not merged again, neither here nor there."""
    accepted = accept(
        document, features, engine_check=settings.engine_check, gates=settings.feature_gates
    )
    if isinstance(accepted, Refusal):
        return accepted.message
    try:
        render = replace(settings.render, served=features.served)
        make_revision(_with_any_numbers(accepted, known), render, known)
    except RenderError as error:
        return str(error)
    return ""


def _with_any_numbers(
    deployment: DistServeDeployment, known: Sequence[Revision]
) -> DistServeDeployment:
    """Without waiting for a plan: whether a template can be merged does not depend on it. With
    those numbers, if any, for which it is rendered already."""
    spec = deployment.spec
    if not spec.planning.automatic:
        return deployment
    names = {revision.name for revision in known}
    for revision in known:
        if set(revision.templates) == set(spec.roles):
            numbered = with_numbers(deployment, revision)
            if revision_of(numbered) in names:
                return numbered
    return deployment.model_copy(update={"spec": spec.model_copy(update={"planning": Planning()})})


def _named(request: Object) -> Object:
    document: Object = request["object"]
    metadata: dict[str, Any] = document["metadata"]
    name = metadata.get("name") or f"{metadata.get('generateName', '')}{_UNNAMED}"
    return {**document, "metadata": {**metadata, "name": name}}


def _revisions(store: Store, key: Key, document: Object) -> list[Revision]:
    observed = store.observe(key, now=0.0)
    if observed is None:
        return []
    if observed.document["metadata"]["uid"] != document["metadata"].get("uid"):
        return []  # of another one that had this name
    return [revision for _, revision in stored_revisions(observed)]
