"""Predicts how long a step takes, from the steps before it: the router's `step_rest_ms`.

A running average per prompt token and per decode step is enough to choose among instances; the
planner's time model needs a profile, which an engine that has just started does not have.
"""

from dataclasses import dataclass

_WEIGHT = 0.2
"""Of the newest step: a change of load shows after about five steps."""


@dataclass(slots=True)
class StepTimer:
    warm_up_token_ms: float = 0.0
    """What is known of prompts before the first one."""
    prefill_token_ms: float = 0.0
    decode_step_ms: float = 0.0

    def predict_ms(self, prefill_tokens: int, decodes: int) -> float:
        prefill_token_ms = self.prefill_token_ms or self.warm_up_token_ms
        return prefill_token_ms * prefill_tokens + self.decode_step_ms * (decodes > 0)

    def observe(self, prefill_tokens: int, decodes: int, took_ms: float) -> None:
        if not prefill_tokens:
            self.decode_step_ms = _mean(self.decode_step_ms, took_ms)
            return
        own = max(0.0, took_ms - self.decode_step_ms * (decodes > 0))
        self.prefill_token_ms = _mean(self.prefill_token_ms, own / prefill_tokens)


def _mean(average: float, newest: float) -> float:
    return newest if average == 0.0 else average + _WEIGHT * (newest - average)
