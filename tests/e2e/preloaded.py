"""What engines, gateways and migrators import as they start; `forked` has it imported once."""

import importlib
import os

# Read by what is imported.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

for name in (
    "distserve.cli.engine",
    "distserve.cli.gateway",
    "distserve.cli.migrator",
    "distserve.engine.process",
    "distserve.gateway.server",
    "distserve.migrator.process",
    "pytest",  # whose script each of them takes for its main module
):
    importlib.import_module(name)
with importlib.import_module("distserve.engine.bodies")._without_triton():
    for family in ("llama", "opt", "qwen2"):
        importlib.import_module(f"transformers.models.{family}.configuration_{family}")
        importlib.import_module(f"transformers.models.{family}.modeling_{family}")
