"""What a deployment is told of its placing."""

from typing import Any


def placed(world: Any) -> tuple[str, str]:
    found = world.condition("Placed")
    return found["status"], found["reason"]


def message(world: Any) -> str:
    return str(world.condition("Placed")["message"])
