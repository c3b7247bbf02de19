"""`distserve bench` and `distserve profile` against this project's own gateway and engines.

In the tests of their rooms servers stand in; here what a gateway tells comes to who measures it.
"""

import asyncio
import csv
import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tests.bench.reports import report

from distserve.bench.lifecycle import EVENTS, STAGES
from distserve.cli.main import main
from distserve.planner.loads import read_loads
from distserve.planner.profiles import load_profile
from distserve.planner.records import read_records
from distserve.profile import loads
from distserve.profile.database import Measured, Subject, open_database

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

COLUMNS = [stage.replace(" ", "_") for stage in STAGES]


async def test_a_deployment_is_measured(
    fleets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for both: starting it is what takes long."""
    fleet = await fleets("builtin:tiny", dtype="float32")
    await load_is_offered(fleet.gateway_url, tmp_path / "results")
    for name, value in (("CLIENTS", (1, 2)), ("ROUNDS", 1), ("SECONDS", 0.2)):
        monkeypatch.setattr(loads, name, value)
    await what_it_adds_is_fitted(fleet.gateway_url, tmp_path)


async def load_is_offered(url: str, results: Path) -> None:
    words = [
        "run", "--url", url, "--model", "test", "--dataset", "synthetic:fixed,prompt=40,output=8",
        "--num-prompts-req-rates", "[(12,20),(12,40)]", "--slo-ttft", "2s", "--slo-tpot", "500ms",
        "--warm-up", "1", "--output-dir", str(results), "--prefix", "own",
        "--max-lag", "60s",  # the lag that a busy test machine may have does not spoil it
    ]  # fmt: skip
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "distserve.cli.main", "bench", *words],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "running usage" not in ran.stderr, "the gateway gives all that the client asks for"
    for stem in ("own-12-20", "own-12-40"):
        about = json.loads((results / f"{stem}.run.json").read_text())
        assert (about["completed"], about["failures"], about["prompts_off"]) == (12, {}, None)
        records = json.loads((results / f"{stem}.exp").read_text())
        told = [[event["event_type"] for event in one["lifecycle_events"]] for one in records]
        assert told == [list(EVENTS)] * 12
        with (results / f"{stem}.csv").open() as text:
            rows = list(csv.DictReader(text))
        assert len(rows) == 12 and {row["tokens"] for row in rows} == {"8"}
        assert all(row[column] for row in rows for column in COLUMNS), "each stage of each request"
    runs = report(results)["runs"]
    assert [row["rate"] for row in runs] == [20, 40]
    for row in runs:
        assert row["valid"] and row["completed"] == row["requests"] == 12
        shares = [row[f"share_{column}"] for column in COLUMNS]
        assert sum(shares) == pytest.approx(1)


async def what_it_adds_is_fitted(url: str, folder: Path) -> None:
    database, fitted = folder / "p.sqlite", folder / "mine.json"

    def profile(*words: object) -> None:
        assert main(["profile", *map(str, words)]) == 0

    with open_database(database, Subject("test", "float32", "cpu", "1")) as steps:
        for batch, tokens in product((1, 2, 4), (8, 64)):  # the engine's own, made up
            prefill, decode = 1 + 0.02 * batch * tokens, 2 + 0.1 * batch
            steps.add(Measured(batch, tokens, 16, prefill, decode, 0.0, 0.0, tokens + 8.0, 3))
    serving = ("serving", "--db", database, "--url", url, "--model", "test")
    await asyncio.to_thread(profile, *serving)
    found = read_loads(database, {record.origin for record in read_records(database)})
    assert [load.clients for load in found] == [1, 2]
    for load in found:
        assert len(load.requests) >= load.clients * loads.LEAST_REQUESTS
        assert all(request.ready_ms is not None for request in load.requests), "its KV was moved"
    profile("fit", "--db", database, "--output", fitted)
    assert json.loads(fitted.read_text())["test"]["1"]["serving"]["request_ms"] > 0
    load_profile(str(fitted))
