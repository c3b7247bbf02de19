"""Does the KV cache arrive, and how fast?"""

from dataclasses import replace
from typing import Final

from distserve.observability.dashboards.common import (
    NO_MIGRATORS,
    OF_DEPLOYMENT,
    legend,
    percentiles,
)
from distserve.observability.panels import Dashboard, Form, Panel, Query, Row, Unit
from distserve.observability.promql import mean, ratio, total
from distserve.observability.selecting import INSTANCE, SHOWN, shown

_KV: Final = "distserve_kv_transfer_"
_STAGE: Final = 'stage="kv_transfer"'
_IN: Final = 'direction="in"'

_SPEED: Final = Row(
    "Speed",
    (
        Panel(
            "KV per second",
            "in: into the instances' pools; out: to peers. Shared memory is read by the peer and "
            "counts as in only.",
            (
                Query(
                    total(shown(f"{_KV}bytes_total"), "transport, direction"),
                    legend("transport", "direction"),
                ),
            ),
            Unit.BYTES_PER_SECOND,
        ),
        Panel(
            "Bandwidth of a transfer",
            "Bytes over the time in which a transfer had bytes in motion, failed ones included.",
            (
                Query(
                    ratio(
                        total(shown(f"{_KV}bytes_total", _IN), "transport"),
                        total(shown(f"{_KV}motion_seconds_total"), "transport"),
                    ),
                    legend("transport"),
                ),
            ),
            Unit.BYTES_PER_SECOND,
        ),
        percentiles("Time in motion", "Of a fetched transfer, all transports.", f"{_KV}seconds"),
        Panel(
            "Transfers per second",
            "What was cached at its target is not moved and does not count.",
            (Query(total(shown(f"{_KV}seconds_count"), "transport"), legend("transport")),),
            Unit.PER_SECOND,
        ),
        Panel(
            "What requests wait for it",
            "Mean of the stage kv_transfer: what the prefill does not hide.",
            (Query(mean("distserve_request_stage_seconds", (*SHOWN, _STAGE)), "kv_transfer"),),
            Unit.SECONDS,
        ),
        Panel(
            "Probed bandwidth",
            "Of each instance's last probe of its links; 0 before the first.",
            (
                Query(
                    f"max by ({INSTANCE}, transport) "
                    f"({shown('distserve_kv_link_bandwidth_bytes_per_second')})",
                    legend(INSTANCE, "transport"),
                ),
            ),
            Unit.BYTES_PER_SECOND,
        ),
    ),
)
_TRUST: Final = Row(
    "Failures and leases",
    (
        Panel(
            "Failures by reason",
            "docs/protocol/migration.md has what each reason means. A failed transfer is not a "
            "failed request: another route is tried.",
            (Query(total(shown(f"{_KV}failures_total"), "reason"), legend("reason")),),
            Unit.PER_SECOND,
            Form.STACKED,
        ),
        Panel(
            "Leases that run",
            "Prefill memory that is kept for a peer. It grows while decode has no room.",
            (Query(f"sum by ({INSTANCE}) ({shown(f'{_KV}leases')})", legend(INSTANCE)),),
        ),
        Panel(
            "Leases renewed and run out",
            "A lease that runs out frees KV that nobody came for.",
            (
                Query(total(shown(f"{_KV}leases_renewed_total")), "renewed"),
                Query(total(shown(f"{_KV}leases_expired_total")), "run out"),
            ),
            Unit.PER_SECOND,
        ),
    ),
)


def _excused(row: Row) -> Row:
    return replace(row, panels=tuple(replace(p, without=NO_MIGRATORS) for p in row.panels))


TRANSFER: Final = Dashboard(
    "distserve-transfer",
    "DistServe / KV transfer",
    "Bandwidth, failures and leases of the KV cache's way from prefill to decode.",
    OF_DEPLOYMENT,
    (_excused(_SPEED), _excused(_TRUST)),
)
