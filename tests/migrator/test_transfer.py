"""The transfer's two state machines under duplicates, losses, reordering and time."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from distserve.migrator import peer_messages as peer
from distserve.migrator.source_transfer import CutReader, SourceTransfer, ToReader
from distserve.migrator.target_transfer import StartRead, TargetTransfer, ToSource
from distserve.migrator.transfer import ToEngine
from distserve.wire import messages
from distserve.wire.pool import BlockSpan, TokenRange

SPANS = [BlockSpan(TokenRange(0, 32), [0, 1])]
RECORD = messages.CommitRecord([1], [])
LEASE = 10.0
READER = 7


class Transfer(RuleBasedStateMachine):
    """A source and its readers, joined by a network that repeats, delays and reorders messages.

    One reader machine, which may be replaced by a new attempt; what a transfer's blocks hold is
    modelled by whether the source still owed them when they were read.
    """

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.source = SourceTransfer("t", 1, SPANS, LEASE, 3 * LEASE)
        self.to_source = []
        self.to_reader = []
        self.generation = 0
        self.targets = []
        self.reads = {}
        self.lane = []
        self.moving = True
        self.ends = {}
        self.released = []
        self.good = {}
        self.new_attempt()

    # ---- the wires ------------------------------------------------------------------------------

    def act(self, actions, target=None):
        for action in actions:
            match action:
                case ToEngine(message=message) if target is None:
                    self.released.append(message)
                case ToEngine(message=message):
                    assert not self.reads[target.generation], "a copy in motion after the end"
                    self.ends[target.generation].append(message)
                case ToReader(message=message):
                    self.to_reader.append(message)
                case ToSource(message=message):
                    self.to_source.append(message)
                case StartRead(tokens=tokens):
                    self.reads[target.generation].append(tokens)
                case CutReader() if not self.moving:
                    while self.lane:
                        self.lane.pop()
                        self.act(self.source.read_ended(READER))

    @rule()
    def attempt(self):
        if len(self.targets) < 3:
            self.new_attempt()

    def new_attempt(self):
        """EXPECT and FETCH of a new attempt (another engine life, or the same one again)."""
        self.generation += 1
        target = TargetTransfer("t", 1, "peer", self.generation, self.now + 100)
        self.targets.append(target)
        self.reads[self.generation] = []
        self.ends[self.generation] = []
        self.good[self.generation] = True
        self.act(target.fetch(SPANS, self.now, 1), target)

    @precondition(lambda self: self.to_source)
    @rule(data=st.data())
    def source_hears(self, data):
        """Any message under way, in any order; it may come again."""
        message = data.draw(st.sampled_from(self.to_source))
        if data.draw(st.booleans()):
            self.to_source.remove(message)
        self.to_the_source(message)

    @precondition(lambda self: self.to_reader)
    @rule(data=st.data())
    def reader_hears(self, data):
        message = data.draw(st.sampled_from(self.to_reader))
        if data.draw(st.booleans()):
            self.to_reader.remove(message)
        self.to_the_reader(message)

    @rule(messages_each_way=st.integers(1, 4))
    def healthy_network(self, messages_each_way):
        """What is under way arrives once and in order."""
        self.healthy(messages_each_way)

    @rule(steps=st.integers(1, 7))
    def good_course(self, steps):
        """The first steps of a transfer in which nothing goes wrong; chance alone rarely gets as
        far as its end, where most is at stake."""
        course = (
            lambda: self.healthy(1),
            lambda: self.chunk(TokenRange(0, 32)),
            lambda: self.healthy(1),
            self.commit,
            lambda: self.healthy(1),
            lambda: [self.copied(target, None) for target in self.targets],
            lambda: self.healthy(2),
        )
        for step in course[:steps]:
            step()

    def healthy(self, messages_each_way):
        for _ in range(messages_each_way):
            for message in [self.to_source.pop(0) for _ in self.to_source[:]]:
                self.to_the_source(message)
            for message in [self.to_reader.pop(0) for _ in self.to_reader[:]]:
                self.to_the_reader(message)

    def to_the_source(self, message):
        match message:
            case peer.Pull():
                self.act(self.source.pulled(READER, message.generation, message.epoch, self.now))
            case peer.Done():
                self.act(self.source.done(READER, message.generation, self.now))
            case peer.PullAbort():
                self.act(self.source.pull_aborted(READER, message.generation))
            case peer.PullAborted():
                self.act(self.source.acknowledged(READER, message.generation))

    def to_the_reader(self, message):
        for target in self.targets:
            generation, now = message.generation, self.now
            match message:
                case peer.Pulling():
                    actions = target.pulling(generation, message.spans)
                case peer.Ready():
                    actions = target.ready(generation, message.tokens, now)
                case peer.Committed():
                    actions = target.committed(generation, message.record, now)
                case peer.LeaseEnd():
                    actions = target.lease_ended(generation, message.ok, now)
                case peer.PullFailed():
                    actions = target.source_failed(generation, message.reason, now)
                case peer.PullAbort() if generation == target.generation:
                    actions = target.source_aborted(generation, message.reason, now)
                case _:
                    actions = []
            self.act(actions, target)

    # ---- engines, time, bytes -------------------------------------------------------------------

    @rule(tokens=st.sampled_from([TokenRange(0, 16), TokenRange(16, 32), TokenRange(0, 32)]))
    def chunk(self, tokens):
        self.act(self.source.chunk_ready(tokens))

    @rule()
    def commit(self):
        self.act(self.source.commit(RECORD, self.now))

    @rule(really=st.integers(0, 3))
    def source_aborts(self, really):
        if not really:
            self.act(self.source.abort(self.now))

    @rule(index=st.integers(0, 9))
    def reader_aborts(self, index):
        target = self.targets[index % len(self.targets)]
        self.act(target.abort(self.now), target)

    @rule(index=st.integers(0, 5), broken=st.integers(0, 9).map(lambda n: n == 9))
    def read_ends(self, index, broken):
        target = self.targets[index % len(self.targets)]
        self.copied(target, "connection lost" if broken else None)

    def copied(self, target, error):
        if not self.reads[target.generation]:
            return
        tokens = self.reads[target.generation].pop()
        if self.released:
            self.good[target.generation] = False  # these bytes may be somebody else's
        self.act(target.read_ended(0 if error else tokens.tokens, error, self.now), target)

    @rule()
    def read_is_asked(self):
        if self.source.may_read(READER, self.generation, self.now):
            self.source.read_started(READER)
            self.lane.append(self.generation)

    @precondition(lambda self: self.lane and self.moving)
    @rule()
    def source_sends(self):
        """The turn of the lane's first read: its bytes go out if it still may be read."""
        generation = self.lane.pop(0)
        if self.source.may_read(READER, generation, self.now):
            assert not self.released, "bytes out of blocks that were given back"
        self.act(self.source.read_ended(READER))

    @rule(moving=st.booleans())
    def lane_stalls_or_moves(self, moving):
        self.moving = moving

    @rule()
    def heartbeat(self):
        self.act(self.source.renew(self.now))

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.0, 11.0]))
    def time_passes(self, seconds):
        self.now += seconds
        self.act(self.source.tick(self.now))
        for target in self.targets:
            self.act(target.tick(self.now), target)

    # ---- what must hold -------------------------------------------------------------------------

    @invariant()
    def one_release(self):
        assert len(self.released) == (1 if self.source.over else 0)

    @invariant()
    def no_release_while_a_reader_may_be_sent_bytes(self):
        """Except to one that has said DONE, and so has all bytes."""
        if messages.Released(transfer="t", fetched=False) in self.released:
            assert not self.lane

    @invariant()
    def one_end_each(self):
        for target in self.targets:
            assert len(self.ends[target.generation]) == (1 if target.over else 0)

    @invariant()
    def at_most_one_fetched_and_only_whole(self):
        fetched = [
            generation
            for generation, ends in self.ends.items()
            if any(isinstance(end, messages.Fetched) for end in ends)
        ]
        assert len(fetched) <= 1
        for generation in fetched:
            assert self.released == [messages.Released(transfer="t", fetched=True)]
            assert self.good[generation], "fetched bytes that were read after the release"
            target = next(t for t in self.targets if t.generation == generation)
            assert target.bytes == 32

    def teardown(self):
        """Left alone, everything ends by its deadlines: nothing waits for ever, also where the
        lane moved as long as it was looked at, and then stands still."""
        self.moving = False
        for _ in range(3):
            self.now += 200
            self.act(self.source.tick(self.now))
            for target in self.targets:
                self.act(target.tick(self.now), target)
                while self.reads[target.generation]:
                    self.reads[target.generation].pop()
                    self.act(target.read_ended(0, None, self.now), target)
        assert self.source.over
        assert all(target.over for target in self.targets)
        self.one_release()
        self.one_end_each()


Transfer.TestCase.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
TestTransfer = Transfer.TestCase


def test_done_after_the_lease_is_answered_expired_and_nothing_is_fetched():
    source = SourceTransfer("t", 1, SPANS, LEASE, 2 * LEASE)
    target = TargetTransfer("t", 1, "peer", 1, 100)
    source.chunk_ready(TokenRange(0, 32))
    source.commit(RECORD, 0)
    target.fetch(SPANS, 0, 1)
    source.pulled(READER, 1, 1, 0)
    target.pulling(1, SPANS)
    target.ready(1, [TokenRange(0, 32)], 0)
    target.committed(1, RECORD, 0)
    assert target.read_ended(32, None, 0) == [ToSource(peer.Done("t", 1))]
    late = source.done(READER, 1, LEASE)
    end = peer.LeaseEnd(transfer="t", generation=1, ok=False)
    assert ToReader(READER, end) in late
    failed = messages.Failed(transfer="t", reason="expired", retryable=True)
    assert target.lease_ended(1, end.ok, LEASE) == [ToEngine(failed)]
    assert source.expired


def test_the_lease_runs_once_all_is_computed():
    """However long a step takes: until its end no reader hears of the offer."""
    source = SourceTransfer("t", 1, SPANS, LEASE, 20 * LEASE)
    source.chunk_ready(TokenRange(0, 16))  # was cached
    source.renew(LEASE)
    source.pulled(READER, 1, 1, LEASE)
    assert source.tick(10 * LEASE) == []
    source.commit(RECORD, 10 * LEASE)
    assert source.deadline == 11 * LEASE
    source.renew(10.5 * LEASE)
    source.tick(11.5 * LEASE)
    assert source.expired


def test_an_offer_that_is_never_committed_ends_and_is_not_revived():
    source = SourceTransfer("t", 1, SPANS, LEASE, 2 * LEASE)
    released = messages.Released(transfer="t", fetched=False)
    assert source.commit(RECORD, 2 * LEASE) == [ToEngine(released)]
    assert source.expired
    assert source.over


def test_ranges_that_overlap_are_read_once():
    """A reader that comes late hears of all chunks in one message."""
    target = TargetTransfer("t", 1, "peer", 1, 100)
    target.fetch(SPANS, 0, 1)
    target.pulling(1, SPANS)
    reads = target.ready(1, [TokenRange(0, 16), TokenRange(0, 32)], 0)
    assert reads == [StartRead(TokenRange(0, 16)), StartRead(TokenRange(16, 32))]


def test_a_lane_that_moves_is_looked_at_again_until_the_reads_have_ended():
    """It may stand still later; the blocks wait for it, and not for ever."""
    source = SourceTransfer("t", 1, SPANS, LEASE, LEASE)
    source.pulled(READER, 1, 1, 0)
    source.read_started(READER)
    source.abort(0)
    for now in (1.0, 2.0, 3.0):
        assert source.deadline == now
        assert source.tick(now) == [CutReader(READER)]
    released = messages.Released(transfer="t", fetched=False)
    assert source.read_ended(READER) == [ToEngine(released)]
    assert source.tick(4.0) == []
