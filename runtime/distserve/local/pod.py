"""One pod: its sidecars before its containers, and the other way round at the end."""

import asyncio

from distserve.local.container import Container
from distserve.local.launch import Place
from distserve.local.specs import PodSpec


class Pod:
    def __init__(
        self, place: Place, sidecars: list[Container], containers: list[Container]
    ) -> None:
        self.place = place
        self.sidecars = sidecars
        self.containers = containers
        self.terminating = False
        self._starting: asyncio.Task[None] | None = None

    @property
    def spec(self) -> PodSpec:
        return self.place.pod

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def address(self) -> str:
        return self.place.address

    @property
    def all_containers(self) -> list[Container]:
        return [*self.sidecars, *self.containers]

    @property
    def ready(self) -> bool:
        return not self.terminating and all(c.ready for c in self.all_containers)

    def start(self) -> None:
        self._starting = asyncio.create_task(self._start(), name=f"start {self.name}")

    async def _start(self) -> None:
        """A sidecar's startup probe holds back what follows; its readiness does not."""
        for sidecar in self.sidecars:
            sidecar.start()
            await sidecar.started.wait()
        for container in self.containers:
            container.start()

    async def stop(self) -> None:
        """Bounded by twice the grace period and the time to kill."""
        self.terminating = True
        if self._starting is not None:
            self._starting.cancel()
        grace = self.spec.grace_seconds
        await asyncio.gather(*(c.stop(grace) for c in self.containers))
        for sidecar in reversed(self.sidecars):
            await sidecar.stop(grace)

    def kill(self) -> None:
        for container in self.all_containers:
            container.kill()
