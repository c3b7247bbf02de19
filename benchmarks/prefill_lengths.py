"""Prefill steps of prompts of many lengths, padded to a few sizes or as they are.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.prefill_lengths [--prompts 900] [--rounds 3]

For every number of rows that is new to it oneDNN compiles kernels. The engine pads a step in half
precision to one of few sizes (`padded`); beside it the same prompts as they are, each way in a
process of its own, since what is compiled serves a whole process; by turns, rounds with prompts of
their own. A step of 128 tokens passes after each of them, for which nothing is compiled any more:
how fast the machine was meanwhile. Milliseconds of a step of the whole model, means (least to most
of the rounds' means), by the order in which the prompts come and by their length. Model: the tiny
one that ships (bfloat16), one thread.
"""

import argparse
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

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
PARTS, KNOWN = 3, 128
BOUNDS = 64, 128, 256, LONGEST + 1
GREEDY = SamplingParams(seed=0, max_tokens=1, temperature=0.0)
WAYS = {"padded": True, "as they are": False}


def lengths_of(prompts: int, seed: int) -> list[int]:
    """As in the planner's truth: lognormal, 128 in the mean, 256 at p90."""
    draw = random.Random(seed)
    return [min(LONGEST, max(8, round(draw.lognormvariate(4.57, 0.76)))) for _ in range(prompts)]


def prefill_ms(runner: ModelRunner, tokens: int) -> float:
    table = range(-(-tokens // BLOCK_TOKENS))
    span = Span([1] * tokens, 0, table, [Draw(GREEDY, 0, [1], [])])
    begun = time.perf_counter()
    runner.run([span])
    return 1000 * (time.perf_counter() - begun)


def steps_ms(pads: bool, lengths: list[int]) -> list[tuple[float, float]]:
    """Of each prompt's step, and of the known one after it. In a process of its own."""
    torch.set_num_threads(1)
    if not pads:
        running.padded = lambda rows, _: rows
    with tempfile.TemporaryDirectory() as scratch:
        model = load_model(model_folder("tiny", Path(scratch)))
    layout = layout_for(
        model.kv, Rank(), dtype=model.dtype, block_tokens=BLOCK_TOKENS, budget_bytes=64 << 20
    )
    pool = KvPool.create(layout)
    pool.tensor.zero_()
    runner = ModelRunner(model, pool)
    for _ in range(3):
        prefill_ms(runner, KNOWN)
    found = [(prefill_ms(runner, tokens), prefill_ms(runner, KNOWN)) for tokens in lengths]
    pool.close()
    return found


def rows_of(lengths: list[int]) -> Iterator[tuple[str, list[int]]]:
    """Names of what is told together, and which of the prompts are it."""
    each = len(lengths) // PARTS
    for first in range(0, each * PARTS, each):
        yield f"prompts {first + 1} to {first + each}", list(range(first, first + each))
    late = range(each * (PARTS - 1), len(lengths))
    for low, high in zip((1, *BOUNDS), BOUNDS, strict=False):
        if of := [nth for nth in late if low <= lengths[nth] < high]:
            yield f"of the last of these, {low} to {high - 1} tokens", of


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=900)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.prompts < PARTS:
        parser.error(f"--prompts is at least {PARTS}")
    told: dict[tuple[str, str], list[float]] = defaultdict(list)
    for seed in range(options.rounds):
        lengths = lengths_of(options.prompts, seed)
        for way, pads in WAYS.items():
            with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                found = alone.submit(steps_ms, pads, lengths).result(timeout=600)
            for name, of in rows_of(lengths):
                told[name, way].append(fmean(found[nth][0] for nth in of))
            told[f"{KNOWN} tokens again and again", way].append(fmean(ms for _, ms in found))
    print(f"| ms of a step | {' | '.join(WAYS)} |\n|---|---|---|")
    for name in dict.fromkeys(name for name, _ in told):
        sides = (told[name, way] for way in WAYS)
        cells = (f"{fmean(some):.1f} ({min(some):.1f} to {max(some):.1f})" for some in sides)
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
