"""What all types of the resource share: camelCase names, no unknown fields, rules in CEL.

A rule that spans several fields is written down once, as CEL for the API server and as a predicate
for the commands, with one message for both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.alias_generators import to_camel


@dataclass(frozen=True)
class Rule:
    """`x-kubernetes-validations` of one type. The message says what to do instead."""

    cel: str
    message: str
    holds: Callable[[Any], bool]
    """The same as `cel`, of the validated object."""


class Model(BaseModel):
    """Base of every type. Attributes are snake_case, documents camelCase."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=False,
        validate_default=False,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        if broken := [rule.message for rule in self.rules if not rule.holds(self)]:
            raise ValueError("; ".join(broken))
        return self

    def document(self) -> dict[str, Any]:
        """As a user would write it: camelCase, without what equals its default."""
        return self.model_dump(mode="json", exclude_defaults=True)
