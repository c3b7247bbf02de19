"""Does the operator keep up, and what do its deployments lack?"""

from typing import Final

from distserve.observability.dashboards.common import legend, percentiles
from distserve.observability.panels import Dashboard, Form, Panel, Query, Row, Unit, Variable
from distserve.observability.promql import series, total

_PREFIX: Final = "distserve_operator_"
_OWN: Final = ('namespace="$operator_namespace"',)
"""Not $namespace: links between dashboards carry that, and it is the deployments'."""


def _own(name: str) -> str:
    return series(_PREFIX + name, *_OWN)


def _by_deployment(name: str) -> Query:
    return Query(f"max by (deployment) ({_own(name)}) or on () vector(0)", legend("deployment"))


_OF_LEADER: Final = f"* on (pod) ({_own('leader')} == 1)"

_STATE: Final = Row(
    "State",
    (
        Panel(
            "Leader",
            "Replicas that write. 1, and for seconds 0 while it is handed over.",
            (Query(f"sum({_own('leader')})", "leaders"),),
            form=Form.NUMBER,
            width=4,
        ),
        Panel(
            "Deployments",
            "That are seen.",
            (Query(f"max({_own('deployments')})", "deployments"),),
            form=Form.NUMBER,
            width=4,
        ),
        Panel(
            "Deployments by condition",
            "A line without a name at 0: there is no deployment yet.",
            (
                Query(
                    f"max by (condition, status, reason) ({_own('deployments_by_condition')}) "
                    "or on () vector(0)",
                    legend("condition", "status", "reason"),
                ),
            ),
            width=16,
        ),
    ),
)
_UNITS: Final = Row(
    "Units",
    (
        Panel(
            "Units that are not whole",
            "They are to be, and wait for a place, for nodes, for images or for their engines. "
            "A line without a name at 0: all are whole.",
            (_by_deployment("units_waiting"),),
        ),
        Panel(
            "Longest wait by now",
            "Of the first of these. `distserve why` says what it waits for.",
            (_by_deployment("unit_wait_longest_seconds"),),
            Unit.SECONDS,
        ),
        percentiles(
            "Time until a unit was whole",
            "From when it was wanted, or lost an instance, as far as this leader saw it.",
            f"{_PREFIX}unit_wait_seconds",
            matchers=_OWN,
        ),
    ),
)
_WORK: Final = Row(
    "Work",
    (
        Panel(
            "Waiting for a worker",
            "The leader's queue. It never stays above 0 for long.",
            (Query(f"sum({_own('queue_depth')} {_OF_LEADER}) or vector(0)", "deployments"),),
        ),
        Panel(
            "Reconciles by result",
            "conflict: somebody else owns a field. refused and unavailable: the API server's word.",
            (Query(total(_own("reconcile_total"), "result"), legend("result")),),
            Unit.PER_SECOND,
            Form.STACKED,
        ),
        percentiles(
            "Time of a reconcile",
            "Of one deployment.",
            f"{_PREFIX}reconcile_seconds",
            matchers=_OWN,
        ),
        Panel(
            "Deployments that fail",
            "Five tries in a row or more; the leader's log names them.",
            (Query(f"max({_own('deployments_failing')})", "deployments"),),
            width=6,
        ),
        Panel(
            "Reconciles that are tried again",
            "By how they ended.",
            (Query(total(_own("reconcile_errors_total"), "result"), legend("result")),),
            Unit.PER_SECOND,
            width=6,
        ),
        Panel(
            "Calls to the API server",
            "Watches left out.",
            (Query(total(_own("api_calls_total"), "verb, outcome"), legend("verb", "outcome")),),
            Unit.PER_SECOND,
            width=6,
        ),
        Panel(
            "Admission reviews",
            "Deployments that the webhook was asked about.",
            (Query(total(_own("admission_reviews_total"), "outcome"), legend("outcome")),),
            Unit.PER_SECOND,
            Form.STACKED,
            width=6,
        ),
    ),
)
_SIGHT: Final = Row(
    "Sight",
    (
        Panel(
            "Age of the last proof",
            "Since a listing proved that the watches show what is there; each 600 s.",
            (Query(f"max by (pod) ({_own('proof_age_seconds')})", legend("pod")),),
            Unit.SECONDS,
            width=12,
        ),
        Panel(
            "Since a watch showed something",
            "Quiet kinds are quiet for long.",
            (Query(f"max by (kind) ({_own('watch_age_seconds')})", legend("kind")),),
            Unit.SECONDS,
            width=12,
        ),
    ),
)
OPERATOR: Final = Dashboard(
    "distserve-operator",
    "DistServe / Operator",
    "Leadership, queue, waiting units, reconciles, calls to the API server and the age of what is "
    "known.",
    (Variable("operator_namespace", f"{_PREFIX}leader", "namespace"),),
    (_STATE, _UNITS, _WORK, _SIGHT),
)
