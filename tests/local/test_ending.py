"""How a run on this machine ends: by signals, also where nobody reads its stderr any more."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

BOUND = 30.0
SAMPLE = Path(__file__).resolve().parents[2] / "manifests" / "samples" / "tiny-cpu.yaml"
RUN = """
import contextlib, errno, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import conftest
from distserve.api.loading import load_deployment
from distserve.cli.local_run import run_locally
from distserve.cli.up import serve
from distserve.local import session

folder = Path(sys.argv[2])

class OfStandIns(session.Session):
    async def start(self):
        self.supervisor.start()
        await self.supervisor.wait_ready(30)

def publish():
    if (folder / "full").exists():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "endpoints.json")

@contextlib.asynccontextmanager
async def open_session(deployment, port, log_directory):
    stand = conftest.Stand(folder)
    pod = stand.controller("d", "decode", stand.container("engine", 8100, folder))
    async with stand.run(pod) as supervisor:
        supervisor.watchers.append(publish)
        yield OfStandIns(deployment, supervisor, f"http://127.0.0.1:{port}", folder)

session.open_session = open_session
deployment = load_deployment(Path(sys.argv[3]))
sys.exit(run_locally(deployment, 1, None, serve, table=sys.stderr.isatty()))
"""
AT_A_TERMINAL = ("env", "--default-signal=HUP")


@contextlib.contextmanager
def run(folder: Path, stderr: int, *before: str) -> Iterator[subprocess.Popen[str]]:
    """The course of `up` with a stand-in for an engine, which is ready."""
    words = [*before, sys.executable, "-c", RUN, str(Path(__file__).parent), folder, SAMPLE]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready http://127.0.0.1:1/v1\n"
            yield process
        finally:
            process.kill()


def events(folder: Path) -> list[str]:
    return (folder / "events").read_text().splitlines()


@pytest.mark.parametrize(
    ("reader", "sent"),
    [(os.pipe, signal.SIGINT), (os.pipe, signal.SIGTERM), (pty.openpty, signal.SIGHUP)],
    ids=["tee and Ctrl-C", "tee and SIGTERM", "a terminal that is closed"],
)
def test_it_ends_in_order_when_its_reader_has_gone(
    reader: Callable[[], tuple[int, int]], sent: signal.Signals, tmp_path: Path
) -> None:
    reading, writing = reader()
    with run(tmp_path, writing, *AT_A_TERMINAL) as process:
        os.close(writing)
        os.close(reading)
        process.send_signal(sent)
        assert process.wait(BOUND) == 0
    assert events(tmp_path) == ["start d-0.engine", "end d-0.engine"]


def test_with_nohup_it_outlives_its_terminal(tmp_path: Path) -> None:
    with run(tmp_path, subprocess.PIPE, "nohup") as process:
        process.send_signal(signal.SIGHUP)
        (tmp_path / "d-0.engine-readyz").touch()
        assert process.stderr
        assert any("d-0 is not ready any more" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        assert process.wait(BOUND) == 0


def test_it_ends_with_one_line_when_it_cannot_look_after_its_pods(tmp_path: Path) -> None:
    with run(tmp_path, subprocess.PIPE) as process:
        (tmp_path / "full").touch()
        (tmp_path / "d-0.engine-readyz").touch()
        assert process.stderr
        *_, last = process.stderr
        assert last == "distserve: [Errno 28] No space left on device: 'endpoints.json'\n"
        assert process.wait(BOUND) == 1
    assert events(tmp_path) == ["start d-0.engine", "end d-0.engine"]
