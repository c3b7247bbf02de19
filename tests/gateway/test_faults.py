"""What clients and engines see when something fails: another route, a replay, or an error."""

import asyncio
import contextlib
import json
import random
from typing import Any

import aiohttp
import pytest
from tests.gateway.fake_engine import Fault
from tests.gateway.fake_text import alphabet
from tests.gateway.fleets import member

from distserve.api.durations import parse_duration
from distserve.api.gateway import LONGEST_REQUEST
from distserve.engine.validation import MAX_TIMEOUT_MS
from distserve.gateway import client, runner
from distserve.gateway.legs import LegFailed
from distserve.wire.dialect import Phases


@pytest.mark.parametrize("kind", ["refuse", "error", "disconnect"])
@pytest.mark.parametrize("side", ["prefill", "decode"])
async def test_nothing_streamed_yet_means_another_route(houses: Any, kind: str, side: str) -> None:
    house = await houses(prefill=2, decode=2)
    for engine in house.engines[:1] if side == "prefill" else house.decodes[:1]:
        engine.faults.append(Fault(kind))
    status, answer = await house.complete()
    assert status == 200
    assert answer["choices"][0]["text"] == alphabet("hello", 8)
    await house.until_quiet()
    tried = house.prefills if side == "prefill" else house.decodes
    assert [len(engine.legs) for engine in tried] == [1, 1], "the failed instance is avoided"


@pytest.mark.parametrize("kind", ["error", "disconnect"])
@pytest.mark.parametrize("after", [1, 3, 6])
@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_out_already_means_a_replay_of_the_same_text(
    house: Any, kind: str, after: int, stream: bool
) -> None:
    house.decodes[0].faults.append(Fault(kind, after))
    if stream:
        *events, done = await house.stream()
        assert done == "[DONE]"
        text = "".join(e["choices"][0]["text"] for e in events)
    else:
        text = (await house.complete())[1]["choices"][0]["text"]
    assert text == alphabet("hello", 8), "no token twice, none missing"
    replay = house.decodes[0].legs[1]
    # The last token is made again: the choice may have ended with it.
    assert replay.prior == list(alphabet("hello", after).encode())
    assert house.prefills[0].legs[1].prior == replay.prior
    await house.until_quiet()


@pytest.mark.parametrize("eos_at", [None, 3])
async def test_an_end_that_was_lost_is_found_again(houses: Any, eos_at: int | None) -> None:
    """All tokens are out, but not the word that they are all."""
    house = await houses(engine={"eos_at": eos_at})
    tokens = 8 if eos_at is None else eos_at + 1
    house.decodes[0].faults.append(Fault("disconnect", tokens - 1))
    *events, _ = await house.stream()
    assert events[-1]["choices"][0]["finish_reason"] == ("length" if eos_at is None else "stop")
    assert len(events) == tokens + 1
    (last,) = house.prefills[0].legs[1:]
    assert len(last.prior) == tokens - 1
    assert last.phases == (Phases.BOTH if eos_at is None else Phases.PREFILL)
    await house.until_quiet()


async def test_choices_are_replayed_each_from_where_it_is(house: Any) -> None:
    house.decodes[0].faults.append(Fault("error", 5))
    _, answer = await house.complete(n=3)
    assert [c["text"] for c in answer["choices"]] == [alphabet("hello", 8, i) for i in range(3)]
    replays = house.prefills[0].legs[1:]
    assert sorted(leg.choices for leg in replays) == [[0], [1], [2]]
    # 5 tokens of the decode leg, side by side, after one each of the prefill leg.
    assert sorted(len(leg.prior) for leg in replays) == [1, 2, 2]
    await house.until_quiet()


async def test_a_lost_prefill_after_its_first_token_does_not_matter(house: Any) -> None:
    house.prefills[0].faults.append(Fault("disconnect", 1))
    committed = asyncio.Event()
    committed.set()
    house.prefills[0].transfers.of = lambda transfer: committed
    _, answer = await house.complete()
    assert answer["choices"][0]["text"] == alphabet("hello", 8)
    assert len(house.prefills[0].legs) == 1


async def test_attempts_are_bounded(houses: Any) -> None:
    """What breaks every instance that takes it does not go through them all."""
    house = await houses(prefill=6)
    for engine in house.prefills:
        engine.faults += [Fault("error") for _ in range(5)]
    status, answer = await house.complete()
    assert status == 502
    assert answer["error"]["code"] == "engine_failed"
    assert sorted(len(engine.legs) for engine in house.prefills) == [0, 0, 0, 1, 1, 1]
    await house.until_quiet()


async def test_a_stream_that_cannot_go_on_ends_in_an_error_event(house: Any) -> None:
    """Three more attempts brought nothing."""
    house.decodes[0].faults += [Fault("error", 2), *(Fault("error") for _ in range(3))]
    *events, error, done = await house.stream(max_tokens=20)
    assert done == "[DONE]"
    assert len(house.decodes[0].legs) == 4
    assert "".join(e["choices"][0]["text"] for e in events) == alphabet("hello", 3)
    assert error["error"]["type"] == "server_error"
    assert (await house.metrics())['distserve_requests_total{code="502"}'] == 1
    await house.until_quiet()


@pytest.mark.parametrize("restarts", [7, 8])
async def test_a_long_stream_outlives_restarts_and_a_request_that_breaks_all_does_not(
    house: Any, restarts: int
) -> None:
    """Each time the text grew in between."""
    house.decodes[0].faults += [Fault("error", 2) for _ in range(restarts)]
    *events, last, _ = await house.stream(max_tokens=30)
    text = "".join(e["choices"][0]["text"] for e in events)
    if restarts == 7:
        assert text + last["choices"][0]["text"] == alphabet("hello", 30)
    else:
        assert text == alphabet("hello", 1 + 2 * 8) and "error" in last
    await house.until_quiet()


async def test_instances_that_are_about_to_end_cost_no_attempt(houses: Any) -> None:
    house = await houses(decode=6)
    for engine in house.decodes[:5]:
        engine.faults.append(Fault("closed"))
    status, answer = await house.complete()
    assert (status, answer["choices"][0]["text"]) == (200, alphabet("hello", 8))
    assert [len(engine.legs) for engine in house.decodes] == [1] * 6
    await house.until_quiet()


@pytest.mark.parametrize("kind", ["closed", "decline", "moves"])
async def test_who_is_refused_by_all_is_told_when_to_come_back(
    house: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(runner, "PAUSE_SECONDS", 0.0)
    house.prefills[0].faults += [Fault(kind) for _ in range(runner.MAX_REFUSALS)]
    status, answer, headers = await house.post(
        "/v1/completions", {"model": "test", "prompt": "hello"}
    )
    assert (status, answer["error"]["code"]) == (503, "no_ready_instance")
    assert int(headers["retry-after"]) >= 1
    await house.until_quiet()


@pytest.mark.parametrize(
    ("status", "told", "code"),
    [(500, 502, "engine_failed"), (503, 503, "no_ready_instance"), (504, 504, "request_timeout")],
)
def test_a_leg_that_failed_is_told_with_its_own_code(status: int, told: int, code: str) -> None:
    failure = LegFailed(member("p"), "x", retryable=True, status=status, answered=True)
    error = runner.as_error(failure)
    assert (error.status, error.code) == (told, code)
    assert bool(error.headers()) == (told == 503)


@pytest.mark.parametrize("after", [1, 3])
async def test_a_replay_that_would_go_on_from_another_token_begins_behind_it(
    house: Any, after: int
) -> None:
    house.decodes[0].faults.append(Fault("disconnect", after))
    house.prefills[0].faults += [Fault("error", 99), Fault("fork")]
    *events, _ = await house.stream()
    assert "".join(e["choices"][0]["text"] for e in events) == alphabet("hello", 8)
    first, forked, behind = house.prefills[0].legs
    assert (first.prior, forked.prior) == ([], list(alphabet("hello", after).encode()))
    assert behind.prior == list(alphabet("hello", after + 1).encode())
    assert forked.id in house.prefills[0].aborted
    assert not any(m.failures for m in house.gateway.fleet.members.values()), "nobody's fault"
    await house.until_quiet()


async def test_a_last_token_that_comes_out_otherwise_is_the_last_all_the_same(house: Any) -> None:
    """All of max_tokens are out: nothing follows that would have to fit."""
    house.decodes[0].faults.append(Fault("disconnect", 7))
    house.prefills[0].faults += [Fault("error", 99), Fault("fork")]
    *events, _ = await house.stream()
    assert "".join(e["choices"][0]["text"] for e in events) == alphabet("hello", 8)
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert len(house.prefills[0].legs) == 2


async def test_scores_that_are_too_long_are_the_clients_matter(
    houses: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = await houses(prefill=2)
    monkeypatch.setattr(client, "MAX_LINE_BYTES", 4096)
    status, answer = await house.complete(prompt="x" * 60, prompt_logprobs=20)
    assert status == 400
    assert "ask for fewer prompt_logprobs" in answer["error"]["message"]
    assert sum(len(engine.legs) for engine in house.prefills) == 1, "no other would do better"
    assert not any(m.failures for m in house.gateway.fleet.members.values())
    assert (await house.complete(prompt="x" * 60, prompt_logprobs=1))[0] == 200
    await house.until_quiet()


async def test_an_error_that_is_final_is_not_tried_again(houses: Any) -> None:
    house = await houses(prefill=2)
    house.prefills[0].faults.append(Fault("fatal"))
    status, _ = await house.complete()
    assert status == 502
    assert sum(len(engine.legs) for engine in house.prefills) == 1


async def test_a_declined_leg_goes_elsewhere(houses: Any) -> None:
    house = await houses(decode=2)
    house.decodes[0].faults.append(Fault("decline"))
    _, answer = await house.complete()
    assert answer["choices"][0]["text"] == alphabet("hello", 8)
    assert [len(engine.legs) for engine in house.decodes] == [1, 1]
    await house.until_quiet()


@pytest.mark.parametrize(("side", "after"), [("prefill", 0), ("decode", 0), ("decode", 3)])
async def test_what_hangs_is_ended_by_the_timeout_on_both_sides(
    houses: Any, side: str, after: int
) -> None:
    house = await houses(request_timeout_seconds=0.4)
    engine = house.prefills[0] if side == "prefill" else house.decodes[0]
    engine.faults.append(Fault("hang", after))
    status, answer = await house.complete()
    assert status == 504
    assert answer["error"]["code"] == "request_timeout"
    await house.until(lambda: engine.aborted)
    await house.until_quiet()


async def test_engines_take_the_longest_request_that_is_allowed(houses: Any) -> None:
    longest = parse_duration(LONGEST_REQUEST)
    house = await houses(request_timeout_seconds=longest)
    assert (await house.complete())[0] == 200
    (prefill,), (decode,) = house.prefills[0].legs, house.decodes[0].legs
    for leg in (prefill, decode):
        assert (longest - 60) * 1000 < leg.timeout_ms <= MAX_TIMEOUT_MS


@pytest.mark.parametrize("seed", range(3))
async def test_clients_that_leave_at_random_points_leave_nothing_behind(
    houses: Any, seed: int
) -> None:
    house = await houses(prefill=2, decode=2, engine={"token_seconds": 0.002})
    draw = random.Random(seed)
    left = 0

    async def leave(http: aiohttp.ClientSession, index: int) -> None:
        nonlocal left
        body = {
            "model": "test", "prompt": ["x" * draw.randint(1, 60)] * draw.randint(1, 2),
            "n": draw.randint(1, 2), "max_tokens": 20, "stream": bool(index % 2),
        }  # fmt: skip
        try:
            async with asyncio.timeout(draw.uniform(0.0, 0.08)):
                async with http.post(f"{house.url}/v1/completions", json=body) as answer:
                    await answer.read()
        except TimeoutError:
            left += 1

    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as http:
        await asyncio.gather(*(leave(http, i) for i in range(30)))
    assert left > 10
    await house.until_quiet()
    await house.until(lambda: not house.gateway.running)
    metrics = await house.metrics()
    assert metrics["distserve_requests_in_flight"] == 0
    assert metrics['distserve_requests_total{code="500"}'] == 0


async def test_a_client_that_leaves_ends_both_legs(houses: Any) -> None:
    house = await houses(engine={"prefill_gate": asyncio.Event()})
    asked = asyncio.create_task(house.complete())
    await house.until(lambda: house.prefills[0].live and house.decodes[0].live)
    asked.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asked
    await house.until(lambda: house.prefills[0].aborted and house.decodes[0].aborted)
    await house.until(lambda: house.prefills[0].released == [house.prefills[0].legs[0].transfer])
    await house.until_quiet()
    assert (await house.metrics())['distserve_requests_total{code="499"}'] == 1


async def test_the_first_token_does_not_wait_for_the_decode_instance(houses: Any) -> None:
    house = await houses()
    house.decodes[0].faults.append(Fault("hang"))
    async with (
        aiohttp.ClientSession() as http,
        http.post(
            f"{house.url}/v1/completions",
            json={"model": "test", "prompt": "hello", "max_tokens": 4, "stream": True},
        ) as answer,
    ):
        line = await answer.content.readline()
        first = json.loads(line.removeprefix(b"data: "))
        assert first["choices"][0]["text"] == alphabet("hello", 1)
    await house.until_quiet()


async def test_too_many_that_wait_are_told_when_to_come_back(houses: Any) -> None:
    gate = asyncio.Event()
    house = await houses(engine={"prefill_gate": gate}, max_waiting_requests=3)
    asked = [asyncio.create_task(house.complete()) for _ in range(3)]
    await house.until(lambda: house.gateway.admission.waiting == 3)
    status, answer, headers = await house.post(
        "/v1/completions", {"model": "test", "prompt": "hello"}
    )
    assert status == 429
    assert answer["error"]["type"] == "rate_limit_error"
    assert int(headers["retry-after"]) >= 1
    assert (await house.complete(no_such_field=1))[0] == 429, "its body is not even read"
    gate.set()
    assert [status for status, _ in await asyncio.gather(*asked)] == [200] * 3
    status, answer = await house.complete(prompt=["a"] * 4)
    assert status == 400, "such a batch can never be admitted"
    assert (await house.complete())[0] == 200


async def test_gateways_share_what_may_wait(houses: Any) -> None:
    gate = asyncio.Event()
    house = await houses(engine={"prefill_gate": gate}, max_waiting_requests=5)

    async def bound() -> float:
        return float((await house.metrics())["distserve_requests_waiting_bound"])

    assert await bound() == 5, "nothing is known of others"
    house.gateway.discovery.gateways = 3
    assert await bound() == 2, "rounded up"
    asked = [asyncio.create_task(house.complete()) for _ in range(2)]
    await house.until(lambda: house.gateway.admission.waiting == 2)
    assert (await house.complete())[0] == 429
    house.gateway.discovery.gateways = 2
    asked.append(asyncio.create_task(house.complete()))
    await house.until(lambda: house.gateway.admission.waiting == 3)
    house.gateway.discovery.gateways = 5
    gate.set()
    assert [status for status, _ in await asyncio.gather(*asked)] == [200] * 3


async def test_prompts_of_a_batch_wait_one_by_one(houses: Any) -> None:
    house = await houses(max_waiting_requests=2)
    status, answer = await house.complete(prompt=["a", "b"])
    assert status == 200 and len(answer["choices"]) == 2
    await house.until_quiet()


async def test_a_request_id_goes_through_to_the_engines(house: Any) -> None:
    body = {"model": "test", "prompt": "hello", "max_tokens": 2}
    _, answer, headers = await house.post("/v1/completions", body, {"x-request-id": "mine-1"})
    assert headers["x-request-id"] == "mine-1"
    assert answer["id"] == "cmpl-mine-1"
    for engine in house.engines:
        assert engine.legs[0].request_id == "mine-1"
        assert engine.headers[0]["x-request-id"] == "mine-1"
    _, _, headers = await house.post("/v1/completions", body, {"x-request-id": "no {good}"})
    assert headers["x-request-id"] != "no {good}"
    async with aiohttp.ClientSession() as http, http.get(f"{house.url}/health") as reply:
        assert reply.headers["x-request-id"]
