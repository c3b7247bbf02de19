"""Request sets and arrival processes: what is asked of a service, and when.

The planner simulates them and the measuring client replays them, so that a simulated and a
measured run can be given the same requests at the same instants.
"""

from distserve.workload.arrivals import ARRIVALS, ArrivalProcess
from distserve.workload.readers import parse_requests, read_requests
from distserve.workload.requests import (
    NO_OBJECTIVES,
    PREFIX_BLOCK_TOKENS,
    Objectives,
    RequestSet,
    Trace,
    WorkloadError,
)

__all__ = [
    "ARRIVALS",
    "NO_OBJECTIVES",
    "PREFIX_BLOCK_TOKENS",
    "ArrivalProcess",
    "Objectives",
    "RequestSet",
    "Trace",
    "WorkloadError",
    "parse_requests",
    "read_requests",
]
