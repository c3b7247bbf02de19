"""`distserve profile` as a user meets it: it goes on where it was left, and mistakes are a line."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from distserve.cli.main import main
from distserve.models.builtin import builtin_path
from distserve.profile import session

LIMIT_SECONDS = 240
GRID = "1,2:8,16,24"
MEASURE = ("profile", "--model", "builtin:tiny", "--kv-cache", "4Mi", "--repeats", "1")
FAST = ("--warm-ups", "0", "--output-tokens", "3", "--max-num-seqs", "4")


def started(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "distserve.cli.main", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def rows(path: Path) -> list[tuple[object, ...]]:
    if not path.exists():
        return []
    with closing(sqlite3.connect(path, timeout=30)) as database:
        try:
            found = database.execute("SELECT * FROM records ORDER BY id").fetchall()
        except sqlite3.OperationalError:  # the table is not there yet
            return []
    return found


def wait_for_rows(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + LIMIT_SECONDS
    while len(rows(path)) < count:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.01)


@pytest.mark.timeout(3 * LIMIT_SECONDS)
def test_what_is_measured_stays_whatever_ends_it(tmp_path: Path) -> None:
    """SIGKILL, then Ctrl-C: the next call goes on. What is whole is fitted in the next test."""
    path = tmp_path / "p.sqlite"
    # A grid that would take minutes: the signals come while it runs.
    words = (*MEASURE, "--db", path, "--grid", "1,2:8,16,24," + ",".join(map(str, range(40, 140))))
    killed = started(*words)
    try:
        wait_for_rows(path, 2, killed)
    finally:
        killed.kill()
        killed.communicate(timeout=LIMIT_SECONDS)
    before = rows(path)
    stopped = started(*words)
    try:
        wait_for_rows(path, len(before) + 2, stopped)
        stopped.send_signal(signal.SIGINT)
        output, error = stopped.communicate(timeout=LIMIT_SECONDS)
    finally:
        stopped.kill()
        stopped.wait(LIMIT_SECONDS)
    assert stopped.returncode == 130
    assert f"{len(before)} of them by an earlier call" in output
    assert error == "interrupted; the same command goes on from there\n"
    after = rows(path)
    assert after[: len(before)] == before  # nothing was measured twice


def said(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> tuple[str, str]:
    assert main([*map(str, words)]) == code
    output, error = capsys.readouterr()
    return output, error


@pytest.mark.timeout(LIMIT_SECONDS)
def test_from_the_engine_to_the_planner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, fitted = tmp_path / "p.sqlite", tmp_path / "mine.json"
    words = (*MEASURE, *FAST, "--db", path)
    output, _ = said(capsys, 0, *words, "--grid", "1,2:8,16")
    assert output.startswith("4 of 4 batches of tiny (bfloat16, ")
    output, _ = said(capsys, 0, *words, "--grid", "1,2,8:8,16,24,4000")
    assert output.startswith("6 of 6 batches of tiny")
    assert "4 of them by an earlier call; 6 are more than the engine holds" in output
    output, _ = said(capsys, 0, *words, "--grid", "1,2:8,16", "--repeats", "3")
    assert output.startswith("4 of 4 batches of tiny") and "4 of them by an earlier" in output
    with closing(sqlite3.connect(path)) as database:
        rounds = dict(database.execute("SELECT repeats, COUNT(*) FROM records GROUP BY repeats"))
    assert rounds == {3: 4, 1: 2}
    assert all(time_ms > 0 for row in rows(path) for time_ms in row[9:11])

    plot = tmp_path / "fit.png"
    fit = ("profile", "fit", "--db", path)
    output, _ = said(capsys, 0, *fit, "--output", fitted, "--plot", plot)
    assert "held out" in output and f"wrote {fitted}" in output
    assert plot.stat().st_size > 1000 and plot.with_suffix(".svg").exists()
    document = json.loads(said(capsys, 0, *fit, "--format", "json")[0])["tiny TP 1"]
    assert document["errors"]["prefill"]["records"] == 6

    requests = tmp_path / "lengths.csv"
    requests.write_text("prompt_len,output_len\n" + "20,5\n" * 20)
    simulated, _ = said(
        capsys, 0, "simulate", "run", "--no-compat", "--model", builtin_path("tiny"),
        "--hardware-profile", fitted, "--requests", requests, "--N", "10", "--rate", "1",
    )  # fmt: skip
    assert "requests: 10" in simulated


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tp", "2"], "NotSupportedByEngine: --tp: this engine runs one rank"),
        (["--pp", "4"], "NotSupportedByEngine: --pp: this engine runs one rank"),
        (["--grid", "big"], "--grid 'big' is none: give paper, quick or BATCHES:LENGTHS"),
        (["--grid", "1,0:4"], "BATCHES:LENGTHS"),
        (["--model", "builtin:huge"], "huge"),
        (["--model", "/no/such/model"], "no such folder"),
        (["--output-tokens", "1"], "no decode step"),
        (["--kv-cache", "much"], "--kv-cache"),
        (["--kv-cache", "1Ki"], "bytes: raise --kv-cache\n"),
        (["--grid", "1:4,8", "--kv-cache", "4Mi"], "2 batches are too few to fit, 3 are needed"),
        (["--repeats", "0"], "no whole number above 0"),
        (["--speed=9"], "--speed=9"),
        (["fit", "--db", "/no/such.sqlite"], "no such file"),
        (["fit"], "give --db"),
        (["--db", "/no/such.sqlite", "fit"], "no such file"),
        (["--grid", "quick", "fit", "--db", "x"], "--grid has no effect on fit"),
        (["serving", "--db", "/no/such.sqlite", "--url", "http://x", "--model", "m"], "no such"),
        (["serving", "--db", "x", "--url", "http://x"], "--model is missing"),
        (["serving", "--db", "x", "--url", "127.0.0.1:8000", "--model", "m"], "is no URL; give"),
        (["--db", "/no/such/p.sqlite"], "no folder /no/such; make it"),
    ],
    ids=lambda value: " ".join(value)[-24:] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(
    words: Sequence[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["profile"]
    if not {"fit", "serving"} & set(words):
        base += ["--model", "builtin:tiny", "--db", str(tmp_path / "p.sqlite"), "--grid", "1:4"]
    try:
        code = main([*base, *words])
    except SystemExit as ended:  # argparse's own
        code = int(str(ended.code))
    output, error = capsys.readouterr()
    assert (code, output) == (2, "")
    assert error.count("\n") == 1 and error.startswith("distserve")
    assert message in error
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_what_stands_before_fit_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.sqlite"
    said(capsys, 0, *MEASURE, *FAST, "--db", path, "--grid", "1,2:8,16")
    output, _ = said(capsys, 0, "profile", "--db", path, "fit")
    assert output.startswith("tiny TP 1 (bfloat16, ")
    for flag, value in (("--model", "other"), ("--dtype", "float32")):
        _, error = said(capsys, 2, "profile", "--db", path, flag, value, "fit")
        assert f"no records of {flag[2:]} {value}" in error
        output, _ = said(
            capsys, 0, "profile", "--db", path, flag, value,
            "fit", "--model", "tiny", "--dtype", "bfloat16",
        )  # fmt: skip
        assert output.startswith("tiny TP 1 (bfloat16, "), "what stands behind it counts more"


@pytest.mark.timeout(LIMIT_SECONDS)
def test_too_few_is_told_by_what_the_file_holds_of_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not by whether there is a file: another model's records fit nothing of this one."""
    path = tmp_path / "p.sqlite"
    words = (*MEASURE, *FAST, "--db", path)
    said(capsys, 0, *words, "--grid", "1,2:8,16")
    before = rows(path)
    other = (*words, "--served-name", "other", "--grid", "1:4,8")
    output, error = said(capsys, 2, *other)
    assert output == "" and "2 batches are too few to fit, 3 are needed" in error
    assert rows(path) == before
    output, _ = said(capsys, 0, *words, "--grid", "1:4", "--output-tokens", "2")
    assert output.startswith("1 of 1 batches of tiny")


def test_ctrl_c_before_the_first_batch_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while torch is imported, or the model loaded."""

    def pressed(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "loaded", pressed)
    words = (*MEASURE, "--db", tmp_path / "p.sqlite", "--grid", GRID)
    assert said(capsys, 130, *words) == ("", "")


def test_files_that_are_no_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, other, folder = tmp_path / "text", tmp_path / "other.sqlite", tmp_path / "folder"
    text.write_text("not a database, only text " * 100)
    folder.mkdir()
    with closing(sqlite3.connect(other)) as database:
        database.execute("CREATE TABLE records (id integer, tp_world_size integer)")
        database.execute("INSERT INTO records VALUES (1, 1)")
        database.commit()
    for path, message in (
        (text, "cannot be used as a profile database: file is not a database"),
        (folder, "cannot be used as a profile database"),
        (other, "is another profiler's database"),
    ):
        _, error = said(capsys, 2, *MEASURE, "--grid", GRID, "--db", path)
        assert message in error and error.count("\n") == 1
    for path, message in (
        (text, "not a profile database"),
        (folder, "no such file"),
        (other, "`records` lacks avg_decoding_time_usage"),
    ):
        _, error = said(capsys, 2, "profile", "fit", "--db", path)
        assert message in error and error.count("\n") == 1
