"""For how long an engine had nothing to do, as it tells it: who moves it away relies on that."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from distserve.engine.hub import Hub
from distserve.engine.outbox import Output
from distserve.wire.dialect import InstanceState, RequestState


def state(requests: int) -> Output:
    waiting = [
        RequestState(leg=str(n), phase="offered", context_tokens=1, tokens_left=0, tokens_out=1,
                     age_ms=0.0)
        for n in range(requests)
    ]  # fmt: skip
    return Output(
        state=InstanceState(
            epoch=1, sequence=1, free_blocks=1, total_blocks=1, waiting=0, running=0,
            requests=waiting,
        )
    )  # fmt: skip


actions = st.one_of(
    st.tuples(st.just("open"), st.sampled_from("ab")),
    st.tuples(st.just("close"), st.sampled_from("abc")),
    st.tuples(st.just("state"), st.integers(0, 2)),
    st.tuples(st.just("wait"), st.integers(1, 9)),
)


@given(st.lists(actions, max_size=30))
def test_it_is_the_time_since_the_last_leg_or_offer_ended(done: list[tuple[str, Any]]) -> None:
    now, busy_until, legs, offers = 100.0, 100.0, set[str](), 0
    hub = Hub(1, lambda message: None, lambda: now)
    for what, value in done:
        if what == "wait":
            now += value
        elif what == "open":
            hub.open_leg(value)
            legs.add(value)
        elif what == "close":
            busy_until = now if value in legs else busy_until
            hub.close_leg(value)
            legs.discard(value)
        else:
            busy_until = now if offers else busy_until
            hub.receive(state(value))
            offers = value
        busy_until = now if legs or offers else busy_until
        assert hub.idle_seconds == now - busy_until
