"""`distserve migrator` as a process: its memory, its end, what it says of a wrong flag."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from distserve.migrator import addresses
from distserve.wire import messages


def shmem(pid):
    """Bytes of shared memory among a process's resident ones."""
    (line,) = [x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if "RssShmem" in x]
    return int(line.split()[1]) << 10


async def test_the_process_ends_cleanly_and_stays_small(harness, transport):
    """RssShmem is the engines' pool, which counts against whoever touches it; not counted here."""
    source, reader = harness.process("p", transport), harness.process("d", transport)
    pool = harness.layout(blocks=2048)
    p, d = await harness.engine("p", pool), await harness.engine("d", pool)
    there, here = harness.span(0, 16384, *range(1024)), harness.span(0, 16384, *range(1024, 2048))
    await p.offer("t", there)
    d.expect("t", p.address)
    d.fetch("t", here)
    p.ready("t", there)
    p.commit("t")
    assert isinstance(await d.ending("t"), messages.Fetched)
    assert d.holds(here)
    for process in (source, reader):
        memory = psutil.Process(process.popen.pid).memory_info()
        assert memory.rss - shmem(process.popen.pid) < 120 << 20
        process.kill(signal.SIGTERM)
        assert process.popen.returncode == 0
        assert [x for x in process.lines() if x["level"] not in ("debug", "info")] == []
    assert not (harness.folder / "p" / "m.sock").exists()


def migrator(tmp_path, *flags, **changes):
    (tmp_path / "key").write_bytes(b"k" * 32)
    options = {
        "instance": "x", "host": "127.0.0.1", "port": "0", "metrics-port": "0",
        "socket": str(tmp_path / "m.sock"), "peer-socket": str(tmp_path / "p.sock"),
        "key-file": str(tmp_path / "key"),
    } | {name.replace("_", "-"): value for name, value in changes.items()}  # fmt: skip
    command = [sys.executable, "-m", "distserve.cli.main", "migrator", *flags]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_port_beyond_the_last_is_an_error_of_the_address():
    with pytest.raises(OSError, match="0-65535"):
        addresses.listen("127.0.0.1", 65536)


def test_a_users_mistake_is_one_line_and_exit_code_2(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for flag in ("port", "metrics_port"):
            result = migrator(tmp_path, **{flag: port})
            assert result.returncode == 2
            assert result.stderr.splitlines() == [
                f"distserve migrator: cannot listen on 127.0.0.1:{port}: Address already in use; "
                "is another migrator running there?"
            ]
    result = migrator(tmp_path, key_file=tmp_path / "missing")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    result = migrator(tmp_path, socket="/proc/nowhere/m.sock")
    assert result.returncode == 2
    assert "/proc/nowhere" in result.stderr
    assert migrator(tmp_path, transport="Carrier").returncode == 2
