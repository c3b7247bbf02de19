"""What `distserve why` reads of the cluster: an API server that is played answers."""

import json
from collections.abc import Mapping
from typing import Any

from kubernetes.aio.client.exceptions import ApiException

from distserve.cli.why import _Reader
from distserve.diagnosis.diagnose import diagnose
from distserve.diagnosis.text import as_document, as_text

SAID = 'Error creating: pods "tiny-gateway-abc-x" is forbidden: exceeded quota: small'
DOCUMENT = {"metadata": {"name": "tiny", "namespace": "llm", "generation": 1}, "spec": {}}
LISTS: dict[str, list[Any]] = {
    "replicasets": [{"metadata": {"name": "tiny-gateway-abc"}}],
    "events": [
        {
            "metadata": {"creationTimestamp": "2026-01-01T12:00:00Z"},
            "type": "Warning",
            "reason": "FailedCreate",
            "message": SAID,
            "involvedObject": {"kind": "ReplicaSet", "name": name},
        }
        for name in ("tiny-gateway-abc", "other-gateway-abc")
    ],
}


class Played(_Reader):
    """`refused`: resources that may not be read."""

    refused: tuple[str, ...] = ()

    async def _read(self, path: str, query: Mapping[str, Any]) -> str:
        what = path.rpartition("/")[2]
        if what in self.refused:
            raise ApiException(403, "Forbidden")
        return json.dumps(DOCUMENT if what == "tiny" else {"items": LISTS.get(what, [])})


async def test_what_happened_to_a_gateways_replica_set_is_told() -> None:
    facts = await Played(None, "llm").facts("tiny")
    text = as_text(facts, diagnose(facts))
    assert f"replicaset/tiny-gateway-abc FailedCreate: {SAID}" in text
    assert "other-gateway" not in text
    assert "may not be read" not in text


async def test_events_that_may_not_be_read_are_no_reason_to_say_nothing() -> None:
    reader = Played(None, "llm")
    reader.refused = ("events",)
    facts = await reader.facts("tiny")
    text = as_text(facts, diagnose(facts))
    assert text.startswith("llm/tiny ")
    assert "events may not be read" in text
    assert as_document(facts, diagnose(facts))["eventsRead"] is False
