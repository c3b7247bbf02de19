"""Runs all pods of a deployment: starts them, says when all are ready, ends them in order."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import NoReturn

import aiohttp

from distserve.local.addresses import Addresses
from distserve.local.container import Backoff, Container, State
from distserve.local.errors import PodFailed
from distserve.local.launch import Place, launch
from distserve.local.pod import Pod
from distserve.local.probes import Prober
from distserve.local.specs import ContainerSpec, Inventory, PodSpec
from distserve.local.volumes import make_volumes

CRASHES_BEFORE_READY = 3
USAGE_EXIT = 2
TAIL_LINES = 15
GATEWAY_ADDRESS = "127.0.0.1"
"""Stands for the Service: clients reach the one gateway here."""

_STOP_ORDER = {"": 0, "decode": 1, "hybrid": 1, "prefill": 2}


class Supervisor:
    """Owns the pods. `watchers` are called after every change of any container."""

    def __init__(self, pods: list[Pod]) -> None:
        self.pods = pods
        self.watchers: list[Callable[[], None]] = []
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None

    def notify(self) -> None:
        """Containers call it: a watcher that fails keeps none of them from being restarted."""
        self._changed.set()
        for watcher in self.watchers:
            try:
                watcher()
            except Exception as error:
                self.fail(error)

    def fail(self, error: BaseException) -> None:
        """`wait_ready` and `look_on` raise it: what becomes of the pods may be lost from now on."""
        self._failure = self._failure or error
        self._changed.set()

    @property
    def ready(self) -> bool:
        return all(pod.ready for pod in self.pods)

    def start(self) -> None:
        for pod in self.pods:
            pod.start()
        self.notify()

    async def wait_ready(self, seconds: float) -> None:
        """Raises PodFailed when a container cannot come up, or when the time is over, and what
        keeps the pods from being looked after."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    self._changed.clear()
                    self._raise_failure()
                    for pod in self.pods:
                        for container in pod.all_containers:
                            self._check(pod, container)
                    if self.ready:
                        return
                    await self._changed.wait()
        except TimeoutError:
            late = next(pod for pod in self.pods if not pod.ready)
            container = next(c for c in late.all_containers if not c.ready)
            raise PodFailed(
                f"{late.name}/{container.spec.name} was not ready after {seconds:g} s",
                container.tail(TAIL_LINES),
                usage=False,
            ) from None

    async def look_on(self) -> NoReturn:
        """While the pods are looked after. Raises what keeps them from it, as a full disk does."""
        while True:
            self._changed.clear()
            self._raise_failure()
            await self._changed.wait()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _check(self, pod: Pod, container: Container) -> None:
        if container.state is not State.BACKOFF:
            return
        tail = container.tail(TAIL_LINES)
        if container.last_exit == USAGE_EXIT:
            said = tail[-1] if tail else "it said nothing"
            raise PodFailed(f"{pod.name}/{container.spec.name}: {said}", tail, usage=True)
        if container.restarts >= CRASHES_BEFORE_READY:
            raise PodFailed(
                f"{pod.name}/{container.spec.name} ended {container.restarts} times "
                f"({container.end_reason})",
                tail,
                usage=False,
            )

    async def stop(self) -> None:
        """Gateway, then decode, then prefill: requests end before what serves them."""
        for place in sorted(set(_STOP_ORDER.values())):
            group = [p for p in self.pods if _STOP_ORDER.get(p.spec.role, 1) == place]
            for pod in group:
                pod.terminating = True
            self.notify()
            await asyncio.gather(*(pod.stop() for pod in group))

    def kill(self) -> None:
        for pod in self.pods:
            pod.kill()


@contextlib.asynccontextmanager
async def supervise(
    inventory: Inventory,
    addresses: Addresses,
    run_directory: Path,
    log_directory: Path,
    backoff: Backoff | None = None,
) -> AsyncIterator[Supervisor]:
    """Pods that are ready to be started. At the end none of their processes is left. Raises
    Refused when a volume or variable cannot be made here."""
    async with aiohttp.ClientSession() as http:
        supervisor = Supervisor([])
        for index, spec in enumerate(inventory.pods):
            folder = run_directory / f"p{index}"
            shared = run_directory / "configmaps"
            place = Place(
                spec,
                GATEWAY_ADDRESS if spec.is_gateway else addresses.pod(index),
                make_volumes(spec, folder, shared, inventory),
            )

            def container(spec: ContainerSpec, place: Place = place) -> Container:
                started = launch(spec, place, inventory, os.environ, os.getpid())
                return Container(
                    spec,
                    started,
                    Prober(http, place.address, started),
                    log_directory / f"{place.pod.name}.{spec.name}.log",
                    supervisor.notify,
                    supervisor.fail,
                    backoff or Backoff(),
                )

            supervisor.pods.append(_pod(spec, place, container))
        try:
            yield supervisor
        finally:
            await _end(supervisor)


def _pod(spec: PodSpec, place: Place, container: Callable[[ContainerSpec], Container]) -> Pod:
    def made(specs: Iterable[ContainerSpec]) -> list[Container]:
        return [container(c) for c in specs]

    return Pod(place, made(spec.sidecars), made(spec.containers))


async def _end(supervisor: Supervisor) -> None:
    """Whatever happened, also a second Ctrl-C: no process is left."""
    try:
        await supervisor.stop()
    finally:
        supervisor.kill()
