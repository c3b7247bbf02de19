"""Kubernetes' own PodGroups are looked at, and may be, only where that was asked for."""

import argparse
from typing import Any

import pytest

from distserve.cli import operator as command

OWN = {"create", "delete", "get", "list", "patch", "watch"}


def rights(rendered: Any) -> dict[str, set[str]]:
    """About PodGroups: kind of the role -> verbs."""
    return {
        one["kind"]: set(rule["verbs"])
        for one in (*rendered.all("ClusterRole"), *rendered.all("Role"))
        for rule in one["rules"]
        if rule["apiGroups"] == ["scheduling.k8s.io"] and "podgroups" in rule["resources"]
    }


def said(rendered: Any) -> str:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return str(parser.parse_args(rendered.container["args"]).gang_scheduling)


@pytest.mark.parametrize(
    ("values", "flag", "expected"),
    [
        ({}, "off", {}),
        ({"gangScheduling": {"enabled": True}}, "on", {"ClusterRole": OWN}),
        ({"gangScheduling": {"enabled": True}, "namespaces": ["a"]}, "on", {"Role": OWN}),
    ],
)
def test_it_gets_just_what_it_needs(
    render: Any, values: Any, flag: str, expected: dict[str, set[str]]
) -> None:
    found = render(values)
    assert said(found) == flag and rights(found) == expected


@pytest.mark.parametrize("wrong", [{"enabled": "yes"}, {"enabled": True, "queue": "a"}])
def test_other_words_are_refused(render: Any, wrong: Any) -> None:
    with pytest.raises(Exception, match="gangScheduling"):
        render({"gangScheduling": wrong})
