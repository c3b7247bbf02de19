"""The figures that operators chart: there from the start, and right afterwards."""

import asyncio
import contextlib
import math
from collections.abc import Iterable
from typing import Any

import aiohttp
import pytest
from tests.gateway.fake_engine import Fault
from tools.cluster.cluster import CHECKOUT

from distserve.api.durations import parse_duration
from distserve.api.loading import load_deployments
from distserve.bench.slos import NAMED_SLOS
from distserve.gateway.metrics import TPOT_BUCKETS, TTFT_BUCKETS, Metrics
from distserve.gateway.stages import LegReport, stage_seconds
from distserve.gateway.timing import PromptTiming, Window, overdue, record_answer
from distserve.wire.dialect import End, Lifecycle, Slo

HISTOGRAMS = (
    "distserve_time_to_first_token_seconds",
    "distserve_time_per_output_token_seconds",
    "distserve_inter_token_latency_seconds",
    "distserve_request_duration_seconds",
)
JUDGED = 'distserve_slo_judged_total{objective="deployment"}'
STAGES = ("dispatch", "prefill_queue", "prefill", "kv_transfer", "decode_queue", "decode")


def attained(slo: str, objective: str = "deployment") -> str:
    return f'distserve_slo_attained_total{{objective="{objective}",slo="{slo}"}}'


def stage_series(suffix: str, stage: str) -> str:
    return f'distserve_request_stage_seconds_{suffix}{{stage="{stage}"}}'


async def test_series_exist_before_the_first_request(houses: Any) -> None:
    house = await houses(prefill=0, decode=0, ready=False)
    metrics = await house.metrics()
    for name in HISTOGRAMS:
        assert metrics[f"{name}_count"] == 0
    for stage in STAGES:
        assert metrics[stage_series("count", stage)] == 0
    for code in ("200", "400", "429", "499", "502", "503", "504"):
        assert metrics[f'distserve_requests_total{{code="{code}"}}'] == 0
    for objective in ("deployment", "own"):
        assert metrics[f'distserve_slo_judged_total{{objective="{objective}"}}'] == 0
        for slo in ("ttft", "tpot", "both"):
            assert metrics[attained(slo, objective)] == 0
    for scope in ("unit", "domain", "other"):
        assert metrics[f'distserve_gateway_pairs_total{{scope="{scope}"}}'] == 0
    assert metrics["distserve_requests_in_flight"] == 0
    assert metrics['distserve_time_per_output_token_seconds_bucket{le="0.0025"}'] == 0
    assert metrics['distserve_time_to_first_token_seconds_bucket{le="120.0"}'] == 0


def test_usual_objectives_are_bounds_of_the_histograms() -> None:
    """So that a percentile says on which side of the objective it is. Usual are round ones, those
    of the samples and of the papers that docs/bench.md names."""
    files = (CHECKOUT / "manifests/samples").glob("*.yaml")
    slos = [one.spec.slo for file in files for one in load_deployments(file) if one.spec.slo]
    assert slos
    papers = [slo for name, slo in NAMED_SLOS.items() if not name.startswith("adaserve-coding")]
    ttfts = {parse_duration(slo.ttft) for slo in slos} | seconds(slo.ttft for slo in papers)
    tpots = {parse_duration(slo.tpot) for slo in slos} | seconds(slo.tpot for slo in papers)
    ttfts |= {.05, .1, .3, .5, .75, 1, 1.5, 2, 3, 5, 6, 8, 10, 20, 30, 60}  # fmt: skip
    tpots |= {.01, .015, .02, .025, .03, .04, .06, .075, .08, .125, .175, .25}  # fmt: skip
    assert not ttfts - set(TTFT_BUCKETS)
    assert not tpots - set(TPOT_BUCKETS)
    assert max(len(TTFT_BUCKETS), len(TPOT_BUCKETS)) <= 30, "each is a series of each gateway"


def seconds(limits: Iterable[object]) -> set[float]:
    """Without multiples of what is measured."""
    return {limit for limit in limits if isinstance(limit, int | float) and limit < math.inf}


async def test_counts_after_requests(houses: Any) -> None:
    house = await houses(slo=Slo(ttft_ms=60_000, tpot_ms=60_000), attainment_percent=90)
    await house.complete(prompt=["ab", "cde"], n=2, max_tokens=5)
    await house.stream(max_tokens=1)
    await house.complete(temperature=-1)
    await house.until_quiet()
    metrics = await house.metrics()
    assert metrics['distserve_requests_total{code="200"}'] == 2
    assert metrics['distserve_requests_total{code="400"}'] == 1
    assert metrics["distserve_time_to_first_token_seconds_count"] == 3, "one a prompt"
    assert metrics["distserve_time_per_output_token_seconds_count"] == 4, "one a choice"
    assert metrics["distserve_inter_token_latency_seconds_count"] == 4 * 4
    assert metrics["distserve_request_duration_seconds_count"] == 3
    assert metrics["distserve_prompt_tokens_total"] == 10
    assert metrics["distserve_generation_tokens_total"] == 21
    assert metrics[JUDGED] == 2, "who asks for what cannot be is not"
    for slo in ("ttft", "tpot", "both"):
        assert metrics[attained(slo)] == 2
    for stage, count in zip(STAGES, (3, 3, 3, 2, 3, 3), strict=True):
        assert metrics[stage_series("count", stage)] == count
    assert metrics['distserve_gateway_kv_transfer_bytes_total{transport="TCP"}'] == 8192
    assert metrics['distserve_slo_target_seconds{slo="ttft"}'] == 60
    assert metrics["distserve_slo_target_ratio"] == 0.9


async def test_tokens_count_as_they_are_sent_whatever_becomes_of_the_stream(houses: Any) -> None:
    house = await houses(engine={"token_seconds": 0.01})
    asked = {"model": "test", "prompt": "hello", "max_tokens": 200, "stream": True}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{house.url}/v1/completions", json=asked) as answer,
    ):
        for _ in range(3):
            assert (await answer.content.readuntil(b"\n\n")).startswith(b"data: {")
        counted = (await house.metrics())["distserve_generation_tokens_total"]
        assert 3 <= counted < 200, "the stream runs on"
    await house.until_quiet()
    metrics = await house.metrics()
    assert metrics['distserve_requests_total{code="499"}'] == 1
    assert counted <= metrics["distserve_generation_tokens_total"] < 200


async def test_no_reader_sees_a_request_without_its_objectives(houses: Any) -> None:
    house = await houses(slo=Slo(ttft_ms=60_000, tpot_ms=60_000))
    seen: set[tuple[float, float, float]] = set()
    asked = asyncio.gather(*(house.stream(max_tokens=3) for _ in range(30)))
    while not asked.done():
        metrics = await house.metrics()
        requests = metrics['distserve_requests_total{code="200"}']
        seen.add((requests, metrics[JUDGED], metrics[attained("both")]))
    await asked
    assert all(requests == judged == met for requests, judged, met in seen), seen


async def test_objectives_of_a_request_s_own_are_judged_apart(houses: Any) -> None:
    """A tenant's wish neither pages nor hides what the deployment promised."""
    house = await houses(slo=Slo(ttft_ms=60_000, tpot_ms=60_000))
    await house.complete()
    body = {"model": "test", "prompt": "hello", "max_tokens": 8}
    await house.post("/v1/completions", body, {"x-slo-ttft-ms": "0.000001"})
    await house.until_quiet()
    metrics = await house.metrics()
    assert (metrics[JUDGED], metrics[attained("both")]) == (1, 1)
    assert metrics['distserve_slo_judged_total{objective="own"}'] == 1
    found = {slo: metrics[attained(slo, "own")] for slo in ("ttft", "tpot", "both")}
    assert found == {"ttft": 0, "tpot": 1, "both": 0}


async def test_without_an_objective_nothing_is_judged(houses: Any) -> None:
    house = await houses()
    await house.complete()
    await house.until_quiet()
    metrics = await house.metrics()
    assert metrics['distserve_requests_total{code="200"}'] == 1
    assert metrics[JUDGED] == 0


async def test_failures_of_the_service_are_judged(houses: Any) -> None:
    house = await houses(prefill=0, decode=0, ready=False, slo=Slo(ttft_ms=60_000))
    await house.complete()
    await house.until_quiet()
    metrics = await house.metrics()
    assert metrics['distserve_requests_total{code="503"}'] == 1
    assert (metrics[JUDGED], metrics[attained("both")]) == (1, 0)


@pytest.mark.parametrize(("ttft_ms", "judged"), [(0.001, 1), (60_000, 0)])
async def test_who_gives_up_after_the_first_token_was_due_saw_it_missed(
    houses: Any, ttft_ms: float, judged: int
) -> None:
    house = await houses(engine={"prefill_gate": asyncio.Event()}, slo=Slo(ttft_ms=ttft_ms))
    asked = asyncio.create_task(house.complete())
    await house.until(lambda: house.prefills[0].live)
    asked.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asked
    await house.until_quiet()
    metrics = await house.metrics()
    assert metrics['distserve_requests_total{code="499"}'] == 1
    assert (metrics[JUDGED], metrics[attained("both")]) == (judged, 0)


def test_a_first_token_is_overdue_once_its_objective_has_passed() -> None:
    metrics = Metrics(Slo(), 90)
    waiting, late = PromptTiming(1.0, metrics), PromptTiming(0.0, metrics)
    late.token(0, 0.5)
    assert not overdue([waiting], Slo(ttft_ms=200), now=1.2)
    assert overdue([waiting], Slo(ttft_ms=199), now=1.2)
    assert overdue([waiting, late], Slo(ttft_ms=199), now=1.2), "one of several is enough"
    assert not overdue([late], Slo(ttft_ms=400), now=1.2), "who has it may cut it short"
    assert not overdue([late], Slo(tpot_ms=1), now=9.0), "a pace is known at the end"


def test_tpot_counts_tokens_and_objectives_look_at_the_worst() -> None:
    metrics, window = Metrics(Slo(), 90), Window()
    quick, slow = PromptTiming(0.0, metrics), PromptTiming(0.0, metrics)
    for at in (0.1, 0.1, 0.1, 0.4):
        quick.token(0, at)
    slow.token(0, 0.5)
    assert quick.choices[0].tpot == pytest.approx(0.1)
    assert slow.choices[0].tpot is None

    def met(ttft_ms: float | None, tpot_ms: float | None) -> tuple[str, ...]:
        return record_answer([quick, slow], Slo(ttft_ms, tpot_ms), metrics, window, now=1.0)

    assert met(600.0, 50.0) == ("ttft",)
    assert met(200.0, 150.0) == ("tpot",)
    assert met(600.0, 150.0) == ("ttft", "tpot", "both")
    assert met(600.0, None) == ("ttft", "both")
    assert met(None, None) == ()
    assert window.quantile("ttft", 0.5, now=2.0) == 0.5
    assert window.quantile("ttft", 0.5, now=100.0) is None


def test_stages_add_up_across_the_clocks_of_two_instances() -> None:
    prefill = LegReport(100.0, End(Lifecycle(context_begin_ms=20, context_end_ms=50)))
    decode = LegReport(
        100.01,
        End(
            Lifecycle(
                migration_begin_ms=15,
                migration_end_ms=60,
                decoding_begin_ms=70,
                decoding_end_ms=170,
            )
        ),
    )
    found = stage_seconds(99.93, [prefill, decode])
    stages = {name: round(1000 * seconds) for name, seconds in found.items()}
    assert stages == {
        "dispatch": 70, "prefill_queue": 20, "prefill": 30, "kv_transfer": 20, "decode_queue": 10,
        "decode": 100,
    }  # fmt: skip
    assert sum(stages.values()) == 250, "from the prompt's arrival to the decode's end"


def test_what_was_before_the_decode_is_not_told_without_the_prefill() -> None:
    decode = LegReport(100.0, End(Lifecycle(decoding_begin_ms=70, decoding_end_ms=170)))
    assert stage_seconds(99.0, [decode]) == {}
    assert stage_seconds(99.0, []) == {}


async def test_what_failed_before_the_last_attempt_is_dispatch(house: Any) -> None:
    house.prefills[0].faults.append(Fault("error", 0))
    body = {"model": "test", "prompt": "hello", "max_tokens": 8}
    _, answer, _ = await house.post("/v1/completions", body, {"x-lifecycle": "true"})
    await house.until_quiet()
    assert len(house.prefills[0].legs) == 2
    (told,) = answer["lifecycle"]
    metrics = await house.metrics()
    seconds = {stage: metrics[stage_series("sum", stage)] for stage in STAGES}
    assert seconds["dispatch"] * 1000 == pytest.approx(told["issued_ms"], abs=0.001)
    assert sum(seconds.values()) * 1000 == pytest.approx(told["decoding_end_ms"], abs=0.001)


async def test_a_prompt_has_each_stage_once_though_its_choices_go_on_apart(house: Any) -> None:
    house.decodes[0].faults.append(Fault("error", 5))
    await house.complete(n=3)
    await house.until_quiet()
    assert len(house.prefills[0].legs) == 4
    metrics = await house.metrics()
    assert {stage: metrics[stage_series("count", stage)] for stage in STAGES} == dict.fromkeys(
        STAGES, 1
    )
    moved = metrics['distserve_gateway_kv_transfer_bytes_total{transport="TCP"}']
    assert moved == 3 * 4096, "of every attempt whose end was told"


async def test_the_runners_page(house: Any) -> None:
    await house.complete()
    await house.until_quiet()
    async with aiohttp.ClientSession() as http, http.get(f"{house.url}/stats") as answer:
        stats = await answer.json()
    assert stats["ready"] is True
    assert [(i["name"], i["ready"]) for i in stats["instances"]] == [
        ("decode-0", True), ("prefill-0", True),
    ]  # fmt: skip
    assert stats["requests"] == {
        "total": 1, "by_code": {"200": 1}, "in_flight": 0, "waiting": 0,
    }  # fmt: skip
    assert stats["ttft_ms"]["p50"] > 0 and stats["tpot_ms"]["p90"] >= 0
    assert stats["kv_transfer_bytes"] == 4096
    assert stats["transports"] == {"TCP": 4096}


async def test_stats_are_not_for_those_that_a_proxy_here_asks_for(house: Any) -> None:
    """A proxy that says for whom; of another the gateway cannot tell."""
    headers = {"x-forwarded-for": "10.0.0.1"}
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{house.url}/stats", headers=headers) as answer,
    ):
        assert answer.status == 401
