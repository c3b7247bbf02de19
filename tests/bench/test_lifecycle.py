"""What a server tells of a request's stages becomes the run's, in DistServe's own schema."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distserve.bench.analysis import breakdown
from distserve.bench.lifecycle import STAGES, of_answer, stages
from distserve.bench.reading import read_run

TOLD = {
    "issued_ms": 5.0, "context_begin_ms": 15.0, "context_end_ms": 35.0,
    "migration_begin_ms": 40.0, "migration_end_ms": 50.0, "decoding_begin_ms": 55.0,
    "decoding_end_ms": 105,
}  # fmt: skip
SHARES = {
    "prefill queueing": 0.1, "prefill": 0.2, "transmission": 0.1, "decode queueing": 0.1,
    "decode": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("words", [(), ("--exp-format", "loongserve"), ("--no-stream",)])
def test_a_run_keeps_them(
    bench: Callable[..., Any], stub: Any, tmp_path: Path, words: tuple[str, ...]
) -> None:
    stub.lifecycle = [TOLD]
    assert bench(*words)[0] == 0
    assert all(headers["x-lifecycle"] == "true" for headers in stub.headers)
    about = json.loads((tmp_path / "sys-5-100.run.json").read_text())
    assert about["stage_seconds"]["decode"] == pytest.approx(0.05)
    shares = breakdown(read_run(tmp_path / "sys-5-100.exp"))
    assert shares == pytest.approx(SHARES)
    with (tmp_path / "sys-5-100.csv").open() as text:
        (row, *_) = csv.DictReader(text)
    assert float(row["decode_queueing"]) == pytest.approx(0.01)


def test_distserve_s_scripts_find_the_events(
    bench: Callable[..., Any], stub: Any, tmp_path: Path
) -> None:
    stub.lifecycle = [TOLD]
    assert bench()[0] == 0
    (record, *_) = json.loads((tmp_path / "sys-5-100.exp").read_text())
    offsets = [
        (event["event_type"], round(event["timestamp"] - record["start_time"], 4))
        for event in record["lifecycle_events"]
    ]
    assert offsets == [(name[:-3], ms / 1000) for name, ms in TOLD.items()]


def test_an_answer_ends_with_its_text_not_with_what_is_told_after_it(
    bench: Callable[..., Any], stub: Any, tmp_path: Path
) -> None:
    stub.lifecycle = [TOLD]
    assert bench()[0] == 0
    for record in json.loads((tmp_path / "sys-5-100.exp").read_text()):
        assert record["end_time"] == record["token_timestamps"][-1]
        took = record["end_time"] - record["start_time"]
        assert record["latency"] == pytest.approx(took, abs=1e-5)


@pytest.mark.parametrize(
    "told", [None, [], "born", [3], {"issued_ms": 1}, [{"issued_ms": "early"}], [{"other": 1}]]
)
def test_another_server_s_word_is_passed_over(
    bench: Callable[..., Any], stub: Any, tmp_path: Path, told: Any
) -> None:
    stub.lifecycle = told
    assert bench()[0] == 0
    assert breakdown(read_run(tmp_path / "sys-5-100.exp")) is None


def test_in_one_place_nothing_is_transmitted() -> None:
    at = of_answer([{name: ms for name, ms in TOLD.items() if not name.startswith("migration")}])
    assert at is not None
    found = stages(at)
    assert found is not None
    seconds = dict(zip(STAGES, (0.01, 0.02, 0.0, 0.02, 0.05), strict=True))
    assert found == pytest.approx(seconds)
