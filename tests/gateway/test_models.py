"""The tokenizer of the instances: fetched once, and that of those who can answer."""

import asyncio
from typing import Any

import pytest
from aiohttp import web
from tests.gateway.fake_engine import OTHER_TOKENIZER

from distserve.gateway import models


async def test_a_tokenizer_is_fetched_and_built_once_for_all_instances(
    houses: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    load = models.load_text_model

    async def counted(info: Any, files: Any, key: str) -> Any:
        built.append(key)
        return await load(info, files, key)

    monkeypatch.setattr(models, "load_text_model", counted)
    house = await houses(prefill=4, decode=4)
    assert sum(engine.files_sent for engine in house.engines) == 1
    assert len(built) == 1
    assert (await house.complete())[0] == 200


async def test_what_one_instance_does_not_hand_out_comes_from_another(houses: Any) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=500)

    def breaks_the_first(engines: list[Any]) -> None:
        engines[0]._file = refuse

    house = await houses(prefill=2, change=breaks_the_first)
    assert sum(engine.files_sent for engine in house.engines) == 1
    assert (await house.complete())[0] == 200


async def test_one_that_hands_out_drop_by_drop_does_not_hold_up_the_others(
    houses: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No read of it takes long."""

    async def drip(request: web.Request) -> web.StreamResponse:
        dripping.set()
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b" ")
            await asyncio.sleep(0.02)

    def holds_the_rest_until_it_is_met(engines: list[Any]) -> None:
        engines[0]._file = drip
        for engine in engines[1:]:
            engine._instance = after(dripping, engine._instance)

    dripping = asyncio.Event()
    monkeypatch.setattr(models, "FETCH_SECONDS", 0.3)
    house = await houses(prefill=2, change=holds_the_rest_until_it_is_met, ready=False)
    await house.until(lambda: house.gateway.ready)
    assert dripping.is_set()
    assert (await house.complete())[0] == 200


def after(event: asyncio.Event, handler: Any) -> Any:
    async def waits(request: web.Request) -> Any:
        await event.wait()
        return await handler(request)

    return waits


def changes_the_model(engines: list[Any]) -> None:
    """Of a rollout's two units the second one is the new one."""
    for engine in engines:
        if engine.name.endswith("-1"):
            engine.files |= OTHER_TOKENIZER


async def lose(house: Any, *names: str) -> None:
    ready = house.gateway.fleet.ready
    house.publish(*names)
    await house.until(lambda: not {member.name for member in ready()} & set(names))


async def all_ready(house: Any) -> None:
    house.publish()
    await house.until(lambda: len(house.gateway.fleet.ready()) == len(house.engines))


def took(house: Any) -> set[str]:
    return {engine.name for engine in house.engines if engine.legs}


@pytest.mark.parametrize("lost", ["decode-0", "prefill-0"])
async def test_what_is_left_of_the_former_unit_does_not_keep_its_tokenizer(
    houses: Any, lost: str
) -> None:
    house = await houses(prefill=2, decode=2, change=changes_the_model)
    assert (await house.complete())[0] == 200
    assert took(house) == {"decode-0", "prefill-0"}
    await lose(house, lost)
    assert house.gateway.ready
    assert (await house.complete())[0] == 200
    assert took(house) == {engine.name for engine in house.engines}


async def test_the_former_unit_serves_until_a_new_one_is_whole(houses: Any) -> None:
    house = await houses(prefill=1, decode=2, change=changes_the_model)
    assert (await house.complete())[0] == 200
    assert took(house) == {"decode-0", "prefill-0"}


@pytest.mark.parametrize("lost", ["decode-0", "prefill-0"])
async def test_a_gateway_that_starts_then_takes_the_tokenizer_of_who_can_answer(
    houses: Any, lost: str
) -> None:
    def ends_one(engines: list[Any]) -> None:
        changes_the_model(engines)
        for engine in engines:
            engine.ready = engine.name != lost

    house = await houses(prefill=2, decode=2, change=ends_one, ready=False)
    await house.until(lambda: len(house.gateway.fleet.ready()) == 3)
    assert (await house.complete())[0] == 200
    assert took(house) == {"decode-1", "prefill-1"}


async def test_halves_of_two_models_are_no_route(houses: Any) -> None:
    """Though the one could read the KV of the other."""
    house = await houses(prefill=2, decode=1, change=changes_the_model)
    await lose(house, "prefill-0")
    assert not house.gateway.ready


NEW_UNITS = {
    "most": ({"-1", "-2"}, 1),
    "newer": ({"-1"}, 2),
}


@pytest.mark.parametrize("which", NEW_UNITS)
async def test_load_goes_to_the_tokenizer_that_most_have_or_the_newer_one(
    houses: Any, which: str
) -> None:
    """Else the last units of before would have all of it, up to the moment when they end."""
    ends, epoch = NEW_UNITS[which]

    def changes_some(engines: list[Any]) -> None:
        for engine in engines:
            if engine.name[-2:] in ends:
                engine.files |= OTHER_TOKENIZER
                engine.epoch = epoch

    count = 1 + len(ends)
    house = await houses(prefill=count, decode=count, change=changes_some)
    await lose(house, *(e.name for e in house.engines if e.name[-2:] in ends))
    assert (await house.complete())[0] == 200
    assert took(house) == {"decode-0", "prefill-0"}
    await all_ready(house)
    for engine in house.engines:
        engine.legs.clear()
    for _ in range(4):
        assert (await house.complete())[0] == 200
    assert took(house) and not took(house) & {"decode-0", "prefill-0"}


def changes_the_template(engines: list[Any]) -> None:
    for engine in engines:
        engine.chat_template = "{{ messages[0].content }}"
        if engine.name.endswith("-1"):
            engine.chat_template += "!"
            engine.epoch = 2
        engine.files |= {"chat_template.jinja": engine.chat_template.encode()}


async def test_another_chat_template_leaves_all_units_in_use(houses: Any) -> None:
    house = await houses(prefill=2, decode=2, change=changes_the_template)
    answers = await asyncio.gather(*(house.complete() for _ in range(12)))
    assert {status for status, _ in answers} == {200}
    assert took(house) == {engine.name for engine in house.engines}
    text = house.gateway.models.current().text
    assert text.render([{"role": "user", "content": "hi"}]) == "hi!", "the newer one's"


async def test_who_waits_when_the_last_former_unit_ends_goes_to_the_new_one(houses: Any) -> None:
    house = await houses(prefill=2, decode=2, change=changes_the_template)
    await lose(house, "prefill-1", "decode-1")
    assert (await house.complete())[0] == 200
    await lose(house, *(engine.name for engine in house.engines))
    waits = asyncio.create_task(house.complete())
    await house.until(lambda: house.gateway.admission.waiting == 1)
    house.publish("prefill-0", "decode-0")
    assert (await waits)[0] == 200
    assert took(house) == {engine.name for engine in house.engines}
