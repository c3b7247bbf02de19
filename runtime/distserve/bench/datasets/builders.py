"""The papers' rules that turn published raw files into requests: DistServe's and LoongServe's.

Each takes the raw file or folder that its data set is published as, and yields requests in the
raw order, drawing from the given generator where the paper draws. Called by `prepare`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distserve.bench.datasets.tokens import Tokens
from distserve.bench.errors import BenchError
from distserve.workload import NO_OBJECTIVES, Objectives

_SHORTEST_TOKENS = 4


@dataclass(frozen=True)
class Request:
    prompt: str
    prompt_tokens: int
    output_tokens: int
    own: Objectives = NO_OBJECTIVES


@dataclass(frozen=True)
class ShareGptLimits:
    total_tokens: int = 2048
    """Prompt and answer together stay below it."""
    output_tokens: int | None = None
    either_short: bool = False
    """Whether a prompt or an answer below 4 tokens leaves the request out; else both of them do."""


DISTSERVE = ShareGptLimits()
LOONGSERVE = ShareGptLimits(total_tokens=200_000, output_tokens=1000, either_short=True)


def sharegpt(
    raw: Path, tokens: Tokens, draw: random.Random, limits: ShareGptLimits = DISTSERVE
) -> Iterator[Request]:
    """Of each conversation with 3 turns or more the first 1 to n-1; the next turn is the answer."""
    judged = min if limits.either_short else max
    for conversation in json.loads(raw.read_text()):
        turns = [turn["value"] for turn in conversation["conversations"]]
        if len(turns) < 3:
            continue
        taken = draw.randint(1, len(turns) - 1)
        prompt = "\n".join(turns[:taken])
        prompt_tokens, output_tokens = tokens.count(prompt), tokens.count(turns[taken])
        if judged(prompt_tokens, output_tokens) < _SHORTEST_TOKENS:
            continue
        if prompt_tokens + output_tokens >= limits.total_tokens:
            continue
        if limits.output_tokens is not None and output_tokens >= limits.output_tokens:
            continue
        yield Request(prompt, prompt_tokens, output_tokens)


def sharegpt_long(raw: Path, tokens: Tokens, draw: random.Random) -> Iterator[Request]:
    """LoongServe's limits: answers below 1,000 tokens, 200,000 in all, nothing short."""
    return sharegpt(raw, tokens, draw, LOONGSERVE)


def humaneval(raw: Path, tokens: Tokens, draw: random.Random) -> Iterator[Request]:
    """Each problem ten times, its published solution as the answer."""
    rows = list(_json_lines(raw))
    for _ in range(10):
        for row in rows:
            yield Request(
                row["prompt"], tokens.count(row["prompt"]), tokens.count(row["canonical_solution"])
            )


def longbench(raw: Path, tokens: Tokens, draw: random.Random) -> Iterator[Request]:
    """DistServe's: the first 40,000 characters, cut to a drawn length so that OPT can hold them."""
    for row in _json_lines(raw):
        output_tokens = tokens.count(row["answers"][0])
        longest = min(2040 - output_tokens, draw.randint(1900, 2048))
        if longest < _SHORTEST_TOKENS:
            continue
        prompt = tokens.first(row["context"][:40_000], longest)
        yield Request(prompt, tokens.count(prompt), output_tokens)


def l_eval(raw: Path, tokens: Tokens, draw: random.Random) -> Iterator[Request]:
    """The document and one instruction; as many requests as there are instructions."""
    for row in _json_lines(raw):
        document_tokens = tokens.count(row["input"], special=False)
        for instruction, output in zip(row["instructions"], row["outputs"], strict=True):
            yield Request(
                row["input"] + instruction,
                document_tokens + tokens.count(instruction, special=False),
                tokens.count(output, special=False),
            )


def lv_eval(raw: Path, tokens: Tokens, draw: random.Random) -> Iterator[Request]:
    """The context and the question; all answers together are the length of the output."""
    for row in _json_lines(raw):
        prompt = row["context"] + row["input"]
        answers = " ".join(row["answers"])
        yield Request(
            prompt, tokens.count(prompt, special=False), tokens.count(answers, special=False)
        )


def alpaca(raw: Path, tokens: Tokens, draw: random.Random) -> Iterator[Request]:
    """DistServe's of Stanford Alpaca: instruction and input in one, its output as the answer."""
    for row in json.loads(raw.read_text()):
        prompt = row["instruction"] + row.get("input", "")
        prompt_tokens, output_tokens = tokens.count(prompt), tokens.count(row["output"])
        if max(prompt_tokens, output_tokens) < _SHORTEST_TOKENS:
            continue
        if prompt_tokens > 1024 or prompt_tokens + output_tokens > 2048:
            continue
        yield Request(prompt, prompt_tokens, output_tokens)


def cnn(raw: Path, tokens: Tokens, draw: random.Random) -> Iterator[Request]:
    """CNN/DailyMail as JSON lines: the article, its highlights as the answer."""
    for row in _json_lines(raw):
        yield Request(row["article"], tokens.count(row["article"]), tokens.count(row["highlights"]))


Builder = Callable[[Path, Tokens, random.Random], Iterator[Request]]

BUILDERS: dict[str, Builder] = {
    "sharegpt": sharegpt,
    "sharegpt-loongserve": sharegpt_long,
    "humaneval": humaneval,
    "longbench": longbench,
    "l-eval": l_eval,
    "lv-eval": lv_eval,
    "alpaca": alpaca,
    "cnn": cnn,
}


def _json_lines(raw: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .jsonl file, or of all below a folder, in the order of their paths."""
    files = sorted(raw.rglob("*.jsonl")) if raw.is_dir() else [raw]
    if not files:
        raise BenchError(f"{raw} holds no .jsonl files; give the folder as it was unpacked")
    for file in files:
        with file.open() as lines:
            for line in lines:
                if line.strip():
                    yield json.loads(line)
