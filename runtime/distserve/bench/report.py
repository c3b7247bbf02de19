"""`distserve bench report`: from a folder of result files to tables, figures and a page."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from distserve.bench.figures import Picture, draw_all
from distserve.bench.objectives import Asked, held_against
from distserve.bench.page import page, warnings
from distserve.bench.progress import Counting
from distserve.bench.reading import equal_gaps, interrupted, read_folder
from distserve.bench.slos import NormalisedSlo
from distserve.bench.tables import (
    Question,
    Row,
    class_rows,
    crossing_rows,
    csv_text,
    json_text,
    normalised_rows,
    request_rows,
    run_rows,
    scale_rows,
)
from distserve.bench.writing import write_whole


def question_of(folder: Path, asked: Asked, gpus: Mapping[str, int]) -> Question:
    """The folder's runs and what they are held against. Raises BenchError."""
    runs = read_folder(folder, gpus)
    held = held_against(runs, asked)
    return Question(
        runs, held.slo, held.scales, held.source, held.scale_rate, interrupted(folder),
        equal_gaps(folder),
    )  # fmt: skip


def write_report(
    question: Question,
    output: Path,
    figures: bool,
    say: Callable[[str], None],
    normalised: NormalisedSlo | None = None,
) -> dict[str, list[Row]]:
    """Write everything into `output`; the tables, for who wants to print them.

    Raises BenchError where that is not possible.
    """
    tables = {
        "crossings": crossing_rows(question),
        "runs": run_rows(question),
        "scales": scale_rows(question),
    }
    if question.classes:
        tables["classes"] = class_rows(question)
    if normalised is not None:
        tables["normalised"] = normalised_rows(question, normalised)
    output.mkdir(parents=True, exist_ok=True)

    def keep(name: str, content: str | bytes) -> None:
        write_whole(output / name, content, "make room, or give another --output-dir")

    for name, rows in tables.items():
        keep(f"{name}.csv", csv_text(rows))
    keep("requests.csv", csv_text(request_rows(question)))
    keep("report.json", json_text(**tables))
    pictures = _drawn(question) if figures else []
    for picture in pictures:
        keep(f"{picture.name}.png", picture.png)
        keep(f"{picture.name}.svg", picture.svg)
    keep("report.html", page(question, dict(tables), pictures))
    for line in warnings(question):
        say(line)
    return tables


def _drawn(question: Question) -> list[Picture]:
    progress = Counting("report", "figures", sys.stderr)
    try:
        return draw_all(question, progress.one)
    finally:
        progress.close()
