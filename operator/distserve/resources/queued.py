"""What a queue gives the pods of a unit that it admitted: read by `operator`, for whichever queue.

https://kueue.sigs.k8s.io/docs/concepts/workload/ says it in podSets, Volcano in a pod's annotation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from distserve.api import labels
from distserve.resources.objects import Object


@dataclass(frozen=True)
class Admitted:
    """What the pods of one role get of an admission."""

    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Object, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


Admission = Mapping[str, Admitted]
"""By role."""


def with_admission(found: Object, admission: Admission | None) -> Object:
    """A StatefulSet whose pods have what the queue gave their role."""
    role = found["metadata"]["labels"].get(labels.ROLE, "")
    got = (admission or {}).get(role)
    if got is None or found["kind"] != "StatefulSet":
        return found
    template = found["spec"]["template"]
    metadata, spec = template["metadata"], template["spec"]
    metadata = {**metadata, "labels": {**got.labels, **metadata["labels"]}}
    if got.annotations:
        metadata["annotations"] = {**metadata.get("annotations", {}), **got.annotations}
    spec = dict(spec)
    if got.node_selector:
        spec["nodeSelector"] = {**spec.get("nodeSelector", {}), **got.node_selector}
    known: Sequence[Object] = spec.get("tolerations", ())
    if new := [one for one in got.tolerations if one not in known]:
        spec["tolerations"] = [*known, *new]
    return {
        **found,
        "spec": {**found["spec"], "template": {**template, "metadata": metadata, "spec": spec}},
    }
