"""Fits a hardware profile to the measurements of a profile database.

The fit minimises the relative error, so that short steps count as much as long ones, over
coefficients that are not negative: more work never makes a step shorter. How far to believe it is
told by points that the fit did not see: each fifth of the records in turn is left out and
predicted from the rest.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from distserve.planner import least_squares
from distserve.planner.errors import InvalidProfile
from distserve.planner.load_fit import fit_loads
from distserve.planner.loads import read_loads
from distserve.planner.records import (
    Origin,
    Record,
    of_one_origin,
    read_records,
    read_serving,
)
from distserve.planner.result import quantile
from distserve.planner.serving import Serving
from distserve.planner.serving_fit import fit_serving
from distserve.strategies.time_model import Coefficients, TimeModel

LARGE_BATCH = 95
"""DistServe's border between its two decode fits, where no better one is found."""
_HELPS = 0.95, 0.5, 0.5
"""What each further border has to leave less than, of the squared errors without it: what helps no
more than noise is none, and kernels that change their way change times by more."""
FEWEST = 3
"""Records of each formula: it has three coefficients."""
_FOLDS = 5

Row = tuple[float, float, float]


@dataclass(frozen=True)
class Errors:
    """Relative errors of predicted times, as shares of the measured ones."""

    mean: float
    median: float
    p90: float
    worst: float

    @classmethod
    def of(cls, errors: Sequence[float]) -> Errors:
        ordered = sorted(errors)
        return cls(fmean(ordered), quantile(ordered, 50), quantile(ordered, 90), ordered[-1])


@dataclass(frozen=True)
class Quality:
    """Of the formulas of one phase, on the records that they were fitted to and on others."""

    records: int
    seen: Errors
    held_out: Errors | None
    """None where there are too few records to leave some out."""


@dataclass(frozen=True)
class Fit:
    """A time model, how good it is, and what a deployment adds where that was measured."""

    times: TimeModel
    prefill: Quality
    decode: Quality
    serving: Serving = field(default_factory=Serving)
    origin: Origin = field(default_factory=Origin)
    measured: Sequence[Record] = ()
    """What it was fitted to."""

    @property
    def records(self) -> int:
        return len(self.measured)

    @property
    def prefill_error(self) -> float:
        return self.prefill.seen.mean

    @property
    def decode_error(self) -> float:
        return self.decode.seen.mean


def fit(records: Sequence[Record], large_batch: int | None = None) -> Fit:
    """Fit one model at one TP degree.

    Decode is fitted apart from `large_batch` requests on; None looks for the borders with the least
    error. What lies between two without enough records takes the fit of all.
    """
    prefills = [r for r in records if r.prefill_ms is not None]
    decodes = [r for r in records if r.decode_ms is not None]
    for phase, found in (("prefill", prefills), ("decode", decodes)):
        if len(found) < FEWEST:
            raise InvalidProfile(
                f"{len(found)} records of {phase} are too few to fit; measure at least {FEWEST} "
                "batches (a larger --grid)"
            )

    def predict_prefill(part: Sequence[Record]) -> Callable[[Record], float]:
        coefficients = _least_squares(part, _prefill_row, _prefill_ms)
        return lambda record: _product(coefficients, _prefill_row(record))

    def predict_decode(part: Sequence[Record]) -> Callable[[Record], float]:
        return _predicted(_decode(part, borders), borders)

    borders = _borders(decodes) if large_batch is None else (large_batch,)
    small, large, *larger = _decode(decodes, borders)
    times = TimeModel(
        _least_squares(prefills, _prefill_row, _prefill_ms),
        small,
        large,
        borders[0],
        tuple(zip(borders[1:], larger, strict=True)),
    )
    return Fit(
        times,
        _quality(prefills, predict_prefill, _prefill_ms),
        _quality(decodes, predict_decode, _decode_ms),
        measured=records,
    )


def _quality(
    records: Sequence[Record],
    fitted: Callable[[Sequence[Record]], Callable[[Record], float]],
    measured: Callable[[Record], float],
) -> Quality:
    def errors(predict: Callable[[Record], float], of: Sequence[Record]) -> list[float]:
        return [abs(predict(record) / measured(record) - 1) for record in of]

    seen = Errors.of(errors(fitted(records), records))
    if len(records) < FEWEST * 2:
        return Quality(len(records), seen, None)
    # By position in the grid's order, so that every fold has small and large batches.
    ordered = sorted(records, key=lambda r: (r.batch_size, r.input_tokens))
    held_out: list[float] = []
    for fold in range(min(_FOLDS, len(ordered) - FEWEST)):
        rest = [r for index, r in enumerate(ordered) if index % _FOLDS != fold]
        held_out += errors(fitted(rest), ordered[fold::_FOLDS])
    return Quality(len(records), seen, Errors.of(held_out))


def _prefill_row(record: Record) -> Row:
    tokens = record.input_tokens
    return 1.0, record.batch_size * tokens, record.batch_size * tokens**2


def _prefill_ms(record: Record) -> float:
    assert record.prefill_ms is not None
    return record.prefill_ms


def _decode_row(record: Record) -> Row:
    return 1.0, record.decode_context_tokens, record.batch_size


def _decode_ms(record: Record) -> float:
    assert record.decode_ms is not None
    return record.decode_ms


def _borders(records: Sequence[Record]) -> tuple[int, ...]:
    """The batch sizes from which on another fit helps; LARGE_BATCH where none does."""
    sizes = sorted({record.batch_size for record in records})
    found: tuple[int, ...] = (LARGE_BATCH,)
    least = _decode_error(records, found)
    for count, helps in enumerate(_HELPS, 1):
        tried = [(_decode_error(records, more), more) for more in _apart(sizes, count)]
        error, more = min(tried, default=(least, found))
        if error >= least * helps - 1e-9:
            break
        found, least = more, error
    return found


def _apart(sizes: Sequence[int], count: int) -> Iterator[tuple[int, ...]]:
    """So many borders among these sizes. Each part has two, to tell a slope from a constant."""
    for borders in combinations(sizes, count):
        parts = Counter(bisect_right(borders, size) for size in sizes)
        if all(parts[nth] >= 2 for nth in range(count + 1)):
            yield borders


def _decode_error(records: Sequence[Record], borders: tuple[int, ...]) -> float:
    predict = _predicted(_decode(records, borders), borders)
    return fmean((predict(record) / _decode_ms(record) - 1) ** 2 for record in records)


def _decode(records: Sequence[Record], borders: tuple[int, ...]) -> list[Coefficients]:
    parts: list[list[Record]] = [[] for _ in (*borders, None)]
    for record in records:
        parts[bisect_right(borders, record.batch_size)].append(record)
    return [
        _least_squares(part if len(part) >= FEWEST else records, _decode_row, _decode_ms)
        for part in parts
    ]


def _predicted(fits: Sequence[Coefficients], borders: tuple[int, ...]) -> Callable[[Record], float]:
    return lambda record: _product(
        fits[bisect_right(borders, record.batch_size)], _decode_row(record)
    )


def _product(coefficients: Coefficients, row: Row) -> float:
    return sum(c * x for c, x in zip(coefficients, row, strict=True))


def _least_squares(
    records: Iterable[Record], row: Callable[[Record], Row], measured: Callable[[Record], float]
) -> Coefficients:
    records = list(records)
    return Coefficients(
        *least_squares.relative([row(r) for r in records], [measured(r) for r in records])
    )


def fit_database(
    path: Path | str,
    model: str | None = None,
    wanted: Mapping[str, str] | None = None,
    large_batch: int | None = None,
) -> dict[tuple[str, int], Fit]:
    """Fit every model and tensor parallel degree that the database holds, by (model, TP).

    Databases of other profilers do not name the model: there `model` is the name, elsewhere the
    one that is wanted. `wanted` chooses between devices, tags and the like, by fields of `Origin`.
    """
    records, serving = read_records(path), read_serving(path)
    if not records:
        raise InvalidProfile(f"{path} holds no usable records; run `distserve profile` first")
    named = any(record.origin.model for record in records)
    if not named and model is None:
        raise InvalidProfile(f"{path} does not say which model it is of; give --model NAME")
    asked = {**(wanted or {}), **({"model": model} if named and model else {})}
    origins = of_one_origin([record.origin for record in records], asked)
    loads = read_loads(path, origins)
    fits: dict[tuple[str, int], Fit] = {}
    for origin in sorted(origins, key=lambda o: o.model):
        mine = [record for record in records if record.origin == origin]
        for tp in sorted({record.tp for record in mine}):
            fitted = fit([record for record in mine if record.tp == tp], large_batch)
            busy = [row for row in loads if row.tp == tp and row.origin == origin]
            idle = [row for row in serving if row.tp == tp and row.origin == origin]
            times = fitted.times
            added = fit_loads(busy, times) if busy else fit_serving(idle, times)
            name = origin.model or model or ""
            fits[name, tp] = replace(fitted, serving=added, origin=origin)
    return fits


def profile_text(
    fits: Mapping[tuple[str, int], Fit], accelerator: dict[str, Any] | None = None
) -> str:
    """Fits by (model, TP) as the text of a profile file, which `load_profile` reads."""
    content: dict[str, Any] = {"accelerator": accelerator} if accelerator else {}
    for (model, tp), fitted in sorted(fits.items(), key=lambda item: item[0]):
        times = fitted.times
        entry: dict[str, Any] = {
            "decoding_large_small_bs_threshold": times.large_batch,
            "prefill": list(times.prefill),
            "decoding_smallbs": list(times.decode_small),
            "decoding_largebs": list(times.decode_large),
        }
        if times.decode_larger:
            entry["decoding_largerbs"] = {
                str(border): list(larger) for border, larger in times.decode_larger
            }
        if fitted.serving:
            entry["serving"] = fitted.serving.as_entry()
        content.setdefault(model, {})[str(tp)] = entry
    return json.dumps(content, indent=2) + "\n"
