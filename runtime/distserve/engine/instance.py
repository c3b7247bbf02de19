"""Engine and migrator as children of one process: for accelerators that one container alone gets.

It stands for what the kubelet does with two containers: the migrator is started first, restarted
whenever it ends, and ended after the engine; the engine's end is the container's.

    start -> both run -> engine ended -> SIGTERM to the migrator -> its end, or SIGKILL -> exit
                 ^  |
                 +--+ migrator ended: again after a pause

Standard library only; as a container's first process it also reaps orphans.
"""

import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Final

from distserve.wire.parent import PARENT_VARIABLE

FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 30.0
LASTING_SECONDS: Final = 60.0
"""A migrator that ran so long is restarted without a longer pause than the first."""
END_SECONDS: Final = 8.0
"""For the migrator to end its transfers after the engine; the pod's grace holds it."""
PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT)

_log = logging.getLogger(__name__)


class Instance:
    """The two children. Signals are taken synchronously: nothing runs between two steps."""

    def __init__(self, engine: Sequence[str], migrator: Sequence[str], env: Mapping[str, str]):
        self._engine_command = tuple(engine)
        self._migrator_command = tuple(migrator)
        self._environment = {**env, PARENT_VARIABLE: str(os.getpid())}
        self._engine = 0
        self._migrator = 0
        """Process ids; the migrator's is 0 while it waits for its restart."""
        self._started = 0.0
        self._pause = FIRST_PAUSE_SECONDS
        self._again_at: float | None = None

    def run(self) -> int:
        """Until the engine has ended; its exit code, or 128 and the signal that ended it."""
        awaited = {signal.SIGCHLD, *PASSED_ON}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
        try:
            self._start_migrator()
            self._engine = self._spawn(self._engine_command)
            code: int | None = None
            while code is None:
                self._pass_on(signal.sigtimedwait(awaited, self._seconds_left()))
                code = self._reap()
                if self._again_at is not None and time.monotonic() >= self._again_at:
                    self._start_migrator()
            self._end_migrator()
            return code
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _spawn(self, command: tuple[str, ...]) -> int:
        return os.posix_spawnp(command[0], command, self._environment, setsigmask=[])

    def _start_migrator(self) -> None:
        self._again_at, self._started = None, time.monotonic()
        self._migrator = self._spawn(self._migrator_command)

    def _seconds_left(self) -> float:
        """A bound also where nothing is due: a signal that was missed is then found."""
        if self._again_at is None:
            return LONGEST_PAUSE_SECONDS
        return max(0.0, self._again_at - time.monotonic())

    def _pass_on(self, received: signal.struct_siginfo | None) -> None:
        """To the engine alone: it drains, and its end is the migrator's."""
        if received is not None and received.si_signo in PASSED_ON:
            os.kill(self._engine, received.si_signo)

    def _reap(self) -> int | None:
        """The engine's exit code, once it has ended."""
        ended = None
        while (found := _ended_child()) is not None:
            pid, code = found
            if pid == self._engine:
                ended = code
            elif pid == self._migrator:
                self._migrator = 0
                self._plan_restart(code)
        return ended

    def _plan_restart(self, code: int) -> None:
        now = time.monotonic()
        if now - self._started >= LASTING_SECONDS:
            self._pause = FIRST_PAUSE_SECONDS
        _log.warning("the migrator ended with %d: again in %.1f s", code, self._pause)
        self._again_at = now + self._pause
        self._pause = min(LONGEST_PAUSE_SECONDS, self._pause * 2)

    def _end_migrator(self) -> None:
        for ending, seconds in ((signal.SIGTERM, END_SECONDS), (signal.SIGKILL, END_SECONDS)):
            deadline = time.monotonic() + seconds
            if self._migrator:
                os.kill(self._migrator, ending)
            while self._migrator and (left := deadline - time.monotonic()) > 0:
                signal.sigtimedwait({signal.SIGCHLD}, left)
                while (found := _ended_child()) is not None:
                    if found[0] == self._migrator:
                        self._migrator = 0


def _ended_child() -> tuple[int, int] | None:
    """Process id and exit code of one that has ended, orphans among them."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    if pid == 0:
        return None
    code = os.waitstatus_to_exitcode(status)
    return pid, code if code >= 0 else 128 - code
