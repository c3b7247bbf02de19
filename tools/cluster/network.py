"""The network between the nodes of one cluster: a bridge of this machine, with no way out."""

import contextlib
from pathlib import Path

from tools.cluster.addresses import MAX_NODES, Addresses
from tools.cluster.errors import CommandFailed
from tools.cluster.waiting import run


def make_bridge(addresses: Addresses) -> None:
    """Makes the bridge that the nodes are cabled to; the control plane listens on its address."""
    run(["ip", "link", "add", addresses.bridge, "type", "bridge"])
    run(["ip", "address", "add", f"{addresses.bridge_address}/24", "dev", addresses.bridge])
    run(["ip", "link", "set", addresses.bridge, "up"])


def remove_links(addresses: Addresses) -> None:
    """Removes cables and bridge, and with them this machine's routes to the pods.

    The cables go by hand: a connection that was cut can keep its namespace, and so the cable's
    other end, for minutes.
    """
    cables = [addresses.node_link(node) for node in range(1, MAX_NODES + 1)]
    for link in (*cables, addresses.bridge):
        if (Path("/sys/class/net") / link).exists():
            # It may have gone with its namespace just now.
            with contextlib.suppress(CommandFailed):
                run(["ip", "link", "delete", link])
