"""pytest's side of the clusters: fixtures, and who may run the tests that use them.

    control_plane   one of Profile.CONTROL_PLANE for the whole session
    real_cluster    one of Profile.REAL for the whole session
    start_cluster   starts one for this test only

A test that uses one of them gets the marker `cluster` and runs only with `--cluster`; one that may
start real nodes gets `real_nodes` too, so that no cluster need idle beside the other. What takes
minutes once per machine happens after collection, outside of any test's time limit.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tools.cluster import providers
from tools.cluster.cluster import Cluster
from tools.cluster.errors import ClusterError, Unavailable
from tools.cluster.profiles import Profile
from tools.cluster.progress import Progress

FIXTURES = {
    "control_plane": (Profile.CONTROL_PLANE,),
    "real_cluster": (Profile.REAL,),
    "start_cluster": tuple(Profile),
}
MARKER, REAL_MARKER = "cluster", "real_nodes"
# The first test of a session also pays for the cluster's start.
TEST_SECONDS = 300
_left_out = pytest.StashKey[int]()
_failures = pytest.StashKey[dict[Profile, ClusterError]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cluster", action="store_true", help="also run the tests that start a Kubernetes cluster"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if profiles := _profiles(item):
            item.add_marker(MARKER)
            if Profile.REAL in profiles:
                item.add_marker(REAL_MARKER)
        if item.get_closest_marker(MARKER) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))
    if not config.getoption("--cluster"):
        left_out = [item for item in items if item.get_closest_marker(MARKER)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker(MARKER)]
        config.stash[_left_out] = len(left_out)


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    count = config.stash.get(_left_out, 0)
    return [f"{count} tests on Kubernetes are left out: --cluster runs them"] if count else []


def pytest_collection_finish(session: pytest.Session) -> None:
    failures = session.config.stash.setdefault(_failures, {})
    if session.config.getoption("collectonly"):
        return
    wanted = {profile for item in session.items for profile in _profiles(item)}
    capture = session.config.pluginmanager.getplugin("capturemanager")
    for profile in sorted(wanted):
        with capture.global_and_fixture_disabled():
            try:
                providers.prepare(profile, Progress())
            except ClusterError as failed:
                failures[profile] = failed


@contextlib.contextmanager
def or_skip(what: str) -> Iterator[None]:
    """Turns Unavailable into a skip that says what to install; in CI it stays a failure."""
    try:
        yield
    except Unavailable as lacking:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"NO KUBERNETES ({what}) ON THIS MACHINE: {lacking}")


@pytest.fixture(scope="session")
def control_plane(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """An API server with controllers and scheduler; its nodes are fake: `Cluster.nodes`."""
    with contextlib.closing(_Clusters(request.config)) as clusters:
        yield clusters.start(Profile.CONTROL_PLANE)


@pytest.fixture(scope="session")
def real_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster of two nodes on which pods really run, with DNS and Services."""
    with contextlib.closing(_Clusters(request.config)) as clusters:
        yield clusters.start(Profile.REAL)


@pytest.fixture
def start_cluster(request: pytest.FixtureRequest) -> Iterator[Callable[..., Cluster]]:
    """`providers.start`, for a test that needs a cluster of its own; the test's end removes it."""
    with contextlib.closing(_Clusters(request.config)) as clusters:
        yield clusters.start


class _Clusters:
    """Those that a fixture started."""

    def __init__(self, config: pytest.Config) -> None:
        if not config.getoption("--cluster"):
            pytest.fail("asked for by name alone: usefixtures lets it be left out")
        self._failures = config.stash[_failures]
        self._started: list[Cluster] = []

    def start(self, profile: Profile, **options: Any) -> Cluster:
        with or_skip(profile):
            if profile in self._failures:
                raise self._failures[profile]
            cluster = providers.start(profile, **options)
            self._started.append(cluster)
        return cluster

    def close(self) -> None:
        with contextlib.ExitStack() as every_one:
            for cluster in self._started:
                every_one.callback(cluster.down)


def _profiles(item: pytest.Item) -> set[Profile]:
    names = getattr(item, "fixturenames", ())
    return {profile for name in FIXTURES.keys() & set(names) for profile in FIXTURES[name]}
