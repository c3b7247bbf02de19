"""The dashboards against Grafana's schema: its own types in Go read them, strictly."""

import copy
import json
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tools.cluster.binaries import ensure
from tools.cluster.fixtures import or_skip
from tools.cluster.progress import Progress

from distserve.observability.pack import dashboard_files

# The first run of a machine compiles the types: half a minute of a core.
pytestmark = pytest.mark.timeout(600)

Check = Callable[[Iterable[Path]], str]
Place = tuple[str | int, ...]


@pytest.fixture(scope="module")
def check() -> Check:
    """check(files) -> a line for each place that is wrong."""
    with or_skip("dashboard-check"):
        program = ensure(["dashboard-check"], Progress())["dashboard-check"]

    def run(files: Iterable[Path]) -> str:
        answer = subprocess.run([program, *files], capture_output=True, text=True, timeout=60)
        assert not answer.stderr, answer.stderr
        assert (answer.returncode == 0) == (answer.stdout == "")
        return answer.stdout

    return run


def test_they_have_nothing_that_the_schema_does_not_know(check: Check, tmp_path: Path) -> None:
    for name, text in dashboard_files().items():
        (tmp_path / name.name).write_text(text)
    assert check(sorted(tmp_path.iterdir())) == ""


def test_one_wrong_place_anywhere_is_found(check: Check, tmp_path: Path) -> None:
    """A field too many in each object, a wrong type in each place, one at a time."""
    spoiled: dict[str, str] = {}
    for text in dashboard_files().values():
        document = json.loads(text)
        for place, found in places(document):
            for how, value in mistakes(found):
                what = f"{how} {kind(document, place)} {pattern(place)}"
                if what not in spoiled:
                    spoiled[what] = json.dumps(changed(document, place, value))
    assert len(spoiled) > 150
    files = {tmp_path / f"{number}.json": what for number, what in enumerate(spoiled)}
    for file, what in files.items():
        file.write_text(spoiled[what])
    said = {line.split(": ")[0] for line in check(files).splitlines()}
    missed = {what for file, what in files.items() if str(file) not in said}
    # An override may match by anything and set anything: the schema says no more.
    free = ("overrides.#.matcher.options", "overrides.#.properties.#.value")
    assert {what for what in missed if not any(part in what for part in free)} == set()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("panels", 1, "type"), "speedometer"),
        (("panels", 1, "targets", 0, "datasource", "type"), "a database"),
        (("panels", 1, "gridPos", "w"), 25),
        (("panels", 1, "fieldConfig"), None),
    ],
)
def test_what_the_program_cannot_judge_is_refused(
    check: Check, tmp_path: Path, place: Place, value: Any
) -> None:
    document = json.loads(next(iter(dashboard_files().values())))
    file = tmp_path / "one.json"
    file.write_text(json.dumps(changed(document, place, value)))
    assert f"{file}: panels[1]" in check([file])


def places(found: Any, at: Place = ()) -> Iterator[tuple[Place, Any]]:
    yield at, found
    inner: Iterable[tuple[str | int, Any]] = ()
    if isinstance(found, dict):
        inner = found.items()
    elif isinstance(found, list):
        inner = enumerate(found)
    for name, value in inner:
        yield from places(value, (*at, name))


def mistakes(found: Any) -> Iterator[tuple[str, Any]]:
    match found:
        case dict():
            yield "a field too many in", {**found, "surprise": 1}
            yield "a number for", 7
        case str():
            yield "a number for", 7
        case list() | bool():
            yield "a text for", "x"
        case _:
            yield "a text for", "7"


def changed(document: Any, place: Place, value: Any) -> Any:
    if not place:
        return value
    made = inner = copy.deepcopy(document)
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    return made


def kind(document: Any, place: Place) -> str:
    inside_a_panel = place[:1] == ("panels",) and len(place) > 1
    return str(document["panels"][place[1]]["type"]) if inside_a_panel else "dashboard"


def pattern(place: Place) -> str:
    return ".".join("#" if isinstance(name, int) else name for name in place)
