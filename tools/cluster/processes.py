"""Long-lived processes of a cluster: started with a log and a mark, found again by that mark.

The mark is an entry of the environment, so children carry it too, and whoever tears a cluster down
needs no list of pids that a crash could have left incomplete.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools.cluster.errors import DidNotCome
from tools.cluster.home import Home
from tools.cluster.search_path import search_path
from tools.cluster.waiting import tail, wait_for

STOP_SECONDS = 20.0
# All addresses of a cluster are this machine's own.
NO_PROXY = {"NO_PROXY": "*", "no_proxy": "*"}


@dataclass
class Process:
    """One server of the cluster; `start` after `stop` runs the same command again."""

    name: str
    command: Sequence[str]
    home: Home
    _running: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def log(self) -> Path:
        return self.home.log(self.name)

    @property
    def pid(self) -> int:
        assert self._running is not None, f"{self.name} was not started"
        return self._running.pid

    def start(self) -> "Process":
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(
                list(self.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C at a terminal ends the owner, which then ends these in order.
                start_new_session=True,
                env={**os.environ, **NO_PROXY, "PATH": search_path(), **self.home.mark},
            )
        return self

    def stop(self, sent: signal.Signals = signal.SIGTERM) -> None:
        """Ends the process and waits for it, with SIGKILL after the bound."""
        if self._running is None:
            return
        self._running.send_signal(sent)
        try:
            self._running.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._running.kill()
            self._running.wait(STOP_SECONDS)

    def reap(self) -> None:
        """Takes note of an end that somebody else brought about."""
        if self._running is not None:
            self._running.wait(STOP_SECONDS)

    def wait_for(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        """As `wait_for`, but an early death of the process is reported at once."""

        def holds() -> bool:
            assert self._running is not None
            if self._running.poll() is not None:
                raise DidNotCome(
                    f"{self.name} ended with {self._running.returncode} before {what}\n"
                    f"{tail(self.log)}"
                )
            return condition()

        wait_for(what, holds, seconds, explain=lambda: f"{self.name} says:\n{tail(self.log)}")


class Processes(dict[str, Process]):
    """A cluster's processes by name; each is noted here before anything can go wrong with it."""

    def __init__(self, home: Home) -> None:
        super().__init__()
        self.home = home

    def start(self, name: str, command: Sequence[str]) -> Process:
        self[name] = Process(name, command, self.home)
        return self[name].start()

    def reap(self) -> None:
        for process in self.values():
            process.reap()


def marked(home: Home) -> set[int]:
    """The processes that carry the cluster's mark. One that has ended carries none."""
    marks = {f"{key}={value}".encode() for key, value in home.mark.items()}
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if marks <= set((entry / "environ").read_bytes().split(b"\0")):
                    found.add(int(entry.name))
    return found


def kill_until_gone(find: Callable[[], Iterable[int]], what: str) -> None:
    """SIGKILLs what `find` finds until it finds nothing: some of them start others meanwhile."""

    def gone() -> bool:
        with contextlib.ExitStack() as handles:
            opened = {}
            for pid in find():
                with contextlib.suppress(ProcessLookupError):
                    opened[pid] = os.pidfd_open(pid)
                    handles.callback(os.close, opened[pid])
            # A number may have gone to another process between finding and opening it.
            for pid in opened.keys() & set(find()):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(opened[pid], signal.SIGKILL)
        return not opened

    wait_for(f"the end of {what}", gone, STOP_SECONDS)
