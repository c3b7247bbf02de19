"""Ends a process whose runner is gone: `distserve up` killed with -9 must leave nothing behind."""

import ctypes
import os
import signal
import sys

PARENT_VARIABLE = "DISTSERVE_PARENT_PID"
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
