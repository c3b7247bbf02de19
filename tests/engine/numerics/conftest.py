"""Small models of each family, and one sequence after another through a real runner."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from distserve.engine.batch import Draw, Sampled, Span
from distserve.engine.loading import LoadedModel, load_model
from distserve.engine.pool import KvPool, layout_for
from distserve.engine.rank import Rank
from distserve.engine.runner import ModelRunner
from distserve.models.random_weights import make_random_model
from distserve.wire.dialect import SamplingParams

BLOCK_TOKENS = 8
KV_HEADS = {"llama": 2, "qwen2": 2, "qwen3": 1, "mistral": 2, "opt": None}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            path = tmp_path_factory.mktemp(family)
            made[family] = make_random_model(
                path,
                family,
                hidden_size=64,
                layers=3,
                heads=4,
                kv_heads=KV_HEADS[family],
                vocab_size=512,
                max_positions=512,
                shards=2 if family == "qwen2" else 1,
            )
        return made[family]

    return folder


@dataclass
class Running:
    prompt: list[int]
    table: list[int]
    output: list[int] = field(default_factory=list)


@dataclass
class Bench:
    """A model on a pool, with blocks dealt out in a scattered order."""

    model: LoadedModel
    pool: KvPool
    runner: ModelRunner
    free: list[int]

    def sequence(self, prompt: Sequence[int], room: int = 64) -> Running:
        blocks = -(-(len(prompt) + room) // BLOCK_TOKENS)
        return Running(list(prompt), [self.free.pop() for _ in range(blocks)])

    def prefill(
        self,
        sequences: Sequence[Running],
        params: SamplingParams,
        chunk: int | None = None,
        choices: Sequence[int] = (0,),
    ) -> list[list[Sampled]]:
        """All prompts packed into one step, or in chunks of `chunk` tokens. Draws not appended."""
        longest = max(len(s.prompt) for s in sequences)
        chunk = chunk or longest
        drawn: dict[int, list[Sampled]] = {}
        for start in range(0, longest, chunk):
            spans, rows = [], []
            for row, s in enumerate(sequences):
                tokens = s.prompt[start : start + chunk]
                if not tokens:
                    continue
                last = start + len(tokens) == len(s.prompt)
                draws = [Draw(params, c, s.prompt, []) for c in choices] if last else []
                spans.append(Span(tokens, start, s.table, draws))
                rows.append(row)
            for row, result in zip(rows, self.runner.run(spans), strict=True):
                if result.draws:
                    drawn[row] = result.draws
        return [drawn[row] for row in range(len(sequences))]

    def decode(
        self, sequences: Sequence[Running], params: SamplingParams, choice: int = 0
    ) -> list[Sampled]:
        spans = [
            Span(
                s.output[-1:],
                len(s.prompt) + len(s.output) - 1,
                s.table,
                [Draw(params, choice, s.prompt, list(s.output))],
            )
            for s in sequences
        ]
        return [result.draws[0] for result in self.runner.run(spans)]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        chunk: int | None = None,
        together: bool = True,
    ) -> list[list[int]]:
        sequences = [self.sequence(prompt) for prompt in prompts]
        groups = [sequences] if together else [[s] for s in sequences]
        for group in groups:
            for s, drawn in zip(group, self.prefill(group, params, chunk), strict=True):
                s.output.append(drawn[0].token)
            for _ in range(params.max_tokens - 1):
                for s, sampled in zip(group, self.decode(group, params), strict=True):
                    s.output.append(sampled.token)
        for s in sequences:
            self.free += s.table
        return [s.output for s in sequences]


@pytest.fixture
def bench(model_folder: Callable[[str], Path]) -> Iterator[Callable[..., Bench]]:
    pools: list[KvPool] = []

    def build(family: str = "llama", dtype: str = "float64") -> Bench:
        model = load_model(model_folder(family), dtype)
        layout = layout_for(
            model.kv, Rank(), dtype=dtype, block_tokens=BLOCK_TOKENS, budget_bytes=8 << 20
        )
        pool = KvPool.create(layout)
        pools.append(pool)
        order = torch.randperm(layout.blocks, generator=torch.Generator().manual_seed(3))
        return Bench(model, pool, ModelRunner(model, pool), order.tolist())

    yield build
    for pool in pools:
        pool.close()


@pytest.fixture
def prompts() -> list[list[int]]:
    """Mixed lengths: one token, a block exactly, around a block, many blocks."""
    generator = torch.Generator().manual_seed(7)
    return [
        torch.randint(5, 512, (length,), generator=generator).tolist()
        for length in (1, 7, 8, 9, 40, 133)
    ]
