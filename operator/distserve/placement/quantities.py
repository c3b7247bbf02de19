"""Amounts of resources as whole numbers, counted as kube-scheduler counts them: cpu in thousandths
of a core, everything else in its base unit, rounded up."""

import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from math import ceil

CPU = "cpu"
PODS = "pods"
_MEMORY = ("memory", "ephemeral-storage", "hugepages-")

Number = int | float | Fraction | Decimal
Amounts = Mapping[str, int]
"""Resource name -> whole number. Never changed in place: equal ones are shared."""

# The serialised form of apimachinery's resource.Quantity: nodes and pods may carry any of it.
_QUANTITY = re.compile(
    r"([+-]?[0-9]*\.?[0-9]+\.?|[+-]?[0-9]+\.)(?:([A-Za-z]{0,2})|[eE]([+-]?[0-9]{1,2}))"
)
_LONGEST = 64
"""Characters: a podTemplate may hold any text, and some would be worked at for very long."""
_FACTORS = {
    "": Fraction(1),
    **{s: Fraction(1, 1000 ** (i + 1)) for i, s in enumerate(("m", "u", "n"))},
    **{s: Fraction(1000 ** (i + 1)) for i, s in enumerate(("k", "M", "G", "T", "P", "E"))},
    **{s: Fraction(1024 ** (i + 1)) for i, s in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"))},
}


@lru_cache(maxsize=4096)
def parse_quantity(text: str) -> Fraction:
    """The number that a served quantity stands for. Raises ValueError."""
    match = _QUANTITY.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None or (match[2] or "") not in _FACTORS:
        shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
        raise ValueError(f"{shown!r} is no quantity: write a number and a suffix, as in 64Mi")
    return Fraction(match[1]) * (
        Fraction(10) ** int(match[3]) if match[3] else _FACTORS[match[2] or ""]
    )


def amount(resource: str, number: Number) -> int:
    """`number` base units (cores, bytes, devices) as this room counts them."""
    return ceil(number * 1000) if resource == CPU else ceil(number)


def amounts(quantities: Mapping[str, object]) -> dict[str, int]:
    """A served `allocatable` or `requests`."""
    return {name: amount(name, parse_quantity(str(text))) for name, text in quantities.items()}


def in_base_unit(resource: str, counted: int) -> int | float:
    return counted / 1000 if resource == CPU else counted


def number(resource: str, counted: int) -> str:
    """For a reader: cores with up to three decimals, memory in GiB with one."""
    if resource == CPU:
        return f"{counted / 1000:g}"
    if resource.startswith(_MEMORY):
        return f"{counted / 2**30:.4g} GiB"
    return str(counted)


def describe(resource: str, counted: int) -> str:
    """`3 nvidia.com/gpu`, `1.5 cpu`, `64 GiB memory`."""
    return f"{number(resource, counted)} {resource}"
