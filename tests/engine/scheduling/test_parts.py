"""Small parts on their own: prediction, tombstones, validation, tokenizer files, metrics."""

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from distserve.engine.metrics import FINISHED_REASONS, EngineMetrics
from distserve.engine.timing import StepTimer
from distserve.engine.tokenizer_files import chat_template, digests
from distserve.engine.tombstones import Tombstones
from distserve.engine.validation import problem_of
from distserve.wire.dialect import InstanceInfo, Phases, Source

INFO = InstanceInfo(
    instance="i", role="hybrid", epoch=1, fingerprint="f", model="m", strategy="Colocated",
    block_tokens=4, total_blocks=16, max_model_len=32, max_num_seqs=4, max_num_batched_tokens=64,
    vocab_size=100, bos_token_id=None, eos_token_ids=[0], chat_template=None, files={},
)  # fmt: skip


def test_prediction_follows_the_steps() -> None:
    timer = StepTimer()
    assert timer.predict_ms(100, 4) == 0.0
    assert StepTimer(warm_up_token_ms=3.0).predict_ms(100, 4) == 300.0
    timer = StepTimer(warm_up_token_ms=3.0)
    timer.observe(prefill_tokens=100, decodes=0, took_ms=50.0)
    timer.observe(prefill_tokens=0, decodes=8, took_ms=10.0)
    assert timer.predict_ms(200, 0) == pytest.approx(100.0)
    assert timer.predict_ms(0, 3) == pytest.approx(10.0)
    for _ in range(50):
        timer.observe(prefill_tokens=100, decodes=2, took_ms=110.0)
    assert timer.predict_ms(100, 2) == pytest.approx(110.0, rel=0.01)


def test_tombstones_are_bounded() -> None:
    stones = Tombstones(limit=2)
    for name in "abca":
        stones.add(name)
    assert "a" in stones
    assert "c" in stones
    assert "b" not in stones


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({}, None),
        ({"prompt": []}, "empty"),
        ({"prompt": [100]}, "token ids"),
        ({"prompt": [-1]}, "token ids"),
        ({"prior": [100]}, "token ids"),
        ({"prompt": [1] * 32}, "over this instance's 32"),
        ({"prompt": [1] * 31}, None),
        ({"choices": []}, "distinct"),
        ({"choices": [1, 1]}, "distinct"),
        ({"choices": [0, 1, 2, 3, 4]}, "over the instance's 4"),
        ({"choices": [0, 1], "prior": [1]}, "one choice"),
        ({"phases": Phases.PREFILL}, "needs a transfer"),
        ({"phases": Phases.PREFILL, "transfer": "t"}, None),
        ({"phases": Phases.PREFILL, "transfer": "t/../"}, "ids"),
        ({"phases": Phases.DECODE}, "source"),
        ({"source": Source("t", "h:1")}, "source"),
        ({"phases": Phases.DECODE, "source": Source("t", "h:1")}, None),
        ({"phases": Phases.DECODE, "source": Source("t", "h/x:1")}, "host:port"),
        ({"transfer": "t"}, "prefill legs"),
        ({"prior": [1] * 5}, "prior has all"),
        ({"id": "a b"}, "ids"),
        ({"timeout_ms": 0.0}, "timeout_ms"),
        ({"timeout_ms": math.inf}, "timeout_ms"),
    ],
)
def test_legs_that_cannot_run_are_refused(make_leg: Any, fields: Any, complaint: Any) -> None:
    prompt = fields.get("prompt", [1, 2])
    leg = make_leg(prompt, 5, **{k: v for k, v in fields.items() if k != "prompt"})
    problem = problem_of(leg, INFO)
    assert problem is None if complaint is None else complaint in (problem or "")


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": -1.0}, {"temperature": math.nan}, {"top_p": 0.0}, {"top_p": 1.5},
        {"top_k": -1}, {"min_p": 2.0}, {"repetition_penalty": 0.0}, {"min_tokens": -1},
        {"presence_penalty": math.inf}, {"logit_bias": {100: 1.0}}, {"logit_bias": {1: math.nan}},
        {"stop": [""]}, {"stop": ["x"] * 65}, {"logprobs": -1}, {"prompt_logprobs": 101},
        {"max_tokens": -1},
    ],
    ids=str,
)  # fmt: skip
def test_sampling_outside_of_its_bounds_is_refused(make_leg: Any, sampling: Any) -> None:
    assert problem_of(make_leg([1, 2], 5, sampling=sampling), INFO)


def test_choices_must_fit_into_the_cache(make_leg: Any) -> None:
    small = msgspec.structs.replace(INFO, total_blocks=9)
    leg = make_leg([1] * 31, 1, choices=[0, 1])
    assert "KV cache" in (problem_of(leg, small) or "")
    assert problem_of(leg, INFO) is None


def test_chat_template_from_its_file_or_the_tokenizers_config(tmp_path: Path) -> None:
    assert chat_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "from the config"}))
    assert chat_template(tmp_path) == "from the config"
    config.write_text(json.dumps({"chat_template": [{"name": "default", "template": "by name"}]}))
    assert chat_template(tmp_path) == "by name"
    (tmp_path / "chat_template.jinja").write_text("own file")
    assert chat_template(tmp_path) == "own file"
    (tmp_path / "weights.safetensors").write_text("not handed out")
    assert set(digests(tmp_path)) == {"tokenizer_config.json", "chat_template.jinja"}


def test_every_series_exists_from_the_start() -> None:
    text = EngineMetrics(model="m", role="decode", revision="r").render().decode()
    for name in (
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc",
        "prefix_cache_queries_total", "prefix_cache_hits_total", "prompt_tokens_total",
        "generation_tokens_total", "num_preemptions_total",
        "request_queue_time_seconds_count", "request_prefill_time_seconds_count",
        "request_decode_time_seconds_count", "iteration_tokens_total_count",
    ):  # fmt: skip
        assert f"\ndistserve_engine_{name} 0.0" in text
    for reason in FINISHED_REASONS:
        assert f'request_success_total{{finished_reason="{reason}"}} 0.0' in text
