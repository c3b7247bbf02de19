"""A real Prometheus scrapes a running deployment: every panel shows something, busy or not."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tools.cluster.cluster import CHECKOUT
from tools.cluster.waiting import wait_for
from tools.dashboard_pictures import main

from distserve.observability.dashboards.balance import BALANCE
from distserve.observability.dashboards.service import SERVICE
from distserve.observability.dashboards.topology import TOPOLOGY
from distserve.observability.dashboards.transfer import TRANSFER

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DISTSERVE = [sys.executable, "-m", "distserve.cli.main"]
SAMPLE = CHECKOUT / "manifests" / "samples" / "tiny-cpu.yaml"
OF_DEPLOYMENT = (SERVICE, BALANCE, TRANSFER, TOPOLOGY)

# What a healthy service has no reason to do: fail, preempt, run out, and probe without being asked.
QUIET = {
    SERVICE: {"Error budget's burn rate", "Failures of the service"},
    BALANCE: {"Requests that wait", "Preemptions", "Hits of the prefix cache"},
    TRANSFER: {"Failures by reason", "Probed bandwidth", "Leases that run"},
    # The operator's, of which there is none here.
    TOPOLOGY: {"Measured at each unit's slowest link", "Latency of that link"},
}


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    folder = tmp_path / "pack"
    subprocess.run(
        [*DISTSERVE, "observability", f"--output-dir={folder}", f"--file={SAMPLE}"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return folder


@pytest.fixture
def up(tmp_path: Path, unused_port: int) -> Iterator[tuple[str, Path]]:
    """The address of the gateway, and the file with what is to be scraped."""
    targets = tmp_path / "up.json"
    flags = [f"--file={SAMPLE}", f"--port={unused_port}", f"--prometheus-targets={targets}"]
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
    up: tuple[str, Path], pack: Path, start_prometheus: Any, shown: Any, tmp_path: Path
) -> None:
    url, targets = up
    rules = sorted((pack / "rules").glob("*.yaml"))
    prometheus = start_prometheus(rules)
    shutil.copy(targets, prometheus.targets)
    expected = sum(len(one["targets"]) for one in json.loads(targets.read_text()))
    assert expected == 5, "a gateway, two engines and their migrators"
    wait_for(
        "every target",
        lambda: prometheus.values("up") == [1.0] * expected,
        60,
        explain=lambda: str(prometheus.get("/api/v1/targets")),
        poll_seconds=0.5,
    )
    dashboards = shown(prometheus, {"namespace": "default", "deployment": "tiny"})
    dashboards.wait_complete("at rest", *OF_DEPLOYMENT)
    at_rest = dashboards.moving(SERVICE)
    assert at_rest == {
        "SLO attainment", "Attainment by half", "Attainment of objectives of their own",
        "Age of what gateways know",
    }  # fmt: skip

    with load(url):
        still: dict[str, set[str]] = {}

        def all_move() -> bool:
            still.clear()
            for dashboard in OF_DEPLOYMENT:
                titles = {panel.title for panel in dashboard.panels}
                still[dashboard.title] = titles - QUIET[dashboard] - dashboards.moving(dashboard)
            return not any(still.values())

        wait_for("all panels to move", all_move, 60, explain=lambda: str(still), poll_seconds=1)
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
    draw = ["--deployment=tiny", "--seconds=90", "--scrape-seconds=2.5"]
    assert main([f"--prometheus={prometheus.url}", f"--output-dir={pictures}", *draw]) == 0
    assert {f"{one.uid}.png" for one in OF_DEPLOYMENT} == {one.name for one in pictures.iterdir()}
    for group in prometheus.get("/api/v1/rules")["groups"]:
        assert {rule["health"] for rule in group["rules"]} == {"ok"}, group
