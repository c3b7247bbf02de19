"""Probes as the kubelet runs them: one attempt, and the counting of attempts."""

import asyncio
import contextlib
from dataclasses import dataclass

import aiohttp

from distserve.local.launch import Launch
from distserve.local.specs import ProbeSpec


@dataclass
class ProbeCount:
    """Thresholds over consecutive results. `passing` is None until one of them is reached."""

    spec: ProbeSpec
    passing: bool | None = None
    _streak: int = 0
    _last: bool | None = None

    def record(self, passed: bool) -> None:
        self._streak = self._streak + 1 if passed == self._last else 1
        self._last = passed
        needed = self.spec.success_threshold if passed else self.spec.failure_threshold
        if self._streak >= needed:
            self.passing = passed


@dataclass(frozen=True)
class Prober:
    """Makes single attempts against one container."""

    http: aiohttp.ClientSession
    address: str
    launch: Launch

    async def attempt(self, spec: ProbeSpec) -> bool:
        """Never raises: whatever goes wrong is a failed probe."""
        try:
            async with asyncio.timeout(spec.timeout_seconds):
                if spec.command:
                    return await self._run(spec.command)
                if spec.tcp:
                    return await self._connect(spec.port)
                return await self._get(spec.port, spec.path)
        except (TimeoutError, OSError, aiohttp.ClientError):
            return False

    async def _get(self, port: int, path: str) -> bool:
        url = f"http://{self.address}:{port}{path}"
        async with self.http.get(url, allow_redirects=False) as answer:
            return 200 <= answer.status < 400

    async def _connect(self, port: int) -> bool:
        _, writer = await asyncio.open_connection(self.address, port)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True

    async def _run(self, command: tuple[str, ...]) -> bool:
        process = await asyncio.create_subprocess_exec(
            *self.launch.here(command),
            env=self.launch.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            return await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
