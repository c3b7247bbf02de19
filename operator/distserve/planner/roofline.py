"""Step times from data sheets, for models and accelerators that nobody has measured here.

Every figure made this way is an estimate and is shown as one. A step takes the longer of its
arithmetic and its memory traffic, plus the all-reduces of tensor parallelism:

    prefill   2 * parameters * tokens flops, and 2 * layers * heads * head_dim * l^2 for attention
    decode    weights and KV read once per step, 2 * parameters flops per request

The efficiencies are what public kernels reach of the data sheet's peak on large inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from distserve.planner.errors import InvalidProfile
from distserve.planner.memory import GIB, weight_bytes
from distserve.planner.models import ModelShape
from distserve.planner.profiles import DEFAULT_PROFILE, HardwareProfile, shipped_profile
from distserve.strategies.time_model import Coefficients, TimeModel


@dataclass(frozen=True)
class Accelerator:
    """Peak figures of a data sheet (dense 16-bit arithmetic) and the memory left for a model."""

    name: str
    flops_per_s: float
    memory_bytes_per_s: float
    memory_bytes: float
    link_bytes_per_s: float
    """To another accelerator of the node, one direction."""
    flops_efficiency: float = 0.55
    memory_efficiency: float = 0.75
    kernel_ms_per_layer: float = 0.06
    """Launch and synchronisation of one layer."""
    all_reduce_ms: float = 0.015
    """Latency of one all-reduce beyond its bytes."""

    @property
    def kv_budget_bytes(self) -> float:
        return 0.93 * self.memory_bytes


ACCELERATORS = {
    accelerator.name: accelerator
    for accelerator in (
        Accelerator("a100-80g", 312e12, 2039e9, 80 * GIB, 300e9),
        Accelerator("a100-40g", 312e12, 1555e9, 40 * GIB, 300e9),
        Accelerator("h100-80g", 989e12, 3350e9, 80 * GIB, 450e9),
        Accelerator("h200-141g", 989e12, 4800e9, 141e9, 450e9),
        Accelerator("l40s-48g", 362e12, 864e9, 48 * GIB, 32e9),
        Accelerator("a10g-24g", 70e12, 600e9, 24 * GIB, 16e9),
    )
}


def estimate(model: ModelShape, accelerator: Accelerator, tp: int) -> TimeModel:
    """Coefficients of the time model; a fit below and above the batch where arithmetic takes over
    from memory is not needed here, so decode has one formula for both."""
    flops = accelerator.flops_per_s * accelerator.flops_efficiency / 1000  # per ms
    memory = accelerator.memory_bytes_per_s * accelerator.memory_efficiency / 1000
    link = accelerator.link_bytes_per_s / 1000
    layer_parameters = model.layers * (model.attention_parameters + model.ffn_parameters)
    shared = layer_parameters / tp
    weights_ms = weight_bytes(model, tp, 1) / memory
    reduces = 2 * model.layers if tp > 1 else 0
    fixed_ms = model.layers * accelerator.kernel_ms_per_layer + reduces * accelerator.all_reduce_ms
    reduced_bytes = 2 * (tp - 1) / tp * model.hidden * model.dtype_bytes
    token_ms = 2 * shared / flops + reduces * reduced_bytes / link
    attention_ms = 2 * model.layers * model.heads * model.head_dim / tp / flops
    context_ms = model.kv_bytes_per_token / min(tp, model.kv_heads) / memory
    # A short prompt still reads all weights: the intercept carries what arithmetic hides later.
    prefill = Coefficients(fixed_ms + weights_ms * 0.5, token_ms, attention_ms)
    decode = Coefficients(fixed_ms + weights_ms, context_ms, token_ms)
    return TimeModel(prefill, decode, decode)


def estimated_profile(model: ModelShape, accelerator: Accelerator) -> HardwareProfile:
    """A profile for every tensor parallel degree up to 16."""
    entries = {
        (model.name, tp): estimate(model, accelerator, tp) for tp in model.tensor_degrees(16)
    }
    return HardwareProfile(
        f"{accelerator.name} (estimate)",
        entries,
        kv_budget_bytes=accelerator.kv_budget_bytes,
        memory_bytes=accelerator.memory_bytes,
        estimated=True,
    )


def with_estimates(name: str, engine: str, model: ModelShape) -> HardwareProfile:
    """The named accelerator's estimate for `model`; a measured profile is kept where it knows it,
    without estimates of the degrees that it lacks: they are less near than what it has.

    `name` is one of ACCELERATORS. A profile file is refused: what it measured has no data sheet
    here, and another accelerator's times and memory would be taken for its own.
    """
    accelerator = ACCELERATORS.get(name)
    if accelerator is None:
        raise InvalidProfile(
            f"there is no data sheet of {name} to estimate from; give one of "
            f"{', '.join(ACCELERATORS)}, or leave --estimate (in the deployment: "
            "planning.estimate) out for step times of your own"
        )
    estimated = estimated_profile(model, accelerator)
    if name != DEFAULT_PROFILE:
        return estimated
    measured = shipped_profile(name, engine)
    if any(known == model.name for known, _ in measured.entries):
        return measured
    return replace(estimated, kv_budget_bytes=measured.kv_budget_bytes)
