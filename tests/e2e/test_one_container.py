"""migratorPlacement InEngineContainer with real processes: KV moves, a killed migrator comes back,
nothing is left behind."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SAMPLE = Path(__file__).resolve().parents[2] / "manifests" / "samples" / "tiny-cpu.yaml"
SECONDS = 90


@dataclass
class Up:
    process: subprocess.Popen[str]
    url: str

    def post(self, prompt: str) -> dict[str, Any]:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 8, "temperature": 0}
        return self._call("/v1/completions", json.dumps(body).encode())

    def moved_bytes(self) -> int:
        return int(self._call("/stats")["kv_transfer_bytes"])

    def migrators(self) -> list[psutil.Process]:
        """Each of them a child of an instance's process."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                if "migrator" in child.cmdline()[1:5]:
                    parent = child.parent()
                    assert parent is not None and "instance" in parent.cmdline()[1:5]
                    found.append(child)
        return found

    def _call(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.url}{path}", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            found: dict[str, Any] = json.load(answer)
            return found


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    document = yaml.safe_load(SAMPLE.read_text())
    document["spec"]["kvTransfer"] = {"migratorPlacement": "InEngineContainer"}
    manifest = tmp_path / "together.yaml"
    manifest.write_text(yaml.safe_dump(document))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "distserve.cli.main", "up", "-f", str(manifest),
         "--port", str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert "ready" in process.stdout.readline()
        yield Up(process, f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.communicate(timeout=SECONDS)


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not reached():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.1)


def test_both_in_one_container_serve_and_end_together(up: Up) -> None:
    everyone = psutil.Process(up.process.pid).children(recursive=True)
    text = up.post("the quick brown fox jumps over the lazy dog")["choices"][0]["text"]
    until(lambda: up.moved_bytes() > 0)
    before = up.migrators()
    assert len(before) == 2
    for migrator in before:
        migrator.kill()
    until(lambda: len(up.migrators()) == 2 and not set(up.migrators()) & set(before))
    assert up.post("the quick brown fox jumps over the lazy dog")["choices"][0]["text"] == text
    moved = up.moved_bytes()

    def moves_again() -> bool:
        up.post(f"another prompt at {time.monotonic()} that no cache has seen before")
        return up.moved_bytes() > moved

    until(moves_again)
    everyone += up.migrators()
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(SECONDS) == 0
    assert not psutil.wait_procs(everyone, timeout=10)[1]
