"""The thread that owns the engine: commands in, steps, and nothing else.

    inbox ----> handle() ---> step() ---> flush() ----> deliver
      ^------------ blocks here when nothing can run, until a command or a deadline

One thread owns scheduler, ledger and runner, so none of them has a lock.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable

from distserve.engine.commands import Command, Shutdown, StartLeg
from distserve.engine.engine import Engine

log = logging.getLogger(__name__)

BROKEN = 500
STUCK_SECONDS = 120.0
STUCK_RATIO = 4.0
"""A step that takes longer than the one, and than the other times what was predicted, will not
end: the process is not well. Slow machines have long steps; ended for one, they would meet it again
with the next try of the same prompt."""


class EngineLoop:
    def __init__(
        self,
        engine: Engine,
        on_fatal: Callable[[BaseException], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._on_fatal = on_fatal
        self._clock = clock
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._busy_since: float | None = None

    def start(self) -> None:
        self._thread.start()

    def tell(self, command: Command) -> None:
        """From any thread."""
        self._inbox.put(command)

    def is_well(self) -> bool:
        """The thread lives, and is not stuck in one step."""
        busy_since = self._busy_since
        busy_seconds = 0.0 if busy_since is None else self._clock() - busy_since
        is_stuck = busy_seconds > max(STUCK_SECONDS, STUCK_RATIO * self._engine.expected_ms / 1000)
        return self._thread.is_alive() and not is_stuck

    def stop(self, timeout_seconds: float) -> bool:
        """Tell every leg and end. False when a step does not end in time."""
        self.tell(Shutdown())
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            can_step = True
            while not self._engine.is_over:
                self._take_commands(wait=not can_step)
                self._busy_since = self._clock()
                self._engine.tick()
                can_step = not self._engine.is_over and self._engine.step()
                self._engine.flush(may_step=can_step)
                self._busy_since = None
            self._refuse_the_rest()
        except BaseException as error:
            log.exception("the engine cannot go on")
            self._give_up(error)

    def _take_commands(self, wait: bool) -> None:
        if wait and (command := self._wait()) is not None:
            self._engine.handle(command)
        while not self._inbox.empty():
            self._engine.handle(self._inbox.get())

    def _wait(self) -> Command | None:
        """The next command, or None when a deadline comes first."""
        due = self._engine.next_due()
        timeout = None if due is None else max(0.0, due - self._clock())
        try:
            return self._inbox.get(timeout=timeout)
        except queue.Empty:
            return None

    def _give_up(self, error: BaseException) -> None:
        try:
            self._engine.fail_all(f"the engine broke: {error}", BROKEN)
            self._refuse_the_rest()
        finally:
            self._on_fatal(error)

    def _refuse_the_rest(self) -> None:
        """Legs that came after the last command that was handled."""
        while not self._inbox.empty():
            if isinstance(command := self._inbox.get(), StartLeg):
                self._engine.handle(command)
        self._engine.flush()
