"""What the engine's thread is told: the typed content of its inbox."""

from dataclasses import dataclass

from distserve.wire.dialect import Leg
from distserve.wire.messages import MigratorMessage


@dataclass(frozen=True, slots=True)
class StartLeg:
    leg: Leg
    issued: float
    """When it reached this instance, on the engine's clock."""


@dataclass(frozen=True, slots=True)
class StopLeg:
    """Abort, or the client's connection is gone."""

    leg: str


@dataclass(frozen=True, slots=True)
class DropTransfer:
    """Nobody will fetch it."""

    transfer: str


@dataclass(frozen=True, slots=True)
class StartDrain:
    """Take nothing new."""


@dataclass(frozen=True, slots=True)
class MigratorUp:
    """The channel to the migrator is open; peers reach it at `address`."""

    address: str


@dataclass(frozen=True, slots=True)
class MigratorDown:
    """The channel is closed: the migrator has died or will forget this engine."""


@dataclass(frozen=True, slots=True)
class FromMigrator:
    message: MigratorMessage


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End the thread after telling every leg."""


Command = (
    StartLeg
    | StopLeg
    | DropTransfer
    | StartDrain
    | MigratorUp
    | MigratorDown
    | FromMigrator
    | Shutdown
)
