"""Systems in one report are compared only where they were asked alike, however that is written."""

from typing import Any

import pytest

from distserve.bench.alike import differences
from distserve.bench.analysis import Run


def run(system: str, rate: float = 1.0, **parameters: Any) -> Run:
    return Run(system, 10, rate, [], about={"parameters": parameters} if parameters else {})


def test_a_seed_for_each_rate() -> None:
    each = [run("a", 1, seed=0), run("a", 2, seed=1), run("b", 1, seed=0), run("b", 2, seed=1)]
    assert differences(each) == ""
    assert differences(each[:3]) == "", "b may have fewer rates"
    assert differences([*each, run("c", 1, seed=1)]) == "seed at 10-1 (0: a, b; 1: c)"
    swapped = [*each[:2], run("b", 1, seed=1), run("b", 2, seed=0)]
    assert differences(swapped) == "seed at 10-1 (0: a; 1: b), seed at 10-2 (1: a; 0: b)"
    both = [*each[:2], run("b", 1, seed=7), run("b", 3, seed=0)]
    assert differences(both) == "seed (0: a; 7: b)"
    # With no rate in common all of a system's are compared.
    assert differences([run("a", 1, seed=0), run("b", 2, seed=1)]) == "seed (0: a; 1: b)"
    assert differences([run("a", 1, seed=0), run("b", 2, seed=0)]) == ""


def test_a_trace_s_own_rate_is_measured() -> None:
    def trace(system: str, measured: float, **parameters: Any) -> Run:
        return Run(system, 10, measured, [], about={"parameters": parameters})

    traces = [trace("a", 1.5, seed=0, rate=None), trace("b", 1.51, seed=1, rate=None)]
    assert differences([*traces, trace("b", 9.0, seed=0, rate=9.0)]) == "seed (0: a; 1: b)"


@pytest.mark.parametrize(
    ("earlier", "now"),
    [
        ({"request_distribution": "uniform"}, {"request_distribution": "fixed"}),
        ({"request_distribution": "trace"}, {"request_distribution": "recorded"}),
        (
            {"request_distribution": "gamma", "cv": None},
            {"request_distribution": "gamma", "cv": 1.0, "burst_size": None},
        ),
        (
            {"request_distribution": "burst", "burst_size": None},
            {"request_distribution": "burst", "burst_size": 10},
        ),
        (
            {"prompt_format": "auto", "token_ids": "10:1000", "dataset": "synthetic:sharegpt"},
            {"prompt_format": "tokens", "token_ids": None, "dataset": "synthetic:sharegpt"},
        ),
        (
            {"prompt_format": "auto", "token_ids": "10:1000", "dataset": "x.ds"},
            {"prompt_format": "text", "token_ids": None, "dataset": "x.ds"},
        ),
        (
            {"prompt_format": "auto", "token_ids": "10:1000", "endpoint": "chat"},
            {"prompt_format": "text", "token_ids": None, "endpoint": "chat"},
        ),
    ],
    ids=str,
)
def test_one_meaning_is_one_question(earlier: dict[str, Any], now: dict[str, Any]) -> None:
    assert differences([run("a", **earlier), run("b", **now)]) == ""


def test_other_meanings_are_told() -> None:
    ids = {"prompt_format": "tokens", "dataset": "x.csv"}
    other = [run("a", **ids, token_ids=None), run("b", **ids, token_ids="5:9")]
    assert differences(other) == "token-ids (10:1000: a; 5:9: b)"
    earlier = [run("a", **ids), run("b", **ids, shared_prefixes=True)]
    assert differences(earlier) == "shared-prefixes (none: a; True: b)"
    strange = [run("a", request_distribution="pareto"), run("b", request_distribution="window")]
    assert differences(strange) == "request-distribution (pareto: a; window: b)"


def test_a_file_is_what_is_in_it() -> None:
    def of(system: str, dataset: str, content: str | None) -> Run:
        told = None if content is None else {"bytes": 3, "sha256": content * 8}
        return run(system, dataset=dataset, dataset_content=told)

    assert differences([of("a", "x.csv", "aa"), of("b", "/tmp/x.csv", "aa")]) == ""
    assert differences([of("a", "x.csv", "aa"), of("b", "x.csv", "bb")]) == (
        "dataset (x.csv, SHA-256 aaaaaaaa: a; x.csv, SHA-256 bbbbbbbb: b)"
    )
    assert differences([of("a", "x.csv", "aa"), of("b", "x.csv", None)]) == "", "not told of both"
    assert differences([of("a", "x.csv", "aa"), of("b", "y.csv", None)]) == (
        "dataset (x.csv: a; y.csv: b)"
    )


def test_other_clients_tell_nothing() -> None:
    assert differences([run("a", seed=0), run("b"), run("c", dataset="x.csv")]) == ""
