"""What runs where, and between whom the KV cache moves."""

from typing import Final

from distserve.observability.dashboards.common import NO_MIGRATORS, OF_DEPLOYMENT, legend
from distserve.observability.panels import Dashboard, Form, Panel, Query, Row, Unit
from distserve.observability.promql import series, total
from distserve.observability.selecting import (
    DOMAIN,
    INSTANCE,
    REVISION,
    ROLE,
    UNIT,
    shown,
)

_INFO: Final = shown("distserve_engine_instance_info")


def _engines(*labels: str) -> Query:
    return Query(f"count by ({', '.join(labels)}) ({_INFO})", legend(*labels))


def _fabric(name: str, target: bool = False) -> Query:
    """Of the operator's pods, which name the deployment themselves."""
    found = series(f"distserve_fabric_{name}", 'deployment="$namespace/$deployment"')
    said = "expected, " if target else ""
    return Query(
        f"max by (unit, level, transport) ({found}) or on () vector(0)",
        said + legend("unit", "level", "transport"),
        target,
    )


_INSTANCES: Final = Row(
    "Instances",
    (
        Panel(
            "By role",
            "Instances whose metrics are read.",
            (_engines(ROLE),),
            form=Form.STACKED,
            width=6,
        ),
        Panel(
            "By unit",
            "A unit lacks instances: `distserve why` says what is in their way.",
            (_engines(UNIT, ROLE),),
            form=Form.STACKED,
            width=6,
        ),
        Panel(
            "By fabric domain",
            "Without a name: placed where nodes have no fabric labels.",
            (_engines(DOMAIN, ROLE),),
            form=Form.STACKED,
            width=6,
        ),
        Panel(
            "By revision",
            "Two of them during a rollout.",
            (_engines(REVISION),),
            form=Form.STACKED,
            width=6,
        ),
    ),
)
_LINKS: Final = Row(
    "Links",
    (
        Panel(
            "Peers that KV is read from",
            "By the transport that the pair proved to have: TCP inside one host or NVLink domain "
            "is worth a look.",
            (
                Query(
                    f"sum by ({INSTANCE}, transport) ({shown('distserve_kv_links')})",
                    legend(INSTANCE, "transport"),
                ),
            ),
            without=NO_MIGRATORS,
        ),
        Panel(
            "KV into each unit",
            "",
            (
                Query(
                    total(shown("distserve_kv_transfer_bytes_total", 'direction="in"'), UNIT),
                    "unit " + legend(UNIT),
                ),
            ),
            Unit.BYTES_PER_SECOND,
            without=NO_MIGRATORS,
        ),
        Panel(
            "Pairs by what they share",
            "Prompts per second by the closest thing that their prefill and decode instances "
            "share. Farther ones mean slower transfers.",
            (Query(total(shown("distserve_gateway_pairs_total"), "scope"), legend("scope")),),
            Unit.REQUESTS,
            Form.STACKED,
        ),
    ),
)
_PROOF: Final = Row(
    "The fabric's proof",
    (
        Panel(
            "Measured at each unit's slowest link",
            "By the operator, of each prefill and decode instance of a unit; dashed: what the "
            "level of the link should give. A line without a name at 0: no operator, or nothing "
            "measured yet.",
            (_fabric("bandwidth_bytes_per_second"), _fabric("expected_bytes_per_second", True)),
            Unit.BYTES_PER_SECOND,
            width=12,
            without=NO_MIGRATORS,
        ),
        Panel(
            "Latency of that link",
            "From asking for a byte to having it.",
            (_fabric("latency_seconds"),),
            Unit.SECONDS,
            width=12,
            without=NO_MIGRATORS,
        ),
    ),
)
TOPOLOGY: Final = Dashboard(
    "distserve-topology",
    "DistServe / Topology",
    "Instances by unit, fabric domain and revision, and the links between them.",
    OF_DEPLOYMENT,
    (_INSTANCES, _LINKS, _PROOF),
)
