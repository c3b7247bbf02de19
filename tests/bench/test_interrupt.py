"""Ctrl-C keeps what is finished, and of the interrupted rate what has ended."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 90


def interrupted(stub: Any, folder: Path, pairs: str, asked: int) -> tuple[int, str, str]:
    """`distserve bench run` ended by Ctrl-C once the stub was asked so often; (code, out, err)."""
    process = subprocess.Popen(
        [
            sys.executable, "-m", "distserve.cli.main", "bench", "run", "--url", stub.url,
            "--model", "m", "--dataset", "synthetic:fixed,prompt=6,output=4", "--prefix", "sys",
            "--num-prompts-req-rates", pairs, "--max-lag", "60s", "--output-dir", str(folder),
            "--warm-up", "0",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + LIMIT_SECONDS
        while len(stub.bodies) < asked:
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=LIMIT_SECONDS)
    finally:
        process.kill()
        process.wait(LIMIT_SECONDS)
    assert "Traceback" not in err
    return process.returncode, out, err


def test_ctrl_c(stub: Any, tmp_path: Path) -> None:
    # One request to find out, three of the first rate, two of the second.
    code, out, err = interrupted(stub, tmp_path, "[(3,100),(5000,2),(3,50)]", 6)
    assert code == 1
    assert "sys-5000-2.exp: interrupted after" in err
    assert len(out.splitlines()) == 2
    assert json.loads((tmp_path / "sys-3-100.run.json").read_text())["complete"]
    assert not json.loads((tmp_path / "sys-5000-2.run.json").read_text())["complete"]
    assert (tmp_path / "sys-5000-2.csv").exists()
    assert not (tmp_path / "sys-5000-2.exp").exists()
    assert not (tmp_path / "sys-3-50.exp").exists()


def test_an_earlier_run_is_not_taken_away_by_a_part_of_another(
    stub: Any,
    bench: Callable[..., tuple[int, str, str]],
    late_run: Callable[[], Path],
    tmp_path: Path,
) -> None:
    """Nor made good: it is what it was."""
    path = late_run()
    files = [tmp_path / "sys-5-100.exp", tmp_path / "sys-5-100.csv"]
    before, about = [file.read_bytes() for file in files], json.loads(path.read_text())
    stub.after, stub.then = len(stub.bodies) + 3, "hangs"
    code, _, err = interrupted(stub, tmp_path, "[(5,100)]", stub.after + 1)
    assert code == 1 and "interrupted after 2 of 5 requests; the earlier run stays" in err
    assert [file.read_bytes() for file in files] == before
    assert json.loads(path.read_text()) == {**about, "tried": 2}
    stub.after = None
    part = {tuple(body["prompt"]) for body in stub.bodies}
    sent = len(stub.bodies)
    assert bench()[0] == 0
    assert json.loads(path.read_text())["attempt"] == 3
    assert not part & {tuple(body["prompt"]) for body in stub.bodies[sent + 1 :]}
