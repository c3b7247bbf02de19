"""The CRD: structural, bounded, and equal to what is committed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes.client as k8s
import pytest
import yaml

from distserve.api.base import Model
from distserve.api.conditions import REASONS, Condition
from distserve.api.crd import custom_resource_definition
from distserve.api.deployment import Spec
from distserve.api.reference import described, reference
from distserve.cli import crd as command
from distserve.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
CRD = custom_resource_definition()
(VERSION,) = CRD["spec"]["versions"]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]
KNOWN_KEYS = set(k8s.V1JSONSchemaProps.attribute_map.values())


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for inner, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if inner in schema:
            yield from nodes(schema[inner], f"{path}{mark}")


NODES = dict(nodes(SCHEMA))


def at(path: str) -> dict[str, Any]:
    return NODES[path]


@pytest.mark.parametrize("path", [".spec.topology.repack", ".spec.topology.repackIdleAfter"])
def test_a_new_field_is_in_no_object_that_does_not_name_it(path: str) -> None:
    """API servers write defaults into all that they serve, and an operator refuses a field that it
    does not know: during an upgrade the former one would accept no deployment."""
    assert "default" not in at(path)


@pytest.mark.parametrize("path", NODES)
def test_every_node_is_structural(path: str) -> None:
    node = NODES[path]
    assert node.get("x-kubernetes-int-or-string") or isinstance(node.get("type"), str)
    assert set(node) <= KNOWN_KEYS | {"enum", "format"}
    for forbidden in ("$ref", "oneOf", "allOf", "not", "title"):
        assert forbidden not in node
    if "additionalProperties" in node:
        assert "maxProperties" in node and "properties" not in node, "a map, and of a bounded size"
    elif node.get("type") == "object" and path not in (".metadata",):
        preserves = node.get("x-kubernetes-preserve-unknown-fields")
        assert preserves or "properties" in node, "an object without fields keeps nothing"
    if node.get("type") == "array":
        assert "maxItems" in node
    if set(node.get("required", [])) - set(node.get("properties", {})):
        raise AssertionError("required, but no field")


@pytest.mark.parametrize("path", [p for p in NODES if p.startswith((".spec", ".status"))])
def test_every_field_is_described_and_bounded(path: str) -> None:
    node = NODES[path]
    of_many = path.endswith("{}") or (path.endswith("[]") and node["type"] == "string")
    assert node.get("description") or of_many
    if path.startswith(".spec") and node.get("type") == "string" and "enum" not in node:
        assert "maxLength" in node, "rules about it would have no bounded cost"
    if path.startswith(".spec") and node.get("type") == "integer":
        assert "minimum" in node and "maximum" in node
    if path.startswith(".spec") and node.get("default", {}) != {}:
        assert "Default: " in node["description"]
        shown = node["default"]
        assert str(shown).lower() in node["description"].lower()


def test_it_is_the_kind_of_object_that_kubernetes_knows() -> None:
    assert set(CRD["spec"]) <= set(k8s.V1CustomResourceDefinitionSpec.attribute_map.values())
    assert set(VERSION) <= set(k8s.V1CustomResourceDefinitionVersion.attribute_map.values())
    assert CRD["spec"]["names"]["shortNames"] == ["dsd"]
    assert CRD["metadata"]["name"] == "distservedeployments.distserve.io"


def test_subresources_and_columns_point_at_fields() -> None:
    scale = VERSION["subresources"]["scale"]
    assert at(scale["specReplicasPath"])["default"] == 1
    assert at(scale["statusReplicasPath"])["type"] == "integer"
    assert at(scale["labelSelectorPath"])["type"] == "string"
    assert VERSION["subresources"]["status"] == {}
    names = [column["name"] for column in VERSION["additionalPrinterColumns"]]
    assert names == ["Ready", "Reason", "Units", "Prefill", "Decode", "Hybrid", "Domain", "Age"]
    for column in VERSION["additionalPrinterColumns"]:
        assert set(column) <= {"name", "type", "jsonPath", "description", "priority"}


def test_rules_are_bounded_and_say_what_to_do() -> None:
    rules = [r for node in NODES.values() for r in node.get("x-kubernetes-validations", [])]
    assert len(rules) >= 12
    for rule in rules:
        assert rule["rule"] and len(rule["message"]) <= 2048 and "\n" not in rule["message"]
    assert {"rule": "self == oldSelf"}.items() <= (
        at(".spec.model.id")["x-kubernetes-validations"][0].items()
    )


def models(model: type[Model]) -> Iterator[type[Model]]:
    yield model
    for field in model.model_fields.values():
        for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, Model):
                yield from models(candidate)


def test_every_rule_of_the_types_is_in_the_schema() -> None:
    in_schema = {
        r["message"] for node in NODES.values() for r in node.get("x-kubernetes-validations", [])
    }
    declared = {rule.message for model in models(Spec) for rule in model.rules}
    assert declared and declared <= in_schema


def test_committed_files_are_what_the_types_say() -> None:
    for path, text in command.generated_files().items():
        assert (ROOT / path).read_text() == text, "run `make crds`"
    assert yaml.safe_load((ROOT / command.CRD_FILE).read_text()) == CRD


def test_every_condition_and_reason_is_explained() -> None:
    assert set(REASONS) == set(Condition)
    page = reference()
    for condition, reasons in REASONS.items():
        for text in (*described(Condition).values(), *described(reasons).values()):
            assert text.endswith(".") and text in page
        assert list(described(reasons)) == [reason.value for reason in reasons]
        assert f"### {condition}" in page


def test_check_names_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["crd", "--check"]) == 2
    (tmp_path / "operator/distserve/api").mkdir(parents=True)
    assert main(["crd", "--check"]) == 1
    assert str(command.CRD_FILE) in capsys.readouterr().err
    assert main(["crd", "--write"]) == 0
    assert main(["crd", "--check"]) == 0
    (tmp_path / command.REFERENCE_FILE).write_text("stale")
    assert main(["crd", "--check"]) == 1
    assert str(command.REFERENCE_FILE) in capsys.readouterr().err
    assert main(["crd"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == CRD
