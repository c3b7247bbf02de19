"""When a leg's condition holds: tested by the engine against its own state before it takes one."""

from collections.abc import Iterable


def is_idle(waiting: int, running: int) -> bool:
    return waiting == 0 and running == 0


def is_stall_free(prefill_ms: float, decoding_tpot_ms: Iterable[float | None]) -> bool:
    """Whether a prefill of `prefill_ms` (predicted) stalls no running decode beyond its time per
    output token. A decode without an aim of its own may not be stalled at all."""
    return all(aim is not None and prefill_ms <= aim for aim in decoding_tpot_ms)
