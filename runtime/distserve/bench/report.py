"""`distserve bench report`: from a folder of result files to tables, figures and a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from distserve.bench.errors import BenchError
from distserve.bench.figures import draw_all
from distserve.bench.page import page, warnings
from distserve.bench.reading import read_folder
from distserve.bench.slos import DEFAULT_SCALES, NormalisedSlo, Slo, named_slo
from distserve.bench.tables import (
    Question,
    Row,
    crossing_rows,
    csv_text,
    json_text,
    normalised_rows,
    request_rows,
    run_rows,
    scale_rows,
)


@dataclass(frozen=True)
class Asked:
    """What the command line says of objectives."""

    name: str | None = None
    ttft: float | None = None
    tpot: float | None = None
    scales: tuple[float, ...] | None = None


def question_of(folder: Path, asked: Asked, gpus: Mapping[str, int]) -> Question:
    """The folder's runs and the objectives: named, given, else those that the runs had.

    Raises BenchError.
    """
    runs = read_folder(folder, gpus)
    if asked.name is not None:
        if asked.ttft is not None or asked.tpot is not None:
            raise BenchError("--slo and --slo-ttft/--slo-tpot exclude each other; give one")
        named = named_slo(asked.name)
        words = f"{asked.name}; {named.source}"
        return Question(runs, named.slo, asked.scales or named.scales, words)
    of_runs = {
        (parameters.get("slo_ttft"), parameters.get("slo_tpot"))
        for run in runs
        if (parameters := run.about.get("parameters"))
    }
    told = of_runs.pop() if len(of_runs) == 1 else (None, None)
    ttft = asked.ttft if asked.ttft is not None else told[0]
    tpot = asked.tpot if asked.tpot is not None else told[1]
    if ttft is None or tpot is None:
        raise BenchError(
            "the runs do not agree on objectives; give --slo-ttft and --slo-tpot, or --slo NAME"
        )
    words = "given" if asked.ttft is not None else "of the runs"
    return Question(runs, Slo(ttft, tpot), asked.scales or DEFAULT_SCALES, words)


def write_report(
    question: Question,
    output: Path,
    figures: bool,
    say: Callable[[str], None],
    normalised: NormalisedSlo | None = None,
) -> dict[str, list[Row]]:
    """Write everything into `output`; the tables, for who wants to print them."""
    tables = {
        "crossings": crossing_rows(question),
        "runs": run_rows(question),
        "scales": scale_rows(question),
    }
    if normalised is not None:
        tables["normalised"] = normalised_rows(question, normalised)
    output.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        (output / f"{name}.csv").write_text(csv_text(rows))
    (output / "requests.csv").write_text(csv_text(request_rows(question)))
    (output / "report.json").write_text(json_text(**tables))
    pictures = draw_all(question) if figures else []
    for picture in pictures:
        (output / f"{picture.name}.png").write_bytes(picture.png)
        (output / f"{picture.name}.svg").write_text(picture.svg)
    (output / "report.html").write_text(page(question, dict(tables), pictures))
    for line in warnings(question):
        say(line)
    return tables
