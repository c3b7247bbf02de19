"""Which deployments fail now, from the worker's tries to the metric that is alerted on."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock, Mock

import pytest

from distserve.operator.errors import Conflict
from distserve.operator.metrics import Metrics
from distserve.operator.model import Decision, Features, Key, Observed
from distserve.operator.process import Operator, add_gauges
from distserve.operator.reconciler import Reconciler
from distserve.operator.settings import QueueSettings, Settings
from distserve.operator.watching import Watches
from distserve.operator.worker import Worker
from distserve.operator.workqueue import WorkQueue

KEY = Key("ns", "opt")
DOCUMENT = {"metadata": {"name": "opt", "namespace": "ns", "uid": "d"}}
SECONDS = 10.0


async def test_a_deployment_fails_until_it_goes() -> None:
    store, deciding = Mock(), Mock(side_effect=Conflict("changed meanwhile"))
    store.observe.return_value = Observed(DOCUMENT, {}, (), Features(), 0.0)
    parts: list[Any] = [Mock() for _ in range(6)]
    reconciler = Reconciler(store, AsyncMock(), deciding, *parts)
    at_once = QueueSettings(backoff_seconds=0.0, backoff_cap_seconds=0.0)
    queue: WorkQueue[Key] = WorkQueue(at_once)
    results: asyncio.Queue[str] = asyncio.Queue()
    worker = Worker(queue, reconciler.reconcile, lambda result, _: results.put_nowait(result))
    working = asyncio.create_task(worker.run())
    queue.add(KEY)
    for _ in range(at_once.failing_after):
        assert await asyncio.wait_for(results.get(), SECONDS) == "conflict"
    assert queue.failing == 1
    store.observe.return_value = None
    while not results.empty():
        results.get_nowait()
    assert await asyncio.wait_for(results.get(), SECONDS) == "done"
    assert queue.failing == 0
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def test_healing_is_not_late_for_a_fault(caplog: pytest.LogCaptureFixture) -> None:
    """What a timer of the decision waits for comes before the pause after a failure is over."""
    decision = Decision(again_seconds=0.0, fault=KeyError("missing"))
    store, placing = Mock(), Mock()
    store.observe.return_value = Observed(DOCUMENT, {}, (), Features(), 0.0)
    placing.gathers.return_value = False
    deciding = Mock(return_value=decision)
    parts: list[Any] = [Mock(), placing, AsyncMock(), *[Mock() for _ in range(3)]]
    reconciler = Reconciler(store, AsyncMock(), deciding, *parts)
    slow = QueueSettings(backoff_seconds=3600.0, backoff_cap_seconds=3600.0)
    queue: WorkQueue[Key] = WorkQueue(slow)
    results: asyncio.Queue[str] = asyncio.Queue()
    worker = Worker(queue, reconciler.reconcile, lambda result, _: results.put_nowait(result))
    working = asyncio.create_task(worker.run())
    queue.add(KEY)
    for _ in range(slow.failing_after):
        assert await asyncio.wait_for(results.get(), SECONDS) == "error"
    assert queue.failing == 1
    assert "KeyError: 'missing'" in caplog.text and "again in 0.0 s" in caplog.text
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def test_it_is_a_metric() -> None:
    metrics = Metrics()
    operator = Operator(Settings(), Mock(), Mock(), Mock(), metrics)
    add_gauges(metrics, operator, cast(Watches, SimpleNamespace(last_seen={})))
    name = "distserve_operator_deployments_failing"
    assert metrics.registry.get_sample_value(name) == 0
    for _ in range(9):
        operator.queue.retry(KEY)
    operator.queue.retry(Key("ns", "other"))
    assert metrics.registry.get_sample_value(name) == 1
    operator.queue.succeeded(KEY)
    assert metrics.registry.get_sample_value(name) == 0
