"""Whether a live object still is what we want: `decide` writes only where it is not.

Two questions, since neither is enough alone:

- *Does the live object have every field that we want, with our value?* What others and the API
  server's defaulting added does not matter. This finds edits by others.
- *Was it made from what we want now?* A hash of the wanted object stands in an annotation. This
  finds what we no longer want, which the first question cannot see.
"""

from __future__ import annotations

import hashlib
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import msgspec

from distserve.api.labels import GROUP
from distserve.operator.model import Object

APPLIED: Final = f"{GROUP}/applied"
"""Annotation: hash of the object as we wanted it when we wrote it."""

IDENTITIES: Final = (
    ("containers", ("name",)),
    ("initContainers", ("name",)),
    ("volumes", ("name",)),
    ("env", ("name",)),
    ("imagePullSecrets", ("name",)),
    ("volumeMounts", ("mountPath",)),
    ("ports", ("containerPort", "protocol")),
    ("ports", ("port", "protocol")),
    ("ownerReferences", ("uid",)),
)
"""Lists to which others may add: only our items are looked at. Others must be equal."""
QUANTITIES: Final = frozenset({"requests", "limits", "sizeLimit", "divisor"})
"""Fields whose values the API server writes in its own way: 0.5 becomes 500m."""
ZERO_IS_ABSENT: Final = frozenset(
    {"hostNetwork", "hostPID", "hostIPC", "readOnly", "stdin", "stdinOnce", "tty",
     "initialDelaySeconds", "hostPort"}
)  # fmt: skip
"""Fields that the API server leaves out where they are false or 0."""
_SUFFIXES: Final = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1),
    **{s: Decimal(1000) ** (i + 1) for i, s in enumerate("kMGTPE")},
    **{f"{s}i": Decimal(1024) ** (i + 1) for i, s in enumerate("KMGTPE")},
}  # fmt: skip


def stamped(wanted: Object) -> Object:
    """The object with its own hash in an annotation."""
    digest = hashlib.sha256(msgspec.json.encode(wanted, order="sorted")).hexdigest()[:16]
    metadata = wanted["metadata"]
    annotations = {**metadata.get("annotations", {}), APPLIED: digest}
    return {**wanted, "metadata": {**metadata, "annotations": annotations}}


def difference(wanted: Object, live: Object) -> str | None:
    """Path of the first field that is not as wanted, None where the live object will do."""
    return _compare(wanted, live, "", "")


def _compare(wanted: Any, live: Any, name: str, path: str) -> str | None:
    if wanted == live:
        return None  # most subtrees are, and this is much faster than to walk them
    if isinstance(wanted, dict) and isinstance(live, dict):
        for key, value in wanted.items():
            field = name if name in QUANTITIES else key
            where = f"{path}.{key}" if path else key
            if key not in live:
                if not _absent(value, key):
                    return where
            elif (found := _compare(value, live[key], field, where)) is not None:
                return found
        return None
    if isinstance(wanted, list) and isinstance(live, list):
        return _compare_lists(wanted, live, name, path)
    return None if _equal(wanted, live, name) else path


def _compare_lists(wanted: list[Any], live: list[Any], name: str, path: str) -> str | None:
    keys = _identity(wanted, name)
    if keys is None:
        if len(wanted) != len(live):
            return path
        pairs = list(zip(wanted, live, strict=True))
    else:
        known = {tuple(item.get(key) for key in keys): item for item in live}
        pairs = [(item, known.get(tuple(item.get(key) for key in keys), {})) for item in wanted]
    for place, (ours, theirs) in enumerate(pairs):
        if (found := _compare(ours, theirs, name, f"{path}[{place}]")) is not None:
            return found
    return None


def _identity(items: list[Any], name: str) -> tuple[str, ...] | None:
    """The fields that tell a list's items apart, where each of them has these."""
    for field, keys in IDENTITIES:
        if field == name and all(isinstance(i, dict) and keys[0] in i for i in items):
            given = tuple(k for k in keys if all(k in item for item in items))
            return given
    return None


def _absent(value: Any, key: str) -> bool:
    """Whether the API server serves such a value as no field at all."""
    return value is None or value in ("", [], {}) or (key in ZERO_IS_ABSENT and not value)


def _equal(wanted: Any, live: Any, name: str) -> bool:
    if name not in QUANTITIES:
        return False
    ours, theirs = _quantity(wanted), _quantity(live)
    return ours is not None and ours == theirs


def _quantity(value: Any) -> Decimal | None:
    text = str(value)
    number = text.rstrip("KMGTPEkmuni")
    suffix = text[len(number) :]
    try:
        return Decimal(number) * _SUFFIXES[suffix]
    except (InvalidOperation, KeyError):
        return None
