"""The engine process: loads, serves until SIGTERM or SIGINT, and ends in order."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import time
from collections.abc import Iterator

import uvicorn

from distserve.engine.assemble import Instance, assemble
from distserve.engine.engine import Engine
from distserve.engine.hub import Hub
from distserve.engine.loop import EngineLoop
from distserve.engine.migrator_link import MigratorLink
from distserve.engine.outbox import Output
from distserve.engine.server import Served, make_app
from distserve.engine.settings import Settings
from distserve.wire.heads import BoundedHeads
from distserve.wire.messages import EngineMessage
from distserve.wire.tracing import Tracing

log = logging.getLogger(__name__)

GRACE_SECONDS = 3
"""For streams to write their last line, once the engine has told every leg."""
STOP_SECONDS = 5.0
"""For the running step to end."""
KEEP_ALIVE_SECONDS = 75


def run(settings: Settings, bound: socket.socket, tracing: Tracing) -> int:
    """The process's exit code. Raises EngineError before anything is served."""
    begun = time.monotonic()
    instance = assemble(settings)
    # What was loaded stays: the collector need not look through it again and again.
    gc.collect()
    gc.freeze()
    log.info(
        "loaded %s in %.1f s: %d blocks of %d tokens",
        settings.model,
        time.monotonic() - begun,
        instance.info.total_blocks,
        settings.block_tokens,
    )
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        return runner.run(_serve(settings, instance, bound, tracing))


def _new_loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


class _Server(uvicorn.Server):
    """Signals are ours: the engine's legs end first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(
    settings: Settings, instance: Instance, bound: socket.socket, tracing: Tracing
) -> int:
    events = asyncio.get_running_loop()
    stopping = asyncio.Event()
    fatal: list[BaseException] = []
    link: MigratorLink | None = None

    def send(message: EngineMessage) -> None:
        if link is not None:
            link.send(message)

    def deliver(output: Output) -> None:
        # The loop may be closed already when the last output of a stopping engine comes.
        with contextlib.suppress(RuntimeError):
            events.call_soon_threadsafe(hub.receive, output)

    def on_fatal(error: BaseException) -> None:
        fatal.append(error)
        with contextlib.suppress(RuntimeError):
            events.call_soon_threadsafe(stopping.set)

    hub = Hub(instance.info.epoch, send)
    loop = EngineLoop(Engine(instance.parts, deliver), on_fatal)
    tasks = []
    if settings.migrator_socket is not None:
        link = MigratorLink(settings.migrator_socket, instance.hello, [instance.pool.fd], loop.tell)
        tasks.append(asyncio.create_task(link.run()))
    served = Served(
        info=instance.info,
        folder=settings.model,
        key=settings.key,
        loop=loop,
        hub=hub,
        link=link,
        metrics=instance.parts.metrics,
        tracing=tracing,
    )
    server = _Server(_config(served))
    for sent in (signal.SIGTERM, signal.SIGINT):
        events.add_signal_handler(sent, stopping.set)
    loop.start()
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    ended = await asyncio.to_thread(loop.stop, STOP_SECONDS)
    hub.close()
    for task in tasks:
        task.cancel()  # before the migrator is told to end as well, which is no fault then
    server.should_exit = True
    await serving
    stopped.cancel()
    await asyncio.gather(*tasks, stopped, return_exceptions=True)
    tracing.close()
    if ended:
        instance.pool.close()
    return 1 if fatal or not ended else 0


def _config(served: Served) -> uvicorn.Config:
    return uvicorn.Config(
        make_app(served),
        loop="none",
        http=BoundedHeads,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
