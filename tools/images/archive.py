"""OCI archives: written from a builder's layout folder, and read for their sizes and files."""

import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tools.cluster.errors import Unavailable

_NAME = "io.containerd.image.name"
_TAG = "org.opencontainers.image.ref.name"
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"


def write_archive(layout: Path, name: str, archive: Path) -> None:
    """Packs a layout folder with one image into an archive that is imported under `name`."""
    manifest = _only_manifest(layout)
    manifest["annotations"] = {_NAME: name, _TAG: name.rpartition(":")[2]}
    index = {"schemaVersion": 2, "manifests": [manifest]}
    (layout / "index.json").write_text(json.dumps(index))
    partial = archive.with_suffix(".new")
    with tarfile.open(partial, "w") as tar:
        for part in ("oci-layout", "index.json", "blobs"):
            tar.add(layout / part, part, filter=_plain)
    partial.rename(archive)


def _only_manifest(layout: Path) -> dict[str, Any]:
    """The image's descriptor; builders that can do several platforms put an index around it."""
    if not (layout / "index.json").exists():
        raise Unavailable("this builder writes no OCI layout: Docker 25 and Podman 4 do")
    index = json.loads((layout / "index.json").read_text())
    while index["manifests"][0]["mediaType"].endswith(("index.v1+json", "list.v2+json")):
        algorithm, digest = index["manifests"][0]["digest"].split(":")
        index = json.loads((layout / "blobs" / algorithm / digest).read_text())
    manifest: dict[str, Any] = index["manifests"][0]
    return manifest


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def merged(layers: Iterable[Sequence[tarfile.TarInfo]]) -> dict[str, tarfile.TarInfo]:
    """The files of layers that lie one over the other, the lowest first."""
    found: dict[str, tarfile.TarInfo] = {}
    for entries in layers:
        named = {entry.name.removeprefix("./").rstrip("/"): entry for entry in entries}
        # A layer's removals are of what the layers below it hold.
        for path in filter(_is_removal, named):
            gone = _removed(path)
            for each in [one for one in found if one == gone or one.startswith(f"{gone}/")]:
                del found[each]
        found |= {path: entry for path, entry in named.items() if not _is_removal(path)}
    found.pop("", None)
    return found


@dataclass(frozen=True)
class Layer:
    size_bytes: int
    blob: str


@dataclass(frozen=True)
class Image:
    """One image of an archive."""

    archive: Path

    @cached_property
    def name(self) -> str:
        return str(self._index["manifests"][0]["annotations"][_NAME])

    @cached_property
    def config(self) -> dict[str, Any]:
        """User, entry point, environment, labels, ports."""
        whole = self._json(_blob(self._manifest["config"]))
        config: dict[str, Any] = whole["config"]
        return config

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        return tuple(Layer(each["size"], _blob(each)) for each in self._manifest["layers"])

    @property
    def size_bytes(self) -> int:
        """Of all layers as they lie in the archive."""
        return sum(layer.size_bytes for layer in self.layers)

    @cached_property
    def files(self) -> dict[str, tarfile.TarInfo]:
        """What a container finds, by path without the leading slash."""
        return merged(self._layer_entries())

    def _layer_entries(self) -> Iterator[list[tarfile.TarInfo]]:
        with tarfile.open(self.archive) as outer:
            for layer in self.layers:
                with tarfile.open(fileobj=outer.extractfile(layer.blob), mode="r:*") as tar:
                    yield tar.getmembers()

    @cached_property
    def _index(self) -> dict[str, Any]:
        return self._json("index.json")

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        return self._json(_blob(self._index["manifests"][0]))

    def _json(self, path: str) -> dict[str, Any]:
        with tarfile.open(self.archive) as outer:
            file = outer.extractfile(path)
            assert file is not None, f"{path} is a file in {self.archive}"
            said: dict[str, Any] = json.load(file)
            return said


def _is_removal(path: str) -> bool:
    return path.rpartition("/")[2].startswith(_WHITEOUT)


def _removed(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return folder if name == _OPAQUE else f"{folder}/{name.removeprefix(_WHITEOUT)}".lstrip("/")


def _blob(descriptor: dict[str, Any]) -> str:
    algorithm, digest = descriptor["digest"].split(":")
    return f"blobs/{algorithm}/{digest}"
