"""Each key once in the queue, never twice at work, nothing lost: whatever the order of calls."""

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from distserve.operator.settings import QueueSettings
from distserve.operator.workqueue import WorkQueue

KEYS = st.sampled_from("abc")


def make(backoff: float = 0.5, cap: float = 120.0) -> WorkQueue[str]:
    settings = QueueSettings(backoff_seconds=backoff, backoff_cap_seconds=cap)
    return WorkQueue(settings, jitter=lambda: 1.0)


class Queue(RuleBasedStateMachine):
    """Against the plainest model: a list of those that wait, a set of those at work."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.queue = make()
        self.waiting: list[str] = []
        self.again: list[str] = []
        self.working: set[str] = set()

    def teardown(self) -> None:
        self.loop.close()

    @rule(key=KEYS)
    def add(self, key: str) -> None:
        self.queue.add(key)
        if key in self.working:
            if key not in self.again:
                self.again.append(key)
        elif key not in self.waiting:
            self.waiting.append(key)

    @precondition(lambda self: self.waiting)
    @rule()
    def get(self) -> None:
        key = self.loop.run_until_complete(asyncio.wait_for(self.queue.get(), 1.0))
        assert key == self.waiting.pop(0), "first come, first served"
        assert key not in self.working
        self.working.add(key)

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.working)))
        self.queue.done(key)
        self.working.remove(key)
        if key in self.again:
            self.again.remove(key)
            self.waiting.append(key)

    @invariant()
    def as_many_wait(self) -> None:
        assert len(self.queue) == len(self.waiting)


Queue.TestCase.settings = settings(max_examples=60, deadline=None)
TestQueue = Queue.TestCase


async def test_a_worker_that_waits_is_woken() -> None:
    queue = make()
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")
    assert await asyncio.wait_for(waiting, 1.0) == "a"


async def test_the_earlier_of_two_delays_holds() -> None:
    queue = make()
    queue.add_after("a", 60.0)
    queue.add_after("a", 0.01)
    queue.add_after("a", 60.0)
    assert await asyncio.wait_for(queue.get(), 1.0) == "a"
    queue.done("a")
    assert len(queue) == 0


async def test_what_is_asked_for_now_does_not_wait_for_its_delay() -> None:
    queue = make()
    queue.add_after("a", 0.01)
    queue.add("a")
    assert await asyncio.wait_for(queue.get(), 1.0) == "a"
    await asyncio.sleep(0.05)
    queue.done("a")
    assert len(queue) == 0, "the delay went with the call that made it needless"


async def test_pauses_double_up_to_the_cap_and_begin_anew_after_success() -> None:
    queue = make(backoff=1.0, cap=5.0)
    assert [queue.retry("a") for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert queue.retry("b") == 1.0
    queue.succeeded("a")
    assert queue.retry("a") == 1.0
    assert queue.retry("a", at_least_seconds=30.0) == 30.0


async def test_who_fails_time_after_time_is_counted_until_a_try_succeeds() -> None:
    queue = make()
    for _ in range(4):
        queue.retry("a")
        queue.retry("b")
    assert queue.failing == 0, "what is over in seconds is nobody's to look at"
    queue.retry("a")
    assert queue.failing == 1
    queue.retry("b")
    queue.retry("b")
    assert queue.failing == 2
    queue.succeeded("a")
    queue.retry("a")
    assert queue.failing == 1


async def test_a_fault_that_lasts_for_days_has_a_finite_pause() -> None:
    queue = make(backoff=1.0, cap=5.0)
    assert {queue.retry("a") for _ in range(2000)} == {1.0, 2.0, 4.0, 5.0}
