"""Kueue's kinds are looked at, and may be, only where that was asked for."""

import argparse
from typing import Any

import pytest

from distserve.cli import operator as command

GROUP = "kueue.x-k8s.io"


def rights(rendered: Any, kind: str) -> dict[str, list[str]]:
    """Of Kueue's resources: its verbs."""
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
    return str(parser.parse_args(rendered.container["args"]).kueue)


READS = ["get", "list", "watch"]
OFFERED = {"resourceflavors": READS, "workloadpriorityclasses": READS}
OWN = {"workloads": ["create", "delete", *READS], "workloads/status": ["patch"]}


def test_it_is_off(render: Any) -> None:
    found = render({})
    assert said(found) == "off"
    assert rights(found, "ClusterRole") == {} == rights(found, "Role")


def test_it_gets_just_what_it_needs(render: Any) -> None:
    found = render({"kueue": {"enabled": True}})
    assert said(found) == "on"
    assert rights(found, "ClusterRole") == OFFERED | OWN


def test_in_its_namespaces_alone(render: Any) -> None:
    found = render({"kueue": {"enabled": True}, "namespaces": ["a"]})
    assert rights(found, "ClusterRole") == OFFERED
    assert rights(found, "Role") == OWN


@pytest.mark.parametrize("wrong", [{"enabled": "yes"}, {"enabled": True, "queue": "a"}])
def test_other_words_are_refused(render: Any, wrong: Any) -> None:
    with pytest.raises(Exception, match="kueue"):
        render({"kueue": wrong})
