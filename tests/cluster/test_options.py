"""What pytest does with tests that ask for a cluster, by pytest runs of their own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tools.cluster.cluster import CHECKOUT

ASKS = "def test_it(control_plane):\n    pass\n"
SLOW = """
import time
import pytest

@pytest.fixture
def something():
    yield
    print("torn down")

@pytest.mark.timeout(2)
def test_it(something):
    time.sleep(60)
"""


def pytest_run(folder: Path, *options: str, test: str = ASKS, **environment: str) -> str:
    """What pytest prints of this test, by default one that asks for a cluster."""
    (folder / "test_it.py").write_text(test)
    where = ("-c", str(CHECKOUT / "pyproject.toml"), "--rootdir", str(folder), str(folder))
    return pytest_says("-p", "tools.cluster.fixtures", *options, *where, **environment)


def pytest_says(*words: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(("ci", "outcome"), [("", "1 skipped"), ("true", "1 error")])
def test_a_machine_that_can_do_none_skips_loudly_and_fails_in_ci(
    tmp_path: Path, ci: str, outcome: str
) -> None:
    said = pytest_run(tmp_path, "--cluster", PATH="", XDG_CACHE_HOME=str(tmp_path), CI=ci)
    assert outcome in said
    assert "apt-get install" in said


def test_a_test_that_takes_too_long_is_torn_down(tmp_path: Path) -> None:
    said = pytest_run(tmp_path, test=SLOW)
    assert "Timeout (>2.0s)" in said
    assert "torn down" in said and "1 failed" in said


def test_where_helm_cannot_be_built_the_tests_that_need_it_fail(
    tmp_path: Path, go: Callable[[int], None]
) -> None:
    go(1)
    programs = Path(os.environ["PATH"].partition(":")[0])
    for name in ("nice", "chmod", "mkdir"):
        (programs / name).symlink_to(str(shutil.which(name)))
    test = CHECKOUT / "tests" / "chart" / "test_docs.py"
    said = pytest_says(f"{test}::test_alerts_are_explained", PATH=str(programs))
    assert "no network" in said
    assert "1 error" in said and "INTERNALERROR" not in said


def test_without_the_option_cluster_tests_stay_out(tmp_path: Path) -> None:
    said = pytest_run(tmp_path)
    assert "1 deselected" in said
    assert "1 tests on Kubernetes are left out: --cluster runs them" in said
