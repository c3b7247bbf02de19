"""Kubernetes quantities (`64Mi`, `500m`, `1.5Gi`): shared by the types and the builders."""

import re
from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
MAX_LENGTH = 32
_SUFFIXES = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{s: Decimal(1000) ** (i + 1) for i, s in enumerate(("k", "M", "G", "T", "P", "E"))},
    **{s: Decimal(1024) ** (i + 1) for i, s in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"))},
}


def parse_quantity(text: str) -> Decimal:
    """The number that a quantity stands for, in its base unit. Raises ValueError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]*)", text)
    if match is None or match[2] not in _SUFFIXES:
        raise ValueError(f"{text!r} is no quantity: write a number and a suffix, as in 64Mi")
    return Decimal(match[1]) * _SUFFIXES[match[2]]


def parse_bytes(text: str) -> int:
    """Bytes, rounded up to a whole one."""
    value = parse_quantity(text)
    return int(value) + (value % 1 > 0)


def format_bytes(count: int) -> str:
    """The shortest exact form with a binary suffix: 67108864 is 64Mi."""
    for suffix in ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki"):
        if count and count % int(_SUFFIXES[suffix]) == 0:
            return f"{count // int(_SUFFIXES[suffix])}{suffix}"
    return str(count)


def _positive(text: str) -> str:
    if parse_quantity(text) <= 0:
        raise ValueError("a quantity above zero is needed")
    return text


def _text(value: object) -> object:
    if isinstance(value, float):
        raise ValueError(f'write decimals as text: "{value}"')
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Quantity = Annotated[
    str,
    Field(
        pattern=PATTERN,
        max_length=MAX_LENGTH,
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
        },
    ),
    BeforeValidator(_text),
    AfterValidator(_positive),
]
"""Text is kept as written; a plain number counts the base unit."""

ByteQuantity = Quantity
"""An amount of memory in bytes."""
