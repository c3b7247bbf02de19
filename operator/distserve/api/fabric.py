"""What a pair's link should give: read by the rules about topology, by the operator, by the docs.

A level's figure is half of what the data sheet of the slowest usual hardware says for one direction
of one accelerator: a path that is right reaches it with room to spare, a wrong one (TCP over the
management network inside an NVLink domain) misses it by far. Only for accelerators whose memory is
on the fabric: what a CPU instance should reach depends on its host alone.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from distserve.api.quantities import parse_bytes

NODE: Final = "node"
"""The level of pairs on one node, tighter than every label's."""
SHARE: Final = 0.5


class Rated(NamedTuple):
    bytes_per_second: int
    """One direction of one accelerator, by its data sheet."""
    source: str

    @property
    def expected(self) -> int:
        return int(self.bytes_per_second * SHARE)


_NIC: Final = Rated(
    25_000_000_000,
    "one 200 Gb/s HDR InfiniBand adapter per GPU: NVIDIA DGX A100 data sheet "
    "(DGX H100: 400 Gb/s NDR; where GPUs share an adapter, set expectedBandwidth)",
)
RATED: Final[Mapping[str, Rated]] = {
    "nvlink": Rated(
        300_000_000_000,
        "third-generation NVLink, 600 GB/s both ways: NVIDIA A100 data sheet (H100: 900, B200: "
        "1800 GB/s)",
    ),
    "leaf": _NIC,
    "spine": _NIC,
    "core": _NIC,
    "zone": Rated(
        625_000_000,
        "5 Gb/s, the limit of a single flow outside a cluster placement group: Amazon EC2 User "
        "Guide, instance network bandwidth",
    ),
}
"""By the names that the presets give to levels."""


def expected_bandwidth(level: str, asked: Mapping[str, str], rated: bool) -> int | None:
    """Bytes per second. None: nothing is known of the level.

    `asked` is topology.expectedBandwidth, `rated` whether the table applies."""
    if level in asked:
        return parse_bytes(asked[level])
    return RATED[level].expected if rated and level in RATED else None


def tightest(
    shared: Iterable[str], asked: Mapping[str, str], rated: bool
) -> tuple[str, int] | None:
    """Of the levels that a pair shares, tightest first, the first of which something is expected:
    what a wider level gives, nodes inside a tighter one have as well."""
    for level in shared:
        if (expected := expected_bandwidth(level, asked, rated)) is not None:
            return level, expected
    return None
