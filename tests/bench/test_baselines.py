"""The baselines differ in their strategy and in nothing else; vLLM's script says how to get it."""

import subprocess
import sys
from pathlib import Path

from distserve.api.loading import load_deployment
from distserve.resources.render import render
from distserve.resources.settings import RenderSettings, released_images

CHECKOUT = Path(__file__).resolve().parents[2]
BASELINES = CHECKOUT / "benchmarks" / "baselines"
DOCS = (CHECKOUT / "docs" / "bench.md").read_text()


def test_equal_resources() -> None:
    files = sorted(BASELINES.glob("*.yaml"))
    strategies = set()
    for path in files:
        assert f"benchmarks/baselines/{path.name}" in DOCS
        deployment = load_deployment(path)
        engines = [
            o for o in render(deployment, RenderSettings(released_images()))
            if o["kind"] == "StatefulSet"
        ]  # fmt: skip
        assert len(engines) == (1 if path.stem == "replica" else 2), path
        assert deployment.spec.model == load_deployment(files[0]).spec.model
        assert deployment.spec.accelerator == load_deployment(files[0]).spec.accelerator
        strategies.add(deployment.spec.strategy.name)
    assert strategies == {"Disaggregated", "Colocated", "ChunkedPrefill"}


def test_without_vllm_it_says_how_to_get_it() -> None:
    script = [sys.executable, str(CHECKOUT / "benchmarks" / "peer_vllm.py")]
    said = subprocess.run(
        [*script, "--python", sys.executable], capture_output=True, text=True, timeout=60
    )
    assert said.returncode == 2
    assert "vllm-overrides.txt" in said.stderr and "Traceback" not in said.stderr
