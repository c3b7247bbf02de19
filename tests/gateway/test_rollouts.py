"""What becomes of a stream while a rollout replaces the units under it."""

import asyncio
from typing import Any

import pytest
from tests.gateway.fake_engine import Fault
from tests.gateway.fake_text import alphabet

from distserve.gateway import runner

TOKENS = 120
NEW = {"other weights": {"fingerprint": "f1"}, "a shorter context": {"max_model_len": 64}}


def text_of(events: list[Any]) -> str:
    return "".join(event["choices"][0]["text"] for event in events if "choices" in event)


@pytest.mark.parametrize("new", NEW)
async def test_a_stream_goes_on_at_units_like_the_former_one_while_there_are_any(
    houses: Any, new: str
) -> None:
    """Of three units the second one is the new one. The stream loses the first, then the third."""

    def changes_the_second(engines: list[Any]) -> None:
        for engine in engines:
            engine.token_seconds = 0.02
            if engine.name.endswith("-1"):
                vars(engine).update(NEW[new])

    house = await houses(prefill=3, decode=3, change=changes_the_second)
    fleet = house.gateway.fleet
    house.publish("prefill-1", "decode-1")
    await house.until(lambda: len(fleet.ready()) == 4)
    asked = asyncio.create_task(house.stream(max_tokens=TOKENS))
    await house.until(lambda: house.decodes[0].live and not house.prefills[0].live)
    house.publish()
    await house.until(lambda: len(fleet.ready()) == 6)
    await lose(house, 0)
    await house.until(lambda: house.decodes[2].live)
    assert not house.prefills[1].legs
    await lose(house, 2)
    *events, done = await asked
    assert (text_of(events), done) == (alphabet("hello", TOKENS), "[DONE]")
    assert house.decodes[1].legs, "with no other left"


async def lose(house: Any, unit: int) -> None:
    for engine in (house.prefills[unit], house.decodes[unit]):
        await engine.stop()


async def test_a_stream_is_moved_as_often_as_instances_end(house: Any) -> None:
    """As long as each of them brings it on: nothing is wrong with any."""
    (decode,) = house.decodes
    decode.faults += [Fault("moves", 2) for _ in range(2 * runner.MAX_FAILURES)]
    *events, done = await house.stream(max_tokens=40)
    assert (text_of(events), done) == (alphabet("hello", 40), "[DONE]")
    assert not decode.faults
    await house.until_quiet()
