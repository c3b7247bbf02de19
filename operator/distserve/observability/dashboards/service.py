"""Does it meet its objective, at what rate, and where does the time go?"""

from typing import Final

from distserve.observability.dashboards.common import OF_DEPLOYMENT, by_label, legend, percentiles
from distserve.observability.panels import Dashboard, Form, Panel, Query, Row, Unit
from distserve.observability.promql import (
    LEAST,
    SHOWN_TIME,
    WINDOW,
    attained,
    equals,
    ratio,
    ratios,
    total,
)
from distserve.observability.selecting import (
    ATTAINED,
    FAILED,
    IN_FLIGHT,
    JUDGED,
    OBJECTIVE,
    OWN_OBJECTIVE,
    REQUESTS,
    SERVED,
    TARGET_RATIO,
    TARGET_SECONDS,
    shown,
)

_DISCOVERY_AGE: Final = "distserve_gateway_discovery_age_seconds"
STAGES: Final = "distserve_request_stage_seconds"
NO_SLO: Final = "no spec.slo"
_MEAN_BY_STAGE: Final = ratios(
    total(shown(f"{STAGES}_sum"), "stage"),
    total(shown(f"{STAGES}_count", equals("stage", "dispatch"))),
)
"""Every prompt has been dispatched; not every one moves KV or decodes."""
_OWN_MET: Final = shown(ATTAINED, OWN_OBJECTIVE, equals("slo", "both"))
_PROMISED: Final = f"and on () max({shown(TARGET_SECONDS)})"
"""Only of a deployment that has an SLO: without one nothing is attained."""


def _attained(slo: str, by: str = "", window: str = WINDOW) -> str:
    met = shown(ATTAINED, OBJECTIVE, *([equals("slo", slo)] if slo else []))
    return f"{attained(met, shown(JUDGED, OBJECTIVE), by, window)} {_PROMISED}"


def _target(slo: str) -> Query:
    objective = shown(TARGET_SECONDS, equals("slo", slo))
    return Query(f"max({objective})", "objective", target=True)


def _burn(window: str) -> Query:
    met = attained(
        shown(ATTAINED, OBJECTIVE, equals("slo", "both")), shown(JUDGED, OBJECTIVE), window=window
    )
    budget = f"clamp_min(1 - max({shown(TARGET_RATIO)}), {LEAST})"
    return Query(f"(1 - {met}) / {budget} {_PROMISED}", window)


_OBJECTIVE: Final = Row(
    "Objective",
    (
        Panel(
            "SLO attainment",
            "Share of the requests that met TTFT and TPOT, over the time that is shown. Failures "
            "of the service count as missed. 100 % where nothing was asked.",
            (Query(_attained("both", window=SHOWN_TIME), instant=True),),
            Unit.SHARE,
            Form.NUMBER,
            most=1,
            width=4,
            without=NO_SLO,
        ),
        Panel(
            "Attainment by half",
            "A low ttft: prefill is short or requests queue. A low tpot: decode batches are too "
            "big. 100 % while nothing is asked.",
            (
                Query(_attained("", "slo"), legend("slo")),
                Query(f"max({shown(TARGET_RATIO)})", "objective", target=True),
            ),
            Unit.SHARE,
            most=1,
            width=7,
            without=NO_SLO,
        ),
        Panel(
            "Error budget's burn rate",
            "1 uses up the allowed misses exactly; the alerts compare with multiples of it.",
            (_burn("5m"), _burn("1h"), _burn("6h")),
            width=7,
            without=NO_SLO,
        ),
        Panel(
            "Attainment of objectives of their own",
            "Requests that named objectives in their headers (x-slo-ttft-ms, x-slo-tpot-ms) are "
            "judged by those, and by no alert. 100 % while there are none.",
            (Query(attained(_OWN_MET, shown(JUDGED, OWN_OBJECTIVE)), "both"),),
            Unit.SHARE,
            most=1,
            width=6,
        ),
        percentiles(
            "Time to first token",
            "From a prompt's arrival at the gateway to its first token.",
            "distserve_time_to_first_token_seconds",
            _target("ttft"),
        ),
        percentiles(
            "Time per output token",
            "Mean time between the tokens of a choice.",
            "distserve_time_per_output_token_seconds",
            _target("tpot"),
        ),
        percentiles(
            "Between two tokens",
            "Each gap on its own: stalls show here before they show in the mean.",
            "distserve_inter_token_latency_seconds",
        ),
    ),
)
_LOAD: Final = Row(
    "Load",
    (
        Panel(
            "Requests by outcome",
            "499: the client went away; 429: more wait than admission allows.",
            (Query(total(shown(REQUESTS), "code"), legend("code")),),
            Unit.REQUESTS,
            Form.STACKED,
            width=6,
        ),
        Panel(
            "Requests now",
            "Waiting are prompts without a first token.",
            (
                Query(f"sum({shown(IN_FLIGHT)})", "in flight"),
                Query(f"sum({shown('distserve_requests_waiting')})", "waiting"),
            ),
            width=6,
        ),
        Panel(
            "Room to wait, taken",
            "Share of maxWaitingRequests; what comes beyond it is answered with 429.",
            (
                Query(
                    f"sum({shown('distserve_requests_waiting')}) "
                    f"/ sum({shown('distserve_requests_waiting_bound')})",
                    "taken",
                ),
            ),
            Unit.SHARE,
            width=6,
        ),
        Panel(
            "Tokens per second",
            "Prompts count when they are answered, generated tokens when they are sent.",
            (
                Query(total(shown("distserve_prompt_tokens_total")), "prompt"),
                Query(total(shown("distserve_generation_tokens_total")), "generated"),
            ),
            Unit.PER_SECOND,
            width=6,
        ),
        Panel(
            "Failures of the service",
            "Share of the requests taken in that ended in a 5xx.",
            (
                Query(
                    ratio(total(shown(REQUESTS, FAILED)), total(shown(REQUESTS, SERVED))), "failed"
                ),
            ),
            Unit.SHARE,
        ),
        percentiles(
            "Duration of requests",
            "From a request's arrival to the end of its answer.",
            "distserve_request_duration_seconds",
        ),
        Panel(
            "Age of what gateways know",
            "Since the source of the instances' addresses last gave a sign of life. It grows while "
            "the API server is away; requests are still served.",
            (Query(f"max by (pod) ({shown(_DISCOVERY_AGE)})", legend("pod")),),
            Unit.SECONDS,
        ),
    ),
)
_STAGES: Final = Row(
    "Where the time goes",
    (
        Panel(
            "Mean time by stage",
            "Of all prompts, those included that a stage had none of: so the stages of the mean "
            "prompt add up to its time. dispatch is what was before it went to the instances that "
            "answered it: reading, tokenising, waiting for a route, attempts that failed. "
            "0 while there was none.",
            (Query(_MEAN_BY_STAGE, legend("stage")),),
            Unit.SECONDS,
            Form.STACKED,
            width=16,
        ),
        by_label("p90 by stage", "Of the prompts that had the stage.", 0.9, STAGES, "stage"),
    ),
)
SERVICE: Final = Dashboard(
    "distserve-service",
    "DistServe / Service",
    "TTFT, TPOT and the SLO as clients see them, the load, and the stages of a request.",
    OF_DEPLOYMENT,
    (_OBJECTIVE, _LOAD, _STAGES),
)
