"""What docs/profile.md shows is what the command takes."""

import argparse
import json
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from distserve.cli import profile
from distserve.cli.main import main
from distserve.planner.serving import Serving
from distserve.profile.grid import GRIDS

PAGES = Path(__file__).resolve().parents[2] / "docs"
DOCS, PLANNER = ((PAGES / name).read_text() for name in ("profile.md", "planner.md"))
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


def test_the_planner_s_page_measures_and_plans_in_a_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its pod's commands are understood, and its deployment is planned by its ConfigMap."""
    section = PLANNER.partition("## From a profile to a planned deployment")[2]
    pod, manifest = re.findall(r"```yaml\n(.+?)```", section, re.DOTALL)[:2]
    (container,) = yaml.safe_load(pod)["spec"]["containers"]
    parser = argparse.ArgumentParser()
    profile.add_arguments(parser)
    commands = re.findall(r"distserve profile (.+?) &&", container["args"][0])
    assert len(commands) == 2
    for command in commands:
        parser.parse_args(shlex.split(command))
    entry = {"prefill": [8, 0.06, 0]}
    entry |= {name: [6, 0, 0.1] for name in ("decoding_smallbs", "decoding_largebs")}
    text = json.dumps({"tiny": {"1": entry}})
    times = {"kind": "ConfigMap", "metadata": {"name": "times"}, "data": {"cpu.json": text}}
    deployment = tmp_path / "deployment.yaml"
    deployment.write_text(yaml.safe_dump_all([times, yaml.safe_load(manifest)]))
    assert main(["plan", "-f", str(deployment)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^hardwareProfile +times/cpu.json$", said, re.MULTILINE)


def test_names_are_all_there() -> None:
    for name in (*GRIDS, *(term.name for term in fields(Serving))):
        assert f"`{name}`" in DOCS, name
