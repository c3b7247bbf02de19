"""What earlier calls left under a prefix: which of its runs are kept, which are in the way.

Called by `session` before the first request leaves. The runs of a prefix are drawn as one curve, so
all of them must have been asked alike, whatever rates are asked now.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distserve.bench.errors import BenchError
from distserve.bench.openloop import Lag
from distserve.bench.question import LABEL, Pair
from distserve.bench.results import RunFiles, trusted
from distserve.workload import ArrivalProcess

_OF_ONE_RUN = {"requests", "rate", "seed"}
"""May differ within a curve. The seed too: it gives a set's texts another turn at each rate."""


def kept_runs(
    folder: Path, prefix: str, asked: Mapping[str, Mapping[str, Any]], max_lag_ms: float
) -> dict[str, dict[str, Any]]:
    """By label, the `.run.json` of each run that answers what is asked, with its verdict by this
    limit.

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
    _refuse_others(files, found, asked)
    return {
        label: about
        for label, about in found.items()
        if label in asked and trusted(about) and files[label].exp.exists()
    }


def _refuse_others(
    files: Mapping[str, RunFiles],
    found: Mapping[str, Mapping[str, Any]],
    asked: Mapping[str, Mapping[str, Any]],
) -> None:
    any_pair = next(iter(asked.values()))
    others: dict[str, set[str]] = {}
    for label, about in sorted(found.items()):
        names = differing(about["parameters"], asked.get(label, any_pair))
        if label not in asked:
            names -= _OF_ONE_RUN
        if names:
            others[label] = names
    if others:
        names = set().union(*others.values())
        paths = [str(path) for label in others for path in files[label].in_the_way]
        raise BenchError(
            f"made with another {', '.join(sorted(names))}: {' and '.join(paths)}; choose another "
            "--prefix or --output-dir, or delete those files"
        )


def differing(earlier: Mapping[str, Any], asked: Mapping[str, Any]) -> set[str]:
    """Names of the parameters in which two runs differ."""
    # Where both say what was in the data set's file, it may lie elsewhere by now.
    both_told = earlier.get("dataset_content") and asked.get("dataset_content")
    passed = {"dataset"} if both_told else {"dataset_content"}
    names = {*earlier, *asked} - passed
    return {name for name in names if earlier.get(name) != asked.get(name)}


def arrival_parameters(arrivals: ArrivalProcess) -> dict[str, Any]:
    """As they act: each process by one name, without what it does not know."""
    return {
        "request_distribution": arrivals.kind,
        "cv": arrivals.cv if arrivals.kind == "gamma" else None,
        "burst_size": arrivals.burst_size if arrivals.kind == "burst" else None,
    }


def _meant(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """As they are written now; earlier runs kept some as they had been typed. Raises ValueError,
    KeyError or TypeError where these are no parameters."""
    own = ("cv", "burst_size")
    given = {name: parameters[name] for name in own if parameters.get(name) is not None}
    arrivals = ArrivalProcess(parameters["request_distribution"], **given)
    pair = Pair(parameters["requests"], parameters["rate"])
    return {**parameters, **arrival_parameters(arrivals), **pair.parameters}


def _there(folder: Path, prefix: str) -> list[str]:
    """The labels of all runs of the prefix that left a `.run.json`."""
    name = re.compile(rf"{re.escape(prefix)}-({LABEL})\.run\.json")
    return [found[1] for path in folder.iterdir() if (found := name.fullmatch(path.name))]


def _read(files: RunFiles, max_lag_ms: float) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads(files.about.read_text())
        valid = Lag(**about["lag"]).within(max_lag_ms)
        about |= {"valid": valid, "max_lag_ms": max_lag_ms}
        about["parameters"] = _meant(about["parameters"])
        trusted(about)
    except (ValueError, KeyError, TypeError) as error:
        paths = " and ".join(map(str, files.in_the_way))
        raise BenchError(f"{files.about} is damaged; delete {paths}, and run again") from error
    return about
