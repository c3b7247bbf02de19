"""What a model folder must hold, and what is said about one that is not served."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from distserve.engine.errors import ModelError, ParallelismError
from distserve.engine.fingerprint import fingerprint
from distserve.engine.loading import LoadedModel, load_model
from distserve.engine.rank import Rank
from distserve.models.builtin import builtin_path
from distserve.models.random_weights import make_random_model

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "opt"]


@pytest.fixture
def folder(model_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a family's folder with some of its config.json changed."""

    def copy(family: str = "llama", **changes: Any) -> Path:
        path = tmp_path / family
        shutil.copytree(model_folder(family), path)
        config = json.loads((path / "config.json").read_text()) | changes
        (path / "config.json").write_text(json.dumps(config))
        return path

    return copy


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_weights_are_the_checkpoints(family, dtype, model_folder) -> None:
    from transformers import AutoModelForCausalLM

    own = load_model(model_folder(family), dtype)
    peer = AutoModelForCausalLM.from_pretrained(model_folder(family), dtype=getattr(torch, dtype))
    expected = peer.state_dict()
    found = own.body.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for name, buffer in peer.named_buffers():
        assert torch.equal(own.body.model.get_buffer(name), buffer), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_auto_is_the_checkpoints_dtype(dtype, tmp_path) -> None:
    path = make_random_model(tmp_path / dtype, "llama", vocab_size=512, dtype=dtype, shards=3)
    assert load_model(path).dtype == dtype
    assert load_model(path, "float32").dtype == "float32"


def test_the_shipped_model(prompts) -> None:
    model = load_model(builtin_path("tiny"))
    assert model.eos_token_ids == (2,)
    assert model.bos_token_id == 1
    assert model.dtype == "bfloat16"
    assert model.max_positions == 2048
    head, embedding = model.body.model.lm_head, model.body.model.get_input_embeddings()
    assert head.weight is embedding.weight, "tied embeddings take their memory twice"


def test_generation_config_gives_defaults(folder) -> None:
    path = folder()
    generation = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [2, 7]}
    (path / "generation_config.json").write_text(json.dumps(generation))
    model = load_model(path)
    assert model.sampling_defaults == {"temperature": 0.6, "top_k": 20.0, "top_p": 0.95}
    assert model.eos_token_ids == (2, 7)
    (path / "generation_config.json").unlink()
    assert load_model(path).sampling_defaults == {}


def test_a_body_without_prefix(folder) -> None:
    path = folder("opt")
    weights = load_file(path / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    save_file(bare, path / "model.safetensors")
    weight = load_model(path).body.model.model.decoder.embed_tokens.weight
    assert torch.equal(weight, weights["model.decoder.embed_tokens.weight"])


def refused(path: Path, match: str, **options: Any) -> None:
    with pytest.raises(ModelError, match=match) as error:
        load_model(path, **options)
    assert "\n" not in str(error.value)


def test_missing_things_are_named(folder, tmp_path) -> None:
    refused(tmp_path / "nowhere", "does not exist")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no config.json")
    path = folder("qwen2")
    (path / "model-00002-of-00002.safetensors").unlink()
    refused(path, "no model-00002-of-00002.safetensors")
    (path / "model.safetensors.index.json").unlink()
    refused(path, "no model.safetensors")


def test_damaged_files_are_named(folder) -> None:
    path = folder()
    file = path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    refused(path, "model.safetensors is damaged")
    (path / "config.json").write_text("{")
    refused(path, "no valid JSON")


def test_weights_that_do_not_match_are_named(folder) -> None:
    path = folder()
    file = path / "model.safetensors"
    weights = load_file(file)
    norm = weights.pop("model.norm.weight")
    save_file(weights, file)
    refused(path, "lacks 1 weights, model.norm.weight")
    save_file(weights | {"model.norm.weight": norm[:-1].clone()}, file)
    refused(path, "model.norm.weight has shape")
    save_file(weights | {"model.norm.weight": norm, "model.extra": norm.clone()}, file)
    refused(path, "model.extra has no place")


LONGROPE = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not served"),
        ({"architectures": None}, "is not served"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised"),
        ({"sliding_window": 128}, "sliding-window"),
        ({"rope_parameters": LONGROPE | {"rope_type": "longrope"}}, "longrope is not served"),
        ({"rope_scaling": LONGROPE | {"type": "longrope"}}, "longrope is not served"),
        ({"hidden_size": "many"}, "config.json is not valid"),
        ({"num_attention_heads": 3}, "config.json"),
    ],
)
def test_configs_that_are_not_served(changes, match, folder) -> None:
    refused(folder("mistral", **changes), match)


def test_a_window_that_is_not_used_is_fine(folder) -> None:
    assert load_model(folder("qwen2", sliding_window=128, use_sliding_window=False))


def test_dtypes_and_ranks_that_are_not_served(folder) -> None:
    path = folder()
    refused(path, "dtype 'int8' is not served", dtype="int8")
    with pytest.raises(ParallelismError, match="not supported"):
        load_model(path, rank=Rank(0, 2, 1))


def digest(model: LoadedModel, **changes: Any) -> str:
    settings: dict[str, Any] = {"dtype": model.dtype, "kv_dtype": model.dtype, "block_tokens": 16}
    return fingerprint(model.config, model.weights, model.kv, **(settings | changes))


def test_fingerprints_agree_on_a_copy_only(folder, tmp_path) -> None:
    path = folder()
    model = load_model(path)
    shutil.copytree(path, tmp_path / "copy")
    assert digest(load_model(tmp_path / "copy")) == digest(model)
    others = [
        digest(model, dtype="bfloat16"),
        digest(model, kv_dtype="bfloat16"),
        digest(model, block_tokens=32),
    ]
    weights = load_file(path / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] += 0.001
    save_file(weights, path / "model.safetensors")
    others.append(digest(load_model(path)))
    config = json.loads((path / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 20_000.0
    (path / "config.json").write_text(json.dumps(config))
    others.append(digest(load_model(path)))
    assert len({digest(model), *others}) == 6
