"""Builds transformers' model bodies, empty, with our attention in them; `loading` fills them.

The modeling modules are imported one by one, when a model needs them: each import of transformers
costs tens of megabytes in every engine.
"""

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from distserve.engine.attention import ATTENTION_NAME, register_attention
from distserve.engine.errors import ModelError
from distserve.engine.pool import KvShape

_FAMILIES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "MistralForCausalLM": "mistral",
    "OPTForCausalLM": "opt",
}


@dataclass(frozen=True, slots=True)
class Body:
    """A model of transformers whose attention is ours."""

    model: Any
    """XForCausalLM, in eval mode."""
    config: Any
    """transformers' PreTrainedConfig."""
    kv: KvShape
    tied: frozenset[str]
    """Names of weights that are others' (the head of models with tied embeddings)."""

    def hidden(self, tokens: torch.Tensor, positions: torch.Tensor, step: object) -> torch.Tensor:
        """[tokens, hidden size] after the last layer's norm. `step` reaches the attention."""
        out = self.model.model(
            input_ids=tokens[None], position_ids=positions[None], use_cache=False, kv_step=step
        )
        last: torch.Tensor = out.last_hidden_state[0]
        return last

    def step_bytes(self, tokens: int) -> int:
        """What `hidden` of so many tokens takes meanwhile, about, without the attention's own.

        An MLP holds three tensors of its width at once; of the hidden size there are the residual,
        its norm and what that computes in float32.
        """
        inner = self.model.model
        width = max(m.out_features for m in inner.modules() if isinstance(m, torch.nn.Linear))
        each = 3 * width * self.model.dtype.itemsize + 4 * self.config.hidden_size * 4
        return int(tokens * each)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, vocabulary] of some rows of `hidden`."""
        scores: torch.Tensor = self.model.lm_head(hidden)
        return scores


def build_body(raw: Mapping[str, Any], dtype: torch.dtype) -> Body:
    """An empty body for a config.json. Raises ModelError for what is not served."""
    architecture, family = _family(raw)
    _refuse(raw)
    package = f"transformers.models.{family}"
    with _without_triton():
        configuration = importlib.import_module(f"{package}.configuration_{family}")
        modeling = importlib.import_module(f"{package}.modeling_{family}")
    stem = architecture.removesuffix("ForCausalLM")
    try:
        config = getattr(configuration, f"{stem}Config").from_dict(dict(raw))
    except Exception as error:  # transformers raises what its validators happen to raise
        line = " ".join(str(error).split())
        raise ModelError(f"config.json is not valid for {architecture}: {line}") from error
    _refuse_rope(config)
    register_attention()
    config._attn_implementation = ATTENTION_NAME
    return _build(getattr(modeling, architecture), config, dtype)


@contextmanager
def _without_triton() -> Iterator[None]:
    """Transformers' imports pull in torch's compiler and that one Triton, a compiler for GPUs whose
    library takes 70 MB of every process. Where there is no GPU it is kept out meanwhile."""
    if torch.cuda.is_available() or "triton" in sys.modules:
        yield
        return
    sys.modules["triton"] = None  # type: ignore[assignment]  # what import takes for "missing"
    try:
        yield
    finally:
        del sys.modules["triton"]


def _family(raw: Mapping[str, Any]) -> tuple[str, str]:
    architectures = raw.get("architectures") or ["none"]
    family = _FAMILIES.get(architectures[0])
    if family is None:
        raise ModelError(
            f"architecture {architectures[0]} is not served: choose a model of one of "
            f"{', '.join(_FAMILIES)}"
        )
    return architectures[0], family


def _refuse(raw: Mapping[str, Any]) -> None:
    """Settings that change the numbers and that our attention does not follow."""
    if raw.get("quantization_config"):
        raise ModelError("quantised checkpoints are not served: use the bf16 or fp16 checkpoint")
    window = raw.get("sliding_window") if raw.get("use_sliding_window", True) else None
    if window is not None and window < raw.get("max_position_embeddings", window + 1):
        raise ModelError(
            f"sliding-window attention ({window} tokens) is not served: choose a model without it, "
            "or lower max_position_embeddings in config.json to the window"
        )


def _refuse_rope(config: Any) -> None:
    """Longrope has two sets of frequencies, and transformers takes one of them for all rows of a
    call, by the furthest position in it. Our calls hold many requests."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        raise ModelError(
            "rope scaling of type longrope is not served: choose a model without it, or with "
            "another type (llama3, yarn, linear)"
        )


def _build(architecture: type[torch.nn.Module], config: Any, dtype: torch.dtype) -> Body:
    """The modules come from the meta device, so that nothing is initialised in vain; then the
    parameters are allocated once, and rope's frequencies computed (they are in no checkpoint)."""
    with torch.device("meta"):
        model: Any = architecture(config)
    tied: frozenset[str] = frozenset()
    if config.tie_word_embeddings:
        model.lm_head.weight = model.get_input_embeddings().weight
        tied = frozenset({"lm_head.weight"})
    _allocate(model, dtype)
    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] == "rotary_emb":
            model.set_submodule(name, type(module)(config=config))
    if any(buffer.is_meta for buffer in model.buffers()):
        raise ModelError(f"{type(model).__name__} keeps buffers that are in no checkpoint")
    heads = config.num_attention_heads
    kv = KvShape(
        layers=config.num_hidden_layers,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )
    return Body(model.eval(), config, kv, tied)


def _allocate(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Give every meta parameter its memory, shared ones once."""
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, meta in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(meta) not in made:
                empty = torch.empty(meta.shape, dtype=dtype)
                made[id(meta)] = torch.nn.Parameter(empty, requires_grad=False)
            setattr(module, name, made[id(meta)])
