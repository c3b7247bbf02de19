"""What the gateway measures, for Prometheus: TTFT and TPOT as its clients see them."""

from collections.abc import Sequence
from itertools import pairwise

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from distserve.gateway.pairing import Scope, scope_of
from distserve.gateway.routing import Route
from distserve.gateway.stages import STAGES
from distserve.wire.dialect import Slo

TTFT_BUCKETS = (
    .005, .01, .02, .03, .05, .075, .1, .125, .15, .2, .25, .3, .4, .5, .75, 1, 1.5, 2, 2.5, 3, 4,
    5, 6, 8, 10, 15, 20, 30, 60, 120,
)  # fmt: skip
TPOT_BUCKETS = (
    .001, .0025, .005, .0075, .01, .015, .02, .025, .03, .04, .05, .06, .075, .08, .1, .125, .15,
    .175, .2, .25, .3, .4, .5, .75, 1, 2.5,
)  # fmt: skip
DURATION_BUCKETS = (
    .01, .02, .04, .08, .16, .32, .64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84,
    327.68, 655.36,
)  # fmt: skip
STAGE_BUCKETS = (
    .0005, .001, .0025, .005, .01, .025, .05, .075, .1, .2, .3, .5, .75, 1, 2.5, 5, 10, 20, 40, 80,
    160, 320,
)  # fmt: skip
"""Upper bounds in seconds. Fine at the low end: a fast decoder's TPOT lies below 10 ms. Usual
objectives are bounds, and no gateway adds its own: after an edit of the SLO its deployment's
gateways would differ while they are replaced, and buckets that differ cannot be summed."""

OBJECTIVES = ("deployment", "own")
"""spec.slo's, or what a request's headers name. Apart: one client's wish is nobody's promise."""
CODES = ("200", "400", "404", "408", "413", "429", "499", "500", "502", "503", "504")


class Metrics:
    """All series exist from the start, so that a rate over them is right from the first request.
    One gateway serves one model: nothing here needs a label for it."""

    def __init__(self, slo: Slo, attainment_percent: float) -> None:
        self.registry = CollectorRegistry()
        self.ttft = self._histogram(
            "distserve_time_to_first_token_seconds",
            "From a prompt's arrival to its first token",
            TTFT_BUCKETS,
        )
        self.tpot = self._histogram(
            "distserve_time_per_output_token_seconds",
            "Mean time between the tokens of a choice: (last - first) / (tokens - 1)",
            TPOT_BUCKETS,
        )
        self.inter_token = self._histogram(
            "distserve_inter_token_latency_seconds",
            "Time between two tokens of a choice",
            TPOT_BUCKETS,
        )
        self.duration = self._histogram(
            "distserve_request_duration_seconds",
            "From a request's arrival to the end of its answer",
            DURATION_BUCKETS,
        )
        self.stages = Histogram(
            "distserve_request_stage_seconds",
            "Time that a prompt spent in each stage",
            ["stage"],
            buckets=STAGE_BUCKETS,
            registry=self.registry,
        )
        self.requests = Counter(
            "distserve_requests",
            "Requests by the status of their outcome; a stream that broke counts under its error",
            ["code"],
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "distserve_requests_in_flight", "Requests being answered", registry=self.registry
        )
        self.waiting = Gauge(
            "distserve_requests_waiting", "Prompts without a first token", registry=self.registry
        )
        self.waiting_bound = Gauge(
            "distserve_requests_waiting_bound",
            "Prompts that may wait here: this gateway's share of maxWaitingRequests",
            registry=self.registry,
        )
        self.discovery_age = Gauge(
            "distserve_gateway_discovery_age_seconds",
            "Since the source of the instances' addresses last gave a sign of life",
            registry=self.registry,
        )
        self.prompt_tokens = Counter(
            "distserve_prompt_tokens", "Prompt tokens of answered requests", registry=self.registry
        )
        self.generation_tokens = Counter(
            "distserve_generation_tokens", "Tokens sent to clients", registry=self.registry
        )
        self.judged = Counter(
            "distserve_slo_judged",
            "Requests with an objective that were answered, failed by the service (5xx), or given "
            "up after their first token was due",
            ["objective"],
            registry=self.registry,
        )
        self.attained = Counter(
            "distserve_slo_attained",
            "Of these, requests that met it",
            ["objective", "slo"],
            registry=self.registry,
        )
        self.transfers = Counter(
            "distserve_gateway_kv_transfer_bytes",
            "KV moved for this gateway's requests",
            ["transport"],
            registry=self.registry,
        )
        self.pairs = Counter(
            "distserve_gateway_pairs",
            "Pairs of instances that prompts were sent to, by what prefill and decode share",
            ["scope"],
            registry=self.registry,
        )
        for code in CODES:
            self.requests.labels(code)
        for scope in Scope:
            self.pairs.labels(scope.name.lower())
        for stage in STAGES:
            self.stages.labels(stage)
        for objective in OBJECTIVES:
            self.judged.labels(objective)
            for name in ("ttft", "tpot", "both"):
                self.attained.labels(objective, name)
        self._targets(slo, attainment_percent)

    def count_request(self, code: int, objective: str | None, met: Sequence[str]) -> None:
        """An outcome, whose objective it is judged by, if any, and what of it was met, between
        which nobody reads."""
        self.requests.labels(str(code)).inc()
        if objective is not None:
            self.judged.labels(objective).inc()
            for slo in met:
                self.attained.labels(objective, slo).inc()

    def observe_stage(self, stage: str, seconds: float) -> None:
        self.stages.labels(stage).observe(seconds)

    def observe_route(self, route: Route) -> None:
        """A prompt was sent there. What one instance does alone is no pair."""
        for one, other in pairwise(route.stops):
            self.pairs.labels(scope_of(one.member, other.member).name.lower()).inc()

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)

    def _targets(self, slo: Slo, attainment_percent: float) -> None:
        """What the alerts compare with."""
        target = Gauge(
            "distserve_slo_target_seconds",
            "Objective of requests that name none",
            ["slo"],
            registry=self.registry,
        )
        for name, ms in (("ttft", slo.ttft_ms), ("tpot", slo.tpot_ms)):
            if ms is not None:
                target.labels(name).set(ms / 1000)
        if slo == Slo():
            return  # a share of nothing is no promise
        Gauge(
            "distserve_slo_target_ratio",
            "Share of requests that is to meet both objectives",
            registry=self.registry,
        ).set(attainment_percent / 100)
