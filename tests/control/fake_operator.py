"""An operator whose deciding half makes ServiceAccounts: `python fake_operator.py SETTINGS_JSON`.

What is tested around it is the watching and acting half, with real replicas and a real API server.
"""

import asyncio
import dataclasses
import json
import logging
import signal
import sys
from pathlib import Path
from typing import Any

from distserve.operator.model import Answers, Apply, Decision, Delete, Event, Observed, Ref
from distserve.operator.process import run
from distserve.operator.settings import CallSettings, LeaseSettings, Settings, WatchSettings
from distserve.wire.logs import setup_logging

ACCOUNTS = 3
UNITS = "test/units"


def decide(observed: Observed, answers: Answers) -> Decision:
    """ServiceAccounts NAME-0.. annotated with spec.units; with units 0, only the first."""
    document = observed.document
    metadata, units = document["metadata"], document["spec"]["units"]
    owner = {key: document[key] for key in ("apiVersion", "kind")} | {
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    wanted = {}
    for number in range(ACCOUNTS if units else 1):
        name = f"{metadata['name']}-{number}"
        wanted[Ref("v1", "ServiceAccount", name)] = {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {
                "name": name,
                "namespace": metadata["namespace"],
                "labels": {"distserve.io/deployment": metadata["name"]},
                "annotations": {UNITS: str(units)},
                "ownerReferences": [owner],
            },
        }
    actions: list[Apply | Delete] = []
    for ref, one in wanted.items():
        live = observed.children.get(ref)
        if live is None and ref not in answers.foreign:
            actions.append(Apply(one))
        elif live is not None and _kept(live) != _kept(one):
            actions.append(Apply(one, uid=live["metadata"]["uid"]))
    for ref, live in observed.children.items():
        if ref not in wanted and ref.kind == "ServiceAccount":
            actions.append(Delete(ref, live["metadata"]["uid"]))
    status = {
        "observedGeneration": metadata["generation"],
        "replicas": len(observed.children),
        "url": ",".join(sorted(ref.name for ref in answers.foreign)),
    }
    said = document.get("status") or {}
    same = all((said.get(key) or 0) == (value or 0) for key, value in status.items())
    return Decision(
        actions=tuple(actions),
        status=None if same else status,
        events=() if same else (Event("Normal", "Counted", f"{status['replicas']} are there"),),
    )


def _kept(account: dict[str, Any]) -> tuple[str | None, dict[str, str]]:
    metadata = account["metadata"]
    return metadata.get("annotations", {}).get(UNITS), metadata.get("labels", {})


def settings_of(said: dict[str, Any]) -> Settings:
    return dataclasses.replace(
        Settings(kubeconfig=Path(said["kubeconfig"]), host="127.0.0.1"),
        health_port=said["health_port"],
        metrics_port=said["metrics_port"],
        namespaces=tuple(said.get("namespaces", ())),
        lease=LeaseSettings(**said["lease"]),
        watch=WatchSettings(**said["watch"]),
        calls=CallSettings(seconds=3.0, write_seconds=3.0),
    )


async def main(said: dict[str, Any]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await run(settings_of(said), decide, lambda unit, sets: _nothing_placed(), stop)


def _nothing_placed() -> Any:
    raise AssertionError("these deployments have no StatefulSets")


if __name__ == "__main__":
    setup_logging("operator", "info")
    logging.getLogger("kopf").setLevel(logging.ERROR)
    asyncio.run(main(json.loads(sys.argv[1])))
