"""Volumes as folders below the run directory."""

import os
from pathlib import Path

from distserve.local.errors import Refused
from distserve.local.launch import config_values, secret_values
from distserve.local.specs import Inventory, Object, PodSpec

PRIVATE = 0o700


def make_volumes(pod: PodSpec, folder: Path, shared: Path, inventory: Inventory) -> dict[str, Path]:
    """Volume name -> folder. A ConfigMap's folder is one for all pods (under `shared`), so that
    whoever rewrites it is seen by all, as in a cluster. Raises Refused."""
    return {v["name"]: _make(v, pod, folder, shared, inventory) for v in pod.volumes}


def _make(volume: Object, pod: PodSpec, folder: Path, shared: Path, inventory: Inventory) -> Path:
    name: str = volume["name"]
    if "emptyDir" in volume:
        path = folder / name
        path.mkdir(PRIVATE, parents=True)
        return path
    if "secret" in volume:
        secret = volume["secret"]
        return _write(folder / name, secret_values(inventory, secret["secretName"]), secret)
    if "configMap" in volume:
        config = volume["configMap"]
        path = shared / str(config["name"])
        if path.exists():
            return path
        return _write(path, config_values(inventory, config["name"]), config)
    if "hostPath" in volume:
        path = Path(volume["hostPath"]["path"])
        if not path.exists():
            raise Refused(f"hostPath {path} does not exist: correct the path")
        return path
    kind = next((key for key in volume if key != "name"), "nothing")
    raise Refused(
        f"pod {pod.name}: volume {name!r} is a {kind}, which only a cluster has; "
        "use hostPath for `distserve up`"
    )


def _write(folder: Path, values: dict[str, bytes], source: Object) -> Path:
    """Files of a Secret or ConfigMap; `items` picks keys and names their files."""
    folder.mkdir(PRIVATE, parents=True)
    chosen = source.get("items") or [{"key": key, "path": key} for key in values]
    for item in chosen:
        if item["key"] not in values:
            raise Refused(f"volume {folder.name}: there is no key {item['key']!r}")
        path = folder / item["path"]
        path.parent.mkdir(PRIVATE, parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(values[item["key"]])
    return folder
