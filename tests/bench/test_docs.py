"""What docs/bench.md shows is what the command takes."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from distserve.bench.datasets.builders import BUILDERS
from distserve.bench.datasets.prepare import MIXES
from distserve.bench.slos import NAMED_SLOS
from distserve.bench.synthetic import synthetic
from distserve.cli import bench

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "bench.md").read_text()
COMMANDS = re.findall(r"^distserve bench (.+)$", DOCS, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command: str) -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    parser.parse_args(shlex.split(command))


@pytest.mark.parametrize("words", re.findall(r"^\| `synthetic:(.+?)`", DOCS, re.MULTILINE))
def test_synthetic_sets_can_be_made(words: str) -> None:
    assert len(synthetic(words, 3, 0)) == 3


def test_names_are_all_there() -> None:
    for name in (*BUILDERS, *MIXES, *NAMED_SLOS):
        assert f"`{name}`" in DOCS, name
    named = {name: slo.slo for name, slo in NAMED_SLOS.items()}
    for name, ttft, tpot in re.findall(r"^\| `(.+?)` \| ([0-9.]+) s / ([0-9.]+) s", DOCS, re.M):
        slo = named.pop(name)
        assert (slo.ttft, slo.tpot) == (float(ttft), float(tpot))
    assert not named


def test_flags_in_tables_exist() -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    (verbs,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    known = {flag for verb in verbs.choices.values() for flag in verb._option_string_actions}
    assert set(re.findall(r"`(--[a-z-]+)", DOCS)) <= known
