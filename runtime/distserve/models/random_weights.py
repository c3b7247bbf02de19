"""Folders of random weights in the shape of a family, for tests, benchmarks and trials of size.

    python -m distserve.models.random_weights --family llama --output DIR [--hidden-size 256 ...]

Such a model says nothing sensible, yet costs what a trained one of its shape costs. Its weights
are scaled so that hidden states keep their size through the layers and logits spread by several
units: then the greedy token is ahead by a margin that rounding does not turn, and depends on the
whole prompt.
"""

import argparse
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distserve.models.errors import ImpossibleShape, ModelsError
from distserve.models.tokenizer_files import SpecialTokens, write_tokenizer

if TYPE_CHECKING:
    import torch

FAMILIES = ("llama", "mistral", "opt", "qwen2", "qwen3")
DTYPES = ("float32", "float16", "bfloat16", "float64")
LOGIT_SPREAD = 4.0  # standard deviation of the logits


@dataclass(frozen=True)
class Shape:
    """The sizes of a model; `None` means what its family usually has."""

    family: str
    hidden_size: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int | None = None
    intermediate_size: int | None = None
    vocab_size: int = 2048
    max_positions: int = 2048
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ImpossibleShape(
                f"no family {self.family!r}; the known ones are {', '.join(FAMILIES)}"
            )
        if self.dtype not in DTYPES:
            raise ImpossibleShape(f"no dtype {self.dtype!r}; use one of {', '.join(DTYPES)}")
        if self.hidden_size % self.heads:
            raise ImpossibleShape(
                f"hidden size {self.hidden_size} is not a multiple of {self.heads} heads"
            )
        if self.heads % self.key_value_heads:
            raise ImpossibleShape(
                f"{self.heads} heads do not share {self.key_value_heads} key-value heads evenly"
            )
        if self.family == "opt" and self.key_value_heads != self.heads:
            raise ImpossibleShape("OPT has one key-value head per head; leave kv_heads out")
        if self.family != "opt" and self.head_size % 2:
            raise ImpossibleShape(
                f"rotary positions need an even head size, {self.hidden_size} / {self.heads} "
                f"heads is {self.head_size}; choose other sizes"
            )

    @property
    def key_value_heads(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.heads

    @property
    def feed_forward_size(self) -> int:
        """Four times the hidden size, or 8/3 of it where the layer is gated."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        if self.family == "opt":
            return 4 * self.hidden_size
        return math.ceil(8 * self.hidden_size / 3 / 16) * 16

    def config_fields(self) -> dict[str, Any]:
        """The fields of transformers' config class of the family."""
        fields: dict[str, Any] = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": self.max_positions,
        }
        if self.family == "opt":
            # As OPT's checkpoints have it: norm before each part, embeddings tied.
            return fields | {
                "ffn_dim": self.feed_forward_size,
                "word_embed_proj_dim": self.hidden_size,
                "do_layer_norm_before": True,
                "tie_word_embeddings": True,
            }
        fields |= {
            "intermediate_size": self.feed_forward_size,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.head_size,
            "tie_word_embeddings": False,
        }
        if self.family == "mistral":
            fields["sliding_window"] = None  # as in the family's later models
        return fields


def make_random_model(
    path: str | Path,
    family: str,
    *,
    hidden_size: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int | None = None,
    intermediate_size: int | None = None,
    vocab_size: int = 2048,
    vocab_padding: int = 0,
    max_positions: int = 2048,
    dtype: str = "float32",
    seed: int = 0,
    shards: int = 1,
    tokenizer: Path | None = None,
) -> Path:
    """Writes a folder that transformers' `from_pretrained` loads, and returns it.

    `vocab_size` rows of the embedding include `vocab_padding` rows beyond the tokenizer's last
    token, as checkpoints have that round their vocabulary up. `tokenizer` is a folder whose
    tokenizer to use instead of tiny's. With `shards` above one the weights lie in that many files
    with an index. The same arguments give the same bytes.

    Raises ImpossibleShape when the sizes do not fit, or when the folder already holds a model.
    """
    shape = Shape(
        family=family,
        hidden_size=hidden_size,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        intermediate_size=intermediate_size,
        vocab_size=vocab_size,
        max_positions=max_positions,
        dtype=dtype,
    )
    if shards < 1:
        raise ImpossibleShape(f"{shards} shards hold no weights; ask for at least one")
    folder = Path(path)
    if any(folder.glob("*.safetensors")):
        raise ImpossibleShape(f"{folder} already holds a model; remove it or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    special = write_tokenizer(
        folder, tokens=vocab_size - vocab_padding, max_positions=max_positions, source=tokenizer
    )
    weights = _write_config_and_draw(folder, shape, special, seed)
    _save(folder, weights, shards)
    return folder


def _write_config_and_draw(
    folder: Path, shape: Shape, special: SpecialTokens, seed: int
) -> "dict[str, torch.Tensor]":
    """Names and sizes come from the family's own class in transformers, built without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    ids = dataclasses.asdict(special)
    dtype: torch.dtype = getattr(torch, shape.dtype)
    config = AutoConfig.for_model(shape.family, **shape.config_fields(), **ids, dtype=dtype)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(skeleton).__name__]
    config.save_pretrained(folder)
    GenerationConfig(**ids).save_pretrained(folder)
    random = torch.Generator().manual_seed(seed)
    return {
        name: _draw(name, parameter.shape, config.tie_word_embeddings, random).to(dtype)
        for name, parameter in skeleton.named_parameters()
    }


def _draw(
    name: str, size: "torch.Size", tied_embeddings: bool, random: "torch.Generator"
) -> "torch.Tensor":
    import torch

    values = torch.randn(size, generator=random)
    if len(size) == 1:
        # Norm weights lie near one, biases near zero; both differ, so that a lost one shows.
        return 0.1 * values + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    inputs = size[-1]
    if "lm_head" in name or ("embed_tokens" in name and tied_embeddings):
        return values * (LOGIT_SPREAD / math.sqrt(inputs))
    return values if "embed_tokens" in name else values / math.sqrt(inputs)


def _save(folder: Path, weights: "dict[str, torch.Tensor]", shards: int) -> None:
    from safetensors.torch import save_file

    metadata = {"format": "pt"}
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata=metadata)
        return
    if shards > len(weights):
        raise ImpossibleShape(f"{len(weights)} tensors do not fill {shards} shards; ask for fewer")
    places: dict[str, str] = {}
    names = list(weights)
    for index in range(shards):
        part = names[index * len(names) // shards : (index + 1) * len(names) // shards]
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, metadata=metadata)
        places |= dict.fromkeys(part, file)
    total_bytes = sum(tensor.nbytes for tensor in weights.values())
    document = {"metadata": {"total_size": total_bytes}, "weight_map": places}
    index_file = folder / "model.safetensors.index.json"
    index_file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m distserve.models.random_weights",
        description="writes a model of random weights",
    )
    parser.add_argument("--family", required=True, choices=FAMILIES)
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, help="as many as heads when left out")
    parser.add_argument("--intermediate-size", type=int, help="of the feed-forward layers")
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--vocab-padding", type=int, default=0, help="rows without a token")
    parser.add_argument("--max-positions", type=int, default=2048)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--tokenizer", type=Path, help="folder whose tokenizer to use")
    options = vars(parser.parse_args(arguments))
    try:
        print(make_random_model(options.pop("output"), **options))
    except ModelsError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
