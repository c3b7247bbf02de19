"""What a step leaves for others: collected by the engine's thread, delivered in one go."""

from collections.abc import Callable
from dataclasses import dataclass, field

from distserve.engine.blocks import CacheChanges
from distserve.wire.dialect import InstanceState, LegEvent
from distserve.wire.messages import EngineMessage


@dataclass(slots=True)
class Output:
    events: list[tuple[str, LegEvent]] = field(default_factory=list)
    """(leg, event), in order."""
    messages: list[EngineMessage] = field(default_factory=list)
    """For the migrator."""
    cache: CacheChanges | None = None
    state: InstanceState | None = None

    def __bool__(self) -> bool:
        return bool(self.events or self.messages or self.cache or self.state)


Deliver = Callable[[Output], None]
"""Called on the engine's thread; must not block."""
