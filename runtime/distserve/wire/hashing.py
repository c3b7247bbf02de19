"""Block hashes of prefix caching: engines key their cache by them, the gateway routes by them."""

import hashlib
import struct
from collections.abc import Iterator, Sequence

HASH_BYTES = 16


def root_hash(salt: str = "") -> bytes:
    """Start of a chain. Tenants with different salts never share blocks, nor see by timing that
    another one has sent the same prompt."""
    return hashlib.blake2b(salt.encode(), digest_size=HASH_BYTES, person=b"distserve-kv").digest()


def block_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Hash of one full block of token ids that follows `parent`."""
    packed = struct.pack(f"<{len(tokens)}q", *tokens)
    return hashlib.blake2b(parent + packed, digest_size=HASH_BYTES).digest()


def chain(tokens: Sequence[int], block_tokens: int, salt: str = "") -> Iterator[bytes]:
    """Hashes of all full blocks of `tokens`, first to last."""
    parent = root_hash(salt)
    for start in range(0, len(tokens) - block_tokens + 1, block_tokens):
        parent = block_hash(parent, tokens[start : start + block_tokens])
        yield parent
