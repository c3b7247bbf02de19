"""The engine under measurement: loaded as a process loads it, stepped here, serving nobody.

What is timed is `Engine.step` and `flush`: scheduling, the forward pass, sampling, detokenising and
the events of every token. The server around it is not in here; `serving.py` measures that.
"""

from __future__ import annotations

import gc
import importlib.metadata
import platform
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from distserve.api.strategies import Role, StrategySpec
from distserve.engine.assemble import Instance, assemble
from distserve.engine.commands import StartLeg
from distserve.engine.engine import Engine
from distserve.engine.outbox import Output
from distserve.engine.settings import Settings
from distserve.profile.database import Sampled, Subject
from distserve.profile.errors import ProfileError
from distserve.profile.grid import Bounds, Point
from distserve.wire.dialect import Leg, LegError, Phases, SamplingParams

_FIRST_TOKEN_ID = 10  # below are the special tokens of most vocabularies
_HOUR_MS = 3.6e6


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How to load and how to measure."""

    model: Path
    served_name: str
    dtype: str = "auto"
    cpus_per_rank: int = 1
    kv_cache_bytes: int = 256 << 20
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    output_tokens: int = 16
    warm_ups: int = 1
    repeats: int = 3


class Measurement:
    """One loaded engine, and what is known of it."""

    def __init__(
        self, instance: Instance, asked: Asked, dtype: str, clock: Callable[[], float]
    ) -> None:
        self._asked = asked
        self._clock = clock
        self._engine = Engine(instance.parts, self._deliver)
        self._parts = instance.parts
        self._vocabulary = instance.info.vocab_size
        self._legs = 0
        self._warm: set[Point] = set()
        self._errors: list[LegError] = []
        info = instance.info
        self.bounds = Bounds(
            info.max_num_seqs, info.max_num_batched_tokens, info.max_model_len, info.total_blocks,
            info.block_tokens,
        )  # fmt: skip
        self.subject = Subject(
            info.model, dtype, device_name(asked.cpus_per_rank), engine_version()
        )

    def measure(self, point: Point, nth: int = 0) -> Sampled:
        """In this round. Raises ProfileError where the engine fails the batch."""
        if point not in self._warm:
            for _ in range(self._asked.warm_ups):
                self._batch(point)
            self._warm.add(point)
        prefill_ms, decodes_ms = self._batch(point)
        return Sampled(
            batch_size=point.batch_size,
            input_len=point.input_tokens,
            output_len=self._asked.output_tokens,
            round=nth,
            prefill=prefill_ms if self.bounds.prefills_at_once(point) else None,
            decode=median(decodes_ms),
            context_len=point.input_tokens + self._asked.output_tokens / 2,
        )

    def _batch(self, point: Point) -> tuple[float, list[float]]:
        """Time of the prefill, and of each decode step with the whole batch in it."""
        for _ in range(point.batch_size):
            self._start(point.input_tokens)
        steps = list(self._steps())
        if self._errors:
            raise ProfileError(f"the engine fails {point}: {self._errors[0].message}")
        decodes = self._asked.output_tokens - 1
        return sum(steps[:-decodes]), steps[-decodes:]

    def _steps(self) -> Iterator[float]:
        while True:
            begun = self._clock()
            stepped = self._engine.step()
            self._engine.flush()
            if not stepped:
                return
            yield (self._clock() - begun) * 1000

    def _start(self, prompt_tokens: int) -> None:
        """Another prompt each time: a prefix that is in the cache would cost nothing."""
        self._legs += 1
        draw = random.Random(self._legs)
        low = min(_FIRST_TOKEN_ID, self._vocabulary - 1)
        leg = Leg(
            id=str(self._legs),
            request_id=str(self._legs),
            phases=Phases.BOTH,
            prompt=[draw.randrange(low, self._vocabulary) for _ in range(prompt_tokens)],
            sampling=SamplingParams(
                seed=self._legs,
                max_tokens=self._asked.output_tokens,
                temperature=0.0,
                ignore_eos=True,
            ),
            timeout_ms=_HOUR_MS,
        )
        self._engine.handle(StartLeg(leg, self._parts.clock()))

    def _deliver(self, output: Output) -> None:
        self._errors += [event for _, event in output.events if isinstance(event, LegError)]


@contextmanager
def loaded(asked: Asked, clock: Callable[[], float] = time.perf_counter) -> Iterator[Measurement]:
    """Raises EngineError where the model cannot be loaded."""
    torch.set_num_threads(asked.cpus_per_rank)
    instance = assemble(_settings(asked))
    gc.collect()
    gc.freeze()  # as the engine's process does
    try:
        dtype = str(instance.pool.layout.dtype)
        yield Measurement(instance, asked, dtype, clock)
    finally:
        instance.pool.close()


def engine_version() -> str:
    return f"distserve {importlib.metadata.version('distserve')}, torch {torch.__version__}"


def device_name(threads: int, cpuinfo: str | None = None) -> str:
    """The processor as it calls itself, and how much of it a rank gets. Of ARM's, which have no
    names, the numbers of who designed it and of the design. `cpuinfo`: /proc/cpuinfo."""
    lines = (cpuinfo or Path("/proc/cpuinfo").read_text()).splitlines()
    told: dict[str, str] = {}
    for key, _, value in (line.partition(":") for line in lines):
        told.setdefault(key.strip(), value.strip())
    numbers = (told.get("CPU implementer"), told.get("CPU part"))
    name = told.get("model name") or " ".join(filter(None, (platform.machine(), *numbers)))
    return f"{name} x {threads} thread{'s' if threads > 1 else ''}"


def _settings(asked: Asked) -> Settings:
    return Settings(
        model=asked.model,
        served_name=asked.served_name,
        role=Role.HYBRID,
        strategy=StrategySpec.model_validate({"name": "Colocated"}),
        instance="profile",
        revision="",
        host="127.0.0.1",  # nothing listens
        port=0,
        migrator_socket=None,
        key=b"",
        dtype=asked.dtype,
        kv_cache_bytes=asked.kv_cache_bytes,
        max_num_seqs=asked.max_num_seqs,
        max_num_batched_tokens=asked.max_num_batched_tokens,
    )
