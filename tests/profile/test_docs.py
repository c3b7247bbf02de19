"""What docs/profile.md shows is what the command takes."""

import argparse
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from distserve.cli import profile
from distserve.planner.serving import Serving
from distserve.profile.grid import GRIDS

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "profile.md").read_text()
COMMANDS = re.findall(r"^distserve profile (.+)$", DOCS, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command: str) -> None:
    parser = argparse.ArgumentParser()
    profile.add_arguments(parser)
    parser.parse_args(shlex.split(command))


def test_flags_in_tables_exist() -> None:
    parser = argparse.ArgumentParser()
    profile.add_arguments(parser)
    (verbs,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    known = set(parser._option_string_actions)
    known |= {flag for verb in verbs.choices.values() for flag in verb._option_string_actions}
    shown = set(re.findall(r"`(--[a-z-]+)", DOCS))
    assert shown and shown <= known


def test_names_are_all_there() -> None:
    for name in (*GRIDS, *(term.name for term in fields(Serving))):
        assert f"`{name}`" in DOCS, name
