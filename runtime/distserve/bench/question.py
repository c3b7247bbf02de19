"""What a user asks for on the command line: (count, rate) pairs and token id ranges."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass
from typing import Any

from distserve.bench.errors import BenchError
from distserve.bench.slos import NAMED_SLOS

_PAIRS = 'give a list of (count, rate) such as "[(300,1.5),(300,3)]"'
_NAMED = tuple(name for name, slo in NAMED_SLOS.items() if slo.rates)
_NO_LIST = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, OverflowError)
_SHOWN = 80  # characters of a text that is wrong
TOKEN_IDS = "10:1000"
"""Those of made-up prompts where nothing else is asked."""
LABEL = r"[0-9]+-(?:recorded|inf|[0-9.]+(?:e[+-]?[0-9]+)?)"
"""The pattern of `Pair.label`."""


@dataclass(frozen=True)
class Pair:
    """How many requests at which rate per second; a rate of None keeps recorded arrival times."""

    requests: int
    rate: float | None

    @property
    def label(self) -> str:
        """As in the names of result files: DistServe writes the rate as Python prints it."""
        return f"{self.requests}-{'recorded' if self.rate is None else format(self.rate, 'g')}"

    @property
    def parameters(self) -> dict[str, Any]:
        """As a `.run.json` has them: JSON has no number for a rate of `inf`."""
        return {"requests": self.requests, "rate": "inf" if self.rate == math.inf else self.rate}


def parse_pairs(text: str, gpus: int = 1) -> list[Pair]:
    """A list of them, or the name of a paper's experiment, whose counts and rates are per GPU.
    Raises BenchError. `inf` is a rate: all at once."""
    if text in NAMED_SLOS:
        named = NAMED_SLOS[text]
        if not named.rates:
            raise BenchError(f"{text} has no published rates; choose one of {', '.join(_NAMED)}")
        return [Pair(named.requests * gpus, rate * gpus) for rate in named.rates]
    try:
        listed = ast.literal_eval(text.replace("inf", "1e999"))
        pairs = [Pair(count, rate if rate is None else float(rate)) for count, rate in listed]
    except _NO_LIST as error:
        cure = f"{_PAIRS} or a paper's name: {', '.join(_NAMED)}"
        raise BenchError(f"{_shortened(text)} is no list of pairs; {cure}") from error
    for pair in pairs:
        if not isinstance(pair.requests, int) or pair.requests < 1:
            raise BenchError(f"{pair.requests!r} is no count of requests; {_PAIRS}")
        if pair.rate is not None and (math.isnan(pair.rate) or pair.rate <= 0):
            raise BenchError(f"the rate {pair.rate:g} is not above 0; {_PAIRS}")
    if not pairs:
        raise BenchError(f"no pairs in {text!r}; {_PAIRS}")
    labels = [pair.label for pair in pairs]
    if len(set(labels)) < len(labels):
        raise BenchError(f"{text!r} has a pair twice, and both would have one file; drop one")
    return pairs


def _shortened(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def parse_token_ids(text: str) -> range:
    """`10:1000`: the ids that made-up prompts are drawn from; must lie in the vocabulary."""
    low, separator, high = text.partition(":")
    if not (separator and low.isdecimal() and high.isdecimal() and int(low) < int(high)):
        raise BenchError(f"{text!r} is no range of token ids; give LOW:HIGH such as 10:1000")
    return range(int(low), int(high))
