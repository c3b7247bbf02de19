"""The course of one run on this machine, for `up` and `demo`: signals, progress, exit codes."""

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from distserve.cli.stderr import reader_may_leave
from distserve.cli.usage import INTERRUPTED, UsageError

if TYPE_CHECKING:
    from distserve.api.deployment import DistServeDeployment
    from distserve.local.session import Session

Work = Callable[["Session"], Awaitable[int]]


def load(args: argparse.Namespace, path: Path) -> "DistServeDeployment":
    """The manifest's deployment with its numbers. Raises UsageError."""
    from distserve.api.loading import ManifestError, read_manifest
    from distserve.cli.planned import planned, sources_of

    try:
        manifest = read_manifest(path)
        return planned(manifest.deployment(args.name), sources_of(args, manifest))
    except ManifestError as error:
        raise UsageError(str(error)) from None


@reader_may_leave()
def run_locally(
    deployment: "DistServeDeployment",
    port: int,
    log_directory: Path | None,
    work: Work,
    table: bool,
) -> int:
    """Bring the deployment up, do the work, end all of it.

    The exit code is the work's own; 0 when a signal ended it, 130 when the signal came before
    everything was ready, 1 when a pod did not come up or this machine failed. Raises UsageError.
    """
    from distserve.local.errors import PodFailed, Refused
    from distserve.resources.errors import RenderError

    try:
        return asyncio.run(_run(deployment, port, log_directory, work, table))
    except (Refused, RenderError) as error:
        raise UsageError(str(error)) from None
    except PodFailed as error:
        if error.usage:
            raise UsageError(str(error)) from None
        for line in error.tail:
            print(f"  {line}", file=sys.stderr)
        print(f"distserve: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        raise
    except OSError as error:  # As a full disk.
        print(f"distserve: {error}", file=sys.stderr)
        return 1


async def _run(
    deployment: "DistServeDeployment",
    port: int,
    log_directory: Path | None,
    work: Work,
    table: bool,
) -> int:
    from distserve.local.progress import show_progress
    from distserve.local.session import open_session

    ready = False
    try:
        async with (
            _cancelled_by_signals(),
            open_session(deployment, port, log_directory) as session,
            show_progress(session, table) as say,
        ):
            say(_opening(deployment, session))
            await session.start()
            ready = True
            print(f"ready {session.base_url}/v1", flush=True)
            return await work(session)
    except asyncio.CancelledError:
        return 0 if ready else INTERRUPTED


def _opening(deployment: "DistServeDeployment", session: "Session") -> str:
    asked = deployment.spec.gateway.replicas
    gateways = f", one gateway instead of {asked}" if asked > 1 else ""
    return (
        f"starting {len(session.supervisor.pods)} pods of {deployment.name}{gateways}; "
        f"logs in {session.log_directory}"
    )


@contextlib.asynccontextmanager
async def _cancelled_by_signals() -> AsyncIterator[None]:
    """The first signal ends the work in order, a second one whatever still runs at once."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None

    def end() -> None:
        first = not task.cancelling()
        task.cancel()
        if first:
            print("ending; once more ends at once", file=sys.stderr, flush=True)

    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)  # Else `nohup` wants it to outlive its terminal.
    for number in signals:
        loop.add_signal_handler(number, end)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
