"""What can be set about the operator: each with its unit, its default and the reason for it."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class LeaseSettings:
    """Who writes. duration > renew_deadline > renew: the old holder stops before a new one may
    start, whatever the network does. A killed holder is followed after at most `duration` plus a
    call; one that ends is followed at once, because it gives the lease back."""

    namespace: str = "default"
    name: str = "distserve-operator"
    identity: str = field(default_factory=lambda: f"{socket.gethostname()}_{os.getpid()}")
    duration_seconds: int = 12
    """Below 15 s with the calls that follow; above what an API server needs for a restart."""
    renew_deadline_seconds: float = 9.0
    """Without a renewal for this long the process ends: two calls of an API server that needs
    seconds for each; 3 s are left for clocks and a paused process."""
    renew_seconds: float = 3.0
    """0.33 calls/s, and two tries before the deadline."""
    busy_seconds: float = 60.0
    """What decides may hold its loop for so long, seven times the longest pass of placement that
    was measured. After that it is taken to hang, and the lease is let go."""


@dataclass(frozen=True)
class WatchSettings:
    """How the world is seen, and how soon blindness is noticed."""

    server_timeout_seconds: int = 600
    """The API server ends each watch after this: fourteen watches are 0.023 calls/s a replica."""
    inactivity_seconds: float = 75.0
    """The API server sends a bookmark each 60 s; a watch without one for longer is dead."""
    connect_seconds: float = 10.0
    chunk_size: int = 50
    """Objects of a kind's listing in memory at a time. All kinds are listed at once when the
    process starts, and Python keeps what it took: with 250 it stays 50 MB larger."""
    proof_chunk_size: int = 500
    """Of a listing of metadata alone: a thousand deployments are 40 calls in each resync."""
    resync_seconds: float = 600.0
    """Every object's version is compared with the cluster's, and every deployment decided anew."""
    discover_seconds: float = 60.0
    """What kinds the cluster serves is asked this often: 0.07 calls/s. Their group may be there
    sooner than all of its kinds, so it takes more than one look."""
    proof_seconds: float = 90.0
    """What a listing shows must have come through its watch by then (a silent watch is replaced
    in `inactivity_seconds`); else the watch is dead, and the process is not healthy."""
    kueue: bool = False
    """Kueue's kinds as well, where they are served: who needs them gives the rights for them."""
    volcano: bool = False
    """The same of Volcano's."""
    gang_scheduling: bool = False
    """The same of Kubernetes' own PodGroups."""
    kai: bool = False
    """The same of KAI's."""


@dataclass(frozen=True)
class QueueSettings:
    workers: int = 4
    """Reconciles at the same time; nearly all of their time is waiting for the API server."""
    backoff_seconds: float = 0.5
    """Wait after the first failure of a deployment, doubled with each further one."""
    backoff_cap_seconds: float = 120.0
    """A fault that lasts is tried this rarely, and its end is noticed this late."""
    failing_after: int = 5
    """Failures in a row from which on a deployment counts as failing: the pauses between them are
    4 to 8 s, in which a conflict is over."""


@dataclass(frozen=True)
class CallSettings:
    seconds: float = 10.0
    """Bound of a read; the API server's own for most is 60 s, and what takes longer than 10 is
    better tried again later."""
    write_seconds: float = 32.0
    """Longer than a webhook may take, 30 s at most: then the API server says which one it was."""
    connections: int = 32


@dataclass(frozen=True)
class PlanSettings:
    deadline_seconds: float = 600.0
    """The largest searches take minutes; an endless one must not hold a process for ever."""
    processes: int = 1
    """Plans at the same time: each takes a CPU and about 100 MB."""
    kept: int = 256
    """Plans in memory, of about 2 KB."""
    retry_seconds: float = 300.0
    """A plan that came too late or whose process died is tried again after this, and after twice
    as long each further time: others wait while it is made."""
    longest_retry_seconds: float = 4 * 3600.0
    """A search that always takes its whole deadline has one part in 25 of a process by then."""


@dataclass(frozen=True)
class MountedCertificate:
    """tls.crt and tls.key in a folder that somebody else keeps fresh."""

    folder: Path
    look_seconds: float = 10.0
    """A kubelet takes a minute to bring a new one; reading two files is nothing."""


@dataclass(frozen=True)
class SelfMadeCertificate:
    """Made by the leader; Secret and ValidatingWebhookConfiguration are there before."""

    namespace: str
    secret: str
    configuration: str
    names: tuple[str, ...]
    """By which API servers call: SERVICE.NAMESPACE.svc."""
    life_seconds: float = 90 * 86400.0
    """Renewed in its last third: an operator may be away for a month."""
    look_seconds: float = 60.0
    """Two calls by the leader, one by the others: 0.05 calls/s. Replicas follow this late."""
    settle_seconds: float = 300.0
    """A new authority is announced for this long before it is used; API servers watch."""


@dataclass(frozen=True)
class WebhookSettings:
    certificate: MountedCertificate | SelfMadeCertificate
    port: int = 9443


@dataclass(frozen=True)
class Settings:
    namespaces: tuple[str, ...] = ()
    """None: all. Nodes and namespaces are read in either case: placement needs them."""
    kubeconfig: Path | None = None
    """None: the pod's service account, else $KUBECONFIG or ~/.kube/config."""
    health_port: int = 8081
    metrics_port: int = 8080
    host: str = "0.0.0.0"
    """Kubelet and Prometheus come from outside the pod. Tests bind to 127.0.0.1."""
    lease: LeaseSettings = field(default_factory=LeaseSettings)
    watch: WatchSettings = field(default_factory=WatchSettings)
    queue: QueueSettings = field(default_factory=QueueSettings)
    calls: CallSettings = field(default_factory=CallSettings)
    plans: PlanSettings = field(default_factory=PlanSettings)
    webhook: WebhookSettings | None = None
    """None: no admission, as by default."""
