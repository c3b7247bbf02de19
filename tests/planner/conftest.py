"""Reference data and shared inputs of the planner's tests."""

import csv
import gzip
import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from distserve.cli.main import main
from distserve.workload import RequestSet, read_requests

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def readme_requests() -> RequestSet:
    return read_requests(DATA / "requests_readme_set.csv.gz")


@pytest.fixture(scope="session")
def readme_file() -> Path:
    return DATA / "requests_readme_set.csv.gz"


@pytest.fixture(scope="session")
def reference() -> Any:
    """reference("runs.json") -> the parsed file."""
    return lambda name: json.loads((DATA / name).read_text())


@pytest.fixture(scope="session")
def reference_rows() -> Any:
    """reference_rows("run.csv") -> list of dicts of floats."""

    def read(name: str) -> list[dict[str, float]]:
        path = DATA / name
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else None
        lines = (text or path.read_text()).splitlines()
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(lines)]

    return read


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """run("plan", "-f", path) -> what `commands.command` gives, without a process, whose imports
    alone take a second."""
    monkeypatch.delenv("DATASET", raising=False)

    def call(*arguments: object) -> CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        try:
            code = main(words)
        except SystemExit as ended:  # argparse's way
            code = int(ended.code or 0)
        return CompletedProcess(words, code, *capsys.readouterr())

    return call


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans from shorter simulations."""
    monkeypatch.setattr("distserve.planner.plan.SEARCH_REQUESTS", 80)
    monkeypatch.setattr("distserve.planner.plan.FORECAST_REQUESTS", 150)


@pytest.fixture(scope="module")
def lengths(readme_requests) -> RequestSet:
    """Short enough for quick plans, varied enough to be a workload."""
    drawn = readme_requests.sample(150, 1)
    return RequestSet(drawn.prompt_tokens, [min(n, 120) for n in drawn.output_tokens])
