"""A big unit is not starved, whatever smaller ones come and go around it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from distserve.placement import (
    InstanceRequest,
    Level,
    Placed,
    UnitId,
    UnitRequest,
    inventory_of,
    place,
)

GPU = "example.com/gpu"
CLIQUE = Level("nvlink", "clique")
PATIENCE = 20.0
LONGEST = 15
"""That any of the small ones runs. Unit: seconds, one step each."""
QUEUE = 6
"""Small ones that wait at any time."""


def node(name: str) -> dict[str, object]:
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "clique": "c0"}},
        "status": {
            "allocatable": {GPU: "8", "pods": "40"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def unit(name: str, since: float, pods: int, gpus: int, patience: float | None) -> UnitRequest:
    return UnitRequest(
        UnitId("ns", name, "u0"),
        (InstanceRequest(f"{name}-u0-i0", pods, {GPU: gpus}),),
        since,
        levels=(CLIQUE,),
        pack_within="nvlink",
        reserve_after_seconds=patience,
    )


smalls = st.lists(
    st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, LONGEST)), min_size=1
)


@given(smalls, st.integers(1, 2), st.integers(5, 8))
@settings(deadline=None, max_examples=60)
def test_it_is_placed_once_what_ran_has_ended(
    kinds: list[tuple[int, int, int]], pods: int, gpus: int
) -> None:
    """There is always a queue of small ones; the big one comes when the nodes are full of them."""
    inventory = inventory_of(node(f"n{at}") for at in range(2))
    big = unit("big", LONGEST, pods, gpus, PATIENCE)
    waiting: dict[UnitId, tuple[UnitRequest, int]] = {}
    ends: dict[UnitId, int] = {}
    count = 0
    # From PATIENCE on only what ran and who was older stands in its way, one after another.
    for now in range(int(LONGEST + PATIENCE) + LONGEST * (1 + QUEUE) + 2):
        for name in [one for one, end in ends.items() if end <= now]:
            inventory.release(name)
            del ends[name]
        while len(waiting) < QUEUE:
            many, each, seconds = kinds[count % len(kinds)]
            small = unit(f"small{count}", now, many, each, None)
            waiting[small.id] = (small, seconds)
            count += 1
        asked = [one for one, _ in waiting.values()] + ([big] if now >= LONGEST else [])
        for decision in place(inventory, asked, float(now)):
            if isinstance(decision, Placed) and decision.unit == big.id:
                return
            if isinstance(decision, Placed):
                small, seconds = waiting.pop(decision.unit)
                inventory.reserve(small, decision.nodes)
                ends[small.id] = now + seconds
    raise AssertionError("the big unit was never placed")
