"""What every room's tests may use."""

import gc
from pathlib import Path

import hypothesis
import pytest
from tools.cluster.cluster import Cluster

pytest_plugins = ("tools.cluster.fixtures",)

# No test judges by time; by default an example may take a fifth of a second.
hypothesis.settings.register_profile(
    "untimed",
    hypothesis.settings.default,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("untimed")


def pytest_collection() -> None:
    """Nothing of what is imported and collected is garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """What was imported and collected stays: with all rooms together, each full collection would
    look through it for a second."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def compute_domains(control_plane: Cluster) -> None:
    """The control plane serves ComputeDomains, as where NVIDIA's DRA driver is installed."""
    control_plane.apply(Path(__file__).with_name("compute_domains.yaml"))
    control_plane.wait_for(
        "ComputeDomains to be served",
        lambda: "computedomains" in control_plane.kubectl("api-resources").split(),
    )
