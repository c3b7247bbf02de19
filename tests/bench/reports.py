"""Result files of runs, and reports that are made of them."""

import json
from pathlib import Path
from typing import Any

from distserve.cli.main import main

EVENTS = (
    "issued", "context_begin", "context_end", "migration_begin", "migration_end",
    "decoding_begin", "decoding_end",
)  # fmt: skip


def rows(good: int, bad: int, told: bool) -> list[dict[str, Any]]:
    return [
        {
            "prompt_len": 10, "output_len": 2, "start_time": 0.0, "end_time": ttft + 0.05,
            "token_timestamps": [ttft, ttft + 0.05], "latency": ttft + 0.05, "ftl": ttft,
            "tpot": 0.05, "lifecycle_events": [
                {"event_type": name, "timestamp": 0.125 * at} for at, name in enumerate(EVENTS)
            ] if told else [],
        }
        for ttft in [0.1] * good + [0.5] * bad
    ]  # fmt: skip


def told(results: Path, name: str, **parameters: Any) -> None:
    about = {"parameters": {"gpus": 1, **parameters}, "complete": True, "valid": True}
    (results / f"{name}.run.json").write_text(json.dumps(about))


def report(results: Path, *words: str) -> dict[str, Any]:
    assert main(["bench", "report", str(results), "--no-figures", *words]) == 0
    found: dict[str, Any] = json.loads((results / "report" / "report.json").read_text())
    return found


def slo_line(results: Path) -> str:
    (line,) = (
        line
        for line in (results / "report" / "report.html").read_text().splitlines()
        if line.startswith("<p>SLO (")
    )
    return line
