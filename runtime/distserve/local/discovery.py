"""Keeps the discovery file: which instances there are and which of them are ready."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distserve.api import labels
from distserve.local.pod import Pod
from distserve.resources.processes import ENGINE_PORT


def endpoints(pods: Iterable[Pod]) -> dict[str, Any]:
    """The document of docs/processes.md. Gateways are no endpoints."""
    return {
        "endpoints": [
            {
                "name": pod.name,
                "url": f"http://{pod.address}:{ENGINE_PORT}",
                "role": pod.spec.role,
                "unit": pod.spec.labels.get(labels.UNIT, ""),
                "revision": pod.spec.labels.get(labels.REVISION, ""),
                "domain": pod.spec.labels.get(labels.DOMAIN, ""),
                "ready": pod.ready,
                "terminating": pod.terminating,
            }
            for pod in pods
            if pod.spec.role
        ]
    }


class DiscoveryFile:
    """Readers see the old or the new text, never a part; nothing is written without a change."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text = ""

    def publish(self, pods: Iterable[Pod]) -> None:
        text = json.dumps(endpoints(pods))
        if text == self._text:
            return
        scratch = self._path.with_name(f".{self._path.name}.new")
        scratch.write_text(text)
        scratch.replace(self._path)
        self._text = text
