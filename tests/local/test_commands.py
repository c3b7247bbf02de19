"""`distserve render`, `up` and `demo` from the outside, as far as they need no engine."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from distserve.cli.main import main
from distserve.local import checks
from distserve.local.demo import Question

SAMPLE = Path(__file__).resolve().parents[2] / "manifests" / "samples" / "tiny-cpu.yaml"


def test_render_prints_what_is_applied(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "-f", str(SAMPLE)]) == 0
    text = capsys.readouterr().out
    objects = list(yaml.safe_load_all(text))
    assert "&id" not in text, "anchors are hard to read"
    assert main(["render", "-f", str(SAMPLE), "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == objects
    assert not [o for o in objects if o["kind"] == "Secret"], "a key is made, never printed"


def test_render_of_several_and_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = yaml.safe_load(SAMPLE.read_text())
    other = document | {"metadata": {"name": "other"}}
    path = tmp_path / "both.yaml"
    path.write_text(yaml.safe_dump_all([document, other]))
    assert main(["render", "-f", str(path), "--name", "other"]) == 0
    names = {o["metadata"]["labels"]["distserve.io/deployment"]
             for o in yaml.safe_load_all(capsys.readouterr().out)}  # fmt: skip
    assert names == {"other"}
    assert main(["render", "-f", str(path), "--name", "third"]) == 2
    assert "third" in capsys.readouterr().err
    assert main(["up", "-f", str(path)]) == 2
    assert "name one" in capsys.readouterr().err
    assert main(["demo", "-f", str(path), "--name", "other", "--port", "0"]) == 2
    assert "port 0 is none" in capsys.readouterr().err, "it was found"


def test_render_refuses_a_template_that_breaks_the_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = yaml.safe_load(SAMPLE.read_text())
    document["spec"]["prefill"]["podTemplate"] = {
        "spec": {"containers": [{"name": "engine", "args": ["--mine"]}]}
    }
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(document))
    for verb in ("render", "up"):
        assert main([verb, "-f", str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "spec.prefill.podTemplate.spec.containers[engine].args" in line


@pytest.fixture
def wrong(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a verb says to words that are refused, with any memory and a free port."""
    monkeypatch.setattr(checks, "available_memory_bytes", lambda: 64 << 30)

    def said(*words: str, code: int = 2) -> str:
        assert main([*words, "-f", str(SAMPLE)]) == code
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        return line

    return said


@pytest.mark.parametrize("verb", ["up", "demo"])
@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--port", "0", "choose one from 1 to 65535 with --port"),
        ("--port", "70000", "choose one from 1 to 65535 with --port"),
        ("--log-dir", str(SAMPLE), "File exists; name a folder that can be written to"),
        ("--log-dir", str(SAMPLE / "logs"), "Not a directory; name a folder"),
        ("--name", "other", "'other'; there is tiny"),
        ("--hardware-profile", "a", "--hardware-profile has no effect in planning.mode Manual"),
        ("--trace", "a", "--trace has no effect in planning.mode Manual"),
    ],
)
def test_a_wrong_flag_is_one_line(wrong: Any, verb: str, flag: str, value: str, said: str) -> None:
    free = [] if flag == "--port" else ["--port", str(checks.free_port())]
    assert said in wrong(verb, flag, value, *free)


def test_a_file_for_targets_that_cannot_be_written_is_found_before_the_start(wrong: Any) -> None:
    said = wrong("up", "--prometheus-targets", str(SAMPLE / "targets.json"))
    assert said.endswith("Not a directory; name a file that can be written")


def test_a_machine_that_fails_is_one_line(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/distserve-up-x")

    monkeypatch.setattr("distserve.local.session.run_directory", full)
    said = wrong("up", "--port", str(checks.free_port()), code=1)
    assert "No space left on device: '/tmp/distserve-up-x'" in said


def test_rendering_needs_neither_torch_nor_a_server() -> None:
    program = (
        "import sys; from distserve.cli.main import main;"
        f"code = main(['render', '-f', {str(SAMPLE)!r}]);"
        "print(sorted(set(sys.modules) & {'torch', 'transformers', 'fastapi', 'kubernetes',"
        " 'aiohttp'}), file=sys.stderr); sys.exit(code)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    )
    assert (found.returncode, found.stderr.strip()) == (0, "[]")


@pytest.mark.parametrize(
    ("question", "path", "field"),
    [
        (Question("hi", chat=True), "/v1/chat/completions", "messages"),
        (Question("hi", chat=False), "/v1/completions", "prompt"),
    ],
)
def test_demo_asks_by_both_surfaces(question: Question, path: str, field: str) -> None:
    body: dict[str, Any] = question.body("tiny")
    assert question.path == path
    assert field in body and body["stream"] and body["stream_options"] == {"include_usage": True}
