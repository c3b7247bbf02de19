"""Where a prompt's time went: DistServe's five stages, from what the legs report about themselves,
and before them one of the gateway's own.

    prefill leg   issued ......... begin ======== end
    decode leg           issued ............. migration begin === end ... decoding begin ====== end
      | dispatch | prefill_queue | prefill | (a) | kv_transfer | (b)                 | decode  |

dispatch is all that was before the legs that finished it: reading, tokenising, waiting for a route,
attempts that failed. decode_queue is (a) + (b): waiting for room before the transfer, for a step
after it. The pull of early chunks overlaps the prefill; only what lies after it counts as
kv_transfer, so that the stages add up to the time between the prompt's arrival and its end. The
legs' own clocks are put on this process's by when each leg was issued.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distserve.wire.dialect import End

STAGES = ("dispatch", "prefill_queue", "prefill", "kv_transfer", "decode_queue", "decode")


@dataclass(frozen=True)
class LegReport:
    issued: float
    """Seconds, monotonic."""
    end: End


@dataclass(frozen=True)
class StageRecorder:
    observe_stage: Callable[[str, float], None]
    """(stage, seconds)"""
    observe_transfer: Callable[[str, int], None]
    """(transport, bytes)"""

    def record_prompt(self, arrived: float, reports: Sequence[LegReport]) -> None:
        """Of the legs that finished it, once all of it is finished."""
        for stage, seconds in stage_seconds(arrived, reports).items():
            self.observe_stage(stage, seconds)

    def record_attempt(self, reports: Sequence[LegReport]) -> None:
        for report in reports:
            if report.end.transport:
                self.observe_transfer(report.end.transport, report.end.transfer_bytes)


def lifecycle_seconds(reports: Sequence[LegReport]) -> dict[str, float]:
    """The known instants of a prompt, on this process's clock, by DistServe's names.

    `reports`: [both] or [prefill, decode]. A transfer begins where it is waited for: the pull of
    early chunks, beside the prefill, is not told.
    """
    at: dict[str, float] = {}
    for report in reports:
        at.setdefault("issued", report.issued)
        life = report.end.lifecycle
        for name in life.__struct_fields__:
            ms = getattr(life, name)
            if ms is not None:
                at.setdefault(name.removesuffix("_ms"), report.issued + ms / 1000)
    if {"context_end", "migration_begin", "migration_end"} <= at.keys():
        at["migration_begin"] = max(at["migration_begin"], at["context_end"])
        at["migration_end"] = max(at["migration_end"], at["migration_begin"])
    return at


def stage_seconds(arrived: float, reports: Sequence[LegReport]) -> dict[str, float]:
    """Stages of which both ends are known. None at all where the prefill's are not: nobody knows
    then how much of what was before the decode was dispatch.

    `arrived`: seconds, monotonic.
    """
    at = lifecycle_seconds(reports)
    if not {"context_begin", "context_end"} <= at.keys():
        return {}
    found = {
        "dispatch": at["issued"] - arrived,
        "prefill_queue": at["context_begin"] - at["issued"],
        "prefill": at["context_end"] - at["context_begin"],
    }
    if "decoding_begin" in at:
        queue = at["decoding_begin"] - at["context_end"]
        if {"migration_begin", "migration_end"} <= at.keys():
            found["kv_transfer"] = at["migration_end"] - at["migration_begin"]
            queue -= found["kv_transfer"]
        found["decode_queue"] = max(queue, 0.0)
    if {"decoding_begin", "decoding_end"} <= at.keys():
        found["decode"] = at["decoding_end"] - at["decoding_begin"]
    return {stage: max(seconds, 0.0) for stage, seconds in found.items()}
