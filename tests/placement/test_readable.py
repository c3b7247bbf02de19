"""What nobody can read is left out before it meets a node, and what is left never trips anybody."""

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from distserve.placement import InstanceRequest, UnitId, UnitRequest
from distserve.placement.matching import misfit
from distserve.placement.nodes import node_from
from distserve.placement.readable import unreadable

Make = Callable[..., Any]
Object = dict[str, Any]
LIKE: Object = {"key": "n", "operator": "in", "values": ["1"]}

scalars = st.sampled_from([None, "", "a", "1", "In", "Exists", "Gt", 1, True, ["1"], {"a": "1"}])
values = scalars | st.lists(scalars, max_size=2)
requirement = st.fixed_dictionaries(
    {}, optional={"key": values, "operator": values, "values": values}
)
term = st.fixed_dictionaries(
    {}, optional={name: st.lists(requirement | scalars, max_size=2) | scalars for name in (
        "matchExpressions", "matchFields",
    )}
)  # fmt: skip
toleration = st.fixed_dictionaries(
    {}, optional={name: scalars for name in ("key", "operator", "value", "effect")}
)
TAINT = {"key": "a", "value": "1", "effect": "NoExecute"}


@given(
    selector=st.dictionaries(st.just("a") | st.just(1), scalars, max_size=2) | scalars,
    tolerations=st.lists(toleration | scalars, max_size=2),
    terms=st.lists(term | scalars, max_size=2),
)
def test_what_can_be_read_can_be_judged(selector: Any, tolerations: Any, terms: Any) -> None:
    instance = InstanceRequest(
        "i", 1, {}, node_selector=selector, tolerations=tolerations, node_affinity_terms=terms
    )
    unit = UnitRequest(UnitId("llm", "opt", "u0"), (instance,), 0.0)
    labels = {"a": "1"}
    node = node_from({"metadata": {"name": "1", "labels": labels}, "spec": {"taints": [TAINT]}})
    if not unreadable(unit):
        misfit(instance, node, when_well=True)


def test_it_says_where_and_how_to_cure_it(unit: Make) -> None:
    terms: Object = {"node_affinity_terms": [{}, {"matchFields": [LIKE]}]}
    assert unreadable(unit("u0", 1, 1, instance=terms)) == (
        "opt-u0-i0: nodeSelectorTerms[1].matchFields[0].operator: one of In, NotIn, Exists, "
        "DoesNotExist, Gt, Lt is needed, not 'in'"
    )
    assert unreadable(unit("u0", 1, instance={"node_affinity_terms": [{}]})) == ""
