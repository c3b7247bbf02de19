"""The question that a plan answers, and the hash that tells whether it is still the same question.

The hash is that of a canonical JSON text: it depends on values alone, on no order of a mapping, no
process and no release that adds a field, since a field that has its default is left out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distserve.planner.machine import Machine
from distserve.planner.models import ModelShape
from distserve.planner.profiles import HardwareProfile
from distserve.planner.result import Slo
from distserve.workload import ArrivalProcess, RequestSet


@dataclass(frozen=True)
class PlanRequest:
    """All that a plan depends on; `rate` None asks for the most that the machine can do."""

    model: ModelShape
    profile: HardwareProfile
    slo: Slo
    requests: RequestSet
    machine: Machine
    rate: float | None = None
    arrivals: ArrivalProcess = field(default_factory=ArrivalProcess)
    strategy: str = "Disaggregated"
    options: Mapping[str, Any] = field(default_factory=dict)
    fixed_tp: Mapping[str, int] = field(default_factory=dict)
    max_batched_tokens: int = 8192
    max_requests: int = 256
    max_ranks: int | None = None
    """Most accelerators of one instance: what the engine can run, None for any number."""

    @property
    def inputs_hash(self) -> str:
        """Equal for equal questions, whatever process or release asks.

        Of the profile only this model's part counts, of the network its measured times: a profile
        or table that is changed under its old name is another input.
        """
        explicit = _canonical(self)
        explicit["profile"] = _canonical(self._profile())
        explicit["requests"].pop("name", None)
        explicit["requests"].pop("prefix_blocks", None)  # no prefix cache is simulated
        explicit["machine"].pop("network", None)
        levels = (True, False) if self.machine.high_affinity else (True,)
        explicit["links"] = [
            [list(link.size_bytes), list(link.time_ms)] for link in map(self.machine.link, levels)
        ]
        text = json.dumps(explicit, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _profile(self) -> dict[str, Any]:
        profile, name = self.profile, self.model.name
        serving = {tp: s for (model, tp), s in profile.serving_by_model.items() if model == name}
        return ({"serving": serving} if serving else {}) | {
            "name": profile.name,
            "kv_budget_bytes": profile.kv_budget_bytes,
            "times": {tp: times for (model, tp), times in profile.entries.items() if model == name},
            "max_tokens": {
                f"{tp}x{pp}": tokens
                for (model, tp, pp), tokens in profile.max_tokens.items()
                if model == name
            },
        }


_PLAIN = frozenset((int, str, bool, type(None)))


def _canonical(value: Any) -> Any:
    """JSON of a value: dataclasses without what equals its default, whole numbers as integers."""
    if type(value) in _PLAIN:  # A trace has hundreds of thousands.
        return value
    if dataclasses.is_dataclass(value):
        return {
            part.name: _canonical(held)
            for part in dataclasses.fields(value)
            if part.compare and (held := getattr(value, part.name)) != _default(part)
        }
    if isinstance(value, Mapping):
        return {str(key): _canonical(held) for key, held in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_canonical(held) for held in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _default(part: dataclasses.Field[Any]) -> Any:
    if part.default_factory is not dataclasses.MISSING:
        return part.default_factory()
    return part.default
