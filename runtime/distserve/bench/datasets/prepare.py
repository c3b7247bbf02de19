"""`distserve bench prepare`: from raw files to one `.ds` file. The room's writer of data sets."""

from __future__ import annotations

import marshal
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from distserve.bench.datasets.builders import BUILDERS, Request
from distserve.bench.datasets.mixes import MIXED_OF_EACH, classes, mixed, zipf
from distserve.bench.datasets.tokens import Tokens
from distserve.bench.errors import BenchError
from distserve.bench.progress import Counting
from distserve.bench.writing import write_whole
from distserve.workload import NO_OBJECTIVES, WorkloadError, read_requests

MIXES = ("mixed", "zipf", "adaserve")
ZIPF_COUNT = 20_000


@dataclass(frozen=True)
class Order:
    """What is to be made of which files."""

    name: str
    """One of BUILDERS (raw files) or MIXES (`.ds` files)."""
    sources: Sequence[Path]
    tokenizer: Path | None = None
    seed: int = 0
    count: int | None = None
    alpha: float = 1.0
    beta: float = 0.0
    """zipf: weights 1/(x + beta)^alpha."""
    class_slo_tpots_ms: Sequence[float] | None = None
    """adaserve: of each of the sets."""


def prepare(order: Order) -> list[Request]:
    """The requests that are ordered. Raises BenchError with the cure."""
    requests = _mix(order) if order.name in MIXES else _build(order)
    if not requests:
        raise BenchError(f"no request of {order.sources[0]} keeps the rules of {order.name}")
    return requests


def _build(order: Order) -> list[Request]:
    if order.tokenizer is None:
        raise BenchError(f"{order.name} is counted in tokens; give --tokenizer tokenizer.json")
    if len(order.sources) != 1:
        raise BenchError(f"{order.name} is made of one file or folder; give one")
    (source,) = order.sources
    progress = Counting(order.name, "requests", sys.stderr)
    requests: list[Request] = []
    try:
        tokens = Tokens.of(order.tokenizer)
        made = BUILDERS[order.name](source, tokens, random.Random(order.seed))
        whole = (r for r in made if r.prompt_tokens > 0 and r.output_tokens > 0)
        for request in islice(whole, order.count):  # not one more: their tokens take the time
            requests.append(request)
            progress.one()
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        what = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise BenchError(
            f"{source} is not {order.name} as it is published: {what}; download it anew"
        ) from error
    finally:
        progress.close()
    return requests


def _mix(order: Order) -> list[Request]:
    draw = random.Random(order.seed)
    sets = [_read(source) for source in order.sources]
    if order.name == "mixed":
        return mixed(sets, draw, order.count or MIXED_OF_EACH)
    count = order.count or ZIPF_COUNT
    if order.name == "zipf":
        return zipf(sets, order.alpha, count, order.seed, order.beta)
    return classes(sets, count, draw, slo_tpots_ms=order.class_slo_tpots_ms)


def _read(source: Path) -> list[Request]:
    try:
        found = read_requests(source)
    except WorkloadError as error:
        raise BenchError(str(error)) from error
    if found.prompts is None:
        raise BenchError(f"{source} has no texts; mix .ds files")
    own = found.objectives or [NO_OBJECTIVES] * len(found)
    columns = (found.prompts, found.prompt_tokens, found.output_tokens, own)
    return [Request(*row) for row in zip(*columns, strict=True)]


def write_ds(path: Path, name: str, requests: Sequence[Request]) -> None:
    """In DistServe's and LoongServe's format at once: the rows are there under both keys.

    Requests' own objectives stand under a third, which their readers pass over. Raises BenchError.
    """
    rows = [(r.prompt, r.prompt_tokens, r.output_tokens) for r in requests]
    whole: dict[str, object] = {"dataset_name": name, "reqs": rows, "data": rows}
    if any(r.own != NO_OBJECTIVES for r in requests):
        whole["slos"] = [(r.own.ttft_ms, r.own.tpot_ms) for r in requests]
    write_whole(path, marshal.dumps(whole), "make room, or give another --ds")
