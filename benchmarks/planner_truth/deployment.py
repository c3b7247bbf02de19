"""The deployment that is measured: its manifest, its start, and which core each process has.

The engine that prefills has core 0 to itself; all else (decode engine, gateway, migrators and the
client) shares core 1, so that what the others take is a cost of the decode steps and can be
measured.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

from distserve.models.builtin import builtin_path
from distserve.models.random_weights import make_random_model

MODELS = ("small", "tiny")
STRATEGIES = ("Disaggregated", "Colocated")
MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS, KV_CACHE_MIB = 32, 1024, 128
MAX_WAITING_REQUESTS = 4096
"""All that come while the deployment is given more than it can serve."""
ENGINES_CORE, OTHERS_CORE = 0, 1
PORT = 18080
COMMAND = [sys.executable, "-m", "distserve.cli.main"]


class Failed(Exception):
    """Of a deployment, or of requests to it: nothing can be compared."""


def model_folder(model: str, scratch: Path) -> Path:
    """`tiny` is the model that ships; `small` a random Llama of 27 M parameters, float32."""
    if model == "tiny":
        return builtin_path("tiny")
    folder = scratch / model
    if not folder.exists():
        make_random_model(
            folder, "llama", hidden_size=512, layers=8, heads=8, kv_heads=4, vocab_size=4096,
            max_positions=2048,
        )  # fmt: skip
    return folder


def manifest(model: str, folder: Path, strategy: str) -> dict[str, Any]:
    role = {
        "instancesPerUnit": 1,
        "scheduling": {
            "maxNumSeqs": MAX_NUM_SEQS, "maxNumBatchedTokens": MAX_NUM_BATCHED_TOKENS,
        },
    }  # fmt: skip
    source = {"builtin": "tiny"} if model == "tiny" else {"hostPath": str(folder)}
    roles = ("prefill", "decode") if strategy == "Disaggregated" else ("hybrid",)
    return {
        "apiVersion": "distserve.io/v1alpha1",
        "kind": "DistServeDeployment",
        "metadata": {"name": "truth"},
        "spec": {
            "model": {"id": model, "source": source},
            "accelerator": {"type": "CPU", "cpusPerRank": 1, "kvCache": f"{KV_CACHE_MIB}Mi"},
            "strategy": {"name": strategy},
            "gateway": {"maxWaitingRequests": MAX_WAITING_REQUESTS},
            **{name: role for name in roles},
        },
    }


@contextlib.contextmanager
def running(document: dict[str, Any], scratch: Path) -> Iterator[str]:
    """The gateway's URL."""
    path = scratch / "truth.yaml"
    path.write_text(yaml.safe_dump(document))
    up = subprocess.Popen(
        ["taskset", "-c", "0,1", *COMMAND, "up", "-f", str(path), "--port", str(PORT)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert up.stdout
    try:
        line = up.stdout.readline()
        if not line.startswith("ready "):
            raise Failed(f"`distserve up` did not get ready: {line!r}")
        for process in psutil.Process(up.pid).children(recursive=True):
            pin(process.pid, ENGINES_CORE if _prefills(process) else OTHERS_CORE)
        yield line.split()[1]
    finally:
        up.terminate()
        up.wait(60)


def _prefills(process: psutil.Process) -> bool:
    words = process.cmdline()
    return "engine" in words and "--role" in words and "decode" not in words


def pin(pid: int, core: int) -> None:
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, {core})


def call(*words: object, core: int = OTHERS_CORE) -> None:
    """A `distserve` command, and how long it took."""
    began = time.perf_counter()
    subprocess.run(["taskset", "-c", str(core), *COMMAND, *map(str, words)], check=True)
    print(f"  ({' '.join(map(str, words[:2]))}: {time.perf_counter() - began:.0f} s)", flush=True)


class Busy:
    """Cores in use by processes that are not ours, over an interval."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._all, self._ours = self._used()

    def others(self) -> float:
        whole, ours = self._used()
        return ((whole - self._all) - (ours - self._ours)) / (time.perf_counter() - self._began)

    @staticmethod
    def _used() -> tuple[float, float]:
        times, me = psutil.cpu_times(), psutil.Process()
        ours = 0.0
        for process in (me, *me.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                ours += sum(process.cpu_times()[:2])
        return times.user + times.system + times.nice, ours
