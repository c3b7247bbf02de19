"""What an edit of each field starts anew: the table of docs/conditions.md, and what is so."""

import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest

from distserve.api.base import Model
from distserve.api.deployment import DistServeDeployment, Metadata, Spec
from distserve.api.topology import Enforcement, Scheduler
from distserve.resources.revisions import gateway_revision_of, revision_of

CONDITIONS = Path(__file__).parents[2] / "docs" / "conditions.md"
ENGINES, GATEWAYS, NOTHING, NEVER = "engines", "gateways", "nothing", "it cannot be changed"
BOTH = "engines and gateways"


def table() -> dict[str, str]:
    """Field of the spec -> what its row begins with."""
    text = CONDITIONS.read_text().partition("| field | what starts anew |")[2].partition("\n\n")[0]
    found: dict[str, str] = {}
    for row in text.strip().splitlines()[1:]:
        fields, what = row.strip("| ").split(" | ", 1)
        for field in re.findall(r"`([\w.]+)`", fields):
            assert field not in found, f"{field} has two rows"
            found[field] = next(one for one in (BOTH, ENGINES, GATEWAYS, NOTHING, NEVER)
                                if what.startswith(one))  # fmt: skip
    return found


TABLE = table()


def said_of(field: str) -> str:
    """By the row of the field, else that of what it is part of."""
    while field not in TABLE:
        field, _, last = field.rpartition(".")
        assert last, "it has no row"
    return TABLE[field]


def value(kind: Any, number: int) -> Any:
    """One of two values of a type. They may break rules, which are no business of a hash."""
    if get_origin(kind) is Annotated:
        return value(get_args(kind)[0], number)
    if get_origin(kind) in (Union, UnionType):
        return value(get_args(kind)[0], number)
    if get_origin(kind) is list:
        return [value(get_args(kind)[0], number)]
    if get_origin(kind) is dict:
        return {"a": value(get_args(kind)[1], number)}
    if kind is Any:
        return number
    if issubclass(kind, Model):
        fields = {name: value(one.annotation, number) for name, one in kind.model_fields.items()}
        return kind.model_construct(**fields)
    if issubclass(kind, Enum):
        return list(kind)[-number]
    return bool(number) if kind is bool else kind(number + 1)


SPEC: Spec = value(Spec, 0)
"""With everything in it."""


def fields(model: Model, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in type(model).model_fields.items():
        below = getattr(model, name)
        if isinstance(below, Model):
            yield from fields(below, (*path, name))
        elif value(field.annotation, 0) != value(field.annotation, 1):
            yield *path, name


def written(path: tuple[str, ...]) -> str:
    """As users write it."""
    model: Any = SPEC
    names = []
    for name in path:
        names.append(type(model).model_fields[name].alias or name)
        model = getattr(model, name)
    return ".".join(names)


def edited(model: Any, path: tuple[str, ...], new: Any) -> Any:
    name, *rest = path
    below = edited(getattr(model, name), tuple(rest), new) if rest else new
    return model.model_copy(update={name: below})


def other(path: tuple[str, ...]) -> Any:
    model: Any = SPEC
    for name in path[:-1]:
        model = getattr(model, name)
    return value(type(model).model_fields[path[-1]].annotation, 1)


def anew(before: Spec, after: Spec) -> str:
    one, two = (
        DistServeDeployment.model_construct(metadata=Metadata(name="opt"), spec=spec)
        for spec in (before, after)
    )
    engines = revision_of(one) != revision_of(two)
    gateways = gateway_revision_of(one) != gateway_revision_of(two)
    if engines and gateways:
        return BOTH
    return ENGINES if engines else GATEWAYS if gateways else NOTHING


@pytest.mark.parametrize("path", list(fields(SPEC)), ids=written)
def test_the_table_says_what_an_edit_starts_anew(path: tuple[str, ...]) -> None:
    said = said_of(written(path))
    assert said in (NEVER, anew(SPEC, edited(SPEC, path, other(path))))


def test_the_table_names_fields_that_there_are() -> None:
    known = {written(path) for path in fields(SPEC)}
    assert all(any(f"{one}.".startswith(f"{row}.") for one in known) for row in TABLE)


def test_the_scheduler_starts_engines_anew_where_their_pods_name_it() -> None:
    path = ("topology", "scheduler")
    nobody = edited(SPEC, path, None)
    for scheduler in Scheduler:
        found = anew(nobody, edited(SPEC, path, scheduler))
        assert found == (NOTHING if scheduler is Scheduler.KUEUE else ENGINES)


def test_a_gang_is_bound_by_the_number_of_its_instances() -> None:
    spec = edited(SPEC, ("topology", "scheduler"), Scheduler.GANG_SCHEDULING)
    assert anew(spec, edited(spec, ("decode", "instances_per_unit"), 7)) == ENGINES


def test_compute_domains_depend_on_where_units_have_to_lie() -> None:
    spec = edited(SPEC, ("fabric", "compute_domain"), True)
    spec = edited(spec, ("topology", "enforcement"), Enforcement.REQUIRED)
    within = edited(spec, ("topology", "pack_within"), "nvlink")
    assert anew(spec, within) == ENGINES
    preferred = edited(within, ("topology", "enforcement"), Enforcement.PREFERRED)
    assert anew(within, preferred) == ENGINES
    assert anew(spec, edited(spec, ("topology", "pack_within"), "zone")) == NOTHING
