"""What the operator would do with a deployment, played through to its end on an inventory.

`distserve plan --cluster` prints it. Each decision is the operator's own: which unit is next
(`rollout`), and where it goes (`distserve.placement`). What it plays is the world: nodes stay as
they are, pods start at once, nobody else comes or goes.

    what runs now --next_step--> delete, replace, create --place--> what runs then --> ... --> end
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from distserve.operator.rollout import Rules, UnitState, next_step
from distserve.placement.decisions import Decision, Placed, Reason
from distserve.placement.inventory import Inventory
from distserve.placement.placing import place
from distserve.placement.requests import Domain, Enforcement, UnitId, UnitRequest


class Act(StrEnum):
    KEEP = "keep"
    CREATE = "create"
    REPLACE = "replace"
    DELETE = "delete"


@dataclass(frozen=True)
class Standing:
    """A unit that is there."""

    id: UnitId
    revision: str
    domain: Domain | None = None
    """Where its StatefulSets say that it is."""
    pods: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Move:
    """One thing that would be done with one unit."""

    step: int
    """Moves of one step are made together. 0: it is so already."""
    act: Act
    unit: str
    fits: bool = True
    domain: Domain | None = None
    nodes: Mapping[str, str] = field(default_factory=dict)
    """Pod -> node."""
    reason: str = ""
    message: str = ""
    """Why it does not fit, or what to know."""


@dataclass(frozen=True)
class Course:
    moves: tuple[Move, ...]
    fits: bool
    """Whether every unit that the spec wants has its place and its revision at the end."""


Ask = Callable[[int, str], UnitRequest]
"""(unit number, revision) -> what it asks for."""


@dataclass
class _Play:
    inventory: Inventory
    rules: Rules
    request: Ask
    now: float
    standing: dict[int, Standing]
    moves: list[Move] = field(default_factory=list)
    step: int = 0
    wanted: Mapping[int, str] = field(default_factory=dict)
    """Unit number -> revision, by the last step."""
    refused: dict[int, Move] = field(default_factory=dict)
    """Units without room, since something last made some."""

    def run(self) -> Course:
        for _, unit in sorted(self.standing.items()):
            seats = self._seats(unit.id)
            self.moves.append(Move(0, Act.KEEP, unit.id.unit, True, unit.domain, seats))
        # Each unit is made at most once as an extra one, replaced, changed and deleted.
        for _ in range(4 * (len(self.standing) + self.rules.units + self.rules.surge) + 4):
            if not self._advance():
                break
        target = self.rules.target
        fits = all(
            number in self.standing
            and (self.rules.paused or self.standing[number].revision == target)
            for number in range(self.rules.units)
        ) and all(move.fits for move in self.moves)
        lacking = sorted((n, move) for n, move in self.refused.items() if n in self.wanted)
        self.moves += [replace(move, step=self.step + 1) for _, move in lacking]
        return Course(tuple(self.moves), fits)

    def _advance(self) -> bool:
        """One step. Returns whether another may follow."""
        states = {n: UnitState(u.revision, True, False) for n, u in self.standing.items()}
        self.wanted = wanted = next_step(states, self.rules, frozenset(self.refused)).revisions
        before = len(self.moves)
        self.step += 1
        for number in sorted(self.standing.keys() - wanted.keys()):
            self._delete(number)
        for number in sorted(self.standing.keys() & wanted.keys()):
            if self._differs(number, wanted[number]):
                self._replace(number, wanted[number])
        if len(self.moves) > before:
            self.refused.clear()  # Room may have come.
        new = [n for n in sorted(wanted.keys() - self.standing.keys()) if n not in self.refused]
        asked = [self.request(n, wanted[n]) for n in new]
        for number, request, decision in zip(new, asked, self._place(asked), strict=True):
            move = self._move(Act.CREATE, request, decision)
            if move.fits:
                self._stand(number, wanted[number], move)
            else:
                self.refused[number] = move
        if len(self.moves) == before:
            self.step -= 1
        return len(self.moves) > before or bool(self.refused.keys() & set(new))

    def _differs(self, number: int, revision: str) -> bool:
        unit = self.standing[number]
        if unit.revision != revision:
            return True
        if revision != self.rules.target or self.rules.paused:
            return False
        return unit.pods != frozenset(self.request(number, revision).pod_names)

    def _delete(self, number: int) -> None:
        unit = self.standing.pop(number)
        self.inventory.vacate(unit.id)
        self.moves.append(Move(self.step, Act.DELETE, unit.id.unit, domain=unit.domain))

    def _replace(self, number: int, revision: str) -> None:
        """In its domain, which the unit's StatefulSets keep; where it no longer fits there, it is
        taken back after gangTimeout and placed anew."""
        old = self.standing.pop(number)
        self.inventory.vacate(old.id)
        request = self.request(number, revision)
        (decision,) = self._place([replace(request, within=old.domain)])
        if isinstance(decision, Placed) or old.domain is None:
            move = self._move(Act.REPLACE, request, decision)
        else:
            why = decision.message
            (decision,) = self._place([request])
            move = self._move(Act.REPLACE, request, decision)
            if move.fits:
                note = f"after topology.gangTimeout, since it no longer fits where it is: {why}"
                move = replace(move, message=note)
        self._stand(number, revision, move)

    def _stand(self, number: int, revision: str, move: Move) -> None:
        request = self.request(number, revision)
        if move.fits:
            self.inventory.reserve(request, move.nodes)
        pods = frozenset(request.pod_names)
        self.standing[number] = Standing(request.id, revision, move.domain, pods)
        self.moves.append(move)

    def _place(self, requests: list[UnitRequest]) -> list[Decision]:
        """In the order of the requests; Preferred ones as if they had waited long enough, where
        they would have to."""
        found = {one.unit: one for one in place(self.inventory, requests, self.now)}
        for one in requests:
            if not isinstance(found[one.id], Placed) and one.enforcement is Enforcement.PREFERRED:
                taken = {p.unit: p.nodes for p in found.values() if isinstance(p, Placed)}
                others = [other for other in requests if other.id in taken]
                for other in others:
                    self.inventory.reserve(other, taken[other.id])
                later = self.now + one.relax_after_seconds * (len(one.levels) + 1)
                (found[one.id],) = place(self.inventory, [one], later)
                for other in others:
                    self.inventory.release(other.id)
        return [found[one.id] for one in requests]

    def _move(self, act: Act, request: UnitRequest, decision: Decision) -> Move:
        name = request.id.unit
        if not isinstance(decision, Placed):
            return Move(
                self.step, act, name, False, reason=decision.reason, message=decision.message
            )
        domain, level = decision.domain, request.pack_within
        wide = level is not None and (domain is None or domain.level != level)
        note = f"after topology.relaxAfter: no {level} domain has room for it" if wide else ""
        return Move(self.step, act, name, True, domain, decision.nodes, message=note)

    def _seats(self, unit: UnitId) -> dict[str, str]:
        record = self.inventory.units.get(unit)
        return {pod: seat.node for pod, seat in record.seats.items()} if record else {}


def course_ahead(
    inventory: Inventory,
    rules: Rules,
    request: Ask,
    now: float,
    standing: Mapping[int, Standing] | None = None,
) -> Course:
    """Plays until nothing more would be done. Changes `inventory` to how it would be then."""
    return _Play(inventory, rules, request, now, dict(standing or {})).run()


def larger_than_domain(course: Course) -> Iterator[Move]:
    return (move for move in course.moves if move.reason == Reason.UNIT_LARGER_THAN_DOMAIN)
