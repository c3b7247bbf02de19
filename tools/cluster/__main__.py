"""`python -m tools.cluster`: install, up, down, list."""

import argparse
import sys

from tools.cluster import providers
from tools.cluster.errors import ClusterError
from tools.cluster.home import homes, registry_lock
from tools.cluster.profiles import Profile, Provider
from tools.cluster.progress import Progress
from tools.cluster.teardown import remove_stale, tear_down

PROFILES = [str(profile) for profile in Profile]
NODES = 2


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.cluster", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    install = verbs.add_parser("install", help="install and build what is missing")
    up = verbs.add_parser("up", help="start a cluster that stays until `down`")
    for verb in (install, up):
        verb.add_argument("--profile", choices=PROFILES, default=str(Profile.REAL))
    up.add_argument("--name", default="kept")
    up.add_argument("--nodes", type=int, help=f"real nodes (default {NODES})")
    down = verbs.add_parser("down", help="remove a cluster, and those whose owner is gone")
    which = down.add_mutually_exclusive_group()
    which.add_argument("--name", default="kept")
    which.add_argument("--all", action="store_true", help="also those that tests are using")
    verbs.add_parser("list", help="the clusters of this user")
    chosen = parser.parse_args(arguments)
    try:
        return {"install": _install, "up": _up, "down": _down, "list": _list}[chosen.verb](chosen)
    except ClusterError as failed:
        print(f"cluster: {failed}", file=sys.stderr)
        return 1


def _install(chosen: argparse.Namespace) -> int:
    providers.install(Profile(chosen.profile), Progress())
    return 0


def _up(chosen: argparse.Namespace) -> int:
    remove_stale()
    profile, nodes = Profile(chosen.profile), chosen.nodes
    made_here = profile is Profile.REAL and providers.choose() is not Provider.GIVEN
    if nodes is not None and not made_here:
        raise ClusterError(f"--nodes {nodes}: only a cluster of profile real that is made here")
    found = next((home for home in homes() if home.name == chosen.name), None)
    if found is None:
        count = NODES if nodes is None else nodes
        found = providers.start(profile, name=chosen.name, keep=True, nodes=count).home
    elif found.profile is not profile or nodes is not None:
        raise ClusterError(
            f"there is a cluster {found.name} of profile {found.profile}, which stays as it is: "
            "choose another --name, or remove it first (`down`, `make cluster-down`)"
        )
    print(f"export KUBECONFIG={found.kubeconfig}")
    return 0


def _down(chosen: argparse.Namespace) -> int:
    remove_stale()
    with registry_lock():
        for home in homes():
            if chosen.all or home.name == chosen.name:
                tear_down(home)
                print(f"cluster {home.name}: removed", file=sys.stderr)
    return 0


def _list(chosen: argparse.Namespace) -> int:
    for home in homes():
        state = "stale" if home.stale else "kept" if home.kept else "in use"
        print(f"{home.name}\t{home.profile}\t{home.provider}\t{state}\t{home.kubeconfig}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
