"""What docs/profile.md shows is what the command takes."""

import argparse
import json
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from distserve.cli import profile
from distserve.cli.main import main
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


def test_the_deployment_can_be_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (manifest,) = re.findall(r"```yaml\n(.+?)```", DOCS, re.DOTALL)
    deployment, measured = tmp_path / "deployment.yaml", tmp_path / "mine.json"
    deployment.write_text(manifest)
    entry = {"prefill": [8, 0.06, 0], "decoding_smallbs": [6, 0, 0.1]}
    entry |= {"decoding_largebs": [6, 0, 0.1], "decoding_large_small_bs_threshold": 95}
    measured.write_text(json.dumps({"tiny": {"1": entry}}))
    assert main(["plan", "-f", str(deployment), "--hardware-profile", str(measured)]) == 0
    assert re.search(r"^feasible +True$", capsys.readouterr().out, re.MULTILINE)


def test_names_are_all_there() -> None:
    for name in (*GRIDS, *(term.name for term in fields(Serving))):
        assert f"`{name}`" in DOCS, name
