"""An engine whose model is arithmetic: the scheduler is what is tested, the runner is not.

The fake runner keeps a "KV pool" of the tokens themselves and reads the whole context back from it
before it answers, so a wrong block table, position, copy or transfer shows as a wrong token.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from distserve.api.strategies import StrategySpec
from distserve.engine.batch import Sampled, Span, SpanResult
from distserve.engine.blocks import BlockManager, Copy
from distserve.engine.choices import Choices
from distserve.engine.commands import FromMigrator, MigratorUp, StartLeg
from distserve.engine.engine import Engine
from distserve.engine.metrics import EngineMetrics
from distserve.engine.outbox import Output
from distserve.engine.parts import Parts
from distserve.engine.scheduler import Limits, Scheduler
from distserve.engine.strategies import load_strategy
from distserve.wire import messages as wire
from distserve.wire.dialect import (
    End,
    Finish,
    InstanceState,
    Leg,
    LegEvent,
    Phases,
    SamplingParams,
    Source,
    Token,
)
from distserve.wire.messages import TokenLogprobs

BLOCK_TOKENS = 4
END_TOKEN = 0
VOCABULARY = 97


def next_token(history: Sequence[int], choice: int = 0, ends: bool = False) -> int:
    """What the fake model says after `history`: never the end token, unless it may end."""
    value = sum((i + 1) * t for i, t in enumerate(history)) + 31 * choice + len(history)
    return value % VOCABULARY if ends else 1 + value % (VOCABULARY - 1)


def continuation(
    prompt: Sequence[int], tokens: int, choice: int = 0, prior: Sequence[int] = ()
) -> list[int]:
    history = [*prompt, *prior]
    for _ in range(tokens):
        history.append(next_token(history, choice))
    return history[len(prompt) :]


class FakeRunner:
    def __init__(self, blocks: int) -> None:
        self.pool: list[list[int | None]] = [[None] * BLOCK_TOKENS for _ in range(blocks)]
        self.steps: list[list[Span]] = []
        self.fails = False

    def run(self, spans: Sequence[Span]) -> list[SpanResult]:
        if self.fails:
            raise RuntimeError("the fake model broke")
        self.steps.append([replace(s, block_table=list(s.block_table)) for s in spans])
        written: set[tuple[int, int]] = set()
        for span in spans:
            assert span.tokens, "an empty span"
            for place, token in enumerate(span.tokens, span.start):
                slot = span.block_table[place // BLOCK_TOKENS], place % BLOCK_TOKENS
                assert slot not in written, "two sequences write one slot"
                written.add(slot)
                self.pool[slot[0]][slot[1]] = token
        return [self._result(span) for span in spans]

    def _result(self, span: Span) -> SpanResult:
        context = [
            self.pool[span.block_table[i // BLOCK_TOKENS]][i % BLOCK_TOKENS]
            for i in range(span.stop)
        ]
        for draw in span.draws:
            assert context == [*draw.prompt, *draw.output], "the KV is not the sequence's"
        scored = [*span.tokens[1:], *([] if span.next_token is None else [span.next_token])]
        return SpanResult(
            [
                Sampled(
                    next_token([*d.prompt, *d.output], d.choice),
                    None if d.params.logprobs is None else TokenLogprobs(-0.5),
                )
                for d in span.draws
            ],
            [TokenLogprobs(-float(t)) for t in scored] if span.score_prompt is not None else [],
        )

    def copy(self, copies: Sequence[Copy]) -> None:
        for copy in copies:
            self.pool[copy.target] = list(self.pool[copy.source])


class FakeDetokenizer:
    """Text of a token is its number."""

    def stream(self, params: SamplingParams, prompt: Sequence[int] = ()) -> Any:
        return FakeText()


class FakeText:
    def push(self, token: int) -> Any:
        return FakeShown(f" {token}")

    def finish(self) -> str:
        return ""


@dataclass(frozen=True)
class FakeShown:
    text: str
    stop: str | None = None


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        self.now += 1e-4
        return self.now


@dataclass
class Bench:
    """One engine and all it said."""

    parts: Parts
    engine: Engine
    runner: FakeRunner
    blocks: BlockManager
    scheduler: Scheduler
    metrics: EngineMetrics
    clock: Clock
    events: dict[str, list[LegEvent]] = field(default_factory=dict)
    sent: list[wire.EngineMessage] = field(default_factory=list)
    states: list[InstanceState] = field(default_factory=list)
    stored: set[bytes] = field(default_factory=set)

    def deliver(self, output: Output) -> None:
        for leg, event in output.events:
            self.events.setdefault(leg, []).append(event)
        self.sent += output.messages
        if output.state:
            self.states.append(output.state)
        if output.cache:
            assert not self.stored & set(output.cache.stored)
            assert set(output.cache.removed) <= self.stored
            self.stored |= set(output.cache.stored)
            self.stored -= set(output.cache.removed)

    def start(self, leg: Leg) -> Leg:
        self.engine.handle(StartLeg(leg, self.clock()))
        return leg

    def run(self, steps: int = 10_000) -> int:
        """Until nothing can run; the number of steps."""
        for done in range(steps):
            self.engine.tick()
            ran = self.engine.step()
            self.engine.flush(may_step=ran)
            self.engine.check_integrity()
            if not ran:
                return done
        return steps

    def tokens(self, leg: str, choice: int = 0) -> list[int]:
        found = [e for e in self.events.get(leg, []) if isinstance(e, Token) and e.choice == choice]
        assert [t.index for t in found] == list(
            range(found[0].index if found else 0, (found[0].index if found else 0) + len(found))
        )
        return [t.id for t in found]

    def ends(self, leg: str) -> list[LegEvent]:
        """Everything that closes the leg's stream, and what came after it: one element."""
        closing = [i for i, e in enumerate(self.events.get(leg, [])) if _closes(e)]
        return self.events[leg][closing[0] :] if closing else []

    def state(self) -> InstanceState:
        """As it is now: lines are made at most every 50 ms."""
        self.clock.now += 1
        self.engine.flush()
        return self.states[-1]

    def is_quiet(self) -> bool:
        self.engine.check_integrity()
        return self.blocks.available == self.blocks.total

    def hear(self, message: wire.MigratorMessage) -> None:
        self.engine.handle(FromMigrator(message))
        self.engine.flush()


def _closes(event: LegEvent) -> bool:
    return isinstance(event, End) or type(event).__name__ in ("LegError", "Declined")


@dataclass
class FakeMigrator:
    """Both engines' migrators in one object: moves tokens between the fake pools."""

    prefill: Bench
    decode: Bench
    offers: dict[str, wire.Offer] = field(default_factory=dict)
    commits: dict[str, wire.CommitRecord] = field(default_factory=dict)
    fetches: dict[str, wire.Fetch] = field(default_factory=dict)
    expects: set[str] = field(default_factory=set)
    ready: dict[str, int] = field(default_factory=dict)

    def work(self) -> None:
        """Answer all that was sent since."""
        for message in _take(self.prefill):
            match message:
                case wire.Offer():
                    self.offers[message.transfer] = message
                    self.prefill.hear(wire.Offered(message.transfer))
                case wire.ChunkReady(transfer, tokens):
                    assert tokens.start == self.ready.get(transfer, 0)
                    self.ready[transfer] = tokens.stop
                case wire.Commit(transfer, record):
                    self.commits[transfer] = record
                case wire.Abort(transfer):
                    if self.offers.pop(transfer, None):
                        self.prefill.hear(wire.Released(transfer=transfer, fetched=False))
        for message in _take(self.decode):
            match message:
                case wire.Expect():
                    self.expects.add(message.transfer)
                case wire.Fetch():
                    self.fetches[message.transfer] = message
                case wire.Abort(transfer):
                    if transfer in self.expects:
                        self.expects.remove(transfer)
                        self.fetches.pop(transfer, None)
                        self.decode.hear(
                            wire.Failed(transfer=transfer, reason="aborted", retryable=True)
                        )
        for transfer in [t for t in self.fetches if t in self.commits and t in self.offers]:
            self._move(transfer)

    def forget(self, bench: Bench) -> None:
        """The bench's migrator died: the other side's transfers fail."""
        bench.sent.clear()
        if bench is self.prefill:
            self.offers.clear()
            self.ready.clear()
            self.commits.clear()
            return
        self.expects.clear()
        self.fetches.clear()

    def expire(self) -> None:
        """The leases of all that is offered run out."""
        for transfer in list(self.offers):
            del self.offers[transfer]
            self.prefill.hear(wire.Released(transfer=transfer, fetched=False))

    def _move(self, transfer: str) -> None:
        fetch, offer = self.fetches.pop(transfer), self.offers.pop(transfer)
        (source,) = offer.spans
        assert self.ready[transfer] == source.tokens.stop
        for span in fetch.spans:
            assert span.tokens.stop == source.tokens.stop
            for index, block in enumerate(span.blocks, span.tokens.start // BLOCK_TOKENS):
                self.decode.runner.pool[block] = list(
                    self.prefill.runner.pool[source.blocks[index]]
                )
        self.expects.remove(transfer)
        moved = sum(span.tokens.tokens for span in fetch.spans)
        timings = wire.Timings("Fake", moved, 0.0, 0.0)
        self.decode.hear(
            wire.Fetched(transfer=transfer, record=self.commits.pop(transfer), timings=timings)
        )
        self.prefill.hear(wire.Released(transfer=transfer, fetched=True))


def _take(bench: Bench) -> list[wire.EngineMessage]:
    sent, bench.sent = bench.sent, []
    return sent


@pytest.fixture
def make_bench() -> Iterator[Callable[..., Bench]]:
    """Makes engines; after the test the blocks of each are whole."""
    made: list[Bench] = []

    def make(
        *,
        strategy: str = "Colocated",
        options: dict[str, Any] | None = None,
        blocks: int = 64,
        seqs: int = 16,
        tokens: int = 64,
        caching: bool = True,
        migrator: bool = False,
    ) -> Bench:
        manager = BlockManager(blocks, BLOCK_TOKENS, caching=caching)
        spec = StrategySpec.model_validate({"name": strategy, "options": options or {}})
        scheduler = Scheduler(manager, Limits(seqs, tokens), load_strategy(spec))
        runner, clock, metrics = FakeRunner(blocks), Clock(), EngineMetrics()
        detokenizer: Any = FakeDetokenizer()
        parts = Parts(
            runner=runner,
            copy_blocks=runner.copy,
            blocks=manager,
            scheduler=scheduler,
            choices=Choices(detokenizer, [END_TOKEN], (blocks - 1) * BLOCK_TOKENS),
            metrics=metrics,
            epoch=1,
            lease_seconds=30.0,
            clock=clock,
        )
        bench = Bench(parts, None, runner, manager, scheduler, metrics, clock)  # type: ignore[arg-type]
        bench.engine = Engine(parts, bench.deliver)
        if migrator:
            bench.engine.handle(MigratorUp(f"127.0.0.1:{len(made)}"))
        made.append(bench)
        return bench

    yield make
    for bench in made:
        bench.engine.check_integrity()


@pytest.fixture
def make_leg() -> Callable[..., Leg]:
    count = 0

    def make(prompt: Sequence[int], tokens: int = 5, **fields: Any) -> Leg:
        nonlocal count
        count += 1
        sampling = {"seed": 1, "max_tokens": tokens} | fields.pop("sampling", {})
        fields.setdefault("id", f"leg-{count}")
        fields.setdefault("phases", Phases.BOTH)
        fields.setdefault("timeout_ms", 60_000.0)
        return Leg(
            request_id="r", prompt=list(prompt), sampling=SamplingParams(**sampling), **fields
        )

    return make


@pytest.fixture
def pair(make_bench: Callable[..., Bench]) -> Callable[..., FakeMigrator]:
    """A prefill and a decode engine with a migrator between them."""

    def make(
        prefill: dict[str, Any] | None = None, decode: dict[str, Any] | None = None
    ) -> FakeMigrator:
        common = {"strategy": "Disaggregated", "migrator": True}
        return FakeMigrator(
            make_bench(**common, **(prefill or {})), make_bench(**common, **(decode or {}))
        )

    return make


@dataclass
class Reference:
    """What the tests of this folder compare with."""

    continuation: Callable[..., list[int]] = field(default=continuation)
    block_tokens: int = BLOCK_TOKENS
    source: Callable[[str], Source] = field(default=lambda transfer: Source(transfer, "h:1"))
    finishes: Callable[[Bench, str], list[Finish]] = field(
        default=lambda bench, leg: [e for e in bench.events[leg] if isinstance(e, Finish)]
    )


@pytest.fixture
def rng() -> random.Random:
    return random.Random(17)


@pytest.fixture
def reference() -> Reference:
    return Reference()
