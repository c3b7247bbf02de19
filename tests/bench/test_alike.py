"""Systems in one report are compared only where they were asked alike, however that is written."""

from typing import Any

from distserve.bench.alike import differences
from distserve.bench.analysis import Run


def run(system: str, rate: float = 1.0, **parameters: Any) -> Run:
    return Run(system, 10, rate, [], about={"parameters": parameters} if parameters else {})


def test_a_seed_for_each_rate() -> None:
    each = [run("a", 1, seed=0), run("a", 2, seed=1), run("b", 1, seed=0), run("b", 2, seed=1)]
    assert differences(each) == ""
    assert differences([*each, run("c", 1, seed=1)]) == "seed (0: a, b; 1: a, b, c)"
    assert differences([run("a", 1, seed=0), run("b", 2, seed=1)]) == "seed (0: a; 1: b)"


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
