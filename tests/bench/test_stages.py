"""A gateway's stage times become a run's, unless somebody else's requests are among them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distserve.bench.analysis import STAGES, breakdown
from distserve.bench.reading import read_run
from distserve.bench.stages import mean_seconds, parse

NAMES = ("prefill_queue", "prefill", "kv_transfer", "decode_queue", "decode")


def metrics(requests: int, *seconds: float) -> str:
    lines = ["# TYPE distserve_request_stage_seconds histogram"]
    for stage, value in zip(NAMES, seconds, strict=True):
        name = "distserve_request_stage_seconds"
        lines.append(f'{name}_bucket{{le="1.0",stage="{stage}"}} 3.0')
        lines.append(f'{name}_count{{stage="{stage}"}} {float(requests)}')
        lines.append(f'{name}_sum{{stage="{stage}"}} {value}')
    return "\n".join(lines) + "\n"


def test_the_run_s_share() -> None:
    before, after = parse(metrics(10, 1, 2, 3, 4, 5)), parse(metrics(14, 2, 4, 3, 5, 11))
    assert before is not None and after is not None
    assert mean_seconds(before, after, 4) == dict(
        zip(STAGES, (0.25, 0.5, 0.0, 0.25, 1.5), strict=True)
    )
    assert mean_seconds(before, after, 3) is None
    assert mean_seconds(before, before, 0) is None


def test_other_servers_count_no_stages() -> None:
    assert parse("vllm:num_requests_running 3.0\n") is None
    assert parse('distserve_request_stage_seconds_sum{stage="decode"} 3\n') is None


def test_a_run_keeps_them(bench: Callable[..., Any], stub: Any, tmp_path: Path) -> None:
    def page() -> str:
        # The warm-up's one request before, that and the run's five after.
        done = len(stub.bodies)
        return metrics(done, 0.1 * done, 0.2 * done, 0, 0.1 * done, 0.6 * done)

    stub.metrics = page
    assert bench()[0] == 0
    about = json.loads((tmp_path / "sys-5-100.run.json").read_text())
    assert round(about["stage_seconds"]["decode"], 6) == 0.6
    shares = breakdown(read_run(tmp_path / "sys-5-100.exp"))
    assert shares is not None
    assert {name: round(share, 6) for name, share in shares.items()} == {
        "prefill queueing": 0.1, "prefill": 0.2, "transmission": 0.0, "decode queueing": 0.1,
        "decode": 0.6,
    }  # fmt: skip
