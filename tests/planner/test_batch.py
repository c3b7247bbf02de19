"""DecodeBatch against the plain list of requests that it stands for."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from distserve.planner.batch import DecodeBatch

COUNT = 200


class TwoBatches(RuleBasedStateMachine):
    """Two batches and two lists of [request, context, steps left], in queue order."""

    def __init__(self) -> None:
        super().__init__()
        due, base = [0] * COUNT, [0] * COUNT
        self.batches = [DecodeBatch(due, base), DecodeBatch(due, base)]
        self.lists: list[list[list[int]]] = [[], []]
        self.used = 0

    @precondition(lambda self: self.used < COUNT - 3)
    @rule(which=st.integers(0, 1), context=st.integers(1, 900), steps=st.integers(1, 9))
    def join(self, which, context, steps):
        self.batches[which].join(self.used, context, steps)
        self.lists[which].append([self.used, context, steps])
        self.used += 1

    @precondition(lambda self: self.used < COUNT - 3)
    @rule(which=st.integers(0, 1), context=st.integers(1, 900), steps=st.integers(1, 9))
    def join_ahead(self, which, context, steps):
        entries = [[self.used, context, steps], [self.used + 1, context + 1, steps + 1]]
        self.batches[which].join_ahead([tuple(entry) for entry in entries])
        self.lists[which][:0] = entries
        self.used += 2

    @rule(which=st.integers(0, 1), data=st.data())
    def advance(self, which, data):
        batch, plain = self.batches[which], self.lists[which]
        if not plain:
            return
        assert batch.rounds_to_next_finish == min(steps for _, _, steps in plain)
        rounds = data.draw(st.integers(1, batch.rounds_to_next_finish))
        finished = batch.advance(rounds)
        for entry in plain:
            entry[1] += rounds
            entry[2] -= rounds
        assert sorted(finished) == [request for request, _, left in sorted(plain) if left == 0]
        plain[:] = [entry for entry in plain if entry[2] > 0]

    @rule(which=st.integers(0, 1))
    def absorb(self, which):
        due, base = self.batches[which].due, self.batches[which].base
        self.batches[which].absorb(self.batches[1 - which])
        self.lists[which] += self.lists[1 - which]
        self.batches[1 - which], self.lists[1 - which] = DecodeBatch(due, base), []

    @rule(which=st.integers(0, 1), room=st.integers(901, 3000))
    def split(self, which, room):
        """Into the other batch, when that is empty."""
        plain = self.lists[which]
        if not plain or self.lists[1 - which] or plain[0][1] + 1 > room:
            return
        self.batches[1 - which] = self.batches[which].split(room)
        while plain and plain[0][1] + 1 <= room:
            room -= plain[0][1] + 1
            self.lists[1 - which].append(plain.pop(0))

    @invariant()
    def sums_agree(self):
        for batch, plain in zip(self.batches, self.lists, strict=True):
            assert batch.size == len(plain)
            assert batch.context_tokens == sum(context for _, context, _ in plain)


TestTwoBatches = TwoBatches.TestCase
