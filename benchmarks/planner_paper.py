"""The paper's comparison with the shipped profiles: goodput of disaggregation over colocation.

Prints simulated ratios next to the DistServe paper's measured ones. The length sets are synthetic:
lognormal with the mean lengths of the paper's datasets, cut at the model's 2048 tokens. Ratios of
two simulations are no measurement of anything; their order of magnitude is what can be compared.

Run: python benchmarks/planner_paper.py
"""

from __future__ import annotations

from typing import NamedTuple

from distserve.planner.compat.search import (
    Configuration,
    Search,
    Verdict,
    colocated_configurations,
    disaggregated_configurations,
    winner,
)
from distserve.planner.errors import PlannerError
from distserve.planner.fleets import fleet_of
from distserve.planner.goodput import Evaluator
from distserve.planner.models import find_model
from distserve.planner.profiles import load_profile
from distserve.planner.result import Slo
from distserve.workload import ArrivalProcess, RequestSet
from distserve.workload.lengths import from_summary


class Case(NamedTuple):
    name: str
    model: str
    slo: Slo
    prompt: tuple[float, float]
    output: tuple[float, float]
    vllm_tp: int
    """Tensor parallelism of the paper's vLLM baseline."""
    per_node: int
    paper: str
    """Rate over vLLM that the paper measured."""


CHAT = (755, 1608), (200, 447)
CODE = (171, 300), (98, 200)
SUMMARY = (1738, 1960), (91, 180)
CASES = (
    Case("chatbot", "13b", Slo(250, 100), *CHAT, 1, 4, "2.0 - 4.6"),
    Case("chatbot", "66b", Slo(2500, 150), *CHAT, 4, 8, "2.0 - 4.6"),
    Case("code", "66b", Slo(125, 200), *CODE, 4, 8, "5.7"),
    Case("summarisation", "66b", Slo(15_000, 150), *SUMMARY, 4, 8, "4.3"),
)
HIGHEST_RATE = 12.0
PRECISION = 0.05


def best(verdicts: list[Verdict]) -> tuple[float, str]:
    found = winner(verdicts)
    if found is None or not found.per_gpu_rate:
        return 0.0, "-"
    return found.per_gpu_rate, "x".join(map(str, found.configuration[1:]))


def compat(
    case: Case, requests: RequestSet, engine: str, tried: list[Configuration]
) -> list[Verdict]:
    profile = load_profile("a100-80g", engine)
    search = Search(find_model(case.model), profile, requests, ArrivalProcess(), case.slo)
    return [search.best_rate(c, HIGHEST_RATE, PRECISION) for c in tried]


def default(
    case: Case, population: RequestSet, engine: str, tried: list[Configuration]
) -> list[Verdict]:
    model, profile = find_model(case.model), load_profile("a100-80g", engine)
    strategy = "Colocated" if engine == "vllm" else "Disaggregated"
    judge = Evaluator(strategy, population.sample(300, 0), population, ArrivalProcess(), case.slo)
    verdicts = []
    for configuration in tried:
        try:
            fleet = fleet_of(configuration, model, profile, case.per_node, "a100-dgx")
            rate = judge.goodput(fleet).rate / configuration.accelerators
            verdicts.append(Verdict(configuration, rate))
        except PlannerError as error:
            verdicts.append(Verdict(configuration, None, str(error)))
    return verdicts


def main() -> None:
    print("requests/s per GPU at 90 % within the SLO; configurations as TPxPP (prefill, decode)")
    for case in CASES:
        population = from_summary(case.prompt, case.output, 2048, 5000)
        model = find_model(case.model)
        apart = list(disaggregated_configurations(model, 1, case.per_node, False))
        together = list(colocated_configurations(model, case.per_node))
        baseline = [c for c in together if (c.tp_prefill, c.pp_prefill) == (case.vllm_tp, 1)]
        targets = f"{case.slo.ttft_ms:g}/{case.slo.tpot_ms:g} ms"
        print(f"\n{case.name}, OPT-{case.model.upper()}, SLO {targets}")
        for mode, judge in (("compat", compat), ("default", default)):
            requests = population.sample(300, 0) if judge is compat else population
            rate, shape = best(judge(case, requests, "distserve", apart))
            print(f"  {mode}: disaggregated {rate:.2f} ({shape})")
            for name, tried in ((f"vLLM TP {case.vllm_tp}", baseline), ("vLLM best", together)):
                other, other_shape = best(judge(case, requests, "vllm", tried))
                ratio = f"{rate / other:.1f} x" if other else "the baseline never meets it"
                print(f"    over {name:9} {other:.2f} ({other_shape}): {ratio}")
        print(f"  paper, measured over vLLM TP {case.vllm_tp}: {case.paper} x")


if __name__ == "__main__":
    main()
