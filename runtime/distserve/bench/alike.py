"""Whether runs drawn together were asked alike, by their parameters. Called by the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from distserve.bench.analysis import Run
from distserve.bench.parameters import as_they_act

_DETERMINING = (
    "model", "dataset", "request_distribution", "cv", "burst_size", "max_model_len",
    "endpoint", "prompt_format", "token_ids", "shared_prefixes", "no_ignore_eos",
)  # fmt: skip

_Told = tuple[Run, Mapping[str, Any]]


def differences(runs: Sequence[Run]) -> str:
    """What determines the requests and differs, and whose each value is; empty where nothing does.

    Of runs without parameters, as other clients leave them, nothing is known.
    """
    told = [(run, _acting(found)) for run in runs if (found := run.about.get("parameters"))]
    by_content = all(parameters.get("dataset_content") for _, parameters in told)
    found = []
    for name in _DETERMINING:
        systems: dict[str, list[str]] = {}
        words: dict[str, str] = {}
        for run, parameters in told:
            if name in parameters:
                value = _identity(parameters, name, by_content)
                words.setdefault(value, _words(parameters, name, by_content))
                systems.setdefault(value, []).append(run.system)
        if len(systems) > 1:
            of_each = _of_each({words[value]: of for value, of in systems.items()})
            found.append(f"{name.replace('_', '-')} ({of_each})")
    return ", ".join([*found, *_seeds(told)])


def _seeds(told: Sequence[_Told]) -> list[str]:
    """A seed may be another one at each rate, so those of one count and rate are compared; where no
    two systems have one in common, all seeds of a system."""
    whole: dict[str, list[str]] = {}
    pairs: dict[str, dict[str, list[str]]] = {}
    for run, parameters in told:
        if "seed" in parameters:
            seed = str(parameters["seed"])
            label = _label(run, parameters)
            whole.setdefault(seed, []).append(run.system)
            pairs.setdefault(label, {}).setdefault(seed, []).append(run.system)
    common = {label: of for label, of in pairs.items() if len({*chain(*of.values())}) > 1}
    if not common:
        alike = len({frozenset(of) for of in whole.values()}) < 2
        return [] if alike else [f"seed ({_of_each(whole)})"]
    labels: dict[str, list[str]] = {}
    for label, of in common.items():
        labels.setdefault(_of_each(of) if len(of) > 1 else "", []).append(label)
    apart = {words: of for words, of in labels.items() if words}
    if len(labels) == 1:
        return [f"seed ({words})" for words in apart]
    return [f"seed at {' and '.join(of)} ({words})" for words, of in apart.items()]


def _label(run: Run, parameters: Mapping[str, Any]) -> str:
    """As in the files' names. What was asked: the rate of a trace's own times is measured."""
    rate = parameters.get("rate", run.rate)
    words = f"{rate:g}" if isinstance(rate, int | float) else "recorded" if rate is None else rate
    return f"{run.requests}-{words}"


def _of_each(systems: Mapping[str, Iterable[str]]) -> str:
    return "; ".join(f"{value}: {', '.join(dict.fromkeys(of))}" for value, of in systems.items())


def _acting(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return as_they_act(parameters)
    except (ValueError, TypeError):  # another client's words, which are compared as they are
        return parameters


def _identity(parameters: Mapping[str, Any], name: str, by_content: bool) -> str:
    """Where it is known what was in all files, they may lie anywhere."""
    if name == "dataset" and by_content:
        return str(parameters["dataset_content"]["sha256"])
    return str(parameters[name])


def _words(parameters: Mapping[str, Any], name: str, by_content: bool) -> str:
    if name == "dataset" and by_content:
        return f"{parameters[name]}, SHA-256 {_identity(parameters, name, by_content)[:8]}"
    return "none" if parameters[name] is None else str(parameters[name])
