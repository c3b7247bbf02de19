"""Ends a process whose runner is gone: `distserve up` killed with -9 must leave nothing behind.

Its processes call `end_with_parent`; a podTemplate's containers, which know nothing of it, are
started by this file. Standard library only: it is run without its package.
"""

import ctypes
import os
import signal
import sys
from typing import Final

PARENT_VARIABLE = "DISTSERVE_PARENT_PID"
STARTER: Final = (sys.executable, "-I", "-S", __file__)
"""Before another program's command."""
_PR_SET_PDEATHSIG = 1


def end_with_parent(sent: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel to signal this process when its parent thread ends.

    Does nothing unless the runner's pid is in DISTSERVE_PARENT_PID. The signal is lost when the
    parent died before this call, hence the check after it. Linux only; elsewhere a runner that is
    killed with -9 leaves its processes to the user.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    if not parent or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, sent)
    if os.getppid() != int(parent):
        os.kill(os.getpid(), sent)


def become(command: list[str]) -> int:
    """Another program takes the place of this process, and ends with its runner all the same.

    Returns, with the exit code of a shell, only where that program cannot be had.
    """
    end_with_parent()
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by the interpreter, and inherited
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(become(sys.argv[1:]))
