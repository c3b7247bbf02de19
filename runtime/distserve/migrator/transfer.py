"""What the two halves of a transfer, `source_transfer` and `target_transfer`, have in common.

Both are state machines, and pure: events and the time go in, actions come out; `source` and
`target` (the rooms that hold sockets and threads) carry them out. Events that do not fit the
state (duplicates, latecomers, other generations) change nothing.
"""

from dataclasses import dataclass

from distserve.wire import messages


@dataclass(frozen=True, slots=True)
class ToEngine:
    """An action of either half."""

    message: messages.MigratorMessage
