"""What can be known before anything is started: each mistake is one line that says the cure."""

import contextlib
import errno
import socket
import tempfile
from math import ceil
from pathlib import Path

from distserve.api.deployment import DistServeDeployment
from distserve.local.errors import Refused
from distserve.local.specs import Inventory
from distserve.placement.quantities import parse_quantity
from distserve.resources.support import unsupported_by_engine

GIB = 1 << 30


def check_deployment(deployment: DistServeDeployment) -> None:
    """Raises Refused for what the engine cannot run and for a model that is not there."""
    if (reason := unsupported_by_engine(deployment)) is not None:
        raise Refused(reason)
    if deployment.spec.kv_transfer.host_sharing:
        raise Refused(
            "spec.kvTransfer.hostSharing: processes of one machine share memory without it; "
            "remove it"
        )
    if deployment.spec.topology.fabric_required:
        raise Refused(
            "spec.topology.fabricRequired: there is no operator here that opens its gate; remove it"
        )
    source = deployment.spec.model.source
    if source.persistent_volume_claim is not None:
        raise Refused(
            "spec.model.source.persistentVolumeClaim: only a cluster has claims; "
            "use hostPath: /the/folder here"
        )
    if (hub := source.hugging_face) is not None:
        raise Refused(
            "spec.model.source.huggingFace: only a cluster's pods download before they start; run "
            f"`distserve fetch-model --repository {hub.repository} --revision {hub.revision} "
            "--cache DIR --pin model` and use hostPath: DIR/pins/model"
        )
    if source.image is not None:
        raise Refused(
            "spec.model.source.image: only a cluster mounts images; use hostPath: /the/folder here"
        )
    folder = source.host_path or source.image_path
    if folder is not None and not (Path(folder) / "config.json").is_file():
        field = "hostPath" if source.host_path else "imagePath"
        what = "has no config.json" if Path(folder).is_dir() else "is no folder here"
        raise Refused(
            f"spec.model.source.{field}: {folder} {what}; name the folder with the model's "
            "config.json and safetensors files"
        )


def check_port(port: int) -> None:
    """Raises Refused when somebody listens there already, or it may not be used."""
    if not 0 < port < 65536:
        raise Refused(f"port {port} is none: choose one from 1 to 65535 with --port")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            reason = "is in use" if taken else f"cannot be used ({error.strerror})"
            raise Refused(f"port {port} {reason}: choose another one with --port") from None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_log_directory(folder: Path) -> None:
    """Raises Refused when no log can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise Refused(
            f"--log-dir {folder}: {error.strerror}; name a folder that can be written to"
        ) from None


def check_memory(inventory: Inventory, available_bytes: int) -> None:
    """Compares what all containers ask for: KV pools and the processes themselves."""
    needed = sum(
        ceil(parse_quantity(container.memory_request))
        for pod in inventory.pods
        for container in (*pod.sidecars, *pod.containers)
    )
    if needed > available_bytes:
        raise Refused(
            f"not enough memory: {len(inventory.pods)} pods ask for {needed / GIB:.1f} GiB, "
            f"{available_bytes / GIB:.1f} GiB are free; lower accelerator.kvCache or the instances"
        )


def available_memory_bytes() -> int:
    """What the kernel could give this process without swapping, its control group considered."""
    free = [_fields(Path("/proc/meminfo"))["MemAvailable"] * 1024]
    groups = Path("/sys/fs/cgroup")
    for folder, limit, usage, cached in (
        (groups, "memory.max", "memory.current", "file"),
        (groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
    ):
        with contextlib.suppress(OSError, ValueError, KeyError):
            used = int((folder / usage).read_text()) - _fields(folder / "memory.stat")[cached]
            free.append(int((folder / limit).read_text()) - used)
    return min(free)


def _fields(path: Path) -> dict[str, int]:
    """Files of lines that begin with a name and a number."""
    words = (line.replace(":", " ").split() for line in path.read_text().splitlines())
    return {name: int(number) for name, number, *_ in words}
