"""Which parallelism for each role: the paper's two placement algorithms, and one for colocation.

Algorithm 1 (high node affinity) judges the roles apart: each role's best (TP, PP) per accelerator,
then mixes of both. Algorithm 2 (low affinity) judges pairs whose matching pipeline segments share a
node, so that KV cache only moves inside nodes; here also mixes of several instances in one node.

Each search lists units by rules that do not look at the machine beyond what fits it, and leaves
out only what a bound proves to be no better. So a larger machine has every unit of a smaller one,
at least as often, and the best total rate never falls when accelerators are added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count, product
from typing import NamedTuple

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


class Mix(NamedTuple):
    """The instances of a unit."""

    prefill: InstanceSpec
    decode: InstanceSpec
    prefill_instances: int = 1
    decode_instances: int = 1

    @property
    def is_pair(self) -> bool:
        return self.prefill_instances == self.decode_instances == 1

    @property
    def accelerators(self) -> int:
        return (
            self.prefill_instances * self.prefill.accelerators
            + self.decode_instances * self.decode.accelerators
        )


class Family(NamedTuple):
    """Two instances that units are mixed of."""

    prefill: InstanceSpec
    decode: InstanceSpec

    def all_mixes(self) -> Iterator[Mix]:
        for p, d in product(range(1, MAX_INSTANCES_PER_ROLE + 1), repeat=2):
            yield Mix(*self, p, d)

    def mixes(self, roles: RoleRates) -> list[Mix]:
        """Of the mixes that take equally many accelerators the one whose roles are worth most."""
        prefill_rate = roles.rate("prefill", self.prefill)
        decode_rate = prefill_rate and roles.rate("decode", self.decode)
        if not decode_rate:
            return [Mix(*self)]
        best: dict[int, tuple[float, Mix]] = {}
        for mix in self.all_mixes():
            worth = min(mix.prefill_instances * prefill_rate, mix.decode_instances * decode_rate)
            if mix.accelerators not in best or worth > best[mix.accelerators][0]:
                best[mix.accelerators] = worth, mix
        return [mix for _, mix in best.values()]


class _Waiting(NamedTuple):
    """What may still be judged: the highest score at its bound first, then the first listed."""

    order: tuple[float, ...]
    number: int
    what: Unit | Family
    bound: float
    tight: bool
    """Whether nothing but its own simulation lowers the bound."""


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
        roles = RoleRates(self.evaluator, self.template, self.progress)
        if not strategy_class(self.evaluator.strategy).disaggregated:
            judged = self._judge_best_first(roles, self.colocated())
        elif self.machine.high_affinity:
            judged = self._judge_best_first(roles, mixes=self.high_affinity(roles))
        else:
            judged = self._judge_best_first(roles, self.pairs(), families=self.families())
        return sorted(judged, key=lambda j: self.score(j.unit, j.rate), reverse=True)

    # -- what is judged

    def pairs(self) -> list[Unit]:
        """Every prefill and decode pair, in the segments that fit most often (Algorithm 2)."""
        units = (
            self._most_often(self._fleet(Mix(*family), within_node=True))
            for family in self._all_families()
        )
        return [unit for unit in units if unit]

    def families(self) -> list[Family]:
        """Every prefill and decode instance of which a node holds more than a pair.

        The paper's Algorithm 2 ends at pairs, where a role that needs four times as many
        accelerators as the other leaves three idle.
        """
        room = self.machine.largest_node
        return [
            family
            for family in self._all_families()
            if Mix(*family).accelerators + min(spec.accelerators for spec in family) <= room
        ]

    def mixes(self, family: Family, roles: RoleRates) -> list[Unit]:
        """Of several instances, within a node."""
        units = [
            Unit(self._fleet(mix, within_node=True))
            for mix in family.mixes(roles)
            if not mix.is_pair
        ]
        return [unit for unit in units if unit.copies(self.machine)]

    def high_affinity(self, roles: RoleRates) -> list[Unit]:
        """Mixes of each role's best instances, inside a node and across nodes (Algorithm 1)."""
        prefills = roles.candidates("prefill", self.specs("prefill"))
        decodes = roles.candidates("decode", self.specs("decode"))
        units = [
            Unit(self._fleet(mix, within), segments=1 if within else 0)
            for pair in product(prefills, decodes)
            for mix in Family(*pair).mixes(roles)
            for within in (True, False)
        ]
        return [unit for unit in units if unit.copies(self.machine)]

    def _all_families(self) -> Iterator[Family]:
        pairs = product(self.specs("prefill"), list(self.specs("decode")))
        return (Family(*pair) for pair in pairs)

    def colocated(self) -> list[Unit]:
        """Every instance that does both phases, one a unit."""
        fleets = (Fleet(spec, None, 1, 0, options=self.options) for spec in self.specs("hybrid"))
        return [unit for fleet in fleets if (unit := self._most_often(fleet))]

    def _most_often(self, fleet: Fleet) -> Unit | None:
        """The fleet in the segments of which the machine holds most; None where it holds none.

        Segments do not change what is simulated: all of its KV cache moves inside nodes.
        """
        stages = math.gcd(fleet.prefill.pp, fleet.decode.pp if fleet.decode else 0)
        most = len(self.machine.nodes) if self.machine.span_nodes else 1
        units = [Unit(fleet, n) for n in range(1, min(stages, most) + 1) if stages % n == 0]
        if self.machine.high_affinity:
            units.append(Unit(fleet, segments=0))
        chosen = max(units, key=lambda unit: unit.copies(self.machine))
        return chosen if chosen.copies(self.machine) else None

    def _fleet(self, mix: Mix, within_node: bool) -> Fleet:
        lanes = min(mix.prefill.accelerators, mix.decode.accelerators) if within_node else 1
        return Fleet(
            *mix,
            link=self.machine.link(within_node),
            lanes=lanes,
            kv_bytes_per_token=self.model.kv_bytes_per_token,
            shared_machines=within_node,
            options=self.options,
        )

    # -- how it is judged

    def _judge_best_first(
        self,
        roles: RoleRates,
        units: Iterable[Unit] = (),
        mixes: Iterable[Unit] = (),
        families: Iterable[Family] = (),
    ) -> list[Judged]:
        """Judge until nothing that is left could be best even at its bound.

        The bound is the capacity, which needs no simulation, and of mixes then what the roles do
        apart. A family's mixes are listed once one of them could be best. A few units are judged
        in any case, so that an answer has others to stand beside.
        """
        judged: list[Judged] = []
        best = Score(0, 0.0, 0.0)
        queue: list[_Waiting] = []
        numbers = count()

        def wait(what: Unit | Family, score: Score, bound: float, tight: bool) -> None:
            heappush(queue, _Waiting(score.order, next(numbers), what, bound, tight))

        def wait_all(units: Iterable[Unit], tight: bool) -> None:
            for unit in units:
                bound = capacity(unit.fleet, self.evaluator.mean)
                wait(unit, self.score(unit, bound), bound, tight)

        wait_all(units, tight=True)
        wait_all(mixes, tight=False)
        for family in families:
            wait(family, self.best_of(family, roles), math.inf, tight=False)
        while queue:
            order, _, what, bound, tight = heappop(queue)
            hopeful = order < best.order
            if not hopeful and len(judged) >= AT_LEAST_JUDGED:
                break
            if isinstance(what, Family):
                if hopeful:
                    wait_all(self.mixes(what, roles), tight=False)
            elif not tight:
                bound = min(bound, roles.limit(what.fleet))
                wait(what, self.score(what, bound), bound, tight=True)
            else:
                found = self.judge(what, bound)
                if self.score(what, found.rate) > best:
                    found = self.settle(found, best)
                best = max(best, self.score(what, found.rate))
                judged.append(found)
        return judged

    def best_of(self, family: Family, roles: RoleRates) -> Score:
        """No mix of the family scores higher: it would if nothing ever waited."""
        prefill_rate = roles.capacity("prefill", family.prefill)
        decode_rate = roles.capacity("decode", family.decode)
        return max(
            self._score(
                self.machine.copies(mix.accelerators),
                mix.accelerators,
                min(mix.prefill_instances * prefill_rate, mix.decode_instances * decode_rate),
            )
            for mix in family.all_mixes()
            if not mix.is_pair
        )

    def judge(self, unit: Unit, bound: float) -> Judged:
        self.progress()
        try:
            goodput = self.evaluator.goodput(unit.fleet)
        except OversizedRequest as error:
            return Judged(unit, None, str(error))
        return Judged(unit, replace(goodput, rate=min(goodput.rate, bound)))

    def settle(self, judged: Judged, best: Score) -> Judged:
        """What a long run holds, looked for no further down than where `best` is as good."""
        if judged.goodput is None or not judged.rate:
            return judged
        unit = judged.unit
        try:
            held = self.evaluator.settled(
                unit.fleet,
                judged.goodput,
                self.long_run_requests,
                lambda rate: self.score(unit, rate) > best,
            )
        except OversizedRequest as error:
            return replace(judged, goodput=None, reason=str(error))
        if held.rate and self.score(unit, held.rate) <= best:
            return replace(judged, goodput=held)
        reason = None if held.rate else "meets the SLO in a short run alone"
        return replace(judged, goodput=held, settled=True, reason=reason)

    def score(self, unit: Unit, rate: float) -> Score:
        """How well a unit that sustains `rate` answers the question; never falls with `rate`."""
        return self._score(unit.copies(self.machine), unit.accelerators, rate)

    def _score(self, copies: int, accelerators: int, rate: float) -> Score:
        efficiency = rate / accelerators
        if rate <= 0:
            return Score(0, 0.0, 0.0)
        if self.asked_rate is None:
            return Score(1, copies * rate, efficiency)
        needed = math.ceil(self.asked_rate / rate - 1e-9)
        if needed > copies:
            return Score(0, copies * rate, efficiency)
        return Score(1, -float(needed * accelerators), efficiency)
