"""Result files of one run: `<prefix>-<n>-<rate>` with .exp, .csv and .run.json.

`.exp` has the completed requests in the schema of DistServe's or LoongServe's scripts, so that
their plots and ours read each other's files. `.csv` has every request, failures with their
reason. `.run.json` says how the run was made and whether its client kept up. `.exp` is written
last: where it is, it belongs to the verdict beside it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from distserve.bench.errors import BenchError
from distserve.bench.lifecycle import STAGES, as_events, stages
from distserve.bench.openloop import Observed
from distserve.bench.outcome import CONNECTION_FAILURES, Outcome
from distserve.bench.writing import write_together, write_whole

DISCONNECTED_SHARE = 0.01
_NUMBERED = re.compile(r"(?<![\w-])(?<!^HTTP )[\w-]*\d[\w-]*")
"""A word with a digit in it, but for the status of an answer."""
_AND_THE_LIKE = " (and the like)"
EXP_FORMATS = ("distserve", "loongserve")
_CURE = "mend that and run again: whole runs are kept"
_CSV = (
    "index", "prompt_len", "output_len", "tokens", "planned", "start_time", "end_time",
    "latency", "ttft", "tpot", "slo_ttft", "slo_tpot",
    *(stage.replace(" ", "_") for stage in STAGES), "lag_ms", "failure",
)  # fmt: skip


class RunFiles:
    """The three files of one run."""

    def __init__(self, folder: Path, prefix: str, label: str) -> None:
        self.exp = folder / f"{prefix}-{label}.exp"
        self.csv = folder / f"{prefix}-{label}.csv"
        self.about = folder / f"{prefix}-{label}.run.json"

    @property
    def in_the_way(self) -> list[Path]:
        """Those that are there and forbid another run; a `.csv` alone is written over."""
        return [path for path in (self.exp, self.about) if path.exists()]

    def write(
        self,
        observed: Observed,
        parameters: Mapping[str, Any],
        exp_format: str,
        epoch: float,
        max_lag_ms: float,
        attempt: int = 1,
    ) -> dict[str, Any]:
        """Write all three; `epoch` added to the monotonic clock gives Unix time.

        A complete run that is there already stays where this one was interrupted or there is no
        room for it. Raises BenchError.
        """
        outcomes = observed.outcomes
        rows = [distserve_row(outcome, epoch) for outcome in outcomes if outcome.complete]
        about = {
            "parameters": dict(parameters),
            "attempt": attempt,
            "complete": not observed.interrupted,
            "valid": observed.lag.within(max_lag_ms),
            "max_lag_ms": max_lag_ms,
            "lag": asdict(observed.lag),
            "requests": len(outcomes),
            "completed": len(rows),
            "failures": failures(outcomes),
            "started": observed.started + epoch,
            "stage_seconds": mean_stage_seconds(outcomes),
            "prompts_off": prompts_off(outcomes),
        }
        earlier = self.complete_run()
        if observed.interrupted and earlier is not None:
            self._tried(earlier, attempt)
            return about
        texts = {self.about: _json(about), self.csv: _csv_text(outcomes, epoch)}
        if not observed.interrupted:
            texts[self.exp] = (
                json.dumps(rows) if exp_format == "distserve" else loongserve_text(outcomes, epoch)
            )
        try:
            # No records beside another run's verdict, at no instant.
            write_together(texts, [self.exp], _CURE)
        except BenchError:
            self._tried(about if earlier is None else earlier, attempt)
            raise
        return about

    def complete_run(self) -> dict[str, Any] | None:
        """The `.run.json` of a run that was not cut short and whose records are beside it."""
        if not (self.exp.exists() and self.about.exists()):
            return None
        about: dict[str, Any] = json.loads(self.about.read_text())
        return about if about["complete"] else None

    def judge(self, about: Mapping[str, Any]) -> None:
        """Write the `.run.json` alone, of a kept run by another limit."""
        write_whole(self.about, _json(about), _CURE)

    def _tried(self, about: Mapping[str, Any], attempt: int) -> None:
        """Keep, where there is room for it, that an attempt was made whose run is not."""
        with contextlib.suppress(BenchError):
            self.judge({**about, "tried": attempt})


def next_attempt(about: Mapping[str, Any]) -> int:
    """After that run, 2 at least: the server may know the prompts of all before, kept or not."""
    last: int = max(about.get("tried", 1), about.get("attempt", 1))
    return last + 1


def trusted(about: Mapping[str, Any]) -> bool:
    """Whether a run answers its question; else it is made anew when it is asked for again."""
    return bool(
        about["complete"] and about["valid"] and about["completed"] and not lost_its_server(about)
    )


def disconnected(about: Mapping[str, Any]) -> int:
    """Requests whose connection failed."""
    return sum(
        count
        for reason, count in about["failures"].items()
        if reason.startswith(CONNECTION_FAILURES)
    )


def lost_its_server(about: Mapping[str, Any]) -> bool:
    """So many connections failed that they tell of a server that was gone, and not what one can
    do. Some a server refuses or resets that has too much to do."""
    return bool(disconnected(about) > DISCONNECTED_SHARE * about["requests"])


def distserve_row(outcome: Outcome, epoch: float) -> dict[str, Any]:
    """DistServe's record; `lifecycle_events` is empty where the server does not tell."""
    return {
        "prompt_len": outcome.prompt_tokens,
        "output_len": outcome.tokens,
        "start_time": outcome.sent + epoch,
        "end_time": outcome.ended + epoch,
        "token_timestamps": [time + epoch for time in outcome.token_times],
        "lifecycle_events": as_events(outcome.lifecycle or {}, outcome.sent + epoch),
        "latency": outcome.latency,
        "ftl": outcome.ttft,
        "tpot": outcome.tpot,
        **{name: value for name, value in own_objectives(outcome).items() if value is not None},
    }


def mean_stage_seconds(outcomes: Sequence[Outcome]) -> dict[str, float] | None:
    """Of the completed requests whose stages are known; LoongServe's file has no room for them."""
    told = [found for o in outcomes if o.complete and (found := _stages(o))]
    return {stage: fmean(one[stage] for one in told) for stage in STAGES} if told else None


def failures(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many failed for each reason. Texts that differ in numbers and ids only are one reason, by
    the first of them."""
    texts: dict[str, list[str]] = {}
    for text in (o.failure for o in outcomes if o.failure is not None):
        texts.setdefault(_NUMBERED.sub("#", text), []).append(text)
    return {
        same[0] if len(set(same)) == 1 else f"{same[0]}{_AND_THE_LIKE}": len(same)
        for same in texts.values()
    }


def prompts_off(outcomes: Sequence[Outcome]) -> dict[str, float] | None:
    """Requests whose prompts the server counted otherwise than planned, and by how many tokens."""
    off = [o.prompt_tokens_off for o in outcomes if o.prompt_tokens_off]
    return {"requests": len(off), "mean_tokens": fmean(off)} if off else None


def _stages(outcome: Outcome) -> dict[str, float] | None:
    return stages(outcome.lifecycle) if outcome.lifecycle else None


def own_objectives(outcome: Outcome) -> dict[str, float | None]:
    """In seconds; fields that neither schema has, so only written where there are any."""
    told = {"slo_ttft": outcome.own.ttft_ms, "slo_tpot": outcome.own.tpot_ms}
    return {name: None if ms is None else ms / 1000 for name, ms in told.items()}


def loongserve_text(outcomes: Sequence[Outcome], epoch: float) -> str:
    """LoongServe's file: one line with a Python list, as its scripts `eval` it."""
    rows = [
        {
            "prompt_len": outcome.prompt_tokens,
            "output_len": outcome.tokens,
            "issue_time": outcome.sent + epoch,
            "first_token_time": outcome.token_times[0] + epoch if outcome.token_times else None,
            "complete_time": outcome.ended + epoch,
            "ttft": outcome.ttft,
            "tpot": outcome.tpot,
            "latency": outcome.latency,
            **{name: value for name, value in own_objectives(outcome).items() if value is not None},
        }
        for outcome in outcomes
        if outcome.complete
    ]
    return repr(rows) + "\n"


def _json(about: Mapping[str, Any]) -> str:
    return json.dumps(about, indent=1) + "\n"


def _csv_text(outcomes: Sequence[Outcome], epoch: float) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV)
    for o in outcomes:
        writer.writerow(
            [
                o.index, o.prompt_tokens, o.output_tokens, o.tokens, o.planned + epoch,
                o.sent + epoch, o.ended + epoch, o.latency, o.ttft, o.tpot,
                *own_objectives(o).values(), *(_stages(o) or dict.fromkeys(STAGES)).values(),
                o.lag_seconds * 1000, o.failure,
            ]
        )  # fmt: skip
    return text.getvalue()
