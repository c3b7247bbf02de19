"""Serving on one machine: offline against transformers' `generate`, then 1P1D under open-loop load.

    .venv/bin/python benchmarks/serve_local.py [--requests 200] [--rate 6] [--seeds 1 2 3]

The model is a random Llama (hidden 256, 4 layers, 8 heads, 4 KV heads, vocabulary 8192; 7 M
parameters, float32). The deployment runs through `distserve up`; the prefill engine and its
migrator are pinned to core 0, the decode engine and its to core 1, gateway and client float.
Arrivals are Poisson and do not wait for answers. TTFT is taken at the client.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
import yaml

from distserve.models.random_weights import make_random_model

PROMPT_TOKENS = 256
OUTPUT_TOKENS = 32
VOCABULARY = 8192
READY_SECONDS = 120.0
AIMS = "aims: TTFT median < 120 ms, TPOT mean < 15 ms; engine < 700 MB, migrator, gateway < 120 MB"


@dataclass(frozen=True)
class Observation:
    """One request as its client saw it, in seconds."""

    sent: float
    tokens: list[float]
    """Time of arrival of each output token."""

    @property
    def ttft_ms(self) -> float:
        return (self.tokens[0] - self.sent) * 1e3

    @property
    def tpot_ms(self) -> float:
        return (self.tokens[-1] - self.tokens[0]) / (len(self.tokens) - 1) * 1e3

    @property
    def tpot_without_handover_ms(self) -> float:
        return (self.tokens[-1] - self.tokens[1]) / (len(self.tokens) - 2) * 1e3

    @property
    def handover_ms(self) -> float:
        return (self.tokens[1] - self.tokens[0]) * 1e3


def deployment(model: Path) -> dict[str, object]:
    role = {"instancesPerUnit": 1, "scheduling": {"maxNumSeqs": 64, "maxNumBatchedTokens": 2048}}
    return {
        "apiVersion": "distserve.io/v1alpha1",
        "kind": "DistServeDeployment",
        "metadata": {"name": "bench"},
        "spec": {
            "model": {
                "id": "bench", "source": {"hostPath": str(model)}, "dtype": "float32",
                "maxModelLen": 1024,
            },
            "accelerator": {"type": "CPU", "cpusPerRank": 1, "kvCache": "128Mi"},
            "strategy": {"name": "Disaggregated"},
            "prefill": role,
            "decode": role,
        },
    }  # fmt: skip


def our_processes(root: psutil.Process) -> dict[str, psutil.Process]:
    """Name -> process of the running deployment, by command line."""
    found = {}
    for process in root.children(recursive=True):
        words = process.cmdline()
        verb = next((w for w in words if w in {"engine", "migrator", "gateway"}), None)
        if verb == "gateway":
            found["gateway"] = process
        elif verb:
            instance = words[words.index("--instance") + 1]
            role = "prefill" if "prefill" in instance else "decode"
            found[f"{role} {verb}"] = process
    return found


async def one_request(http: aiohttp.ClientSession, url: str, prompt: list[int]) -> Observation:
    body = {
        "model": "bench", "prompt": prompt, "max_tokens": OUTPUT_TOKENS, "ignore_eos": True,
        "temperature": 0, "stream": True, "return_token_ids": True,
    }  # fmt: skip
    sent = time.perf_counter()
    times: list[float] = []
    async with http.post(f"{url}/completions", json=body) as answer:
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {await answer.text()}")
        async for line in answer.content:
            if line.startswith(b"data: {"):
                now = time.perf_counter()
                for choice in json.loads(line[6:]).get("choices", ()):
                    times += [now] * len(choice.get("token_ids") or ())
    if len(times) != OUTPUT_TOKENS:
        raise RuntimeError(f"{len(times)} of {OUTPUT_TOKENS} tokens came")
    return Observation(sent, times)


async def load(url: str, requests: int, rate: float, seed: int) -> list[Observation]:
    draw = random.Random(seed)
    prompts = [
        [draw.randrange(10, VOCABULARY) for _ in range(PROMPT_TOKENS)] for _ in range(requests)
    ]
    gaps = [draw.expovariate(rate) for _ in range(requests)]
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        for prompt in prompts[:5]:
            await one_request(http, url, prompt[::-1])
        running = []
        due = time.perf_counter()
        for prompt, gap in zip(prompts, gaps, strict=True):
            due += gap
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            running.append(asyncio.create_task(one_request(http, url, prompt)))
        return list(await asyncio.gather(*running))


def spread(values: list[float]) -> str:
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))]
    return (
        f"median {statistics.median(ordered):7.1f}  mean {statistics.fmean(ordered):7.1f}  "
        f"p99 {p99:7.1f}"
    )


def serve(requests: int, rate: float, seeds: list[int]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        make_random_model(
            model, "llama", hidden_size=256, layers=4, heads=8, kv_heads=4,
            vocab_size=VOCABULARY, max_positions=2048,
        )  # fmt: skip
        manifest = Path(scratch) / "bench.yaml"
        manifest.write_text(yaml.safe_dump(deployment(model)))
        up = subprocess.Popen(
            [sys.executable, "-m", "distserve.cli.main", "up", "-f", str(manifest),
             "--port", "18080"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert up.stdout
        try:
            line = up.stdout.readline()
            if not line.startswith("ready "):
                raise SystemExit(f"`distserve up` did not get ready: {line!r}")
            url = line.split()[1]
            processes = our_processes(psutil.Process(up.pid))
            for name, process in processes.items():
                if name != "gateway":
                    core = 0 if name.startswith("prefill") else 1
                    for thread in process.threads():
                        psutil.Process(thread.id).cpu_affinity([core])
            for seed in seeds:
                busy = psutil.cpu_times()
                mine = sum(sum(p.cpu_times()[:2]) for p in processes.values())
                began = time.perf_counter()
                seen = asyncio.run(load(url, requests, rate, seed))
                wall = time.perf_counter() - began
                mine = sum(sum(p.cpu_times()[:2]) for p in processes.values()) - mine
                after = psutil.cpu_times()
                total = (after.user - busy.user) + (after.system - busy.system)
                print(
                    f"1P1D, {requests} requests, {rate:g} req/s, {PROMPT_TOKENS} in / "
                    f"{OUTPUT_TOKENS} out, seed {seed}: {requests / wall:.2f} req/s done, "
                    f"CPU {mine / wall:.2f} cores ours, "
                    f"{(total - mine) / wall:.2f} cores client and others"
                )
                print(f"  TTFT ms                   {spread([o.ttft_ms for o in seen])}")
                print(f"  TPOT ms                   {spread([o.tpot_ms for o in seen])}")
                apart = [o.tpot_without_handover_ms for o in seen]
                print(f"  TPOT ms without hand-over {spread(apart)}")
                print(f"  hand-over gap ms          {spread([o.handover_ms for o in seen])}")
            for name, process in sorted(processes.items()):
                memory = process.memory_full_info()
                print(
                    f"  memory {name:17s} resident {memory.rss / 2**20:6.0f} MB, "
                    f"its own {memory.uss / 2**20:6.0f} MB"
                )
            print(AIMS)
        finally:
            up.terminate()
            up.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rate", type=float, default=6.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--skip-offline", action="store_true")
    args = parser.parse_args()
    if not args.skip_offline:
        subprocess.run([sys.executable, str(Path(__file__).with_name("offline.py"))], check=True)
    serve(args.requests, args.rate, args.seeds)


if __name__ == "__main__":
    main()
