"""The nouns of a dashboard: what is asked and how it is shown. `grafana` writes them as JSON."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, StrEnum


class Unit(StrEnum):
    """Grafana's names of units."""

    SECONDS = "s"
    SHARE = "percentunit"
    COUNT = "short"
    REQUESTS = "reqps"
    PER_SECOND = "ops"
    BYTES_PER_SECOND = "Bps"


class Form(Enum):
    LINES = "lines"
    STACKED = "stacked"
    NUMBER = "number"


@dataclass(frozen=True)
class Query:
    expression: str
    legend: str = ""
    target: bool = False
    """What is compared with: a dashed line. Absent where the deployment promises nothing."""
    instant: bool = False
    """One value for the whole time that is shown."""


@dataclass(frozen=True)
class Panel:
    title: str
    description: str
    queries: tuple[Query, ...]
    unit: Unit = Unit.COUNT
    form: Form = Form.LINES
    most: float | None = None
    """The axis' upper end, where there is a natural one."""
    width: int = 8
    """Of 24 columns."""
    without: str = ""
    """Said where there is nothing to show, for what not every deployment has."""


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """Chosen at the top of a dashboard from a label's values."""

    name: str
    metric: str
    label: str

    @property
    def query(self) -> str:
        return f"label_values({self.metric}, {self.label})"


@dataclass(frozen=True)
class Dashboard:
    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]

    @property
    def panels(self) -> Iterator[Panel]:
        for row in self.rows:
            yield from row.panels
