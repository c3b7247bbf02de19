"""Fits a hardware profile to the measurements of a profile database.

The fit minimises the relative error, so that short steps count as much as long ones, over
coefficients that are not negative: more work never makes a step shorter. How far to believe it is
told by points that the fit did not see: each fifth of the records in turn is left out and
predicted from the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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

    Decode is fitted apart from `large_batch` requests on; None looks for the border with the least
    error. A side of it without enough records takes the fit of all.
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
        small, large = _decode(part, border)
        return lambda record: _product(
            small if record.batch_size < border else large, _decode_row(record)
        )

    border = _border(decodes) if large_batch is None else large_batch
    times = TimeModel(
        _least_squares(prefills, _prefill_row, _prefill_ms), *_decode(decodes, border), border
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


def _border(records: Sequence[Record]) -> int:
    """The batch size from which on a second fit helps most; LARGE_BATCH where none does."""
    sizes = sorted({record.batch_size for record in records})
    best, least = LARGE_BATCH, _border_error(records, LARGE_BATCH)
    for border in sizes[2:-1]:  # a side needs two sizes to tell a slope from a constant
        error = _border_error(records, border)
        if error < least * 0.95 - 1e-9:  # a split that helps no more than noise is none
            best, least = border, error
    return best


def _border_error(records: Sequence[Record], border: int) -> float:
    small, large = _decode(records, border)
    return fmean(
        (_product(small if r.batch_size < border else large, _decode_row(r)) / _decode_ms(r) - 1)
        ** 2
        for r in records
    )


def _decode(records: Sequence[Record], border: int) -> tuple[Coefficients, Coefficients]:
    def of(part: Sequence[Record]) -> Coefficients:
        return _least_squares(part if len(part) >= FEWEST else records, _decode_row, _decode_ms)

    return (
        of([r for r in records if r.batch_size < border]),
        of([r for r in records if r.batch_size >= border]),
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
        if fitted.serving:
            entry["serving"] = fitted.serving.as_entry()
        content.setdefault(model, {})[str(tp)] = entry
    return json.dumps(content, indent=2) + "\n"
