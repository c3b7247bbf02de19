"""`distserve gateway` as a process: its flags, its memory, its end."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from starlette.requests import Request

from distserve.gateway.errors import Unauthorized
from distserve.gateway.stats import check_may_read

KEY = "k" * 32
GATEWAY = [sys.executable, "-m", "distserve.cli.main", "gateway"]
RSS_BYTES = 120_000_000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "endpoints.json").write_text('{"endpoints": []}')
    return tmp_path


def flags(files: Path, **changes: str) -> list[str]:
    chosen = {
        "model": "test", "discovery": f"file:{files}/endpoints.json", "key-file": f"{files}/key",
        "port": str(free_port()),
    } | {name.replace("_", "-"): value for name, value in changes.items()}  # fmt: skip
    return [part for name, value in chosen.items() for part in (f"--{name}", value)]


@pytest.fixture
def start(files: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []

    def make(arguments: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen([*GATEWAY, *arguments], stderr=subprocess.PIPE, text=True)
        running.append(process)
        return process

    yield make
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"discovery": "etcd:x"}, "file:PATH"),
        ({"discovery": "endpointslices:tiny"}, "endpointslices:NAMESPACE/SERVICE"),
        ({"discovery": "endpointslices:n/s"}, "no pod of a cluster"),
        ({"key_file": "/nowhere/key"}, "deployment key"),
        ({"slo_ttft": "fast"}, "--slo-ttft"),
        ({"request_timeout": "0s"}, "--request-timeout"),
        ({"request_timeout": "24h1s"}, "--request-timeout: 24h1s is more than 24h"),
        ({"drain_deadline": "soon"}, "--drain-deadline"),
        ({"drain_deadline": "0s"}, "--drain-deadline"),
        ({"routing_policy": "Best"}, "--routing-policy"),
        ({"strategy": "Unheard"}, "--strategy"),
        ({"max_waiting_requests": "-1"}, "--max-waiting-requests"),
        ({"attainment_percent": "101"}, "--attainment-percent"),
        ({"strategy": "Colocated", "min_remote_prefill_tokens": "5"}, "no meaning"),
        ({"host": "203.0.113.1"}, "cannot listen on 203.0.113.1"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_wrong_flag_is_one_line(files: Path, change: dict[str, str], said: str) -> None:
    outside = {k: v for k, v in os.environ.items() if not k.startswith("KUBERNETES_")}
    ended = subprocess.run(
        [*GATEWAY, *flags(files, **change)], capture_output=True, text=True, timeout=60, env=outside
    )
    assert ended.returncode == 2
    assert said in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_a_port_in_use_is_one_line(files: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        ended = subprocess.run(
            [*GATEWAY, *flags(files, port=port)], capture_output=True, text=True, timeout=60
        )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert f"cannot listen on 127.0.0.1:{port}" in line


async def until_answers(url: str) -> None:
    async with asyncio.timeout(60), aiohttp.ClientSession() as http:
        while True:
            try:
                async with http.get(url) as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.02)


async def test_it_serves_in_little_memory_and_ends_with_its_streams(
    houses: Any, files: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    house = await houses(engine={"token_seconds": 0.01})
    endpoints = house.folder / "endpoints.json"
    arguments = flags(files, discovery=f"file:{endpoints}", slo_ttft="250ms", slo_tpot="100ms")
    url = f"http://127.0.0.1:{arguments[arguments.index('--port') + 1]}"
    process = start(arguments)
    await until_answers(f"{url}/readyz")
    body = {"model": "test", "prompt": "hello", "max_tokens": 60, "stream": True}
    async with aiohttp.ClientSession() as http:

        async def ask() -> str:
            async with http.post(f"{url}/v1/completions", json=body) as answer:
                assert answer.status == 200
                return await answer.text()

        await asyncio.gather(*(ask() for _ in range(50)))
        async with http.get(f"{url}/openapi.json") as answer:
            assert "/v1/chat/completions" in (await answer.json())["paths"]
        assert psutil.Process(process.pid).memory_info().rss < RSS_BYTES

        async with http.post(f"{url}/v1/completions", json=body) as answer:
            await answer.content.readline()
            process.send_signal(signal.SIGTERM)
            text = await answer.text()
        assert text.endswith("data: [DONE]\n\n")
        assert json.loads(text.split("\n\n")[-3][6:])["choices"][0]["finish_reason"] == "length"
    _, logged = await asyncio.to_thread(process.communicate, timeout=30)
    assert process.returncode == 0, logged
    lines = [json.loads(line) for line in logged.splitlines()]
    answered = [line for line in lines if line["message"] == "request answered"]
    assert len(answered) == 51
    assert all(line["request_id"] and line["completion_tokens"] == 60 for line in answered)
    assert KEY not in logged


async def test_a_stream_that_outlasts_the_drain_deadline_ends_with_an_error(
    houses: Any, files: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """It would end by itself after 12 s, before the default deadline."""
    house = await houses(engine={"token_seconds": 0.2})
    endpoints = house.folder / "endpoints.json"
    arguments = flags(files, discovery=f"file:{endpoints}", drain_deadline="100ms")
    url = f"http://127.0.0.1:{arguments[arguments.index('--port') + 1]}"
    process = start(arguments)
    await until_answers(f"{url}/readyz")
    body = {"model": "test", "prompt": "hello", "max_tokens": 60, "stream": True}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/v1/completions", json=body) as answer,
    ):
        assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        *_, error, done = (await answer.text()).split("\n\n")[:-1]
    assert done == "data: [DONE]"
    told = json.loads(error.removeprefix("data: "))["error"]
    assert told["message"].startswith("the gateway is ending")
    assert told["code"] == "no_ready_instance"
    _, logged = await asyncio.to_thread(process.communicate, timeout=30)
    assert process.returncode == 0, logged


def test_it_ends_with_its_parent(files: Path) -> None:
    arguments = flags(files)
    port = arguments[arguments.index("--port") + 1]
    script = (
        "import os, subprocess, sys, time\n"
        "os.environ['DISTSERVE_PARENT_PID'] = str(os.getpid())\n"
        "print(subprocess.Popen(sys.argv[1:], stderr=subprocess.DEVNULL).pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, *GATEWAY, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    asyncio.run(until_answers(f"http://127.0.0.1:{port}/health"))
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    child.wait(timeout=30)


def test_stats_need_the_key_from_elsewhere() -> None:
    """From this machine it is open; the check itself is a pure function of the request."""

    def request(host: str, key: str | None) -> Request:
        headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
        return Request({"type": "http", "client": (host, 1), "headers": headers})

    check_may_read(request("127.0.0.1", None), KEY.encode())
    check_may_read(request("10.0.0.1", KEY), KEY.encode())
    for key in (None, "x" * 32):
        with pytest.raises(Unauthorized):
            check_may_read(request("10.0.0.1", key), KEY.encode())
