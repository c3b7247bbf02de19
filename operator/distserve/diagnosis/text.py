"""A diagnosis as a person reads it, and as a program does."""

from dataclasses import asdict
from typing import Any

from distserve.diagnosis.diagnose import Diagnosis
from distserve.diagnosis.facts import Facts, Object, event_text, event_time, regards

EVENTS = 6


def as_text(facts: Facts, found: Diagnosis) -> str:
    lines = [f"{facts.namespace}/{facts.name} {found.headline}"]
    for number, finding in enumerate(found.findings, 1):
        lines.append("")
        lines.append(f"{number}. {finding.what}")
        lines += [f"     {line}" for line in finding.evidence]
        lines.append(f"   -> {finding.cure}")
    conditions = facts.status.get("conditions", [])
    if conditions:
        lines += ["", "conditions"]
        lines += [f"  {_condition(one)}" for one in conditions]
    if warnings := _warnings(facts):
        lines += ["", "warnings of the last hour, newest last"]
        lines += [f"  {line}" for line in warnings]
    if facts.events is None:
        lines += ["", "events may not be read: the role `view` allows it"]
    return "\n".join(lines)


def as_document(facts: Facts, found: Diagnosis) -> dict[str, Any]:
    return {
        "namespace": facts.namespace,
        "name": facts.name,
        "serves": found.serves,
        "headline": found.headline,
        "findings": [asdict(one) for one in found.findings],
        "conditions": list(facts.status.get("conditions", [])),
        "eventsRead": facts.events is not None,
    }


def _condition(condition: Object) -> str:
    head = f"{condition['type']:<14} {condition['status']:<8} {condition['reason']}"
    message = condition.get("message", "")
    return f"{head}: {message}" if message else head


def _warnings(facts: Facts) -> list[str]:
    """One line per reason and object."""
    last: dict[tuple[str, str, str], str] = {}
    for event in facts.events or ():
        if event.get("type") != "Warning":
            continue
        key = (*regards(event), event.get("reason", ""))
        last.pop(key, None)
        time = event_time(event)[11:19]
        last[key] = f"{time} {key[0].lower()}/{key[1]} {key[2]}: {event_text(event)}"
    return list(last.values())[-EVENTS:]
