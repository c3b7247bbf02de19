"""From a container to a command line and environment on this machine: pure text work.

The kubelet expands `$(NAME)`; what an image would have, a folder per mount path, is made by
rewriting the mount paths to the folders that stand for them.
"""

import base64
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from distserve.local.errors import Refused
from distserve.local.specs import ContainerSpec, Inventory, Object, PodSpec
from distserve.wire.parent import PARENT_VARIABLE, STARTER

DISTSERVE = (sys.executable, "-m", "distserve.cli.main")
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


@dataclass(frozen=True)
class Launch:
    """What to run."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    mounts: Mapping[str, Path] = field(default_factory=dict)
    """Mount path -> the folder that stands for it."""

    def here(self, command: tuple[str, ...]) -> tuple[str, ...]:
        """A command of the container, such as a hook's or a probe's, as it is run here.
        `distserve` is this very installation, also where it is not on the PATH."""
        words = tuple(rewrite(word, self.mounts) for word in command)
        return (*DISTSERVE, *words[1:]) if words[:1] == ("distserve",) else words

    def ending_with_runner(self) -> tuple[str, ...]:
        """argv, such that a runner's death is the process's: ours see to it by themselves.

        Raises FileNotFoundError, since what the command is started by would be there."""
        if self.argv[: len(DISTSERVE)] == DISTSERVE:
            return self.argv
        if shutil.which(self.argv[0], path=self.environment["PATH"]) is None:
            raise FileNotFoundError(f"there is no program {self.argv[0]!r} that can be run")
        return (*STARTER, *self.argv)


@dataclass(frozen=True)
class Place:
    """Where a pod runs here."""

    pod: PodSpec
    address: str
    folders: Mapping[str, Path]
    """Volume name -> the folder that stands for it."""


def launch(
    container: ContainerSpec,
    place: Place,
    inventory: Inventory,
    inherited: Mapping[str, str],
    runner_pid: int,
) -> Launch:
    """`inherited` is the runner's own environment: it stands for what an image sets."""
    mounts = {
        m["mountPath"]: place.folders[m["name"]] / m.get("subPath", "") for m in container.mounts
    }
    declared: dict[str, str] = {}
    for entry in container.environment:
        declared[entry["name"]] = expand(_value(entry, place, inventory), declared)
    here = {name: rewrite(value, mounts) for name, value in declared.items()}
    scratch = {"TMPDIR": str(mounts["/tmp"])} if "/tmp" in mounts else {}
    environment = {
        **inherited,
        **scratch,
        **here,
        "PATH": f"{Path(sys.executable).parent}:{inherited.get('PATH', '/usr/bin:/bin')}",
        PARENT_VARIABLE: str(runner_pid),
    }
    around = Launch((), environment, mounts)
    return replace(around, argv=around.here(tuple(expand(w, declared) for w in container.command)))


def expand(text: str, environment: Mapping[str, str]) -> str:
    """`$(NAME)` as the kubelet does it: unknown names stay, `$$` is a dollar sign."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return environment.get(match[1], match[0])

    return _REFERENCE.sub(value, text)


def rewrite(text: str, mounts: Mapping[str, Path]) -> str:
    """Mount paths, where a path begins, become their folders; the longest one wins."""
    if not mounts:
        return text
    paths = "|".join(re.escape(path) for path in sorted(mounts, key=len, reverse=True))
    return re.sub(rf"(?<![\w./-])({paths})(?=/|$|[\s\"':,;])", lambda m: str(mounts[m[1]]), text)


def _value(entry: Object, place: Place, inventory: Inventory) -> str:
    if "valueFrom" not in entry:
        return str(entry.get("value", ""))
    source = entry["valueFrom"]
    if (reference := source.get("fieldRef")) is not None:
        return _field(reference["fieldPath"], place)
    if (reference := source.get("secretKeyRef")) is not None:
        values = secret_values(inventory, reference["name"])
    elif (reference := source.get("configMapKeyRef")) is not None:
        values = config_values(inventory, reference["name"])
    else:
        raise Refused(f"env {entry['name']}: {', '.join(source)} is known to a cluster only")
    if reference["key"] not in values:
        raise Refused(f"env {entry['name']}: {reference['name']} has no key {reference['key']!r}")
    return values[reference["key"]].decode()


def _field(path: str, place: Place) -> str:
    fields = {
        "metadata.name": place.pod.name,
        "metadata.namespace": place.pod.namespace,
        "status.podIP": place.address,
        "status.hostIP": "127.0.0.1",
    }
    if match := re.fullmatch(r"metadata\.labels\['([^']+)'\]", path):
        return place.pod.labels.get(match[1], "")
    if path not in fields:
        raise Refused(f"fieldRef {path} is known to a cluster only: remove it from podTemplate")
    return fields[path]


def secret_values(inventory: Inventory, name: str) -> dict[str, bytes]:
    if name not in inventory.secrets:
        raise Refused(f"Secret {name!r} is in no manifest: `up` has only what it renders")
    data = inventory.secrets[name].get("data", {})
    return {key: base64.b64decode(value) for key, value in data.items()}


def config_values(inventory: Inventory, name: str) -> dict[str, bytes]:
    if name not in inventory.config_maps:
        raise Refused(f"ConfigMap {name!r} is in no manifest: `up` has only what it renders")
    data = inventory.config_maps[name].get("data", {})
    return {key: value.encode() for key, value in data.items()}
