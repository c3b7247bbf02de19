"""Who provides a cluster: the first of the four that this machine can do.

1. DISTSERVE_KUBECONFIG names one        given.py
2. a Docker engine runs, kind is there   kind.py
3. KUBEBUILDER_ASSETS has the programs   local.py with these (binaries.py)
4. Go builds them from pinned modules    local.py
"""

import secrets

from tools.cluster import binaries, given, host, kind, local
from tools.cluster.cluster import Cluster
from tools.cluster.control_plane import ExtraFlags
from tools.cluster.profiles import Profile, Provider, Release
from tools.cluster.progress import Progress
from tools.cluster.teardown import remove_stale


def choose() -> Provider:
    if given.named() is not None:
        return Provider.GIVEN
    return Provider.KIND if kind.usable() else Provider.LOCAL


def prepare(profile: Profile, progress: Progress) -> None:
    """Does what takes minutes, once per machine; raises Unavailable with the cure."""
    if choose() is Provider.LOCAL:
        local.prepare(profile, progress)
    else:
        binaries.ensure_clients(progress)


def install(profile: Profile, progress: Progress) -> None:
    """As `prepare`, but first installs the distribution's packages that it needs."""
    if choose() is Provider.LOCAL:
        host.install(real_nodes=profile is Profile.REAL)
    prepare(profile, progress)


def start(
    profile: Profile,
    progress: Progress | None = None,
    *,
    name: str = "",
    keep: bool = False,
    nodes: int = 2,
    extra: ExtraFlags | None = None,
    release: Release = Release.PINNED,
) -> Cluster:
    """A cluster of this profile that answers; those left behind by dead owners are removed first.

    `extra` flags of the control plane, and a later `release` of it, need the project's own cluster;
    nodes of one that has real ones stay as they are. Raises Unavailable with what
    to install where the machine can do none, DidNotCome where it should have come up.
    """
    progress = progress or Progress()
    for stale in remove_stale():
        progress.note(f"cluster {stale}: removed, its owner is gone")
    name = name or f"test-{secrets.token_hex(4)}"
    kubeconfig = given.named()
    own = extra is not None or release is not Release.PINNED
    provider = Provider.LOCAL if own else choose()
    if provider is Provider.GIVEN and kubeconfig is not None:
        return given.connect(profile, progress, kubeconfig, name=name, keep=keep)
    if provider is Provider.KIND:
        return kind.start(profile, progress, name=name, keep=keep, nodes=nodes)
    return local.start(
        profile, progress, name=name, keep=keep, nodes=nodes, extra=extra, release=release
    )
