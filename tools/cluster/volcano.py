"""Volcano as processes of a cluster: its scheduler and the controllers of its queues.

Its programs are not built here: VOLCANO_ASSETS names a folder with `vc-scheduler` and
`vc-controller-manager` of a release, and `crds` with the CRDs of its chart. They run as its chart
runs them, with its plugins; without its webhooks, which a unit's PodGroup does not need, and with
those controllers alone that queues and PodGroups have.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import yaml
from tools.cluster.cluster import Cluster
from tools.cluster.errors import Unavailable
from tools.cluster.processes import Process

VARIABLE: Final = "VOLCANO_ASSETS"
SCHEDULER: Final = "vc-scheduler"
CONTROLLERS: Final = "vc-controller-manager"
GROUP: Final = "scheduling.volcano.sh"
NAMESPACE: Final = "volcano-system"
KINDS: Final = frozenset({"podgroups", "queues"})
READY_SECONDS: Final = 120.0
CONFIGURATION: Final[dict[str, Any]] = {
    "actions": "enqueue, allocate, backfill",
    "tiers": [
        {
            "plugins": [
                {"name": "priority"},
                {"name": "gang", "enablePreemptable": False},
                {"name": "conformance"},
            ]
        },
        {
            "plugins": [
                {"name": "overcommit"},
                {"name": "drf", "enablePreemptable": False},
                {"name": "predicates"},
                {"name": "proportion"},
                {"name": "nodeorder"},
                {"name": "binpack"},
            ]
        },
    ],
}


def lacking() -> str:
    """What is to be done before it can run; empty where it can."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return (
            f"name a folder in {VARIABLE} with {SCHEDULER} and {CONTROLLERS} of a release of "
            "Volcano, and in crds the CRDs of its chart"
        )
    wanted = [Path(folder) / name for name in (SCHEDULER, CONTROLLERS, "crds")]
    missing = [str(one) for one in wanted if not one.exists()]
    return f"{VARIABLE}={folder}: there is no {', no '.join(missing)}" if missing else ""


@contextmanager
def running(cluster: Cluster) -> Iterator[Process]:
    """Volcano at work, its scheduler, with its kinds, which are gone again afterwards with all that
    is in them.

    Raises Unavailable."""
    if why := lacking():
        raise Unavailable(why)
    assets = Path(os.environ[VARIABLE])
    folder = cluster.home.folder / "volcano"
    folder.mkdir(exist_ok=True)
    (folder / "scheduler.yaml").write_text(yaml.safe_dump(CONFIGURATION))
    cluster.kubectl("create", "namespace", NAMESPACE)
    kinds = [yaml.safe_load(file.read_text()) for file in sorted((assets / "crds").glob("*.yaml"))]
    cluster.apply(kinds)
    cluster.wait_for("its kinds to be served", lambda: _served(cluster) >= KINDS)
    common = [f"--kubeconfig={cluster.kubeconfig}", "--leader-elect=false", "--v=3"]
    scheduler = [f"--scheduler-conf={folder / 'scheduler.yaml'}", f"--cache-dump-dir={folder}"]
    controllers = ["--controllers=+queue-controller,+pg-controller"]
    with ExitStack() as stack:
        stack.callback(_remove, cluster, [one["metadata"]["name"] for one in kinds])
        started = []
        for name, flags in ((SCHEDULER, scheduler), (CONTROLLERS, controllers)):
            command = [str(assets / name), *common, *flags]
            started.append(cluster.processes.start(name, command))
            stack.callback(started[-1].stop)
        started[-1].wait_for("its own queue", lambda: _opened(cluster), READY_SECONDS)
        yield started[0]


def _opened(cluster: Cluster) -> bool:
    """The scheduler makes it, and the controllers open it."""
    found = cluster.get(f"queues.{GROUP}")["items"]
    return any(
        one["metadata"]["name"] == "default" and one.get("status", {}).get("state") == "Open"
        for one in found
    )


def _remove(cluster: Cluster, kinds: list[str]) -> None:
    cluster.kubectl("delete", "--ignore-not-found", "crd", *kinds)
    cluster.kubectl("delete", "--ignore-not-found", "namespace", NAMESPACE)


def _served(cluster: Cluster) -> set[str]:
    said = cluster.kubectl("api-resources", f"--api-group={GROUP}", "--output=name")
    return {line.partition(".")[0] for line in said.split()}
