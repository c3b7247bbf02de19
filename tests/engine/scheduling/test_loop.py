"""The engine's thread and its watch: what is a long step, and what is one that will not end."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from distserve.engine.batch import Span, SpanResult
from distserve.engine.commands import Shutdown, StartLeg
from distserve.engine.engine import Engine
from distserve.engine.loop import EngineLoop
from distserve.wire.dialect import Leg, LegError

BOUND_SECONDS = 20


class SlowRunner:
    """A step ends when the test says so."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._begun = threading.Semaphore(0)
        self._ends = threading.Semaphore(0)

    def run(self, spans: Sequence[Span]) -> list[SpanResult]:
        self._begun.release()
        assert self._ends.acquire(timeout=BOUND_SECONDS)
        result: list[SpanResult] = self._runner.run(spans)
        return result

    def begun(self) -> None:
        assert self._begun.acquire(timeout=BOUND_SECONDS), "no step began"

    def end(self) -> None:
        self._ends.release()


class Watched:
    """An engine in its thread, in a time that the test moves."""

    def __init__(self, bench: Any, make_leg: Any, warm_up_token_ms: float) -> None:
        self.clock, self.runner = bench.clock, SlowRunner(bench.runner)
        self.states = bench.states
        self._make_leg = make_leg
        parts = replace(bench.parts, runner=self.runner, warm_up_token_ms=warm_up_token_ms)
        self.fatal: list[BaseException] = []
        self.loop = EngineLoop(Engine(parts, bench.deliver), self.fatal.append, self.clock)
        self.loop.start()

    def prompt(self, first: int, tokens: int) -> None:
        """Begin the one step of a prompt."""
        self.tell(first, tokens)
        self.runner.begun()

    def tell(self, first: int, tokens: int) -> Leg:
        leg: Leg = self._make_leg(range(first, first + tokens), 1, timeout_ms=1e8)
        self.loop.tell(StartLeg(leg, self.clock()))
        return leg

    def well_after(self, seconds: float) -> bool:
        self.clock.now += seconds
        return self.loop.is_well()


@pytest.fixture
def watched(make_bench: Any, make_leg: Any) -> Iterator[Callable[..., Watched]]:
    made: list[Watched] = []

    def make(warm_up_token_ms: float = 0.0) -> Watched:
        made.append(Watched(make_bench(caching=False), make_leg, warm_up_token_ms))
        return made[-1]

    yield make
    for each in made:
        assert each.loop.stop(BOUND_SECONDS)
        assert not each.fatal


def test_a_step_is_stuck_when_it_takes_far_longer_than_predicted(watched: Any) -> None:
    engine = watched()
    engine.prompt(1, tokens=8)
    assert engine.well_after(119)
    assert not engine.well_after(2), "nothing is known yet"
    engine.runner.end()  # 8 tokens took 121 s
    engine.prompt(20, tokens=16)
    assert engine.well_after(242)
    assert engine.well_after(3 * 242 - 10)
    assert not engine.well_after(20)
    engine.runner.end()


def test_a_quick_machine_has_two_minutes(watched: Any) -> None:
    engine = watched()
    for first in (1, 20):
        engine.prompt(first, tokens=8)
        assert engine.well_after(0.1)
        if first == 20:
            assert engine.well_after(118)
            assert not engine.well_after(3)
        engine.runner.end()


def test_before_the_first_prompt_the_warm_up_predicts(watched: Any) -> None:
    """Or a long prompt that ended an engine would end it again, each time that it is new."""
    engine = watched(warm_up_token_ms=10_000)
    engine.prompt(1, tokens=8)
    assert engine.well_after(4 * 80 - 10)
    assert not engine.well_after(20)
    engine.runner.end()


def test_a_long_step_is_said_once_with_the_cure(
    watched: Any, caplog: pytest.LogCaptureFixture
) -> None:
    engine = watched()
    for first in (1, 20, 40):
        engine.prompt(first, tokens=8)
        engine.clock.now += 40
        engine.runner.end()
    assert engine.loop.stop(BOUND_SECONDS)
    (said,) = [r.getMessage() for r in caplog.records if "maxNumBatchedTokens" in r.getMessage()]
    assert said.startswith("a step of 8 tokens takes 40 s")


def test_a_leg_that_came_during_a_step_is_in_the_state_before_the_next(watched: Any) -> None:
    """Or other gateways would not know of it until that one has ended as well."""
    engine = watched()
    engine.prompt(1, tokens=8)
    late = engine.tell(20, tokens=16)
    engine.clock.now += 0.2
    engine.runner.end()
    engine.runner.begun()
    state = engine.states[-1]
    assert [request.leg for request in state.requests] == [late.id]
    assert state.step_rest_ms == pytest.approx(400, rel=0.01), "8 tokens took 200 ms"
    engine.runner.end()


class ForgetfulRunner:
    """Breaks the engine behind its step, where no single leg can be blamed."""

    def run(self, spans: Sequence[Span]) -> list[SpanResult]:
        return []


def test_what_a_broken_engine_took_has_failed_and_what_it_did_not_is_refused(
    make_bench: Any, make_leg: Any
) -> None:
    """A refused leg may be sent to many instances, one that broke each of them to few."""
    bench, fatal = make_bench(caching=False), threading.Event()
    engine = Engine(replace(bench.parts, runner=ForgetfulRunner()), bench.deliver)
    loop = EngineLoop(engine, lambda error: fatal.set(), bench.clock)
    taken, late = (make_leg(range(first, first + 8), 1, timeout_ms=1e8) for first in (1, 20))
    loop.tell(StartLeg(taken, bench.clock()))
    loop.start()
    assert fatal.wait(BOUND_SECONDS), "the engine did not break"
    engine.handle(StartLeg(late, bench.clock()))
    engine.flush()
    assert [_how(event) for event in bench.ends(taken.id)] == [(500, True)]
    assert [_how(event) for event in bench.ends(late.id)] == [(503, True)]


def test_a_shutdown_refuses_all(make_bench: Any, make_leg: Any) -> None:
    """Nothing is wrong with the legs."""
    bench = make_bench(caching=False)
    taken, late = (make_leg(range(first, first + 8), 1) for first in (1, 20))
    bench.start(taken)
    bench.engine.handle(Shutdown())
    bench.start(late)
    bench.engine.flush()
    for leg in (taken, late):
        assert [_how(event) for event in bench.ends(leg.id)] == [(503, True)]


def _how(event: Any) -> tuple[int, bool]:
    assert isinstance(event, LegError)
    return event.status, event.retryable
