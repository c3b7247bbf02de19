"""Pydantic's JSON schema made structural, as a CRD needs it: no references, no unions, bounds.

https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/
"""

from typing import Any

from pydantic import BaseModel

from distserve.api.base import Model, Rule
from distserve.api.strategies import STRATEGIES, StrategyName, StrategySpec

Schema = dict[str, Any]

_KEPT = (
    "type", "format", "enum", "default", "pattern", "minimum", "maximum", "minLength", "maxLength",
    "minItems", "maxItems", "maxProperties", "anyOf",
    "x-kubernetes-int-or-string", "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
)  # fmt: skip


def structural_schema(model: type[Model]) -> Schema:
    """The schema of one type with everything that it refers to inlined."""
    schema: Schema = {"type": "object"}
    if model.__doc__:
        schema["description"] = " ".join(model.__doc__.split())
    properties = _properties(model)
    required = [
        field.alias or name for name, field in model.model_fields.items() if field.is_required()
    ]
    if properties:
        schema["properties"] = properties
    if required:
        schema["required"] = required
    if validations := [_validation(rule) for rule in model.rules]:
        schema["x-kubernetes-validations"] = validations
    if model is StrategySpec:
        _inline_strategy_options(schema)
    return schema


def _properties(model: type[Model]) -> Schema:
    generated = model.model_json_schema(by_alias=True)["properties"]
    properties: Schema = {}
    for name, field in model.model_fields.items():
        alias = field.alias or name
        nested = _nested_model(field.annotation)
        if nested is None:
            node = _leaf(generated[alias], model)
        elif _is_list(field.annotation):
            node = _leaf(generated[alias], model) | {"items": structural_schema(nested)}
        else:
            node = structural_schema(nested)
            if field.default_factory is not None:
                node["default"] = {}
        node["description"] = field.description or node.get("description", "")
        properties[alias] = node
    return properties


def _leaf(generated: Schema, model: type[Model]) -> Schema:
    """A node without fields of its own. An optional one loses its null: absence says it."""
    node = dict(generated)
    if "$ref" in node:
        definitions = model.model_json_schema()["$defs"]
        node = definitions[node.pop("$ref").rpartition("/")[2]] | node
    for option in node.get("anyOf", []):
        if option.get("type") == "null":
            (given,) = [o for o in node.pop("anyOf") if o.get("type") != "null"]
            node = {k: v for k, v in node.items() if k != "default"} | _leaf(given, model)
            break
    if node.get("default", ...) is None or node.get("default") in ([], {}, ""):
        del node["default"]
    if node.get("x-kubernetes-int-or-string"):
        node.pop("type", None)
    kept = {key: node[key] for key in _KEPT if key in node}
    for inner in ("items", "additionalProperties"):
        if isinstance(node.get(inner), dict):
            kept[inner] = _leaf(node[inner], model)
    return kept


def _nested_model(annotation: Any) -> type[Model] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation if issubclass(annotation, Model) else None
    for argument in getattr(annotation, "__args__", ()):
        if (found := _nested_model(argument)) is not None:
            return found
    return None


def _is_list(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) is list


def _validation(rule: Rule) -> Schema:
    return {"rule": rule.cel, "message": rule.message}


def _inline_strategy_options(schema: Schema) -> None:
    """The options of all strategies side by side, and a rule each that names whose they are."""
    options: Schema = {}
    owners: dict[str, list[StrategyName]] = {}
    for name, kind in STRATEGIES.items():
        for option, node in structural_schema(kind.options).get("properties", {}).items():
            options[option] = node
            owners.setdefault(option, []).append(name)
    description = schema["properties"]["options"]["description"]
    schema["properties"]["options"] = {
        "type": "object",
        "description": description,
        "properties": options,
        "default": {},
    }
    schema["x-kubernetes-validations"] = [
        {
            "rule": f"!has(self.options) || !has(self.options.{option})"
            f" || self.name in {[str(n) for n in names]}",
            "message": f"options.{option} belongs to strategy {' or '.join(names)}: remove it",
        }
        for option, names in owners.items()
    ]
