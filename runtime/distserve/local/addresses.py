"""Loopback addresses for pods: a /24 of 127.0.0.0/8 that no other runner uses."""

import contextlib
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from distserve.local.errors import Refused

LOCK_PORT = 8099
"""A socket on it, at the first address, says that the /24 is taken; it ends with the runner."""
ATTEMPTS = 50
MAX_PODS = 253


@dataclass(frozen=True)
class Addresses:
    prefix: str
    """127.x.y"""

    def pod(self, index: int) -> str:
        if not 0 <= index < MAX_PODS:
            raise Refused(f"more than {MAX_PODS} pods: lower units or instancesPerUnit")
        return f"{self.prefix}.{index + 2}"


@contextlib.contextmanager
def reserve_addresses(draw: random.Random) -> Iterator[Addresses]:
    for _ in range(ATTEMPTS):
        prefix = f"127.{draw.randrange(1, 255)}.{draw.randrange(0, 256)}"
        lock = socket.socket()
        try:
            lock.bind((f"{prefix}.1", LOCK_PORT))
            lock.listen(1)
        except OSError:
            lock.close()
            continue
        with lock:
            yield Addresses(prefix)
        return
    raise Refused(
        "no free addresses in 127.0.0.0/8: this machine may give only 127.0.0.1 to its loopback "
        "interface (`ip addr show lo`)"
    )
