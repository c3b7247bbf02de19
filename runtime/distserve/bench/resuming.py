"""What earlier calls left under a prefix: which of its runs are kept, which are in the way.

Called by `session` before the first request leaves. The runs of a prefix are drawn as one curve, so
all of them must have been asked alike, whatever rates are asked now.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distserve.bench.errors import BenchError
from distserve.bench.openloop import Lag
from distserve.bench.parameters import OF_EACH_RATE, as_they_act
from distserve.bench.question import LABEL
from distserve.bench.results import RunFiles, disconnected, lost_its_server, next_attempt, trusted

_OF_ONE_RUN = {"requests", "rate", "seed", "exp_format"}
"""May differ within a curve. The seed too: it gives a set's texts another turn at each rate."""


@dataclass(frozen=True)
class Earlier:
    """A run that an earlier call left, whole or not."""

    files: RunFiles
    written: Mapping[str, Any]
    """Its `.run.json`."""
    about: dict[str, Any]
    """The same with the verdict by the limit of now, and the parameters as they act."""

    @property
    def kept(self) -> bool:
        """Whether it answers its question."""
        return trusted(self.about) and self.files.exp.exists()

    @property
    def made_anew(self) -> str:
        """Why a run is, whose records are all there; empty of any other."""
        if not self.about["complete"] or not self.files.exp.exists():
            return ""
        if self.about["valid"]:
            if not lost_its_server(self.about):
                return ""
            return f"the connections of {disconnected(self.about)} requests failed: made anew"
        lag, limit_ms = self.about["lag"], self.about["max_lag_ms"]
        sends = lag["send_p99_ms"] > limit_ms
        what, late_ms = ("sends", "send_p99_ms") if sends else ("its event loop", "loop_p99_ms")
        return f"{what} late by {lag[late_ms]:.1f} ms, above --max-lag {limit_ms:g}ms: made anew"

    def keep(self) -> None:
        """Write what is known of it now, if that is news: there may be no room."""
        if self.about != self.written:
            self.files.judge(self.about)


def earlier_runs(
    folder: Path, prefix: str, asked: Mapping[str, Mapping[str, Any]], max_lag_ms: float
) -> dict[str, Earlier]:
    """By label, every run of the prefix that left a `.run.json`, asked now or not.

    `asked`: the parameters of each pair by its label. Raises BenchError, with what to delete, where
    there are another question's answers.
    """
    labels = sorted({*asked, *_there(folder, prefix)})
    files = {label: RunFiles(folder, prefix, label) for label in labels}
    found = {label: _read(one, max_lag_ms) for label, one in files.items() if one.about.exists()}
    for label in sorted(asked.keys() - found.keys()):
        if files[label].exp.exists():
            raise BenchError(
                f"{files[label].exp} is there and not from this client; choose another --prefix or "
                "--output-dir, or delete it"
            )
    _refuse_others(found, asked)
    return found


def with_shared_prompts(
    found: Mapping[str, Earlier], asked: Mapping[str, Mapping[str, Any]]
) -> Iterator[Path]:
    """The records that stay beside those of now though their made-up prompts were those of the
    first rate."""
    if any(parameters.get("prompts") == OF_EACH_RATE for parameters in asked.values()):
        for label, run in found.items():
            stays = run.kept if label in asked else run.files.exp.exists()
            if stays and run.about["parameters"].get("prompts") != OF_EACH_RATE:
                yield run.files.exp


def _refuse_others(found: Mapping[str, Earlier], asked: Mapping[str, Mapping[str, Any]]) -> None:
    any_pair = next(iter(asked.values()))
    others: dict[str, set[str]] = {}
    for label, run in sorted(found.items()):
        names = differing(run.about["parameters"], asked.get(label, any_pair))
        if label not in asked:
            names -= _OF_ONE_RUN
        if names:
            others[label] = names
    if others:
        names = set().union(*others.values())
        paths = [str(path) for label in others for path in found[label].files.in_the_way]
        raise BenchError(
            f"made with another {', '.join(sorted(names))}: {' and '.join(paths)}; choose another "
            "--prefix or --output-dir, or delete those files"
        )


def differing(earlier: Mapping[str, Any], asked: Mapping[str, Any]) -> set[str]:
    """Names of the parameters in which two runs differ, both as they act."""
    # Where both say what was in the data set's file, it may lie elsewhere by now.
    both_told = earlier.get("dataset_content") and asked.get("dataset_content")
    passed = {"dataset"} if both_told else {"dataset_content"}
    names = {*earlier, *asked} - passed - {"prompts"}  # those are only remarked upon
    return {name for name in names if earlier.get(name) != asked.get(name)}


def _there(folder: Path, prefix: str) -> list[str]:
    """The labels of all runs of the prefix that left a `.run.json`."""
    name = re.compile(rf"{re.escape(prefix)}-({LABEL})\.run\.json")
    return [found[1] for path in folder.iterdir() if (found := name.fullmatch(path.name))]


def _read(files: RunFiles, max_lag_ms: float) -> Earlier:
    try:
        written = json.loads(files.about.read_text())
        now = {
            "parameters": as_they_act(written["parameters"]),
            "valid": Lag(**written["lag"]).within(max_lag_ms),
            "max_lag_ms": max_lag_ms,
        }
        run = Earlier(files, written, {**written, **now})
        trusted(run.about), next_attempt(run.about)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        paths = " and ".join(map(str, files.in_the_way))
        raise BenchError(f"{files.about} is damaged; delete {paths}, and run again") from error
    return run
