"""The operator's own alerts: the chart's and the standalone pack's."""

from collections.abc import Iterator

from distserve.observability.promql import equals, series
from distserve.observability.rules import Alert


def operator_rules(namespace: str, operator: str) -> Iterator[Alert]:
    """`operator`: the Deployment's name, with which those of its pods begin. Sums have no labels of
    their own: each alert says whose it is, so that those of two releases stay two."""
    whose, identity = f"{namespace}/{operator}", {"namespace": namespace, "operator": operator}

    def own(metric: str) -> str:
        pods = f'pod=~"{operator}-.+"'
        return series(f"distserve_operator_{metric}", equals("namespace", namespace), pods)

    yield Alert(
        "DistServeOperatorWithoutLeader",
        f"(sum({own('leader')}) or vector(0)) < 1",
        "critical",
        f"{whose}: no replica of the operator writes.",
        "Deployments serve on, but nothing is repaired, scaled or rolled out. Look at its pods and "
        "at the Lease of that name.",
        "2m",
        identity,
    )
    # A listing proves the watches each 600 s; who lacks three of them is started anew.
    yield Alert(
        "DistServeOperatorBlind",
        f"max by (pod) ({own('proof_age_seconds')}) > 900",
        "warning",
        f"{whose}: a replica's watches have not been proven for 20 minutes.",
        "{{ $labels.pod }} may not see changes. Its log names the kind; deleting the pod is safe.",
        "5m",
        identity,
    )
    # Where it may not look into any of them it ends, and nobody leads.
    yield Alert(
        "DistServeOperatorNamespaceLeftOut",
        f"max({own('namespaces_left_out')}) > 0",
        "warning",
        f"{whose}: the operator does not keep a namespace that it is to keep.",
        "Its deployments serve on, but nothing there is repaired, scaled or rolled out. The log "
        "names the namespace: give it its Role back by a helm upgrade, or take it out of the "
        "chart's namespaces.",
        "5m",
        identity,
    )
    yield Alert(
        "DistServeOperatorReconcileErrors",
        f"max({own('deployments_failing')}) > 0",
        "warning",
        f"{whose}: deployments have failed to reconcile, try after try, for ten minutes.",
        "No spec does that: bad ones end in the condition Accepted. The leader's log names "
        "deployment and reason.",
        "10m",
        identity,
    )
    # Of the leader: the others' queues wait until they lead.
    yield Alert(
        "DistServeOperatorBehind",
        f"sum({own('queue_depth')} * on (namespace, pod) {own('leader')}) > 0",
        "warning",
        f"{whose}: deployments have waited for a worker for half an hour.",
        "Raise operator.workers, or look for a slow API server in "
        "distserve_operator_reconcile_seconds.",
        "30m",
        identity,
    )
