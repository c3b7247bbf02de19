"""`spec.model`: what is served, under which name, and where its files are."""

from enum import StrEnum

from pydantic import Field

from distserve.api.base import Model, Rule
from distserve.api.quantities import ByteQuantity

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"
PATH_PATTERN = r"^/[^:,\n]*$"
OWNED_PATHS = ("/run/distserve", "/etc/distserve", "/tmp")
"""Folders of the engine's container that our own volumes cover."""


class Dtype(StrEnum):
    AUTO = "auto"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"


class Builtin(StrEnum):
    TINY = "tiny"


class ClaimSource(Model):
    """A model on a PersistentVolumeClaim."""

    rules = (
        Rule(
            "!has(self.path) || !('..' in self.path.split('/'))",
            "path may not contain `..`: name a folder inside the claim",
            lambda self: ".." not in self.path.split("/"),
        ),
    )

    claim_name: str = Field(
        min_length=1,
        max_length=253,
        description="Name of a PersistentVolumeClaim in the deployment's namespace. It is mounted "
        "read-only by every engine pod, so it must be attachable to all their nodes.",
    )
    path: str = Field(
        default="",
        max_length=1024,
        pattern=r"^([^/:][^:]*)?$",
        description="The model's folder inside the claim, relative. Default: the claim's root.",
    )


class HuggingFaceSource(Model):
    """A model on a Hugging Face hub, downloaded once into the cache."""

    repository: str = Field(
        min_length=1,
        max_length=96,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$",
        description="Name on the hub, such as facebook/opt-13b. It must have safetensors weights.",
    )
    revision: str = Field(
        default="main",
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$",
        description="Branch, tag or commit. A branch is looked up once per revision of the "
        "deployment, so that all its instances serve the same commit. Default: main.",
    )
    token_secret_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        description="Secret in the deployment's namespace whose key `token` is the hub's token. "
        "Default: none, which is enough for public models.",
    )


class EphemeralCache(Model):
    """An emptyDir of each pod."""

    size_limit: ByteQuantity | None = Field(
        default=None,
        description="Most that it may hold. Unit: bytes, as a quantity such as 100Gi. Default: no "
        "limit.",
    )


class ModelCache(Model):
    """Where downloads go. At most one of the fields."""

    rules = (
        Rule(
            "!(has(self.claimName) && has(self.ephemeral))",
            "claimName and ephemeral are two places for one cache: remove one",
            lambda self: self.claim_name is None or self.ephemeral is None,
        ),
    )

    claim_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        description="PersistentVolumeClaim that all pods share, so that a model is downloaded once "
        "for all. It must be writable from all their nodes (ReadWriteMany). Default: none.",
    )
    ephemeral: EphemeralCache | None = Field(
        default=None,
        description="Each pod downloads for itself. Default: so, without claimName.",
    )


def _given(source: "ModelSource") -> list[str]:
    return [name for name in type(source).model_fields if getattr(source, name) is not None]


def _owned(path: str) -> bool:
    return any(path == owned or path.startswith(f"{owned}/") for owned in OWNED_PATHS)


class ModelSource(Model):
    """Where the model's files are. Exactly one of the fields."""

    rules = (
        Rule(
            "[has(self.builtin), has(self.imagePath), has(self.image), has(self.hostPath),"
            " has(self.persistentVolumeClaim), has(self.huggingFace)]"
            ".filter(given, given).size() == 1",
            "exactly one source is needed: huggingFace, persistentVolumeClaim, builtin, imagePath, "
            "image or hostPath",
            lambda self: len(_given(self)) == 1,
        ),
        Rule(
            "!has(self.imagePath) || !(self.imagePath + '/').matches("
            "'^(" + "|".join(OWNED_PATHS) + ")/')",
            "imagePath lies under a folder that a volume of the pod covers "
            f"({', '.join(OWNED_PATHS)}): put the model elsewhere in the image",
            lambda self: self.image_path is None or not _owned(self.image_path),
        ),
    )

    builtin: Builtin | None = Field(
        default=None, description="A model that ships with the engine. `tiny` is for samples."
    )
    image_path: str | None = Field(
        default=None,
        min_length=2,
        max_length=1024,
        pattern=PATH_PATTERN,
        description="Folder inside the engine's own image (`images.engine`), absolute.",
    )
    image: str | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description="OCI image that holds nothing but the model's files; mounted as a volume. "
        "Needs Kubernetes 1.35; before it the feature gate ImageVolume, and imageVolume.enabled "
        "in the chart's values.",
    )
    host_path: str | None = Field(
        default=None,
        min_length=2,
        max_length=1024,
        pattern=PATH_PATTERN,
        description="Folder of the node, absolute. For `distserve up` and for namespaces whose "
        "pod security allows hostPath volumes.",
    )
    persistent_volume_claim: ClaimSource | None = Field(
        default=None, description="A claim that holds the model's files."
    )
    hugging_face: HuggingFaceSource | None = Field(
        default=None, description="A hub that has the model; pods download it into `cache`."
    )


class ModelSpec(Model):
    """What is served."""

    rules = (
        Rule(
            "!has(self.cache) || has(self.source.huggingFace)",
            "cache is where downloads go, and this source needs none: remove it, or use "
            "source.huggingFace",
            lambda self: self.cache is None or self.source.hugging_face is not None,
        ),
    )

    id: str = Field(
        min_length=1,
        max_length=128,
        pattern=NAME_PATTERN,
        description="The name that clients use in `model`. Immutable.",
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "self == oldSelf",
                    "message": "model.id is immutable, since clients use it: create a second "
                    "deployment for the other model, move the clients, delete this one",
                }
            ]
        },
    )
    source: ModelSource = Field(description="Where the model's files are.")
    cache: ModelCache | None = Field(
        default=None,
        description="Where downloads of huggingFace go. Default: an emptyDir of each pod.",
    )
    dtype: Dtype = Field(
        default=Dtype.AUTO,
        description="Type of weights, activations and KV cache. `auto` takes the one that the "
        "model's files have; float64 is for comparisons. Default: auto.",
    )
    max_model_len: int | None = Field(
        default=None,
        ge=1,
        le=16777216,
        description="Longest prompt and output of one request together; the KV cache must hold it. "
        "Unit: tokens. Default: what the model was trained for, or what the KV cache holds, if "
        "that is less.",
    )
