"""The network between the nodes of one cluster: a bridge of this machine, with no way out."""

from tools.cluster.addresses import Addresses
from tools.cluster.errors import CommandFailed
from tools.cluster.waiting import run


def make_bridge(addresses: Addresses) -> None:
    """Makes the bridge that the nodes are cabled to; the control plane listens on its address."""
    run(["ip", "link", "add", addresses.bridge, "type", "bridge"])
    run(["ip", "address", "add", f"{addresses.bridge_address}/24", "dev", addresses.bridge])
    run(["ip", "link", "set", addresses.bridge, "up"])


def bridge_exists(addresses: Addresses) -> bool:
    try:
        run(["ip", "link", "show", addresses.bridge])
    except (CommandFailed, FileNotFoundError):
        return False
    return True


def remove_bridge(addresses: Addresses) -> None:
    """Removes the bridge, and with it this machine's routes to the pods."""
    if bridge_exists(addresses):
        run(["ip", "link", "delete", addresses.bridge])
