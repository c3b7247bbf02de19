"""The tokenizer of the instances: fetched once, and that of those who can answer."""

from typing import Any

import pytest
from aiohttp import web

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
