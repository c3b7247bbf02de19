"""`helm template` of the chart: for `make manifests` and for the tests of its objects."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from tools.cluster import binaries
from tools.cluster.progress import Progress
from tools.cluster.waiting import run

CHECKOUT = Path(__file__).parents[2]
CHART = CHECKOUT / "charts" / "distserve"
RELEASE = "distserve"
NAMESPACE = "distserve-system"


def helm(*args: str, stdin: str | None = None) -> str:
    """What helm says, without a cluster; raises CommandFailed with its words."""
    return run([str(binaries.client("helm", Progress())), *args], stdin=stdin)


def template(
    values: Mapping[str, Any] | None = None,
    *,
    release: str = RELEASE,
    namespace: str = NAMESPACE,
    tests: bool = False,
    served: Sequence[str] = (),
) -> str:
    """The chart's objects as YAML; `served` are kinds that the cluster has besides its own."""
    flags = [f"--namespace={namespace}", "--values=-"]
    flags += [] if tests else ["--skip-tests"]
    flags += [f"--api-versions={kind}" for kind in served]
    return helm("template", release, str(CHART), *flags, stdin=yaml.safe_dump(dict(values or {})))


def objects(values: Mapping[str, Any] | None = None, **options: Any) -> list[dict[str, Any]]:
    """The same as `template`, parsed."""
    rendered = yaml.safe_load_all(template(values, **options))
    return [found for found in rendered if found is not None]
