"""Offline speed of the model runner beside transformers' `generate`, same weights, same run.

    python benchmarks/offline.py [--threads 1 2] [--repeats 5]

Each side generates 64 greedy tokens for 32 prompts of 128 tokens (a random Llama: hidden 256,
4 layers, 8 heads, 4 KV heads, vocabulary 8192, float32); sides take turns, medians are printed.
Aim: ours at least 0.9 times `generate` with two threads. A busy machine shows: with more threads
than idle cores both stall.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from distserve.engine.batch import Draw, Span
from distserve.engine.loading import LoadedModel, load_model
from distserve.engine.pool import KvPool, layout_for
from distserve.engine.rank import Rank
from distserve.engine.runner import ModelRunner
from distserve.wire.dialect import SamplingParams

PROMPTS, PROMPT_TOKENS, OUTPUT_TOKENS, BLOCK_TOKENS = 32, 128, 64, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, help="a model folder instead of the random Llama")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or _random_llama(Path(folder))
        for threads in options.threads:
            torch.set_num_threads(threads)
            _compare(path, threads, options.repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"peak memory of both sides together: {peak} MiB")


def _random_llama(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _compare(path: Path, threads: int, repeats: int) -> None:
    from transformers import AutoModelForCausalLM

    model = load_model(path, "float32")
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(5, model.vocab_size, (PROMPTS, PROMPT_TOKENS), generator=generator)
    peer = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    def generate() -> list[list[int]]:
        with torch.inference_mode():
            out = peer.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                min_new_tokens=OUTPUT_TOKENS,
                max_new_tokens=OUTPUT_TOKENS,
                do_sample=False,
                eos_token_id=None,
            )
        tokens: list[list[int]] = out[:, PROMPT_TOKENS:].tolist()
        return tokens

    blocks = PROMPTS * -(-(PROMPT_TOKENS + OUTPUT_TOKENS) // BLOCK_TOKENS)
    layout = layout_for(
        model.kv, Rank(), dtype=model.dtype, block_tokens=BLOCK_TOKENS, budget_bytes=1 << 28
    )
    pool = KvPool.create(layout)
    assert layout.blocks >= blocks, "the pool is too small for this model"
    runner = ModelRunner(model, pool)

    ours, theirs = [], []
    for repeat in range(repeats + 1):
        a, own_tokens = _timed(lambda: _run(runner, model, prompts.tolist()))
        b, peer_tokens = _timed(generate)
        if repeat:  # the first one warms both up
            ours.append(a)
            theirs.append(b)
    same = sum(x == y for x, y in zip(own_tokens, peer_tokens, strict=True))
    total = PROMPTS * OUTPUT_TOKENS
    own, other = statistics.median(ours), statistics.median(theirs)
    print(
        f"{threads} thread(s): ours {total / own:.0f} tok/s, generate {total / other:.0f} tok/s, "
        f"ratio {other / own:.2f}; {same} of {PROMPTS} texts equal",
        flush=True,
    )
    pool.close()


def _timed(work: Callable[[], list[list[int]]]) -> tuple[float, list[list[int]]]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _run(
    runner: ModelRunner, model: LoadedModel, prompts: Sequence[Sequence[int]]
) -> list[list[int]]:
    """What the engine does for one batch: all prompts in one step, then one token a step."""
    params = SamplingParams(seed=0, max_tokens=OUTPUT_TOKENS, temperature=0.0)
    width = -(-(PROMPT_TOKENS + OUTPUT_TOKENS) // BLOCK_TOKENS)
    # Blocks as a used pool gives them: a sequence's are not adjacent.
    tables = [[block * len(prompts) + i for block in range(width)] for i in range(len(prompts))]
    outputs: list[list[int]] = [[] for _ in prompts]
    for step in range(OUTPUT_TOKENS):
        spans = []
        for prompt, output, table in zip(prompts, outputs, tables, strict=True):
            tokens, start = (output[-1:], PROMPT_TOKENS + step - 1) if step else (prompt, 0)
            spans.append(Span(tokens, start, table, [Draw(params, 0, prompt, output)]))
        for output, result in zip(outputs, runner.run(spans), strict=True):
            output.append(result.draws[0].token)
    return outputs


if __name__ == "__main__":
    main()
