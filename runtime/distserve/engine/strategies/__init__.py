"""How each named strategy composes a step; one module per name, found by the API's list."""

import importlib
from collections.abc import Callable
from typing import Any

from distserve.api.strategies import StrategySpec, module_name
from distserve.engine.scheduler import Scheduler, Step

Compose = Callable[[Scheduler, Step], None]


def load_strategy(spec: StrategySpec) -> Compose:
    """The strategy's `make(options)`: a function that fills a step from the scheduler's lines."""
    module: Any = importlib.import_module(f"{__name__}.{module_name(spec.name)}")
    compose: Compose = module.make(spec.typed_options)
    return compose
