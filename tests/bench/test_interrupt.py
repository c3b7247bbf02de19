"""Ctrl-C keeps what is finished, and of the interrupted rate what has ended."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 90


def test_ctrl_c(stub: Any, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable, "-m", "distserve.cli.main", "bench", "run", "--url", stub.url,
            "--model", "m", "--dataset", "synthetic:fixed,prompt=3,output=2", "--prefix", "sys",
            "--num-prompts-req-rates", "[(3,100),(5000,2),(3,50)]", "--max-lag", "60s",
            "--output-dir", str(tmp_path), "--warm-up", "0",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + LIMIT_SECONDS
        while len(stub.bodies) < 6:  # one to find out, three of the first rate, two of the second
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=LIMIT_SECONDS)
    finally:
        process.kill()
        process.wait(LIMIT_SECONDS)
    assert process.returncode == 1
    assert "sys-5000-2.exp: interrupted after" in err and "Traceback" not in err
    assert len(out.splitlines()) == 2
    assert json.loads((tmp_path / "sys-3-100.run.json").read_text())["complete"]
    assert not json.loads((tmp_path / "sys-5000-2.run.json").read_text())["complete"]
    assert (tmp_path / "sys-5000-2.csv").exists()
    assert not (tmp_path / "sys-5000-2.exp").exists()
    assert not (tmp_path / "sys-3-50.exp").exists()
