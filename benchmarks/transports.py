"""How fast KV moves between two migrators, per transport, beside the bare means in the same run.

    python benchmarks/transports.py [--sizes 1 16 128] [--repeat 5]

Two `distserve migrator` processes and two pools; a transfer is offered whole, and the time runs
from FETCH to FETCHED. `bare` is one memcpy of as many bytes, or one socket from process to process.
Last, what `POST /links` measures of the same pair, beside a loop over the bare means.
"""

import argparse
import asyncio
import json
import mmap
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import numpy as np

from distserve.wire import channel, messages
from distserve.wire.pool import BlockSpan, PoolLayout, TokenRange

MIB = 1 << 20
LAYERS, HEADS, HEAD_DIM, BLOCK = 16, 8, 64, 16  # 32 KiB per token, 512 KiB per block in bf16
BLOCK_BYTES = LAYERS * 2 * HEADS * HEAD_DIM * BLOCK * 2
TIMEOUT_SECONDS = 60.0
PROBE_STEP_BYTES = 64 * MIB
"""The largest step of a probe: what its bandwidth comes from on a machine's own links."""


class Engine:
    """A pool and its channel."""

    def __init__(self, pool_bytes: int) -> None:
        self.layout = PoolLayout(
            layer_start=0,
            layers=LAYERS,
            head_start=0,
            kv_heads=HEADS,
            head_dim=HEAD_DIM,
            block_tokens=BLOCK,
            blocks=pool_bytes // BLOCK_BYTES,
            dtype="bfloat16",
        )
        self.fd = os.memfd_create("kv")
        os.posix_fallocate(self.fd, 0, self.layout.pool_bytes)
        memory = mmap.mmap(self.fd, self.layout.pool_bytes)
        np.frombuffer(memory, np.uint8)[::4096] = 1  # pages exist before the clock starts

    async def connect(self, name: str, path: Path) -> None:
        hello = messages.Hello(
            instance=name, epoch=time.time_ns(), fingerprint="f", pools=[self.layout]
        )
        self.channel = await channel.connect(path, hello, [self.fd], TIMEOUT_SECONDS)
        welcome = await anext(self.channel)
        assert isinstance(welcome, messages.Welcome)
        self.address = welcome.address

    async def hear(self, kind: type) -> messages.MigratorMessage:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            async for message in self.channel:
                if isinstance(message, kind):
                    return message
                if isinstance(message, messages.Failed):
                    raise SystemExit(f"a transfer failed: {message.reason}")
        raise SystemExit("a migrator ended")


def start(stack: ExitStack, folder: Path, name: str, transport: str, metrics_port: int) -> Path:
    (folder / name).mkdir()
    path = folder / name / "m.sock"
    command = [sys.executable, "-m", "distserve.cli.main", "migrator", "--instance", name]
    command += ["--host", "127.0.0.1", "--port", "0"]
    command += ["--metrics-port", str(metrics_port)]
    command += ["--socket", str(path), "--peer-socket", str(folder / name / "p.sock")]
    command += ["--transport", transport, "--key-file", str(folder / "key")]
    process = subprocess.Popen([*command, "--log-level", "warning"])
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return path


async def move(p: Engine, d: Engine, size: int, scattered: bool) -> tuple[float, float]:
    """Seconds from FETCH to FETCHED, and seconds in motion."""
    transfer, blocks = secrets.token_hex(16), max(1, size // BLOCK_BYTES)
    tokens = TokenRange(0, blocks * BLOCK)
    there = list(range(blocks))
    here = list(np.random.default_rng(0).permutation(blocks)) if scattered else there
    p.channel.send(
        messages.Offer(
            transfer=transfer,
            spans=[BlockSpan(tokens, there)],
            timeout_ms=60_000,
            lease_ms=30_000,
        )
    )
    await p.hear(messages.Offered)
    p.channel.send(messages.ChunkReady(transfer, tokens))
    p.channel.send(messages.Commit(transfer, messages.CommitRecord([], [])))
    d.channel.send(messages.Expect(transfer=transfer, peer=p.address, timeout_ms=60_000))
    start = time.perf_counter()
    spans = [BlockSpan(tokens, [int(block) for block in here])]
    d.channel.send(messages.Fetch(transfer=transfer, spans=spans))
    fetched = await d.hear(messages.Fetched)
    seconds = time.perf_counter() - start
    await p.hear(messages.Released)
    assert isinstance(fetched, messages.Fetched)
    return seconds, fetched.timings.copy_ms / 1e3


def bare_memcpy(size: int, repeat: int) -> float:
    source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)

    def once() -> None:
        target[:] = source

    return median(timed(once) for _ in range(repeat))


def bare_socket(size: int, repeat: int) -> float:
    """One connection, sender in a child process, receiver here; a byte asks for `size` bytes."""
    child = (
        "import socket, sys\n"
        "s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "data = memoryview(bytearray(int(sys.argv[2])))\n"
        "while s.recv(1): s.sendall(data)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        process = subprocess.Popen([sys.executable, "-c", child, str(port), str(size)])
        sock, _ = server.accept()
        into = memoryview(bytearray(size))

        def once() -> None:
            sock.sendall(b"x")
            received = 0
            while received < size:
                received += sock.recv_into(into[received:])

        once()
        seconds = median(timed(once) for _ in range(repeat))
        sock.close()
        process.wait()
    return seconds


def compare_probe(transport: str, port: int, key: str, peer: str, repeat: int) -> None:
    """By turns, since a shared machine changes from second to second; the best of each is what
    the machine can do, the median what it did."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/links?peer={peer}",
        method="POST",
        headers={"authorization": f"Bearer {key}"},
    )
    probes, loops, latencies = [], [], []
    with LOOP[transport]() as once:
        once()
        for _ in range(4 * repeat):
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                found = json.load(answer)["links"][peer]["probe"]
            probes.append(found["bandwidth_bytes_per_second"])
            latencies.append(found["latency_ms"])
            loops.append(PROBE_STEP_BYTES / min(timed(once) for _ in range(3)))
    for name, of in (("best", max), ("median", median)):
        probe, loop = of(probes), of(loops)
        print(
            f"{transport:<13} probe, {name}: {probe / 1e9:.2f} GB/s, bare loop "
            f"{loop / 1e9:.2f} GB/s, ratio {probe / loop:.2f}"
        )
    print(f"{transport:<13} probe, latency: {min(latencies):.3f} ms")


@contextmanager
def loop_memcpy() -> Iterator[Callable[[], None]]:
    """Through a source as large as a step into a target that no core's cache holds."""
    source, target = np.ones(PROBE_STEP_BYTES, np.uint8), np.ones(16 * MIB, np.uint8)

    def once() -> None:
        for at in range(0, source.size, target.size):
            target[:] = source[at : at + target.size]

    yield once


@contextmanager
def loop_socket() -> Iterator[Callable[[], None]]:
    """Sender in a child process, receiver here; a byte asks for a step."""
    child = (
        "import socket, sys\n"
        "s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "data = memoryview(bytearray(4 << 20))\n"
        "while s.recv(1):\n"
        "    for _ in range(int(sys.argv[2]) // len(data)): s.sendall(data)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        command = [sys.executable, "-c", child, str(port), str(PROBE_STEP_BYTES)]
        process = subprocess.Popen(command)
        sock, _ = server.accept()
    into = memoryview(bytearray(4 * MIB))

    def once() -> None:
        sock.sendall(b"x")
        received = 0
        while received < PROBE_STEP_BYTES:
            received += sock.recv_into(into[received % len(into) :])

    yield once
    sock.close()
    process.wait()


LOOP = {"SharedMemory": loop_memcpy, "TCP": loop_socket}


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        taken = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in taken]


def timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


async def measure(transport: str, sizes: list[int], repeat: int) -> None:
    bare = bare_memcpy if transport == "SharedMemory" else bare_socket
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "key").write_text(secrets.token_hex(32))
        ports = free_ports(2)
        paths = [
            start(stack, folder, name, transport, port)
            for name, port in zip("pd", ports, strict=True)
        ]
        p, d = Engine(max(sizes)), Engine(max(sizes))
        await p.connect("p", paths[0])
        await d.connect("d", paths[1])
        for _ in range(2):
            await move(p, d, max(sizes), scattered=False)  # pages, caches, the probe
        for size in sizes:
            for scattered in (False, True):
                runs = [await move(p, d, size, scattered) for _ in range(repeat)]
                total = median(run[0] for run in runs)
                motion = median(run[1] for run in runs)
                alone = bare(size, repeat)
                print(
                    f"{transport:<13}{size // MIB:>6}{'scattered' if scattered else 'adjacent':>11}"
                    f"{total * 1e3:>12.2f}{size / motion / 1e9:>9.2f}{size / alone / 1e9:>9.2f}"
                    f"{alone / motion:>8.2f}",
                    flush=True,
                )
        runs = [await move(p, d, BLOCK_BYTES, False) for _ in range(20)]
        print(
            f"{transport:<13} one block of {BLOCK_BYTES >> 10} KiB: "
            f"{median(run[0] for run in runs) * 1e3:.2f} ms from FETCH to FETCHED"
        )
        key = (folder / "key").read_text()
        await asyncio.to_thread(compare_probe, transport, ports[1], key, p.address, repeat)
        await p.channel.close()
        await d.channel.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 16, 128], help="MiB")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    print("transport       MiB     blocks    total ms     GB/s bare GB/s  ratio")
    for transport in ("SharedMemory", "TCP"):
        asyncio.run(measure(transport, [size * MIB for size in args.sizes], args.repeat))


if __name__ == "__main__":
    main()
