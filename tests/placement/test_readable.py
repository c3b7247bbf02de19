"""What nobody can read is left out before it meets a node, and what is left never trips anybody."""

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from distserve.placement import InstanceRequest, UnitId, UnitRequest
from distserve.placement.matching import misfit
from distserve.placement.nodes import node_from
from distserve.placement.readable import OPERATORS, unreadable

Make = Callable[..., Any]
Object = dict[str, Any]
LIKE: Object = {"key": "n", "operator": "in", "values": ["1"]}

scalars = st.sampled_from([None, "", "a", "1", "In", "Exists", "Gt", 1, True, ["1"], {"a": "1"}])
operators = st.sampled_from(OPERATORS)
texts = st.lists(st.sampled_from(["1", "a"]), max_size=2)
requirement = st.fixed_dictionaries(
    {"operator": operators | scalars},
    optional={"key": st.just("a") | scalars, "values": texts | scalars},
)
requirements = st.lists(requirement, min_size=1, max_size=2) | scalars
term = st.dictionaries(st.sampled_from(["matchExpressions", "matchFields"]), requirements)
toleration = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("key", "operator", "value", "effect"), scalars)
)
TAINT = {"key": "a", "value": "1", "effect": "NoExecute"}


constraints = (
    st.fixed_dictionaries({"node_selector": st.dictionaries(st.just("a"), scalars) | scalars})
    | st.fixed_dictionaries({"tolerations": st.lists(toleration | scalars, max_size=2)})
    | st.fixed_dictionaries({"node_affinity_terms": st.lists(term | scalars, max_size=2)})
)


@settings(max_examples=600)
@given(constraints=constraints)
def test_what_can_be_read_can_be_judged(constraints: Any) -> None:
    instance = InstanceRequest("i", 1, {}, **constraints)
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
