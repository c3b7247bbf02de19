"""What a load is made of: clients that wait for answers, and requests that come at any moment."""

from itertools import pairwise
from random import Random
from statistics import fmean, pstdev
from time import perf_counter
from typing import Any

import pytest
from tests.profile.stub import Stub

from distserve.bench.client import Client, Target
from distserve.bench.openloop import Observed, offer
from distserve.bench.outcome import Planned
from distserve.planner.loads import LoadRecord, decoded
from distserve.profile import asking as asking_module
from distserve.profile import loads
from distserve.profile.asking import asking
from distserve.profile.database import Loaded
from distserve.profile.errors import ProfileError


async def test_gaps_of_those_that_come_are_as_long_as_chance_has_it() -> None:
    """Ten a second were answered; drawn from a seed, so that they are the same each time."""
    came: list[float] = []

    class Offered:
        async def offer(self, instants: list[float], lengths: list[tuple[int, int]]) -> list[Any]:
            assert len(instants) == len(lengths)
            came.extend(instants)
            return []

    load = loads._Load(16, perf_counter() - 200, Random(1), loads.usual(), answered=2000)
    asker: Any = Offered()
    await loads._whenever_they_come(asker, load)
    gaps = [after - before for before, after in pairwise([0.0, *came])]
    assert len(gaps) == 2000 and min(gaps) > 0
    assert fmean(gaps) == pytest.approx(0.1, rel=0.1)
    assert pstdev(gaps) == pytest.approx(0.1, rel=0.1), "Poisson's"


@pytest.mark.parametrize("moves", [True, False])
async def test_clients_of_a_load_send_one_request_after_another(stub: Stub, moves: bool) -> None:
    stub.tells, stub.moves = True, moves
    rows: list[Loaded] = []
    async with asking(Target(stub.url, "m")) as asker:
        assert await loads.measure(asker, rows.append, clients=(1, 3), rounds=1, seconds=0.2)
    assert [row.clients for row in rows] == [1, 3]
    for row in rows:
        load = LoadRecord(1, row.clients, decoded(row.requests))
        assert len(load.requests) >= row.clients and load.migrated == moves
        for request in load.requests:
            assert 0 <= request.sent_ms < request.prefill_ms < request.prefilled_ms
            assert request.prefilled_ms - request.prefill_ms == pytest.approx(1.5, abs=0.01)
            assert list(request.token_ms) == sorted(request.token_ms)
        one_after_another = load.requests[: len(load.requests) // 2]
        at_once = max(
            sum(r.sent_ms <= one.sent_ms < r.last_ms for r in one_after_another)
            for one in one_after_another
        )
        assert at_once == row.clients


async def test_half_of_a_load_comes_whenever_it_comes(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as were answered; of one client all wait for it."""
    stub.tells = True
    offered: list[list[Planned]] = []

    async def seen(plan: list[Planned], client: Client) -> Observed:
        offered.append(plan)
        return await offer(plan, client)

    monkeypatch.setattr(asking_module, "offer", seen)
    rows: list[Loaded] = []
    async with asking(Target(stub.url, "m")) as asker:
        await loads.measure(asker, rows.append, clients=(1, 16), rounds=1, seconds=0.4)
    (plan,) = offered
    requests = decoded(rows[1].requests)
    assert len(requests) == 2 * len(plan)
    first, rest = requests[: len(plan)], requests[len(plan) :]
    assert max(one.last_ms for one in first) < min(one.sent_ms for one in rest)
    lasted = (max(one.last_ms for one in first) - first[0].sent_ms) / 1000
    assert lasted / 5 < plan[-1].at_seconds < 5 * lasted, "32 gaps or more: no chance leads beyond"
    assert {one.prompt_tokens for one in plan} != {one.input_tokens for one in first}


async def test_a_refusal_among_those_that_come_is_told(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.tells = True

    async def refused(plan: list[Planned], client: Client) -> Observed:
        stub.status = 503
        return await offer(plan, client)

    monkeypatch.setattr(asking_module, "offer", refused)
    async with asking(Target(stub.url, "m")) as asker:
        with pytest.raises(ProfileError, match=r"completions: HTTP 503: not today$"):
            await loads.measure(asker, lambda _: None, clients=(2,), rounds=1, seconds=0.1)


async def test_a_server_that_tells_too_few_stages_is_refused(stub: Stub) -> None:
    stub.tells = True

    def fall_silent(_: Loaded) -> None:
        stub.tells = False

    async with asking(Target(stub.url, "m")) as asker:
        with pytest.raises(ProfileError, match="told the stages of 0 in time"):
            await loads.measure(asker, fall_silent, clients=(1, 2), seconds=0.05)


async def test_where_a_role_has_several_instances_no_load_is_measured(stub: Stub) -> None:
    stub.tells, stub.decoders = True, 2
    async with asking(Target(stub.url, "m")) as asker:
        with pytest.raises(
            ProfileError, match=r"several decode instances: .* one instance of each"
        ):
            await loads.measure(asker, lambda _: None, clients=(1,), seconds=0.1)


async def test_a_load_ends_with_the_first_refusal(stub: Stub) -> None:
    stub.tells = True

    def refuse(_: Loaded) -> None:
        stub.status = 503

    async with asking(Target(stub.url, "m")) as asker:
        with pytest.raises(ProfileError, match=r"completions: HTTP 503: not today$"):
            await loads.measure(asker, refuse, clients=(1, 4), seconds=0.05)
