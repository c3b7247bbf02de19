"""What the watches do not show is there all the same."""

import pytest
from tests.control.test_not_taken import KEY, World

from distserve.operator.errors import Conflict
from distserve.operator.kinds import kind_of


async def test_what_is_ours_and_was_not_seen_is_seen_before_it_is_changed() -> None:
    """A watch is late: what runs may be of another revision, and keeps it until its turn."""
    world = World()
    await world.settle()
    ref = next(ref for ref in world.api.live if ref.kind == "StatefulSet")
    before = world.api.live[ref]
    world.store.drop(kind_of(*ref[:2]), (KEY.namespace, ref.name), before["metadata"]["uid"])
    world.write(2, units=1, images={"engine": "mine:2"})
    with pytest.raises(Conflict, match=f"{ref.name} is there already"):
        await world.reconciler.reconcile(KEY)
    assert world.api.live[ref] is before
    seen = world.store.observe(KEY, world.now)
    assert seen is not None and seen.children[ref] == before
    await world.settle()
    assert world.api.live[ref] != before
