"""How the gateway reads what engines write: lines, however the network cut them."""

from collections.abc import AsyncIterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.fake_engine import KEY
from tests.gateway.sockets import assert_kept_alive

from distserve.gateway import client
from distserve.gateway.client import LineTooLong, json_lines, make_session
from distserve.wire.auth import bearer

NUMBERS = msgspec.json.Decoder(list[int])


def answer_of(parts: list[bytes]) -> Any:
    async def iter_any() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    return SimpleNamespace(content=SimpleNamespace(iter_any=iter_any))


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=8),
    st.lists(st.integers(0, 120), max_size=30),
    st.booleans(),
)
async def test_lines_are_whole_wherever_they_were_cut(
    lines: list[list[int]], cuts: list[int], blank: bool
) -> None:
    text = b"".join(msgspec.json.encode(line) + b"\n\n"[: 1 + blank] for line in lines)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    parts = [text[a:b] for a, b in pairwise(places)]
    assert [line async for line in json_lines(answer_of([*parts, b"[1, 2"]), NUMBERS)] == lines


async def test_an_engine_s_lost_machine_is_noticed_by_the_kernel(house: Any) -> None:
    async with (
        make_session({"Authorization": bearer(KEY)}) as http,
        http.get(f"{house.prefills[0].url}/state") as answer,
    ):
        assert_kept_alive(answer)


async def test_a_line_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_LINE_BYTES", 100)
    fits = [b"[1]\n[", b"1," * 40, b"1]\n"] * 3
    assert len([line async for line in json_lines(answer_of(fits), NUMBERS)]) == 6
    with pytest.raises(LineTooLong, match="longer than 100 bytes"):
        [line async for line in json_lines(answer_of([*fits, b"[", b"1," * 60]), NUMBERS)]
    with pytest.raises(LineTooLong):
        [line async for line in json_lines(answer_of([b"[" + b"1," * 60 + b"1]\n"]), NUMBERS)]
