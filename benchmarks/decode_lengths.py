"""Decode steps of batches whose contexts are of several lengths, gathered in three ways.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.decode_lengths [--steps 40]

The engine gathers contexts of nearly one length together (`grouped`). Beside it, in turns: all of
them padded to the longest (`one batch`), and each one alone (`one by one`). Milliseconds of a step
of the whole model, median and half of the distance between the quartiles. Models: the tiny one that
ships (bfloat16) and a random Llama of 27 M parameters (float32), one thread.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles

import torch
from benchmarks.planner_truth.deployment import MODELS, model_folder

from distserve.engine import attention
from distserve.engine.batch import Draw, Span
from distserve.engine.loading import load_model
from distserve.engine.pool import KvPool, layout_for
from distserve.engine.rank import Rank
from distserve.engine.runner import ModelRunner
from distserve.wire.dialect import SamplingParams

BLOCK_TOKENS, LONGEST = 16, 640
BATCHES = 4, 8, 16, 32
GREEDY = SamplingParams(seed=0, max_tokens=LONGEST, temperature=0.0)
SIDES = "grouped", "one batch", "one by one"


def spread_lengths(batch: int) -> list[int]:
    """Evenly over a decade, in no order."""
    lengths = [round(LONGEST * 10 ** -(nth / max(1, batch - 1))) for nth in range(batch)]
    random.Random(0).shuffle(lengths)
    return lengths


def spans_of(lengths: list[int], blocks: int) -> list[Span]:
    """One decode step of each, over blocks that lie apart."""
    free = list(range(blocks))
    random.Random(1).shuffle(free)
    spans = []
    for length in lengths:
        table = [free.pop() for _ in range(-(-length // BLOCK_TOKENS))]
        prompt = [1] * (length - 1)
        spans.append(Span([1], length - 1, table, [Draw(GREEDY, 0, prompt, [1])]))
    return spans


@contextmanager
def side_of(name: str, pool: KvPool) -> Iterator[None]:
    scratch, padding = pool.scratch, attention._PADDING_BYTES
    try:
        if name == "one batch":
            pool.scratch = scratch.new_empty((256 << 20) // scratch.itemsize)
            attention._PADDING_BYTES = pool.scratch.nbytes
        elif name == "one by one":
            pool.scratch = scratch[:0]
        yield
    finally:
        pool.scratch, attention._PADDING_BYTES = scratch, padding


def measure(runner: ModelRunner, pool: KvPool, spans: list[Span], steps: int) -> list[str]:
    took: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(steps):
        for side in SIDES:
            with side_of(side, pool):
                runner.run(spans)
                began = time.perf_counter()
                runner.run(spans)
                took[side].append(1000 * (time.perf_counter() - began))
    return [told(took[side]) for side in SIDES]


def told(milliseconds: list[float]) -> str:
    low, _, high = quantiles(milliseconds, n=4)
    return f"{median(milliseconds):.1f} ±{(high - low) / 2:.1f}"


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=40, help="of each kind")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| model | contexts | tokens in all | {' | '.join(SIDES)} |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for name in MODELS:
            model = load_model(model_folder(name, Path(scratch)))
            layout = layout_for(
                model.kv, Rank(), dtype=model.dtype, block_tokens=BLOCK_TOKENS,
                budget_bytes=512 << 20,
            )  # fmt: skip
            pool = KvPool.create(layout)
            pool.tensor.zero_()
            runner = ModelRunner(model, pool)
            for batch in BATCHES:
                for kind, lengths in (
                    ("from 64 to 640", spread_lengths(batch)), ("of 256", [256] * batch)
                ):  # fmt: skip
                    cells = measure(runner, pool, spans_of(lengths, layout.blocks), options.steps)
                    row = (name, f"{batch} {kind}", str(sum(lengths)), *cells)
                    print(f"| {' | '.join(row)} |", flush=True)
            pool.close()


if __name__ == "__main__":
    main()
