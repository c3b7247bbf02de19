"""KAI as processes of a cluster: its scheduler, its binder and its pod-grouper.

Its programs are not built here: KAI_ASSETS names a folder with `scheduler`, `binder`, `podgrouper`
of a release, and `crds` with the CRDs of its chart. They run with their own defaults; without its
controllers, which count what its queues have for others to see, and without its webhooks.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import yaml
from tools.cluster.cluster import Cluster
from tools.cluster.errors import Unavailable
from tools.cluster.processes import Process

VARIABLE: Final = "KAI_ASSETS"
SCHEDULER: Final = "scheduler"
PROGRAMS: Final = (SCHEDULER, "binder", "podgrouper")
GROUP: Final = "scheduling.run.ai"
NAMESPACE: Final = "kai-scheduler"
KINDS: Final = frozenset({"podgroups", "queues", "bindrequests"})


def lacking() -> str:
    """What is to be done before it can run; empty where it can."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return (
            f"name a folder in {VARIABLE} with {', '.join(PROGRAMS)} of a release of KAI (go build "
            "./cmd/NAME of its source), and in crds the CRDs of its chart"
        )
    wanted = [Path(folder) / name for name in (*PROGRAMS, "crds")]
    missing = [str(one) for one in wanted if not one.exists()]
    return f"{VARIABLE}={folder}: there is no {', no '.join(missing)}" if missing else ""


@contextmanager
def running(cluster: Cluster) -> Iterator[Process]:
    """KAI at work, its scheduler, with its kinds, which are gone again afterwards with all that is
    in them.

    Raises Unavailable."""
    if why := lacking():
        raise Unavailable(why)
    assets = Path(os.environ[VARIABLE])
    cluster.kubectl("create", "namespace", NAMESPACE)
    kinds = [yaml.safe_load(file.read_text()) for file in sorted((assets / "crds").glob("*.yaml"))]
    cluster.apply(kinds)
    cluster.wait_for("its kinds to be served", lambda: _served(cluster) >= KINDS)
    silent = ["--metrics-bind-address=0", "--health-probe-bind-address=0"]
    flags = {SCHEDULER: ["--listen-address=127.0.0.1:0", "--v=4"]}
    with ExitStack() as stack:
        stack.callback(_remove, cluster, [one["metadata"]["name"] for one in kinds])
        started = {}
        for name in PROGRAMS:
            command = ["env", f"KUBECONFIG={cluster.kubeconfig}", str(assets / name)]
            command += flags.get(name, silent)
            started[name] = cluster.processes.start(f"kai-{name}", command)
            stack.callback(started[name].stop)
        yield started[SCHEDULER]


def _remove(cluster: Cluster, kinds: list[str]) -> None:
    cluster.kubectl("delete", "--ignore-not-found", "crd", *kinds)
    cluster.kubectl("delete", "--ignore-not-found", "namespace", NAMESPACE)


def _served(cluster: Cluster) -> set[str]:
    said = cluster.kubectl("api-resources", f"--api-group={GROUP}", "--output=name")
    return {line.partition(".")[0] for line in said.split()}
