"""Kinds of other schedulers are looked at, and may be, only where that was asked for."""

import argparse
from dataclasses import dataclass, field
from typing import Any

import pytest

from distserve.cli import operator as command

READS = ["get", "list", "watch"]
PODGROUPS = {"podgroups": ["create", "delete", "get", "list", "patch", "watch"]}
Rights = dict[str, list[str]]


@dataclass(frozen=True)
class Scheduler:
    value: str
    """Of the chart: its switch."""
    group: str
    own: Rights = field(default_factory=lambda: PODGROUPS)
    """In the namespaces of deployments."""
    offered: Rights = field(default_factory=lambda: {"queues": READS})
    """In the cluster."""
    always: Rights = field(default_factory=dict)
    """In the cluster, also without it."""

    @property
    def flag(self) -> str:
        return {"gangScheduling": "gang_scheduling"}.get(self.value, self.value)

    def rights(self, rendered: Any, kind: str) -> Rights:
        """Of the group's resources: the verbs."""
        found: Rights = {}
        for one in rendered.all(kind):
            for rule in one["rules"]:
                if rule["apiGroups"] == [self.group]:
                    found |= dict.fromkeys(rule["resources"], rule["verbs"])
        return found

    def said(self, rendered: Any) -> str:
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        return str(getattr(parser.parse_args(rendered.container["args"]), self.flag))


SCHEDULERS = (
    Scheduler(
        "kueue",
        "kueue.x-k8s.io",
        own={"workloads": ["create", "delete", *READS], "workloads/status": ["patch"]},
        offered={"resourceflavors": READS, "workloadpriorityclasses": READS},
    ),
    Scheduler("volcano", "scheduling.volcano.sh"),
    Scheduler("kai", "scheduling.run.ai"),
    Scheduler("gangScheduling", "scheduling.k8s.io", offered={}, always={"priorityclasses": READS}),
)


@pytest.fixture(params=SCHEDULERS, ids=lambda one: one.value)
def scheduler(request: pytest.FixtureRequest) -> Scheduler:
    found: Scheduler = request.param
    return found


def test_it_is_off(render: Any, scheduler: Scheduler) -> None:
    found = render({})
    assert scheduler.said(found) == "off"
    assert scheduler.rights(found, "ClusterRole") == scheduler.always
    assert scheduler.rights(found, "Role") == {}


def test_it_gets_just_what_it_needs(render: Any, scheduler: Scheduler) -> None:
    found = render({scheduler.value: {"enabled": True}})
    assert scheduler.said(found) == "on"
    expected = scheduler.always | scheduler.offered | scheduler.own
    assert scheduler.rights(found, "ClusterRole") == expected


def test_in_its_namespaces_alone(render: Any, scheduler: Scheduler) -> None:
    found = render({scheduler.value: {"enabled": True}, "namespaces": ["a"]})
    assert scheduler.rights(found, "ClusterRole") == scheduler.always | scheduler.offered
    assert scheduler.rights(found, "Role") == scheduler.own


@pytest.mark.parametrize("wrong", [{"enabled": "yes"}, {"enabled": True, "queue": "a"}])
def test_other_words_are_refused(render: Any, scheduler: Scheduler, wrong: Any) -> None:
    with pytest.raises(Exception, match=scheduler.value):
        render({scheduler.value: wrong})
