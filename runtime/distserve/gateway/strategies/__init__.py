"""One router per strategy, in a module of the strategy's name; each has `make_router`."""

import importlib

from distserve.api.strategies import StrategyName, module_name
from distserve.gateway.routing import MakeRouter


def router_of(strategy: StrategyName) -> MakeRouter:
    module = importlib.import_module(f"{__name__}.{module_name(strategy)}")
    make: MakeRouter = module.make_router
    return make
