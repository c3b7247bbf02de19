"""Translates a step into the runner's spans: the only place where positions and draws are made."""

from distserve.engine.batch import Draw, Span
from distserve.engine.blocks import BlockManager
from distserve.engine.scheduler import Entry, Step
from distserve.engine.sequence import Sequence


def spans_of(step: Step, blocks: BlockManager) -> list[Span]:
    """One span for each entry, in the step's order."""
    return [_span(entry, blocks) for entry in step.entries]


def _span(entry: Entry, blocks: BlockManager) -> Span:
    sequence, start = entry.sequence, entry.sequence.computed
    stop = start + entry.tokens
    scores = sequence.request.leg.sampling.prompt_logprobs
    wants_scores = sequence.request.wants_scores and start < len(sequence.request.leg.prompt)
    return Span(
        tokens=sequence.tokens(start, stop),
        start=start,
        block_table=blocks.table(sequence.owner),
        draws=_draws(sequence) if entry.draws else (),
        score_prompt=scores if wants_scores else None,
        next_token=(
            sequence.tokens(stop, stop + 1)[0] if wants_scores and not entry.draws else None
        ),
    )


def _draws(sequence: Sequence) -> list[Draw]:
    leg = sequence.request.leg
    if leg.sampling.max_tokens <= len(sequence.output):
        return []  # only the prompt's scores are wanted
    choices = [sequence.choice] if sequence.request.forked else leg.choices
    return [Draw(leg.sampling, choice, leg.prompt, sequence.output) for choice in choices]
