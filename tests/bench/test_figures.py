"""What the report's figures show where requests failed or runs are alike."""

from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from distserve.bench.analysis import Run, Sample
from distserve.bench.figures import (
    Panel,
    attainment_over_rate,
    distribution,
    draw_all,
    stages_of_runs,
)
from distserve.bench.lifecycle import STAGES
from distserve.bench.slos import Slo
from distserve.bench.tables import Question


def run(requests: int, completed: int, rate: float = 2.0) -> Run:
    samples = [
        Sample(10, 2, 0.0, 1.0, 1.0, 0.1 * (place + 1), 0.05, dict.fromkeys(STAGES, 0.2))
        for place in range(completed)
    ]
    return Run("s", requests, rate, samples)


def test_a_run_has_a_bar_of_its_own() -> None:
    """Two counts at one rate, and two rates that read alike."""
    runs = [run(10, 10), run(20, 20), run(30, 30, rate=2.0001), run(10, 10, rate=4.0)]
    axis = Figure().subplots()
    stages_of_runs(axis, Question(runs, Slo(1, 1), (1.0,)))
    bars = [(round(bar.get_x()), bar.get_y()) for bar in axis.patches]
    assert len(bars) == len(set(bars)) == len(STAGES) * len(runs)
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "s, 2/s/GPU, 10 requests", "s, 2/s/GPU, 20 requests", "s, 2/s/GPU, 30 requests",
        "s, 4/s/GPU",
    ]  # fmt: skip


def test_a_distribution_ends_at_the_share_that_was_completed() -> None:
    axis = Figure().subplots()
    panel = distribution("TTFT", lambda sample: sample.ttft)
    panel.draw(axis, Question([run(10, 6), run(4, 4, rate=4.0)], Slo(1, 1), (1.0,)))
    ends = [float(max(line.get_ydata())) for line in axis.lines]
    assert ends == [60, 100]
    assert axis.get_ylabel() == "of all asked requests, %" and axis.get_ylim()[1] > 100


def test_the_same_data_draw_the_same_files() -> None:
    question = Question([run(10, 10), run(20, 12, rate=4.0)], Slo(1, 1), (1.0, 0.5))
    once, again = draw_all(question), draw_all(question)
    assert len(once) > 3
    for picture, same in zip(once, again, strict=True):
        assert (picture.svg, picture.png) == (same.svg, same.png), picture.name


@pytest.mark.parametrize(
    "panel", [Panel(attainment_over_rate), distribution("TTFT", lambda sample: sample.ttft)]
)
def test_no_two_systems_look_alike(panel: Panel) -> None:
    """There are seven colours, which all eyes tell apart."""
    runs = [replace(run(10, 10), system=f"s{place:02}") for place in range(20)]
    axis = Figure().subplots()
    panel.draw(axis, Question(runs, Slo(1, 1), (1.0,)))
    looks = [
        (line.get_color(), line.get_marker(), line.get_linestyle())
        for line in axis.lines
        if str(line.get_label()).startswith("s")
    ]
    assert len(looks) == len(set(looks)) >= len(runs)
