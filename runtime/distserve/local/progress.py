"""What a user sees on stderr: a line for whatever changes, and on a terminal a live table."""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator

import aiohttp
from rich.console import Console
from rich.live import Live

from distserve.local.container import Container, State
from distserve.local.pod import Pod
from distserve.local.session import Session
from distserve.local.stats import GatewayStats, read_stats
from distserve.local.supervisor import Supervisor
from distserve.local.table import live_table, pod_state

CRASH_LINES = 5
TABLE_SECONDS = 0.5

Say = Callable[[str], None]


class PodNews:
    """A line for each pod that gets ready or stops being so; for each crash its last log lines."""

    def __init__(self, supervisor: Supervisor, say: Say) -> None:
        self._supervisor = supervisor
        self._say = say
        self._began = time.monotonic()
        self._ready: set[str] = set()
        self._restarts: dict[tuple[str, str], int] = {}

    def update(self) -> None:
        for pod in self._supervisor.pods:
            for container in pod.all_containers:
                self._crash(pod, container)
            if pod.ready and pod.name not in self._ready:
                self._ready.add(pod.name)
                self._say(f"{pod.name} is ready after {time.monotonic() - self._began:.1f} s")
            elif not pod.ready and pod.name in self._ready and not pod.terminating:
                self._ready.remove(pod.name)
                self._say(f"{pod.name} is not ready any more: {pod_state(pod)}")

    def _crash(self, pod: Pod, container: Container) -> None:
        place = (pod.name, container.spec.name)
        if container.state is State.BACKOFF and container.restarts > self._restarts.get(place, 0):
            self._restarts[place] = container.restarts
            self._say(f"{'/'.join(place)} ended ({container.end_reason}); restart in a while:")
            for line in container.tail(CRASH_LINES):
                self._say(f"  {line}")


def say_on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _told(supervisor: Supervisor, say: Say) -> Iterator[None]:
    news = PodNews(supervisor, say)
    supervisor.watchers.append(news.update)
    try:
        yield
    finally:
        supervisor.watchers.remove(news.update)


@contextlib.asynccontextmanager
async def show_progress(session: Session, table: bool) -> AsyncIterator[Say]:
    """While it is open, pods' news are told. `table`: with a live table below them."""
    if not table:
        with _told(session.supervisor, say_on_stderr):
            yield say_on_stderr
        return
    console = Console(stderr=True)
    with Live(console=console, auto_refresh=False, redirect_stdout=sys.stdout.isatty()) as live:

        def say(line: str) -> None:
            console.print(line, markup=False, highlight=False)

        drawing = asyncio.create_task(_draw(session, live))
        try:
            with _told(session.supervisor, say):
                yield say
        finally:
            drawing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await drawing


async def _draw(session: Session, live: Live) -> None:
    async with aiohttp.ClientSession() as http:
        while True:
            stats = await read_stats(http, session.base_url) or GatewayStats()
            live.update(
                live_table(session.supervisor.pods, stats, f"{session.base_url}/v1"), refresh=True
            )
            await asyncio.sleep(TABLE_SECONDS)
