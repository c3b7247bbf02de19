"""docs/metrics.md has every metric of every process, with its type and labels, and no other."""

from prometheus_client import CollectorRegistry, Metric
from tools.cluster.cluster import CHECKOUT

PAGE = (CHECKOUT / "docs" / "metrics.md").read_text()
PROCESSES = ("operator", "operator", "gateway", "engine", "migrator")
"""Whose the fixture's registries are, in its order."""
SUFFIXES = {"counter": "_total", "info": "_info"}

Name = tuple[str, str]
"""Process and metric."""


def rows() -> list[list[str]]:
    """Process, name, type, labels and meaning of each."""
    lines = [line for line in PAGE.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    return [row for row in cells if row[0] in PROCESSES]


def names(cell: str) -> list[str]:
    return [word.strip().strip("`") for word in cell.split(",") if word]


def declared(registries: list[CollectorRegistry]) -> dict[Name, list[Metric]]:
    """Under the names that a scrape shows. What two registries have comes twice."""
    found: dict[Name, list[Metric]] = {}
    for process, registry in zip(PROCESSES, registries, strict=True):
        for metric in registry.collect():
            name = metric.name + SUFFIXES.get(metric.type, "")
            found.setdefault((process, name), []).append(metric)
    return found


def test_all_are_there_once_and_no_other(registries: list[CollectorRegistry]) -> None:
    said = [(process, name.strip("`")) for process, name, *_ in rows()]
    assert sorted(said) == sorted(declared(registries))


def test_types_and_labels_are_right(registries: list[CollectorRegistry]) -> None:
    metrics = declared(registries)
    seen = 0
    for process, name, kind, labels, meaning in rows():
        found = metrics[process, name.strip("`")]
        assert meaning
        assert {metric.type for metric in found} == {kind}, name
        samples = [sample for metric in found for sample in metric.samples]
        seen += bool(samples)  # without a series nobody sees the labels
        for sample in samples:
            assert sorted(sample.labels.keys() - {"le"}) == sorted(names(labels)), name
    assert seen >= len(metrics) - 1, "all but the gateway's bytes by transport have series"
