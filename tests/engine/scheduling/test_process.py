"""`distserve engine` and `distserve drain` as processes."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distserve.engine.address import bind

KEY = "k" * 40
READY_SECONDS = 90
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def command(verb: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "distserve.cli.main", verb, *arguments]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from distserve.models.random_weights import make_random_model

    made = tmp_path_factory.mktemp("process") / "model"
    make_random_model(
        made, "llama", hidden_size=32, layers=2, heads=4, kv_heads=2, vocab_size=512,
        max_positions=2048, seed=7,
    )  # fmt: skip
    (made.parent / "key").write_text(KEY)
    return made


@pytest.fixture
def arguments(folder: Path) -> Callable[..., list[str]]:
    """Flags of an engine, some of them replaced."""

    def make(**replaced: str) -> list[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flags = {
            "model": str(folder), "served-name": "m", "instance": "i0", "host": "127.0.0.1",
            "port": str(port), "key-file": str(folder.parent / "key"), "kv-cache": "1Mi",
            "max-num-batched-tokens": "256", "max-num-seqs": "8",
        } | {name.replace("_", "-"): value for name, value in replaced.items()}  # fmt: skip
        return [part for name, value in flags.items() for part in (f"--{name}", value)]

    return make


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[list[str]], Any]]:
    """Starts an engine and waits until it is ready; returns its process and URL."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(flags: list[str]) -> tuple[subprocess.Popen[bytes], str]:
        log = tmp_path / f"engine-{len(started)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command("engine", *flags), stdout=out, stderr=out, env=ENVIRONMENT
            )
        started.append(process)
        url = f"http://127.0.0.1:{flags[flags.index('--port') + 1]}"
        deadline = time.monotonic() + READY_SECONDS
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                with urllib.request.urlopen(f"{url}/readyz", timeout=2):
                    return process, url
            except OSError:
                time.sleep(0.05)

    yield begin
    for process in started:
        process.kill()
        process.wait(10)


def post_leg(url: str, tokens: int, **fields: Any) -> Any:
    leg = {
        "id": "leg-1", "request_id": "r1", "phases": "both", "prompt": [1, 2, 3],
        "sampling": {"seed": 1, "max_tokens": tokens, "ignore_eos": True}, "timeout_ms": 60000,
    } | fields  # fmt: skip
    request = urllib.request.Request(
        f"{url}/legs", json.dumps(leg).encode(), {"Authorization": f"Bearer {KEY}"}
    )
    return urllib.request.urlopen(request, timeout=60)


def test_it_serves_drains_and_ends(arguments: Any, start: Any, folder: Path) -> None:
    process, url = start(arguments())
    with post_leg(url, 5) as answer:
        events = [json.loads(line) for line in answer]
    assert [e["type"] for e in events] == ["token"] * 5 + ["finish", "end"]
    drained = subprocess.run(
        command("drain", "--url", url, "--key-file", str(folder.parent / "key")),
        timeout=30, capture_output=True, check=False,
    )  # fmt: skip
    assert drained.returncode == 0, drained.stderr
    with pytest.raises(urllib.error.HTTPError, match="503"):
        post_leg(url, 5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0


def test_whoever_waits_is_told_when_it_is_asked_to_end(arguments: Any, start: Any) -> None:
    process, url = start(arguments())
    with post_leg(url, 1900) as answer:
        answer.readline()
        process.send_signal(signal.SIGTERM)
        last = json.loads(answer.readlines()[-1])
    assert (last["type"], last["retryable"]) == ("error", True)
    assert process.wait(15) == 0


def test_it_ends_while_it_loads(arguments: Any, folder: Path, tmp_path: Path) -> None:
    """By a handler of its own, not by the kernel: as a container's first process it would get no
    signal that it does not ask for."""
    shutil.copy(folder / "tokenizer.json", tmp_path)
    config = tmp_path / "config.json"
    os.mkfifo(config)
    flags = arguments(model=str(tmp_path))
    with subprocess.Popen(command("engine", *flags), env=ENVIRONMENT) as process:
        try:
            held = opened_by_its_reader(config)
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 128 + signal.SIGTERM
            os.close(held)
        finally:
            process.kill()


def opened_by_its_reader(pipe: Path) -> int:
    """The writing end of a pipe that somebody reads: nothing comes out of it."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            assert error.errno == errno.ENXIO, error
            assert time.monotonic() < deadline, "nobody reads it"
            time.sleep(0.05)


def refused(flags: list[str]) -> str:
    """What a process that does not start says: one line, exit code 2."""
    ended = subprocess.run(
        command("engine", *flags), env=ENVIRONMENT, capture_output=True, text=True, timeout=90,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    said = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
    assert len(said) == 1, ended.stderr
    return said[0]


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ({"model": "/no/such/folder"}, "/no/such/folder does not exist"),
        ({"model": "builtin:huge"}, "huge"),
        ({"strategy_options": '{"chunkTokens": 64}'}, "Colocated takes no options"),
        ({"strategy_options": "["}, "no JSON object"),
        ({"key_file": "/no/such/key"}, "/no/such/key"),
        ({"kv_cache": "64Zi"}, "--kv-cache"),
        ({"lease": "soon"}, "--lease"),
        ({"lease": "24h"}, "--lease: 24h is not above zero and below 24h"),
        ({"lease": "0s"}, "--lease: 0s is not above zero"),
    ],
    ids=str,
)
def test_what_is_wrong_is_one_line(arguments: Any, replaced: dict[str, str], said: str) -> None:
    assert said in refused(arguments(**replaced))


def test_a_port_in_use_is_one_line(arguments: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert port in refused(arguments(port=port))


def test_a_peer_whose_node_was_lost_does_not_hold_its_connection() -> None:
    with bind("127.0.0.1", 0) as bound, socket.socket() as client:
        bound.listen()
        client.connect(bound.getsockname())
        accepted, _ = bound.accept()
        with accepted:
            told = {
                name: accepted.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_USER_TIMEOUT")
            }
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert told == {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_USER_TIMEOUT": 90_000}


def test_too_little_memory_is_one_line(arguments: Any) -> None:
    assert "lower kvCache" in refused(arguments(kv_cache="4096Gi"))


def test_drain_of_an_engine_that_is_gone(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    ended = subprocess.run(
        command("drain", "--url", url, "--key-file", str(folder.parent / "key")),
        timeout=30, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "does not answer" in ended.stderr
