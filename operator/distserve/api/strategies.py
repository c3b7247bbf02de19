"""The one list of strategies: names, options and the roles that each of them uses.

Engine, gateway and planner have one module per name (`module_name`); a test checks that none of
them lacks one. A new strategy adds an entry here and those modules.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from distserve.api.base import Model


class StrategyName(StrEnum):
    DISAGGREGATED = "Disaggregated"
    """Prefill and decode on different instances; the KV cache moves between them (DistServe)."""
    COLOCATED = "Colocated"
    """Both phases on one instance, prefills first (continuous batching)."""
    CHUNKED_PREFILL = "ChunkedPrefill"
    """Both phases on one instance; prompts are cut into chunks that share steps with decodes."""


class Role(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"
    HYBRID = "hybrid"


class DisaggregatedOptions(Model):
    """None so far."""


class ColocatedOptions(Model):
    """None so far."""


class ChunkedPrefillOptions(Model):
    chunk_tokens: int | None = Field(
        default=None,
        ge=16,
        le=65536,
        description="Size of a step: running decodes take one token each, a chunk of a prompt "
        "fills the rest. Unit: tokens. Default: the engine's own.",
    )


@dataclass(frozen=True)
class StrategyKind:
    """What the types have to know about a strategy."""

    options: type[Model]
    roles: tuple[Role, ...]
    """Sections of the spec that it uses: exactly these."""


STRATEGIES: dict[StrategyName, StrategyKind] = {
    StrategyName.DISAGGREGATED: StrategyKind(DisaggregatedOptions, (Role.PREFILL, Role.DECODE)),
    StrategyName.COLOCATED: StrategyKind(ColocatedOptions, (Role.HYBRID,)),
    StrategyName.CHUNKED_PREFILL: StrategyKind(ChunkedPrefillOptions, (Role.HYBRID,)),
}


def module_name(name: StrategyName) -> str:
    """File of a strategy in each room: ChunkedPrefill is chunked_prefill."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


class StrategySpec(Model):
    """`spec.strategy`. Its schema has the options of all strategies; a rule each ties them to
    theirs (`schema.strategy_options`)."""

    name: StrategyName = Field(
        default=StrategyName.DISAGGREGATED,
        description="Disaggregated: prefill and decode on different instances. Colocated: both on "
        "one, prefills first. ChunkedPrefill: both on one, prompts in chunks. "
        "Default: Disaggregated.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="The strategy's own. Default: none."
    )

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        try:
            self.typed_options  # noqa: B018
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            known = ", ".join(option_names(self.name)) or "no options"
            raise ValueError(
                f"options.{field}: {first['msg']}; {self.name} takes {known}"
            ) from None
        return self

    @property
    def typed_options(self) -> Model:
        return STRATEGIES[self.name].options.model_validate(self.options)


def option_names(name: StrategyName) -> list[str]:
    fields = STRATEGIES[name].options.model_fields
    return [field.alias or attribute for attribute, field in fields.items()]
