"""A wrong word on the command line is one line and exit code 2, whatever the verb; a reader that
goes early is no error."""

import subprocess
import sys
from pathlib import Path

import pytest

from distserve.cli.main import main

DISTSERVE = [sys.executable, "-m", "distserve.cli.main"]
SAMPLE = Path(__file__).resolve().parents[2] / "manifests" / "samples" / "tiny-cpu.yaml"


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
def test_a_wrong_word_is_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert_one_line(*capsys.readouterr(), said)


def test_so_it_is_of_the_process() -> None:
    answer = subprocess.run([*DISTSERVE, "serve"], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 2
    assert_one_line(answer.stdout, answer.stderr, "serve")


def assert_one_line(out: str, err: str, said: str) -> None:
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("distserve")
    assert said in line


@pytest.mark.parametrize(
    "words",
    [["topology"], ["why", "tiny"], ["plan", "-f", str(SAMPLE), "--cluster"]],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "there is no "), ("", "cannot be understood"), ("a: [", "line 1")],
    ids=["none", "empty", "broken"],
)
def test_a_kubeconfig_that_is_none_is_one_line(
    words: list[str],
    content: str | None,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "config"
    if content is not None:
        file.write_text(content)
    assert main([*words, "--kubeconfig", str(file)]) == 2
    out, err = capsys.readouterr()
    assert_one_line(out, err, said)
    assert "name one with --kubeconfig" in err


def test_whoever_reads_may_go_early() -> None:
    process = subprocess.Popen(
        [*DISTSERVE, "render", "-f", str(SAMPLE)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
