"""Merges a user's podTemplate into a rendered pod template.

========================================================  ========================================
field                                                     rule
========================================================  ========================================
containers, initContainers, volumes, imagePullSecrets,    by name; a new name is added
resourceClaims, claims
env                                                       by name; the user's entry replaces ours
ports                                                     by containerPort and protocol
volumeMounts                                              by mountPath
readinessGates                                            by conditionType
tolerations                                               appended
affinity                                                  ANDed: both must hold; preferences add up
other lists                                               replaced
other maps                                                merged key by key
anything else                                             replaced
========================================================  ========================================

A field that is null says nothing, as in Kubernetes: what is rendered stays. But a name of the
user's own, as a label's, needs a value. `$patch` and its kin are refused. Labels and volumes that
we set, and the names, commands, arguments, ports, mounts and POD_ variables of our own containers,
stay as they are.
"""

import copy
from typing import Any

from distserve.api.labels import GROUP
from distserve.placement.readable import as_map, check_pod, check_texts
from distserve.resources.errors import MergeError
from distserve.resources.objects import Object

KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "volumes": ("name",),
    "imagePullSecrets": ("name",),
    "resourceClaims": ("name",),
    "claims": ("name",),
    "env": ("name",),
    "ports": ("containerPort", "protocol"),
    "volumeMounts": ("mountPath",),
    "readinessGates": ("conditionType",),
}
"""Lists whose items have an identity, and the fields that make it."""
REPLACED_ITEMS = frozenset({"env"})
"""Lists of them whose items are one choice among several, so cannot be merged."""
TEXTS = frozenset({"labels", "annotations", "nodeSelector"})
"""Maps whose names are the user's: none of them, as `env`, means a field."""
NAMED = TEXTS | {"matchLabels", "limits", "requests", "overhead"}
"""All such maps: there a name without a value is a mistake, and no field left out."""
DEFAULTS = {"protocol": "TCP"}
PROTECTED = ("name", "command", "args", "restartPolicy")
"""Fields of our own containers that nothing may change."""


def merge_pod_template(rendered: Object, template: Object, field: str) -> Object:
    """The rendered template with the user's parts. `field` is named in errors. Raises MergeError.

    The CRD lets any template through, and the API server is asked about the merged one only after
    placement was: what is read until then is judged here.
    """
    template = _said(template)
    if unknown := set(template) - {"metadata", "spec"}:
        raise MergeError(f"{field}.{min(unknown)}: unknown; a podTemplate has metadata and spec")
    try:
        _check_metadata(template.get("metadata", {}), f"{field}.metadata")
        check_pod(template.get("spec", {}), f"{field}.spec")
    except ValueError as error:
        raise MergeError(str(error)) from None
    merged: Object = _merge(rendered, template, field)
    _check_protected(rendered, merged, field)
    return merged


def _said(template: Any, name: str = "") -> Any:
    """Without the fields that are null: tools write them for what is not set."""
    if isinstance(template, list):
        return [_said(item) for item in template]
    if not isinstance(template, dict) or name in NAMED:
        return template
    return {key: _said(value, key) for key, value in template.items() if value is not None}


def _check_metadata(found: object, field: str) -> None:
    """Raises MergeError, and ValueError for what cannot be read."""
    metadata = as_map(found, field)
    if unknown := set(metadata) - {"labels", "annotations"}:
        raise MergeError(f"{field}.{min(unknown)}: not taken over; set labels or annotations")
    for name in metadata:
        check_texts(metadata[name], f"{field}.{name}")
        for key in metadata[name]:
            if key.startswith(f"{GROUP}/"):
                raise MergeError(
                    f"{field}.{name}.{key}: {name} of {GROUP} are the renderer's; remove it"
                )


def _merge(ours: Any, theirs: Any, path: str) -> Any:
    name = path.rpartition(".")[2]
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if name == "affinity":
            return merge_affinity(ours, theirs)
        if name in TEXTS:
            return {**ours, **theirs}
        merged = dict(ours)
        for key, value in theirs.items():
            if str(key).startswith("$"):
                raise MergeError(f"{path}.{key}: strategic merge directives are not supported")
            merged[key] = _merge(ours.get(key), value, f"{path}.{key}")
        return merged
    if name in KEYS or name == "tolerations":
        if not isinstance(theirs, list):
            raise MergeError(f"{path}: a list is needed")
        return _merge_list(ours or [], theirs, path)
    return copy.deepcopy(theirs)


def _merge_list(ours: list[Any], theirs: list[Any], path: str) -> list[Any]:
    name = path.rpartition(".")[2]
    merged = list(ours)
    if name == "tolerations":
        return merged + copy.deepcopy(theirs)
    places = {_identity(item, name, path): place for place, item in enumerate(merged)}
    for item in theirs:
        identity = _identity(item, name, path)
        if identity not in places:
            places[identity] = len(merged)
            merged.append(copy.deepcopy(item))
        elif name in REPLACED_ITEMS:
            merged[places[identity]] = copy.deepcopy(item)
        else:
            place = places[identity]
            merged[place] = _merge(merged[place], item, f"{path}[{identity[0]}]")
    return merged


def _identity(item: Any, name: str, path: str) -> tuple[Any, ...]:
    keys = KEYS[name]
    if not isinstance(item, dict) or keys[0] not in item:
        raise MergeError(f"{path}: each item needs {keys[0]}, which says what to merge it with")
    identity = tuple(item.get(key, DEFAULTS.get(key)) for key in keys)
    for key, part in zip(keys, identity, strict=True):
        if not isinstance(part, int if key == "containerPort" else str):
            needed = "a number" if key == "containerPort" else "text"
            raise MergeError(f"{path}: {key} of each item is {needed}, not {part!r}")
    return identity


def merge_affinity(ours: Object, theirs: Object) -> Object:
    """Both hold. Node selector terms are alternatives, so each of ours meets each of theirs; pod
    affinity terms hold together already."""
    merged = copy.deepcopy(ours)
    for kind, rules in theirs.items():
        target = merged.setdefault(kind, {})
        for name, value in rules.items():
            if kind == "nodeAffinity" and name.startswith("required") and name in target:
                target[name] = {
                    "nodeSelectorTerms": [
                        _both_terms(a, b)
                        for a in target[name]["nodeSelectorTerms"]
                        for b in value["nodeSelectorTerms"]
                    ]
                }
            elif isinstance(value, list):
                target[name] = [*target.get(name, []), *copy.deepcopy(value)]
            else:
                target[name] = copy.deepcopy(value)
    return merged


def _both_terms(a: Object, b: Object) -> Object:
    together = {
        key: [*(a.get(key) or []), *(b.get(key) or [])]
        for key in ("matchExpressions", "matchFields")
    }
    return {key: terms for key, terms in together.items() if terms}


def _check_protected(rendered: Object, merged: Object, field: str) -> None:
    for label, value in rendered["metadata"]["labels"].items():
        if merged["metadata"]["labels"][label] != value:
            raise MergeError(f"{field}.metadata.labels.{label}: set by the renderer; remove it")
    scheduler = rendered["spec"].get("schedulerName")
    if scheduler is not None and merged["spec"]["schedulerName"] != scheduler:
        raise MergeError(
            f"{field}.spec.schedulerName: topology.scheduler says who binds the pods; remove it"
        )
    if merged["spec"].get("schedulingGroup") != rendered["spec"].get("schedulingGroup"):
        raise MergeError(
            f"{field}.spec.schedulingGroup: topology.scheduler says whose members the pods are; "
            "remove it"
        )
    volumes = {v["name"]: v for v in merged["spec"]["volumes"]}
    for volume in rendered["spec"]["volumes"]:
        if _but_options(volumes[volume["name"]]) != _but_options(volume):
            raise MergeError(
                f"{field}.spec.volumes[{volume['name']}]: the processes need it as it is; "
                "choose another name"
            )
    for claim in rendered["spec"].get("resourceClaims", []):
        if claim not in merged["spec"]["resourceClaims"]:
            raise MergeError(
                f"{field}.spec.resourceClaims[{claim['name']}]: the renderer's own; "
                "choose another name"
            )
    for group in ("initContainers", "containers"):
        containers = {c["name"]: c for c in merged["spec"].get(group, [])}
        for ours in rendered["spec"].get(group, []):
            _check_container(
                ours, containers[ours["name"]], f"{field}.spec.{group}[{ours['name']}]"
            )


def _but_options(volume: Object) -> Object:
    """An emptyDir may be given a size or a medium."""
    return volume | {"emptyDir": {}} if "emptyDir" in volume else volume


def _check_container(ours: Object, merged: Object, field: str) -> None:
    for key in PROTECTED:
        if merged.get(key) != ours.get(key):
            raise MergeError(f"{field}.{key}: the renderer's own; remove it")
    for key in ("ports", "volumeMounts"):
        if missing := [i for i in ours.get(key, []) if i not in merged.get(key, [])]:
            raise MergeError(f"{field}.{key}: {missing[0]} is needed as it is; choose another one")
    for variable in ours["env"]:
        if variable["name"].startswith("POD_") and variable not in merged["env"]:
            raise MergeError(f"{field}.env[{variable['name']}]: the arguments use it; remove it")
