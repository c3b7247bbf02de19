"""Every strategy that users can name exists in the engine."""

import pytest

from distserve.api.strategies import STRATEGIES, StrategyName, StrategySpec
from distserve.engine.strategies import load_strategy


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_engine_has_it(name: StrategyName) -> None:
    assert callable(load_strategy(StrategySpec(name=name)))
