"""Prefill steps of prompts of many lengths, padded to a few sizes or as they are.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.prefill_lengths [--prompts 300]

For every number of rows that is new to it oneDNN compiles kernels. The engine pads a step in half
precision to one of few sizes (`padded`); beside it, in turns, the same prompts as they are. And
steps of 128 tokens again and again, which nothing is compiled for: the limit. Milliseconds of a
step of the whole model by hundreds of prompts in the order in which they come, median and half of
the distance between the quartiles. Model: the tiny one that ships (bfloat16), one thread.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import torch
from benchmarks.planner_truth.deployment import model_folder

from distserve.engine import runner as running
from distserve.engine.batch import Draw, Span
from distserve.engine.loading import load_model
from distserve.engine.pool import KvPool, layout_for
from distserve.engine.rank import Rank
from distserve.engine.runner import ModelRunner
from distserve.wire.dialect import SamplingParams

BLOCK_TOKENS, LONGEST = 16, 640
PART = 100
GREEDY = SamplingParams(seed=0, max_tokens=1, temperature=0.0)


def lengths_of(prompts: int) -> list[int]:
    """As in the planner's truth: lognormal, 128 in the mean, 256 at p90."""
    draw = random.Random(0)
    return [min(LONGEST, max(8, round(draw.lognormvariate(4.57, 0.76)))) for _ in range(prompts)]


def prefill_ms(runner: ModelRunner, tokens: int) -> float:
    table = range(-(-tokens // BLOCK_TOKENS))
    span = Span([1] * tokens, 0, table, [Draw(GREEDY, 0, [1], [])])
    begun = time.perf_counter()
    runner.run([span])
    return 1000 * (time.perf_counter() - begun)


def line(name: str, times: list[float]) -> str:
    first, _, third = quantiles(times, n=4)
    return f"| {name} | {median(times):.1f} ± {(third - first) / 2:.1f} |"


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        model = load_model(model_folder("tiny", Path(scratch)))
    layout = layout_for(
        model.kv, Rank(), dtype=model.dtype, block_tokens=BLOCK_TOKENS, budget_bytes=64 << 20
    )
    pool = KvPool.create(layout)
    pool.tensor.zero_()
    runner = ModelRunner(model, pool)
    kept: Callable[..., int] = running.padded
    found: dict[str, list[float]] = {"padded": [], "as they are": [], "128 again": []}
    for _ in range(3):
        prefill_ms(runner, 128)
    for tokens in lengths_of(options.prompts):
        found["padded"].append(prefill_ms(runner, tokens))
        running.padded = lambda rows, _: rows
        found["as they are"].append(prefill_ms(runner, tokens))
        running.padded = kept
        found["128 again"].append(prefill_ms(runner, 128))
    for name, times in found.items():
        for first in range(0, len(times), PART):
            part = times[first : first + PART]
            print(line(f"{name}, {first + 1} to {first + len(part)}", part))
    pool.close()


if __name__ == "__main__":
    main()
