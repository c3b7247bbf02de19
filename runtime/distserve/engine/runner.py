"""Runs the model over the spans of one step: the only place where tensors are computed.

The scheduler's loop calls `run` once a step, from one thread at a time.
"""

import time
from collections.abc import Sequence

import torch

from distserve.engine.attention import AttentionStep, Context, NewSpan
from distserve.engine.batch import Draw, Sampled, Span, SpanResult
from distserve.engine.loading import LoadedModel
from distserve.engine.memory import give_back_free_memory
from distserve.engine.pool import KvPool
from distserve.engine.sampler import Sampler, token_logprobs
from distserve.wire.dialect import SamplingParams
from distserve.wire.messages import TokenLogprobs

_SCORED_VALUES = 4 << 20
"""Prompt scores are made from at most so many logits at a time (a prompt's could be gigabytes)."""
_WARM_UP_TOKENS = 1024
_SIZES = 16
"""Of steps that are computed in half precision, from one power of two to the next."""


class ModelRunner:
    """`model` on `pool`; two of them in one process do not know of each other."""

    def __init__(self, model: LoadedModel, pool: KvPool) -> None:
        self._body = model.body
        self._vocab_size = model.vocab_size
        self._dtype = next(model.body.model.parameters()).dtype
        self._pool = pool
        self._sampler = Sampler(frozenset(model.eos_token_ids))

    def run(self, spans: Sequence[Span]) -> list[SpanResult]:
        """One forward pass over `spans`; results in their order.

        Writes the KV of every new token into the spans' blocks; several draws of a span read one
        row. Shared blocks must be full and computed already: nothing here guards them.
        """
        # Decoding rows first: attention takes them as one slice (see attention.py).
        order = sorted(range(len(spans)), key=lambda index: len(spans[index].tokens) > 1)
        with torch.inference_mode():
            results = self._run([spans[index] for index in order])
        placed = [SpanResult()] * len(spans)
        for index, result in zip(order, results, strict=True):
            placed[index] = result
        return placed

    def warm_up(self, max_tokens: int, max_seqs: int) -> float:
        """Run a prefill and a decode step, so that the first request does not pay for lazy
        initialisation; then give back what start-up no longer needs. Overwrites the pool's
        blocks: before anything is served. Returns the milliseconds of a prompt token, which are
        more than later ones take.

        Long prefills initialise no more than one of _WARM_UP_TOKENS, but touch the whole pool.
        """
        layout = self._pool.layout
        tokens = max(1, min(max_tokens, layout.blocks * layout.block_tokens, _WARM_UP_TOKENS))
        params = SamplingParams(seed=0, max_tokens=1, temperature=1.0)
        draw = Draw(params, choice=0, prompt=[0], output=[])
        table = range(-(-tokens // layout.block_tokens))
        begun = time.perf_counter()
        self.run([Span([0] * tokens, 0, table, [draw])])
        took_ms = (time.perf_counter() - begun) * 1000
        self.run([Span([0], 0, [0], [draw])] * max(1, max_seqs))
        give_back_free_memory()
        return took_ms / tokens

    def _run(self, spans: Sequence[Span]) -> list[SpanResult]:
        hidden = self._hidden(spans)
        stops = _stops(spans)
        sampled = iter(self._sampled(hidden, spans, stops))
        results = []
        for span, stop in zip(spans, stops, strict=True):
            scores: list[TokenLogprobs] = []
            if span.score_prompt is not None:
                rows = hidden[stop - len(span.tokens) : stop]
                scores = self._prompt_scores(rows, span, span.score_prompt)
            results.append(SpanResult([next(sampled) for _ in span.draws], scores))
        return results

    def _hidden(self, spans: Sequence[Span]) -> torch.Tensor:
        decodes = [Context(s.stop, s.block_table) for s in spans if len(s.tokens) == 1]
        prefills = [
            NewSpan(s.start, len(s.tokens), s.block_table) for s in spans if len(s.tokens) > 1
        ]
        step = AttentionStep(self._pool, decodes, prefills, self._dtype)
        tokens = [token for span in spans for token in span.tokens]
        positions = [p for span in spans for p in range(span.start, span.stop)]
        rows = len(tokens)
        padding = [0] * (padded(rows, self._dtype) - rows)
        hidden = self._body.hidden(
            torch.tensor(tokens + padding), torch.tensor(positions + padding), step
        )
        return hidden[:rows]

    def _sampled(
        self, hidden: torch.Tensor, spans: Sequence[Span], stops: Sequence[int]
    ) -> list[Sampled]:
        """For every draw of every span, in order. The head sees a span's last row once."""
        drawing = [(span, stop) for span, stop in zip(spans, stops, strict=True) if span.draws]
        if not drawing:
            return []
        logits = self._body.logits(hidden[[stop - 1 for _, stop in drawing]])
        if any(len(span.draws) > 1 for span, _ in drawing):
            times = torch.tensor([len(span.draws) for span, _ in drawing])
            logits = logits.repeat_interleave(times, dim=0)
        return self._sampler.sample(logits, [draw for span, _ in drawing for draw in span.draws])

    def _prompt_scores(
        self, rows: torch.Tensor, span: Span, alternatives: int
    ) -> list[TokenLogprobs]:
        targets = list(span.tokens[1:])
        if span.next_token is not None:
            targets.append(span.next_token)
        group = max(1, _SCORED_VALUES // self._vocab_size)
        scores: list[TokenLogprobs] = []
        for first in range(0, len(targets), group):
            part = targets[first : first + group]
            logits = self._body.logits(rows[first : first + len(part)])
            scores += token_logprobs(logits, part, alternatives)
        return scores


def padded(rows: int, dtype: torch.dtype) -> int:
    """Rows that a step of so many computes: in half precision at most a sixteenth more.

    For every number of rows that is new to it oneDNN, which multiplies half precision on CPUs,
    compiles kernels: milliseconds, as long as a small model's whole step. It keeps some 1000.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return rows
    step = max(1, (1 << rows.bit_length() - 1) // _SIZES)
    return -(-rows // step) * step


def _stops(spans: Sequence[Span]) -> list[int]:
    """Row after the last one of each span."""
    stops, row = [], 0
    for span in spans:
        row += len(span.tokens)
        stops.append(row)
    return stops
