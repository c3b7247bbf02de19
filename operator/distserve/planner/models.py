"""The shape of a transformer: what memory, links and estimates are computed from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distserve.planner.errors import InvalidRequest

MOST_CONFIG_BYTES = 4 << 20
"""Far more than a config.json has: what is larger is another file."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one decoder-only transformer."""

    name: str
    layers: int
    heads: int
    hidden: int
    vocabulary: int
    max_positions: int
    ffn: int
    kv_heads: int
    head_dim: int
    ffn_matrices: int = 2
    """2 for a plain feed-forward network, 3 for a gated one."""
    learned_positions: bool = False
    tied_embeddings: bool = True
    dtype_bytes: int = 2
    assumed: str = field(default="", compare=False)
    """What its config leaves open and no list of ours says, in words for the user."""

    @property
    def attention_parameters(self) -> int:
        """Of one layer: queries, keys, values and the output projection."""
        return self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)

    @property
    def ffn_parameters(self) -> int:
        """Of one layer."""
        return self.ffn_matrices * self.hidden * self.ffn

    @property
    def embedding_parameters(self) -> int:
        tables = 1 if self.tied_embeddings else 2
        positions = self.max_positions if self.learned_positions else 0
        return (tables * self.vocabulary + positions) * self.hidden

    @property
    def parameters(self) -> int:
        layer = self.attention_parameters + self.ffn_parameters + 5 * self.hidden
        return self.embedding_parameters + self.layers * layer

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype_bytes

    def splits_into(self, tensor: int) -> bool:
        """Whether so many ranks share the attention heads evenly, and each KV head lies whole in
        one rank or, copied, in equally many: what the engine takes."""
        shared = self.kv_heads % tensor == 0 or tensor % self.kv_heads == 0
        return self.heads % tensor == 0 and shared

    def tensor_degrees(self, at_most: int) -> list[int]:
        """Tensor parallel degrees that the heads split into."""
        return [n for n in range(1, at_most + 1) if self.splits_into(n)]

    def pipeline_degrees(self, at_most: int) -> list[int]:
        """Pipeline parallel degrees that divide the layers."""
        return [n for n in range(1, at_most + 1) if self.layers % n == 0]

    def refuse_uneven(self, pipeline: int) -> None:
        """Raises InvalidRequest for a pipeline parallel degree that does not divide the layers."""
        if self.layers % pipeline:
            degrees = ", ".join(map(str, self.pipeline_degrees(self.layers)))
            raise InvalidRequest(
                f"the {self.layers} layers of {self.name} are not {pipeline} equal stages; give "
                f"one of PP {degrees}"
            )


def _opt(name: str, layers: int, heads: int, hidden: int) -> ModelShape:
    return ModelShape(
        name=name,
        layers=layers,
        heads=heads,
        hidden=hidden,
        vocabulary=50272,
        max_positions=2048,
        ffn=4 * hidden,
        kv_heads=heads,
        head_dim=hidden // heads,
        learned_positions=True,
    )


KNOWN_MODELS = {
    shape.name: shape
    for shape in (
        _opt("facebook/opt-13b", 40, 40, 5120),
        _opt("facebook/opt-66b", 64, 72, 9216),
        _opt("facebook/opt-175b", 96, 96, 12288),
    )
}

_SIZES = ("13b", "66b", "175b")
_NAMES = {
    alias: f"facebook/opt-{size}"
    for size in _SIZES
    for alias in (f"opt-{size}", f"OPT-{size.upper()}")
}
_ALIASES = _NAMES | {
    alias: f"facebook/opt-{size}" for size in _SIZES for alias in (size, f"opt_{size}")
}
"""Also the reference's short words, which another model may have for its name."""


def canonical_name(name: str) -> str:
    """The full name behind an alias such as `opt_13b` or `13b`; other names stay as they are."""
    return _ALIASES.get(name, name)


def known_model(name: str) -> ModelShape | None:
    """By a name that no other model has: `facebook/opt-13b` or OPT-13B, not `13b`. Opens nothing:
    whoever writes a spec chooses its names."""
    return KNOWN_MODELS.get(_NAMES.get(name, name))


def find_model(name: str) -> ModelShape:
    """A known model by name or alias, or any model by the path of its transformers config.json.

    For the words of a command line, since a file of that name is opened. Raises InvalidRequest
    when it is neither.
    """
    known = KNOWN_MODELS.get(canonical_name(name))
    if known:
        return known
    if not os.path.exists(name):
        raise InvalidRequest(
            f"unknown model {name}; give one of {', '.join(KNOWN_MODELS)} "
            "or the path of a transformers config.json"
        )
    return model_at(Path(name))


def model_at(path: Path) -> ModelShape:
    """The model of a transformers config.json, or of a folder that has one.

    Raises InvalidRequest where it cannot be read or used.
    """
    try:
        file = path / "config.json" if path.is_dir() else path
        if not file.is_file():
            raise InvalidRequest(f"no config.json is at {path}; give a model's folder that has one")
        with file.open("rb") as opened:
            content = opened.read(MOST_CONFIG_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(
            f"cannot read the config.json at {path}: {error.strerror}; give a model's folder that "
            "has one"
        ) from error
    if len(content) > MOST_CONFIG_BYTES:
        raise InvalidRequest(f"{file} is not a transformers config: it has more than 4 MiB")
    try:
        return from_config(json.loads(content), name=file.parent.name or file.stem)
    except InvalidRequest:
        raise
    except (ValueError, OverflowError, AttributeError, TypeError, RecursionError) as error:
        raise InvalidRequest(f"{file} is not a transformers config: {error}") from error


_NOT_MODELLED = {
    "num_local_experts": "a mixture of experts",
    "num_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "moe_num_experts": "a mixture of experts",
    "kv_lora_rank": "latent attention",
    "quantization_config": "a quantised checkpoint",
}
"""Keys of a config by what they tell: read as a dense model of its torch_dtype it would be planned
far too small or far too large, or with many times its KV cache."""

_FFN_KEYS = ("ffn_dim", "intermediate_size", "n_inner", "ffn_hidden_size")
# Families by what their configs may leave unsaid, as transformers' own classes take it.
_PLAIN_FFN = (
    "opt", "gpt2", "gpt_neox", "gpt_bigcode", "bloom", "falcon", "phi", "gptj", "codegen",
    "starcoder2", "nemotron", "persimmon", "arcee", "apertus",
)  # fmt: skip
_GATED_FFN = (
    "llama", "mistral", "ministral", "ministral3", "qwen2", "qwen3", "gemma", "gemma2",
    "gemma3_text", "cohere", "cohere2", "olmo", "olmo2", "olmo3", "phi3", "stablelm", "granite",
    "glm", "glm4", "smollm3", "exaone4", "helium", "seed_oss",
)  # fmt: skip
_LEARNED_POSITIONS = ("opt", "gpt2", "gpt_bigcode")
_TIED = (
    "opt", "gpt2", "gpt_bigcode", "bloom", "falcon", "starcoder2", "gemma", "gemma2",
    "gemma3_text", "cohere", "cohere2", "smollm3",
)  # fmt: skip
_UNSAID: Mapping[str, Mapping[str, Any]] = {"falcon": {"max_position_embeddings": 2048}}
_MULTI_QUERY = ("gpt_bigcode", "falcon")


def _kv_heads(config: Mapping[str, Any], kind: str, heads: int) -> int:
    """Falcon's newer layout has groups (`num_kv_heads`); its older one ignores their number."""
    grouped = bool(config.get("new_decoder_architecture"))
    if config.get("multi_query", kind in _MULTI_QUERY) and not grouped:
        return 1
    keys = (key for key in ("num_key_value_heads", "num_kv_heads") if config.get(key))
    return next((_size(key, config[key]) for key in keys), heads)


def _size(key: str, found: Any) -> int:
    """Raises InvalidRequest below 1."""
    if (size := int(found)) < 1:
        raise InvalidRequest(f"the model's config has {key} {found}; it is 1 or more")
    return size


def _assumed(config: Mapping[str, Any], kind: str) -> str:
    """Of a family that is in none of the lists above: what is taken for granted all the same."""
    if kind in _PLAIN_FFN or kind in _GATED_FFN:
        return ""
    untied = "" if "tie_word_embeddings" in config else " and embeddings of its own at the output"
    return (
        f"the planner does not know model_type {kind or '(none)'} of the model's config: it "
        f"assumes a gated feed-forward network of three matrices{untied}; where that is wrong, so "
        "are the plan's memory and its estimates"
    )


def from_config(config: Mapping[str, Any], name: str | None = None) -> ModelShape:
    """The shape that a transformers `config.json` describes (decoder-only, dense, not quantised).

    Raises InvalidRequest where it lacks a size or describes what a shape cannot say.
    """
    whole, config = config, config.get("text_config") or config
    for key, what in _NOT_MODELLED.items():
        if whole.get(key) or config.get(key):
            raise InvalidRequest(
                f"the model's config has {key}: {what} is not modelled; give a dense model that "
                "is not quantised, or write units, instancesPerUnit and parallelism into the spec "
                "with mode: Manual"
            )

    kind = str(config.get("model_type", ""))
    config = {**_UNSAID.get(kind, {}), **config}

    def value(*keys: str) -> int:
        for key in keys:
            if config.get(key) is not None:
                return _size(key, config[key])
        raise InvalidRequest(f"the model's config lacks {' / '.join(keys)}")

    hidden = value("hidden_size", "n_embd")
    heads = value("num_attention_heads", "n_head")
    return ModelShape(
        name=name or str(config.get("_name_or_path", kind)),
        layers=value("num_hidden_layers", "n_layer"),
        heads=heads,
        hidden=hidden,
        vocabulary=value("vocab_size"),
        max_positions=value("max_position_embeddings", "n_positions"),
        ffn=next((_size(key, config[key]) for key in _FFN_KEYS if config.get(key)), 4 * hidden),
        kv_heads=_kv_heads(config, kind, heads),
        head_dim=_size("head_dim", config.get("head_dim") or hidden // heads),
        ffn_matrices=2 if kind in _PLAIN_FFN else 3,
        learned_positions=kind in _LEARNED_POSITIONS,
        tied_embeddings=bool(config.get("tie_word_embeddings", kind in _TIED)),
        dtype_bytes=4 if str(config.get("torch_dtype", config.get("dtype"))) == "float32" else 2,
        assumed=_assumed(config, kind),
    )
