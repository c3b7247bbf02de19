"""From what runs now to the numbers asked for: in which steps units come, move and go."""

from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.placement.gpu_cluster import CLIQUE, GPU, NODES_PER_DOMAIN, busy, gpu_nodes

from distserve.operator.ahead import Act, Course, Standing, course_ahead
from distserve.operator.rollout import Rules
from distserve.placement.inventory import Inventory, inventory_of
from distserve.placement.requests import (
    Domain,
    InstanceRequest,
    Level,
    UnitId,
    UnitRequest,
)

NVLINK, ZONE = Level("nvlink", CLIQUE), Level("zone", "topology.kubernetes.io/zone")


def request(number: int, revision: str = "new", gpus: int = 16) -> UnitRequest:
    name = f"opt-u{number}-hybrid"
    return UnitRequest(
        UnitId("llm", "opt", f"u{number}"),
        tuple(InstanceRequest(f"{name}-{at}", 1, {GPU: 4}) for at in range(gpus // 4)),
        waiting_since=0.0,
        levels=(NVLINK, ZONE),
        pack_within="nvlink",
    )


def running(
    inventory: Inventory, domains: Mapping[int, int], gpus: int = 16
) -> dict[int, Standing]:
    """Units of revision `old`, by number, whole in these domains."""
    found = {}
    for number, domain in domains.items():
        asked = request(number, "old", gpus)
        pods = asked.pod_names
        half = len(pods) // NODES_PER_DOMAIN
        inventory.reserve(asked, {p: f"gpu-{domain}{i // half}" for i, p in enumerate(pods)})
        home = Domain("nvlink", CLIQUE, f"c{domain}")
        found[number] = Standing(asked.id, "old", home, frozenset(pods))
    return found


def told(course: Course) -> list[tuple[int, str, str, str]]:
    return [(m.step, m.act.value, m.unit, m.domain.value if m.domain else "") for m in course.moves]


def test_a_rollout_begins_with_an_extra_unit_and_ends_without() -> None:
    inventory = inventory_of(gpu_nodes(3))
    standing = running(inventory, {0: 0, 1: 1})
    course = course_ahead(inventory, Rules(2, "new", "old"), request, 0.0, standing)
    assert course.fits and told(course) == [
        (0, "keep", "u0", "c0"), (0, "keep", "u1", "c1"),
        (1, "create", "u2", "c2"),
        (2, "replace", "u0", "c0"),
        (3, "replace", "u1", "c1"),
        (4, "delete", "u2", "c2"),
    ]  # fmt: skip


def test_without_room_for_the_extra_unit_the_rollout_stops_or_replaces_in_place() -> None:
    for one_when_full in (False, True):
        inventory = inventory_of(gpu_nodes(2))
        standing = running(inventory, {0: 0, 1: 1})
        rules = Rules(2, "new", "old", one_when_full=one_when_full)
        course = course_ahead(inventory, rules, request, 0.0, standing)
        acts = [(m.act, m.unit) for m in course.moves if m.step]
        if one_when_full:
            assert course.fits and acts == [(Act.REPLACE, "u0"), (Act.REPLACE, "u1")]
        else:
            assert not course.fits and acts == [(Act.CREATE, "u2")]
            assert course.moves[-1].reason == "NoRoom"


def test_a_unit_that_grows_out_of_its_domain_moves() -> None:
    inventory = inventory_of(gpu_nodes(2))
    inventory.put_pod(busy("gpu-00", 4))
    standing = running(inventory, {0: 0}, gpus=8)
    rules = Rules(1, "new", "old", surge=0, unavailable=1)
    course = course_ahead(inventory, rules, request, 0.0, standing)
    assert course.fits and told(course)[1:] == [(1, "replace", "u0", "c1")]
    assert "after topology.gangTimeout" in course.moves[-1].message


def test_more_and_fewer_units() -> None:
    inventory = inventory_of(gpu_nodes(3))
    standing = running(inventory, {0: 0})
    course = course_ahead(inventory, Rules(3, "old", "old"), request, 0.0, standing)
    assert course.fits
    assert told(course)[1:] == [(1, "create", "u1", "c1"), (1, "create", "u2", "c2")]
    standing = running(inventory, {0: 0, 1: 1, 2: 2})
    course = course_ahead(inventory, Rules(1, "old", "old"), request, 0.0, standing)
    assert told(course)[3:] == [(1, "delete", "u1", "c1"), (1, "delete", "u2", "c2")]


def test_a_pause_holds_other_numbers_as_well() -> None:
    for paused in (True, False):
        inventory = inventory_of(gpu_nodes(1))
        standing = running(inventory, {0: 0}, gpus=8)
        rules = Rules(1, "old", "old", paused=paused)
        acts = [m.act for m in course_ahead(inventory, rules, request, 0.0, standing).moves]
        assert acts == [Act.KEEP] + [Act.REPLACE] * (not paused)


def test_units_that_a_pause_has_come_are_as_the_others() -> None:
    inventory = inventory_of(gpu_nodes(2))
    standing = running(inventory, {0: 0}, gpus=8)
    rules = Rules(2, "new", "old", paused=True)

    def of_revision(number: int, revision: str) -> UnitRequest:
        return request(number, revision, gpus={"old": 8, "new": 16}[revision])

    course = course_ahead(inventory, rules, of_revision, 0.0, standing)
    assert course.fits and told(course)[1:] == [(1, "create", "u1", "c0")]
    assert len(course.moves[-1].nodes) == 2


@settings(max_examples=60, deadline=None)
@given(
    domains=st.integers(1, 4),
    there=st.integers(0, 3),
    wanted=st.integers(0, 4),
    gpus=st.sampled_from([8, 16]),
    target=st.sampled_from(["old", "new"]),
    surge=st.integers(0, 2),
    one_when_full=st.booleans(),
)
def test_played_to_its_end(
    domains: int, there: int, wanted: int, gpus: int, target: str, surge: int, one_when_full: bool
) -> None:
    """Whatever runs: it ends, no node is given away twice, and `fits` is what the end is like."""
    inventory = inventory_of(gpu_nodes(domains))
    there = min(there, domains)
    standing = running(inventory, {n: n for n in range(there)})
    unavailable = int(surge == 0)
    rules = Rules(wanted, target, "old", surge, unavailable, one_when_full)
    course = course_ahead(inventory, rules, lambda n, name: request(n, name, gpus), 0.0, standing)
    assert all(inventory.free(name)[GPU] >= 0 for name in inventory.nodes)
    for move in course.moves:
        assert move.fits == (not move.reason)
        homes = {inventory.nodes[node].labels[CLIQUE] for node in move.nodes.values()}
        assert homes == ({move.domain.value} if move.domain and move.nodes else set())
    whole = {unit.unit: len(record.seats) for unit, record in inventory.units.items()}
    if course.fits:
        assert whole == {f"u{n}": gpus // 4 for n in range(wanted)}
        again = {n: Standing(request(n).id, target, None,
                             frozenset(request(n, target, gpus).pod_names))
                 for n in range(wanted)}  # fmt: skip
        rest = course_ahead(inventory, rules, lambda n, name: request(n, name, gpus), 0.0, again)
        assert all(move.act is Act.KEEP for move in rest.moves), "nothing is left to do"
