"""A wrong word on the command line is one line and exit code 2, whatever the verb; a reader that
goes early is no error."""

import argparse
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from distserve.cli.main import main
from distserve.resources.settings import released_images

DISTSERVE = [sys.executable, "-m", "distserve.cli.main"]
ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "manifests" / "samples" / "tiny-cpu.yaml"


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


def test_the_first_help_is_for_users(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "Disaggregated LLM inference" in said
    assert "module" not in said


def test_the_version_is_the_images(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    version = capsys.readouterr().out.removeprefix("distserve ").strip()
    assert released_images().engine == f"distserve/engine:{version}"


@pytest.mark.parametrize(
    ("words", "absent", "extra"),
    [
        (["why", "tiny"], "kubernetes", "operator"),
        (["render", "-f", str(SAMPLE)], "yaml", "operator"),
        (["profile", "--model", "builtin:tiny", "--db", "x.sqlite"], "torch", "engine,bench"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_missing_package_is_one_line_with_its_extra(
    words: list[str], absent: str, extra: str
) -> None:
    answer = without(absent, words)
    assert answer.returncode == 2
    assert_one_line(answer.stdout, answer.stderr, f"{absent} is not installed")
    assert f"pip install '.[{extra}]'" in answer.stderr
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extra.split(",")) <= extras["optional-dependencies"].keys()


def test_a_process_shows_the_whole_trace_of_a_missing_package() -> None:
    answer = without("pydantic", ["engine"])
    assert answer.returncode == 1
    assert "Traceback" in answer.stderr
    assert "pip install" not in answer.stderr


def without(package: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.modules[{package!r}] = None\n"
    program += "from distserve.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


PROCESSES = {
    "engine": "--model=m --served-name=m --instance=i --host=h --key-file=k",
    "migrator": "--instance=i --host=h --key-file=k",
    "gateway": "--model=m --discovery=file:x --key-file=k",
    "operator": "",
}


@pytest.mark.parametrize("process", PROCESSES)
def test_the_environment_says_how_much_a_process_logs(
    process: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = PROCESSES[process].split()

    def level(*more: str) -> str:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"distserve.cli.{process}").add_arguments(parser)
        return str(parser.parse_args([*words, *more]).log_level)

    assert level() == "info"
    monkeypatch.setenv("DISTSERVE_LOG_LEVEL", "debug")
    assert level() == "debug"
    assert level("--log-level=error") == "error"
    monkeypatch.setenv("DISTSERVE_LOG_LEVEL", "loud")
    with pytest.raises(SystemExit) as ended:
        main([process, *words])
    assert ended.value.code == 2
    assert_one_line(*capsys.readouterr(), "DISTSERVE_LOG_LEVEL")
