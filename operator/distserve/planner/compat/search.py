"""The reference's joint search: every configuration, and the highest rate at which it passes.

The bisection, its grid and its ties are the reference's. A probe stops as soon as its outcome is
certain: when the time to first token misses, decode is not simulated at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

from distserve.planner.compat.chain import colocated_chain, decode_chain, prefill_chain
from distserve.planner.compat.observers import ColocatedObserver, Miss, TpotObserver
from distserve.planner.compat.rules import Chain
from distserve.planner.errors import NoProfile, PlannerError
from distserve.planner.models import ModelShape
from distserve.planner.profiles import HardwareProfile
from distserve.planner.result import RunResult, Slo, quantile
from distserve.workload import ArrivalProcess, RequestSet, Trace


class Configuration(NamedTuple):
    """Parallelism of a prefill and a decode instance over `pp_cross` segments.

    A colocated configuration has `tp_decode` 0: one instance does both.
    """

    pp_cross: int
    tp_prefill: int
    pp_prefill: int
    tp_decode: int
    pp_decode: int

    @property
    def colocated(self) -> bool:
        return self.tp_decode == 0

    @property
    def accelerators(self) -> int:
        return self.pp_cross * (self.tp_prefill * self.pp_prefill + self.tp_decode * self.pp_decode)


def disaggregated_configurations(
    model: ModelShape, nodes: int, per_node: int, high_affinity: bool
) -> Iterator[Configuration]:
    """With high affinity anything that fits all nodes; else segments that each fit one node."""
    total = nodes * per_node
    reach = total if high_affinity else per_node
    layers_divide = set(model.pipeline_degrees(model.layers))
    tps, pps = model.tensor_degrees(reach), model.pipeline_degrees(reach)
    crossings = [1] if high_affinity else model.pipeline_degrees(nodes)
    for parts in product(crossings, tps, pps, tps, pps):
        found = Configuration(*parts)
        segment = found.accelerators // found.pp_cross
        if (
            segment <= reach
            and found.accelerators <= total
            and found.pp_cross * found.pp_prefill in layers_divide
            and found.pp_cross * found.pp_decode in layers_divide
        ):
            yield found


def colocated_configurations(model: ModelShape, accelerators: int) -> Iterator[Configuration]:
    for tp, pp in product(model.tensor_degrees(accelerators), model.pipeline_degrees(accelerators)):
        if tp * pp <= accelerators:
            yield Configuration(1, tp, pp, 0, 0)


@dataclass(frozen=True)
class Verdict:
    """What the search found about one configuration.

    `per_gpu_rate` is None where it cannot run and 0 where no probed rate passed; `reason` says
    why in both cases. `miss` is how far the last failed probe was from its target (1.2 = 20 %
    above), None when nothing failed.
    """

    configuration: Configuration
    per_gpu_rate: float | None
    reason: str | None = None
    miss: float | None = None
    missed_rate: float | None = None
    """Per accelerator: the lowest rate that was probed and missed."""
    unlimited: bool = False
    """Every probed rate passed: the search's upper bound says how high, not the configuration."""


class Search:
    """Probes configurations of one model on one workload.

    A new trace for every rate sees the same requests and the same normalised gaps.
    """

    def __init__(
        self,
        model: ModelShape,
        profile: HardwareProfile,
        requests: RequestSet,
        arrivals: ArrivalProcess,
        slo: Slo,
    ) -> None:
        self.model = model
        self.profile = profile
        self.requests = requests
        self.arrivals = arrivals
        self.slo = slo
        self._traces: dict[float, Trace] = {}
        self._prefills: dict[tuple[Chain, float], tuple[list[float], float]] = {}

    def chains(self, configuration: Configuration) -> tuple[Chain, Chain | None]:
        """The prefill and the decode chain; raises NoProfile when one cannot run, InvalidRequest
        when its stages would not be equal."""
        cross = configuration.pp_cross
        prefill = self._chain(configuration.tp_prefill, cross * configuration.pp_prefill)
        if configuration.colocated:
            return prefill, None
        return prefill, self._chain(configuration.tp_decode, cross * configuration.pp_decode)

    def _chain(self, tp: int, pp: int) -> Chain:
        self.model.refuse_uneven(pp)
        times = self.profile.times(self.model, tp)
        table = self.profile.max_tokens
        # The reference runs only what its table lists; a profile without a table has the formula.
        if any(name == self.model.name for name, _, _ in table):
            tokens = table.get((self.model.name, tp, pp), 0)
        else:
            tokens = self.profile.kv_tokens(self.model, tp, pp)
        if not tokens:
            raise NoProfile(
                f"{self.model.name} does not fit TP {tp} x PP {pp} on {self.profile.name}, "
                "or the profile's memory table leaves it out"
            )
        return Chain(times, pp, tokens)

    def trace(self, rate: float) -> Trace:
        if rate not in self._traces:
            self._traces[rate] = self.arrivals.trace(self.requests, rate)
        return self._traces[rate]

    def run(self, configuration: Configuration, rate: float) -> RunResult:
        """Every request's times at `rate` requests per second in all."""
        prefill, decode = self.chains(configuration)
        trace = self.trace(rate)
        if decode is None:
            return RunResult(trace, *colocated_chain(trace, prefill))
        first_token_ms = prefill_chain(trace, prefill)
        return RunResult(trace, first_token_ms, decode_chain(trace, first_token_ms, decode))

    def best_rate(self, configuration: Configuration, highest: float, precision: float) -> Verdict:
        """Bisect the highest rate per accelerator that passes."""
        try:
            chains = self.chains(configuration)
            low, high, best = 0.0, highest, 0.0
            miss = None
            while high - low > precision:
                rate = (low + high) / 2
                missed_by = self._probe(chains, rate * configuration.accelerators)
                if missed_by is None:
                    low = best = rate
                else:
                    high, miss = rate, missed_by
        except PlannerError as error:
            return Verdict(configuration, None, reason=str(error))
        if best or miss is None:
            reason = None if best else "no rate probed"
            return Verdict(configuration, best, reason, unlimited=miss is None)
        return Verdict(configuration, 0.0, _missed(high, miss), miss.ratio, high)

    def measured(self, verdict: Verdict) -> Verdict:
        """A miss whose probe stopped early, with its figures from a whole run."""
        if verdict.miss is not None or verdict.missed_rate is None:
            return verdict
        configuration, slo = verdict.configuration, self.slo
        result = self.run(configuration, verdict.missed_rate * configuration.accelerators)
        ttft_ms = result.ttft_quantile_ms(slo.ttft_percent)
        tpot_ms = result.tpot_quantile_ms(slo.tpot_percent)
        if ttft_ms / slo.ttft_ms >= tpot_ms / slo.tpot_ms:
            miss = Miss("TTFT", slo.ttft_percent, ttft_ms, slo.ttft_ms)
        else:
            miss = Miss("TPOT", slo.tpot_percent, tpot_ms, slo.tpot_ms)
        return replace(verdict, reason=_missed(verdict.missed_rate, miss), miss=miss.ratio)

    def _probe(self, chains: tuple[Chain, Chain | None], rate: float) -> Miss | None:
        """None when the rate passes."""
        prefill, decode = chains
        trace, slo = self.trace(rate), self.slo
        if decode is None:
            watch = ColocatedObserver(trace, slo)
            first_token_ms, finish_ms = colocated_chain(trace, prefill, watch)
            if watch.outcome is not None:
                return None if watch.outcome else watch.miss
            ttft_ms = _ttft_quantile(trace, first_token_ms, slo)
        else:
            key = (prefill, rate)
            if key not in self._prefills:
                instants = prefill_chain(trace, prefill)
                self._prefills[key] = instants, _ttft_quantile(trace, instants, slo)
            first_token_ms, ttft_ms = self._prefills[key]
        if not ttft_ms < slo.ttft_ms:
            return Miss("TTFT", slo.ttft_percent, ttft_ms, slo.ttft_ms)
        if decode is not None:
            observer = TpotObserver(trace, first_token_ms, slo)
            finish_ms = decode_chain(trace, first_token_ms, decode, observer)
            if observer.outcome is not None:
                return None if observer.outcome else observer.miss
        tpot_ms = RunResult(trace, first_token_ms, finish_ms).tpot_quantile_ms(slo.tpot_percent)
        if tpot_ms < slo.tpot_ms:
            return None
        return Miss("TPOT", slo.tpot_percent, tpot_ms, slo.tpot_ms)


def _missed(per_gpu_rate: float, miss: Miss) -> str:
    return f"at {per_gpu_rate:g} requests/s per accelerator {miss}"


def _ttft_quantile(trace: Trace, first_token_ms: Iterable[float], slo: Slo) -> float:
    pairs = zip(first_token_ms, trace.arrival_ms, strict=True)
    return quantile(sorted(first - arrival for first, arrival in pairs), slo.ttft_percent)


def winner(verdicts: Iterable[Verdict]) -> Verdict | None:
    """The highest rate per accelerator; at equal rates fewer accelerators, then the first found.

    None when no configuration could run. A winner at rate 0 is a miss, not a plan.
    """
    runnable = [verdict for verdict in verdicts if verdict.per_gpu_rate is not None]
    return max(
        runnable,
        key=lambda v: (v.per_gpu_rate or 0, -v.configuration.accelerators),
        default=None,
    )


def nearest_miss(verdicts: Iterable[Verdict]) -> Verdict | None:
    """Of the configurations that run but never pass, the one closest to its target."""
    missed = [v for v in verdicts if v.per_gpu_rate == 0]
    return min(missed, key=lambda v: v.miss if v.miss is not None else float("inf"), default=None)
