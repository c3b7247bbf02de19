"""Pods as a user of the runner sees them: order, readiness, restarts, and nothing left."""

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from distserve.local.container import Backoff, State
from distserve.local.discovery import DiscoveryFile, endpoints
from distserve.local.errors import PodFailed, Refused
from distserve.local.probes import Prober
from distserve.local.specs import ProbeSpec
from distserve.local.supervisor import Supervisor

BOUND = 20.0


async def until(supervisor: Supervisor, condition: Callable[[], bool]) -> None:
    """Waits for a change of the pods that makes the condition hold."""
    changed = asyncio.Event()
    supervisor.watchers.append(changed.set)
    async with asyncio.timeout(BOUND):
        while not condition():
            changed.clear()
            await changed.wait()


async def test_sidecar_starts_first_and_ends_last(stand: Any) -> None:
    pod = stand.controller(
        "p",
        "prefill",
        stand.container("engine", 8100, stand.folder),
        initContainers=[stand.container("side", 8102, stand.folder, restartPolicy="Always")],
    )
    async with stand.run(pod) as supervisor:
        supervisor.start()
        await supervisor.wait_ready(BOUND)
        assert stand.events() == ["start p-0.side", "start p-0.engine"]
    assert stand.events()[2:] == ["end p-0.engine", "end p-0.side"]


async def test_a_sidecar_that_is_not_ready_does_not_hold_the_engine_back(stand: Any) -> None:
    (stand.folder / "p-0.side-readyz").touch()
    pod = stand.controller(
        "p",
        "prefill",
        stand.container("engine", 8100, stand.folder),
        initContainers=[stand.container("side", 8102, stand.folder, restartPolicy="Always")],
    )
    async with stand.run(pod) as supervisor:
        supervisor.start()
        engine = supervisor.pods[0].containers[0]
        await until(supervisor, lambda: engine.ready)
        assert not supervisor.pods[0].ready
        (stand.folder / "p-0.side-readyz").unlink()
        await supervisor.wait_ready(BOUND)


async def test_pods_end_gateway_first_prefill_last(stand: Any) -> None:
    async with stand.run(
        stand.controller("p", "prefill", stand.container("engine", 8100, stand.folder)),
        stand.controller("d", "decode", stand.container("engine", 8100, stand.folder)),
        stand.controller("g", "", stand.container("gateway", 8100, stand.folder)),
    ) as supervisor:
        supervisor.start()
        await supervisor.wait_ready(BOUND)
        assert len({pod.address for pod in supervisor.pods}) == 3
    assert [e for e in stand.events() if e.startswith("end")] == [
        "end g-0.gateway", "end d-0.engine", "end p-0.engine",
    ]  # fmt: skip


async def test_a_killed_process_comes_back(stand: Any) -> None:
    async with stand.run(
        stand.controller("d", "decode", stand.container("engine", 8100, stand.folder))
    ) as supervisor:
        supervisor.start()
        await supervisor.wait_ready(BOUND)
        (container,) = supervisor.pods[0].containers
        assert container.pid is not None
        os.kill(container.pid, signal.SIGKILL)
        await until(supervisor, lambda: container.restarts == 1)
        assert container.end_reason == "killed by SIGKILL"
        await until(supervisor, lambda: container.ready)
    assert stand.events() == ["start d-0.engine", "start d-0.engine", "end d-0.engine"]


async def test_a_process_comes_back_though_a_watcher_fails(stand: Any) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with stand.run(
        stand.controller("d", "decode", stand.container("engine", 8100, stand.folder))
    ) as supervisor:
        supervisor.start()
        await supervisor.wait_ready(BOUND)
        (container,) = supervisor.pods[0].containers
        supervisor.watchers.append(full)
        os.kill(container.pid, signal.SIGKILL)
        async with asyncio.timeout(BOUND):
            with pytest.raises(OSError, match="No space left on device"):
                await supervisor.look_on()
        await until(supervisor, lambda: container.restarts == 1 and container.ready)
    assert stand.events()[-1] == "end d-0.engine"


async def test_a_log_that_cannot_be_written_is_tried_again(stand: Any) -> None:
    async with stand.run(
        stand.controller("d", "decode", stand.container("engine", 8100, stand.folder))
    ) as supervisor:
        supervisor.start()
        await supervisor.wait_ready(BOUND)
        (container,) = supervisor.pods[0].containers
        logs = container.log.parent
        logs.rename(stand.folder / "away")
        os.kill(container.pid, signal.SIGKILL)
        await until(supervisor, lambda: container.restarts == 2)
        assert "cannot be started: [Errno 2] No such file" in container.end_reason
        logs.mkdir()
        await until(supervisor, lambda: container.ready)


async def test_a_fault_of_the_runner_s_own_is_told(
    stand: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def attempt(self: Prober, spec: ProbeSpec) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(Prober, "attempt", attempt)
    async with stand.run(
        stand.controller("d", "decode", stand.container("engine", 8100, stand.folder))
    ) as supervisor:
        supervisor.start()
        with pytest.raises(ZeroDivisionError):
            await supervisor.wait_ready(BOUND)


async def test_liveness_that_fails_restarts(stand: Any) -> None:
    probe = {
        "httpGet": {"path": "/livez", "port": "main"}, "periodSeconds": 0.05, "failureThreshold": 2
    }  # fmt: skip
    async with stand.run(
        stand.controller(
            "d", "decode", stand.container("engine", 8100, stand.folder, livenessProbe=probe)
        )
    ) as supervisor:
        supervisor.start()
        await supervisor.wait_ready(BOUND)
        (container,) = supervisor.pods[0].containers
        (stand.folder / "d-0.engine-livez").touch()
        await until(supervisor, lambda: container.restarts > 0)
        assert container.end_reason == "its liveness probe failed"
        (stand.folder / "d-0.engine-livez").unlink()
        await until(supervisor, lambda: container.ready)


async def test_readiness_reaches_the_discovery_file(stand: Any, tmp_path: Path) -> None:
    async with stand.run(
        stand.controller("d", "decode", stand.container("engine", 8100, stand.folder)),
        stand.controller("g", "", stand.container("gateway", 8100, stand.folder)),
    ) as supervisor:
        published = tmp_path / "endpoints.json"
        file = DiscoveryFile(published)
        supervisor.watchers.append(lambda: file.publish(supervisor.pods))

        def ready() -> list[bool]:
            return [e["ready"] for e in endpoints(supervisor.pods)["endpoints"]]

        supervisor.start()
        assert '"ready": false' in published.read_text()
        await supervisor.wait_ready(BOUND)
        assert ready() == [True]
        assert f"http://{supervisor.pods[0].address}:8100" in published.read_text()
        (stand.folder / "d-0.engine-readyz").touch()
        await until(supervisor, lambda: not supervisor.ready)
        assert '"ready": false' in published.read_text()
        assert supervisor.pods[0].containers[0].state is State.RUNNING
    assert '"terminating": true' in published.read_text()


def ends_with(code: int, words: str) -> dict[str, Any]:
    program = f"import sys; print({words!r}); sys.exit({code})"
    never = {"exec": {"command": ["false"]}}
    return {"name": "engine", "command": [sys.executable, "-c", program], "readinessProbe": never}


async def test_wrong_arguments_are_not_tried_again(stand: Any) -> None:
    async with stand.run(
        stand.controller("d", "decode", ends_with(2, "no such model: name another"))
    ) as supervisor:
        supervisor.start()
        with pytest.raises(PodFailed, match="d-0/engine: no such model: name another") as failed:
            await supervisor.wait_ready(BOUND)
        assert failed.value.usage


async def test_a_crash_loop_ends_with_the_last_log_lines(stand: Any) -> None:
    async with stand.run(
        stand.controller("d", "decode", ends_with(7, "first\nlast words"))
    ) as supervisor:
        supervisor.start()
        with pytest.raises(PodFailed, match=r"ended 3 times \(exit code 7\)") as failed:
            await supervisor.wait_ready(BOUND)
        assert failed.value.tail[-2:] == ["first", "last words"]
        assert not failed.value.usage


async def test_a_command_that_is_not_there(stand: Any) -> None:
    missing = {"name": "engine", "command": ["/no/such/program"]}
    async with stand.run(stand.controller("d", "decode", missing)) as supervisor:
        supervisor.start()
        said = r"ended 3 times \(cannot be started: there is no program '/no/such/program'"
        with pytest.raises(PodFailed, match=said):
            await supervisor.wait_ready(BOUND)


async def test_never_ready_is_bounded(stand: Any) -> None:
    (stand.folder / "d-0.engine-readyz").touch()
    async with stand.run(
        stand.controller("d", "decode", stand.container("engine", 8100, stand.folder))
    ) as supervisor:
        supervisor.start()
        with pytest.raises(PodFailed, match="was not ready after 1 s"):
            await supervisor.wait_ready(1)


async def test_deaf_process_is_killed_after_its_grace(stand: Any) -> None:
    deaf = {
        "name": "engine",
        "command": [
            sys.executable, "-c",
            "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "print('deaf', flush=True)\nwhile True: time.sleep(60)",
        ],
        "readinessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 0.05},
    }  # fmt: skip
    pod = stand.controller("d", "decode", deaf, terminationGracePeriodSeconds=1)
    async with stand.run(pod) as supervisor:
        supervisor.start()
        await supervisor.wait_ready(BOUND)
        (container,) = supervisor.pods[0].containers
        await asyncio.to_thread(stand.wait_until, "deafness", lambda: container.tail(1) == ["deaf"])
    assert container.last_exit == -signal.SIGKILL


async def test_hook_runs_before_the_signal(stand: Any) -> None:
    hook = f'echo "hook $POD_NAME" >> {stand.folder}/events'
    engine = stand.container(
        "engine", 8100, stand.folder,
        lifecycle={"preStop": {"exec": {"command": ["sh", "-c", hook]}}},
    )  # fmt: skip
    async with stand.run(stand.controller("d", "decode", engine)) as supervisor:
        supervisor.start()
        await supervisor.wait_ready(BOUND)
    assert stand.events()[-2:] == ["hook d-0", "end d-0.engine"]


async def test_hook_that_hangs_shares_the_grace(stand: Any) -> None:
    engine = stand.container(
        "engine", 8100, stand.folder,
        lifecycle={"preStop": {"exec": {"command": ["sleep", "600"]}}},
    )  # fmt: skip
    pod = stand.controller("d", "decode", engine, terminationGracePeriodSeconds=1)
    async with stand.run(pod) as supervisor:
        supervisor.start()
        await supervisor.wait_ready(BOUND)
    assert supervisor.pods[0].containers[0].last_exit == -signal.SIGKILL


async def test_cancelled_while_it_starts(stand: Any) -> None:
    """Ctrl-C before anything is ready: the fixture sees that nothing is left."""
    (stand.folder / "d-0.engine-readyz").touch()
    async with stand.run(
        stand.controller("d", "decode", stand.container("engine", 8100, stand.folder))
    ) as supervisor:
        supervisor.start()
        waiting = asyncio.create_task(supervisor.wait_ready(BOUND))
        await until(supervisor, lambda: supervisor.pods[0].containers[0].pid is not None)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_volumes_stand_for_mount_paths(stand: Any) -> None:
    reader = stand.container("engine", 8100, stand.folder)
    reader["volumeMounts"] = [
        {"name": "run", "mountPath": "/run/x"}, {"name": "key", "mountPath": "/etc/x/key"},
    ]  # fmt: skip
    reader["env"] += [
        {"name": "SEEN", "value": "file:/etc/x/key/key"},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "key"}}},
    ]
    reader["lifecycle"] = {
        "preStop": {"exec": {"command": [
            "sh", "-c", "echo $KEY $(cat ${SEEN#file:})  > /run/x/seen; "
            f"cp /run/x/seen {stand.folder}/seen; stat -c %a /etc/x/key/key >> {stand.folder}/seen",
        ]}}
    }  # fmt: skip
    secret = {
        "kind": "Secret", "metadata": {"name": "s", "labels": {}}, "data": {"key": "aHVzaA=="}
    }  # fmt: skip
    pod = stand.controller(
        "d", "decode", reader,
        volumes=[
            {"name": "run", "emptyDir": {}},
            {"name": "key", "secret": {"secretName": "s"}},
        ],
    )  # fmt: skip
    async with stand.run(secret, pod) as supervisor:
        supervisor.start()
        await supervisor.wait_ready(BOUND)
        run = Path(supervisor.pods[0].place.folders["run"])
        assert run.parent.parent.stat().st_mode & 0o777 == 0o700
    words, mode = (stand.folder / "seen").read_text().splitlines()
    assert words.split() == ["hush", "hush"]
    assert mode == "600"
    assert not run.exists()


@pytest.mark.parametrize(
    "volume", [{"persistentVolumeClaim": {"claimName": "c"}}, {"hostPath": {"path": "/no/such"}}]
)
async def test_volume_that_cannot_be_had(stand: Any, volume: dict[str, Any]) -> None:
    pod = stand.controller(
        "d", "decode", ends_with(0, ""), volumes=[{"name": "model", **volume}]
    )  # fmt: skip
    with pytest.raises(Refused, match=r"[cC]laim|/no/such"):
        async with stand.run(pod):
            raise AssertionError("not reached")


def test_backoff_doubles_up_to_a_bound() -> None:
    waits = [Backoff().wait_seconds(crashes) for crashes in range(1, 9)]
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]


RUNNER = """
import asyncio, sys, random
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import conftest
async def main():
    stand = conftest.Stand(Path(sys.argv[2]))
    theirs = {"name": "theirs", "command": ["sleep", "600"]}
    pod = stand.controller(
        "d", "decode", stand.container("engine", 8100, stand.folder), theirs,
        initContainers=[stand.container("side", 8102, stand.folder, restartPolicy="Always")])
    async with stand.run(pod) as supervisor:
        supervisor.start()
        await supervisor.wait_ready(30)
        print("up", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def test_killed_runner_takes_its_processes_with_it(stand: Any, tmp_path: Path) -> None:
    runner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(RUNNER), str(Path(__file__).parent), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert runner.stdout
    with runner.stdout as output:
        assert output.readline() == "up\n"
        children = psutil.Process(runner.pid).children(recursive=True)
        assert len(children) == 3
        runner.kill()
        runner.wait(10)
    assert not psutil.wait_procs(children, timeout=BOUND)[1]


async def test_addresses_answer_only_where_the_pod_is(stand: Any) -> None:
    async with stand.run(
        stand.controller("d", "decode", stand.container("engine", 8100, stand.folder))
    ) as supervisor:
        supervisor.start()
        await supervisor.wait_ready(BOUND)
        address = supervisor.pods[0].address
        async with aiohttp.ClientSession() as http, http.get(f"http://{address}:8100") as answer:
            assert answer.status == 200
        with socket.socket() as other, pytest.raises(ConnectionRefusedError):
            other.connect((address.rpartition(".")[0] + ".200", 8100))
