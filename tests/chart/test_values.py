"""What values.schema.json lets pass, and what a wrong value is told."""

import re
from typing import Any

import pytest
import yaml
from tools.chart.rendering import CHART, helm, template
from tools.cluster.errors import CommandFailed

WRONG = [
    ({"replica": 3}, "at '': additional properties 'replica' not allowed"),
    ({"replicas": 0}, "at '/replicas': minimum: got 0, want 1"),
    ({"replicas": "2"}, "at '/replicas': got string, want integer"),
    ({"namespaces": "llm"}, "at '/namespaces': got string, want array"),
    ({"namespaces": ["LLM"]}, "at '/namespaces/0': 'LLM' does not match pattern"),
    ({"namespaces": ["a", "a"]}, "at '/namespaces': items at 0 and 1 are equal"),
    ({"fullnameOverride": "Serve_1"}, "at '/fullnameOverride': 'Serve_1' does not match pattern"),
    ({"fullnameOverride": "x" * 41}, "at '/fullnameOverride': maxLength: got 41, want 40"),
    ({"crds": {"install": "yes"}}, "at '/crds/install': got string, want boolean"),
    ({"crds": {"keep": True}}, "at '/crds': additional properties 'keep' not allowed"),
    ({"images": {"pullPolicy": "Sometimes"}}, "at '/images/pullPolicy': value must be one of"),
    ({"images": {"sidecar": {}}}, "at '/images': additional properties 'sidecar' not allowed"),
    ({"images": {"engine": {"digest": "1234"}}}, "at '/images/engine/digest': '1234' does not"),
    ({"images": {"tag": ":1"}}, "at '/images/tag': ':1' does not match"),
    ({"images": {"engine": {"tag": ":1"}}}, "at '/images/engine/tag': ':1' does not match"),
    ({"images": {"engine": {"repository": ""}}}, "at '/images/engine/repository': '' does not"),
    ({"images": {"registry": "https://x/"}}, "at '/images/registry': 'https://x/' does not"),
    ({"imagePullSecrets": ["mine"]}, "at '/imagePullSecrets/0': got string, want object"),
    ({"operator": {"workers": 0}}, "at '/operator/workers': minimum: got 0, want 1"),
    ({"operator": {"logLevel": "loud"}}, "at '/operator/logLevel': value must be one of 'debug'"),
    ({"operator": {"extraArgs": []}}, "at '/operator': additional properties 'extraArgs' not"),
    (
        {"operator": {"resources": {"limits": {"memory": "much"}}}},
        "at '/operator/resources/limits/memory': 'much' does not match pattern",
    ),
    (
        {"operator": {"tolerations": [{"effect": "Never"}]}},
        "at '/operator/tolerations/0/effect': value must be one of",
    ),
    (
        {"operator": {"topologySpreadConstraints": [{"topologyKey": "zone"}]}},
        "at '/operator/topologySpreadConstraints/0': missing properties",
    ),
    ({"operator": {"podLabels": {"a": 1}}}, "at '/operator/podLabels/a': got number, want string"),
    ({"networkPolicy": {"apiServerPorts": []}}, "at '/networkPolicy/apiServerPorts': minItems"),
    ({"webhook": {"enabled": "yes"}}, "at '/webhook/enabled': got string, want boolean"),
    ({"webhook": {"certificates": "Mine"}}, "at '/webhook/certificates': value must be one of"),
    ({"webhook": {"failurePolicy": "Block"}}, "at '/webhook/failurePolicy': value must be one of"),
    ({"webhook": {"timeoutSeconds": 31}}, "at '/webhook/timeoutSeconds': maximum: got 31, want 30"),
    ({"webhook": {"issuer": {"kind": "CA"}}}, "at '/webhook/issuer/kind': value must be one of"),
    ({"webhook": {"issuer": {"name": "A b"}}}, "at '/webhook/issuer/name': 'A b' does not match"),
    ({"webhook": {"caBundle": ""}}, "at '/webhook': additional properties 'caBundle' not allowed"),
    ({"monitoring": {"podMonitor": True}}, "at '/monitoring/podMonitor': value must be one of"),
    ({"monitoring": {"prometheusRule": "Yes"}}, "at '/monitoring/prometheusRule': value must"),
    ({"monitoring": {"interval": "often"}}, "at '/monitoring/interval': 'often' does not match"),
    ({"monitoring": {"labels": {"a": "b c"}}}, "at '/monitoring/labels/a': 'b c' does not match"),
    (
        {"monitoring": {"labels": {"a b": "c"}}},
        "at '/monitoring/labels': additional properties 'a b'",
    ),
    (
        {"monitoring": {"labels": {"distserve.io/unit": "u0"}}},
        "at '/monitoring/labels/distserve.io",
    ),
]


@pytest.mark.parametrize(("values", "said"), WRONG, ids=lambda value: str(value)[:60])
def test_a_wrong_value_is_refused_with_its_place(values: dict[str, Any], said: str) -> None:
    with pytest.raises(CommandFailed, match=re.escape(said)):
        template(values)


def test_lint_finds_nothing() -> None:
    said = helm("lint", "--strict", str(CHART))
    assert "[WARNING]" not in said
    assert "[ERROR]" not in said


def test_every_value_is_known_to_the_schema() -> None:
    """Defaults are values too: what is there is typed, what is typed is there."""
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    assert set(_leaves(yaml.safe_load((CHART / "values.yaml").read_text()))) == set(
        _properties(schema, schema["$defs"])
    ) - {"global"}


def test_the_chart_may_be_a_part_of_another() -> None:
    assert template({"global": {"registry": "of another chart"}}) == template()


def _leaves(values: dict[str, Any], path: str = "") -> list[str]:
    found = []
    for name, value in values.items():
        inner = isinstance(value, dict) and value and name not in ("resources",)
        found += _leaves(value, f"{path}{name}.") if inner else [path + name]
    return found


def _properties(schema: dict[str, Any], shared: dict[str, Any], path: str = "") -> list[str]:
    found = []
    for name, one in schema["properties"].items():
        one = shared[one["$ref"].rpartition("/")[2]] if "$ref" in one else one
        inner = "properties" in one and name not in ("resources", "affinity")
        found += _properties(one, shared, f"{path}{name}.") if inner else [path + name]
    return found
