"""pytest's side of the clusters: two session fixtures, and who may run the tests that use them.

    control_plane   Profile.CONTROL_PLANE        real_cluster   Profile.REAL

A test that uses one of them gets the marker `cluster` and runs only with `--cluster`. What takes
minutes once per machine happens after collection, outside of any test's time limit.
"""

import os
from collections.abc import Iterator

import pytest
from tools.cluster import providers
from tools.cluster.cluster import Cluster
from tools.cluster.errors import ClusterError, Unavailable
from tools.cluster.profiles import Profile
from tools.cluster.progress import Progress

FIXTURES = {"control_plane": Profile.CONTROL_PLANE, "real_cluster": Profile.REAL}
MARKER = "cluster"
# The first test of a session also pays for the cluster's start.
TEST_SECONDS = 300
_failures = pytest.StashKey[dict[Profile, ClusterError]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cluster", action="store_true", help="also run the tests that start a Kubernetes cluster"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if _profiles(item):
            item.add_marker(MARKER)
        if item.get_closest_marker(MARKER) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))
    if not config.getoption("--cluster"):
        left_out = [item for item in items if item.get_closest_marker(MARKER)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


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


@pytest.fixture(scope="session")
def control_plane(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """An API server with controllers and scheduler; its nodes are fake: `Cluster.nodes`."""
    yield from _cluster(request.config, Profile.CONTROL_PLANE)


@pytest.fixture(scope="session")
def real_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster of two nodes on which pods really run, with DNS and Services."""
    yield from _cluster(request.config, Profile.REAL)


def _cluster(config: pytest.Config, profile: Profile) -> Iterator[Cluster]:
    try:
        if profile in config.stash[_failures]:
            raise config.stash[_failures][profile]
        cluster = providers.start(profile)
    except Unavailable as lacking:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"NO KUBERNETES ({profile}) ON THIS MACHINE: {lacking}")
    try:
        yield cluster
    finally:
        cluster.down()


def _profiles(item: pytest.Item) -> list[Profile]:
    names = getattr(item, "fixturenames", ())
    return [profile for name, profile in FIXTURES.items() if name in names]
