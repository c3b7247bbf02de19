"""Turns a model folder into a model that is ready to run: config, weights, end tokens, defaults.

Weights are read tensor by tensor from the mapped safetensors files into the tensors that stay, so
that loading takes the model's size and one tensor more. Called once, by the engine's start-up.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from distserve.engine.bodies import Body, build_body
from distserve.engine.errors import ModelError
from distserve.engine.pool import TORCH_DTYPES, KvShape
from distserve.engine.rank import Rank

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SAMPLING_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_SAMPLE_VALUES = 64


@dataclass(frozen=True, slots=True)
class WeightEntry:
    """One tensor of the checkpoint, as the fingerprint counts it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    sample: str
    """Digest of its first values: two fine-tunes of one model have one index, but not one KV."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory and what its folder says about its use."""

    path: Path
    body: Body
    dtype: str
    """A key of TORCH_DTYPES."""
    rank: Rank
    config: Mapping[str, Any]
    """config.json."""
    kv: KvShape
    """Of the whole model."""
    vocab_size: int
    max_positions: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    weights: tuple[WeightEntry, ...]
    sampling_defaults: dict[str, float] = field(default_factory=dict)
    """From generation_config.json: temperature, top_k, top_p, min_p, repetition_penalty."""


def load_model(path: Path, dtype: str = "auto", rank: Rank = Rank()) -> LoadedModel:  # noqa: B008
    """Load the model in the folder `path`; `dtype` "auto" is the checkpoint's own.

    Raises ModelError for whatever is missing, damaged or not served, ParallelismError for more
    than one rank.
    """
    rank.require_single()
    config = _read_json(path, "config.json")
    dtype = _dtype(config, dtype)
    body = build_body(config, TORCH_DTYPES[dtype])
    weights = tuple(_fill(body.model, path, body.tied))
    text = body.config
    generation = _read_json(path, "generation_config.json", optional=True)
    eos = _token_ids(generation.get("eos_token_id", config.get("eos_token_id")))
    bos = _token_ids(generation.get("bos_token_id", config.get("bos_token_id")))
    return LoadedModel(
        path=path,
        body=body,
        dtype=dtype,
        rank=rank,
        config=config,
        kv=body.kv,
        vocab_size=text.vocab_size,
        max_positions=text.max_position_embeddings,
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=eos,
        weights=weights,
        sampling_defaults=_sampling_defaults(generation),
    )


def _sampling_defaults(generation: Mapping[str, Any]) -> dict[str, float]:
    """Only what a model that is meant to be sampled says: `do_sample: false` is about a script."""
    found = {name: generation.get(name) for name in _SAMPLING_DEFAULTS}
    return {name: float(value) for name, value in found.items() if value is not None}


def _token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _dtype(config: Mapping[str, Any], asked: str) -> str:
    own = config.get("dtype") or config.get("torch_dtype") or "float32"
    dtype = str(own).removeprefix("torch.") if asked == "auto" else asked
    if dtype not in TORCH_DTYPES:
        raise ModelError(f"dtype {dtype!r} is not served: choose one of {', '.join(TORCH_DTYPES)}")
    return dtype


def _read_json(path: Path, name: str, optional: bool = False) -> dict[str, Any]:
    if not path.is_dir():
        raise ModelError(f"model folder {path} does not exist: give the folder of a checkpoint")
    try:
        content = json.loads((path / name).read_bytes())
    except FileNotFoundError:
        if optional:
            return {}
        raise ModelError(f"{path} has no {name}: give the folder of a checkpoint") from None
    except ValueError as error:
        raise ModelError(f"{path / name} is no valid JSON ({error}): copy the model anew") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path / name} holds no JSON object: copy the model anew")
    return content


def _files(path: Path) -> list[Path]:
    """The checkpoint's safetensors files, all of them present."""
    if (path / _INDEX).is_file():
        names = sorted(set(_read_json(path, _INDEX).get("weight_map", {}).values()))
    else:
        names = [_SINGLE]
    files = [path / name for name in names]
    for file in files:
        if not file.is_file():
            raise ModelError(
                f"{path} has no {file.name}: only complete safetensors checkpoints are served"
            )
    return files


def _fill(model: torch.nn.Module, path: Path, tied: frozenset[str]) -> Iterator[WeightEntry]:
    """Copy each tensor of the checkpoint to its place in `model`, all places being filled once."""
    places = model.state_dict()
    missing = set(places) - set(tied)
    for file in _files(path):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (not a mapping)
                    tensor = tensors.get_tensor(name)
                    yield _entry(name, tensor)
                    place = _place(name, places)
                    if place is None or place in tied:
                        continue
                    if places[place].shape != tensor.shape:
                        raise ModelError(
                            f"{file}: {name} has shape {list(tensor.shape)}, config.json asks "
                            f"for {list(places[place].shape)}: the files are of two models"
                        )
                    places[place].copy_(tensor)
                    missing.discard(place)
        except SafetensorError as error:
            raise ModelError(f"{file} is damaged ({error}): copy the model anew") from None
    if missing:
        raise ModelError(
            f"{path} lacks {len(missing)} weights, {min(missing)} among them: copy the model anew"
        )


def _place(name: str, places: Mapping[str, torch.Tensor]) -> str | None:
    """Where a tensor of the checkpoint goes; some checkpoints hold the body without its prefix."""
    for candidate in (name, f"model.{name}"):
        if candidate in places:
            return candidate
    if name.endswith(("rotary_emb.inv_freq", "lm_head.weight")):
        return None
    raise ModelError(f"the checkpoint's tensor {name} has no place in this model: not served")


def _entry(name: str, tensor: torch.Tensor) -> WeightEntry:
    values = tensor.flatten()[:_SAMPLE_VALUES].contiguous()
    digest = hashlib.blake2b(values.view(torch.uint8).numpy().tobytes(), digest_size=8)
    dtype = str(tensor.dtype).removeprefix("torch.")
    return WeightEntry(name, tuple(tensor.shape), dtype, digest.hexdigest())
