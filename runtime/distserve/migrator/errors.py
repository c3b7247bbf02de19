"""Errors of the migrator.

MigratorError
|- PieceError       two sides' pools or spans do not fit together
|- TransportError   a path to a peer cannot be opened or broke; another one may work
'- LinkRefused      the peer does not exchange KV with this instance; the reason is its own
"""


class MigratorError(Exception):
    """Base of the room's errors."""


class PieceError(MigratorError):
    """Pools or spans that do not fit together; the message names what differs."""


class TransportError(MigratorError):
    """A path between two pools cannot be opened, or broke while bytes were on it."""


class LinkRefused(MigratorError):
    """The peer is there but does not exchange KV with this instance. Trying again is of no use
    until one of the two has changed."""
