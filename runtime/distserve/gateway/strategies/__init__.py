"""One router per strategy, in a module of the strategy's name; each has `make_router`."""

import importlib

from distserve.api.strategies import STRATEGIES, StrategyName, module_name
from distserve.gateway.mixture import Mixture
from distserve.gateway.routing import MakeRouter


def router_of(strategy: StrategyName) -> MakeRouter:
    """The strategy's own router, with one besides for each set of roles that it does not have:
    units of another strategy serve until a rollout has replaced them."""
    by_roles = {kind.roles: name for name, kind in STRATEGIES.items()}
    by_roles[STRATEGIES[strategy].roles] = strategy
    names = sorted(by_roles.values(), key=lambda name: name is not strategy)
    makers = [_make_router(name) for name in names]
    return lambda policy, options: Mixture(tuple(make(policy, options) for make in makers))


def _make_router(strategy: StrategyName) -> MakeRouter:
    module = importlib.import_module(f"{__name__}.{module_name(strategy)}")
    make: MakeRouter = module.make_router
    return make
