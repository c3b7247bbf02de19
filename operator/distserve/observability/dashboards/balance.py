"""Are there too few prefill or too few decode instances?"""

from typing import Final

from distserve.observability.dashboards.common import OF_DEPLOYMENT, by_label, legend
from distserve.observability.panels import Dashboard, Form, Panel, Query, Row, Unit
from distserve.observability.promql import mean, ratio, total
from distserve.observability.selecting import INSTANCE, ROLE, SHOWN, shown

_ENGINE: Final = "distserve_engine_"
_STEP: Final = f"{_ENGINE}iteration_tokens_total"
"""A histogram in spite of its name, which is vLLM's: the new tokens of each step."""


def _sum(name: str) -> Query:
    return Query(f"sum by ({ROLE}) ({shown(_ENGINE + name)})", legend(ROLE))


def _rate(name: str) -> Query:
    return Query(total(shown(_ENGINE + name), ROLE), legend(ROLE))


_QUEUES: Final = Row(
    "Queues",
    (
        Panel(
            "Requests that wait",
            "Queues that stay at prefill: more prefill instances. At decode: more memory for KV, "
            "or more decode instances.",
            (_sum("num_requests_waiting"),),
        ),
        Panel("Requests that run", "In the engines' batches.", (_sum("num_requests_running"),)),
        by_label(
            "p90 of the queueing time",
            "From a leg's arrival at an engine until it is begun.",
            0.9,
            f"{_ENGINE}request_queue_time_seconds",
            ROLE,
        ),
    ),
)
_MEMORY: Final = Row(
    "KV cache",
    (
        Panel(
            "KV blocks in use",
            "Decode instances near 100 % cannot admit: prefill then holds what is done.",
            (
                Query(
                    f"max by ({ROLE}, {INSTANCE}) ({shown(_ENGINE + 'kv_cache_usage_perc')})",
                    legend(INSTANCE),
                ),
            ),
            Unit.SHARE,
            most=1,
        ),
        Panel(
            "Hits of the prefix cache",
            "Share of the looked up prompt tokens that were there already.",
            (
                Query(
                    ratio(
                        total(shown(f"{_ENGINE}prefix_cache_hits_total"), ROLE),
                        total(shown(f"{_ENGINE}prefix_cache_queries_total"), ROLE),
                    ),
                    legend(ROLE),
                ),
            ),
            Unit.SHARE,
            most=1,
        ),
        Panel(
            "Preemptions",
            "Sequences that lost their blocks and are computed again.",
            (_rate("num_preemptions_total"),),
            Unit.PER_SECOND,
        ),
    ),
)
_BATCHES: Final = Row(
    "Batches",
    (
        Panel(
            "Tokens of a step",
            "Prefill is saturated above the saturation length; at decode it is the batch size.",
            (Query(mean(_STEP, SHOWN, ROLE), legend(ROLE)),),
        ),
        by_label("p90 of a step's tokens", "Of the same.", 0.9, _STEP, ROLE, unit=Unit.COUNT),
        Panel(
            "Steps per second",
            "",
            (Query(total(shown(f"{_STEP}_count"), ROLE), legend(ROLE)),),
            Unit.PER_SECOND,
        ),
        Panel(
            "Prompt tokens per second",
            "Computed or found in the cache.",
            (_rate("prompt_tokens_total"),),
            Unit.PER_SECOND,
        ),
        Panel(
            "Generated tokens per second",
            "A prefill instance generates the first of each request.",
            (_rate("generation_tokens_total"),),
            Unit.PER_SECOND,
        ),
        Panel(
            "Choices by how they ended",
            "handoff: a prefill leg whose choices go on elsewhere.",
            (
                Query(
                    total(shown(f"{_ENGINE}request_success_total"), "finished_reason"),
                    legend("finished_reason"),
                ),
            ),
            Unit.PER_SECOND,
            Form.STACKED,
        ),
        by_label(
            "p90 of the prefill time",
            "Of a leg, from the begin of its context to its end.",
            0.9,
            f"{_ENGINE}request_prefill_time_seconds",
            ROLE,
            width=12,
        ),
        by_label(
            "p90 of the decoding time",
            "Of a leg, from its first decoding step to its end.",
            0.9,
            f"{_ENGINE}request_decode_time_seconds",
            ROLE,
            width=12,
        ),
    ),
)
BALANCE: Final = Dashboard(
    "distserve-balance",
    "DistServe / Prefill and decode",
    "Queues, KV memory and batches of the two phases, side by side.",
    OF_DEPLOYMENT,
    (_QUEUES, _MEMORY, _BATCHES),
)
