"""Where a request's time went, by what the server told with its answer. DistServe's five stages.

issued | context_begin | context_end | migration_begin | migration_end | decoding_begin | end
       queueing        prefill       queueing          transmission    queueing         decode

A client cannot see them. This gateway tells who asks (`x-lifecycle`), DistServe's own server told
always; of others nothing is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EVENTS = (
    "issued", "context_begin", "context_end", "migration_begin", "migration_end",
    "decoding_begin", "decoding_end",
)  # fmt: skip
STAGES = ("prefill queueing", "prefill", "transmission", "decode queueing", "decode")
HEADER = ("x-lifecycle", "true")


def of_answer(told: Any) -> dict[str, float] | None:
    """Instants in seconds since the request came to the server, of an answer's `lifecycle`.

    None where the server does not tell, or tells something else under that name.
    """
    first = told[0] if isinstance(told, list) and told else None
    if not isinstance(first, Mapping):
        return None
    found = {
        name: value / 1000
        for name in EVENTS
        if isinstance(value := first.get(f"{name}_ms"), int | float)
    }
    return found or None


def stages(at: Mapping[str, float]) -> dict[str, float] | None:
    """Seconds in each of STAGES; None unless all that must have happened is told.

    Where both phases ran in one place nothing was transmitted: a stage of no time.
    """
    end = at.get("context_end", 0.0)
    moved = "migration_begin" in at and "migration_end" in at
    begin, arrived = (at["migration_begin"], at["migration_end"]) if moved else (end, end)
    try:
        seconds = (
            at["context_begin"] - at["issued"],
            at["context_end"] - at["context_begin"],
            arrived - begin,
            (begin - at["context_end"]) + (at["decoding_begin"] - arrived),
            at["decoding_end"] - at["decoding_begin"],
        )
    except KeyError:
        return None
    return dict(zip(STAGES, seconds, strict=True))


def as_events(at: Mapping[str, float], start: float) -> list[dict[str, Any]]:
    """DistServe's `lifecycle_events`, put on the client's clock by when the request was sent."""
    return [{"event_type": name, "timestamp": start + at[name]} for name in EVENTS if name in at]
