"""Other programs, as they are started by the file that makes them end with their runner."""

import signal
import subprocess

from distserve.wire.parent import STARTER


def started(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*STARTER, *command], capture_output=True, text=True)


def test_they_ignore_no_more_signals_than_before() -> None:
    """The interpreter ignores SIGPIPE, which `execve` would pass on."""
    found = started("grep", "SigIgn", "/proc/self/status")
    ignored = int(found.stdout.split()[1], 16)
    assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)


def test_one_that_is_not_there_is_told_as_by_a_shell() -> None:
    found = started("/no/such/program")
    assert found.returncode == 127
    assert found.stderr == "/no/such/program: No such file or directory\n"
