"""The simulation that plans rest on: instances, queues, batches, memory and migration.

`Simulation` owns the clock and what happened to each request, an `Instance` its pipeline, memory
and batches, and a strategy (`distserve.planner.strategies`) decides what runs next and where.
What differs from `compat`, and why, is listed in docs/planner.md.
"""

from distserve.planner.simulator.instance import Instance
from distserve.planner.simulator.kv_blocks import KvBlocks, blocks_for
from distserve.planner.simulator.simulation import Lifecycle, Simulation, StepRecord
from distserve.planner.simulator.steps import Chunk, InstanceSpec, Step

__all__ = [
    "Chunk",
    "Instance",
    "InstanceSpec",
    "KvBlocks",
    "Lifecycle",
    "Simulation",
    "Step",
    "StepRecord",
    "blocks_for",
]
