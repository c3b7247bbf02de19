"""How long a step takes: measured coefficients -> milliseconds.

The planner simulates with it and the router and schedulers predict with it, so that what was
planned and what is decided at run time come from one formula:

    prefill  (a + b * sum(l) + c * sum(l^2)) / pp      l: prompt tokens of each request
    decode   (a + b * sum(context) + c * n) / pp       n: requests in the batch

Each value is the time of one pipeline stage. Coefficients belong to a model, a tensor parallel
degree and a device; pipelining is the division, not a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Coefficients(NamedTuple):
    """Intercept (ms) and the two slopes of one formula above."""

    a: float
    b: float
    c: float


@dataclass(frozen=True)
class TimeModel:
    """Step times of one model at one tensor parallel degree.

    Decode has two fits: below `large_batch` requests (memory bound) and from there on. Where
    kernels change their way more often, `decode_larger` has further ones: from how many requests
    on, in ascending order above `large_batch`.
    """

    prefill: Coefficients
    decode_small: Coefficients
    decode_large: Coefficients
    large_batch: int = 95
    decode_larger: tuple[tuple[int, Coefficients], ...] = ()

    def prefill_ms(self, tokens: int, squared_tokens: int, pp: int = 1) -> float:
        """One stage of prefilling prompts of `tokens` in sum and `squared_tokens` in squares."""
        a, b, c = self.prefill
        return (a + b * tokens + c * squared_tokens) * (1 / pp)

    def decode(self, batch_size: int) -> Coefficients:
        """The fit that holds for this batch size."""
        if batch_size < self.large_batch:
            return self.decode_small
        found = self.decode_large
        for border, larger in self.decode_larger:
            if batch_size < border:
                break
            found = larger
        return found

    def decode_ms(self, batch_size: int, context_tokens: int, pp: int = 1) -> float:
        """One stage of one decode step over `context_tokens` in sum."""
        a, b, c = self.decode(batch_size)
        return (a + b * context_tokens + c * batch_size) * (1 / pp)

    def mixed_ms(
        self,
        tokens: int,
        squared_tokens: int,
        batch_size: int,
        context_tokens: int,
        pp: int = 1,
    ) -> float:
        """One stage of a step that prefills a chunk and decodes a batch together.

        The two parts share one pass over the weights, so the larger intercept counts once and the
        slopes add. No profile measures mixed steps: this is an estimate.
        """
        if batch_size == 0:
            return self.prefill_ms(tokens, squared_tokens, pp)
        if tokens == 0:
            return self.decode_ms(batch_size, context_tokens, pp)
        decode = self.decode(batch_size)
        prefill_slopes = self.prefill.b * tokens + self.prefill.c * squared_tokens
        decode_slopes = decode.b * context_tokens + decode.c * batch_size
        return (max(self.prefill.a, decode.a) + prefill_slopes + decode_slopes) * (1 / pp)
