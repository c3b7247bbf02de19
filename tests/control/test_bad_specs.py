"""Users' mistakes, each told by name: refused when applied, or `Accepted=False`; none of them
brings a reconcile down."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.cluster.cluster import Cluster
from tools.cluster.conditions import conditions
from tools.cluster.errors import CommandFailed

Start = Callable[..., Any]
ROWS = yaml.safe_load(Path(__file__).with_name("bad_specs.yaml").read_text())
REFUSED = [row for row in ROWS if "refused" in row]
STORED = [row for row in ROWS if "accepted" in row]


def mistaken(sample: Callable[..., dict[str, Any]], name: str, row: Any) -> dict[str, Any]:
    document = copy.deepcopy(sample(name))
    _merge(document["spec"], row["spec"])
    return document


def _merge(into: dict[str, Any], change: Mapping[str, Any]) -> None:
    for name, value in change.items():
        if value is None:
            into.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value


def test_the_table_has_what_it_should() -> None:
    assert len(ROWS) >= 40 and len(REFUSED) + len(STORED) == len(ROWS)
    assert len({row["name"] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row["name"])
def test_the_api_server_refuses(
    crd: Cluster, sample: Callable[..., dict[str, Any]], row: Any
) -> None:
    text = json.dumps(mistaken(sample, "bad", row))
    create = ("create", "--dry-run=server", "--validate=strict", "--filename=-")
    with pytest.raises(CommandFailed) as refused:
        crd.kubectl(*create, stdin=text)
    assert row["refused"] in str(refused.value)


def test_what_is_stored_ends_in_a_condition(
    crd: Cluster,
    namespace: str,
    sample: Callable[..., dict[str, Any]],
    start_distserve: Start,
    subtests: pytest.Subtests,
) -> None:
    operator = start_distserve()
    operator.wait_until_ready()
    names = {f"bad-{number}": row for number, row in enumerate(STORED)}
    for name, row in names.items():
        crd.kubectl(
            "create", "--validate=strict", f"--namespace={namespace}", "--filename=-",
            stdin=json.dumps(mistaken(sample, name, row)),
        )  # fmt: skip

    def accepted(name: str) -> Any:
        found = conditions(crd.get("dsd", name, namespace))
        return found.get("Accepted", {"status": "Unknown", "message": ""})

    for name, row in names.items():
        with subtests.test(row["name"]):
            operator.wait_until(
                f"a verdict on {row}", lambda name=name: accepted(name)["status"] != "Unknown"
            )
            verdict = accepted(name)
            assert verdict["status"] == "False", verdict
            assert row["accepted"] in verdict["message"]
            assert "\n" not in verdict["message"]
    crashed = [line for line in operator.log.read_text().splitlines() if "Traceback" in line]
    assert not crashed
    assert not crd.get("statefulsets", namespace=namespace)["items"]
