"""Stand-in containers: small Python servers in place of the engine, migrator and gateway."""

import contextlib
import random
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from distserve.local.addresses import reserve_addresses
from distserve.local.container import Backoff
from distserve.local.rundir import run_directory
from distserve.local.specs import read_inventory
from distserve.local.supervisor import Supervisor, supervise

SERVER = """
import http.server, os, signal, sys, time, ctypes
from distserve.wire.parent import end_with_parent
end_with_parent()
host, port, name, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
def note(word):
    with open(os.path.join(folder, "events"), "a") as file:
        file.write(f"{word} {name}\\n")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        missing = os.path.exists(os.path.join(folder, name + self.path.replace("/", "-")))
        self.send_response(503 if missing else 200); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *args): pass
def end(*args):
    note("end"); sys.exit(0)
signal.signal(signal.SIGTERM, end)
server = http.server.HTTPServer((host, port), Handler)
note("start")
print("serving", name, flush=True)
server.serve_forever()
"""


def container(name: str, port: int, folder: Path, **more: Any) -> dict[str, Any]:
    """Answers 200 everywhere, 503 where `folder` has a file NAME-PATH; notes start and end."""
    probe = {"httpGet": {"path": "/healthz", "port": "main"}, "periodSeconds": 0.05}
    return {
        "name": name,
        "command": [sys.executable, "-c", textwrap.dedent(SERVER)],
        "args": ["$(POD_IP)", str(port), f"$(POD_NAME)/{name}".replace("/", "."), str(folder)],
        "env": [
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ],
        "ports": [{"name": "main", "containerPort": port}],
        "startupProbe": probe | {"failureThreshold": 400},
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": "main"},
            "periodSeconds": 0.05,
            "failureThreshold": 1,
        },
    } | more


def controller(name: str, role: str, *containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    labels = {"distserve.io/role": role, "distserve.io/unit": "u0"} if role else {}
    return {
        "kind": "StatefulSet",
        "metadata": {"name": name, "namespace": "default", "labels": {}},
        "spec": {
            "replicas": 1,
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "containers": list(containers), "terminationGracePeriodSeconds": 10
                } | spec,
            },
        },
    }  # fmt: skip


def wait_until(what: str, condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


class Stand:
    """Builds stand-in objects and runs them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    container = staticmethod(container)
    controller = staticmethod(controller)
    wait_until = staticmethod(wait_until)

    def events(self) -> list[str]:
        file = self.folder / "events"
        return file.read_text().splitlines() if file.exists() else []

    @contextlib.asynccontextmanager
    async def run(self, *objects: dict[str, Any]) -> AsyncIterator[Supervisor]:
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        with run_directory() as folder, reserve_addresses(random.Random()) as addresses:
            inventory = read_inventory(list(objects))
            quick = Backoff(first_seconds=0.02, most_seconds=0.1)
            async with supervise(inventory, addresses, folder, logs, quick) as supervisor:
                yield supervisor


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(tmp_path)


@pytest.fixture(autouse=True)
def nothing_left() -> Any:
    """No test leaves a child behind."""
    before = set(psutil.Process().children(recursive=True))
    yield
    left = set(psutil.Process().children(recursive=True)) - before
    assert not left, left
