"""Decides what each step computes: lines of waiting work, admission by blocks, preemption.

Called by the engine's `step()` only. What joins a step, and how much of it, is the
strategy's to say (`distserve.engine.strategies`); here is what that means for blocks and sequences.
Nothing is sent or computed here.

    waiting --admit--> prefilling --first token--> running --last token--> gone
       ^                                             |
       `---------------- preempt (newest first) -----'
    expected --pull--> pulled --KV is here--> fetched --seat is free--> running
"""

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from distserve.engine.blocks import BlockManager, Copy, Owner
from distserve.engine.sequence import Phase, Request, Sequence
from distserve.strategies.budget import Grant, Prompt, Room
from distserve.strategies.disaggregated import Pull, may_pull
from distserve.wire.dialect import Phases


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one step of this instance."""

    max_num_seqs: int
    max_num_batched_tokens: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One sequence's part of a step."""

    sequence: Sequence
    tokens: int

    @property
    def draws(self) -> bool:
        """Whether nothing remains after it, so that a token is drawn."""
        return self.tokens == self.sequence.remaining


@dataclass(slots=True)
class Step:
    """What the next step computes, and what has to happen before it."""

    prefills: list[Entry] = field(default_factory=list)
    decodes: list[Entry] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    """Began in this step: their blocks exist now."""
    pulls: list[Request] = field(default_factory=list)
    """Decode legs whose blocks exist now: their KV can be fetched."""
    preempted: int = 0

    @property
    def entries(self) -> list[Entry]:
        return self.prefills + self.decodes

    @property
    def prefill_tokens(self) -> int:
        return sum(entry.tokens for entry in self.prefills)

    @property
    def tokens(self) -> int:
        return self.prefill_tokens + len(self.decodes)


def fetch_owner(transfer: str) -> Owner:
    """Holds the blocks that a migrator writes into, whatever becomes of the request."""
    return f"fetch:{transfer}"


def offer_owner(transfer: str) -> Owner:
    """Holds the blocks that a peer may read, whatever becomes of the request."""
    return f"offer:{transfer}"


class Scheduler:
    def __init__(
        self, blocks: BlockManager, limits: Limits, compose: "Callable[[Scheduler, Step], None]"
    ) -> None:
        self.blocks = blocks
        self.limits = limits
        self._compose = compose
        self.waiting: deque[Sequence] = deque()
        self.prefilling: list[Sequence] = []
        self.running: list[Sequence] = []
        self.expected: deque[Request] = deque()
        self.pulled: list[Request] = []
        self.fetched: deque[Sequence] = deque()

    @property
    def waiting_count(self) -> int:
        return len(self.waiting) + len(self.expected) + len(self.pulled) + len(self.fetched)

    @property
    def running_count(self) -> int:
        return len(self.prefilling) + len(self.running)

    def add(self, request: Request) -> None:
        """A new request, with the sequence that stands for its choices."""
        if request.leg.phases is Phases.DECODE:
            request.phase = Phase.EXPECTED
            self.expected.append(request)
        else:
            self.waiting.append(request.sequences[0])

    def schedule(self) -> Step:
        """The next step; no entries when nothing can run. Blocks for all of it are held."""
        step = Step()
        self._seat()
        self._pull(step)
        self._compose(self, step)
        return step

    # ---- what a strategy composes a step of ------------------------------------------------------

    def prefill(self, step: Step, grant: Grant, max_tokens: int) -> None:
        """Fill the step up to `max_tokens` with prompts in order of arrival, begun ones first,
        until the strategy grants nothing to the head of the line."""
        for sequence in self.prefilling:
            prompt = Prompt(sequence.remaining, sequences=0, blocks=0)
            granted = grant(prompt, self._room(step, max_tokens))
            if granted < 1:
                return
            step.prefills.append(Entry(sequence, granted))
        while self.waiting and not self._is_overtaking(self.waiting[0]):
            sequence = self.waiting[0]
            hits = self._hits(sequence)
            tokens = sequence.remaining - len(hits) * self.blocks.block_tokens
            prompt = Prompt(tokens, _seats(sequence), self._admission_blocks(sequence, hits))
            granted = grant(prompt, self._room(step, max_tokens))
            if granted < 1:
                return
            self._admit(step, self.waiting.popleft(), hits)
            step.prefills.append(Entry(sequence, granted))

    def decode(self, step: Step) -> None:
        """Add every running sequence; when blocks run out, the newest are preempted."""
        for sequence in list(self.running):
            is_preempted = sequence.computed == 0  # for an older one, in this very loop
            if not is_preempted and self._make_room(step, sequence):
                step.decodes.append(Entry(sequence, sequence.remaining))

    # ---- what becomes of a sequence --------------------------------------------------------------

    def advance(self, entry: Entry) -> None:
        """The entry was computed: its full blocks can be shared from now on."""
        sequence = entry.sequence
        sequence.computed += entry.tokens
        self._store(sequence)

    def fork(self, sequence: Sequence, others: Iterable[Sequence]) -> None:
        """The first tokens of a request are there: its choices share what was computed so far."""
        request = sequence.request
        for other in others:
            other.computed = sequence.computed
            other.hashes = list(sequence.hashes)
            other.stored_blocks = sequence.stored_blocks
            self.blocks.share(other.owner, self.blocks.table(sequence.owner))
        request.forked = True
        self.prefilling.remove(sequence)
        for member in request.sequences:
            insort(self.running, member, key=lambda s: s.order)
        request.phase = Phase.DECODE

    def resume(self, sequence: Sequence) -> None:
        """A preempted sequence has been computed again."""
        self.prefilling.remove(sequence)
        insort(self.running, sequence, key=lambda s: s.order)
        sequence.request.phase = Phase.DECODE

    def start_fetched(self, request: Request) -> None:
        """The KV of the context is there: `request.sequences` decode as seats become free."""
        self.pulled.remove(request)
        owner = fetch_owner(request.transfer or "")
        request.forked, request.phase = True, Phase.DECODE
        for sequence in request.sequences:
            sequence.computed = request.context_tokens
            self.blocks.share(sequence.owner, self.blocks.table(owner))
            self._store(sequence)
        self.fetched.extend(request.sequences)
        self.blocks.release(owner)

    def finish(self, sequence: Sequence) -> None:
        """Let go of a sequence wherever it is. What transfers hold, they keep."""
        self.blocks.release(sequence.owner)
        for line in (self.running, self.prefilling, self.waiting, self.fetched):
            if sequence in line:
                line.remove(sequence)
        if sequence in sequence.request.sequences:
            sequence.request.sequences.remove(sequence)

    def remove(self, request: Request) -> None:
        """Let go of a request at any state."""
        for sequence in list(request.sequences):
            self.finish(sequence)
        if request in self.expected:
            self.expected.remove(request)
        if request in self.pulled:
            self.pulled.remove(request)

    # ---- blocks ----------------------------------------------------------------------------------

    def _room(self, step: Step, max_tokens: int) -> Room:
        # A block to grow for each running sequence, so that nobody is preempted for who comes now.
        # Never below none: a prompt that was begun asks for none, and goes on.
        spare = max(0, self.blocks.available - len(self.running))
        return Room(max_tokens - step.tokens, self._free_seats(), spare, not step.prefills)

    def _free_seats(self) -> int:
        prefilling = sum(_seats(sequence) for sequence in self.prefilling)
        return self.limits.max_num_seqs - len(self.running) - prefilling

    def _is_overtaking(self, sequence: Sequence) -> bool:
        """An older request waits for blocks that this one would take."""
        return bool(self.expected) and self.expected[0].arrival < sequence.request.arrival

    def _admission_blocks(self, sequence: Sequence, hits: list[int]) -> int:
        """Blocks for all its tokens so far, and a last block for each further choice."""
        own = self.blocks.blocks_for(sequence.length) - len(hits) + self.blocks.unheld(hits)
        forks = 0 if sequence.request.forked else len(sequence.request.leg.choices) - 1
        decodes = sequence.request.leg.phases is not Phases.PREFILL
        return own + forks if decodes else own

    def _hits(self, sequence: Sequence) -> list[int]:
        """Cached blocks of a prefix. The last token is always computed: it gives the next one."""
        if sequence.request.wants_scores:
            return []
        full = (sequence.length - 1) // self.blocks.block_tokens
        return self.blocks.match(sequence.block_hashes(full, self.blocks.block_tokens))

    def _admit(self, step: Step, sequence: Sequence, hits: list[int]) -> None:
        self.blocks.share(sequence.owner, hits)
        self.blocks.take(sequence.owner, self.blocks.blocks_for(sequence.length) - len(hits))
        sequence.computed = len(hits) * self.blocks.block_tokens
        sequence.stored_blocks = len(hits)
        if not any(other.computed for other in sequence.request.sequences if other is not sequence):
            sequence.request.phase = Phase.PREFILL
        self.prefilling.append(sequence)
        step.admitted.append(sequence)

    def _make_room(self, step: Step, sequence: Sequence) -> bool:
        """Blocks for the sequence's next token, its own to write. False: it was preempted."""
        while self._growth(sequence) > self.blocks.available:
            victim = self.running[-1]
            self._preempt(victim)
            step.preempted += 1
            if victim is sequence:
                return False
        table = self.blocks.table(sequence.owner)
        missing = self.blocks.blocks_for(sequence.length) - len(table)
        if missing > 0:
            self.blocks.take(sequence.owner, missing)
        written = sequence.computed // self.blocks.block_tokens
        if self.blocks.is_shared(sequence.owner, written):
            step.copies.append(self.blocks.make_own(sequence.owner, written))
        return True

    def _growth(self, sequence: Sequence) -> int:
        table = self.blocks.table(sequence.owner)
        missing = self.blocks.blocks_for(sequence.length) - len(table)
        written = sequence.computed // self.blocks.block_tokens
        is_shared = written < len(table) and self.blocks.is_shared(sequence.owner, written)
        return missing + is_shared

    def _preempt(self, sequence: Sequence) -> None:
        """Computed again later from prompt and output, wherever its KV came from."""
        self.running.remove(sequence)
        self.blocks.release(sequence.owner)
        sequence.computed = sequence.stored_blocks = 0
        sequence.request.preemptions += 1
        if not any(other.computed for other in sequence.request.sequences):
            sequence.request.phase = Phase.WAITING
        line = list(self.waiting)
        insort(line, sequence, key=lambda s: s.order)
        self.waiting = deque(line)

    def _store(self, sequence: Sequence) -> None:
        full = sequence.computed // self.blocks.block_tokens
        if full <= sequence.stored_blocks or not self.blocks.caching:
            return
        hashes = sequence.block_hashes(full, self.blocks.block_tokens)
        table = self.blocks.table(sequence.owner)
        for index in range(sequence.stored_blocks, full):
            self.blocks.store(table[index], hashes[index])
        sequence.stored_blocks = full

    # ---- pulling ---------------------------------------------------------------------------------

    def _seat(self) -> None:
        while self.fetched and self._free_seats() > 0:
            insort(self.running, self.fetched.popleft(), key=lambda s: s.order)

    def _pull(self, step: Step) -> None:
        while self.expected:
            request = self.expected[0]
            if self.waiting and self.waiting[0].request.arrival < request.arrival:
                return
            hits = self._pull_hits(request)
            needed = self.blocks.blocks_for(request.context_tokens)
            pull = Pull(
                blocks=needed - len(hits) + self.blocks.unheld(hits) + request.seats,
                sequences=request.seats,
                free_blocks=self.blocks.available,
                free_sequences=self._free_seats() - self._seats_ahead(),
                running=len(self.running) + len(self.fetched),
                waiting_blocks=sum(self._pulled_blocks()),
                total_blocks=self.blocks.total,
            )
            if not may_pull(pull):
                return
            owner = fetch_owner(request.transfer or "")
            self.blocks.share(owner, hits)
            self.blocks.take(owner, needed - len(hits))
            request.cached_tokens = len(hits) * self.blocks.block_tokens
            request.phase = Phase.FETCHING
            self.pulled.append(self.expected.popleft())
            step.pulls.append(request)

    def _pull_hits(self, request: Request) -> list[int]:
        full = request.context_tokens // self.blocks.block_tokens
        return self.blocks.match(request.sequences[0].block_hashes(full, self.blocks.block_tokens))

    def _seats_ahead(self) -> int:
        return len(self.fetched) + sum(request.seats for request in self.pulled)

    def _pulled_blocks(self) -> Iterator[int]:
        """Of those that do not decode yet."""
        yield from (len(self.blocks.table(fetch_owner(r.transfer or ""))) for r in self.pulled)
        yield from (len(self.blocks.table(sequence.owner)) for sequence in self.fetched)


def _seats(sequence: Sequence) -> int:
    return 1 if sequence.request.forked else sequence.request.seats
