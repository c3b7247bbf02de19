"""`distserve up` as its user meets it: one YAML, one line that says ready, nothing left behind."""

import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import openai
import psutil
import pytest
import yaml

from distserve.cli.main import main
from distserve.wire.parent import PARENT_VARIABLE

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "manifests" / "samples"
DISTSERVE = [sys.executable, "-m", "distserve.cli.main"]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def processes_of(runner: int) -> list[psutil.Process]:
    """Whatever it started, also when it has ended: their environment says whose they are."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get(PARENT_VARIABLE) == str(runner):
                found.append(process)
    return found


def gone(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that still run when the time is up."""
    return psutil.wait_procs(list(processes), timeout=seconds)[1]


@dataclass
class Up:
    process: subprocess.Popen[str]
    port: int
    children: list[psutil.Process] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def wait_ready(self) -> None:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line == f"ready {self.url}\n", f"{line!r} {self.errors()}"
        self.children = processes_of(self.process.pid)

    def errors(self) -> str:
        self.process.kill()
        return self.process.communicate(timeout=10)[1]


@pytest.fixture
def up() -> Iterator[Any]:
    started: list[Up] = []

    def start(manifest: Path) -> Up:
        port = free_port()
        process = subprocess.Popen(
            [*DISTSERVE, "up", "-f", str(manifest), "--port", str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        running = Up(process, port)
        started.append(running)
        running.wait_ready()
        return running

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.process.wait(30)
        one.process.kill()
        one.process.communicate(timeout=10)
        left = gone(one.children, 10)
        for process in left:
            process.kill()
        assert not left, f"left behind: {left}"


def shared_memory_files() -> set[str]:
    return set(os.listdir("/dev/shm"))


async def test_sample_answers_the_real_client_and_ends_on_interrupt(up: Any) -> None:
    before = shared_memory_files()
    running = up(SAMPLES / "tiny-cpu.yaml")
    client = openai.AsyncOpenAI(base_url=running.url, api_key="unused", max_retries=0, timeout=60)
    async with client:
        assert [m.id for m in (await client.models.list()).data] == ["tiny"]
        stream = await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "What does a list do?"}],
            max_tokens=40,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        text, usage = "", None
        async for chunk in stream:
            text += "".join(c.delta.content or "" for c in chunk.choices)
            usage = chunk.usage or usage
    assert re.search(r"[a-z]{3,}", text), text
    assert usage and usage.completion_tokens > 0
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(45) == 0
    assert not gone(running.children, 1), "processes left after Ctrl-C"
    assert shared_memory_files() <= before


def test_killed_runner_leaves_no_process(up: Any) -> None:
    running = up(SAMPLES / "tiny-cpu.yaml")
    assert len(running.children) >= 5
    running.process.kill()
    assert not gone(running.children, 30), "children did not notice that the runner is gone"


async def test_two_prefills_and_three_decodes_share_two_hundred_requests(up: Any) -> None:
    running = up(SAMPLES / "tiny-2p3d.yaml")
    draw = random.Random(4)

    async def ask(http: aiohttp.ClientSession, index: int) -> int:
        body = {
            "model": "tiny", "max_tokens": 16, "ignore_eos": True, "seed": index,
            "prompt": [draw.randrange(100, 1000) for _ in range(draw.randint(5, 120))],
        }  # fmt: skip
        async with http.post(f"{running.url}/completions", json=body) as answer:
            assert answer.status == 200, await answer.text()
            return int((await answer.json())["usage"]["completion_tokens"])

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(200)
    ) as http:
        counts = await asyncio.gather(*(ask(http, i) for i in range(200)))
    assert counts == [16] * 200

    served = await requests_by_instance(running)
    for role, instances in (("prefill", 2), ("decode", 3)):
        shares = [n for name, n in served.items() if role in name]
        assert len(shares) == instances
        assert sum(shares) == 200
        assert min(shares) >= 0.5 * 200 / instances, f"unbalanced: {served}"


async def requests_by_instance(running: Up) -> dict[str, int]:
    """Instance -> legs that it finished, from each engine's metrics."""
    served = {}
    for process in running.children:
        words = process.cmdline()
        if "engine" not in words:
            continue
        host, name = words[words.index("--host") + 1], words[words.index("--instance") + 1]
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://{host}:8100/metrics") as answer,
        ):
            text = await answer.text()
        served[name] = sum(
            int(float(line.rpartition(" ")[2]))
            for line in text.splitlines()
            if line.startswith("distserve_engine_request_success_total{")
        )
    return served


def manifest_with(tmp_path: Path, **changes: Any) -> Path:
    """The sample with some of its fields changed: `a__b=value` sets spec.a.b."""
    document = yaml.safe_load((SAMPLES / "tiny-cpu.yaml").read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = document["spec"]
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    written = tmp_path / "deployment.yaml"
    written.write_text(yaml.safe_dump(document))
    return written


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__source": {"hostPath": "/no/such/model"}}, "/no/such/model"),
        ({"prefil": {"instancesPerUnit": 1}}, "prefil"),
        ({"prefill__parallelism": {"tensor": 2}}, "NotSupportedByEngine"),
        ({"strategy__name": "Guessing"}, "Guessing"),
        ({"model__dtype": 12}, "dtype"),
        ({"accelerator__kvCache": "900Gi"}, "not enough memory"),
    ],
    ids=["folder", "field", "tensor", "strategy", "type", "memory"],
)
def test_a_mistake_is_one_line_and_exit_code_two(
    tmp_path: Path, changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(manifest_with(tmp_path, **changes), free_port(), said, capsys)


def test_broken_yaml_and_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("spec: [unclosed")
    assert_refused(broken, free_port(), "broken.yaml", capsys)
    assert_refused(tmp_path / "absent.yaml", free_port(), "absent.yaml", capsys)


def test_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_refused(SAMPLES / "tiny-cpu.yaml", port, str(port), capsys)


def assert_refused(
    manifest: Path, port: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["up", "-f", str(manifest), "--port", str(port)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_process_that_refuses_ends_all_others(tmp_path: Path) -> None:
    """What the runner cannot know beforehand: the engine refuses its model, its migrator runs."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    manifest = manifest_with(tmp_path, model__source={"hostPath": str(model)})
    logs = tmp_path / "logs"
    words = ["up", "-f", manifest, "--port", str(free_port()), "--log-dir", logs]
    with subprocess.Popen([*DISTSERVE, *words], stderr=subprocess.PIPE, text=True) as runner:
        try:
            said = runner.communicate(timeout=60)[1]
        finally:
            runner.kill()
    assert runner.returncode == 2, said
    assert "has no tokenizer.json" in said.splitlines()[-1]
    assert [log for log in logs.glob("*.kv-migrator.log") if log.stat().st_size], "one had started"
    assert not processes_of(runner.pid)
