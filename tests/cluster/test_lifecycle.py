"""Clusters come, stand beside each other, and go without a trace, also after a crash."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tools.cluster import local, providers
from tools.cluster.cluster import CHECKOUT, Cluster
from tools.cluster.control_plane import ExtraFlags
from tools.cluster.errors import DidNotCome
from tools.cluster.fixtures import or_skip
from tools.cluster.home import homes
from tools.cluster.profiles import Profile, Provider
from tools.cluster.progress import Progress
from tools.cluster.teardown import remove_stale
from tools.cluster.waiting import wait_for

Traces = dict[str, set[str]]
Start = Callable[..., Cluster]
GONE_SECONDS = 30.0

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def own_cluster() -> None:
    if providers.choose() is not Provider.LOCAL:
        pytest.skip("on this machine clusters are not the project's own")


def expect_no_more_than(before: Traces, traces: Callable[[], Traces]) -> None:
    """The kernel takes interfaces and namespaces down a moment after their last user."""

    def surplus() -> Traces:
        return {
            kind: found - before[kind] for kind, found in traces().items() if found - before[kind]
        }

    wait_for(
        "the end of everything the cluster made",
        lambda: not surplus(),
        GONE_SECONDS,
        explain=lambda: str(surplus()),
    )


def run_a_pod(cluster: Cluster) -> None:
    pod = cluster.python_pod("runs", ["-c", "import time; time.sleep(600)"])
    shared = {"name": "shared", "emptyDir": {"medium": "Memory"}}
    pod["spec"]["volumes"].append(shared)
    mount = {"name": "shared", "mountPath": "/dev/shm"}
    pod["spec"]["containers"][0]["volumeMounts"].append(mount)
    cluster.apply(pod)
    cluster.wait_until_ready("pod runs")


def test_a_teardown_leaves_nothing(
    control_plane: Cluster, start_cluster: Start, traces: Callable[[], Traces]
) -> None:
    """Beside another that has no nodes of its own."""
    assert control_plane.home.name in {home.name for home in homes()}
    before = traces()
    cluster = start_cluster(Profile.REAL, nodes=1)
    run_a_pod(cluster)
    made = traces()
    for kind in ("processes", "namespaces", "links", "routes", "cgroups", "clusters", "sockets"):
        assert made[kind] - before[kind], f"the test would not see {kind}"
    cluster.down()
    expect_no_more_than(before, traces)


@pytest.fixture
def crashed() -> Iterator[str]:
    """The name of a cluster whose owner was killed when a pod ran on it."""
    name = "owner-died"
    with or_skip(Profile.REAL):
        local.prepare(Profile.REAL, Progress())
    program = (
        "import sys, time\n"
        "from tools.cluster import local\n"
        "from tools.cluster.profiles import Profile\n"
        "from tools.cluster.progress import Progress\n"
        f"cluster = local.start(Profile.REAL, Progress(), name={name!r}, nodes=1)\n"
        "pod = cluster.python_pod('runs', ['-c', 'import time; time.sleep(600)'])\n"
        "cluster.apply(pod)\n"
        "cluster.wait_until_ready('pod runs')\n"
        "print('up', flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "up\n"
        owner.send_signal(signal.SIGKILL)
    yield name


def test_what_a_killed_owner_left_is_removed(
    traces: Callable[[], Traces], request: pytest.FixtureRequest
) -> None:
    before = traces()
    name = request.getfixturevalue("crashed")
    left = traces()
    assert left["processes"] - before["processes"], "the cluster outlives its owner"
    assert name in remove_stale()
    expect_no_more_than(before, traces)


def test_the_living_are_left_alone(control_plane: Cluster) -> None:
    assert control_plane.home.name not in remove_stale()
    assert control_plane.kubectl("get", "--raw=/readyz") == "ok"


def test_several_stand_side_by_side(start_cluster: Start) -> None:
    with ThreadPoolExecutor(2) as pool:
        clusters = list(pool.map(start_cluster, [Profile.CONTROL_PLANE] * 2))
    assert len({cluster.home.name for cluster in clusters}) == 2
    for number, cluster in enumerate(clusters):
        cluster.kubectl("create", "namespace", f"only-in-{number}")
    for number, cluster in enumerate(clusters):
        found = {one["metadata"]["name"] for one in cluster.get("namespaces")["items"]}
        assert f"only-in-{number}" in found
        assert f"only-in-{1 - number}" not in found


def test_a_kept_cluster_outlives_the_command_that_made_it(control_plane: Cluster) -> None:
    def command(*arguments: str) -> str:
        said = subprocess.run(
            [sys.executable, "-m", "tools.cluster", *arguments],
            cwd=CHECKOUT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=200,
        )
        return said.stdout

    up = ("up", "--profile=control-plane", "--name=kept-by-test")
    try:
        export = command(*up)
        assert command(*up) == export, "a second `up` finds the first"
        assert remove_stale() == []
        home = next(home for home in homes() if home.name == "kept-by-test")
        assert export == f"export KUBECONFIG={home.kubeconfig}\n"
        assert "kept-by-test\tcontrol-plane\tlocal\tkept" in command("list")
    finally:
        command("down", "--name=kept-by-test")
    assert "kept-by-test" not in command("list")


def test_what_did_not_come_up_says_why_and_leaves_nothing(
    start_cluster: Start, traces: Callable[[], Traces]
) -> None:
    before = traces()
    wrong = ExtraFlags(scheduler=("--no-such-flag",))
    with pytest.raises(DidNotCome, match="kube-scheduler ended with 1") as failed:
        start_cluster(Profile.CONTROL_PLANE, extra=wrong)
    assert "unknown flag: --no-such-flag" in str(failed.value)
    expect_no_more_than(before, traces)
