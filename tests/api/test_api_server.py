"""The rules as the API server evaluates them: what is refused there, and what is taken."""

from typing import Any

import pytest
import yaml
from tools.cluster.cluster import CHECKOUT, Cluster
from tools.cluster.errors import CommandFailed

CRD = CHECKOUT / "crds" / "distservedeployments.distserve.io.yaml"
GPU: dict[str, Any] = {"accelerator": {"type": "GPU"}}
LEVELS = [
    {"name": "nvlink", "nodeLabel": "nvidia.com/gpu.clique"},
    {"name": "zone", "nodeLabel": "topology.kubernetes.io/zone"},
]
HUB = {"huggingFace": {"repository": "org/model"}}


def model(source: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": {"id": "m", "source": source, **more}}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "pack without levels": ({"topology": {"packWithin": "nvlink"}}, "packWithin names no level"),
    "pack in another": (
        {"topology": {"levels": LEVELS, "packWithin": "rack"}}, "packWithin names no level",
    ),
    "level twice": ({"topology": {"levels": [LEVELS[0]] * 2}}, "two levels have one name"),
    "levels and preset": (
        {"topology": {"levels": LEVELS, "preset": "AWS"}}, "preset brings its own levels",
    ),
    "pack in none of the preset": (
        {"topology": {"preset": "GKE", "packWithin": "nvlink"}}, "GKE has the levels leaf, spine",
    ),
    "preferred what": ({"topology": {"enforcement": "Preferred"}}, "how packWithin is meant"),
    "relax what is required": (
        {"topology": {"levels": LEVELS, "packWithin": "zone", "relaxAfter": "1m"}},
        "relaxAfter belongs to enforcement Preferred",
    ),
    "idle for nothing": (
        {"topology": {"repackIdleAfter": "1m"}}, "repackIdleAfter belongs to repack WhenIdle",
    ),
    "no label": ({"topology": {"levels": [{"name": "a", "nodeLabel": "a b"}]}}, "nodeLabel"),
    "rollout that cannot": ({"rollout": {"maxSurgeUnits": 0}}, "no unit could ever be replaced"),
    "whenFull": ({"rollout": {"whenFull": "Hope"}}, "spec.rollout.whenFull"),
    "no restarts": ({"restart": {"budget": 0}}, "spec.restart.budget"),
    "lease of a day": ({"kvTransfer": {"lease": "24h"}}, "lease is not below 24h"),
    "longer than a day": ({"gateway": {"requestTimeout": "24h1s"}}, "more than the 24h"),
    "too many instances": (
        {"units": 2049}, "all units together have more than 4096 instances: lower units",
    ),
    "waits for days": ({"topology": {"gangTimeout": "24h1s"}}, "gangTimeout is more than 24h"),
    "keeps nodes soon": ({"topology": {"reserveAfter": "999ms"}}, "reserveAfter is less than 1s"),
    "source of two kinds": (model({"builtin": "tiny", **HUB}), "exactly one source is needed"),
    "cache of nothing": (
        model({"builtin": "tiny"}, cache={"claimName": "c"}), "this source needs none",
    ),
    "cache in two places": (
        model(HUB, cache={"claimName": "c", "ephemeral": {}}), "two places for one cache",
    ),
    "repository": (model({"huggingFace": {"repository": "a/b/c"}}), "huggingFace.repository"),
    "sidecar to a GPU": (
        GPU | {"kvTransfer": {"migratorPlacement": "Sidecar"}}, "cannot reach the engine's GPU",
    ),
    "image of no sidecar": (GPU | {"images": {"migrator": "m:1"}}, "images.migrator is that of"),
}  # fmt: skip
TAKEN: dict[str, dict[str, Any]] = {
    "levels": {"topology": {"levels": LEVELS, "packWithin": "nvlink"}},
    "levels alone": {"topology": {"levels": LEVELS}},
    "preset": {"topology": {"preset": "Topograph", "packWithin": "leaf"}},
    "preferred": {
        "topology": {
            "levels": LEVELS, "packWithin": "zone", "enforcement": "Preferred", "relaxAfter": "1m",
        }
    },
    "timeout alone": {"topology": {"gangTimeout": "1m"}},
    "timeout of a day": {"topology": {"gangTimeout": "24h", "reserveAfter": "1s"}},
    "many instances": {"units": 2048},
    "rollout in place": {"rollout": {"maxSurgeUnits": 0, "maxUnavailableUnits": 1}},
    "rollout": {"rollout": {"paused": True}},
    "lease": {"kvTransfer": {"lease": "23h59m"}},
    "short lease": {"kvTransfer": {"lease": "500ms"}},
    "a day": {"gateway": {"requestTimeout": "23h60m"}},
    "hub": model(HUB),
    "hub with a claim": model(HUB, cache={"claimName": "c"}),
    "hub and disk": model(HUB, cache={"ephemeral": {"sizeLimit": "100Gi"}}),
    "image": model({"image": "registry.example/m:1"}),
    "gpu": GPU,
    "gpu and auto": GPU | {"kvTransfer": {"migratorPlacement": "Auto"}},
    "together": {"kvTransfer": {"migratorPlacement": "InEngineContainer"}},
    "images": {"images": {"engine": "e:1", "migrator": "m:1", "gateway": "g:1"}},
    "observability": {"observability": {"podMonitor": False}},
}  # fmt: skip


@pytest.fixture(scope="module")
def crd(control_plane: Cluster) -> None:
    control_plane.apply(CRD)
    name = yaml.safe_load(CRD.read_text())["metadata"]["name"]
    control_plane.kubectl("wait", "--for=condition=Established", f"crd/{name}")


def tried(cluster: Cluster, change: dict[str, Any]) -> str:
    found = yaml.safe_load((CHECKOUT / "manifests/samples/tiny-cpu.yaml").read_text())
    found["spec"] |= change
    return cluster.apply(found, "default", "--dry-run=server")


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_cure(control_plane: Cluster, crd: None, name: str) -> None:
    change, said = REFUSED[name]
    with pytest.raises(CommandFailed) as refusal:
        tried(control_plane, change)
    assert said in str(refusal.value)


@pytest.mark.parametrize("name", TAKEN)
def test_taken(control_plane: Cluster, crd: None, name: str) -> None:
    assert "serverside-applied" in tried(control_plane, TAKEN[name])
