"""Container images made here, without registry or builder: one layer in an OCI archive.

The `host-python` image has next to nothing in it. A pod mounts the machine's /usr, the virtual
environment and the checkout at their own paths, and so runs the very Python that runs the tests.
"""

import hashlib
import io
import json
import platform
import sys
import sysconfig
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAUSE = "localhost/distserve-test/pause:1"
COREDNS = "localhost/distserve-test/coredns:1"
HOST_PYTHON = "localhost/distserve-test/host-python:1"

_FOLDERS = ("etc", "proc", "sys", "dev", "usr", "root", "run", "var", "opt")
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
_ACCOUNTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}


@dataclass
class Layer:
    """A file tree; everything belongs to root and has no date, so equal trees are equal bytes."""

    _bytes: io.BytesIO = field(default_factory=io.BytesIO)

    def __post_init__(self) -> None:
        self._tar = tarfile.TarFile(fileobj=self._bytes, mode="w")

    def folder(self, path: str, mode: int = 0o755) -> None:
        entry = tarfile.TarInfo(path)
        entry.type, entry.mode = tarfile.DIRTYPE, mode
        self._tar.addfile(entry)

    def link(self, path: str, target: str) -> None:
        entry = tarfile.TarInfo(path)
        entry.type, entry.linkname = tarfile.SYMTYPE, target
        self._tar.addfile(entry)

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        entry = tarfile.TarInfo(path)
        entry.size, entry.mode = len(content), mode
        self._tar.addfile(entry, io.BytesIO(content))

    def close(self) -> bytes:
        self._tar.close()
        return self._bytes.getvalue()


def write_archive(archive: Path, name: str, layer: Layer, entrypoint: Sequence[str] = ()) -> None:
    """Writes an OCI image archive with the image's full name in its index."""
    blobs: dict[str, bytes] = {}

    def blob(media_type: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[digest] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    prefix = "application/vnd.oci.image"
    layer_blob = blob(f"{prefix}.layer.v1.tar", layer.close())
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()],
        "os": "linux",
        "config": {"Entrypoint": list(entrypoint), "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layer_blob["digest"]]},
    }
    config_blob = blob(f"{prefix}.config.v1+json", json.dumps(config).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{prefix}.manifest.v1+json",
        "config": config_blob,
        "layers": [layer_blob],
    }
    manifest_blob = blob(f"{prefix}.manifest.v1+json", json.dumps(manifest).encode())
    manifest_blob["annotations"] = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
    }
    outer = Layer()
    outer.file("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    index = {"schemaVersion": 2, "manifests": [manifest_blob]}
    outer.file("index.json", json.dumps(index).encode())
    for digest, content in blobs.items():
        outer.file(f"blobs/sha256/{digest}", content)
    written = archive.with_suffix(".new")
    written.write_bytes(outer.close())
    written.rename(archive)


def write_node_images(folder: Path, programs: Mapping[str, Path]) -> list[Path]:
    """Writes the images that every node of the project's own cluster holds."""
    written = [write_host_python(folder)]
    for name, image in (("pause", PAUSE), ("coredns", COREDNS)):
        layer = Layer()
        layer.file(name, programs[name].read_bytes(), mode=0o755)
        written.append(folder / f"{name}.tar")
        write_archive(written[-1], image, layer, entrypoint=[f"/{name}"])
    return written


def write_host_python(folder: Path, name: str = HOST_PYTHON) -> Path:
    """Writes the image of `host_python_pod`."""
    archive = folder / "host-python.tar"
    write_archive(archive, name, _host_python_layer())
    return archive


def _host_python_layer() -> Layer:
    layer = Layer()
    for path in _FOLDERS:
        layer.folder(path)
    layer.folder("tmp", mode=0o1777)
    layer.folder("var/tmp", mode=0o1777)
    for path, target in _LINKS.items():
        layer.link(path, target)
    for path, text in _ACCOUNTS.items():
        layer.file(path, text.encode())
    linker_cache = Path("/etc/ld.so.cache")
    if linker_cache.exists():
        layer.file("etc/ld.so.cache", linker_cache.read_bytes())
    return layer


def host_python_paths(checkout: Path) -> list[Path]:
    """What a pod must mount, at the same paths, to run this Python with the checkout's code."""
    wanted = [Path("/usr"), Path(sys.prefix), Path(sys.base_prefix), checkout]
    wanted.append(Path(sysconfig.get_path("stdlib")).resolve())
    kept: list[Path] = []
    for path in wanted:
        if not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    return kept


def host_python_pod(
    name: str, command: Sequence[str], checkout: Path, node_paths: str, **spec: Any
) -> dict[str, Any]:
    """A Pod that runs this Python with the arguments `command`.

    `node_paths` is put before each path on the node's side; `spec` is merged into the pod's spec.
    """
    mounts = host_python_paths(checkout)
    volumes = [
        {"name": f"host-{number}", "hostPath": {"path": f"{node_paths}{path}", "type": "Directory"}}
        for number, path in enumerate(mounts)
    ]
    container = {
        "name": "main",
        "image": HOST_PYTHON,
        "imagePullPolicy": "Never",
        "command": [sys.executable, *command],
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
        "volumeMounts": [
            {"name": f"host-{number}", "mountPath": str(path), "readOnly": True}
            for number, path in enumerate(mounts)
        ],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            "volumes": volumes,
            **spec,
        },
    }
