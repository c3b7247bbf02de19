"""What the built images hold, and what they do not."""

import re

import pytest
from tools.images.archive import Image
from tools.images.context import Context

# Building from empty caches counts as part of the first test.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

TARGETS = ("operator", "gateway", "migrator")
TOOLS = re.compile(
    r"(.*/)?bin/(cc|c\+\+|gcc.*|g\+\+.*|clang.*|ld|ld\.(bfd|gold|lld)|as|make|cmake|cargo|rustc|go|perl"
    r"|pip[0-9.]*|uv|uvx|conda|apt.*|dpkg.*|su|sudo|mount|bash|curl|wget)"
)
SITE = "opt/distserve/lib/python3.11/site-packages/"
FORBIDDEN = {
    "operator": {"torch", "transformers", "fastapi", "pip", "setuptools", "uv"},
    "gateway": {"torch", "transformers", "kubernetes", "kopf", "pip", "setuptools", "uv"},
    "migrator": {"torch", "transformers", "pydantic", "fastapi", "kubernetes", "pip", "uv"},
}
# The installed folders of packages; the migrator's list is short enough to be told whole.
MIGRATOR_PACKAGES = {"distserve", "msgspec", "numpy", "prometheus_client"}


def packages(image: Image) -> set[str]:
    """Importable names of what is installed beside the standard library."""
    below = (path.removeprefix(SITE) for path in image.files if path.startswith(SITE))
    found = {path.partition("/")[0] for path in below}
    return {name for name in found if not re.search(r"\.(dist-info|libs|py)$|^__pycache__$", name)}


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_nobody_in_particular(images: dict[str, Image], target: str) -> None:
    image = images[target]
    assert image.name == Context().image(target)
    assert image.config["User"] == "65532:65532"
    assert image.config["Entrypoint"] == ["distserve"]
    labels = image.config["Labels"]
    assert labels["org.opencontainers.image.title"] == f"distserve-{target}"
    assert labels["org.opencontainers.image.version"] == Context().version
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_ports_are_those_of_the_rendered_pods(images: dict[str, Image]) -> None:
    ports = {target: sorted(image.config["ExposedPorts"]) for target, image in images.items()}
    assert ports == {
        "operator": ["8080/tcp", "8081/tcp", "9443/tcp"],
        "gateway": ["8000/tcp"],
        "migrator": ["8101/tcp", "8102/tcp"],
    }


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_in_an_image_builds_installs_or_changes_users(
    images: dict[str, Image], target: str
) -> None:
    files = images[target].files
    assert [path for path in files if TOOLS.fullmatch(path)] == []
    assert [path for path, entry in files.items() if entry.isfile() and entry.mode & 0o6000] == []
    # The engine's preStop and whoever looks into a container need this much.
    assert {"usr/bin/sh", "usr/bin/env", "opt/distserve/bin/distserve"} <= files.keys()
    assert "etc/ssl/certs/ca-certificates.crt" in files


@pytest.mark.parametrize("target", TARGETS)
def test_what_runs_cannot_be_changed_by_who_runs_it(images: dict[str, Image], target: str) -> None:
    files = images[target].files
    open_to_all = {
        path
        for path, entry in files.items()
        if not entry.issym() and (entry.mode & 0o002 or 65532 in (entry.uid, entry.gid))
    }
    assert open_to_all <= {"tmp", "var/tmp", "run/lock"}


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_has_its_own_packages_only(images: dict[str, Image], target: str) -> None:
    found = packages(images[target])
    assert {"distserve", "msgspec", "numpy"} <= found
    assert not found & FORBIDDEN[target]


def test_the_migrator_has_three_packages(images: dict[str, Image]) -> None:
    assert packages(images["migrator"]) == MIGRATOR_PACKAGES


@pytest.mark.parametrize("target", TARGETS)
def test_every_module_of_the_project_is_compiled(images: dict[str, Image], target: str) -> None:
    files = images[target].files
    sources = [
        path for path in files if path.startswith(f"{SITE}distserve/") and path[-3:] == ".py"
    ]
    assert len(sources) > 100
    lacking = [path for path in sources if _compiled(path) not in files]
    assert lacking == []


def _compiled(source: str) -> str:
    folder, _, name = source.rpartition("/")
    return f"{folder}/__pycache__/{name.removesuffix('.py')}.cpython-311.pyc"


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_of_the_machine_that_built_it_is_left(
    images: dict[str, Image], target: str
) -> None:
    files = images[target].files
    assert [path for path in files if path.endswith(("pip.conf", "ca.crt"))] == []
    assert [path for path in files if path.startswith(("root/", "tmp/", "run/secrets"))] == []
    told = ("etc/resolv.conf", "etc/hostname", "etc/hosts")
    assert [path for path in told if path in files and files[path].size] == []


def test_the_layer_below_is_shared(images: dict[str, Image]) -> None:
    assert len({image.layers[0].blob for image in images.values()}) == 1
    # Everything but packages and project: what a node has of one image it has of all.
    assert len(images["gateway"].layers) == 3
