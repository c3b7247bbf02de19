"""What docs/bench.md shows is what the command takes."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from distserve.bench.datasets.builders import BUILDERS
from distserve.bench.datasets.prepare import MIXES
from distserve.bench.slos import LOONGSERVE_SLOS, NAMED_SLOS, NormalisedSlo, words
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
    rows = re.findall(
        r"^\| `(.+?)` \| (\S+(?: s)?) / (\S+(?: s)?) \| (\S+) to (\S+) \| ([0-9.]*) ?\|", DOCS, re.M
    )
    assert {
        name: (ttft, tpot, float(most), float(least), float(rate) if rate else None)
        for name, ttft, tpot, most, least, rate in rows
    } == {
        name: (words(slo.ttft), words(slo.tpot), slo.scales[0], slo.scales[-1], slo.scale_rate)
        for name, slo in NAMED_SLOS.items()
    }


def test_limits_per_token_are_all_there() -> None:
    rows = re.findall(r"^\| `(.+?)` \| (\S+) / (\S+) / (\S+) ms \|", DOCS, re.M)
    assert {name: NormalisedSlo(*map(float, limits)) for name, *limits in rows} == LOONGSERVE_SLOS


def test_flags_in_tables_exist() -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    (verbs,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    known = {flag for verb in verbs.choices.values() for flag in verb._option_string_actions}
    assert set(re.findall(r"`(--[a-z-]+)", DOCS)) <= known
