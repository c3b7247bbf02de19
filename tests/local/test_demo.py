"""The demo as a whole, on real engines."""

import re
import socket
import subprocess
import sys

import pytest


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_demo_streams_text_and_shows_what_moved() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    found = subprocess.run(
        [sys.executable, "-m", "distserve.cli.main", "demo", "--once", "--port", port],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert found.returncode == 0, found.stderr
    assert f"ready http://127.0.0.1:{port}/v1\n" in found.stdout
    rows = re.findall(r"│ .+ │ +(\d+) │ +([\d.]+) ms │ .+ │ +([\d.]+) KiB │ +(\w+) │", found.stdout)
    assert len(rows) >= 5, found.stdout
    assert all(int(tokens) > 1 and float(moved) > 0 for tokens, _, moved, _ in rows)
    assert {transport for *_, transport in rows} <= {"SharedMemory", "TCP"}
    assert len(re.findall(r"[a-z]{3,}[.]$", found.stdout, re.MULTILINE)) >= 3, "sentences end"
