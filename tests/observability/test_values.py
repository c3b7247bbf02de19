"""What the panels show of numbers that are known, asked of Prometheus' own evaluation.

The series are those that the processes serve. Live, nothing fails and nothing waits: here each
counter grows by 3 a second and each gauge is at 3; there is one leader, and twice as many requests
are judged as meet an objective.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from distserve.gateway.metrics import Metrics as GatewayMetrics
from distserve.observability.dashboards import DASHBOARDS
from distserve.observability.dashboards.operator import OPERATOR
from distserve.observability.dashboards.service import SERVICE
from distserve.observability.dashboards.topology import TOPOLOGY
from distserve.observability.panels import Dashboard, Query
from distserve.observability.selecting import TARGET_LABELS, prometheus_name
from distserve.wire.dialect import Slo

VALUE = 3
GROWING = f"0+{60 * VALUE}x10"
STAYING = f"{VALUE}x10"
POD = {"namespace": "llm", "pod": "tiny"} | {prometheus_name(one): "x" for one in TARGET_LABELS}
DEPLOYMENT = prometheus_name(TARGET_LABELS[0])
CHOSEN = {
    "$namespace": "llm", "$operator_namespace": "llm", "$deployment": "tiny",
    "$__rate_interval": "4m", "$__range": "8m",
}  # fmt: skip

Evaluate = Callable[..., None]
Samples = Mapping[str, float]


@pytest.fixture
def evaluate(promtool: Callable[..., str], tmp_path: Path) -> Evaluate:
    """evaluate(series, {expression: samples}): fails with what else it found."""

    def run(series: Mapping[str, str], expected: Mapping[str, Samples]) -> None:
        case = {
            "interval": "1m",
            "input_series": [{"series": one, "values": v} for one, v in series.items()],
            "promql_expr_test": [
                {
                    "expr": expression,
                    "eval_time": "9m",
                    "exp_samples": [{"labels": k, "value": v} for k, v in samples.items()],
                }
                for expression, samples in expected.items()
            ],
        }
        (tmp_path / "test.yaml").write_text(yaml.safe_dump({"tests": [case]}))
        promtool("test", "rules", "test.yaml")

    return run


def series(registries: list[CollectorRegistry]) -> dict[str, str]:
    found = {}
    for registry in registries:
        for family in registry.collect():
            grows = family.type in ("counter", "histogram")
            for sample in family.samples:
                labels = POD | {DEPLOYMENT: "tiny"} | sample.labels
                words = ", ".join(f'{name}="{value}"' for name, value in labels.items())
                found[f"{sample.name}{{{words}}}"] = GROWING if grows else STAYING
    leader = (one for one in found if one.startswith("distserve_operator_leader{"))
    judged = (one for one in found if one.startswith("distserve_slo_judged_total{"))
    return found | dict.fromkeys(leader, "1x10") | dict.fromkeys(judged, f"0+{2 * 60 * VALUE}x10")


def asked(query: Query) -> str:
    expression = query.expression
    for variable, value in CHOSEN.items():
        expression = expression.replace(variable, value)
    return expression


def queries(dashboard: Dashboard, *titles: str) -> Iterator[Query]:
    for panel in dashboard.panels:
        if panel.title in titles:
            yield from panel.queries


def test_every_panel_moves(evaluate: Evaluate, registries: list[CollectorRegistry]) -> None:
    every = [query for one in DASHBOARDS for panel in one.panels for query in panel.queries]
    evaluate(series(registries), {f"sgn(count(({asked(q)}) != 0))": {"{}": 1} for q in every})


def test_what_was_not_promised_is_no_line(evaluate: Evaluate) -> None:
    """A deployment without spec.slo has no objectives, and meets none."""
    found = series([GatewayMetrics(Slo(), 90).registry])
    every = [query for panel in SERVICE.panels for query in panel.queries if query.target]
    assert len(every) == 3
    evaluate(found, {asked(query): {} for query in every})


def test_the_stages_of_the_mean_prompt_add_up(evaluate: Evaluate) -> None:
    """Of two prompts a second, which take 5 s each, one goes on elsewhere, after 4 s on its way."""
    labels = "".join(f', {name}="{value}"' for name, value in (POD | {DEPLOYMENT: "tiny"}).items())
    found = {}
    for stage, count, seconds in (("dispatch", 2, 6), ("kv_transfer", 1, 4)):
        for suffix, each in (("count", count), ("sum", seconds)):
            name = f'distserve_request_stage_seconds_{suffix}{{stage="{stage}"{labels}}}'
            found[name] = f"0+{60 * each}x10"
    (query,) = queries(SERVICE, "Mean time by stage")
    evaluate(found, {asked(query): {'{stage="dispatch"}': 3, '{stage="kv_transfer"}': 2}})


LINK = '{level="leaf", transport="TCP", unit="u0"}'
READY = '{condition="Ready", reason="Serving", status="True"}'
FALLING_BACK: list[tuple[Dashboard, str, Samples]] = [
    (TOPOLOGY, "Measured at each unit's slowest link", {LINK: VALUE}),
    (TOPOLOGY, "Latency of that link", {LINK: VALUE}),
    (OPERATOR, "Deployments by condition", {READY: VALUE}),
    (OPERATOR, "Units that are not whole", {'{deployment="llm/tiny"}': VALUE}),
    (OPERATOR, "Longest wait by now", {'{deployment="llm/tiny"}': VALUE}),
    (OPERATOR, "Waiting for a worker", {"{}": VALUE}),
]


@pytest.mark.parametrize(("dashboard", "title", "samples"), FALLING_BACK)
def test_the_line_at_zero_is_there_only_while_there_is_no_other(
    evaluate: Evaluate,
    registries: list[CollectorRegistry],
    dashboard: Dashboard,
    title: str,
    samples: Samples,
) -> None:
    found = [asked(query) for query in queries(dashboard, title)]
    assert found
    evaluate(series(registries), {query: samples for query in found})
    evaluate({}, {query: {"{}": 0} for query in found})


def test_every_query_that_falls_back_is_among_them() -> None:
    every = {
        panel.title
        for dashboard in DASHBOARDS
        for panel in dashboard.panels
        if any("vector(0)" in query.expression for query in panel.queries)
    }
    assert every == {title for _, title, _ in FALLING_BACK}
