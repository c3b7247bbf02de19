"""What placement reads of a pod's spec can be read: asked where podTemplates are merged, since the
API server is asked about those only when they have a place, and of units before they wait for one.

So a mistake in one deployment ends nothing: `matching` and `pods` meet only what they know.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from distserve.placement.quantities import parse_quantity
from distserve.placement.requests import UnitRequest

OPERATORS: Final = ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")
"""Of node affinity."""
_REQUIRED: Final = "requiredDuringSchedulingIgnoredDuringExecution"
_SHOWN: Final = 40
"""Characters of what was written that a message repeats."""


def unreadable(unit: UnitRequest) -> str:
    """Why nobody can tell where its pods may go; empty: `misfit` can."""
    for one in unit.instances:
        try:
            check_texts(one.node_selector, "nodeSelector")
            _check_tolerations([*one.tolerations], "tolerations")
            _check_terms([*one.node_affinity_terms], "nodeSelectorTerms")
        except ValueError as error:
            return f"{one.name}: {error}"
    return ""


def check_pod(found: object, path: str) -> None:
    """Of a pod's spec, or of a part of one. `path` is the field that it is in. Raises ValueError
    with the field and the cure."""
    spec = as_map(found, path)
    for name, check in _CHECKS.items():
        if name in spec:
            check(spec[name], f"{path}.{name}")


def check_texts(found: object, path: str) -> None:
    """A map of texts. Raises ValueError."""
    for name, value in as_map(found, path).items():
        _check_text(value, f"{path}.{name}")


def as_map(found: object, path: str) -> Mapping[str, Any]:
    """Raises ValueError where it is none."""
    if not isinstance(found, Mapping):
        raise _wrong(found, path, "a map is needed")
    for name in found:
        if not isinstance(name, str):
            raise ValueError(f"{path}: the name {name!r} is no text: quote it")
    return found


def integer(text: str | None) -> int | None:
    """The number that a label's value stands for."""
    try:
        return int(text or "")
    except ValueError:
        return None


def _check_affinity(found: object, path: str) -> None:
    for kind, rules in as_map(found, path).items():
        for name, value in as_map(rules, f"{path}.{kind}").items():
            field = f"{path}.{kind}.{name}"
            if (kind, name) == ("nodeAffinity", _REQUIRED):
                terms = as_map(value, field).get("nodeSelectorTerms")
                _check_terms(terms, f"{field}.nodeSelectorTerms")
            else:
                _as_list(value, field)


def _check_terms(found: object, path: str) -> None:
    for index, one in enumerate(_as_list(found, path)):
        term = as_map(one, f"{path}[{index}]")
        for name in ("matchExpressions", "matchFields"):
            field = f"{path}[{index}].{name}"
            for at, requirement in enumerate(_as_list(term.get(name) or [], field)):
                _check_requirement(requirement, f"{field}[{at}]")


def _check_requirement(found: object, path: str) -> None:
    requirement = as_map(found, path)
    _check_text(requirement.get("key"), f"{path}.key")
    operator = requirement.get("operator")
    if operator not in OPERATORS:
        raise _wrong(operator, f"{path}.operator", f"one of {', '.join(OPERATORS)} is needed")
    values = _as_list(requirement.get("values") or [], f"{path}.values")
    for index, value in enumerate(values):
        _check_text(value, f"{path}.values[{index}]")
    if operator in ("Gt", "Lt") and (len(values) != 1 or integer(values[0]) is None):
        raise _wrong(values, f"{path}.values", f'{operator} needs one whole number, as ["4"]')


def _check_tolerations(found: object, path: str) -> None:
    for index, one in enumerate(_as_list(found, path)):
        toleration = as_map(one, f"{path}[{index}]")
        for name in ("key", "operator", "value", "effect"):
            if toleration.get(name) is not None:
                _check_text(toleration[name], f"{path}[{index}].{name}")


def _check_containers(found: object, path: str) -> None:
    for index, one in enumerate(_as_list(found, path)):
        container = as_map(one, f"{path}[{index}]")
        if "resources" in container:
            name = container.get("name", index)
            _check_resources(container["resources"], f"{path}[{name}].resources")


def _check_resources(found: object, path: str) -> None:
    resources = as_map(found, path)
    for name in ("limits", "requests"):
        if name in resources:
            _check_quantities(resources[name], f"{path}.{name}")


def _check_quantities(found: object, path: str) -> None:
    for name, value in as_map(found, path).items():
        field = f"{path}.{name}"
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise _wrong(value, field, "a quantity is needed, as 64Mi")
        try:
            number = parse_quantity(str(value))
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from None
        if number < 0:
            raise _wrong(value, field, "0 or more is needed")


def _check_text(found: object, path: str) -> None:
    if not isinstance(found, str):
        raise _wrong(found, path, "text is needed, in quotes if it looks like something else")


def _as_list(found: object, path: str) -> list[Any]:
    if not isinstance(found, list):
        raise _wrong(found, path, "a list is needed")
    return found


def _wrong(found: object, path: str, needed: str) -> ValueError:
    """In YAML a name without a value is null, as is what is not there."""
    if found is None:
        return ValueError(f"{path}: {needed}, and nothing is there; write it, or remove the field")
    return ValueError(f"{path}: {needed}, not {repr(found)[:_SHOWN]}")


_CHECKS: Final[Mapping[str, Callable[[object, str], None]]] = {
    "nodeSelector": check_texts,
    "affinity": _check_affinity,
    "tolerations": _check_tolerations,
    "initContainers": _check_containers,
    "containers": _check_containers,
    "resources": _check_resources,
    "overhead": _check_quantities,
    "priorityClassName": _check_text,
}
"""Of a pod's spec."""
