"""What counts as a difference, in small; against a real API server in test_difference_cluster."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distserve.operator.difference import difference, stamped

SAME: dict[str, tuple[Any, Any]] = {
    "what others added": ({"a": 1}, {"a": 1, "b": 2}),
    "a quantity in other words": (
        {"requests": {"cpu": "0.5", "memory": "1024Mi"}},
        {"requests": {"cpu": "500m", "memory": "1Gi"}},
    ),
    "a quantity as a number": ({"limits": {"cpu": 2}}, {"limits": {"cpu": "2"}}),
    "an empty list that is not served": ({"a": [], "b": {}, "c": "", "d": None}, {}),
    "false that is not served": ({"volumeMounts": [{"mountPath": "/a", "readOnly": False}]},
                                 {"volumeMounts": [{"mountPath": "/a"}]}),
    "a container of somebody else": (
        {"containers": [{"name": "engine", "image": "a"}]},
        {"containers": [{"name": "proxy"}, {"name": "engine", "image": "a", "tty": True}]},
    ),
    "the ports of a Service": (
        {"ports": [{"port": 80, "targetPort": "http"}]},
        {"ports": [{"port": 80, "targetPort": "http", "protocol": "TCP"}]},
    ),
    "the port of a NetworkPolicy": (
        {"ports": [{"port": 80, "protocol": "TCP"}]}, {"ports": [{"port": 80, "protocol": "TCP"}]},
    ),
    "another owner": (
        {"ownerReferences": [{"uid": "1", "controller": True}]},
        {"ownerReferences": [{"uid": "2"}, {"uid": "1", "controller": True}]},
    ),
}  # fmt: skip
OTHER: dict[str, tuple[Any, Any, str]] = {
    "another value": ({"a": {"b": 1}}, {"a": {"b": 2}}, "a.b"),
    "a field that is gone": ({"a": {"b": 1}}, {"a": {}}, "a.b"),
    "a word for a number": ({"port": 8000}, {"port": "http"}, "port"),
    "zero that is served": ({"replicas": 0}, {"replicas": 1}, "replicas"),
    "a security setting that was taken away": (
        {"automountServiceAccountToken": False}, {}, "automountServiceAccountToken",
    ),
    "another item": ({"args": ["a", "b"]}, {"args": ["a", "c"]}, "args[1]"),
    "an item more": ({"args": ["a"]}, {"args": ["a", "b"]}, "args"),
    "our container is gone": (
        {"containers": [{"name": "engine"}]}, {"containers": [{"name": "x"}]},
        "containers[0].name",
    ),
    "another amount": ({"requests": {"cpu": "1"}}, {"requests": {"cpu": "1m"}}, "requests.cpu"),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME)
def test_does_not_matter(case: str) -> None:
    assert difference(*SAME[case]) is None


@pytest.mark.parametrize("case", OTHER)
def test_names_the_field(case: str) -> None:
    wanted, live, path = OTHER[case]
    assert difference(wanted, live) == path


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "env", "ports", "port", "requests"]), inner)
    ),
    max_leaves=12,
)


@given(JSON)
def test_equals_itself(value: Any) -> None:
    assert difference({"spec": value}, {"spec": value}) is None


@given(JSON, JSON)
def test_what_changed_is_found_by_its_hash(old: Any, new: Any) -> None:
    """Also where the old object has all that the new one asks for, and more."""
    live = stamped({"metadata": {"name": "a"}, "spec": old})
    wanted = stamped({"metadata": {"name": "a"}, "spec": new})
    if json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True):
        assert difference(wanted, live) is None
    else:
        assert difference(wanted, live) is not None
