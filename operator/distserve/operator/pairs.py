"""Pairs of instances that exchange KV: what is asked about their links, and what came back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Life = tuple[str, int]
"""A pod's uid, and how often its containers were started anew."""


@dataclass(frozen=True)
class Member:
    """The first pod of an instance, which answers for it."""

    pod: str
    uid: str
    host: str
    """Its address."""
    node: str
    restarts: int = 0

    @property
    def life(self) -> Life:
        return self.uid, self.restarts


@dataclass(frozen=True)
class Pair:
    reader: Member
    """Of the decode instance."""
    source: Member
    """Of the prefill instance."""
    level: str = ""
    """Tightest level that both nodes share and of which something is expected; else the tightest.
    Empty where they share none."""
    expected: int | None = None
    """Bytes per second."""

    @property
    def lives(self) -> tuple[Life, Life]:
        """A link is measured once for them: containers that start anew have another."""
        return self.reader.life, self.source.life


@dataclass(frozen=True)
class LinksQuestion:
    """What do the links of these pairs give? Pairs that are not named are not looked at any more,
    and what was measured of them is forgotten."""

    secret: str
    """With the deployment's key."""
    units: Mapping[str, tuple[Pair, ...]]


@dataclass(frozen=True)
class Link:
    """A pair's, as its migrator measured it. Without a transport it was not."""

    pair: Pair
    transport: str = ""
    latency_ms: float = 0.0
    bandwidth: float = 0.0
    """Bytes per second."""
    trouble: str = ""
    """Why it was not measured, or which faster transports did not work."""

    @property
    def measured(self) -> bool:
        return bool(self.transport)

    @property
    def slow(self) -> bool:
        return self.measured and self.share < 1

    @property
    def share(self) -> float:
        """Of what is expected."""
        return self.bandwidth / self.pair.expected if self.pair.expected else float("inf")


@dataclass(frozen=True)
class UnitLinks:
    links: tuple[Link, ...] = ()
    """Of each pair that was asked about."""
    engines: Mapping[Life, str] = field(default_factory=dict)
    """Fingerprints of those that answered."""

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Each once."""
        return tuple(sorted(set(self.engines.values())))

    @property
    def slowest(self) -> Link | None:
        """By what is expected, then by what was measured."""
        measured = [link for link in self.links if link.measured]
        return min(measured, key=lambda link: (link.share, link.bandwidth), default=None)
