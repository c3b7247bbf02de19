"""A real Prometheus scrapes a running deployment: every panel shows something, busy or not."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tools.cluster.cluster import CHECKOUT
from tools.cluster.waiting import wait_for
from tools.dashboard_pictures import main

from distserve.observability.dashboards.balance import BALANCE
from distserve.observability.dashboards.common import NO_MIGRATORS
from distserve.observability.dashboards.service import SERVICE
from distserve.observability.dashboards.topology import TOPOLOGY
from distserve.observability.dashboards.transfer import TRANSFER
from distserve.observability.panels import Dashboard

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DISTSERVE = [sys.executable, "-m", "distserve.cli.main"]
SAMPLES = CHECKOUT / "manifests" / "samples"
OF_DEPLOYMENT = (SERVICE, BALANCE, TRANSFER, TOPOLOGY)

# What a healthy service has no reason to do: fail, preempt, run out, and probe without being asked.
QUIET = {
    SERVICE: {"Error budget's burn rate", "Failures of the service"},
    BALANCE: {"Requests that wait", "Preemptions", "Hits of the prefix cache"},
    TRANSFER: {"Failures by reason", "Probed bandwidth", "Leases that run"},
    # The operator's, of which there is none here.
    TOPOLOGY: {"Measured at each unit's slowest link", "Latency of that link"},
}


@dataclass(frozen=True)
class Case:
    """A sample, how many processes of it are scraped, and what stays still under load. Panels that
    say `without` may have nothing to show."""

    sample: str
    deployment: str
    processes: int
    quiet: Mapping[Dashboard, set[str]]
    without: str = ""


DISAGGREGATED = Case("tiny-cpu", "tiny", 5, QUIET)
"""A gateway, two engines and their migrators."""
COLOCATED = Case(
    "tiny-colocated",
    "tiny-colocated",
    2,
    QUIET
    | {
        one: QUIET[one]
        | {panel.title for panel in one.panels if panel.without == NO_MIGRATORS}
        | {"Pairs by what they share"}
        for one in (TRANSFER, TOPOLOGY)
    },
    NO_MIGRATORS,
)
"""A gateway and an engine, which is no pair."""


@pytest.fixture(params=[DISAGGREGATED, COLOCATED], ids=lambda case: case.sample)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture
def pack(case: Case, tmp_path: Path) -> Path:
    folder = tmp_path / "pack"
    sample = SAMPLES / f"{case.sample}.yaml"
    subprocess.run(
        [*DISTSERVE, "observability", f"--output-dir={folder}", f"--file={sample}"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return folder


@pytest.fixture
def up(case: Case, tmp_path: Path, unused_port: int) -> Iterator[tuple[str, Path]]:
    """The address of the gateway, and the file with what is to be scraped."""
    targets = tmp_path / "up.json"
    sample = f"--file={SAMPLES / case.sample}.yaml"
    flags = [sample, f"--port={unused_port}", f"--prometheus-targets={targets}"]
    with (
        (tmp_path / "up.log").open("w") as log,
        subprocess.Popen(
            [*DISTSERVE, "up", *flags], stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            assert ready.startswith("ready "), (tmp_path / "up.log").read_text()
            yield ready.split()[1], targets
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@contextlib.contextmanager
def load(url: str) -> Iterator[None]:
    """Two clients, each of which sends its next request when the last one is answered."""
    ended = threading.Event()
    failures: list[Exception] = []

    def ask(client: int) -> None:
        number = 0
        while not ended.is_set():
            number += 1
            prompt = f"Client {client} tells story {number}: " + "once upon a time " * 12
            body = {"model": "tiny", "prompt": prompt, "max_tokens": 12, "ignore_eos": True}
            asked = urllib.request.Request(
                f"{url}/completions",
                json.dumps(body).encode(),
                {"content-type": "application/json"},
            )
            try:
                with urllib.request.urlopen(asked, timeout=60) as answer:
                    answer.read()
            except Exception as error:
                failures.append(error)
                return

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for one in clients:
        one.start()
    try:
        yield
    finally:
        ended.set()
        for one in clients:
            one.join(60)
    assert not failures


def test_every_panel_shows_a_running_deployment(
    case: Case,
    up: tuple[str, Path],
    pack: Path,
    start_prometheus: Any,
    shown: Any,
    tmp_path: Path,
) -> None:
    url, targets = up
    rules = sorted((pack / "rules").glob("*.yaml"))
    prometheus = start_prometheus(rules)
    shutil.copy(targets, prometheus.targets)
    expected = sum(len(one["targets"]) for one in json.loads(targets.read_text()))
    assert expected == case.processes
    wait_for(
        "every target",
        lambda: prometheus.values("up") == [1.0] * expected,
        60,
        explain=lambda: str(prometheus.get("/api/v1/targets")),
        poll_seconds=0.5,
    )
    variables = {"namespace": "default", "deployment": case.deployment}
    dashboards = shown(prometheus, variables, case.without)
    dashboards.wait_complete("at rest", *OF_DEPLOYMENT)
    at_rest = dashboards.moving(SERVICE)
    assert at_rest == {
        "SLO attainment", "Attainment by half", "Attainment of objectives of their own",
        "Age of what gateways know",
    }  # fmt: skip

    with load(url):
        still = {
            one: {panel.title for panel in one.panels} - case.quiet[one] for one in OF_DEPLOYMENT
        }

        def all_have_moved() -> bool:
            for dashboard, titles in still.items():
                titles -= dashboards.moving(dashboard)
            return not any(still.values())

        wait_for(
            "all panels to move",
            all_have_moved,
            60,
            explain=lambda: str({one.title: titles for one, titles in still.items() if titles}),
            poll_seconds=1,
        )
        dashboards.wait_complete("under load", *OF_DEPLOYMENT)
        met = 'deployment:distserve_slo_attained:ratio_rate5m{namespace="default"}'
        wait_for(
            "the recorded attainment",
            lambda: (
                {one["metric"]["slo"] for one in prometheus.vector(met)} == {"ttft", "tpot", "both"}
            ),
            30,
        )
    pictures = tmp_path / "pictures"
    draw = [f"--deployment={case.deployment}", "--seconds=90", "--scrape-seconds=2.5"]
    assert main([f"--prometheus={prometheus.url}", f"--output-dir={pictures}", *draw]) == 0
    assert {f"{one.uid}.png" for one in OF_DEPLOYMENT} == {one.name for one in pictures.iterdir()}
    for group in prometheus.get("/api/v1/rules")["groups"]:
        assert {rule["health"] for rule in group["rules"]} == {"ok"}, group
