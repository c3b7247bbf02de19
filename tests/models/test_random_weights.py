"""Made models load in transformers, generate, and have the sizes that were asked for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from distserve.models.errors import ImpossibleShape
from distserve.models.random_weights import FAMILIES, main, make_random_model


def load(path: Path):
    # eager: no probing of kernels, the same on every machine
    return AutoModelForCausalLM.from_pretrained(path, dtype="auto", attn_implementation="eager")


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_loads_and_generates(family: str, tmp_path: Path) -> None:
    kv_heads = None if family == "opt" else 2
    path = make_random_model(tmp_path, family, kv_heads=kv_heads, layers=3)
    model = load(path)
    tokenizer = AutoTokenizer.from_pretrained(path)

    assert model.config.model_type == family
    assert model.config.num_hidden_layers == 3
    assert model.config.vocab_size == len(tokenizer) == 2048
    assert model.config.eos_token_id == tokenizer.eos_token_id == 2
    prompt = tokenizer("Return the number of items", return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    assert tokens.shape[1] > prompt["input_ids"].shape[1]
    assert tokenizer.decode(tokens[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_have_a_margin_and_depend_on_the_first_token(
    family: str, tmp_path: Path
) -> None:
    """A tie would be turned by rounding; a model that ignores its context hides lost KV."""
    model = load(make_random_model(tmp_path, family, layers=2))
    random = torch.Generator().manual_seed(1)
    prompts = torch.randint(7, 2048, (16, 24), generator=random)
    other = prompts.clone()
    other[:, 0] = (other[:, 0] + 100) % 2000 + 7
    with torch.no_grad():
        logits, logits_other = (model(x).logits[:, -1] for x in (prompts, other))
    top = logits.topk(2).values
    assert 2.0 < logits.std() < 8.0
    assert (top[:, 0] - top[:, 1]).median() > 0.2
    assert (logits - logits_other).abs().amax(dim=1).min() > 0.1
    assert len(set(logits.argmax(dim=1).tolist())) > 8


def test_nothing_is_missing_or_left_over_when_loading(tmp_path: Path) -> None:
    for family in FAMILIES:
        path = make_random_model(tmp_path / family, family)
        _, report = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]


def test_shards_hold_the_same_weights_as_one_file(tmp_path: Path) -> None:
    whole = load(make_random_model(tmp_path / "whole", "llama", seed=5))
    sharded_path = make_random_model(tmp_path / "sharded", "llama", seed=5, shards=3)
    assert len(list(sharded_path.glob("model-*-of-00003.safetensors"))) == 3
    index = json.loads((sharded_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in whole.parameters())
    for (name, a), (_, b) in zip(
        whole.named_parameters(), load(sharded_path).named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name


def test_the_seed_decides_the_bytes(tmp_path: Path) -> None:
    first, again, other = (
        make_random_model(tmp_path / str(i), "qwen3", seed=seed) for i, seed in enumerate((1, 1, 2))
    )
    file = "model.safetensors"
    assert (first / file).read_bytes() == (again / file).read_bytes()
    assert (first / file).read_bytes() != (other / file).read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_weights_have_the_dtype(dtype: str, tmp_path: Path) -> None:
    model = load(make_random_model(tmp_path, "llama", dtype=dtype))
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


def test_a_larger_vocabulary_decodes_every_id(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_random_model(tmp_path, "opt", vocab_size=5000))
    assert len(tokenizer) == 5000
    words = [tokenizer.decode([i]) for i in range(2048, 5000)]
    assert len(set(words)) == len(words) and all(words)
    text = "naïve café, 漢字 and 🐍"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_smaller_vocabulary_still_encodes_everything(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_random_model(tmp_path, "llama", vocab_size=300))
    text = "Return the naïve café, 漢字 and 🐍"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert max(ids) < 300
    assert tokenizer.decode(ids) == text


def test_padding_rows_lie_beyond_the_tokenizer(tmp_path: Path) -> None:
    path = make_random_model(tmp_path, "llama", vocab_size=2112, vocab_padding=64)
    assert load(path).config.vocab_size == 2112
    assert len(AutoTokenizer.from_pretrained(path)) == 2048


def test_a_brought_tokenizer_is_used_as_it_is(tmp_path: Path) -> None:
    brought = make_random_model(tmp_path / "first", "llama", vocab_size=400)
    path = make_random_model(tmp_path / "second", "llama", vocab_size=512, tokenizer=brought)
    assert (path / "tokenizer.json").read_bytes() == (brought / "tokenizer.json").read_bytes()
    with pytest.raises(ImpossibleShape, match="at least 400"):
        make_random_model(tmp_path / "third", "llama", vocab_size=399, tokenizer=brought)


@pytest.mark.parametrize(
    ("family", "sizes", "cure"),
    [
        ("gpt", {}, "known ones are llama"),
        ("llama", {"hidden_size": 65}, "not a multiple"),
        ("llama", {"kv_heads": 3}, "evenly"),
        ("llama", {"hidden_size": 12}, "even head size"),
        ("opt", {"kv_heads": 2}, "leave kv_heads out"),
        ("llama", {"vocab_size": 200}, "at least 263"),
        ("llama", {"dtype": "int8"}, "use one of float32"),
        ("llama", {"shards": 1000}, "ask for fewer"),
        ("llama", {"shards": 0}, "at least one"),
    ],
)
def test_impossible_shapes_say_what_to_change(
    family: str, sizes: dict[str, object], cure: str, tmp_path: Path
) -> None:
    with pytest.raises(ImpossibleShape, match=cure):
        make_random_model(tmp_path / "model", family, **sizes)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_folder_with_a_model_is_not_overwritten(tmp_path: Path) -> None:
    make_random_model(tmp_path, "llama")
    with pytest.raises(ImpossibleShape, match="already holds a model"):
        make_random_model(tmp_path, "opt")


def test_the_command_writes_a_model_and_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path)]
    main([*output, "--family", "llama", "--kv-heads", "2", "--shards", "2"])
    assert capsys.readouterr().out.strip() == str(tmp_path)
    assert load(tmp_path).config.num_key_value_heads == 2
    refused = subprocess.run(
        [sys.executable, "-m", "distserve.models.random_weights", *output, "--family", "opt"],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1
    assert "already holds a model" in refused.stderr
