"""Deployments of many kinds, and how tests read what is rendered of them."""

from collections.abc import Callable, Iterator
from typing import Any

Object = dict[str, Any]
Make = Callable[..., list[Object]]

VARIANTS: dict[str, dict[str, Any]] = {
    "disaggregated": {},
    "colocated": {
        "strategy": {"name": "Colocated"}, "prefill": None, "decode": None, "hybrid": {},
    },
    "gpu": {
        "accelerator": {"type": "GPU"},
        "decode": {"parallelism": {"tensor": 2, "pipeline": 2}},
        "slo": {"ttft": "1s", "tpot": "100ms"},
    },
    "several pods": {
        "accelerator": {"type": "GPU", "perPod": 4},
        "decode": {"parallelism": {"tensor": 4, "pipeline": 3}},
    },
    "together": {"kvTransfer": {"migratorPlacement": "InEngineContainer"}},
    "claim": {
        "model": {
            "id": "m", "maxModelLen": 64,
            "source": {"persistentVolumeClaim": {"claimName": "models", "path": "m"}},
        },
    },
    "hub": {
        "model": {
            "id": "m",
            "source": {"huggingFace": {
                "repository": "org/m", "revision": "v1", "tokenSecretName": "hub",
            }},
            "cache": {"claimName": "models"},
        },
    },
    "image": {"model": {"id": "m", "source": {"image": "registry.example/m:1"}}},
    "host": {"model": {"id": "m", "source": {"hostPath": "/models/m"}}},
    "open": {"networkPolicy": {"enabled": False}, "units": 0},
}  # fmt: skip


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [o for o in objects if o["kind"] == kind]


def templates(objects: list[Object]) -> Iterator[Object]:
    for found in objects:
        if found["kind"] in ("StatefulSet", "Deployment"):
            yield found["spec"]["template"]


def containers(template: Object) -> list[Object]:
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def flag(container: Object, name: str) -> str:
    words: list[str] = container["args"]
    return words[words.index(f"--{name}") + 1]


def revisions(objects: list[Object]) -> set[str]:
    return {
        o["metadata"]["labels"]["distserve.io/revision"] for o in of_kind(objects, "StatefulSet")
    }
