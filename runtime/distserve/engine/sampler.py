"""Chooses tokens from logits, for all rows of a step at once; the runner calls it once a step.

Order of what is applied (vLLM's): penalties, logit bias, banned end tokens | temperature, min-p,
top-k, top-p | one uniform number picks from the cumulated probabilities in the order of token ids.
The last keeps a draw the same when logits differ in their last bits, as they do between a chunked
and a whole prefill; sorting by probability would not.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch

from distserve.engine.batch import Draw, Sampled
from distserve.engine.ending import banned_tokens
from distserve.engine.noise import uniform
from distserve.wire.dialect import SamplingParams
from distserve.wire.messages import TokenLogprobs

_BATCH_VALUES = 4 << 20
"""Rows are copied in groups of so many logits: in float64 that takes 32 MiB each time. So whatever
requests ask for, a step takes hardly more than the warm-up's, for which there was memory."""

_CANDIDATES = 256
"""Heaviest tokens that are looked at before a row is sorted whole for top_p."""


@dataclass(frozen=True, slots=True)
class Sampler:
    eos_token_ids: Collection[int]

    def sample(self, logits: torch.Tensor, draws: Sequence[Draw]) -> list[Sampled]:
        """One token for each row of `logits` [draws, vocabulary]; `logits` is not changed.

        Log-probabilities are those of the model, before anything is applied.
        """
        vocabulary = logits.shape[-1]
        random: list[int] = []
        greedy: list[int] = []
        for row, draw in enumerate(draws):
            if draw.params.temperature > 0:
                random.append(row)
            elif self._adjusts(draw, vocabulary):
                greedy.append(row)
        tokens = logits.argmax(dim=-1)
        for rows in _groups(random, vocabulary):
            picked = [draws[row] for row in rows]
            scores = self._adjusted(logits[rows], picked)
            tokens[rows] = _pick(_filtered(scores.double(), picked), picked)
        for rows in _groups(greedy, vocabulary):
            scores = self._adjusted(logits[rows], [draws[row] for row in rows])
            tokens[rows] = scores.argmax(dim=-1)
        chosen: list[int] = tokens.tolist()
        return _with_logprobs(logits, draws, chosen)

    def _adjusts(self, draw: Draw, vocabulary: int) -> bool:
        """Whether it is not to be drawn from the model's own scores."""
        params = draw.params
        is_changed = _is_penalised(params) or bool(params.logit_bias)
        return is_changed or bool(self._banned(draw, vocabulary))

    def _adjusted(self, logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
        scores = logits
        for row, draw in enumerate(draws):
            params, banned = draw.params, self._banned(draw, logits.shape[-1])
            penalised = _is_penalised(params)
            if not (penalised or params.logit_bias or banned):
                continue
            if scores is logits:
                # Half precision would round small changes away: bfloat16 has steps of an eighth
                # from 16 on.
                wide = torch.promote_types(logits.dtype, torch.float32)
                scores = logits.to(wide, copy=True)
            if penalised:
                _penalise(scores[row], draw)
            if params.logit_bias:
                ids = torch.tensor(list(params.logit_bias))
                bias = torch.tensor(list(params.logit_bias.values()), dtype=scores.dtype)
                scores[row, ids] += bias
            scores[row].nan_to_num_()  # a huge bias or penalty overflows float32
            scores[row, banned] = float("-inf")
        return scores

    def _banned(self, draw: Draw, vocabulary: int) -> list[int]:
        """Clients may name stop tokens that the model does not have."""
        banned = banned_tokens(draw.params, self.eos_token_ids, len(draw.output))
        return [token for token in banned if 0 <= token < vocabulary]


def token_logprobs(
    logits: torch.Tensor, tokens: Sequence[int], alternatives: int
) -> list[TokenLogprobs]:
    """Log-probability and rank of a token for each row of `logits`, and the row's most likely ones.

    Ranks are vLLM's: a token that is as likely as others comes after them, so one that is not
    among the most likely has a rank behind theirs.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    logprobs = wide.log_softmax(-1)
    own = logprobs.gather(1, torch.tensor(tokens)[:, None])
    # In int64 it can take six times as long.
    ranks = (logprobs >= own).sum(-1, dtype=torch.int32)
    best = logprobs.topk(alternatives, dim=-1)
    columns = own[:, 0], best.indices, best.values, ranks
    return [
        TokenLogprobs(logprob, list(zip(ids, values, strict=True)), rank)
        for logprob, ids, values, rank in zip(*(c.tolist() for c in columns), strict=True)
    ]


def _with_logprobs(
    logits: torch.Tensor, draws: Sequence[Draw], tokens: Sequence[int]
) -> list[Sampled]:
    rows = [row for row, draw in enumerate(draws) if draw.params.logprobs is not None]
    if not rows:
        return [Sampled(token) for token in tokens]
    widest = max(draws[row].params.logprobs or 0 for row in rows)
    by_row: dict[int, TokenLogprobs] = {}
    for group in _groups(rows, logits.shape[-1]):
        found = token_logprobs(logits[group], [tokens[row] for row in group], widest)
        for row, scored in zip(group, found, strict=True):
            by_row[row] = scored.cut(draws[row].params.logprobs or 0)
    return [Sampled(token, by_row.get(row)) for row, token in enumerate(tokens)]


def _groups(rows: list[int], vocabulary: int) -> Iterator[list[int]]:
    size = max(1, _BATCH_VALUES // vocabulary)
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def _is_penalised(params: SamplingParams) -> bool:
    return bool(
        params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0
    )


def _penalise(scores: torch.Tensor, draw: Draw) -> None:
    """In place, one row. Repetition counts prompt and output, the other two the output alone."""
    params = draw.params
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*draw.prompt, *draw.output}))
        held = scores[seen]
        factor = params.repetition_penalty
        scores[seen] = torch.where(held > 0, held / factor, held * factor)
    if draw.output and (params.presence_penalty or params.frequency_penalty):
        ids, counts = torch.unique(torch.tensor(draw.output), return_counts=True)
        scores[ids] -= params.frequency_penalty * counts + params.presence_penalty


def _filtered(scores: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Probabilities [rows, vocabulary] in float64, not normalised, 0 for what is cut off."""
    params = [draw.params for draw in draws]
    scores = scores - scores.amax(dim=-1, keepdim=True)  # first: tiny temperatures overflow
    scores /= torch.tensor([p.temperature for p in params], dtype=torch.float64)[:, None]
    weights = scores.exp_()
    floors = torch.tensor([p.min_p for p in params], dtype=torch.float64)
    weights[weights < floors[:, None]] = 0.0  # the most likely one weighs 1
    narrow = [row for row, p in enumerate(params) if p.top_k > 0 or p.top_p < 1.0]
    if narrow:
        weights[narrow] = _top(weights[narrow], [params[row] for row in narrow])
    return weights


def _top(weights: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Keep the top_k heaviest, and of them the fewest that make top_p. Ties of the last are kept,
    so that the order of a sort does not matter.

    The heaviest few nearly always make top_p; only rows where they do not are sorted whole.
    """
    width = min(weights.shape[-1], max(_CANDIDATES, *(p.top_k for p in params)))
    least, settled = _least_kept(weights, params, width)
    wide = [row for row, done in enumerate(settled) if not done]
    if wide:
        least[wide], _ = _least_kept(weights[wide], [params[row] for row in wide], None)
    return torch.where(weights >= least, weights, 0.0)


def _least_kept(
    weights: torch.Tensor, params: Sequence[SamplingParams], width: int | None
) -> tuple[torch.Tensor, list[bool]]:
    """The weight [rows, 1] of the last token that stays, found among the `width` heaviest (None:
    all), and whether they were enough to tell."""
    vocabulary = weights.shape[-1]
    width = width or vocabulary
    ordered = weights.topk(width, dim=-1).values
    most = torch.tensor([p.top_k if 0 < p.top_k < width else width for p in params])[:, None]
    kept = torch.where(ordered >= ordered.gather(1, most - 1), ordered, 0.0)
    limited = torch.tensor([0 < p.top_k <= width for p in params])[:, None]
    total = torch.where(limited, kept.sum(-1, keepdim=True), weights.sum(-1, keepdim=True))
    asked = torch.tensor([p.top_p for p in params], dtype=torch.float64)[:, None] * total
    inside = (kept.cumsum(-1) - kept < asked) & (kept > 0)
    inside[:, 0] = True
    count = inside.sum(-1, keepdim=True)
    settled = limited | (count < width) if width < vocabulary else torch.ones_like(limited)
    return ordered.gather(1, count - 1), settled[:, 0].tolist()


def _pick(weights: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Invert the cumulated weights at each draw's own uniform number."""
    noise = [uniform(d.params.seed, d.choice, len(d.output)) for d in draws]
    cumulated = weights.cumsum(-1)
    at = torch.tensor(noise, dtype=torch.float64)[:, None] * cumulated[:, -1:]
    index = torch.searchsorted(cumulated, at, right=True)
    # Rounding may put the target onto the total; then the last token that weighs anything.
    heavy = weights.shape[-1] - 1 - (weights.flip(-1) > 0).int().argmax(-1, keepdim=True)
    return torch.minimum(index, heavy)[:, 0]
