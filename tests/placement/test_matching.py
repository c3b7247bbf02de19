"""Which nodes a pod may go to: as kube-scheduler decides it."""

from collections.abc import Callable
from typing import Any

import pytest

from distserve.placement import InstanceRequest
from distserve.placement.matching import misfit
from distserve.placement.nodes import node_from

Make = Callable[..., Any]


def why(node: dict[str, Any], **constraints: Any) -> str | None:
    return misfit(InstanceRequest("i", 1, {}, **constraints), node_from(node))


def test_selectors_need_each_label(node: Make) -> None:
    found = node("a", labels={"gpu": "h200"})
    assert why(found, node_selector={"gpu": "h200"}) is None
    said = why(found, node_selector={"gpu": "h200", "pool": "x"})
    assert said == "without the label pool=x"


@pytest.mark.parametrize(
    ("operator", "values", "fits"),
    [
        ("In", ["5", "6"], True),
        ("In", ["6"], False),
        ("NotIn", ["6"], True),
        ("NotIn", ["5"], False),
        ("Exists", [], True),
        ("DoesNotExist", [], False),
        ("Gt", ["4"], True),
        ("Gt", ["5"], False),
        ("Lt", ["6"], True),
        ("Lt", ["5"], False),
    ],
)
def test_each_operator_of_node_affinity(
    node: Make, operator: str, values: list[str], fits: bool
) -> None:
    term = {"matchExpressions": [{"key": "n", "operator": operator, "values": values}]}
    said = why(node("a", labels={"n": "5"}), node_affinity_terms=[term])
    assert (said is None) is fits


def test_a_missing_label_is_not_in_and_does_not_exist(node: Make) -> None:
    for operator, fits in (("NotIn", True), ("DoesNotExist", True), ("Gt", False), ("In", False)):
        term = {"matchExpressions": [{"key": "n", "operator": operator, "values": ["1"]}]}
        assert (why(node("a"), node_affinity_terms=[term]) is None) is fits


def test_one_term_is_enough_and_all_of_its_requirements_are_needed(node: Make) -> None:
    def term(*pairs: tuple[str, str]) -> dict[str, Any]:
        expressions = [{"key": k, "operator": "In", "values": [v]} for k, v in pairs]
        return {"matchExpressions": expressions}

    found = node("a", labels={"x": "1", "y": "2"})
    assert why(found, node_affinity_terms=[term(("x", "0")), term(("y", "2"))]) is None
    said = why(found, node_affinity_terms=[term(("x", "1"), ("y", "0"))])
    assert said == "outside the required node affinity"
    assert why(found, node_affinity_terms=[{}]) == said


def test_fields_match_the_nodes_name(node: Make) -> None:
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}
    assert why(node("a"), node_affinity_terms=[term]) is None
    assert why(node("b"), node_affinity_terms=[term]) is not None


def test_an_unknown_operator_is_refused(node: Make) -> None:
    term = {"matchExpressions": [{"key": "n", "operator": "Like", "values": ["1"]}]}
    with pytest.raises(ValueError, match="no operator 'Like'"):
        why(node("a", labels={"n": "1"}), node_affinity_terms=[term])


TAINT = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("toleration", "fits"),
    [
        ({"key": "gpu", "operator": "Exists"}, True),
        ({"operator": "Exists"}, True),
        ({"key": "gpu", "value": "yes"}, True),
        ({"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}, True),
        ({"key": "gpu", "value": "no"}, False),
        ({"key": "gpu", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "cpu", "operator": "Exists"}, False),
    ],
)
def test_tolerations(node: Make, toleration: dict[str, str], fits: bool) -> None:
    found = node("a", taints=[TAINT])
    assert why(found) == "with the taint gpu=yes:NoSchedule"
    assert (why(found, tolerations=[toleration]) is None) is fits


def test_a_pod_that_would_be_evicted_later_does_not_go_there(node: Make) -> None:
    found = node("a", taints=[{"key": "gone", "effect": "NoExecute"}])
    for_a_while = {"key": "gone", "operator": "Exists", "tolerationSeconds": 30}
    for_ever = {"key": "gone", "operator": "Exists"}
    assert why(found, tolerations=[for_a_while]) == "with the taint gone:NoExecute"
    assert why(found, tolerations=[for_ever]) is None


def test_cordoned_and_unready_nodes_get_nothing_new(node: Make) -> None:
    assert why(node("a", cordoned=True)) == "cordoned"
    assert why(node("a", ready=False)) == "not ready"
