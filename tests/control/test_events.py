"""What is told to users: each thing once."""

from typing import Any

from distserve.operator.events import SILENT_SECONDS, Events
from distserve.operator.model import Event

ABOUT = {"metadata": {"name": "tiny", "namespace": "llm", "uid": "1", "resourceVersion": "7"}}


class Api:
    """Takes what is written."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    async def write(self, verb: str, path: str, document: dict[str, Any]) -> None:
        assert (verb, document["regarding"]["name"]) == ("create", "tiny")
        self.notes.append(document["note"])


async def test_the_same_words_are_told_once_for_a_time() -> None:
    api: Any = Api()
    now = [0.0]
    events = Events(api, "me", lambda: now[0])
    for _ in range(2):
        await events.tell(ABOUT, Event("Normal", "UpToDate", "all of it"))
    await events.tell(ABOUT, Event("Normal", "UpToDate", "other words"))
    now[0] += SILENT_SECONDS
    await events.tell(ABOUT, Event("Normal", "UpToDate", "all of it"))
    assert api.notes == ["all of it", "other words", "all of it"]


async def test_what_happened_once_is_told_once_in_whatever_words() -> None:
    """Its cure is decided again for the rest, while a watch does not show all of it yet."""
    api: Any = Api()
    events = Events(api, "me", lambda: 0.0)
    await events.tell(ABOUT, Event("Warning", "NodeLost", "pods a, b", of="node-1"))
    await events.tell(ABOUT, Event("Warning", "NodeLost", "pod b", of="node-1"))
    await events.tell(ABOUT, Event("Warning", "NodeLost", "pod c", of="node-2"))
    assert api.notes == ["pods a, b", "pod c"]
