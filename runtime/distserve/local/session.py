"""A deployment that runs on this machine: what `up` and `demo` share."""

import asyncio
import contextlib
import random
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from distserve.api.deployment import DistServeDeployment
from distserve.local import checks
from distserve.local.addresses import reserve_addresses
from distserve.local.discovery import DiscoveryFile
from distserve.local.errors import PodFailed
from distserve.local.localise import (
    DISCOVERY_FILE,
    DISCOVERY_MAP,
    localised,
    with_one_gateway,
)
from distserve.local.rundir import run_directory
from distserve.local.specs import read_inventory
from distserve.local.stats import read_stats
from distserve.local.supervisor import Supervisor, supervise
from distserve.resources.render import render
from distserve.resources.settings import RenderSettings, released_images

READY_SECONDS = 3600.0
"""Bound on loading; each container's startup probe has its own."""
KNOWN_SECONDS = 60.0
"""Bound on the gateway's meeting all instances once every pod is ready."""


@dataclass(frozen=True)
class Session:
    deployment: DistServeDeployment
    supervisor: Supervisor
    base_url: str
    """http://127.0.0.1:PORT"""
    log_directory: Path

    async def start(self) -> None:
        """Returns once a request can be answered. Raises PodFailed."""
        self.supervisor.start()
        await self.supervisor.wait_ready(READY_SECONDS)
        await self._wait_known()

    async def _wait_known(self) -> None:
        """Until the gateway has met every instance: it hears of them a little later."""
        expected = sum(bool(pod.spec.role) for pod in self.supervisor.pods)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KNOWN_SECONDS), aiohttp.ClientSession() as http:
                while True:
                    stats = await read_stats(http, self.base_url)
                    if stats is not None and stats.ready_instances == expected:
                        return
                    await asyncio.sleep(0.05)
        raise PodFailed("the gateway does not see all instances: its log says why", [], usage=False)


@contextlib.asynccontextmanager
async def open_session(
    deployment: DistServeDeployment, port: int, log_directory: Path | None = None
) -> AsyncIterator[Session]:
    """Everything is checked and laid out; nothing runs before `Session.start`, nothing is left
    afterwards. Raises Refused and RenderError."""
    checks.check_deployment(deployment)
    checks.check_port(port)
    local = with_one_gateway(deployment)
    settings = RenderSettings(released_images(), key=secrets.token_hex(32))
    inventory = read_inventory(localised(render(local, settings), port))
    checks.check_memory(inventory, checks.available_memory_bytes())
    with run_directory() as folder, reserve_addresses(random.Random()) as addresses:
        logs = log_directory or folder / "logs"
        checks.make_log_directory(logs)
        async with supervise(inventory, addresses, folder, logs) as supervisor:
            discovery = DiscoveryFile(folder / "configmaps" / DISCOVERY_MAP / DISCOVERY_FILE)
            supervisor.watchers.append(lambda: discovery.publish(supervisor.pods))
            yield Session(local, supervisor, f"http://127.0.0.1:{port}", logs)
