"""What is sent as a prompt: a set's own text, or one that is made up in its length.

Made up are token ids, which any server counts as they were asked for, or words, which every
endpoint takes. How many tokens a server sees in words is for its tokenizer and its chat template to
say; its usage tells. Called by `plan`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

from distserve.bench.errors import BenchError
from distserve.workload import PREFIX_BLOCK_TOKENS, RequestSet

_T = TypeVar("_T")

MOST_MADE_UP_TOKENS = 100_000_000  # 36 bytes each
_WORDS = """
about after again all also always and another any are back based because been before being between
both but call can case change check close code common could current data different done each end
even first following for found from full get given group hand has have help here how into just keep
last left level like line list long look main make many may mean message more most must name need
never new next not now number off old once one only open order other our out over own part point
possible present read reason result return right run same second see send set should since some
start still stop such support sure table test text than that the their them then there they this
time true two under until use value want was way were what when where which while will with within
without word work would write you your
"""
"""Short English words, most of which a vocabulary holds whole: near one token each."""


def has_own_texts(requests: RequestSet, prompt_format: str) -> bool:
    """Whether what is sent are the set's texts; all else is made up."""
    return prompt_format != "tokens" and requests.prompts is not None


def check_made_up(requests: RequestSet, prompt_format: str) -> None:
    """Raises BenchError where prompts cannot be made up: they would not fit the memory, or there
    are ids of blocks of another length than ours."""
    if has_own_texts(requests, prompt_format):
        return
    tokens = sum(requests.prompt_tokens)
    if tokens > MOST_MADE_UP_TOKENS:
        raise BenchError(
            f"{tokens} tokens of made-up prompts do not fit the memory; ask for fewer requests "
            "or leave long ones out by --max-model-len"
        )
    for length, blocks in zip(requests.prompt_tokens, _blocks(requests), strict=True):
        asked = -(-length // PREFIX_BLOCK_TOKENS)
        if blocks and len(blocks) != asked:
            raise BenchError(
                f"{requests.name}: a prompt of {length} tokens has {len(blocks)} hash_ids, not "
                f"{asked}, one for each {PREFIX_BLOCK_TOKENS} tokens begun; take them out of the "
                "file to have no prefixes shared"
            )


def prompts_of(
    requests: RequestSet, prompt_format: str, token_ids: range, seed: str
) -> list[str | list[int]]:
    """One for each request. `auto` sends the set's own texts where it has them, else token ids;
    `text` makes up words where there are none; `tokens` always makes up ids.

    Each is drawn anew, and with another `seed` all are others, so that no prefix cache answers in
    the engine's stead; but where the set says what its prompts share, they share that and no more.
    Raises as `check_made_up`.
    """
    if requests.prompts is not None and has_own_texts(requests, prompt_format):
        # Half a surrogate pair, which some chat logs have, is no UTF-8 and so no JSON.
        return [text.encode("utf-8", "replace").decode() for text in requests.prompts]
    check_made_up(requests, prompt_format)
    if prompt_format == "text":
        return [" ".join(words) for words in _drawn(requests, _WORDS.split(), seed)]
    return [*_drawn(requests, token_ids, seed)]


def _drawn(requests: RequestSet, population: Sequence[_T], seed: str) -> Iterator[list[_T]]:
    """Of each request as many as its prompt is long. A block is a function of its id and the seed,
    and its beginning that of a shorter one."""
    draw = random.Random(f"prompts {seed}")  # apart from the draws of lengths and times
    for tokens, blocks in zip(requests.prompt_tokens, _blocks(requests), strict=True):
        prompt: list[_T] = []
        for block in blocks:
            shared = random.Random(f"block {block} {seed}")
            prompt += shared.choices(population, k=min(PREFIX_BLOCK_TOKENS, tokens - len(prompt)))
        yield prompt or draw.choices(population, k=tokens)


def _blocks(requests: RequestSet) -> Sequence[Sequence[int]]:
    return requests.prefix_blocks or [()] * len(requests)
