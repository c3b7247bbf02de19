"""What clients of a deployment see becomes rows; the simulator counts what was measured."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.profile.stub import Stub

from distserve.bench.client import Client, Target
from distserve.bench.outcome import Outcome
from distserve.cli.main import main
from distserve.planner.loads import decoded, read_loads
from distserve.planner.records import read_records
from distserve.planner.serving import Serving
from distserve.planner.simulator import InstanceSpec, Simulation
from distserve.planner.strategies import Fleet, strategy_class
from distserve.profile import asking as asking_module
from distserve.profile import loads, serving
from distserve.profile.asking import asking
from distserve.profile.database import Loaded, Measured, Served, Subject, open_database
from distserve.profile.errors import ProfileError
from distserve.profile.serving import (
    OUTPUT_TOKENS,
    PROMPTS,
    UNEQUAL_OUTPUT_TOKENS,
    round_of,
)
from distserve.strategies.time_model import Coefficients, TimeModel
from distserve.workload import Trace

TIMES = TimeModel(Coefficients(5, 0.1, 0), Coefficients(4, 0, 0.5), Coefficients(4, 0, 0.5))


def outcome(sent: float, *token_times: float) -> Outcome:
    return Outcome(0, 8, len(token_times), sent, sent, token_times[-1], token_times)


def test_steps_count_while_all_streams_decode() -> None:
    """The first stream is alone until 0.50 and after 0.80: those steps were faster."""
    first = outcome(0.0, 0.10, 0.40, 0.45, 0.50, 0.60, 0.70, 0.80)
    second = outcome(0.0, 0.20, 0.50, 0.60, 0.70, 0.80, 0.81, 0.82)
    found = round_of([first, second])
    assert found.step == pytest.approx(100)
    assert found.ttft == pytest.approx(150) and found.handover == pytest.approx(300)
    with pytest.raises(ProfileError, match="never decoded at once"):
        round_of([first, outcome(0.0, 0.9, 1.0, 1.1)])


@pytest.mark.parametrize("moves", [True, False])
async def test_a_deployment_is_measured_from_outside(stub: Stub, moves: bool) -> None:
    stub.moves = moves
    rows: list[Served] = []
    async with asking(Target(stub.url, "m")) as asker:
        await serving.measure(asker, rows.append, [(8,), (4, 12)], rounds=1)
    assert [(r.streams, r.input_len, r.migrated) for r in rows] == [(1, 8, moves), (2, 8, moves)]
    assert [r.longest_len for r in rows] == [8, 12]
    halves = [tokens / 2 for tokens in (OUTPUT_TOKENS, UNEQUAL_OUTPUT_TOKENS)]
    assert [r.context_len - 8 for r in rows] == halves and all(r.ttft > 0 for r in rows)


@pytest.mark.parametrize("unknown", ["continuous_usage_stats", "stream_options", "ignore_eos"])
async def test_a_server_that_knows_less_is_measured_idle(stub: Stub, unknown: str) -> None:
    stub.unknown = unknown
    rows: list[Served] = []
    async with asking(Target(stub.url, "m")) as asker:
        assert not await loads.measure(asker, lambda _: None)
        await serving.measure(asker, rows.append, [(8,)], rounds=1)
    assert [row.output_len for row in rows] == [OUTPUT_TOKENS]


async def test_answers_that_end_early_are_counted_as_they_came(stub: Stub) -> None:
    stub.most = 10
    rows: list[Served] = []
    async with asking(Target(stub.url, "m")) as asker:
        await serving.measure(asker, rows.append, [(8,)], rounds=1)
        assert [(row.output_len, row.context_len) for row in rows] == [(10, 13)]
        stub.most = 1
        with pytest.raises(ProfileError, match="ended with its first token"):
            await serving.measure(asker, rows.append, [(8,)], rounds=1)


async def test_what_is_refused_for_good_is_told_with_its_words(stub: Stub) -> None:
    stub.unknown = "max_tokens"
    async with asking(Target(stub.url, "m")) as asker:
        with pytest.raises(ProfileError, match=r"HTTP 400: unknown parameter max_tokens$"):
            await asker.ask([8], 2)
    async with asking(Target("http://me:secret@127.0.0.1:9", "m")) as asker:
        with pytest.raises(
            ProfileError, match=r"^http://127\S+: cannot connect: .*; start the deployment"
        ):
            await asker.ask([8], 2)


async def test_no_request_s_time_has_the_making_of_its_connection_in_it(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready: list[bool] = []

    class Watched(Client):
        async def send(self, *args: Any) -> Outcome:
            ready.append(args[-1]._making.done())
            return await super().send(*args)

    monkeypatch.setattr(asking_module, "Client", Watched)
    async with asking(Target(stub.url, "m")) as asker:
        await asker.ask([8, 8], 2)
    assert ready == [True, True]


async def test_requests_are_no_longer_than_the_server_takes(stub: Stub) -> None:
    """It refuses longer ones."""
    async with asking(Target(stub.url, "m")) as asker:
        assert await asker.longest() is None
        stub.longest = most = 60
        assert await asker.longest() == most
        idle: list[Served] = []
        await serving.measure(asker, idle.append, [(32,), (512, 32)], rounds=1, most=most)
        stub.tells = True
        busy: list[Loaded] = []
        usual = loads.usual(most)
        assert await loads.measure(asker, busy.append, (8,), 1, seconds=0.2, lengths=usual)
    assert [(r.input_len, r.longest_len, r.output_len) for r in idle] == [(30, 30, 30)] * 2
    lengths = {
        length
        for request in decoded(busy[0].requests)
        for length in (request.input_tokens, len(request.token_ms))
    }
    assert 16 <= min(lengths) < max(lengths) <= 30, "prompts and answers have half of it each"


async def test_a_server_that_refuses_is_one_line(stub: Stub) -> None:
    stub.status = 503
    async with asking(Target(stub.url, "m")) as asker:
        with pytest.raises(ProfileError, match=r"completions: HTTP 503: not today$"):
            await serving.measure(asker, lambda _: None, [(8,)], rounds=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database of the model's steps."""
    path = tmp_path / "p.sqlite"
    with open_database(path, Subject("m", "float32", "cpu", "1")) as database:
        for batch in (1, 2, 4):
            for tokens in (8, 64):
                row = Measured(batch, tokens, 16, 1e-3 * batch, 1e-3, 0.0, 0.0, tokens + 8.0, 3)
                database.add(row)
    return path


async def test_the_limit_that_is_told_is_the_one_that_holds(
    stub: Stub, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.silence = asyncio.Event()
    monkeypatch.setattr(asking_module, "TIMEOUT_SECONDS", 0.3)
    ask = ["profile", "serving", "--db", str(path), "--url", stub.url, "--model", "m"]
    assert await asyncio.to_thread(main, ask) == 2
    stub.silence.set()
    output, error = capsys.readouterr()
    assert output == "" and error.endswith("completions: timed out after 0.3 s\n")


async def test_the_command_says_that_it_asks_for_less(
    stub: Stub, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.longest, stub.tells = 300, True
    for name, value in (("CLIENTS", (2,)), ("ROUNDS", 1), ("SECONDS", 0.2)):
        monkeypatch.setattr(loads, name, value)
    ask = ["profile", "serving", "--db", str(path), "--url", stub.url, "--model", "m"]
    assert await asyncio.to_thread(main, ask) == 0
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first == "the server takes 300 tokens a request: longer ones are shortened to these"
    assert second.startswith("round 1 of 1,  2 clients")
    stub.longest = max(loads.LONGEST, serving.LONGEST)
    assert await asyncio.to_thread(main, ask) == 0
    assert capsys.readouterr().out.startswith("round 1 of 1")


async def test_requests_as_long_as_users_send_them(
    stub: Stub, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.tells = True
    for name, value in (("CLIENTS", (2,)), ("ROUNDS", 1), ("SECONDS", 1e-9)):
        monkeypatch.setattr(loads, name, value)
    ask = ["profile", "serving", "--db", str(path), "--url", stub.url, "--model", "m", "--dataset"]
    assert await asyncio.to_thread(main, [*ask, "synthetic:fixed,prompt=7,output=3"]) == 0
    (load,) = read_loads(path, [record.origin for record in read_records(path)])
    assert {(r.input_tokens, len(r.token_ms)) for r in load.requests} == {(7, 3)}
    least = 2 * loads.LEAST_REQUESTS
    assert len(load.requests) == least + least, "answers longer than a load meet, too"
    capsys.readouterr()
    stub.longest = 9
    assert await asyncio.to_thread(main, [*ask, "synthetic:fixed,prompt=7,output=3"]) == 2
    assert await asyncio.to_thread(main, [*ask, "synthetic:poems"]) == 2
    stub.longest, stub.tells = None, False
    assert await asyncio.to_thread(main, [*ask, "synthetic:fixed,prompt=7,output=3"]) == 2
    too_long, unknown, silent = capsys.readouterr().err.splitlines()
    assert "poems" in unknown and "leave out --dataset" in silent, too_long


async def test_the_command_adds_to_the_model_s_records(
    stub: Stub,
    path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def said(code: int, *words: object) -> tuple[str, str]:
        assert await asyncio.to_thread(main, ["profile", *map(str, words)]) == code
        return capsys.readouterr()

    ask = ("serving", "--db", path, "--url", stub.url, "--model")
    output, _ = await said(0, *ask, "m")
    silent, *lines, last = output.splitlines()
    assert "does not tell its requests' stages" in silent and len(lines) == len(PROMPTS)
    assert last == f"what the deployment adds is in {path}, for `distserve profile fit`"
    output, _ = await said(0, "fit", "--db", path, "--output", tmp_path / "mine.json")
    assert "a deployment adds" in output
    entry = json.loads((tmp_path / "mine.json").read_text())["m"]["1"]["serving"]
    assert entry["request_ms"] > 0 and entry["handover_ms"] == 0  # the stub moved nothing
    stub.tells = stub.moves = True
    monkeypatch.setattr(loads, "CLIENTS", (1, 2))
    monkeypatch.setattr(loads, "ROUNDS", 2)
    monkeypatch.setattr(loads, "SECONDS", 0.2)
    output, _ = await said(0, *ask, "m")
    assert [line.partition(":")[0] for line in output.splitlines()[:-1]] == [
        f"round {nth} of 2, {count:2} clients" for nth in (1, 2) for count in (1, 2)
    ]
    await said(0, "fit", "--db", path, "--output", tmp_path / "mine.json")
    entry = json.loads((tmp_path / "mine.json").read_text())["m"]["1"]["serving"]
    assert 0.5 < entry["prompt_ms"] < 1.6, "1.5 ms, as it told; some of it beside others"
    stub.tells = stub.moves = False
    before = await said(0, "fit", "--db", path)
    _, error = await said(2, *ask, "other")
    assert error.endswith("no records of model other; the database has: m float32 cpu 1\n")
    stub.takes = 1 + 4  # one point, and then no more
    output, error = await said(2, *ask, "m")
    assert len(output.splitlines()) == 2 and error.endswith("HTTP 503: not today\n")
    assert await said(0, "fit", "--db", path) == before, "what was measured before is still there"


def times_of(strategy: str, fleet: Fleet) -> tuple[list[float], list[float]]:
    trace = Trace([100, 100], [11, 11], [0.0, 1000.0])
    simulation = Simulation(trace)
    result = simulation.run(strategy_class(strategy)(simulation, fleet))
    return result.ttft_ms, result.tpot_ms


@pytest.mark.parametrize("strategy", ["Disaggregated", "Colocated"])
def test_what_a_deployment_adds_is_simulated(strategy: str) -> None:
    """Two requests that do not meet: times are sums."""
    bare = InstanceSpec(TIMES)
    spec = replace(bare, serving=Serving(request_ms=7.0, handover_ms=20.0))
    alone = Fleet(bare, bare) if strategy == "Disaggregated" else Fleet(bare)
    whole = Fleet(spec, spec) if strategy == "Disaggregated" else Fleet(spec)
    ttft, tpot = times_of(strategy, alone)
    added_ttft, added_tpot = times_of(strategy, whole)
    assert added_ttft == pytest.approx([t + 7.0 for t in ttft])
    handover = 20.0 if strategy == "Disaggregated" else 0.0
    assert added_tpot == pytest.approx([t + handover / 10 for t in tpot])
