"""The tokens that clients get are those of transformers' own `generate`, however they travelled."""

import asyncio
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from distserve.models.random_weights import make_random_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

VOCABULARY = 512
OUTPUT_TOKENS = 16


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """family -> folder of a random model, made once."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            make_random_model(
                made[family], family, hidden_size=64, layers=3, heads=4,
                kv_heads=None if family == "opt" else 2, vocab_size=4096, max_positions=512, seed=3,
            )  # fmt: skip
        return made[family]

    return make


def reference(folder: Path, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """Greedy float64 continuations by transformers, one prompt at a time: no padding."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    answers = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens,
            min_new_tokens=tokens, pad_token_id=0,
        )  # fmt: skip
        answers.append(output[0, len(prompt) :].tolist())
    return answers


def mixed_prompts(count: int, seed: int) -> list[list[int]]:
    """Lengths 1 to 200, some with a common head so that prefix caches hit."""
    draw = random.Random(seed)
    head = [draw.randrange(10, VOCABULARY) for _ in range(70)]
    prompts = []
    for i in range(count):
        tail = [draw.randrange(10, VOCABULARY) for _ in range(draw.randint(1, 130))]
        prompts.append(head + tail if i % 3 == 0 else tail)
    return prompts


def greedy(prompt: Sequence[int], tokens: int = OUTPUT_TOKENS, **more: Any) -> dict[str, Any]:
    return {
        "prompt": list(prompt), "max_tokens": tokens, "min_tokens": tokens, "temperature": 0,
        "return_token_ids": True,
    } | more  # fmt: skip


async def tokens_of(fleet: Any, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    answers = await asyncio.gather(*(fleet.complete(**greedy(p)) for p in prompts))
    return [answer["choices"][0]["token_ids"] for answer in answers]


@pytest.mark.parametrize(
    ("family", "transport"),
    [
        ("llama", "SharedMemory"),
        ("llama", "TCP"),
        ("qwen2", "SharedMemory"),
        ("opt", "TCP"),
        # Transports know bytes only, families none of them.
        pytest.param("qwen2", "TCP", marks=pytest.mark.soak),
        pytest.param("opt", "SharedMemory", marks=pytest.mark.soak),
    ],
)
async def test_disaggregated_greedy_equals_generate(
    fleets: Any, model_folder: Any, family: str, transport: str
) -> None:
    folder = model_folder(family)
    prompts = mixed_prompts(32, seed=5)
    expected = await asyncio.to_thread(reference, folder, prompts, OUTPUT_TOKENS)
    fleet = await fleets(
        folder,
        transport=transport,
        # Prompts above 64 tokens are prefilled in chunks, so chunks travel while others run.
        prefill_engine=["--max-num-batched-tokens", "64"],
    )
    assert await tokens_of(fleet, prompts[:1]) == expected[:1]
    assert await tokens_of(fleet, prompts) == expected
    assert await tokens_of(fleet, prompts) == expected, "with prefix hits on both sides"
    four = await fleet.complete({"x-request-id": "trace-me-7"}, **greedy(prompts[3], n=4))
    assert [c["token_ids"] for c in four["choices"]] == [expected[3]] * 4

    decode = next(i for i in fleet.instances if i.role == "decode")
    for instance in fleet.instances:
        assert instance.migrator and "trace-me-7" in instance.migrator.log.read_text()
    samples = await fleet.metrics(f"http://{decode.host}:8102")
    moved = {
        name: value
        for name, value in samples.items()
        if name.startswith("distserve_kv_transfer_bytes_total") and transport in name
    }
    assert sum(moved.values()) > 0, f"no byte went over {transport}: {samples}"


def reference_until_close(folder: Path, prompt: Sequence[int], tokens: int) -> list[int]:
    """Greedy float32 tokens by transformers, up to the first that a rounding error could change."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([list(prompt)])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens,
        min_new_tokens=tokens, pad_token_id=0, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    best = [step[0].topk(2).values for step in output.logits]
    close = next((i for i, (a, b) in enumerate(best) if a - b < 1e-4), tokens)
    return [int(t) for t in output.sequences[0, len(prompt) : len(prompt) + close]]


async def test_float32_equals_generate_up_to_the_first_close_call(
    fleets: Any, model_folder: Any
) -> None:
    folder = model_folder("llama")
    prompts = mixed_prompts(8, seed=21)
    expected = [
        await asyncio.to_thread(reference_until_close, folder, p, OUTPUT_TOKENS) for p in prompts
    ]
    fleet = await fleets(folder, dtype="float32")
    got = await tokens_of(fleet, prompts)
    assert [g[: len(e)] for g, e in zip(got, expected, strict=True)] == expected
    assert sum(map(len, expected)) > 0.5 * len(prompts) * OUTPUT_TOKENS, "too little was compared"


async def test_preempted_requests_continue_with_the_same_tokens(
    fleets: Any, model_folder: Any
) -> None:
    folder = model_folder("llama")
    prompts = [p[:100] for p in mixed_prompts(12, seed=8)]
    expected = await asyncio.to_thread(reference, folder, prompts, 60)
    # float64, 3 layers, 2 heads of 16: 1.5 KiB a token, 24 KiB a block, so 1 MiB is 42 blocks,
    # and 12 requests of up to 160 tokens want 120.
    fleet = await fleets(folder, decode_engine=["--kv-cache", "1Mi"])
    answers = await asyncio.gather(*(fleet.complete(**greedy(p, 60)) for p in prompts))
    assert [a["choices"][0]["token_ids"] for a in answers] == expected
    decode = next(i for i in fleet.instances if i.role == "decode")
    samples = await fleet.metrics(decode.url)
    preempted = [v for k, v in samples.items() if "num_preemptions_total" in k]
    assert sum(preempted) > 0, "the pool was not small enough to test preemption"
    await fleet.assert_quiet()


@pytest.mark.parametrize("hybrid", [False, True], ids=["disaggregated", "colocated"])
async def test_replay_after_the_decode_instance_dies(
    fleets: Any, model_folder: Any, hybrid: bool
) -> None:
    folder = model_folder("llama")
    prompt = mixed_prompts(1, seed=11)[0]
    expected = (await asyncio.to_thread(reference, folder, [prompt], 200))[0]
    if hybrid:
        fleet = await fleets(folder, prefill=0, decode=0, hybrid=2, strategy="Colocated")
    else:
        fleet = await fleets(folder, prefill=1, decode=2)
    running = asyncio.create_task(fleet.complete(**greedy(prompt, 200)))

    async def decoding() -> Any:
        while True:
            for instance in fleet.instances:
                if instance.role == "prefill" or not instance.engine.alive():
                    continue
                for request in (await fleet.state(instance))["requests"]:
                    if request["tokens_out"] >= 5:
                        return instance
            await asyncio.sleep(0.005)

    victim = await asyncio.wait_for(decoding(), 20)
    victim.engine.stop(signal.SIGKILL)
    answer = await running
    assert answer["choices"][0]["token_ids"] == expected


async def test_seeded_sampling_does_not_depend_on_the_way(fleets: Any, model_folder: Any) -> None:
    folder = model_folder("llama")
    prompts = mixed_prompts(8, seed=13)
    apart = await fleets(folder)
    together = await fleets(folder, prefill=0, decode=0, hybrid=1, strategy="Colocated")
    chunked = await fleets(
        folder, prefill=0, decode=0, hybrid=1, strategy="ChunkedPrefill",
        engine=["--strategy-options", '{"chunkTokens": 32}'],
    )  # fmt: skip

    async def sample(fleet: Any) -> list[list[list[int]]]:
        answers = await asyncio.gather(
            *(
                fleet.complete(
                    prompt=p, max_tokens=24, temperature=0.9, top_p=0.95, seed=i, n=3,
                    presence_penalty=0.3, return_token_ids=True,
                )
                for i, p in enumerate(prompts)
            )
        )  # fmt: skip
        return [[c["token_ids"] for c in a["choices"]] for a in answers]

    first = await sample(apart)
    assert len({tuple(c) for a in first for c in a}) > len(prompts), "the choices do not differ"
    assert await sample(apart) == first
    assert await sample(together) == first
    assert await sample(chunked) == first


async def test_instances_of_every_strategy_behind_one_gateway(
    fleets: Any, model_folder: Any
) -> None:
    """As a rollout has them, halfway and when the last of the former ones is gone."""
    folder = model_folder("llama")
    prompts = mixed_prompts(12, seed=29)
    expected = await asyncio.to_thread(reference, folder, prompts, OUTPUT_TOKENS)
    fleet = await fleets(folder)
    for strategy in ("Colocated", "ChunkedPrefill"):
        fleet.add_instance(
            "hybrid", str(folder), transport="Auto", strategy=strategy,
            extra=["--dtype", "float64"],
        )  # fmt: skip
    fleet.publish()
    await fleet.wait_ready()

    assert await tokens_of(fleet, prompts) == expected
    for instance in fleet.instances[:2]:
        instance.engine.stop()
    fleet.publish()
    assert await tokens_of(fleet, prompts) == expected
