"""Manifests, short to write, and what is said to those that are refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from distserve.api.loading import ManifestError, load_deployments


def document(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "distserve.io/v1alpha1",
        "kind": "DistServeDeployment",
        "metadata": {"name": "tiny"},
        "spec": {
            "model": {"id": "tiny", "source": {"builtin": "tiny"}},
            "accelerator": {"type": "CPU"},
            "prefill": {},
            "decode": {},
        }
        | spec,
    }


def written(tmp_path: Path, *documents: dict[str, Any]) -> Path:
    path = tmp_path / "deployment.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    return path


def refused(tmp_path: Path, found: dict[str, Any]) -> str:
    with pytest.raises(ManifestError) as error:
        load_deployments(written(tmp_path, found))
    message = str(error.value)
    assert "\n" not in message
    return message.removeprefix(f"{tmp_path}/deployment.yaml: ")
