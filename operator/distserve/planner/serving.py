"""What a deployment adds to the steps of its engines, as it was measured on one.

A profile's step times are the engine's own, alone on its machine. A client's times also hold the
gateway, HTTP and the hand-over between instances, and what instances that share a machine take from
each other. `distserve profile serving` measures a deployment from outside, `load_fit` explains what
it saw; `serving_fit` of a server that does not tell its requests' stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import isfinite
from typing import Any

from distserve.planner.pace import Pace
from distserve.planner.spread import WAYS, Spread
from distserve.strategies.time_model import Coefficients, TimeModel

_SERIES: Mapping[str, type[Spread] | type[Pace]] = {
    "way_spread": Spread,
    "prefill_spread": Spread,
    "pace": Pace,
}


@dataclass(frozen=True, kw_only=True)
class Serving:
    """All 0 where nothing was measured: then a deployment costs what its steps do."""

    request_ms: float = 0.0
    """From the client to the engine's queue and from its first token back, together."""
    busy_request_ms: float = 0.0
    """That these take longer while others decode; below 0 where they pass while a step does, for
    which a request waits anyway."""
    stream_request_ms: float = 0.0
    """Besides, for each of these others; in the mean over the instances that decode."""
    prompt_ms: float = 0.0
    """That a prefill step takes longer for each prompt in it."""
    prefill_step_longer: float = 0.0
    """Share by which what it takes whatever is in it is longer than in the engine alone; or below
    0."""
    prefill_longer: float = 0.0
    """The same of what its tokens take: they meet other work in the machine's caches."""
    handover_ms: float = 0.0
    """Between a prefill's end and the moment when its KV can be decoded from elsewhere, with the
    transfer that was measured, where nobody decodes: else the engine there hears of it when its
    step has ended. A plan adds it to the transfer over its own network."""
    busy_handover_ms: float = 0.0
    """Besides, before the news of it has come to an engine that decodes."""
    decode_longer: float = 0.0
    """Share by which a decode step takes longer than in the engine alone; below 0 where the machine
    was slower when the engine was measured."""
    step_ms: float = 0.0
    """That each decode step takes longer than the engine alone needs for it."""
    stream_ms: float = 0.0
    """That it takes longer for each request in it, whose token has to be told."""
    padding_ms: float = 0.0
    """That it takes longer for each token that a context is shorter than the longest of the batch:
    of engines that compute them at one length."""
    coming_ms: float = 0.0
    """That a request which comes to the deployment costs those who decode in it, whatever its
    length: they share a core with what receives it."""
    joining_ms: float = 0.0
    """That it costs them besides when it joins them."""
    crowding: float = 0.0
    """That both are less the more streams decode: of `n`, `1 / (1 + crowding * (n - 1))` of what
    they are beside one. Whoever tells many streams their tokens is awake anyway."""
    decode_slowed: float = 0.0
    """Share by which a decode step takes longer while a neighbour prefills."""
    prefill_slowed: float = 0.0
    """Share by which a prefill takes longer while a neighbour decodes."""
    way_spread: Spread = field(default_factory=Spread)
    """Of requests' ways about their mean."""
    prefill_spread: Spread = field(default_factory=Spread)
    """Of prefill steps about what all this says of them."""
    pace: Pace = field(default_factory=Pace)
    """How much longer steps took than all this says, second by second."""

    def __bool__(self) -> bool:
        return self != Serving()

    def way_ms(self, request: int, streams: float) -> float:
        """Of a request, to its queue and back, while so many decode."""
        busy_ms = self.busy_request_ms + self.stream_request_ms * streams if streams else 0.0
        return (self.request_ms + busy_ms) * self.way_spread.at(request, WAYS)

    def among(self, streams: float) -> float:
        """Share of what a request's coming and joining cost that is left among so many streams."""
        return 1 / (1 + self.crowding * max(0.0, streams - 1))

    def as_entry(self) -> dict[str, Any]:
        entry: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in _SERIES:
            series = entry.pop(name)
            entry |= {name: series.as_entry()} if series else {}
        return entry

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> Serving:
        """Raises TypeError and ValueError for what is none."""
        unknown = entry.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(
                f"serving has {', '.join(sorted(unknown))}, of another release: measure again with "
                "`distserve profile serving`, and fit"
            )
        terms: dict[str, Any] = {
            name: float(value) for name, value in entry.items() if name not in _SERIES
        }
        if "prefill_longer" in terms:  # of a release that knew one share of both
            terms.setdefault("prefill_step_longer", terms["prefill_longer"])
        for name, value in terms.items():
            least = {"busy_request_ms": -terms.get("request_ms", 0.0)}.get(name, 0.0)
            possible = value > -1 if name.endswith("_longer") else value >= least
            if not (possible and isfinite(value)):
                raise ValueError(f"serving's {name} is {value:g}, which cannot be")
        for name in entry.keys() & _SERIES.keys():
            terms[name] = _SERIES[name].from_entry(entry[name])
        return cls(**terms)

    def applied(self, times: TimeModel) -> TimeModel:
        """Step times as they pass in a deployment, beside nobody."""
        shares = self.prefill_step_longer, self.prefill_longer, self.decode_longer
        if not (self.step_ms or self.stream_ms or any(shares)):
            return times

        def longer(by: float, formula: Coefficients) -> Coefficients:
            return Coefficients(*((1 + by) * value for value in formula))

        def served(decode: Coefficients) -> Coefficients:
            a, b, c = longer(self.decode_longer, decode)
            return Coefficients(a + self.step_ms, b, c + self.stream_ms)

        a, *by_tokens = times.prefill
        own = longer(self.prefill_longer, Coefficients(0.0, *by_tokens))
        return TimeModel(
            own._replace(a=(1 + self.prefill_step_longer) * a),
            served(times.decode_small),
            served(times.decode_large),
            times.large_batch,
            tuple((border, served(decode)) for border, decode in times.decode_larger),
        )
