"""What the cluster serves and what the status says of the rendered shape."""

from collections.abc import Callable
from typing import Any

from distserve.operator.model import Features

Make = Callable[..., Any]
MONITORING = ("PodMonitor", "PrometheusRule")


def test_monitors_come_and_go_with_their_kinds(world: Any) -> None:
    def kinds() -> set[str]:
        return {ref.kind for ref in world.settle().objects} & set(MONITORING)

    assert kinds() == set()
    world.features = Features(
        served=frozenset(f"monitoring.coreos.com/v1/{kind}" for kind in MONITORING)
    )
    assert kinds() == set(MONITORING)
    world.edit(observability={"prometheusRule": False})
    assert kinds() == {"PodMonitor"}


def test_the_status_says_where_migrators_run(new_world: Make) -> None:
    def said(**spec: Any) -> str | None:
        found: str | None = new_world(**spec).settle().document["status"].get("migratorPlacement")
        return found

    assert said() == "Sidecar"
    assert said(kvTransfer={"migratorPlacement": "InEngineContainer"}) == "InEngineContainer"
    colocated = {"strategy": {"name": "Colocated"}, "prefill": None, "decode": None, "hybrid": {}}
    assert said(**colocated) is None
