"""A deployment with everything set, and its rendered objects."""

from collections.abc import Callable
from typing import Any

import pytest
from tests.resources.documents import VARIANTS, Object

from distserve.api.deployment import DistServeDeployment
from distserve.api.loading import parse_deployment
from distserve.resources.render import render
from distserve.resources.settings import RenderSettings, released_images

KEY = "k" * 64


def deployed(name: str = "opt-13b", uid: str = "", **spec: Any) -> DistServeDeployment:
    document = {
        "apiVersion": "distserve.io/v1alpha1",
        "kind": "DistServeDeployment",
        "metadata": {"name": name, "namespace": "llm", "uid": uid},
        "spec": {
            "model": {"id": "facebook/opt-13b", "source": {"builtin": "tiny"}},
            "accelerator": {"type": "CPU", "kvCache": "64Mi", "cpusPerRank": 3},
            "units": 2,
            "prefill": {"instancesPerUnit": 2},
            "decode": {"instancesPerUnit": 3},
        }
        | spec,
    }
    return parse_deployment(document, "test")


def rendered(name: str = "opt-13b", uid: str = "", **spec: Any) -> list[Object]:
    return render(deployed(name, uid, **spec), RenderSettings(released_images(), key=KEY))


@pytest.fixture
def deployment() -> Callable[..., DistServeDeployment]:
    return deployed


@pytest.fixture
def make() -> Callable[..., list[Object]]:
    return rendered


@pytest.fixture(params=VARIANTS)
def objects(request: pytest.FixtureRequest, make: Callable[..., list[Object]]) -> list[Object]:
    return make(uid="1234", **VARIANTS[request.param])
