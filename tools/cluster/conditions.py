"""Conditions of anything that the cluster holds; a new object has none yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def conditions(thing: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By type."""
    status = thing.get("status") or {}
    return {one["type"]: one for one in status.get("conditions") or ()}


def is_true(thing: Mapping[str, Any], kind: str) -> bool:
    """Whether this condition is told, and True."""
    found = conditions(thing).get(kind, {})
    return found.get("status") == "True"
