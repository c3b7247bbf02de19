"""One list of strategies; every room that acts on them has one module per name."""

import importlib.util

import pytest

from distserve.api.strategies import STRATEGIES, StrategyName, module_name, option_names

ROOMS = (
    "distserve.engine.strategies",
    "distserve.gateway.strategies",
    "distserve.planner.strategies",
)


def test_every_name_has_options_and_roles() -> None:
    assert set(STRATEGIES) == set(StrategyName)
    assert all(kind.roles for kind in STRATEGIES.values())
    assert option_names(StrategyName.CHUNKED_PREFILL) == ["chunkTokens"]


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("name", list(StrategyName))
def test_every_room_has_a_module_for_every_name(room: str, name: StrategyName) -> None:
    assert importlib.util.find_spec(f"{room}.{module_name(name)}") is not None


def test_module_names() -> None:
    assert module_name(StrategyName.CHUNKED_PREFILL) == "chunked_prefill"
    assert module_name(StrategyName.COLOCATED) == "colocated"
