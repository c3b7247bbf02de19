"""The channel to the migrator comes back when it breaks, and ends in silence when it is ended."""

import asyncio
import logging
from pathlib import Path

import pytest

from distserve.engine.commands import Command, MigratorDown, MigratorUp
from distserve.engine.migrator_link import MigratorLink
from distserve.wire.channel import MigratorChannel, serve
from distserve.wire.messages import Abort, EngineMessage, Hello, Welcome

BOUND_SECONDS = 10.0


class Migrator:
    """Welcomes whoever comes, and keeps what it hears."""

    def __init__(self) -> None:
        self.channels: asyncio.Queue[MigratorChannel] = asyncio.Queue()
        self.heard: asyncio.Queue[EngineMessage] = asyncio.Queue()

    async def on_hello(self, hello: Hello, fds: list[int], channel: MigratorChannel) -> None:
        channel.send(Welcome(address="127.0.0.1:8101", epoch=1))
        self.channels.put_nowait(channel)
        async for message in channel:
            self.heard.put_nowait(message)


async def test_a_lost_migrator_is_told_and_an_own_end_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="distserve.engine.migrator_link")
    told: asyncio.Queue[Command] = asyncio.Queue()
    hello = Hello(instance="e", fingerprint="f", epoch=1, pools=[])
    migrator = Migrator()
    server = await serve(tmp_path / "s", migrator.on_hello)
    link = MigratorLink(tmp_path / "s", hello, [], told.put_nowait)
    running = asyncio.create_task(link.run())
    async with asyncio.timeout(BOUND_SECONDS):
        assert await told.get() == MigratorUp("127.0.0.1:8101")
        (await migrator.channels.get()).abort()
        assert await told.get() == MigratorDown()
        assert [r.levelname for r in caplog.records] == ["INFO", "WARNING"]

        assert await told.get() == MigratorUp("127.0.0.1:8101")
        caplog.clear()
        link.send(Abort("t1"))
        running.cancel()
        assert await migrator.heard.get() == Abort("t1"), "what was sent before is delivered"
        await asyncio.gather(running, return_exceptions=True)
    await server.close()
    assert not link.is_up
    assert told.empty() and not caplog.records
