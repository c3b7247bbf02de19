"""`distserve plan` says what the operator then does."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools.cluster.cluster import Cluster

Object = dict[str, Any]
DOMAIN, UNIT = "distserve.io/domain", "distserve.io/unit"
SECONDS = 60.0


def planned(cluster: Cluster, folder: Path, document: Object) -> list[tuple[str, str, str]]:
    """(act, unit, domain) of each move that `distserve plan` tells."""
    file = folder / "deployment.json"
    file.write_text(json.dumps(document))
    command = [sys.executable, "-m", "distserve.cli.main", "plan", f"--file={file}", "--cluster",
               f"--kubeconfig={cluster.kubeconfig}", "--output=json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=3 * SECONDS)
    assert done.returncode == 0, done.stderr
    moves = json.loads(done.stdout)["placement"]["moves"]
    return [(one["act"], one["unit"], one["domain"]["name"]) for one in moves]


def test_what_plan_says_is_what_is_done(fabric: Any, tmp_path: Path) -> None:
    def document(units: int, **marks: str) -> Object:
        found = fabric.deployment("opt", fabric.whole_domain)
        found["metadata"]["namespace"] = fabric.namespace
        found["spec"]["units"] = units
        for role in ("prefill", "decode"):
            template = found["spec"][role]["podTemplate"]
            found["spec"][role]["podTemplate"] = template | {"metadata": {"labels": marks}}
        return found

    with fabric.domains(3, 2, "plan-") as cliques, fabric.watched() as history:
        fabric.apply(fabric.foreign_pod("busy", next(iter(cliques)), 1))

        def homes() -> dict[str, str]:
            """Of units that are whole and Ready."""
            found = {}
            for (_, unit), pods in history.units().items():
                at = {cliques[pod["spec"]["nodeName"]] for pod in pods if fabric.is_ready(pod)}
                if (
                    len(at) == 1
                    and sum(map(fabric.is_ready, pods)) == len(pods) == fabric.whole_domain.pods
                ):
                    found[unit] = at.pop()
            return found

        for units in (1, 2):
            told = planned(fabric.cluster, tmp_path, document(units))
            fabric.apply(document(units))
            fabric.wait_until(
                "all units are whole", lambda wanted=units: len(homes()) == wanted, SECONDS
            )
            assert {unit: domain for _, unit, domain in told} == homes()
            acts = [act for act, _, _ in planned(fabric.cluster, tmp_path, document(units))]
            assert acts == ["keep"] * units, "nothing is left to do"

        fabric.cluster.kubectl("scale", "dsd/opt", f"-n{fabric.namespace}", "--replicas=1")

        def one_left() -> bool:
            """The other one's room is free again, which `distserve plan` looks for."""
            return set(homes()) == {"u0"} and ("opt", "u1") not in history.units()

        fabric.wait_until("one unit is left", one_left)
        told = planned(fabric.cluster, tmp_path, document(1, colour="blue"))
        assert [move[:2] for move in told] == [
            ("keep", "u0"), ("create", "u1"), ("replace", "u0"), ("delete", "u1"),
        ]  # fmt: skip
        fabric.apply(document(1, colour="blue"))

        def rolled() -> bool:
            pods = [pod for some in history.units().values() for pod in some]
            blue = all(pod["metadata"]["labels"].get("colour") == "blue" for pod in pods)
            return blue and set(homes()) == {"u0"}

        fabric.wait_until("the rollout is over", rolled, 120.0)
        assert homes()["u0"] == told[2][2]
        marks = [
            one["metadata"].get("labels") or {} for one in history.events if one["kind"] == "Pod"
        ]
        extra = {m[DOMAIN] for m in marks if m.get(UNIT) == "u1" and m.get("colour") == "blue"}
        assert extra == {told[1][2]}
        history.check(cliques)
