"""Keeps the channel to the instance's migrator: connects, reconnects, passes messages both ways.

Lives on the event loop; the engine's thread hears of it through its inbox.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from distserve.engine.commands import Command, FromMigrator, MigratorDown, MigratorUp
from distserve.wire.channel import ChannelClosed, ChannelError, EngineChannel, connect
from distserve.wire.frames import ProtocolError
from distserve.wire.messages import EngineMessage, Hello, Welcome

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
"""Of one attempt, after which a line is logged; attempts go on for as long as the engine lives."""
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 2.0


class MigratorLink:
    def __init__(
        self, path: Path, hello: Hello, fds: Sequence[int], tell: Callable[[Command], None]
    ) -> None:
        self._path = path
        self._hello = hello
        self._fds = fds
        self._tell = tell
        self._channel: EngineChannel | None = None
        self.address = ""
        """Where peers reach the migrator; empty while there is none."""

    @property
    def is_up(self) -> bool:
        return bool(self.address)

    def send(self, message: EngineMessage) -> None:
        """What comes for a channel that has ended is of transfers that have ended with it."""
        if self._channel is not None:
            with contextlib.suppress(ChannelClosed):
                self._channel.send(message)

    async def run(self) -> None:
        """Until cancelled; what was sent before is still delivered."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                channel = await connect(self._path, self._hello, self._fds, CONNECT_SECONDS)
            except ChannelError as error:
                log.warning("%s", error)
                continue
            try:
                if await self._listen(channel):
                    pause = FIRST_PAUSE_SECONDS
            except asyncio.CancelledError:
                self.address = ""  # left by us: nothing is wrong
                await channel.close()
                raise
            finally:
                self._end(channel)
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE_SECONDS, pause * 2)

    async def _listen(self, channel: EngineChannel) -> bool:
        """Until the channel ends. Whether it was ever up."""
        self._channel = channel
        try:
            async for message in channel:
                if isinstance(message, Welcome):
                    self.address = message.address
                    log.info("connected to the migrator at %s", message.address)
                    self._tell(MigratorUp(message.address))
                else:
                    self._tell(FromMigrator(message))
        except ProtocolError as error:
            log.error("the migrator does not keep to the protocol: %s", error)
        return self.is_up

    def _end(self, channel: EngineChannel) -> None:
        self._channel = None
        channel.abort()
        if self.is_up:
            self.address = ""
            log.warning("the migrator is gone; connecting again")
            self._tell(MigratorDown())
