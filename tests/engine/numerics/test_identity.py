"""The runner's tokens beside those of transformers' own `generate`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from distserve.engine.batch import Draw, Span
from distserve.wire.dialect import SamplingParams

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "opt"]
GREEDY = SamplingParams(seed=0, max_tokens=24, temperature=0.0)
MARGIN = 1e-4


def reference(path: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype)


def generate(model: Any, prompt: Sequence[int], tokens: int) -> tuple[list[int], list[float]]:
    """Tokens, and the margin of each one over the second best."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    margins = [float(best[0] - best[1]) for step in out.logits for best in step.topk(2).values]
    return out.sequences[0, len(prompt) :].tolist(), margins


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_in_float64_is_generates(family, bench, model_folder, prompts) -> None:
    model = reference(model_folder(family), torch.float64)
    expected = [generate(model, prompt, GREEDY.max_tokens)[0] for prompt in prompts]
    own = bench(family)
    assert own.generate(prompts, GREEDY) == expected
    assert own.generate(prompts, GREEDY, chunk=5) == expected
    assert own.generate(prompts, GREEDY, together=False) == expected
    assert len({tuple(text) for text in expected}) > len(prompts) // 2, "prompts are ignored"


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_in_float32_is_generates_until_a_near_tie(
    family, bench, model_folder, prompts
) -> None:
    model = reference(model_folder(family), torch.float32)
    compared = 0
    for prompt, text in zip(
        prompts, bench(family, "float32").generate(prompts, GREEDY), strict=True
    ):
        expected, margins = generate(model, prompt, GREEDY.max_tokens)
        tie = next((i for i, margin in enumerate(margins) if margin < MARGIN), len(margins))
        assert text[:tie] == expected[:tie]
        compared += tie
    assert compared > len(prompts) * GREEDY.max_tokens * 0.7


def test_a_loop_over_decodes_gives_what_the_batch_gives(
    bench, prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = bench()
    batched = own.generate(prompts, GREEDY)
    monkeypatch.setattr("distserve.engine.attention._PADDING_BYTES", 0)
    assert own.generate(prompts, GREEDY) == batched  # a batch for each length
    own.pool.scratch = own.pool.scratch[:0]
    assert own.generate(prompts, GREEDY) == batched
    own.free.sort(reverse=True)  # adjacent blocks: contexts are read in place
    assert own.generate(prompts, GREEDY) == batched


def test_prefills_and_decodes_mix_in_one_step(bench, prompts) -> None:
    own = bench()
    expected = own.generate(prompts[-2:], GREEDY)
    first, second = (own.sequence(prompt) for prompt in prompts[-2:])
    first.output.append(own.prefill([first], GREEDY)[0][0].token)
    first_half, rest = second.prompt[:50], second.prompt[50:]
    for start, tokens in ((0, first_half), (50, rest)):
        last = start > 0
        prefill = Span(
            tokens, start, second.table, [Draw(GREEDY, 0, second.prompt, [])] if last else []
        )
        decode = Span(
            first.output[-1:],
            len(first.prompt) + len(first.output) - 1,
            first.table,
            [Draw(GREEDY, 0, first.prompt, list(first.output))],
        )
        done, going = own.runner.run([prefill, decode])  # not the order of attention's rows
        first.output.append(going.draws[0].token)
        if last:
            second.output.append(done.draws[0].token)
    assert first.output == expected[0][:3]
    assert second.output == expected[1][:1]


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_choices_of_one_row_draw_as_if_alone(family, bench, prompts) -> None:
    own, params = bench(family), SamplingParams(seed=11, max_tokens=8, temperature=1.2)
    together = own.prefill([own.sequence(prompts[4])], params, choices=(0, 1, 2, 3))[0]
    alone = [
        own.prefill([own.sequence(prompts[4])], params, chunk=7, choices=(c,))[0][0]
        for c in range(4)
    ]
    assert together == alone
    assert len({sampled.token for sampled in together}) > 1


def test_sampling_does_not_depend_on_the_batch(bench, prompts) -> None:
    own = bench()
    params = SamplingParams(seed=5, max_tokens=16, temperature=0.9, top_p=0.9, top_k=50)
    together = own.generate(prompts, params)
    assert own.generate(prompts, params, together=False, chunk=3) == together


def test_a_replay_continues_the_text(bench, prompts) -> None:
    own, params = bench(), SamplingParams(seed=5, max_tokens=16, temperature=1.0)
    text = own.generate(prompts[3:4], params)[0]
    replay = own.sequence(prompts[3] + text[:6])
    draw = Draw(params, 0, prompts[3], text[:6])
    result = own.runner.run([Span(replay.prompt, 0, replay.table, [draw])])
    assert result[0].draws[0].token == text[6]


def test_prompt_scores_are_the_models(bench, model_folder, prompts, monkeypatch) -> None:
    monkeypatch.setattr("distserve.engine.runner._SCORED_VALUES", 512 * 6)
    own, prompt = bench("qwen2"), prompts[4]
    with torch.no_grad():
        logits = reference(model_folder("qwen2"), torch.float64)(torch.tensor([prompt])).logits[0]
    expected = logits.log_softmax(-1)
    s = own.sequence(prompt)
    scores = []
    for start, tokens in ((0, prompt[:15]), (15, prompt[15:])):
        follower = prompt[15] if start == 0 else None
        span = Span(tokens, start, s.table, score_prompt=3, next_token=follower)
        scores += own.runner.run([span])[0].prompt_scores
    assert len(scores) == len(prompt) - 1
    for place, score in enumerate(scores):
        assert score.logprob == pytest.approx(float(expected[place, prompt[place + 1]]), abs=1e-9)
        assert score.rank == 1 + int((expected[place] > expected[place, prompt[place + 1]]).sum())
        best = expected[place].topk(3)
        assert [token for token, _ in score.top] == best.indices.tolist()
        assert [value for _, value in score.top] == pytest.approx(best.values.tolist(), abs=1e-9)


def test_two_engines_in_one_process(bench: Callable, prompts) -> None:
    one, other = bench("llama"), bench("opt")
    alone = [own.generate(prompts[2:4], GREEDY) for own in (one, other)]
    a, b = one.sequence(prompts[2]), other.sequence(prompts[2])
    for own, s in ((one, a), (other, b)):
        s.output.append(own.prefill([s], GREEDY)[0][0].token)
    for _ in range(5):
        for own, s in ((one, a), (other, b)):
            s.output.append(own.decode([s], GREEDY)[0].token)
    assert a.output == alone[0][0][:6]
    assert b.output == alone[1][0][:6]


def test_warm_up_changes_no_later_token(bench, prompts) -> None:
    own = bench()
    before = own.generate(prompts, GREEDY)
    assert own.runner.warm_up(max_tokens=10_000, max_seqs=4) > 0
    assert own.generate(prompts, GREEDY) == before


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs(dtype, bench, prompts) -> None:
    own = bench("llama", dtype)
    texts = own.generate(prompts, GREEDY)
    assert texts == own.generate(prompts, GREEDY)
    assert own.pool.tensor.dtype == getattr(torch, dtype)
    assert all(0 <= token < own.model.vocab_size for text in texts for token in text)
