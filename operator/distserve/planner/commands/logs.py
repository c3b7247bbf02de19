"""The event and worker logs of a run as csv files, in the reference's columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distserve.planner.commands.run import write_csv
from distserve.planner.compat.steps import RequestEvent, WorkerEvent

WORKER_COLUMNS = (
    "start_time",
    "event_type",
    "num_tokens",
    "prefill_bs",
    "decode_bs",
    "prefill_batch",
    "decode_batch",
    "worker_id",
    "duration",
    "end_time",
)


def write_request_events(path: Path, events: Sequence[RequestEvent]) -> None:
    columns = ["start_time", "event_type", "worker_id", "req_id", "duration", "end_time"]
    ordered = sorted(events, key=lambda event: event.request)  # stable: time order stays

    def rows() -> Iterator[tuple[Any, ...]]:
        for event, following in zip(ordered, [*ordered[1:], None], strict=True):
            same = following is not None and following.request == event.request
            duration = following.time_ms - event.time_ms if following and same else 0.0
            yield (
                event.time_ms,
                event.event,
                event.worker,
                event.request,
                duration,
                event.time_ms + duration,
            )

    write_csv(path, columns, rows())


def write_worker_events(path: Path, events: Sequence[WorkerEvent]) -> None:
    ordered = sorted(events, key=lambda event: event.worker)

    def rows() -> Iterator[tuple[Any, ...]]:
        for event, following in zip(ordered, [*ordered[1:], None], strict=True):
            same = following is not None and following.worker == event.worker
            duration = following.time_ms - event.time_ms if following and same else 0.0
            yield (
                event.time_ms,
                event.event,
                event.tokens,
                len(event.prefill_tokens),
                len(event.decode_contexts),
                event.prefill_tokens,
                event.decode_contexts,
                event.worker,
                duration,
                event.time_ms + duration,
            )

    write_csv(path, WORKER_COLUMNS, rows())
