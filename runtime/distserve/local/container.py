"""One container as a process: started, probed, restarted with backoff, stopped in order.

waiting -> starting -> running <-> (not) ready
              ^            |
              |            v exit, or a probe that gives up
              +-------- backoff          stop(): preStop, SIGTERM, grace, SIGKILL -> ended
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from distserve.local.launch import Launch
from distserve.local.probes import ProbeCount, Prober
from distserve.local.specs import ContainerSpec, ProbeSpec

KILL_SECONDS = 10.0
"""After SIGKILL a process is gone at once, unless it hangs in the kernel."""
TAIL_BYTES = 16384


@dataclass(frozen=True)
class Backoff:
    """Waits between restarts: doubling, and from the start again after a long quiet life."""

    first_seconds: float = 1.0
    most_seconds: float = 30.0
    quiet_seconds: float = 60.0

    def wait_seconds(self, crashes: int) -> float:
        return min(self.most_seconds, self.first_seconds * 2.0 ** min(crashes - 1, 16))


class State(StrEnum):
    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    BACKOFF = "backoff"
    ENDED = "ended"


class Container:
    """`on_change` is called after each change of what the properties say, `on_failure` with what
    keeps the process from being looked after: a fault of the runner's, not of the process."""

    def __init__(
        self,
        spec: ContainerSpec,
        launch: Launch,
        prober: Prober,
        log: Path,
        on_change: Callable[[], None],
        on_failure: Callable[[BaseException], None],
        backoff: Backoff,
    ) -> None:
        self.spec = spec
        self.log = log
        self.state = State.WAITING
        self.ready = False
        self.restarts = 0
        self.last_exit: int | None = None
        self.last_reason = ""
        self.started = asyncio.Event()
        """Set once the startup probe has passed, for the first time."""
        self._launch = launch
        self._prober = prober
        self._on_change = on_change
        self._on_failure = on_failure
        self._backoff = backoff
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    def start(self) -> None:
        self._task = self._in_background(self._keep_running())

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Nobody awaits it: how it fails is told."""

        def tell(done: asyncio.Task[None]) -> None:
            if not done.cancelled() and (error := done.exception()) is not None:
                self._on_failure(error)

        task = asyncio.create_task(work, name=f"container {self.spec.name}")
        task.add_done_callback(tell)
        return task

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def end_reason(self) -> str:
        """Why its process ended last."""
        if self.last_reason:
            return self.last_reason
        if self.last_exit is not None and self.last_exit < 0:
            return f"killed by {signal.Signals(-self.last_exit).name}"
        return f"exit code {self.last_exit}"

    def tail(self, lines: int) -> list[str]:
        """Its last log lines."""
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()[-lines:]
        return []

    async def stop(self, grace_seconds: float) -> None:
        """Returns when the process is gone. preStop and the process share the grace period."""
        self._stopping = True
        try:
            async with asyncio.timeout(grace_seconds):
                await self._ask_to_end()
        except TimeoutError:
            self.kill()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=KILL_SECONDS)
            self._task.cancel()
        self._change(State.ENDED)

    def kill(self) -> None:
        """The process and what it started, at once."""
        self._stopping = True
        self._signal(signal.SIGKILL)

    async def _ask_to_end(self) -> None:
        if self.pid is None:
            if self._task is not None:
                self._task.cancel()
            return
        if self.spec.pre_stop and self.started.is_set():
            await self._run_hook()
        self._signal(signal.SIGTERM)
        assert self._process is not None
        await self._process.wait()

    async def _run_hook(self) -> None:
        with self.log.open("ab") as log:
            hook = await asyncio.create_subprocess_exec(
                *self._launch.here(self.spec.pre_stop),
                env=self._launch.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        assert self._process is not None
        ended = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait(
                [asyncio.create_task(hook.wait()), ended], return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            if hook.returncode is None:
                hook.kill()
                await hook.wait()

    def _signal(self, sent: signal.Signals) -> None:
        """To the whole process group: each container leads one."""
        if (pid := self.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                if sent is signal.SIGKILL:
                    os.killpg(pid, sent)
                else:
                    os.kill(pid, sent)

    async def _keep_running(self) -> None:
        crashes = 0
        while not self._stopping:
            began = asyncio.get_running_loop().time()
            await self._run_once()
            if self._stopping:
                return
            lived = asyncio.get_running_loop().time() - began
            crashes = 1 if lived >= self._backoff.quiet_seconds else crashes + 1
            self.restarts += 1
            self._change(State.BACKOFF)
            await asyncio.sleep(self._backoff.wait_seconds(crashes))

    async def _run_once(self) -> None:
        try:
            with self.log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *self._launch.ending_with_runner(),
                    env=self._launch.environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            self.last_exit, self.last_reason = 127, f"cannot be started: {error}"
            return
        self.last_reason = ""
        self._change(State.STARTING)
        watch = self._in_background(self._watch_probes())
        try:
            self.last_exit = await self._process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            watch.cancel()
            await asyncio.wait([watch])
        self.ready = False

    async def _watch_probes(self) -> None:
        if self.spec.startup is not None:
            await self._probe(self.spec.startup, self._on_startup)
        self._change(State.RUNNING)
        self.started.set()
        async with asyncio.TaskGroup() as group:
            if self.spec.readiness is None:
                self._set_ready(True)
            else:
                group.create_task(self._probe(self.spec.readiness, self._on_readiness))
            if self.spec.liveness is not None:
                group.create_task(self._probe(self.spec.liveness, self._on_liveness))

    async def _probe(self, spec: ProbeSpec, decide: Callable[[bool], bool]) -> None:
        """Attempts until `decide`, told whether the probe passes by its thresholds, says stop."""
        count = ProbeCount(spec)
        await asyncio.sleep(spec.initial_delay_seconds)
        while True:
            count.record(await self._prober.attempt(spec))
            if count.passing is not None and decide(count.passing):
                return
            await asyncio.sleep(spec.period_seconds)

    def _on_startup(self, passing: bool) -> bool:
        if not passing:
            self._give_up("its startup probe never passed")
        return passing

    def _on_readiness(self, passing: bool) -> bool:
        self._set_ready(passing)
        return False

    def _on_liveness(self, passing: bool) -> bool:
        if not passing:
            self._give_up("its liveness probe failed")
        return False

    def _give_up(self, reason: str) -> None:
        self.last_reason = reason
        self._signal(signal.SIGKILL)

    def _set_ready(self, ready: bool) -> None:
        if ready != self.ready:
            self.ready = ready
            self._on_change()

    def _change(self, state: State) -> None:
        if state is not State.RUNNING:
            self.ready = False
        self.state = state
        self._on_change()
