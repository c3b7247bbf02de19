"""A wrong word on the command line is one line and exit code 2, whatever the verb."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve"], "serve"),
        (["up"], "-f"),
        (["engine", "--role", "both"], "both"),
        (["simulate", "run", "--arrival", "never"], "never"),
        (["render", "-f", "x.yaml", "--colour"], "--colour"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_word_is_one_line(words: list[str], said: str) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "distserve.cli.main", *words],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 2
    assert answer.stdout == ""
    (line,) = answer.stderr.splitlines()
    assert line.startswith("distserve")
    assert said in line
