"""Shared: a `FakeEngine` with a real memfd pool, migrators in this process or as processes."""

import asyncio
import contextlib
import itertools
import json
import mmap
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from distserve.migrator.migrator import Config, Migrator
from distserve.wire import channel, messages
from distserve.wire.pool import NONCE_BYTES, BlockSpan, PoolLayout, TokenRange

KEY = b"0123456789abcdef0123456789abcdef"
BOUND_SECONDS = 20
BLOCK = 16


def layout(blocks=64, **changes):
    shape = {"layer_start": 0, "layers": 3, "head_start": 0, "kv_heads": 4, "head_dim": 8}
    return PoolLayout(
        **(shape | {"block_tokens": BLOCK, "blocks": blocks, "dtype": "float64"} | changes)
    )


def kv(tokens, pool, seed=0):
    """[layer, k|v, token, head, dim] of one request: every element different, as the layers and
    heads of `pool` see it."""
    layer, k_or_v, token, head, dim = np.ogrid[
        pool.layer_start : pool.layer_start + pool.layers,
        :2,
        tokens.start : tokens.stop,
        pool.head_start : pool.head_start + pool.kv_heads,
        : pool.head_dim,
    ]
    return (((seed * 100 + token) * 16 + layer) * 2 + k_or_v) * 1024 + head * 64 + dim + 1.0


class FakePool:
    """A rank's memory, as an engine allocates it."""

    def __init__(self, pool: PoolLayout):
        self.layout = pool
        self.fd = os.memfd_create("kv", os.MFD_CLOEXEC)
        os.posix_fallocate(self.fd, 0, pool.pool_bytes)
        self.array = np.frombuffer(
            mmap.mmap(self.fd, pool.pool_bytes), pool.dtype, offset=NONCE_BYTES
        )
        self.array = self.array.reshape(pool.shape)

    def slots(self, span):
        """[layer, k|v, token, head, dim] view-copy of a span's tokens."""
        size = self.layout.block_tokens
        slots = [span.blocks[i // size] * size + i % size for i in range(span.tokens.tokens)]
        flat = self.array.reshape(*self.array.shape[:2], -1, *self.array.shape[4:])
        return flat, slots

    def write(self, span, tokens=None, seed=0):
        flat, slots = self.slots(span)
        tokens = tokens or span.tokens
        chosen = slots[tokens.start - span.tokens.start : tokens.stop - span.tokens.start]
        flat[:, :, chosen] = kv(tokens, self.layout, seed)

    def holds(self, span, tokens=None, seed=0):
        flat, slots = self.slots(span)
        tokens = tokens or span.tokens
        chosen = slots[tokens.start - span.tokens.start : tokens.stop - span.tokens.start]
        return bool((flat[:, :, chosen] == kv(tokens, self.layout, seed)).all())


class FakeEngine:
    """Speaks the engine's side: leader's channel first, then the other ranks'."""

    epochs = itertools.count(1)

    def __init__(self, name, socket, pools, fingerprint="f", tensor=1, pipeline=1, epoch=None):
        self.name = name
        self.socket = socket
        self.pools = [FakePool(pool) for pool in pools]
        self.fingerprint = fingerprint
        self.shape = (tensor, pipeline)
        self.epoch = epoch or next(self.epochs)
        self.channels = []
        self.address = ""
        self.heard = []
        self._news = asyncio.Condition()

    async def connect(self):
        for rank, pool in enumerate(self.pools):
            hello = messages.Hello(
                instance=self.name, epoch=self.epoch, fingerprint=self.fingerprint, rank=rank,
                tensor=self.shape[0], pipeline=self.shape[1], pools=[pool.layout],
            )  # fmt: skip
            session = await channel.connect(self.socket, hello, [pool.fd], BOUND_SECONDS)
            self.channels.append(session)
            async with asyncio.timeout(BOUND_SECONDS):
                welcome = await anext(session)
            self.address = welcome.address
            if rank == 0:
                self._listening = asyncio.create_task(self._listen(session))
        return self

    async def _listen(self, session):
        async for message in session:
            await self._hear(message)
        await self._hear("closed")

    async def _hear(self, message):
        async with self._news:
            self.heard.append(message)
            self._news.notify_all()

    def send(self, message):
        self.channels[0].send(message)

    async def hear(self, kind, transfer=None):
        """The first message of this kind (and transfer) that came or comes."""

        def found():
            for message in self.heard:
                if message == kind:
                    return message
                of_kind = isinstance(kind, type) and isinstance(message, kind)
                if of_kind and (transfer is None or message.transfer == transfer):
                    return message
            return None

        async with asyncio.timeout(BOUND_SECONDS), self._news:
            await self._news.wait_for(lambda: found() is not None)
            return found()

    async def ending(self, transfer):
        """FETCHED or FAILED of a transfer; exactly one must come."""
        async with asyncio.timeout(BOUND_SECONDS), self._news:
            await self._news.wait_for(lambda: self.endings(transfer))
        return self.endings(transfer)[0]

    def endings(self, transfer):
        ends = (messages.Fetched, messages.Failed, messages.Released)
        return [m for m in self.heard if isinstance(m, ends) and m.transfer == transfer]

    def announce(self, transfer, span, lease_ms=5000, timeout_ms=60_000):
        self.send(
            messages.Offer(
                transfer=transfer, spans=[span], timeout_ms=timeout_ms, lease_ms=lease_ms
            )
        )

    async def offer(self, transfer, span, **options):
        self.announce(transfer, span, **options)
        await self.hear(messages.Offered, transfer)

    def ready(self, transfer, span, tokens=None, seed=0):
        for pool in self.pools:
            pool.write(span, tokens, seed)
        self.send(messages.ChunkReady(transfer, tokens or span.tokens))

    def commit(self, transfer, prompt=(1, 2, 3), tokens=(7,)):
        choices = [messages.ChoiceProgress(choice=0, tokens=list(tokens))]
        self.send(messages.Commit(transfer, messages.CommitRecord(list(prompt), choices)))

    def expect(self, transfer, peer, timeout_ms=15_000):
        self.send(messages.Expect(transfer=transfer, peer=peer, timeout_ms=timeout_ms))

    def fetch(self, transfer, *spans):
        self.send(messages.Fetch(transfer=transfer, spans=list(spans)))

    def abort(self, transfer):
        self.send(messages.Abort(transfer))

    def holds(self, span, tokens=None, seed=0):
        return all(pool.holds(span, tokens, seed) for pool in self.pools)

    async def die(self):
        """As kill -9 looks to its migrator."""
        for session in self.channels:
            session.abort()
        await self._listening

    async def close(self):
        for session in self.channels:
            await session.close()
        await self._listening
        for pool in self.pools:
            os.close(pool.fd)


def span(start, stop, *blocks):
    return BlockSpan(TokenRange(start, stop), list(blocks))


async def until(condition, what="the condition"):
    """Wait for something that sends no message; bounded."""
    try:
        async with asyncio.timeout(BOUND_SECONDS):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"{what} did not come about") from None


class Harness:
    """What tests use to build their scene; everything is closed at the end."""

    layout = staticmethod(layout)
    span = staticmethod(span)
    until = staticmethod(until)
    key = KEY

    def __init__(self, folder, stack):
        self.folder = folder
        self.stack = stack
        self.migrators = {}

    def config(self, name, transport="Auto", key=KEY):
        folder = self.folder / name
        return Config(name, "127.0.0.1", 0, folder / "m.sock", folder / "p.sock", transport, key)

    async def migrator(self, name, **options):
        migrator = Migrator(self.config(name, **options))
        await migrator.start()
        self.migrators[name] = migrator
        self.stack.push_async_callback(migrator.close)
        return migrator

    async def engine(self, name, *pools, **options):
        socket = self.folder / name / "m.sock"
        engine = FakeEngine(name, socket, pools or [layout()], **options)
        await engine.connect()
        self.stack.push_async_callback(engine.close)
        return engine

    async def pair(self, transport="Auto", **options):
        """Migrators p and d with an engine each."""
        await self.migrator("p", transport=transport)
        await self.migrator("d", transport=transport)
        return await self.engine("p", **options), await self.engine("d", **options)

    async def one(self, p, d, name="t"):
        """A transfer's end at the reader."""
        there, here = span(0, 20, 8, 7), span(0, 20, 9, 3)
        await p.offer(name, there)
        d.expect(name, p.address)
        d.fetch(name, here)
        p.ready(name, there)
        p.commit(name)
        ended = await d.ending(name)
        assert isinstance(ended, messages.Failed) or d.holds(here)
        return ended

    def process(self, name, transport="Auto", **environment):
        process = MigratorProcess(self.folder / name, name, transport, environment)
        self.stack.callback(process.kill)
        return process


class MigratorProcess:
    """`distserve migrator` as the pod runs it."""

    def __init__(self, folder, name, transport, environment):
        folder.mkdir(exist_ok=True)
        (folder / "key").write_bytes(KEY + b"\n")
        self.log = folder / "log"
        self.ports = []
        command = [
            sys.executable, "-m", "distserve.cli.main", "migrator", "--instance", name,
            "--host", "127.0.0.1", "--port", "0", "--metrics-port", "0",
            "--socket", str(folder / "m.sock"), "--peer-socket", str(folder / "p.sock"),
            "--transport", transport, "--key-file", str(folder / "key"), "--log-level", "debug",
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(command, stderr=log, env=os.environ | environment)

    def lines(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    async def metrics_address(self):
        def said():
            whole = self.log.read_text().rpartition("\n")[0].splitlines()
            found = [json.loads(line)["message"].partition("metrics on ") for line in whole]
            return [address for _, head, address in found if head]

        await until(said, "its metrics port")
        return said()[0]

    def kill(self, sent=signal.SIGKILL):
        self.popen.send_signal(sent)
        if sent in (signal.SIGKILL, signal.SIGTERM):
            self.popen.wait(BOUND_SECONDS)


@pytest.fixture(params=["SharedMemory", "TCP"])
def transport(request):
    return request.param


@pytest.fixture
async def harness(tmp_path):
    async with contextlib.AsyncExitStack() as stack:
        yield Harness(tmp_path, stack)
