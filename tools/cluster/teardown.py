"""Removes a cluster by what its home says, whoever started it and however that one ended."""

import os
from collections.abc import Callable

from tools.cluster import binaries
from tools.cluster.addresses import MAX_NODES
from tools.cluster.cgroups import processes_in, remove_cgroup
from tools.cluster.errors import ClusterError
from tools.cluster.fake_nodes import OWNER
from tools.cluster.home import Home, homes, registry_lock, remove_mount_points
from tools.cluster.network import remove_links
from tools.cluster.processes import NO_PROXY, kill_until_gone, marked
from tools.cluster.profiles import Provider
from tools.cluster.progress import Progress
from tools.cluster.waiting import run

KIND_SECONDS = 120.0


def tear_down(home: Home, note_ends: Callable[[], None] = lambda: None) -> None:
    """Ends every process of the cluster, then removes what they leave. Needs `registry_lock`.

    `note_ends` is called between the two: a parent has to take note of its children's end.
    """
    if home.provider is Provider.KIND:
        run(["kind", "delete", "cluster", f"--name={home.name}"], seconds=KIND_SECONDS)
    try:
        if home.lent_nodes.exists():
            _take_nodes_back(home)
    finally:
        _clear_machine(home, note_ends)


def _take_nodes_back(home: Home) -> None:
    """Tried once: nobody else's clusters wait for one that does not answer any more."""
    delete = ["delete", "nodes", f"--selector={OWNER}={home.name}", "--wait=false"]
    kubectl = [str(binaries.client("kubectl", Progress())), f"--kubeconfig={home.kubeconfig}"]
    try:
        run([*kubectl, *delete], env={**os.environ, **NO_PROXY})
    except ClusterError as failed:
        by_hand = f"`kubectl {' '.join(delete)}`"
        raise ClusterError(f"fake nodes are left in your cluster: {by_hand}; {failed}") from failed


def _clear_machine(home: Home, note_ends: Callable[[], None]) -> None:
    cgroups = [home.addresses.node_cgroup(node) for node in range(1, MAX_NODES + 1)]

    def processes() -> set[int]:
        return marked(home).union(*(processes_in(cgroup) for cgroup in cgroups))

    kill_until_gone(processes, f"the processes of cluster {home.name}")
    note_ends()
    for cgroup in cgroups:
        remove_cgroup(cgroup)
    remove_links(home.addresses)
    home.remove()
    remove_mount_points()


def remove_stale() -> list[str]:
    """Removes the clusters whose owner is gone; returns their names, with what could not go."""
    removed = []
    with registry_lock():
        for home in homes():
            if home.stale:
                left = ""
                try:
                    tear_down(home)
                except ClusterError as failed:  # no reason for others not to go, or not to start
                    left = f" ({failed})"
                removed.append(home.name + left)
    return removed
