"""How an engine's pod comes by its model: the argument, the volumes, and the download before it."""

from typing import Final

from distserve.api.deployment import DistServeDeployment
from distserve.api.model import ModelSource
from distserve.resources import parts
from distserve.resources.objects import Object
from distserve.resources.settings import RenderSettings

MODEL_FOLDER: Final = "/var/lib/distserve/model"
"""Of a model that is mounted as it is."""
CACHE_FOLDER: Final = "/var/lib/distserve/cache"
"""Of downloads: `distserve.models.fetch` says what is where in it."""
FETCH: Final = "fetch-model"
TOKEN_KEY: Final = "token"

_MODEL: Final = "model"
_CACHE: Final = "model-cache"


def model_argument(deployment: DistServeDeployment, revision: str) -> str:
    source = deployment.spec.model.source
    if source.builtin is not None:
        return f"builtin:{source.builtin}"
    if source.hugging_face is not None:
        return f"{CACHE_FOLDER}/pins/{_pin(deployment, revision)}"
    return source.image_path or MODEL_FOLDER


def model_volumes(deployment: DistServeDeployment) -> list[Object]:
    source = deployment.spec.model.source
    if source.host_path is not None:
        kind: Object = {"hostPath": {"path": source.host_path, "type": "Directory"}}
    elif (claim := source.persistent_volume_claim) is not None:
        kind = {"persistentVolumeClaim": {"claimName": claim.claim_name, "readOnly": True}}
    elif source.image is not None:
        kind = {"image": {"reference": source.image}}
    elif source.hugging_face is not None:
        return [{"name": _CACHE} | _cache(deployment)]
    else:
        return []
    return [{"name": _MODEL} | kind]


def model_mounts(source: ModelSource) -> list[Object]:
    """Of the engine: it only reads."""
    if source.hugging_face is not None:
        return [{"name": _CACHE, "mountPath": CACHE_FOLDER, "readOnly": True}]
    if source.builtin is not None or source.image_path is not None:
        return []
    mount = {"name": _MODEL, "mountPath": MODEL_FOLDER, "readOnly": True}
    claim = source.persistent_volume_claim
    return [mount | ({"subPath": claim.path} if claim is not None and claim.path else {})]


def fetch_containers(
    deployment: DistServeDeployment, revision: str, settings: RenderSettings
) -> list[Object]:
    """An init container of the engine's image, which has the hub's client. What it wants to be
    told beyond that (HF_ENDPOINT, HTTPS_PROXY) podTemplate adds to its env."""
    source = deployment.spec.model.source.hugging_face
    if source is None:
        return []
    environment = parts.environment()
    if source.token_secret_name is not None:
        secret = {"name": source.token_secret_name, "key": TOKEN_KEY}
        environment.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": secret}})
    flags = {
        "repository": source.repository,
        "revision": source.revision,
        "cache": CACHE_FOLDER,
        "pin": _pin(deployment, revision),
    }
    return [
        {
            "name": FETCH,
            "image": deployment.spec.images.engine or settings.images.engine,
            "command": ["distserve", "fetch-model"],
            "args": [word for name, value in flags.items() for word in (f"--{name}", value)],
            "env": environment,
            "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
            "terminationMessagePolicy": parts.LAST_WORDS,
            "securityContext": parts.container_security(),
            "volumeMounts": [
                parts.scratch_mount(),
                {"name": _CACHE, "mountPath": CACHE_FOLDER},
            ],
        }
    ]


def _pin(deployment: DistServeDeployment, revision: str) -> str:
    return f"{deployment.name}-{revision}"


def _cache(deployment: DistServeDeployment) -> Object:
    cache = deployment.spec.model.cache
    if cache is not None and cache.claim_name is not None:
        return {"persistentVolumeClaim": {"claimName": cache.claim_name}}
    limit = cache.ephemeral.size_limit if cache is not None and cache.ephemeral else None
    return {"emptyDir": {"sizeLimit": limit} if limit else {}}
