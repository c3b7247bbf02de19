"""What is simulated is what runs: the engine's own scheduler in virtual time, beside the planner.

A step of the engine takes what the time model says; nothing else takes time. So each request's
first token and end have to come at the instants that the simulator gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distserve.api.strategies import StrategySpec
from distserve.engine.batch import Sampled, Span, SpanResult
from distserve.engine.blocks import BlockManager
from distserve.engine.choices import Choices
from distserve.engine.commands import StartLeg
from distserve.engine.engine import Engine
from distserve.engine.metrics import EngineMetrics
from distserve.engine.outbox import Output
from distserve.engine.parts import Parts
from distserve.engine.scheduler import Limits, Scheduler
from distserve.engine.strategies import load_strategy
from distserve.planner.simulator import InstanceSpec, Simulation
from distserve.planner.strategies import Fleet, strategy_class
from distserve.strategies.time_model import Coefficients, TimeModel
from distserve.wire.dialect import Leg, Phases, SamplingParams, Token
from distserve.workload import Trace

TIMES = TimeModel(
    Coefficients(5.0, 0.11, 3e-4), Coefficients(3.0, 0.0021, 0.3), Coefficients(2.0, 0.003, 0.4), 3
)
SEATS, STEP_TOKENS = 4, 96


class NoText:
    """A detokenizer: text is not what is tested."""

    def stream(self, *_: Any) -> "NoText":
        return self

    def push(self, _: int) -> "NoText":
        return self

    def finish(self) -> str:
        return ""

    text = ""
    stop = None


@dataclass
class VirtualTime:
    """The model runner: a step costs what the time model says, and its clock."""

    now_ms: float = 0.0

    def run(self, spans: Sequence[Span]) -> list[SpanResult]:
        tokens = squared = batch = context = 0
        for span in spans:
            if span.draws and span.draws[0].output:
                batch += 1
                context += span.start
            else:
                tokens += len(span.tokens)
                squared += span.stop**2 - span.start**2
        self.now_ms += TIMES.mixed_ms(tokens, squared, batch, context)
        return [SpanResult([Sampled(7) for _ in span.draws]) for span in spans]

    def seconds(self) -> float:
        return self.now_ms / 1000


@dataclass
class Served:
    first_ms: dict[str, float] = field(default_factory=dict)
    last_ms: dict[str, float] = field(default_factory=dict)


def served(strategy: str, trace: Trace) -> Served:
    """The trace through the real engine."""
    time, seen = VirtualTime(), Served()
    blocks = BlockManager(4096, 16, caching=True)
    spec = StrategySpec.model_validate({"name": strategy})
    no_text: Any = NoText()
    parts = Parts(
        runner=time,
        copy_blocks=lambda _: None,
        blocks=blocks,
        scheduler=Scheduler(blocks, Limits(SEATS, STEP_TOKENS), load_strategy(spec)),
        choices=Choices(no_text, [], 100_000),
        metrics=EngineMetrics(model="m", role="hybrid", revision="r"),
        epoch=1,
        lease_seconds=30,
        clock=time.seconds,
    )

    def deliver(output: Output) -> None:
        for leg, event in output.events:
            if isinstance(event, Token):
                seen.first_ms.setdefault(leg, time.now_ms)
                seen.last_ms[leg] = time.now_ms

    engine = Engine(parts, deliver)
    arrived = 0
    while len(seen.last_ms) < len(trace) or parts.scheduler.running_count:
        while arrived < len(trace) and trace.arrival_ms[arrived] <= time.now_ms + 1e-9:
            engine.handle(StartLeg(leg_of(trace, arrived), time.seconds()))
            arrived += 1
        stepped = engine.step()
        engine.flush()
        if not stepped:
            time.now_ms = max(time.now_ms, trace.arrival_ms[arrived])
    return seen


def leg_of(trace: Trace, request: int) -> Leg:
    """Prompts that share no prefix, as the simulator has it."""
    return Leg(
        id=str(request),
        request_id=str(request),
        phases=Phases.BOTH,
        prompt=[10 + request] * trace.prompt_tokens[request],
        sampling=SamplingParams(
            seed=0, max_tokens=trace.output_tokens[request], temperature=0.0, ignore_eos=True
        ),
        timeout_ms=1e12,
    )


gaps = st.floats(0, 120).map(lambda ms: round(ms, 6))  # below that `served` sees one instant
requests = st.lists(
    st.tuples(st.integers(2, 250), st.integers(1, 12), gaps), min_size=1, max_size=14
)


@pytest.mark.parametrize("strategy", ["Colocated", "ChunkedPrefill"])
@settings(deadline=None, max_examples=60)
@given(rows=requests)
def test_each_token_comes_when_it_was_predicted(
    strategy: str, rows: list[tuple[int, int, float]]
) -> None:
    prompts, outputs, gaps = zip(*rows, strict=True)
    instants = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    trace = Trace(prompts, outputs, instants)
    spec = InstanceSpec(TIMES, max_batched_tokens=STEP_TOKENS, max_requests=SEATS)
    simulation = Simulation(trace)
    predicted = simulation.run(strategy_class(strategy)(simulation, Fleet(spec)))
    real = served(strategy, trace)
    for request in range(len(trace)):
        first, last = real.first_ms[str(request)], real.last_ms[str(request)]
        assert first == pytest.approx(predicted.first_token_ms[request], abs=1e-6)
        assert last == pytest.approx(predicted.finish_ms[request], abs=1e-6)
