"""What the reconciler makes of the API server's answers to its writes."""

from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from distserve.operator.errors import Conflict
from distserve.operator.model import Decision, Delete, Event, Features, Key, Observed, Ref
from distserve.operator.reconciler import Reconciler

KEY = Key("ns", "opt")
DOCUMENT = {"metadata": {"name": "opt", "namespace": "ns", "uid": "d"}}
POD = Ref("v1", "Pod", "opt-u0-decode-0-0")
TOLD = Event("Warning", "NodeLost", "node one is out of service")
DECISION = Decision(actions=(Delete(POD, "old", 0),), events=(TOLD,))


def world(uid_now: str | None) -> tuple[Reconciler, Any]:
    """A pod that is to go, and cannot be deleted by the uid that it was seen with."""
    live = None if uid_now is None else {"metadata": {"uid": uid_now}}
    store, placing, events = Mock(), Mock(), AsyncMock()
    store.observe.return_value = Observed(DOCUMENT, {}, (), Features(), 0.0)
    placing.gathers.return_value = False
    cluster = AsyncMock()
    cluster.delete.side_effect = Conflict("the UID in the precondition is another")
    cluster.get.return_value = live
    made = Reconciler(store, cluster, lambda *_: DECISION, Mock(), placing, events, Mock(), Mock())
    return made, events


@pytest.mark.parametrize("uid_now", ["new", None])
async def test_what_somebody_else_deleted_first_is_told_all_the_same(uid_now: str | None) -> None:
    """On a node out of service the control plane deletes pods, too."""
    reconciler, events = world(uid_now)
    await reconciler.reconcile(KEY)
    events.tell.assert_awaited_once_with(DOCUMENT, TOLD)


async def test_what_is_still_there_is_tried_again() -> None:
    reconciler, events = world("old")
    with pytest.raises(Conflict):
        await reconciler.reconcile(KEY)
    events.tell.assert_not_awaited()
