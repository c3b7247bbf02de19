"""What make and CI do to a machine, told without doing it."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("target", TARGETS)
def test_a_dry_run_starts_none_of_our_programs(target: str, tmp_path: Path) -> None:
    """make itself runs recipes that call make. In this folder no program is found."""
    answer = subprocess.run(
        ["make", "--dry-run", target, f"RUN={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 0, answer.stderr


def test_in_ci_a_machine_without_kubernetes_is_a_failure(tmp_path: Path) -> None:
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho "CI=$CI make $*"\n')
    make.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    said = subprocess.run(
        [ROOT / ".ci" / "run"], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout == "CI=true make test\n"
