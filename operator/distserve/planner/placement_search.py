"""Which parallelism for each role: the paper's two placement algorithms, and one for colocation.

Algorithm 1 (high node affinity) judges the roles apart: each role's best (TP, PP) per accelerator,
then mixes of both. Algorithm 2 (low affinity) judges pairs whose matching pipeline segments share a
node, so that KV cache only moves inside nodes.

Each search lists units by rules that do not look at the machine beyond what fits it, and leaves
out only what a bound proves to be no better. So a larger machine has every unit of a smaller one,
at least as often, and the best total rate never falls when accelerators are added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heapreplace
from itertools import product

from distserve.planner.capacity import capacity
from distserve.planner.errors import OversizedRequest
from distserve.planner.goodput import Evaluator
from distserve.planner.machine import Machine
from distserve.planner.models import ModelShape
from distserve.planner.profiles import HardwareProfile
from distserve.planner.role_rates import RoleRates
from distserve.planner.simulator import InstanceSpec
from distserve.planner.strategies import Fleet, strategy_class
from distserve.planner.units import Judged, Score, Unit

MAX_INSTANCES_PER_ROLE = 8
"""Of one unit; more rate is more units."""

AT_LEAST_JUDGED = 3


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
    max_ranks: int | None = None
    """Most accelerators of one instance."""
    progress: Callable[[], None] = lambda: None

    def specs(self, role: str) -> Iterator[InstanceSpec]:
        """Instances that have step times and hold the weights; TP stays within a node."""
        machine = self.machine
        reach = machine.accelerators if machine.span_nodes else machine.largest_node
        reach = min(reach, self.max_ranks or reach)
        for tp, pp in product(
            self.model.tensor_degrees(machine.largest_node), self.model.pipeline_degrees(reach)
        ):
            if tp * pp > reach or self.fixed_tp.get(role, tp) != tp:
                continue
            if not self.profile.knows(self.model, tp):
                continue
            tokens = self.profile.kv_tokens(self.model, tp, pp)
            if tokens > 0:
                times = self.profile.times(self.model, tp)
                yield replace(
                    self.template,
                    times=times,
                    tp=tp,
                    pp=pp,
                    kv_tokens=tokens,
                    serving=self.profile.serving(self.model, tp),
                )

    def run(self) -> list[Judged]:
        """All that was judged, the best answer first."""
        if not strategy_class(self.evaluator.strategy).disaggregated:
            judged = self._judge_best_first(self.colocated())
        elif self.machine.high_affinity:
            roles = RoleRates(self.evaluator, self.template, self.progress)
            judged = self._judge_best_first(self.high_affinity(roles), roles)
        else:
            judged = self._judge_best_first(self.pairs())
        return sorted(judged, key=lambda j: self.score(j.unit, j.rate), reverse=True)

    # -- what is judged

    def pairs(self) -> list[Unit]:
        """Every prefill and decode pair, in the segments that fit most often (Algorithm 2)."""
        pairs = product(self.specs("prefill"), list(self.specs("decode")))
        units = (
            self._most_often(self._fleet(prefill, decode, 1, 1, within_node=True))
            for prefill, decode in pairs
        )
        return [unit for unit in units if unit]

    def high_affinity(self, roles: RoleRates) -> list[Unit]:
        """Mixes of each role's best instances, inside a node and across nodes (Algorithm 1).

        Of the mixes of two instances that take equally many accelerators it is the one whose
        roles are worth most.
        """
        prefills = roles.candidates("prefill", self.specs("prefill"))
        decodes = roles.candidates("decode", self.specs("decode"))
        units = []
        for prefill, decode in product(prefills, decodes):
            rates = roles.rate("prefill", prefill), roles.rate("decode", decode)
            for p, d in _mixes(prefill, decode, *rates):
                for within in (True, False):
                    fleet = self._fleet(prefill, decode, p, d, within_node=within)
                    units.append(Unit(fleet, segments=1 if within else 0))
        return [unit for unit in units if unit.copies(self.machine)]

    def colocated(self) -> list[Unit]:
        """Every instance that does both phases, one a unit."""
        fleets = (Fleet(spec, None, 1, 0, options=self.options) for spec in self.specs("hybrid"))
        return [unit for fleet in fleets if (unit := self._most_often(fleet))]

    def _most_often(self, fleet: Fleet) -> Unit | None:
        """The fleet in the segments of which the machine holds most; None where it holds none.

        Segments do not change what is simulated: all of a pair's KV cache moves inside nodes.
        """
        stages = math.gcd(fleet.prefill.pp, fleet.decode.pp if fleet.decode else 0)
        most = len(self.machine.nodes) if self.machine.span_nodes else 1
        units = [Unit(fleet, n) for n in range(1, min(stages, most) + 1) if stages % n == 0]
        if self.machine.high_affinity:
            units.append(Unit(fleet, segments=0))
        chosen = max(units, key=lambda unit: unit.copies(self.machine))
        return chosen if chosen.copies(self.machine) else None

    def _fleet(
        self, prefill: InstanceSpec, decode: InstanceSpec, p: int, d: int, within_node: bool
    ) -> Fleet:
        return Fleet(
            prefill,
            decode,
            p,
            d,
            link=self.machine.link(within_node),
            lanes=min(prefill.accelerators, decode.accelerators) if within_node else 1,
            kv_bytes_per_token=self.model.kv_bytes_per_token,
            shared_machines=within_node,
            options=self.options,
        )

    # -- how it is judged

    def _judge_best_first(self, units: list[Unit], roles: RoleRates | None = None) -> list[Judged]:
        """Judge units until none that is left could be best even at its bound.

        The bound is the capacity, which needs no simulation, and with `roles` then what the roles
        do apart. A few are judged in any case, so that an answer has others to stand beside.
        """
        judged: list[Judged] = []
        best = Score(0, 0.0, 0.0)
        queue = [
            self._waiting(unit, capacity(unit.fleet, self.evaluator.mean), index, roles is None)
            for index, unit in enumerate(units)
        ]
        heapify(queue)
        while queue:
            _, index, tight, bound = queue[0]
            unit = units[index]
            if self.score(unit, bound) <= best and len(judged) >= AT_LEAST_JUDGED:
                break
            if roles and not tight:
                bound = min(bound, roles.limit(unit.fleet))
                heapreplace(queue, self._waiting(unit, bound, index, True))
                continue
            heappop(queue)
            found = self.judge(unit, bound)
            if self.score(unit, found.rate) > best:
                found = self.settle(found)
            best = max(best, self.score(unit, found.rate))
            judged.append(found)
        return judged

    def _waiting(
        self, unit: Unit, bound: float, index: int, tight: bool
    ) -> tuple[tuple[float, ...], int, bool, float]:
        """An entry of the queue: the highest score first, then the first listed."""
        return tuple(-part for part in self.score(unit, bound)), index, tight, bound

    def judge(self, unit: Unit, bound: float) -> Judged:
        self.progress()
        try:
            goodput = self.evaluator.goodput(unit.fleet)
        except OversizedRequest as error:
            return Judged(unit, None, str(error))
        return Judged(unit, replace(goodput, rate=min(goodput.rate, bound)))

    def settle(self, judged: Judged) -> Judged:
        if judged.goodput is None or not judged.rate:
            return judged
        held = self.evaluator.settled(judged.unit.fleet, judged.goodput, self.long_run_requests)
        reason = None if held.rate else "meets the SLO in a short run alone"
        return replace(judged, goodput=held, settled=True, reason=reason)

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


def _mixes(
    prefill: InstanceSpec, decode: InstanceSpec, prefill_rate: float, decode_rate: float
) -> list[tuple[int, int]]:
    """For each number of accelerators the (prefill, decode) instances worth most."""
    if not prefill_rate or not decode_rate:
        return [(1, 1)]
    best: dict[int, tuple[float, tuple[int, int]]] = {}
    for p, d in product(range(1, MAX_INSTANCES_PER_ROLE + 1), repeat=2):
        accelerators = p * prefill.accelerators + d * decode.accelerators
        worth = min(p * prefill_rate, d * decode_rate)
        if accelerators not in best or worth > best[accelerators][0]:
            best[accelerators] = worth, (p, d)
    return [mix for _, mix in best.values()]
