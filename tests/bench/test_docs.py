"""What docs/bench.md shows is what the command takes."""

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from distserve.bench.datasets.builders import BUILDERS
from distserve.bench.datasets.prepare import MIXES
from distserve.bench.slos import LOONGSERVE_SLOS, NAMED_SLOS, NormalisedSlo, words
from distserve.bench.synthetic import synthetic
from distserve.cli import bench, up

DOCS_PATH = Path(__file__).resolve().parents[2] / "docs" / "bench.md"
DOCS = DOCS_PATH.read_text()
COMMANDS = re.findall(r"^distserve bench (.+)$", DOCS, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command: str) -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    parser.parse_args(shlex.split(command))


@pytest.mark.parametrize("command", re.findall(r"^distserve up (.+)$", DOCS, re.MULTILINE))
def test_servers_can_be_started(command: str) -> None:
    parser = argparse.ArgumentParser()
    up.add_arguments(parser)
    assert (DOCS_PATH.parents[1] / parser.parse_args(shlex.split(command)).file).exists()


SCRIPTS = [
    found
    for page in ("bench.md", "performance.md")
    for found in re.findall(
        r"(?:python|-m) benchmarks[./](\w+)(?:\.py)?([^`]*)`", DOCS_PATH.with_name(page).read_text()
    )
]


class Understood(Exception):
    """In place of what a script does with its words."""


@pytest.mark.parametrize(("script", "words"), SCRIPTS)
def test_commands_of_scripts_are_understood(
    script: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_alone(parser: argparse.ArgumentParser) -> None:
        parse(parser)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_alone)
    monkeypatch.setattr(sys, "argv", [script, *shlex.split(words)])
    package = (DOCS_PATH.parents[1] / "benchmarks" / script).is_dir()
    module = importlib.import_module(f"benchmarks.{script}{'.__main__' * package}")
    with pytest.raises(Understood):
        module.main()


@pytest.mark.parametrize("words", re.findall(r"^\| `synthetic:(.+?)`", DOCS, re.MULTILINE))
def test_synthetic_sets_can_be_made(words: str) -> None:
    assert len(synthetic(words, 3, 0)) == 3


def test_names_are_all_there() -> None:
    for name in (*BUILDERS, *MIXES, *NAMED_SLOS):
        assert f"`{name}`" in DOCS, name
    objectives = r"^\| `(.+?)` \| (\S+(?: s)?) / (\S+(?: s)?)"
    sweeps = r" \| (\S+) to (\S+) \| ([0-9.]*) ?\| ([^|]*?) ?\|"
    rows = re.findall(objectives + sweeps, DOCS, re.MULTILINE)
    assert {
        name: (ttft, tpot, float(most), float(least), float(rate) if rate else None, measured)
        for name, ttft, tpot, most, least, rate, measured in rows
    } == {
        name: (
            words(slo.ttft), words(slo.tpot), slo.scales[0], slo.scales[-1], slo.scale_rate,
            f"{slo.requests} at {slo.rates[0]:g} to {slo.rates[-1]:g}" if slo.rates else "",
        )
        for name, slo in NAMED_SLOS.items()
    }  # fmt: skip


def test_limits_per_token_are_all_there() -> None:
    rows = re.findall(r"^\| `(.+?)` \| (\S+) / (\S+) / (\S+) ms \|", DOCS, re.M)
    assert {name: NormalisedSlo(*map(float, limits)) for name, *limits in rows} == LOONGSERVE_SLOS


SECTIONS = {
    "run": "Offering load",
    "prepare": "Data sets",
    "report": "Reports",
    "front": "Baselines",
}


def parser_of(verb: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    (verbs,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    found: argparse.ArgumentParser = verbs.choices[verb]
    return found


def flags_of(verb: str) -> set[str]:
    known = parser_of(verb)._option_string_actions
    return {flag for flag in known if flag.startswith("--")} - {"--help"}


def test_flags_in_tables_exist() -> None:
    known = set().union(*map(flags_of, bench.VERBS))
    assert set(re.findall(r"`(--[a-z-]+)", DOCS)) <= known


@pytest.mark.parametrize("verb", bench.VERBS)
def test_every_flag_is_explained(verb: str) -> None:
    (section,) = re.findall(rf"^## {SECTIONS[verb]}$(.+?)^## ", DOCS, re.MULTILINE | re.DOTALL)
    explained = set(re.findall(r"(?<![\w-])--[a-z-]+", section))
    assert not flags_of(verb) - explained


@pytest.mark.parametrize("verb", bench.VERBS)
def test_every_flag_has_a_help_text(verb: str) -> None:
    for action in parser_of(verb)._actions:
        assert action.help, action.option_strings or action.dest
