"""helm install, kubectl apply, a token through the Service: what a user sees on two real nodes."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from tools.cluster.conditions import is_true

from distserve.cli.main import main as distserve

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

PROMPTS = ["The river", "What is a prime number?", "A graph is"]


@pytest.fixture(scope="module")
def before(deployment: Any) -> set[str]:
    """What the namespace had before the deployment came."""
    found: set[str] = deployment.place.installed.objects(deployment.namespace)
    return found


@pytest.fixture(scope="module")
def serving(deployment: Any, before: set[str]) -> Iterator[Any]:
    """The deployment, Ready; prints the times that a user waits."""
    began = time.monotonic()
    deployment.apply()

    def rendered() -> bool:
        return len(deployment.pods()) == 4

    deployment.cluster.wait_for("all pods to be made", rendered)
    objects = time.monotonic() - began
    deployment.wait_for("Ready")
    ready = time.monotonic() - began
    print(f"\napply -> all objects {objects:.1f} s, apply -> Ready {ready:.1f} s")
    yield deployment


def test_helm_test_says_that_the_operator_is_well(installed: Any) -> None:
    said = installed.cluster.helm(
        "test", "distserve", "--namespace", "distserve-system", "--timeout=120s", seconds=150
    )
    assert "Succeeded" in said


def test_prefill_and_decode_run_on_different_nodes(serving: Any) -> None:
    nodes = {serving.pod(role=role)["spec"]["nodeName"] for role in ("prefill", "decode")}
    assert nodes == {"node1", "node2"}


async def test_the_text_is_that_of_a_local_run(serving: Any, fleets: Any) -> None:
    """Greedy, streamed, by the openai client, through the Service's name; undivided here."""
    fleet = await fleets(
        "builtin:tiny", prefill=0, decode=0, hybrid=1, strategy="Colocated", dtype="auto"
    )
    answers = [serving.ask(prompt)[0] for prompt in PROMPTS]
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        local = await fleet.complete(prompt=prompt, max_tokens=24, temperature=0)
        assert answer["text"] == local["choices"][0]["text"]
    assert max(answer["chunks"] for answer in answers) > 4


def test_kv_went_over_tcp_between_the_pods(serving: Any) -> None:
    serving.ask("The sea", times=2)
    found = serving.place.metrics(serving.pod(role="decode"), 8102)
    moved = {
        name: value
        for name, value in found.items()
        if name.startswith("distserve_kv_transfer_bytes_total") and value > 0
    }
    assert moved, f"no bytes were migrated: {sorted(found)}"
    assert all('transport="TCP"' in name for name in moved)


def test_gateways_measure_ttft_and_tpot(serving: Any) -> None:
    serving.ask("The moon", times=4)
    pages = [serving.place.metrics(pod, 8000) for pod in serving.gateways()]
    for what in ("time_to_first_token", "time_per_output_token"):
        counts = [
            value for page in pages for name, value in page.items()
            if what in name and name.split("{")[0].endswith("_count")
        ]  # fmt: skip
        assert sum(counts) > 0, f"{what} was not measured: {sorted(pages[0])}"


def test_more_gateways_share_what_may_wait_and_restart_none(serving: Any) -> None:
    def bounds(gateways: int) -> list[float]:
        """Of each, once there are so many and all are ready."""
        pods = serving.gateways()
        if len(pods) != gateways or not all(is_true(pod, "Ready") for pod in pods):
            return []
        return [serving.place.metrics(p, 8000)["distserve_requests_waiting_bound"] for p in pods]

    def scale(gateways: int, each: float) -> set[str]:
        serving.apply(gateway={"replicas": gateways})
        wanted = [each] * gateways
        serving.cluster.wait_for(f"{gateways} shares", lambda: bounds(gateways) == wanted)
        return {pod["metadata"]["uid"] for pod in serving.gateways()}

    two = scale(2, 256)
    three = scale(3, 171)
    assert two < three
    assert scale(2, 256) < three


def test_why_says_that_it_serves(serving: Any, capsys: pytest.CaptureFixture[str]) -> None:
    kubeconfig = str(serving.cluster.kubeconfig)
    flags = ["--namespace", serving.namespace, "--kubeconfig", kubeconfig]
    assert distserve(["why", serving.name, *flags]) == 0
    headline = capsys.readouterr().out.splitlines()[0]
    url = serving.live()["status"]["url"]
    assert headline == f"{serving.namespace}/{serving.name} serves at {url}; ready units: 1"


def test_kubectl_shows_it(serving: Any) -> None:
    said = serving.cluster.kubectl("get", "dsd", f"--namespace={serving.namespace}")
    header, row = said.splitlines()
    assert header.split()[:3] == ["NAME", "READY", "REASON"]
    assert row.split()[:2] == [serving.name, "True"]


def test_units_are_added_and_taken_away(serving: Any) -> None:
    serving.apply(units=2)
    serving.wait_for("Ready")

    def units() -> set[str]:
        return {p["metadata"]["labels"].get("distserve.io/unit", "") for p in serving.pods()} - {""}

    serving.cluster.wait_for("two units", lambda: serving.live()["status"]["replicas"] == 2)
    assert units() == {"u0", "u1"}
    scale = ("scale", "dsd", serving.name, "--replicas=1", f"--namespace={serving.namespace}")
    serving.cluster.kubectl(*scale)
    serving.document["spec"]["units"] = 1
    serving.cluster.wait_for("unit u1 to go", lambda: units() == {"u0"})
    serving.wait_for("Ready")


def test_an_edit_is_rolled_and_clients_are_served_after(serving: Any, other_image: str) -> None:
    """Another image and a new environment variable: other pods, same answers."""
    old = {pod["metadata"]["uid"] for pod in serving.pods(role="decode")}
    revision = serving.live()["status"]["revision"]["current"]
    (before,) = serving.ask("The wind")
    for role in ("prefill", "decode"):
        container = serving.document["spec"][role]["podTemplate"]["spec"]["containers"][0]
        container["env"].append({"name": "ROLLED", "value": "1"})
    began = time.monotonic()
    serving.apply(images={"engine": other_image})

    def rolled() -> bool:
        status = serving.live()["status"]
        current = status["revision"]["current"]
        moved = current != revision and current == status["revision"]["target"]
        return bool(moved and len(serving.pods(role="decode")) == 1)

    serving.cluster.wait_for("the rollout's end", rolled, 240)
    serving.wait_for("Ready")
    print(f"\nedit -> rolled {time.monotonic() - began:.1f} s")
    pod = serving.pod(role="decode")
    assert pod["metadata"]["uid"] not in old
    assert {one["image"] for one in pod["spec"]["containers"]} == {other_image}
    assert serving.ask("The wind") == [before]


def test_deletion_leaves_nothing(serving: Any, before: set[str]) -> None:
    cluster, namespace = serving.cluster, serving.namespace
    where = f"--namespace={namespace}"
    cluster.kubectl("delete", "dsd", serving.name, where, "--wait=true", "--timeout=60s")

    def gone() -> bool:
        return bool(serving.place.installed.objects(namespace) <= before)

    cluster.wait_for("everything to be collected", gone, 150)
