"""How units are, from StatefulSets and pods."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distserve.api import labels
from distserve.operator.health import live_units, read_place, write_place
from distserve.operator.model import Placement
from distserve.operator.reconciler import placed_sets

PLACES = st.builds(
    Placement,
    st.text(max_size=5),
    st.text(max_size=5),
    st.text(max_size=5),
    st.dictionaries(st.text(max_size=5), st.lists(st.text(max_size=5), max_size=3).map(tuple)),
)


@given(PLACES)
def test_a_place_is_read_as_it_was_written(place: Placement) -> None:
    assert read_place(write_place(place)) == place


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"nodes": 1}', "x", "[" * 10**5])
def test_what_somebody_else_wrote_is_no_place(text: str) -> None:
    assert read_place(text) is None


def test_a_place_that_was_overwritten_is_asked_for_again(world: Any) -> None:
    world.settle()
    for found in world.named("StatefulSet").values():
        found["metadata"]["annotations"]["distserve.io/place"] = "x"
    assert world.settle().condition("Placed")["status"] == "True"


@pytest.mark.parametrize("text", ["x", "u7", ""])
@pytest.mark.parametrize("label", [labels.UNIT, labels.ROLE, labels.REVISION])
def test_a_label_that_was_overwritten_is_put_back(world: Any, label: str, text: str) -> None:
    uids = {pod.uid for pod in world.settle().pods.values()}
    marks = world.named("StatefulSet")["tiny-u0-prefill-0"]["metadata"]["labels"]
    before, marks[label] = marks[label], text
    assert live_units(world.observe()).keys() == {"u0"}
    assert {name: len(sets) for name, sets in placed_sets(world.observe()).items()} == {"u0": 2}
    world.settle()
    marks = world.named("StatefulSet")["tiny-u0-prefill-0"]["metadata"]["labels"]
    assert marks[label] == before
    assert {pod.uid for pod in world.pods.values()} == uids, "it runs on"


def test_nodes_that_are_no_text_can_be_compared() -> None:
    place = read_place('{"level":"","label":"","value":"","nodes":{"d-u0-prefill-0":[{}]}}')
    assert place is not None and hash(place.nodes["d-u0-prefill-0"])


def test_one_blind_watch_takes_no_unit_down(world: Any) -> None:
    """The pods are not seen, yet the StatefulSets say that they are ready."""
    observed = replace(world.settle().observe(), pods=())
    (unit,) = live_units(observed).values()
    assert not unit.instances["tiny-u0-prefill-0"].ready
    assert not unit.down
    world.edit(images={"engine": "mine:2"})
    world.late = observed
    actions = world.decide().actions
    changed = [a.object["metadata"]["name"] for a in actions if hasattr(a, "object")]
    assert "tiny-u1-prefill-0" in changed and "tiny-u0-prefill-0" not in changed


def test_a_terminating_pod_is_not_ready(world: Any) -> None:
    world.settle()
    name = "tiny-u0-prefill-0-0"
    world.pods[name] = replace(world.pods[name], terminating=True)
    (unit,) = live_units(world.observe()).values()
    assert not unit.instances["tiny-u0-prefill-0"].ready
