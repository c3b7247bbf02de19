"""What is refused, by whom, and what the line says."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from distserve.api.deployment import DistServeDeployment
from distserve.resources.support import unsupported_by_cluster, unsupported_by_engine

Deploy = Callable[..., DistServeDeployment]


@dataclass(frozen=True)
class Features:
    kubernetes: tuple[int, int] = (1, 34)
    namespace_labels: dict[str, str] = field(default_factory=dict)


def model(**source: Any) -> dict[str, Any]:
    return {"id": "m", "source": source}


def test_image_volumes_need_the_feature(deployment: Deploy) -> None:
    found = deployment(model=model(image="registry.example/m:1"))
    line = unsupported_by_cluster(found, Features())
    assert line and "spec.model.source.image" in line and "ImageVolume" in line
    assert unsupported_by_cluster(found, Features(kubernetes=(1, 35))) is None
    assert unsupported_by_cluster(found, Features(), frozenset({"ImageVolume"})) is None


@pytest.mark.parametrize("level", ["baseline", "restricted"])
def test_host_paths_need_a_privileged_namespace(deployment: Deploy, level: str) -> None:
    found = deployment(model=model(hostPath="/models/m"))
    enforce = "pod-security.kubernetes.io/enforce"
    line = unsupported_by_cluster(found, Features(namespace_labels={enforce: level}))
    assert line and "hostPath" in line and f"{enforce}={level}" in line
    for labels in ({}, {enforce: "privileged"}):
        assert unsupported_by_cluster(found, Features(namespace_labels=labels)) is None


def test_other_sources_need_nothing_of_the_cluster(deployment: Deploy) -> None:
    strict = Features((1, 29), {"pod-security.kubernetes.io/enforce": "restricted"})
    for source in (
        {"builtin": "tiny"}, {"imagePath": "/opt/m"}, {"huggingFace": {"repository": "o/m"}},
        {"persistentVolumeClaim": {"claimName": "c"}},
    ):  # fmt: skip
        assert unsupported_by_cluster(deployment(model=model(**source)), strict) is None


def test_what_the_engine_cannot_run_names_field_and_cure(deployment: Deploy) -> None:
    assert unsupported_by_engine(deployment()) is None
    line = unsupported_by_engine(deployment(accelerator={"type": "GPU"}))
    assert line and "spec.accelerator.type" in line and "type: CPU" in line
    line = unsupported_by_engine(deployment(prefill={"parallelism": {"tensor": 2}}))
    assert line and "spec.prefill.parallelism" in line
