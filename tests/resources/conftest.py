"""A deployment with everything set, and its rendered objects."""

from collections.abc import Callable
from typing import Any

import pytest

from distserve.api.loading import parse_deployment
from distserve.resources.render import render
from distserve.resources.settings import RenderSettings, released_images

Object = dict[str, Any]
KEY = "k" * 64


def rendered(name: str = "opt-13b", uid: str = "", **spec: Any) -> list[Object]:
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
    settings = RenderSettings(released_images(), key=KEY)
    return render(parse_deployment(document, "test"), settings)


@pytest.fixture
def make() -> Callable[..., list[Object]]:
    return rendered
