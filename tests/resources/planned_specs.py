"""A deployment in mode Auto, short to write."""

from typing import Any

from distserve.api.deployment import DistServeDeployment
from distserve.api.loading import parse_deployment


def deployment(**changes: Any) -> DistServeDeployment:
    spec = {
        "model": {"id": "facebook/opt-13b", "source": {"hostPath": "/models/opt-13b"}},
        "slo": {"ttft": "250ms", "tpot": "0.1s", "attainmentPercent": 95},
        "workload": {
            "requestsPerSecond": "3",
            "lengths": {
                "promptTokens": {"mean": 300, "p90": 600},
                "outputTokens": {"mean": 50, "p90": 100},
            },
        },
        "planning": {"mode": "Auto", "maxAccelerators": 6},
        "prefill": {"scheduling": {"maxNumBatchedTokens": 4096}},
        "decode": {"scheduling": {"maxNumSeqs": 64}},
    }
    found = {"kind": "DistServeDeployment", "metadata": {"name": "x"}, "spec": spec | changes}
    return parse_deployment(found, "test")
