"""The answer: from a planning request to a plan, or to the nearest miss.

Called by `distserve plan` and, in the operator, by a worker process with a deadline. The plan
carries the hash of the inputs that it came from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from distserve.planner.errors import OversizedRequest
from distserve.planner.goodput import Evaluator, Forecast, Probe
from distserve.planner.placement_search import PlacementSearch
from distserve.planner.question import PlanRequest as PlanRequest
from distserve.planner.result import quantile
from distserve.planner.role_rates import INSTANT
from distserve.planner.shortage import shortage_of
from distserve.planner.simulator import InstanceSpec
from distserve.planner.units import Judged, Unit

SEARCH_REQUESTS = 400
FORECAST_REQUESTS = 2000
IDLE_REQUESTS = 200


@dataclass(frozen=True)
class RolePlan:
    """`instances` of one unit."""

    instances: int
    tensor: int
    pipeline: int


@dataclass(frozen=True)
class Prediction:
    """What requests see at `rate`, all units together sharing the load evenly."""

    rate: float
    attainment_percent: float
    ttft_ms: dict[int, float]
    tpot_ms: dict[int, float]
    utilisation: dict[str, float]


@dataclass(frozen=True)
class Alternative:
    """Another configuration and its goodput, in requests per second per accelerator."""

    roles: dict[str, RolePlan]
    goodput: float
    reason: str = ""
    """Why it is not the first, in numbers."""


@dataclass(frozen=True)
class Plan:
    """`feasible` False makes it the nearest miss: nothing to deploy, `reason` says what lacks.

    A miss that has a `unit` meets the SLO, and lacks room for the asked rate alone.
    """

    feasible: bool
    reason: str
    inputs_hash: str
    hardware_profile: str
    estimated: bool
    """Whether step times were computed and not measured."""
    roles: dict[str, RolePlan]
    segments: int
    units: int
    accelerators: int
    goodput: float
    """Requests per second per accelerator that meet the SLO."""
    total_goodput: float
    binds: str
    """TTFT, TPOT, memory or link: what stands in the way of more."""
    prediction: Prediction | None
    runner_up: Alternative | None
    unit: Unit | None = None
    """What was simulated, for further forecasts."""


def attainment_at(request: PlanRequest, unit: Unit, rate: float, count: int) -> float:
    """Percent of requests within the SLO at `rate` requests per second for one unit."""
    return _evaluator(request).forecast(unit.fleet, rate, count).attainment_percent


def unit_alone(plan: Plan) -> Plan:
    """The plan where others decide how many units there are: that the machine has room for fewer
    than the asked rate needs is no miss then."""
    if plan.feasible or plan.unit is None:
        return plan
    rate = plan.goodput * plan.unit.accelerators
    return replace(plan, feasible=True, reason=_in_words(plan.unit, rate))


def in_units(request: PlanRequest, plan: Plan, units: int) -> Plan:
    """The plan where others decide how many units there are: what so many serve, and what their
    requests see at the asked rate, or at the most that they serve within the SLO."""
    if plan.unit is None or units == plan.units:
        return plan
    rate = plan.goodput * plan.unit.accelerators * units
    prediction = None
    if units:
        served = rate if request.rate is None else min(request.rate, rate)
        share = _evaluator(request).forecast(plan.unit.fleet, served / units, FORECAST_REQUESTS)
        prediction = _prediction(share, served)
    return replace(
        plan,
        units=units,
        accelerators=units * plan.unit.accelerators,
        total_goodput=rate,
        prediction=prediction,
    )


def _evaluator(request: PlanRequest) -> Evaluator:
    return Evaluator(
        request.strategy, request.requests, request.requests, request.arrivals, request.slo
    )


def make_plan(request: PlanRequest, progress: Callable[[], None] = lambda: None) -> Plan:
    """Search, settle the best candidates in a long run, and size the winner for the asked rate.

    A machine too small for the model is answered with the nearest miss, as is an SLO that nothing
    meets. Raises NoProfile when no step times are known for the model.
    """
    population = request.requests
    recorded = request.arrivals.kind == "recorded"
    count = min(SEARCH_REQUESTS, len(population))
    sample = population if recorded else population.sample(count, request.arrivals.seed)
    evaluator = Evaluator(request.strategy, sample, population, request.arrivals, request.slo)
    search = PlacementSearch(
        request.model,
        request.profile,
        request.machine,
        evaluator,
        dict(request.fixed_tp),
        _template(request),
        dict(request.options),
        FORECAST_REQUESTS,
        request.rate,
        request.max_ranks,
        progress,
    )
    judged = search.run()
    if not judged:
        shortage = shortage_of(search)
        return _nothing(request, shortage.unit, shortage.reason, "memory", None)
    winner, *others = judged
    if not winner.rate:
        return _missed(request, judged, evaluator)
    roles = roles_of(winner.unit)
    second = next((other for other in others if roles_of(other.unit) != roles), None)
    return _sized(request, evaluator, winner, second)


def _template(request: PlanRequest) -> InstanceSpec:
    return InstanceSpec(
        times=INSTANT,
        max_batched_tokens=request.max_batched_tokens,
        max_requests=request.max_requests,
    )


def _sized(
    request: PlanRequest,
    evaluator: Evaluator,
    winner: Judged,
    second: Judged | None,
) -> Plan:
    unit, rate = winner.unit, winner.rate
    fitting = unit.copies(request.machine)
    asked = request.rate
    units = fitting if asked is None else math.ceil(asked / rate - 1e-9)
    feasible = 0 < units <= fitting
    amount = f"the fewest accelerators for {asked:g} requests/s" if asked else "the most in all"
    reason = f"{_in_words(unit, rate)}, {amount}"
    if not feasible:
        reason = (
            f"{asked:g} requests/s need {units} units of {unit.accelerators} accelerators and "
            f"{fitting} fit: {fitting * rate:.3g} requests/s; "
            "give more accelerators or a looser SLO"
        )
        units = max(fitting, 1)
    served = min(asked, units * rate) if asked is not None else units * rate
    share = evaluator.forecast(unit.fleet, served / units, FORECAST_REQUESTS)
    goodput = winner.goodput
    return Plan(
        feasible=feasible,
        reason=reason,
        inputs_hash=request.inputs_hash,
        hardware_profile=request.profile.name,
        estimated=request.profile.estimated,
        roles=roles_of(unit),
        segments=unit.segments,
        units=units,
        accelerators=units * unit.accelerators,
        goodput=rate / unit.accelerators,
        total_goodput=units * rate,
        binds=evaluator.binding(unit.fleet, goodput.next if goodput else None),
        prediction=_prediction(share, served),
        runner_up=_runner_up(request, winner, second) if second else None,
        unit=unit,
    )


def _runner_up(request: PlanRequest, winner: Judged, second: Judged) -> Alternative:
    return Alternative(
        roles_of(second.unit), second.per_accelerator, _behind(request, winner, second)
    )


def _behind(request: PlanRequest, winner: Judged, second: Judged) -> str:
    """What the second has less, or needs more of; at best, where no long run says how much."""
    if not second.rate:
        return second.reason or "does not meet the SLO"
    most, fewest = ("", "") if second.settled else ("at most ", "at least ")
    efficiency = (
        f"{most}{second.per_accelerator:.3g} instead of {winner.per_accelerator:.3g} "
        "requests/s per accelerator"
    )
    served, best = (j.unit.copies(request.machine) * j.rate for j in (second, winner))
    if request.rate is None or served < request.rate * (1 - 1e-9):
        return f"{most}{served:.3g} instead of {best:.3g} requests/s in all, {efficiency}"
    needed, least = (
        math.ceil(request.rate / j.rate - 1e-9) * j.unit.accelerators for j in (second, winner)
    )
    return f"{fewest}{needed} instead of {least} accelerators, {efficiency}"


def _missed(request: PlanRequest, judged: list[Judged], evaluator: Evaluator) -> Plan:
    """Nothing meets the SLO even when idle: the candidate that comes closest, and by how much."""
    forecasts: list[tuple[Forecast, Judged]] = []
    reasons = [j.reason for j in judged if j.goodput is None and j.reason]
    for j in judged:
        if j.goodput is not None and j.goodput.next is not None:
            try:
                forecasts.append((_when_idle(evaluator, j, j.goodput.next), j))
            except OversizedRequest as error:
                reasons.append(str(error))
    if not forecasts:
        reason = reasons[0] if reasons else "no request can be held; give more accelerators"
        return _nothing(request, judged[0].unit, reason, "memory", None)
    slo, percent = request.slo, request.slo.ttft_percent

    def miss(entry: tuple[Forecast, Judged]) -> float:
        result = entry[0].result
        return max(
            result.ttft_quantile_ms(percent) / slo.ttft_ms,
            result.tpot_quantile_ms(percent) / slo.tpot_ms,
        )

    forecast, nearest = min(forecasts, key=miss)
    limit = f" with at most {request.max_ranks} rank an instance" if request.max_ranks else ""
    run = (
        f" over {FORECAST_REQUESTS} requests, though a short run meets it"
        if nearest.settled
        else ""
    )
    reason = (
        f"nothing meets the SLO{limit}; nearest: {_in_words(nearest.unit, 0)} reaches "
        f"{math.floor(10 * forecast.attainment_percent) / 10:g} % of {percent:g} % when idle{run} "
        f"(P{percent:g} TTFT {forecast.result.ttft_quantile_ms(percent):.0f} of "
        f"{slo.ttft_ms:g} ms, TPOT {forecast.result.tpot_quantile_ms(percent):.0f} of "
        f"{slo.tpot_ms:g} ms); loosen the SLO or use faster accelerators"
    )
    missed = nearest.goodput.next.missed if nearest.goodput and nearest.goodput.next else "TTFT"
    return _nothing(request, nearest.unit, reason, missed, _prediction(forecast, forecast.rate))


def _when_idle(evaluator: Evaluator, judged: Judged, idle: Probe) -> Forecast:
    """As many requests as decided it, so that the answer's numbers are those that missed."""
    count = FORECAST_REQUESTS if judged.settled else IDLE_REQUESTS
    return evaluator.forecast(judged.unit.fleet, idle.rate, count)


def _nothing(
    request: PlanRequest, unit: Unit, reason: str, binds: str, prediction: Prediction | None
) -> Plan:
    return Plan(
        feasible=False,
        reason=reason,
        inputs_hash=request.inputs_hash,
        hardware_profile=request.profile.name,
        estimated=request.profile.estimated,
        roles=roles_of(unit),
        segments=unit.segments,
        units=0,
        accelerators=0,
        goodput=0.0,
        total_goodput=0.0,
        binds=binds,
        prediction=prediction,
        runner_up=None,
    )


def roles_of(unit: Unit) -> dict[str, RolePlan]:
    fleet = unit.fleet
    if fleet.decode is None:
        return {"hybrid": RolePlan(fleet.prefill_instances, fleet.prefill.tp, fleet.prefill.pp)}
    return {
        "prefill": RolePlan(fleet.prefill_instances, fleet.prefill.tp, fleet.prefill.pp),
        "decode": RolePlan(fleet.decode_instances, fleet.decode.tp, fleet.decode.pp),
    }


def _prediction(forecast: Forecast, rate: float) -> Prediction:
    ttft, tpot = sorted(forecast.result.ttft_ms), sorted(forecast.result.tpot_ms)
    percents = (50, 90, 99)
    return Prediction(
        rate,
        forecast.attainment_percent,
        {percent: quantile(ttft, percent) for percent in percents},
        {percent: quantile(tpot, percent) for percent in percents},
        forecast.utilisation,
    )


def _in_words(unit: Unit, rate: float) -> str:
    roles = ", ".join(
        f"{role} {plan.instances} x (TP {plan.tensor}, PP {plan.pipeline})"
        for role, plan in roles_of(unit).items()
    )
    return f"{roles}: {rate:.3g} requests/s per unit" if rate else roles
