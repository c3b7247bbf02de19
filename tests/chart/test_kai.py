"""KAI's kinds are looked at, and may be, only where that was asked for."""

import argparse
from typing import Any

import pytest

from distserve.cli import operator as command

GROUP = "scheduling.run.ai"


def rights(rendered: Any, kind: str) -> dict[str, list[str]]:
    """Of KAI's resources: its verbs."""
    return {
        resource: rule["verbs"]
        for one in rendered.all(kind)
        for rule in one["rules"]
        if rule["apiGroups"] == [GROUP]
        for resource in rule["resources"]
    }


def said(rendered: Any) -> str:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return str(parser.parse_args(rendered.container["args"]).kai)


OFFERED = {"queues": ["get", "list", "watch"]}
OWN = {"podgroups": ["create", "delete", "get", "list", "patch", "watch"]}


def test_it_is_off(render: Any) -> None:
    found = render({})
    assert said(found) == "off"
    assert rights(found, "ClusterRole") == {} == rights(found, "Role")


def test_it_gets_just_what_it_needs(render: Any) -> None:
    found = render({"kai": {"enabled": True}})
    assert said(found) == "on"
    assert rights(found, "ClusterRole") == OFFERED | OWN


def test_in_its_namespaces_alone(render: Any) -> None:
    found = render({"kai": {"enabled": True}, "namespaces": ["a"]})
    assert rights(found, "ClusterRole") == OFFERED
    assert rights(found, "Role") == OWN


@pytest.mark.parametrize("wrong", [{"enabled": "yes"}, {"enabled": True, "queue": "a"}])
def test_other_words_are_refused(render: Any, wrong: Any) -> None:
    with pytest.raises(Exception, match="kai"):
        render({"kai": wrong})
