"""The folders' layout: what would break the standard library, and what would break the layers."""

import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINT = Path(sys.executable).parent / "lint-imports"


@pytest.mark.parametrize(
    "folder", ["operator", "runtime", "operator/distserve", "runtime/distserve"]
)
def test_namespace_folders_are_no_packages(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


def test_tests_are_no_packages() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("folder", [".", "operator", "runtime", "tests"])
def test_operator_is_the_standard_librarys(folder: str) -> None:
    """In a clean interpreter: an editable install could hide a package called operator."""
    program = "import collections, operator; print(operator.__file__)"
    found = subprocess.run(
        [sys.executable, "-S", "-c", program],
        cwd=ROOT / folder,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()).parent == Path(sysconfig.get_paths()["stdlib"])


def test_every_room_is_under_the_layers() -> None:
    rooms = {
        f"distserve.{folder.name}"
        for half in ("operator", "runtime")
        for folder in (ROOT / half / "distserve").iterdir()
        if (folder / "__init__.py").exists()
    }
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert set(settings["root_packages"]) == rooms
    (layers,) = [c["layers"] for c in settings["contracts"] if c["type"] == "layers"]
    assert {room for layer in layers for room in layer.split(" | ")} == rooms


CONFIG = """
[tool.importlinter]
root_packages = ["distserve.low", "distserve.high"]
include_external_packages = true
[[tool.importlinter.contracts]]
name = "layers"
type = "layers"
layers = ["distserve.high", "distserve.low"]
"""


@pytest.mark.parametrize(("low", "code"), [("", 0), ("import distserve.high", 1)])
def test_layers_over_namespace_folders_are_really_checked(
    tmp_path: Path, low: str, code: int
) -> None:
    for half, room, text in (("operator", "low", low), ("runtime", "high", "")):
        folder = tmp_path / half / "distserve" / room
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(text)
    (tmp_path / "pyproject.toml").write_text(CONFIG)
    found = subprocess.run(
        [LINT, "--no-cache", "--config", "pyproject.toml"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}/operator:{tmp_path}/runtime"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == code, found.stdout + found.stderr


def test_sample_of_the_demo_is_found() -> None:
    from distserve.cli.demo import SAMPLE, sample

    assert sample(SAMPLE).is_file()
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert included["targets"]["wheel"]["force-include"] == {
        "manifests/samples": "distserve/cli/samples"
    }
