"""The CustomResourceDefinition, made from the types."""

from typing import Any

from distserve.api.deployment import MAX_NAME, NAME_PATTERN, DistServeDeployment, Spec
from distserve.api.labels import GROUP, KIND, NAME, PLURAL, SHORT_NAME, SINGULAR, VERSION
from distserve.api.schema import structural_schema
from distserve.api.status import Status

MAX_OBJECT_NAME = 253
"""What Kubernetes allows: stated so that the cost of rules about the name is bounded."""


def custom_resource_definition() -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": SINGULAR,
                "shortNames": [SHORT_NAME],
                "categories": [NAME],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": _root_schema()},
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.units",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": _printer_columns(),
                }
            ],
        },
    }


def _root_schema() -> dict[str, Any]:
    return {
        "type": "object",
        "description": " ".join((DistServeDeployment.__doc__ or "").split()),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}"},
            "kind": {"type": "string", "description": KIND},
            "metadata": {
                "type": "object",
                "properties": {"name": {"type": "string", "maxLength": MAX_OBJECT_NAME}},
            },
            "spec": structural_schema(Spec),
            "status": structural_schema(Status),
        },
        "x-kubernetes-validations": [
            {
                "rule": f"self.metadata.name.size() <= {MAX_NAME}",
                "message": f"metadata.name has more than {MAX_NAME} characters: pods are named "
                "after it, choose a shorter one",
            },
            {
                "rule": f"self.metadata.name.matches('{NAME_PATTERN}')",
                "message": "metadata.name must start with a letter and have only lower case "
                "letters, digits and hyphens: Services are named after it",
            },
        ],
    }


def _printer_columns() -> list[dict[str, Any]]:
    ready = '.status.conditions[?(@.type=="Ready")]'
    return [
        _column("Ready", f"{ready}.status", "Whether clients get answers now."),
        _column("Reason", f"{ready}.reason", "Why."),
        _column("Units", ".status.replicas", "Ready units.", kind="integer"),
        _column("Prefill", _role("prefill"), "Ready prefill instances.", kind="integer"),
        _column("Decode", _role("decode"), "Ready decode instances.", kind="integer"),
        _column("Hybrid", _role("hybrid"), "Ready hybrid instances.", kind="integer", priority=1),
        _column("Domain", ".status.units[0].domain.value", "Where the first unit lies."),
        _column("Age", ".metadata.creationTimestamp", "Time since creation.", kind="date"),
    ]


def _role(name: str) -> str:
    return f'.status.roles[?(@.name=="{name}")].ready'


def _column(
    name: str, path: str, description: str, *, kind: str = "string", priority: int = 0
) -> dict[str, Any]:
    column = {"name": name, "type": kind, "jsonPath": path, "description": description}
    return column | ({"priority": priority} if priority else {})
