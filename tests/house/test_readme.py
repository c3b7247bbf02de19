"""What the README shows works: its manifest loads, its commands run, its links lead somewhere. The
pages have titles."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from distserve.api.loading import load_deployment

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(program: str) -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(program)]


def test_the_manifest_is_a_deployment(tmp_path: Path) -> None:
    (manifest,) = blocks("yaml")
    (tmp_path / "tiny.yaml").write_text(manifest)
    assert load_deployment(tmp_path / "tiny.yaml").metadata.name == "tiny"


@pytest.mark.parametrize("words", commands(".venv/bin/distserve"), ids=" ".join)
def test_commands_run(words: list[str]) -> None:
    if words[1] == "up":  # serves until it is ended: tests/e2e does that with this very sample
        assert (ROOT / words[words.index("-f") + 1]).exists()
        words = [*words[:2], "--help"]
    command = [sys.executable, "-m", "distserve.cli.main", *words[1:]]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout


@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_make_targets_exist(words: list[str]) -> None:
    answer = subprocess.run(
        ["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 0, answer.stderr


def test_links_lead_somewhere() -> None:
    links = [x for x in re.findall(r"\]\(([^)]+)\)", README) if "://" not in x]
    assert links
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing


def test_every_page_begins_with_its_title() -> None:
    pages = list((ROOT / "docs").rglob("*.md"))
    assert pages
    assert not [page for page in pages if not page.read_text().startswith("# ")]
