"""Randomness of sampling as a pure function of (seed, choice, position); no state, no generator.

So a token does not depend on what else is in the batch, on which instance draws it, nor on
whether it is drawn for the first time or again in a replay.
"""

import hashlib
import struct


def uniform(seed: int, choice: int, position: int) -> float:
    """A float64 in [0, 1), 53 bits, for the token at `position` of the output of `choice`.

    `seed` is any Python integer; the lower 128 bits count.
    """
    key = struct.pack("<QQqq", seed & _LOW, (seed >> 64) & _LOW, choice, position)
    digest = hashlib.blake2b(key, digest_size=8, person=b"distserve-draw").digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


_LOW = (1 << 64) - 1
