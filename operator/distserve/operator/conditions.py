"""Conditions: facts become `status.conditions`, and what changed in them becomes events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from distserve.api.conditions import Condition, ProgressingReason
from distserve.operator.model import Event, Object

MESSAGE_CHARACTERS: Final = 2000
"""Longer ones are cut: they are to be read in a terminal."""
EVENT_CHARACTERS: Final = 1000
"""The API server refuses events with a longer note than 1 kB."""
TOLD: Final = (
    Condition.ACCEPTED,
    Condition.PLANNED,
    Condition.PLACED,
    Condition.FABRIC_VERIFIED,
    Condition.PROGRESSING,
    Condition.DEGRADED,
    Condition.FAILED,
    Condition.READY,
)
"""Conditions whose changes are told as events; the others only say which part it is."""
TOLD_AT_ONCE: Final = (Condition.ACCEPTED, Condition.PLANNED, Condition.PLACED, Condition.FAILED)
"""Those that are news when they are bad from the start; a new deployment cannot be ready yet."""
STUCK: Final = (ProgressingReason.NO_ROOM_FOR_SURGE, ProgressingReason.DEADLINE_EXCEEDED)
BAD_WHEN_TRUE: Final = frozenset({Condition.DEGRADED, Condition.FAILED})


@dataclass(frozen=True)
class Fact:
    """What is true now. None: not known yet."""

    holds: bool | None
    reason: str
    message: str = ""

    @property
    def status(self) -> str:
        return "Unknown" if self.holds is None else str(self.holds)


Facts = Mapping[Condition, Fact]


def merged(
    live: Iterable[Object], facts: Facts, generation: int, now: float, keep: bool = False
) -> list[Object]:
    """The new list in a fixed order. A transition's time moves only with the status.

    `keep` leaves conditions of which there is no fact as they are; else they go.
    """
    before = {found["type"]: found for found in live}
    conditions = []
    for condition in Condition:
        old = before.pop(condition.value, None)
        if condition in facts:
            conditions.append(_entry(condition, facts[condition], old, generation, now))
        elif old is not None and keep:
            conditions.append(old)
    return conditions


def _entry(
    condition: Condition, fact: Fact, old: Object | None, generation: int, now: float
) -> Object:
    changed = old is None or old["status"] != fact.status
    return {
        "type": condition.value,
        "status": fact.status,
        "reason": str(fact.reason),
        "message": _short(fact.message, MESSAGE_CHARACTERS),
        "lastTransitionTime": timestamp(now)
        if old is None or changed
        else old["lastTransitionTime"],
        "observedGeneration": generation,
    }


def transitions(before: Iterable[Object], after: Iterable[Object]) -> tuple[Event, ...]:
    """An event for each condition that turned, and for bad news that are others now."""
    old = {found["type"]: (found["status"], found["reason"]) for found in before}
    events = []
    for found in after:
        condition, status, reason = found["type"], found["status"], found["reason"]
        bad = status == ("True" if condition in BAD_WHEN_TRUE else "False")
        bad = bad and (condition != Condition.PROGRESSING or reason in STUCK)
        if condition == Condition.FABRIC_VERIFIED and status == "Unknown":
            continue  # Pods come and go, and are measured again.
        if condition in old:
            news = old[condition][0] != status or (bad and old[condition][1] != reason)
        else:
            news = bad and condition in TOLD_AT_ONCE
        if news and condition in TOLD:
            message = found["message"] or f"{condition} is {status}"
            kind: Literal["Normal", "Warning"] = "Warning" if bad else "Normal"
            events.append(Event(kind, reason, _short(message, EVENT_CHARACTERS)))
    return tuple(events)


def find(conditions: Iterable[Object], condition: Condition) -> Object | None:
    return next((c for c in conditions if c["type"] == condition.value), None)


def timestamp(now: float) -> str:
    return datetime.fromtimestamp(int(now), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds(text: Any) -> float:
    """Since the epoch; 0 where there is no time."""
    return datetime.fromisoformat(str(text)).timestamp() if text else 0.0


def _short(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: characters - 3]}..."
