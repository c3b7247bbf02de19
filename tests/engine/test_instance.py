"""An engine and its migrator under one process, with stand-ins that say what happens to them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from distserve.cli.instance import split
from distserve.cli.usage import UsageError

SECONDS = 30
CHILD = """
import os, signal, sys, time
name, folder, stubborn, code = sys.argv[1], sys.argv[2], sys.argv[3] == "stubborn", int(sys.argv[4])
def note(word):
    with open(os.path.join(folder, "events"), "a") as file:
        file.write(f"{word} {name} {os.getpid()}\\n")
def end(*_):
    note("asked")
    if not stubborn:
        note("end")
        sys.exit(code)
signal.signal(signal.SIGTERM, end)
note("start")
while True:
    signal.pause()
"""
PARENT = """
import os, sys
from distserve.engine import instance
instance.END_SECONDS = float(sys.argv[1])
instance.FIRST_PAUSE_SECONDS = 0.05
half = (len(sys.argv) - 2) // 2
sys.exit(instance.Instance(sys.argv[2:2 + half], sys.argv[2 + half:], os.environ).run())
"""
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def run(
        end_seconds: float = 20, engine_code: int = 0, migrator: str = "polite"
    ) -> "subprocess.Popen[bytes]":
        children = [
            [sys.executable, "-c", CHILD, "engine", str(tmp_path), "polite", str(engine_code)],
            [sys.executable, "-c", CHILD, "migrator", str(tmp_path), migrator, "0"],
        ]
        process = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(end_seconds), *children[0], *children[1]]
        )
        started.append(process)
        return process

    yield run
    for process in started:
        for child in psutil.Process(process.pid).children() if process.poll() is None else []:
            child.kill()
        process.kill()
        process.wait()


def events(folder: Path, word: str = "") -> list[tuple[str, str, int]]:
    path = folder / "events"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [(word, name, int(pid)) for word, name, pid in (line.split() for line in lines)]
    return [event for event in found if event[0] == word or not word]


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not reached():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.01)


def pid_of(folder: Path, name: str) -> int:
    return next(pid for _, found, pid in reversed(events(folder, "start")) if found == name)


def both_run(folder: Path) -> None:
    until(lambda: len(events(folder, "start")) == 2)


def test_sigterm_ends_the_engine_and_then_the_migrator(start: Start, tmp_path: Path) -> None:
    process = start(engine_code=3)
    both_run(tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 3, "the engine's exit code is the container's"
    ends = [(word, name) for word, name, _ in events(tmp_path) if word in ("asked", "end")]
    assert ends == [
        ("asked", "engine"), ("end", "engine"), ("asked", "migrator"), ("end", "migrator"),
    ]  # fmt: skip
    assert not [pid for _, _, pid in events(tmp_path, "start") if psutil.pid_exists(pid)]


def test_a_migrator_that_dies_is_started_again(start: Start, tmp_path: Path) -> None:
    process = start()
    both_run(tmp_path)
    engine = pid_of(tmp_path, "engine")
    for number in (3, 4):
        os.kill(pid_of(tmp_path, "migrator"), signal.SIGKILL)
        until(lambda: len(events(tmp_path, "start")) == number)  # noqa: B023
    assert process.poll() is None and pid_of(tmp_path, "engine") == engine
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 0


def test_an_engine_that_dies_ends_all(start: Start, tmp_path: Path) -> None:
    process = start()
    both_run(tmp_path)
    os.kill(pid_of(tmp_path, "engine"), signal.SIGKILL)
    assert process.wait(SECONDS) == 128 + signal.SIGKILL
    assert not psutil.pid_exists(pid_of(tmp_path, "migrator"))


def test_a_migrator_that_does_not_end_is_killed(start: Start, tmp_path: Path) -> None:
    process = start(end_seconds=0.3, migrator="stubborn")
    both_run(tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 0
    assert ("asked", "migrator") in [(w, n) for w, n, _ in events(tmp_path)]
    assert not psutil.pid_exists(pid_of(tmp_path, "migrator"))


def test_flags_are_split() -> None:
    assert split(["--", "--a", "1", "--", "--b"]) == (["--a", "1"], ["--b"])
    assert split(["--a", "--", "--b"]) == (["--a"], ["--b"])
    for wrong in ([], ["--", "--a"], ["--", "a", "--", "b", "--", "c"]):
        with pytest.raises(UsageError, match="distserve instance --"):
            split(wrong)


def test_flags_reach_the_processes() -> None:
    """A wrong one of the engine's is answered by the engine."""
    words = ["instance", "--", "--nonsense", "--", "--help"]
    done = subprocess.run(
        [sys.executable, "-m", "distserve.cli.main", *words],
        capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 2
    assert "distserve engine:" in done.stderr
