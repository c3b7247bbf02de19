"""Hardware profiles: measured step times of models on a device, and the memory of that device.

A profile is a JSON file. Its entries are the ones simdistserve publishes; `accelerator` is ours:

    {"accelerator": {"memory_bytes": 85899345920, "kv_budget_bytes": 79891180749},
     "MODEL": {"TP": {"prefill": [a, b, c], "decoding_smallbs": [a, b, c],
                      "decoding_largebs": [a, b, c], "decoding_large_small_bs_threshold": 95,
                      "decoding_largerbs": {"128": [a, b, c]},
                      "serving": {"request_ms": 7.1, "handover_ms": 5.2, ...}}}}

Ours too, and may be absent: `decoding_largerbs`, further fits from so many requests on, and
`serving`, what a deployment adds to the engine's steps.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import pairwise
from math import inf, isfinite
from pathlib import Path
from typing import Any

from distserve.planner.errors import InvalidProfile, NoProfile
from distserve.planner.memory import GIB, kv_tokens
from distserve.planner.models import ModelShape, canonical_name
from distserve.planner.serving import Serving
from distserve.strategies.time_model import Coefficients, TimeModel

DEFAULT_PROFILE = "a100-80g"
A100_80G_KV_BUDGET_BYTES = 74.40446 * GIB
_UNREADABLE = (
    ValueError, OverflowError, KeyError, TypeError, AttributeError, RecursionError,
)  # fmt: skip


@dataclass(frozen=True)
class HardwareProfile:
    """Step times by (model, TP) and the memory for weights and KV of one accelerator."""

    name: str
    entries: Mapping[tuple[str, int], TimeModel]
    kv_budget_bytes: float = A100_80G_KV_BUDGET_BYTES
    memory_bytes: float = 80 * GIB
    estimated: bool = False
    """True when the times were computed from data sheets and not measured."""
    max_tokens: Mapping[tuple[str, int, int], int] = field(default_factory=dict)
    """KV tokens by (model, TP, PP) where a table was measured; the formula holds elsewhere."""
    serving_by_model: Mapping[tuple[str, int], Serving] = field(default_factory=dict)
    """What a deployment adds, by (model, TP). `entries` are the engine's own times."""

    def knows(self, model: ModelShape, tp: int) -> bool:
        return (model.name, tp) in self.entries

    def times(self, model: ModelShape, tp: int) -> TimeModel:
        """Step times as they pass in a deployment. Raises NoProfile, and InvalidProfile where
        prompts as long as this model's would take no time."""
        try:
            engine = self.entries[model.name, tp]
        except KeyError:
            raise NoProfile(f"no profile for {self._gap(model, tp)}") from None
        _refuse_impossible(self.name, model.name, tp, engine, model.max_positions)
        return self.serving(model, tp).applied(engine)

    def serving(self, model: ModelShape, tp: int) -> Serving:
        return self.serving_by_model.get((model.name, tp), Serving())

    def _gap(self, model: ModelShape, tp: int) -> str:
        degrees = sorted(degree for name, degree in self.entries if name == model.name)
        if not degrees:
            return f"{model.name}, give --hardware-profile or --estimate"
        return (
            f"{model.name} at TP {tp} (known: TP {', '.join(map(str, degrees))}) in {self.name}; "
            "give one of these, or a --hardware-profile that has it"
        )

    def kv_tokens(self, model: ModelShape, tp: int, pp: int) -> int:
        """KV tokens that fit one instance; 0 where the model does not fit."""
        measured = self.max_tokens.get((model.name, tp, pp))
        if measured is not None:
            return measured
        return kv_tokens(model, tp, pp, self.kv_budget_bytes)


def load_profile(name: str = DEFAULT_PROFILE, engine: str = "distserve") -> HardwareProfile:
    """A shipped profile by name, or the user's own by the path of its file.

    For the words of a command line, since a file of that name is opened. `engine` chooses between
    the engines that a shipped profile was measured on.
    """
    if names_file(name):
        return parse_profile(_text(Path(name)), Path(name).name)
    return shipped_profile(name, engine)


def names_file(name: str) -> bool:
    """Whether `name` is that of a user's own profile, on this machine."""
    return name.endswith(".json") or os.path.isfile(name)


def shipped_profile(name: str = DEFAULT_PROFILE, engine: str = "distserve") -> HardwareProfile:
    """By name. Opens nothing else: whoever writes a spec chooses it. Raises InvalidProfile."""
    shipped = files("distserve.planner") / "data" / "profiles"
    source = shipped / f"profiler-{name}.{engine}.json"
    if not source.is_file():
        raise InvalidProfile(
            f"unknown hardware profile {name}; give {DEFAULT_PROFILE} or a profile file's path "
            "(in the deployment: planning.hardwareProfileFrom)"
        )
    table = (shipped / "max_num_tokens.csv").read_text().splitlines()
    return _read(
        name,
        source.read_text(),
        max_tokens={
            (row["model"], int(row["tp"]), int(row["pp"])): int(row["max_num_tokens"])
            for row in csv.DictReader(table)
        },
    )


def parse_profile(text: str, name: str) -> HardwareProfile:
    """A user's own profile whose file was read elsewhere. Raises InvalidProfile."""
    return _read(name, text, max_tokens={})


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise InvalidProfile(f"cannot read the profile {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidProfile(
            f"the profile {path} is no text; of a profile database `distserve profile fit "
            f"--db {path} --output {path.with_suffix('.json')}` makes a profile"
        ) from error


def _read(name: str, text: str, max_tokens: Mapping[tuple[str, int, int], int]) -> HardwareProfile:
    try:
        content = json.loads(text)
        accelerator = content.pop("accelerator", {})
        budget = float(accelerator.get("kv_budget_bytes", A100_80G_KV_BUDGET_BYTES))
        memory = float(accelerator.get("memory_bytes", 80 * GIB))
        if not (0 < budget < inf and 0 < memory < inf):
            raise ValueError("memory_bytes and kv_budget_bytes are numbers above 0")
        entries = {
            (known, int(tp)): _time_model(entry)
            for model, by_tp in content.items()
            for known in _names(model)
            for tp, entry in by_tp.items()
        }
        serving = {
            (known, int(tp)): Serving.from_entry(entry["serving"])
            for model, by_tp in content.items()
            for known in _names(model)
            for tp, entry in by_tp.items()
            if "serving" in entry
        }
    except _UNREADABLE as error:
        raise InvalidProfile(
            f"{name} is not a hardware profile: {error!r}; see docs/planner.md"
        ) from error
    for (model, tp), times in entries.items():
        _refuse_impossible(name, model, tp, times)
    return HardwareProfile(
        name,
        entries,
        budget,
        memory,
        estimated=bool(accelerator.get("estimated", False)),
        max_tokens=max_tokens,
        serving_by_model=serving,
    )


def _names(model: str) -> set[str]:
    """The file's own, and the full one that it may be short for: a plan may ask for either."""
    return {model, canonical_name(model)}


def _time_model(entry: Mapping[str, Any]) -> TimeModel:
    def formula(values: Sequence[Any]) -> Coefficients:
        return Coefficients(*map(float, values))

    border = int(entry.get("decoding_large_small_bs_threshold", 95))
    further = entry.get("decoding_largerbs", {})
    larger = sorted((int(least), formula(values)) for least, values in further.items())
    if larger and larger[0][0] <= border:
        raise ValueError(f"decoding_largerbs begins at {larger[0][0]}, not above {border}")
    return TimeModel(
        prefill=formula(entry["prefill"]),
        decode_small=formula(entry["decoding_smallbs"]),
        decode_large=formula(entry["decoding_largebs"]),
        large_batch=border,
        decode_larger=tuple(larger),
    )


def _refuse_impossible(
    profile: str, model: str, tp: int, times: TimeModel, longest: int = 1
) -> None:
    """Raises InvalidProfile where a step takes no time, or more tokens make it shorter: nothing can
    be simulated so. A coefficient may be below 0, as in fits without bounds, while no step comes to
    that. `longest`: tokens of a prompt."""
    prefill = times.prefill
    squares = 1, 2 * longest - 1  # what a prompt's first token and its last add to sum(l^2)
    # The shortest step, or the batches at either end of a formula; what each further token adds.
    formulas = [
        (
            "prefill", prefill,
            [times.prefill_ms(1, square) for square in squares],
            [prefill.b + prefill.c * square for square in squares],
        )
    ]  # fmt: skip
    decodes = [
        ("decoding_smallbs", 1, times.decode_small),
        ("decoding_largebs", max(1, times.large_batch), times.decode_large),
        *(("decoding_largerbs", border, larger) for border, larger in times.decode_larger),
    ]
    for (name, least, formula), (_, border, _) in pairwise(decodes):
        ends = (least, border - 1) if least < border else ()
        formulas.append((name, formula, [times.decode_ms(n, n) for n in ends], [formula.b]))
    name, least, formula = decodes[-1]
    slopes = [formula.b, formula.b + formula.c]
    formulas.append((name, formula, [times.decode_ms(least, least)], slopes))
    for name, formula, steps_ms, slopes in formulas:
        possible = all(ms > 0 for ms in steps_ms) and all(slope >= 0 for slope in slopes)
        if not (possible and all(map(isfinite, formula))):
            raise InvalidProfile(
                f"{profile}: by `{name}` of {model} at TP {tp} a step takes no time, or less for "
                "more tokens; measure again with `distserve profile`, and fit"
            )
