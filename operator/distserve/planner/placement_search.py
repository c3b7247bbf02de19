"""Which parallelism for each role: the paper's two placement algorithms, and one for colocation.

Algorithm 1 (high node affinity) judges the roles apart: each role's best (TP, PP) per accelerator,
then as many instances of each as the rate asks for. Algorithm 2 (low affinity) judges pairs whose
matching pipeline segments share a node, so that KV cache only moves inside nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

from distserve.planner.capacity import capacity
from distserve.planner.errors import OversizedRequest
from distserve.planner.goodput import Evaluator, Goodput
from distserve.planner.machine import Machine
from distserve.planner.models import ModelShape
from distserve.planner.profiles import HardwareProfile
from distserve.planner.simulator import InstanceSpec
from distserve.planner.strategies import Fleet, strategy_class
from distserve.strategies.time_model import Coefficients, TimeModel
from distserve.workload import RequestSet

MAX_INSTANCES_PER_ROLE = 8
"""Of one unit; more rate is more units."""

AT_LEAST_JUDGED = 3

INSTANT = TimeModel(Coefficients(0, 0, 0), Coefficients(0, 0, 0), Coefficients(0, 0, 0))


@dataclass(frozen=True)
class Unit:
    """What is copied to serve more: instances of each role, cut into `segments` of one node each.

    `segments` is 0 where the unit may lie on any accelerators.
    """

    fleet: Fleet
    segments: int = 1

    @property
    def accelerators(self) -> int:
        return self.fleet.accelerators

    def copies(self, machine: Machine) -> int:
        if self.segments == 0:
            return machine.accelerators // self.accelerators
        return machine.copies(self.accelerators // self.segments, self.segments)


@dataclass(frozen=True)
class Judged:
    """A unit and its goodput; `reason` says why it has none.

    `settled` is the rate that a long run holds, at most the goodput; None where no long run was
    made because another unit was better already.
    """

    unit: Unit
    goodput: Goodput | None
    reason: str | None = None
    settled: float | None = None

    @property
    def rate(self) -> float:
        if self.settled is not None:
            return self.settled
        return self.goodput.rate if self.goodput else 0.0

    @property
    def per_accelerator(self) -> float:
        return self.rate / self.unit.accelerators


class Score(NamedTuple):
    """Higher is better: meets the question; then the total rate that was asked to be large, or
    the accelerators that were asked to be few (negative); then goodput per accelerator."""

    meets: int
    amount: float
    efficiency: float


@dataclass(frozen=True)
class PlacementSearch:
    """Finds units for one model on one machine. `fixed_tp` pins a role's tensor parallelism."""

    model: ModelShape
    profile: HardwareProfile
    machine: Machine
    evaluator: Evaluator
    fixed_tp: dict[str, int]
    template: InstanceSpec
    """Budgets that every instance gets."""
    options: dict[str, object]
    long_run_requests: int
    """Requests of the run that a goodput has to hold in."""
    asked_rate: float | None = None
    """Requests per second to serve; None asks for the most that the machine can do."""
    progress: Callable[[], None] = lambda: None

    def specs(self, role: str, reach: int, widest_tp: int) -> Iterator[InstanceSpec]:
        """Instances of at most `reach` accelerators that have step times and hold the weights."""
        for tp, pp in product(
            self.model.tensor_degrees(widest_tp), self.model.pipeline_degrees(reach)
        ):
            if tp * pp > reach or self.fixed_tp.get(role, tp) != tp:
                continue
            if not self.profile.knows(self.model, tp):
                continue
            tokens = self.profile.kv_tokens(self.model, tp, pp)
            if tokens > 0:
                times = self.profile.times(self.model, tp)
                yield replace(self.template, times=times, tp=tp, pp=pp, kv_tokens=tokens)

    def judge(self, unit: Unit) -> Judged:
        self.progress()
        try:
            return Judged(unit, self.evaluator.goodput(unit.fleet))
        except OversizedRequest as error:
            return Judged(unit, None, str(error))

    def settle(self, judged: Judged) -> Judged:
        if judged.goodput is None or not judged.rate:
            return judged
        settled = self.evaluator.settled(judged.unit.fleet, judged.goodput, self.long_run_requests)
        reason = None if settled else "its goodput does not hold in a long run"
        return replace(judged, settled=settled, reason=reason)

    # -- Algorithm 2

    def low_affinity(self) -> list[Judged]:
        """Every prefill and decode pair that fits a node, segment by segment."""
        units = []
        widest = self.machine.largest_node
        reach = self.machine.accelerators if self.machine.span_nodes else widest
        prefills = list(self.specs("prefill", reach, widest))
        decodes = list(self.specs("decode", reach, widest))
        for prefill, decode in product(prefills, decodes):
            for segments in self.model.pipeline_degrees(self._most_segments):
                unit = self._pair(prefill, decode, segments)
                if unit and unit.copies(self.machine):
                    units.append(unit)
        return self._judge_best_first(units)

    def _pair(self, prefill: InstanceSpec, decode: InstanceSpec, segments: int) -> Unit | None:
        if prefill.pp % segments or decode.pp % segments:
            return None
        link = self.machine.link(within_node=True)
        lanes = min(prefill.accelerators, decode.accelerators)
        return Unit(self._fleet(prefill, decode, 1, 1, link_lanes=(link, lanes)), segments)

    def _judge_best_first(self, units: list[Unit]) -> list[Judged]:
        """Judge units until none that is left could be best even at its full capacity.

        A few are judged in any case, so that an answer has others to stand beside.
        """

        def bound(unit: Unit) -> Score:
            return self.score(unit, capacity(unit.fleet, self.evaluator.mean))

        judged: list[Judged] = []
        best = Score(0, 0.0, 0.0)
        for limit, unit in sorted(
            ((bound(unit), unit) for unit in units), key=lambda entry: entry[0], reverse=True
        ):
            if limit <= best and len(judged) >= AT_LEAST_JUDGED:
                break
            found = self.judge(unit)
            if self.score(unit, found.rate) > best:
                found = self.settle(found)
            best = max(best, self.score(unit, found.rate))
            judged.append(found)
        return judged

    def score(self, unit: Unit, rate: float) -> Score:
        """How well a unit that sustains `rate` answers the question; never falls with `rate`."""
        copies = unit.copies(self.machine)
        efficiency = rate / unit.accelerators
        if rate <= 0:
            return Score(0, 0.0, 0.0)
        if self.asked_rate is None:
            return Score(1, copies * rate, efficiency)
        needed = math.ceil(self.asked_rate / rate - 1e-9)
        if needed > copies:
            return Score(0, copies * rate, efficiency)
        return Score(1, -float(needed * unit.accelerators), efficiency)

    @property
    def _most_segments(self) -> int:
        return len(self.machine.nodes) if self.machine.span_nodes else 1

    # -- Algorithm 1

    def high_affinity(self) -> list[Judged]:
        """The best instance of each role by itself, replicated to the asked rate, then judged
        together: at least one of each, the mix that wastes least."""
        reach = self.machine.accelerators
        prefill = self._best_role("prefill", reach)
        decode = self._best_role("decode", reach)
        if prefill is None or decode is None:
            return []
        (prefill_spec, prefill_rate), (decode_spec, decode_rate) = prefill, decode
        mixes = self._mixes(prefill_spec, prefill_rate, decode_spec, decode_rate)
        judged = []
        for p, d in mixes:
            accelerators = prefill_spec.accelerators * p + decode_spec.accelerators * d
            within = accelerators <= self.machine.largest_node
            lanes = min(prefill_spec.accelerators, decode_spec.accelerators) if within else 1
            link = self.machine.link(within_node=within)
            fleet = self._fleet(prefill_spec, decode_spec, p, d, link_lanes=(link, lanes))
            judged.append(self.settle(self.judge(Unit(fleet, segments=1 if within else 0))))
        return judged

    def _best_role(self, role: str, reach: int) -> tuple[InstanceSpec, float] | None:
        best: tuple[float, InstanceSpec, float] | None = None
        for spec in self.specs(role, reach, reach):
            if role == "prefill":
                fleet = Fleet(spec, replace(self.template, times=INSTANT, tp=1))
                evaluator = _alone(self.evaluator, output_tokens=1)
            else:
                fleet = Fleet(replace(self.template, times=INSTANT, tp=1), spec)
                evaluator = self.evaluator
            self.progress()
            try:
                rate = evaluator.goodput(fleet).rate
            except OversizedRequest:
                continue
            if rate and (best is None or rate / spec.accelerators > best[0]):
                best = rate / spec.accelerators, spec, rate
        return best[1:] if best else None

    def _mixes(
        self,
        prefill: InstanceSpec,
        prefill_rate: float,
        decode: InstanceSpec,
        decode_rate: float,
    ) -> list[tuple[int, int]]:
        fitting = []
        for p, d in product(range(1, MAX_INSTANCES_PER_ROLE + 1), repeat=2):
            accelerators = prefill.accelerators * p + decode.accelerators * d
            if accelerators <= self.machine.accelerators:
                rate = min(prefill_rate * p, decode_rate * d)
                fitting.append((rate / accelerators, -accelerators, (p, d)))
        mixes = [mix for _, _, mix in sorted(fitting, reverse=True)[:3]]
        if self.asked_rate is not None:
            p = math.ceil(self.asked_rate / prefill_rate)
            d = math.ceil(self.asked_rate / decode_rate)
            needed = prefill.accelerators * p + decode.accelerators * d
            if (p, d) not in mixes and needed <= self.machine.accelerators:
                mixes.append((p, d))
        return mixes

    # -- both phases on the same instances

    def colocated(self) -> list[Judged]:
        units = []
        reach = self.machine.accelerators
        for spec in self.specs("hybrid", reach, reach):
            within = spec.accelerators <= self.machine.largest_node
            fleet = Fleet(spec, None, 1, 0, options=self.options)
            unit = Unit(fleet, segments=1 if within else 0)
            # Without a fast network an instance stays within a node, or crosses it by pipeline.
            if not within and not self.machine.high_affinity:
                if spec.tp > self.machine.largest_node or spec.pp > self._most_segments:
                    continue
                unit = replace(unit, segments=spec.pp)
            if unit.copies(self.machine):
                units.append(unit)
        return self._judge_best_first(units)

    def run(self) -> list[Judged]:
        """All that was judged, the best answer first."""
        if not strategy_class(self.evaluator.strategy).disaggregated:
            judged = self.colocated()
        elif self.machine.high_affinity:
            judged = self.high_affinity()
        else:
            judged = self.low_affinity()
        return sorted(judged, key=lambda j: self.score(j.unit, j.rate), reverse=True)

    def _fleet(
        self,
        prefill: InstanceSpec,
        decode: InstanceSpec,
        prefill_instances: int,
        decode_instances: int,
        link_lanes: tuple[object, int],
    ) -> Fleet:
        link, lanes = link_lanes
        return Fleet(
            prefill,
            decode,
            prefill_instances,
            decode_instances,
            link=link,  # type: ignore[arg-type]
            lanes=lanes,
            kv_bytes_per_token=self.model.kv_bytes_per_token,
            options=self.options,
        )


def _alone(evaluator: Evaluator, output_tokens: int) -> Evaluator:
    """The same prompts with nothing to decode."""

    def cut(requests: RequestSet) -> RequestSet:
        return replace(requests, output_tokens=[output_tokens] * len(requests))

    return replace(
        evaluator, requests=cut(evaluator.requests), population=cut(evaluator.population)
    )
