"""Whether runs drawn together were asked alike, by their parameters. Called by the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distserve.bench.analysis import Run

_DETERMINING = (
    "model", "dataset", "seed", "request_distribution", "cv", "burst_size", "max_model_len",
    "endpoint", "prompt_format", "token_ids", "no_ignore_eos",
)  # fmt: skip


def differences(runs: Sequence[Run]) -> str:
    """What determines the requests and differs, and whose each value is; empty where nothing does.

    A system's seed may be another one at each rate, if it is so with all. Of runs without
    parameters, as other clients leave them, nothing is known.
    """
    told = [(run.system, found) for run in runs if (found := run.about.get("parameters"))]
    by_content = all(parameters.get("dataset_content") for _, parameters in told)
    found = []
    for name in _DETERMINING:
        systems: dict[str, list[str]] = {}
        words: dict[str, str] = {}
        for system, parameters in told:
            if name in parameters:
                value = _identity(parameters, name, by_content)
                words.setdefault(value, _words(parameters, name, by_content))
                systems.setdefault(value, []).append(system)
        seeds_alike = name == "seed" and len({frozenset(of) for of in systems.values()}) == 1
        if len(systems) > 1 and not seeds_alike:
            of_each = (
                f"{words[value]}: {', '.join(dict.fromkeys(of))}" for value, of in systems.items()
            )
            found.append(f"{name.replace('_', '-')} ({'; '.join(of_each)})")
    return ", ".join(found)


def _identity(parameters: Mapping[str, Any], name: str, by_content: bool) -> str:
    """Where it is known what was in all files, they may lie anywhere."""
    if name == "dataset" and by_content:
        return str(parameters["dataset_content"]["sha256"])
    return str(parameters[name])


def _words(parameters: Mapping[str, Any], name: str, by_content: bool) -> str:
    if name == "dataset" and by_content:
        return f"{parameters[name]}, SHA-256 {_identity(parameters, name, by_content)[:8]}"
    return "none" if parameters[name] is None else str(parameters[name])
