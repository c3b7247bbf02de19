"""The nouns of Prometheus' rules, and the documents in which it reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Document = dict[str, Any]

RUNBOOKS: Final = "docs/runbooks"
"""One page for each alert, in the project's checkout. Who publishes them elsewhere says so."""


@dataclass(frozen=True)
class Record:
    name: str
    expression: str
    labels: Mapping[str, str] = field(default_factory=dict)

    def document(self, runbooks: str = RUNBOOKS) -> Document:
        found: Document = {"record": self.name, "expr": self.expression}
        return found | ({"labels": dict(self.labels)} if self.labels else {})


@dataclass(frozen=True)
class Alert:
    name: str
    expression: str
    severity: str
    summary: str
    description: str
    """What it means and what to do first; the runbook has the rest."""
    lasting: str = "0m"
    labels: Mapping[str, str] = field(default_factory=dict)

    def document(self, runbooks: str = RUNBOOKS) -> Document:
        return {
            "alert": self.name,
            "expr": self.expression,
            "for": self.lasting,
            "labels": {**self.labels, "severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{runbooks.rstrip('/') or RUNBOOKS}/{self.name}.md",
            },
        }


Rule = Record | Alert


def rule_groups(name: str, rules: Sequence[Rule], runbooks: str = RUNBOOKS) -> Document:
    """A file of rules, and likewise the spec of a PrometheusRule."""
    return {"groups": [{"name": name, "rules": [rule.document(runbooks) for rule in rules]}]}
