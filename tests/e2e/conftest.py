"""A fleet of real processes: engines with their migrators and a gateway, as a pod would start them.

`distserve up` is tested on its own; here each process is started by its arguments, so that a
test can choose the dtype, kill one of them or look inside.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.e2e.forked import fork

KEY = "e2e-" + "k" * 40
READY_SECONDS = 180.0
QUIET_SECONDS = 20.0


def wait_for(what: str, condition: Callable[[], bool], seconds: float) -> None:
    """Poll until the condition holds; the message names what did not happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.02)


def free_port(host: str) -> int:
    with socket.socket() as s:
        s.bind((host, 0))
        return int(s.getsockname()[1])


@dataclass
class Process:
    name: str
    process: BaseProcess
    log: Path

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self.process.exitcode

    def alive(self) -> bool:
        return self.exit_code is None

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def send(self, sent: signal.Signals) -> None:
        if self.alive() and self.process.pid is not None:
            os.kill(self.process.pid, sent)

    def stop(self, sent: signal.Signals = signal.SIGTERM) -> None:
        self.send(sent)
        self.process.join(15)
        if self.alive():
            self.process.kill()
            self.process.join(5)
            raise AssertionError(f"{self.name} did not end on {sent.name}\n{self.tail()}")


@dataclass
class Instance:
    name: str
    role: str
    host: str
    folder: Path
    engine: Process
    migrator: Process | None
    engine_arguments: list[str]

    @property
    def url(self) -> str:
        return f"http://{self.host}:8100"


@dataclass
class Fleet:
    """Instances and a gateway; `completion` and friends talk to the gateway."""

    folder: Path
    prefix: str
    key_file: Path
    instances: list[Instance] = field(default_factory=list)
    gateway: Process | None = None
    gateway_url: str = ""

    def spawn(self, name: str, arguments: Sequence[str]) -> Process:
        log = self.folder / f"{name}.log"
        return Process(name, fork(arguments, log), log)

    def start_migrator(self, name: str, host: str, transport: str) -> Process:
        folder = self.folder / name
        return self.spawn(
            f"{name}-migrator",
            ["migrator", "--instance", name, "--host", host, "--transport", transport,
             "--socket", f"{folder}/migrator.sock", "--peer-socket", f"{folder}/peer.sock",
             "--key-file", str(self.key_file)],
        )  # fmt: skip

    def add_instance(
        self, role: str, model: str, *, transport: str, strategy: str, extra: Sequence[str] = ()
    ) -> Instance:
        index = len(self.instances)
        name, host = f"{role}-{index}", f"{self.prefix}.{index + 2}"
        folder = self.folder / name
        folder.mkdir()
        arguments = [
            "engine", "--instance", name, "--host", host, "--role", role, "--model", model,
            "--served-name", "test", "--strategy", strategy, "--key-file", str(self.key_file),
            *extra,
        ]  # fmt: skip
        migrator = None
        if role != "hybrid":
            arguments += ["--migrator-socket", f"{folder}/migrator.sock"]
            migrator = self.start_migrator(name, host, transport)
        engine = self.spawn(f"{name}-engine", arguments)
        instance = Instance(name, role, host, folder, engine, migrator, arguments)
        self.instances.append(instance)
        return instance

    def start_gateway(self, strategy: str, extra: Sequence[str] = ()) -> None:
        host = f"{self.prefix}.1"
        self.gateway_url = f"http://{host}:8000"
        self.gateway = self.spawn(
            "gateway",
            ["gateway", "--host", host, "--port", "8000", "--model", "test",
             "--strategy", strategy, "--discovery", f"file:{self.folder}/endpoints.json",
             "--key-file", str(self.key_file), "--slo-ttft", "2s", "--slo-tpot", "500ms", *extra],
        )  # fmt: skip

    def publish(self) -> None:
        """Write the discovery file: all instances that live are ready."""
        endpoints = [
            {"name": i.name, "url": i.url, "role": i.role, "unit": "u0", "revision": "r0",
             "domain": "", "ready": i.engine.alive(), "terminating": False}
            for i in self.instances
        ]  # fmt: skip
        scratch = self.folder / "endpoints.json.new"
        scratch.write_text(json.dumps({"endpoints": endpoints}))
        scratch.rename(self.folder / "endpoints.json")

    @property
    def processes(self) -> list[Process]:
        parts = [p for i in self.instances for p in (i.engine, i.migrator) if p]
        return [self.gateway, *parts] if self.gateway else parts

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {KEY}"}

    async def wait_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        urls = [f"{i.url}/readyz" for i in self.instances] + [f"{self.gateway_url}/readyz"]
        async with aiohttp.ClientSession() as http:
            for url in urls:
                while True:
                    with contextlib.suppress(aiohttp.ClientError):
                        async with http.get(url, timeout=aiohttp.ClientTimeout(2)) as answer:
                            if answer.status == 200:
                                break
                    self.check_alive()
                    assert time.monotonic() < deadline, f"{url} never got ready\n{self.tails()}"
                    await asyncio.sleep(0.05)

    def check_alive(self) -> None:
        for process in self.processes:
            code = process.exit_code
            assert code is None, f"{process.name} ended with {code}\n{process.tail()}"

    def tails(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.tail(15)}" for p in self.processes)

    async def state(self, instance: Instance) -> dict[str, Any]:
        async with (
            aiohttp.ClientSession(headers=self.headers) as http,
            http.get(f"{instance.url}/state", timeout=aiohttp.ClientTimeout(5)) as answer,
        ):
            assert answer.status == 200, await answer.text()
            line: dict[str, Any] = json.loads(await answer.content.readline())
            return line

    async def assert_quiet(self) -> None:
        """All blocks are free or cached, and nothing runs: no leak on any living instance."""
        deadline = time.monotonic() + QUIET_SECONDS
        for instance in [i for i in self.instances if i.engine.alive()]:
            while True:
                state = await self.state(instance)
                busy = state["running"] + state["waiting"] + len(state["requests"])
                if not busy and state["free_blocks"] == state["total_blocks"]:
                    break
                assert time.monotonic() < deadline, (
                    f"{instance.name} is not quiet: {state}\n{self.tails()}"
                )
                await asyncio.sleep(0.05)

    async def metrics(self, url: str) -> dict[str, float]:
        """Samples of a /metrics page by their full name with labels."""
        async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as answer:
            text = await answer.text()
        samples = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                samples[name] = float(value)
        return samples

    async def complete(
        self, headers: Mapping[str, str] | None = None, /, **body: Any
    ) -> dict[str, Any]:
        """One answer of /v1/completions."""
        async with (
            aiohttp.ClientSession() as http,
            http.post(
                f"{self.gateway_url}/v1/completions",
                json={"model": "test"} | body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(60),
            ) as answer,
        ):
            text = await answer.text()
            assert answer.status == 200, f"{answer.status} {text}\n{self.tails()}"
            parsed: dict[str, Any] = json.loads(text)
            return parsed

    def close(self) -> None:
        for process in self.processes:
            process.send(signal.SIGTERM)
        for process in self.processes:
            process.stop()


@dataclass
class Fleets:
    """Makes fleets and ends them; each gets a loopback network of its own."""

    stack: contextlib.ExitStack
    made: list[Fleet] = field(default_factory=list)

    async def __call__(
        self,
        model: Path | str,
        *,
        prefill: int = 1,
        decode: int = 1,
        hybrid: int = 0,
        transport: str = "Auto",
        dtype: str = "float64",
        strategy: str = "Disaggregated",
        engine: Sequence[str] = (),
        prefill_engine: Sequence[str] = (),
        decode_engine: Sequence[str] = (),
        gateway: Sequence[str] = (),
    ) -> Fleet:
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="dsf")))
        key_file = folder / "key"
        key_file.write_text(KEY)
        key_file.chmod(0o600)
        # 127.(64..127).x.0/24: apart from what `distserve up` may use on the same machine.
        octet = int.from_bytes(os.urandom(2), "big")
        fleet = Fleet(folder, f"127.{64 + octet % 64}.{octet >> 8}", key_file)
        self.stack.callback(fleet.close)
        self.made.append(fleet)
        shared = ["--dtype", dtype, *engine]
        roles = [
            *[("prefill", prefill_engine)] * prefill,
            *[("decode", decode_engine)] * decode,
            *[("hybrid", ())] * hybrid,
        ]
        for role, own in roles:
            fleet.add_instance(
                role, str(model), transport=transport, strategy=strategy, extra=[*shared, *own]
            )
        fleet.publish()
        fleet.start_gateway(strategy, gateway)
        await fleet.wait_ready()
        return fleet


@pytest.fixture
async def fleets() -> AsyncIterator[Fleets]:
    with contextlib.ExitStack() as stack:
        maker = Fleets(stack)
        yield maker
        for fleet in maker.made:
            if fleet.gateway and fleet.gateway.alive():
                await fleet.assert_quiet()
